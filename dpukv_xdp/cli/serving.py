# SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
"""Commands for servers: serve, stats and rebalance."""

import signal
from typing import Any

import click

from dpukv_xdp.base.errors import UsageError
from dpukv_xdp.cli.options import (
    Number,
    directory_option,
    json_option,
    restart_option,
    server_options,
)
from dpukv_xdp.cli.output import check_json, emit_json, note, require_root, terminal
from dpukv_xdp.cli.settings import check_given, server_config
from dpukv_xdp.cli.signals import signals
from dpukv_xdp.topology.schema import DEFAULT_DIRECTORY


@click.command()
@click.option("--iface", required=True, help="The interface to serve on.")
@click.option(
    "--items", type=Number("items"), help="Number of items for which the index is sized (1048576)."
)
@directory_option(DEFAULT_DIRECTORY)
@click.option(
    "--rebalance-s",
    type=Number("rebalance_s"),
    help="Seconds between moves of partitions off busy engines (0).",
)
@restart_option
@server_options
@json_option
def serve(iface: str, json_path: str | None, **given: Any) -> None:
    """Serve on an interface until Ctrl-C or SIGTERM.

    Other traffic goes to the kernel's stack as before.
    """
    require_root("serve")
    from dpukv_xdp.report.tables import counters_table
    from dpukv_xdp.server.server import Server
    from dpukv_xdp.server.service import Service
    from dpukv_xdp.server.supervisor import supervised
    from dpukv_xdp.topology import sizing

    config = server_config(given)
    check_json(json_path)
    sizing.check_memory(config)
    regions = supervised(note) if config.restart else None
    supervisor_pid = regions.supervisor_pid if regions else None
    server = Server(config, iface, regions)
    signals.catch()
    with server:
        config.placement().leave_host_cpus()
        attachment = server.attachment
        assert attachment is not None
        if attachment.native_refused:
            click.echo(f"generic XDP, which is slower: {attachment.native_refused}", err=True)
        taken_over = _taken_over(server.taken_over) if regions and regions.has_predecessor else None
        for sentence in filter(None, [*server.notes, taken_over, config.profile_row().label()]):
            note(sentence)
        where = server.endpoint()
        click.echo(
            f"serving on {where['address'] or 'any address'}, UDP port {where['port']}"
            f"{_last_port(where)}, interface {iface} ({attachment.mode} XDP); Ctrl-C ends it",
            err=True,
        )
        with signals.awaited(), Service(server, note, supervisor_pid):
            if regions:
                regions.serving()
                regions.watch(note)
            while True:
                signal.pause()
        stats = server.stats()
    emit_json(json_path, {"endpoint": where, **stats})
    if json_path is None:
        from rich.console import Console

        Console(stderr=True).print(counters_table(stats["counters"], "communication engine"))


def _taken_over(repaired: list[dict[str, int]]) -> str:
    """Return the sentence about the stores that a killed server has left."""
    if not repaired:
        return "the stores in XDP go on"
    sums = {name: sum(own[name] for own in repaired) for name in repaired[0]}
    undone = f", {sums['undone']:,} unfinished writes undone" if sums["undone"] else ""
    damaged = f", {sums['damaged']:,} damaged ones left out" if sums["damaged"] else ""
    return f"the store goes on with {sums['items']:,} items{undone}{damaged}"


_name_option = click.option(
    "--server", "name", help="Name of the server in the directory (the only one)."
)


@click.command()
@_name_option
@json_option
def stats(name: str | None, json_path: str | None) -> None:
    """Print the counters of a running server, such as drops by cause.

    The server must run on this machine. Tables leave out what is 0; --json has everything.
    """
    require_root("asking a server")
    check_given()
    check_json(json_path)
    from dpukv_xdp.report.tables import stats_tables
    from dpukv_xdp.server.service import call_service

    name = name or _only_server()
    found = call_service(name, "stats")
    emit_json(json_path, {"server": name, **found})
    if json_path != "-":
        terminal().print(f"server {name}", *stats_tables(found), sep="\n")


@click.command()
@_name_option
@click.option(
    "--move",
    "moves",
    metavar="PARTITION:ENGINE",
    multiple=True,
    help="Move this partition to this engine regardless of the load; may be repeated.",
)
@click.option(
    "--look",
    type=Number("look"),
    default=1.0,
    show_default=True,
    help="Seconds to count requests before deciding; 0 counts from the server's start.",
)
@json_option
def rebalance(name: str | None, moves: tuple[str, ...], look: float, json_path: str | None) -> None:
    """Move partitions from busy engines to idle ones.

    The server must run on this machine; its clients learn the new owners from the directory.
    """
    require_root("steering a server")
    check_given()
    from dpukv_xdp.server.service import call_service

    wanted = [_move(text) for text in moves]
    name = name or _only_server()
    for partition, engine in wanted:
        call_service(name, "move", partition=partition, engine=engine)
    made = [{"partition": partition, "engine": engine} for partition, engine in wanted]
    if not wanted:
        made = call_service(name, "rebalance", look_seconds=look)
    partitions = call_service(name, "partitions")
    emit_json(json_path, {"server": name, "moves": made, "partitions": partitions})
    if json_path != "-":
        for move in made:
            click.echo(f"partition {move['partition']} moved to engine {move['engine']}")
        by_engine: dict[int, int] = {}
        for partition in partitions:
            by_engine[partition["engine"]] = by_engine.get(partition["engine"], 0) + 1
        click.echo(
            "; ".join(f"engine {engine}: {n} partitions" for engine, n in sorted(by_engine.items()))
        )


def _only_server() -> str:
    from dpukv_xdp.server.service import services

    names = services()
    if len(names) != 1:
        raise UsageError(
            f"{len(names) or 'no'} servers run here"
            f"{': name one with --server, of ' if names else ''}{', '.join(names)}"
        )
    return names[0]


def _move(text: str) -> tuple[int, int]:
    partition, colon, engine = text.partition(":")
    if not (colon and partition.isdecimal() and engine.isdecimal()):
        raise UsageError(f"{text!r} is not PARTITION:ENGINE such as 3:1")
    return int(partition), int(engine)


def _last_port(where: dict[str, Any]) -> str:
    return "" if where["engines"] == 1 else f" to {where['port'] + where['engines'] - 1}"
