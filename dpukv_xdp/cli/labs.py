# SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
"""The commands `dpukv lab up`, `down` and `status`: a server in a network namespace."""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any

import click

from dpukv_xdp.base.errors import DpukvError, UsageError
from dpukv_xdp.base.patience import patient
from dpukv_xdp.cli.options import (
    Number,
    directory_option,
    json_option,
    restart_option,
    server_options,
)
from dpukv_xdp.cli.output import check_json, emit_json, require_root
from dpukv_xdp.cli.settings import server_config
from dpukv_xdp.cli.signals import signals

LAB_READY_SECONDS = 20.0
"""Time without an answer and without progress after which a lab's server is given up."""
LAB_PROBE_SECONDS = 0.1
LOG_BYTES_MAX = 1 << 20
COMMAND = os.environ.get("DPUKV_COMMAND", "dpukv")  # what the person typed: see tools/dpukv


@click.group(name="lab")
def lab_group() -> None:
    """A server in a network namespace for experiments."""


@lab_group.command()
@click.option("--name", "lab_id", help="Name of the lab and its namespaces (six random digits).")
@click.option(
    "--queues",
    type=Number("queues"),
    default=1,
    show_default=True,
    help="Receive queues at each end.",
)
@click.option(
    "--mtu",
    type=Number("mtu"),
    default=1500,
    show_default=True,
    help="Bytes of the largest packet.",
)
@click.option(
    "--items", type=Number("items"), help="Number of items for which the index is sized (1048576)."
)
@directory_option("one of the lab's own, which goes with it")
@restart_option
@server_options
@json_option
def up(lab_id: str | None, queues: int, mtu: int, json_path: str | None, **given: Any) -> None:
    """Build a lab with a server; it stays until `lab down`.

    A lab is two network namespaces joined by a veth pair. Its engine polls and keeps one core busy.
    """
    require_root("lab up")
    from dpukv_xdp.lab.lab import Lab, directory_url, new_lab_id, remove_stale
    from dpukv_xdp.topology import sizing

    if lab_id == "":
        raise UsageError("--name is empty: use letters, digits and hyphens, or leave it out")
    lab_id = lab_id or new_lab_id()
    config = server_config(given, directory=directory_url(lab_id))
    sizing.check_memory(config)
    check_json(json_path)
    signals.catch()
    remove_stale()
    place = Lab.up(queues=queues, mtu=mtu, lab_id=lab_id)
    try:
        _start_lab_server(place, config)
        place.keep()
        facts = _lab_facts(place.record)
        emit_json(json_path, facts)
        if json_path != "-":
            _print_lab(facts)
    except BaseException:
        place.down()
        raise


@lab_group.command()
@click.argument("lab_id", required=False)
def down(lab_id: str | None) -> None:
    """Take down one lab, or all labs.

    Leftovers of killed commands are removed, too. Labs of running commands stay, unless they are
    named.
    """
    require_root("lab down")
    signals.catch()
    from dpukv_xdp.base.processes import is_alive
    from dpukv_xdp.kernel.attachments import remove_stale_attachments
    from dpukv_xdp.lab.lab import list_labs, remove, remove_stale

    removed = remove_stale()
    for record in list_labs():
        if record.lab_id == lab_id or (lab_id is None and record.persistent):
            removed += [record.lab_id] if remove(record.lab_id) else []
        elif lab_id is None and is_alive(record.owner):
            click.echo(f"lab {record.lab_id} belongs to running process {record.owner.pid}: kept")
    if lab_id is not None and lab_id not in removed:
        raise UsageError(f"there is no lab {lab_id!r}: `dpukv lab status` lists them")
    for sentence in remove_stale_attachments():
        click.echo(sentence)
    click.echo(f"removed: {', '.join(removed) or 'nothing was up'}")


@lab_group.command()
@json_option
def status(json_path: str | None) -> None:
    """List the labs that are up."""
    from dpukv_xdp.lab.lab import list_labs

    facts = [_lab_facts(record) for record in list_labs()]
    emit_json(json_path, facts)
    if json_path != "-":
        for lab_facts in facts:
            _print_lab(lab_facts)
        if not facts:
            click.echo("no lab is up")


def _start_lab_server(place: Any, config: Any) -> None:
    """Start `dpukv serve` inside the lab in the background, and wait until it answers."""
    from dpukv_xdp.discovery.directory import server_name

    with tempfile.TemporaryFile() as log:  # without a name, so that it ends with the server
        with signals.held():  # an interrupt before the register's entry would leave it running
            process = place.spawn(
                place.server,
                [sys.executable, "-P", "-m", "dpukv_xdp", *_serve_arguments(place, config)],
                die_with_parent=False,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        place.note(
            port=config.port,
            engines=config.endpoint_count(),
            owners=config.owners(),
            directory=config.directory,
            name=server_name(process.pid),
            log=f"/proc/{process.pid}/fd/2",
        )
        _await_lab_server(process, log.fileno(), lambda: _lab_server_answers(place))


def _lab_server_answers(place: Any) -> bool:
    """Return whether the lab's server answers and is in its directory."""
    from dpukv_xdp.base.errors import NoResponseError
    from dpukv_xdp.client.client import Client
    from dpukv_xdp.kernel.namespaces import in_namespace
    from dpukv_xdp.server.service import services

    details = place.record.details
    address = (place.server.address, details["port"])
    try:
        with (
            in_namespace(place.client.namespace),
            Client(address, timeout=patient(LAB_PROBE_SECONDS), retries=0) as client,
        ):
            client.ping()
    except NoResponseError:
        return False
    return not details["directory"] or details["name"] in services()


def _await_lab_server(
    process: subprocess.Popen[Any], log_fd: int, answers: Callable[[], bool]
) -> None:
    """Wait until the lab's server answers.

    Raises DpukvError with the end of its log if it ends, or makes no progress for
    LAB_READY_SECONDS.
    """
    reached, moved_at = (0, 0), time.monotonic()
    while not answers():
        progress = _start_progress(process.pid, log_fd)
        if any(now > before for now, before in zip(progress, reached, strict=True)):
            reached, moved_at = progress, time.monotonic()
        is_stuck = time.monotonic() - moved_at > patient(LAB_READY_SECONDS)
        if process.poll() is not None or is_stuck:
            said = os.pread(log_fd, LOG_BYTES_MAX, 0).decode(errors="replace")
            reason = (said.split("dpukv: ")[-1].strip()) or "it said nothing"
            raise DpukvError(f"the lab's server did not start: {reason}")
        time.sleep(0.05)


def _start_progress(pid: int, log_fd: int) -> tuple[int, int]:
    """Return how far a server's start has come: bytes of its log, and MiB of memory, which grows
    while it compiles and while it makes its store. A supervisor's server is its child.
    """
    from dpukv_xdp.base.machine import resident_bytes
    from dpukv_xdp.base.processes import children

    memory_bytes = sum(map(resident_bytes, (pid, *children(pid))))
    return os.fstat(log_fd).st_size, memory_bytes >> 20


def _serve_arguments(place: Any, config: Any) -> list[str]:
    """Return the arguments of `dpukv serve` for the settings that differ from the defaults."""
    from dpukv_xdp.topology.schema import option_words

    arguments = ["serve", "--iface", place.server.interface]
    for name in sorted(config.changed()):
        arguments += option_words(name, getattr(config, name))
    return arguments


def _lab_facts(record: Any) -> dict[str, Any]:
    import msgspec

    from dpukv_xdp.base.processes import is_alive

    serving = any(is_alive(process) for process in record.processes)
    return {**msgspec.to_builtins(record), "serving": serving}


def _print_lab(facts: dict[str, Any]) -> None:
    details = facts["details"]
    click.echo(f"lab {facts['lab_id']}{'' if facts['persistent'] else ' (of a running command)'}")
    for name in ("server", "client"):
        end = facts[name]
        port = f"  UDP port {details['port']}" if name == "server" and details else ""
        click.echo(
            f"  {name}  {end['namespace']}  {end['interface']}  {end['mac']}  {end['address']}"
            f"{port}"
        )
    if details and not facts["serving"]:
        click.echo("  its server has ended: take the lab down, and up again")
    elif details:
        click.echo(f"  log     {details['log']}")
        click.echo(f"  try     {COMMAND} set hello world; {COMMAND} get hello")
        click.echo(f"  enter   sudo ip netns exec {facts['client']['namespace']} bash")
