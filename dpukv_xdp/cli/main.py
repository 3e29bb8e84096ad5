# SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
"""Every command. Options become settings, errors become one sentence and an exit status; the work
is elsewhere.
"""

import contextlib
import errno
import json
import logging
import math
import os
import signal
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from types import CoroutineType, FrameType
from typing import Any, NoReturn

import click
from rich.console import Console

from dpukv_xdp.base.errors import DpukvError, MissingError, UsageError
from dpukv_xdp.base.patience import check_stated, patient
from dpukv_xdp.cli.compare import compare
from dpukv_xdp.cli.model import model, recommend
from dpukv_xdp.cli.reproduce import reproduce
from dpukv_xdp.topology.config import (
    ACCESSES,
    DEFAULT_DIRECTORY,
    FRAMES,
    PREPARES,
    RESPOND_WAYS,
    SENDS,
    SOCKET_MODES,
    STORE_KINDS,
    TRANSFERS,
    TRANSPORTS,
)

# What takes long to import is imported by the command that needs it: `dpukv --help` and `get`
# answer at once.

LAB_READY_SECONDS = 20.0
"""A lab's server that neither answers nor gets any further for so long is given up."""
LAB_PROBE_SECONDS = 0.1
LOG_BYTES_MAX = 1 << 20
PLAIN_COLUMNS = 80
COMMAND = os.environ.get("DPUKV_COMMAND", "dpukv")  # what the person typed: see tools/dpukv
PICTURE_SUFFIXES = (".png", ".pdf", ".svg")
TIMEOUT_MAX_SECONDS = 3600.0
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
CLEAN_UP_SECONDS = 15.0
INSIST_SECONDS = 0.05
MTU_MIN = 68  # IPv4's
ALL_DESIGNS = "all"


class Interrupted(SystemExit):
    """Somebody wants this process to end: one of SIGNALS. Not an Exception, so that no library
    takes it for a failure of its own; and a SystemExit, because asyncio, which pyroute2 runs on,
    swallows whatever else is raised inside one of its callbacks.
    """

    def __init__(self, number: int) -> None:
        super().__init__(128 + number)
        self.exit_status = 128 + number


class Signals:
    """SIGNALS as Interrupted in the main thread, from the moment that there is something to take
    down.

    Whoever presses Ctrl-C again while that is being done does not stop it half way. An Interrupted
    that a library swallows comes again: pyroute2 decodes messages within a bare `except:`, and
    nothing leaves a destructor.
    """

    def __init__(self) -> None:
        self._raised_at = -math.inf
        self._raised_number = 0
        self._is_held = False
        self._pending: int | None = None

    def catch(self) -> None:
        """Begin."""
        signal.signal(signal.SIGALRM, self._insist)
        for number in SIGNALS:
            if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:  # nohup
                signal.signal(number, self._handle)

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """None interrupts the block; one that came is raised behind it."""
        self._is_held = True
        try:
            yield
        finally:
            self._is_held = False
        if self._pending is not None:
            self._raise(self._pending)

    @contextlib.contextmanager
    def awaited(self) -> Iterator[None]:
        """The block ends with one, as it should: what is behind it is done in peace."""
        try:
            yield
        except Interrupted:
            self.end()

    def end(self) -> None:
        """Whatever one had to end has ended."""
        signal.setitimer(signal.ITIMER_REAL, 0)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self._is_held:
            self._pending = number
        elif time.monotonic() - self._raised_at >= patient(CLEAN_UP_SECONDS):
            self._raise(number)

    def _raise(self, number: int) -> NoReturn:
        self._raised_at = time.monotonic()
        self._raised_number = number
        warnings.simplefilter("ignore")  # of coroutines that pyroute2 will never resume
        logging.getLogger("asyncio").disabled = True  # nor of its tasks
        sys.unraisablehook = _say_unless_interrupted
        signal.setitimer(signal.ITIMER_REAL, INSIST_SECONDS, INSIST_SECONDS)
        raise Interrupted(number)

    def _insist(self, number: int, frame: FrameType | None) -> None:
        is_on_its_way = _is_interrupted(sys.exc_info()[1])  # the blocks that it ends clean up
        if not is_on_its_way and not self._is_held:
            raise Interrupted(self._raised_number)


def _is_interrupted(error: BaseException | None) -> bool:
    """Whether the error is an Interrupted, or came up while one was dealt with."""
    while error is not None and not isinstance(error, Interrupted):
        error = error.__context__
    return error is not None


def _say_unless_interrupted(unraisable: Any) -> None:
    """An event loop of pyroute2 that was interrupted in its constructor complains as it goes, and
    so does a coroutine whose loop has gone; an Interrupted that ended in a destructor comes again.
    """
    half_built = getattr(unraisable.object, "__qualname__", "") == "BaseEventLoop.__del__"
    left_over = isinstance(unraisable.object, CoroutineType)
    if not (half_built or left_over or _is_interrupted(unraisable.exc_value)):
        sys.__unraisablehook__(unraisable)


signals = Signals()


def main() -> None:
    """Run the command line; an expected failure is one sentence on stderr."""
    # As long as nothing is built there is nothing to take down: see Signals.
    # A shell starts background jobs with SIGINT ignored: `kill -INT` must end them all the same.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        cli.main(standalone_mode=False, prog_name="dpukv")
        sys.stdout.flush()
    except DpukvError as error:
        _fail(str(error), error.exit_status)
    except click.ClickException as error:
        _fail(error.format_message(), UsageError.exit_status)
    except Interrupted as interrupted:
        _fail("interrupted; everything has been taken down", interrupted.exit_status)
    except BrokenPipeError:  # the reader of our output went away
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        sys.exit(1)
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        _fail("the disk that the output goes to is full", 1)
    finally:
        signals.end()


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="dpukv_xdp", prog_name="dpukv")
def cli() -> None:
    """dpukv_xdp: an in-memory key-value store whose communication engine is XDP.

    Start with `dpukv demo`; `dpukv doctor` says what this machine lacks.
    """
    check_stated()


# ---- Options that several commands share

Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]


def _together(*options: Decorator) -> Decorator:
    def apply(command: Callable[..., Any]) -> Callable[..., Any]:
        for option in reversed(options):
            command = option(command)
        return command

    return apply


json_option = click.option(
    "--json",
    "json_path",
    metavar="FILE",
    help="Write the result as JSON to FILE; - is standard output, which then gets nothing else.",
)

server_options = _together(
    click.option(
        "--config", "config_path", type=click.Path(path_type=Path), help="Settings in TOML."
    ),
    click.option("--design", help="Which engine runs where: see `dpukv designs` (lat)."),
    click.option("--port", type=int, help="UDP port of engine 0; engine e has PORT + e (9800)."),
    click.option(
        "--engines",
        type=int,
        help="Engines behind each of the design's doors, a UDP port each (1).",
    ),
    click.option(
        "--engine-cpus", help="Host cores, such as 0,1, dealt out in turn (all but the last one)."
    ),
    click.option("--dpu-cpus", help="Cores for the receive queues, as NAPI threads (softirqs)."),
    click.option("--log-bytes", type=int, help="Bytes of the circular logs together."),
    click.option(
        "--partitions", type=int, help="Parts of the key space (one for each engine; 64)."
    ),
    click.option(
        "--access",
        type=click.Choice(ACCESSES),
        help="Who may use a partition: its owner, all to read, or all (auto: mostly erew).",
    ),
    click.option(
        "--store", type=click.Choice(STORE_KINDS), help="When full: forget, or refuse (cache)."
    ),
    click.option(
        "--move-to-head", type=float, help="A GET refreshes items older than this share (0.5)."
    ),
    click.option(
        "--allow-reset/--no-allow-reset", default=None, help="RESET from the network (no)."
    ),
    click.option(
        "--huge-pages/--no-huge-pages", default=None, help="2 MiB pages where available (yes)."
    ),
    click.option(
        "--respond",
        type=click.Choice(RESPOND_WAYS),
        help="How responses leave: waited for, parked, as the load suggests (adaptive), or all by "
        "the sender.",
    ),
    click.option(
        "--transport",
        type=click.Choice(TRANSPORTS),
        help="How requests get from XDP to the host (ring: mapped queue pairs).",
    ),
    click.option(
        "--frames", type=click.Choice(FRAMES), help="How whole frames get to a host door (af_xdp)."
    ),
    click.option(
        "--dpdk-device",
        help="With --frames dpdk: a NIC's PCI address, not a packet socket on the interface.",
    ),
    click.option("--socket-mode", type=click.Choice(SOCKET_MODES), help="AF_XDP's copying (auto)."),
    click.option("--rx-descriptors", type=int, help="Of each AF_XDP socket or DPDK queue (2048)."),
    click.option(
        "--host-share",
        type=float,
        help="Share of the keys behind the host's door (bench: by measured speed; else half).",
    ),
    click.option(
        "--transfer", type=click.Choice(TRANSFERS), help="What is handed over at once (batch)."
    ),
    click.option(
        "--prepare", type=click.Choice(PREPARES), help="Responses, while the host works (overlap)."
    ),
    click.option("--send", type=click.Choice(SENDS), help="A host door's responses (after-parse)."),
    click.option("--profile", help="local, or emulate a DPU: bf2, bf3 (local)."),
    click.option("--depth", type=int, help="Most batches that stay parked (24)."),
    click.option(
        "--flush-after-us", type=float, help="When a parked response is sent anyway (30)."
    ),
)

load_options = _together(
    click.option("--keys", type=int, default=1 << 20, show_default=True, help="Keys to store."),
    click.option("--key-size", type=int, default=8, show_default=True, help="Bytes in a key."),
    click.option("--value-size", type=int, default=8, show_default=True, help="Bytes in a value."),
    click.option(
        "--dist",
        "distribution",
        default="uniform",
        show_default=True,
        help="uniform or zipf (0.99).",
    ),
    click.option("--seed", type=int, default=1, show_default=True, help="Of keys and operations."),
)


# ---- Measuring


@cli.command()
@server_options
@load_options
@click.option("--workload", default="B", show_default=True, help="YCSB A, B or C.")
@click.option(
    "--requests-per-packet",
    type=int,
    default=0,
    help="1 to what fits; 0, the default, is what fits.",
)
@click.option("--window", type=int, default=64, show_default=True, help="Packets outstanding.")
@click.option("--rate", type=float, default=0.0, help="Requests a second of an open loop.")
@click.option("--seconds", type=float, default=10.0, show_default=True, help="How long to measure.")
@click.option("--queues", type=int, default=1, show_default=True, help="The lab's receive queues.")
@click.option("--mtu", type=int, default=1500, show_default=True, help="The lab's MTU.")
@click.option("--target", metavar="HOST:PORT", help="Measure a server elsewhere, not in a lab.")
@click.option(
    "--directory", metavar="URL", help="Where --target has published who owns which partition."
)
@click.option("--skip-load", is_flag=True, help="Do not store the keys first (with --target).")
@click.option("--ablate", is_flag=True, help="Switch each optimisation, and print its effect.")
@click.option(
    "--key-counts",
    metavar="KEYS,KEYS...",
    help="Measure with each number of keys, on huge and on small pages, and plot it.",
)
@click.option(
    "--output",
    type=click.Path(path_type=Path, dir_okay=False),
    default=Path("dpukv-designs.png"),
    show_default=True,
    help="The plot of --design all and --key-counts.",
)
@json_option
def bench(
    json_path: str | None,
    target: str | None,
    directory: str | None,
    skip_load: bool,
    ablate: bool,
    key_counts: str | None,
    output: Path,
    **given: Any,
) -> None:
    """Measure a workload; every value is checked.

    --design all compares all designs on the same load.
    """
    _require_root("bench")
    wants_all = given["design"] == ALL_DESIGNS
    chosen = [wants_all, ablate, key_counts is not None, target is not None]
    if sum(chosen) > 1:
        raise UsageError("--design all, --ablate, --key-counts and --target exclude one another")
    if key_counts is not None:
        _compare_key_counts(json_path, _numbers(key_counts), output, given)
        return
    if wants_all or ablate:
        _compare(json_path, ablate, output, given)
        return
    from dpukv_xdp.bench.bench import Bench
    from dpukv_xdp.bench.targets import find_target
    from dpukv_xdp.report.tables import counters_table, results_table

    config, options = _settings(given, own_server=target is None)
    if directory is not None and target is None:
        raise UsageError("--directory is for --target: a lab of our own is not published")
    if skip_load and target is None:
        raise UsageError("--skip-load needs --target: the store of a lab of our own is empty")
    _check_json(json_path)
    destination = None if target is None else find_target(target, config.engines, directory)
    signals.catch()
    with _progress() as progress:
        progress("building the lab, compiling the XDP programs", 0.0)
        with Bench(config, options, destination) as session:
            if target is None:
                session.config.leave_engine_cpus()
            load = None
            if not skip_load:
                progress(f"storing {options.keys:,} keys through the network", 0.0)
                load = session.load_keys(options)
            result = {**session.measure(options, progress), "load": load}
    _emit_json(json_path, result)
    if json_path != "-":
        console = _console()
        console.print(results_table([result]), f"\n{_machine_line(result)}")
        if load:
            console.print(
                f"stored {load['stored']:,} keys in {load['seconds']:.2f} s; "
                f"first packet after {load['setup_seconds']:.2f} s"
            )
        if memory_bytes := result["memory_bytes"]["server"]:
            console.print(f"the server has {memory_bytes / (1 << 20):,.0f} MiB of memory")
        _print_notes(console, [result])
        if result["server_counters"]:
            console.print(counters_table(result["server_counters"], "communication engine"))


@cli.command()
@server_options
@load_options
@click.option("--seconds", type=float, default=3.0, show_default=True, help="For each workload.")
@click.option(
    "--output",
    type=click.Path(path_type=Path, dir_okay=False),
    default=Path("dpukv-demo.png"),
    show_default=True,
    help="The plot.",
)
@json_option
def demo(json_path: str | None, output: Path, **given: Any) -> None:
    """The tour: YCSB A, B and C, a table and a plot."""
    _require_root("demo")
    from dpukv_xdp.ops.demo import run_demo, story
    from dpukv_xdp.report.tables import RESULTS_KEY, results_table

    config, options = _settings(given, own_server=True)
    _check_picture(output)
    _check_json(json_path)
    console = _console()
    if json_path != "-":
        console.print(story(config, options))
    signals.catch()
    with _progress() as progress:
        result = run_demo(config, options, output, progress)
    _emit_json(json_path, result)
    if json_path != "-":
        load = result["load"]
        console.print(
            f"Stored {load['stored']:,} keys in {load['seconds']:.2f} s through "
            f"{result['attachment']['mode']} XDP. Then, on {_machine_line(result['runs'][0])}:\n"
        )
        console.print(results_table(result["runs"]), RESULTS_KEY)
        _print_notes(console, result["runs"])
        console.print(f"Latency against throughput, as a picture: {result['picture']}")


def _compare_key_counts(
    json_path: str | None, counts: tuple[int, ...], output: Path, given: dict[str, Any]
) -> None:
    from dpukv_xdp.bench.all_designs import run_key_counts
    from dpukv_xdp.report.figures import plot_key_counts
    from dpukv_xdp.report.tables import KEY_COUNTS_KEY, key_counts_table

    given["keys"] = min(counts)
    config, options = _settings(given, own_server=True)
    _check_json(json_path)
    _check_picture(output)
    signals.catch()
    with _progress() as progress:
        comparison = run_key_counts(config, options, counts, progress)
    plot_key_counts(comparison.runs, output)
    _emit_json(
        json_path,
        {"results": comparison.runs, "refused": comparison.refused, "picture": str(output)},
    )
    if json_path == "-":
        return
    console = _console()
    console.print(key_counts_table(comparison.runs), KEY_COUNTS_KEY)
    console.print(f"Throughput and 99th percentile, as a picture: {output}")
    for label, reason in comparison.refused.items():
        console.print(f"{label}: not run: {reason}")
    _print_notes(console, comparison.runs)
    console.print(_machine_line(comparison.runs[0]))


def _compare(json_path: str | None, ablate: bool, output: Path, given: dict[str, Any]) -> None:
    from dpukv_xdp.bench.all_designs import run_ablations, run_designs
    from dpukv_xdp.report.figures import plot_designs
    from dpukv_xdp.report.tables import DESIGNS_KEY, ablations_table, designs_table, stages_table

    if not ablate:
        given["design"] = None
    config, options = _settings(given, own_server=True)
    _check_json(json_path)
    if not ablate:
        _check_picture(output)
    signals.catch()
    with _progress() as progress:
        comparison = (run_ablations if ablate else run_designs)(config, options, progress)
    if not ablate:
        plot_designs(comparison.runs, output)
    picture = None if ablate else str(output)
    _emit_json(
        json_path,
        {"results": comparison.runs, "refused": comparison.refused, "picture": picture},
    )
    if json_path == "-":
        return
    console = _console()
    if ablate:
        console.print(ablations_table(comparison.runs))
    else:
        console.print(designs_table(comparison.runs), stages_table(comparison.runs), DESIGNS_KEY)
        console.print(f"Throughput, round trip and host cores, as a picture: {output}")
    for name, reason in comparison.refused.items():
        console.print(f"{name}: not run: {reason}")
    _print_notes(console, comparison.runs)
    console.print(_machine_line(comparison.runs[0]))


@cli.command()
@json_option
def designs(json_path: str | None) -> None:
    """What each design is, and what it is good for."""
    from dpukv_xdp.topology.designs import DESIGNS

    rows = [
        {
            "name": design.name,
            "communication": design.communication,
            "processing": design.processing,
            "pairing": design.pairing,
            "summary": design.summary,
        }
        for design in DESIGNS.values()
    ]
    _emit_json(json_path, rows)
    if json_path != "-":
        for row in rows:
            first, second = row["summary"]
            click.echo(f"{row['name']:9} {first}\n{'':9} {second}")


@cli.command(name="qp-bench")
@click.option("--sizes", help="Payloads in bytes, such as 2,1024 (2 to 8192, as in the paper).")
@click.option(
    "--operations", type=int, default=5000, show_default=True, help="Of each measurement."
)
@click.option(
    "--primitive",
    "primitives",
    multiple=True,
    metavar="NAME",
    help="ring, ringbuf, ringbuf-epoll, af-xdp or af-xdp-poll; may be repeated (all).",
)
@click.option(
    "--output",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Draw latency against payload into this picture.",
)
@json_option
def qp_bench(
    json_path: str | None,
    sizes: str | None,
    operations: int,
    primitives: tuple[str, ...],
    output: Path | None,
) -> None:
    """Measure what a hand-over between DPU and host core costs.

    By payload, for each way to make one; blocking (one in flight) and non-blocking.
    """
    _require_root("qp-bench")
    from dpukv_xdp.bench.transfer import PRIMITIVES, SIZES, TransferPlan, Transfers, measure
    from dpukv_xdp.report.transfers import (
        TRANSFERS_KEY,
        plot_transfers,
        transfers_notes,
        transfers_tables,
    )

    plan = TransferPlan(
        sizes=SIZES if sizes is None else _numbers(sizes),
        operations=operations,
        primitives=primitives or tuple(PRIMITIVES),
    )
    plan.check()
    _check_json(json_path)
    if output is not None:
        _check_picture(output)
    signals.catch()
    with _progress() as progress, contextlib.ExitStack() as cleanup:
        progress("compiling the programs, building the lab", 0.0)
        transfers = cleanup.enter_context(Transfers(needs_link=plan.needs_link()))
        result = measure(plan, transfers, progress)
    _emit_json(json_path, result)
    if output is not None:
        plot_transfers(result, output)
    if json_path != "-":
        console = _console()
        for table in transfers_tables(result):
            console.print(table)
        console.print(*transfers_notes(result), TRANSFERS_KEY, _machine_line(result), sep="\n")
        if output is not None:
            console.print(f"Latency against payload, as a picture: {output}")


# ---- Serving


def _directory_option(default: str) -> Decorator:
    return click.option(
        "--directory",
        metavar="URL",
        help=f"Where clients find it: file:DIR, etcd2://HOST:PORT/PREFIX, etcd3://... ({default}); "
        f"empty for nowhere.",
    )


@cli.command()
@click.option("--iface", required=True, help="The interface to serve on.")
@click.option("--items", type=int, help="Items that the index is laid out for (1048576).")
@_directory_option(DEFAULT_DIRECTORY)
@click.option(
    "--rebalance-s", type=float, help="Move partitions off busy engines every so many seconds (0)."
)
@server_options
@json_option
def serve(iface: str, json_path: str | None, **given: Any) -> None:
    """Serve on an interface until Ctrl-C.

    Traffic that is not for the store goes to the kernel's stack as before. SIGTERM ends it too.
    """
    _require_root("serve")
    from dpukv_xdp.report.tables import counters_table
    from dpukv_xdp.server.server import Server
    from dpukv_xdp.server.service import Service

    config = _server_config(given)
    _check_json(json_path)
    config.check_memory()
    server = Server(config, iface)
    signals.catch()
    with server:
        config.leave_engine_cpus()
        attachment = server.attachment
        assert attachment is not None
        if attachment.native_refused:
            click.echo(f"generic XDP, which is slower: {attachment.native_refused}", err=True)
        for sentence in filter(None, [*server.notes, config.profile_row().label()]):
            _note(sentence)
        where = server.endpoint()
        click.echo(
            f"serving on {where['address'] or 'any address'}, UDP port {where['port']}"
            f"{_last_port(where)}, interface {iface} ({attachment.mode} XDP); Ctrl-C ends it",
            err=True,
        )
        with signals.awaited(), Service(server, _note):
            while True:
                signal.pause()
        stats = server.stats()
    _emit_json(json_path, {"endpoint": where, **stats})
    if json_path is None:
        Console(stderr=True).print(counters_table(stats["counters"], "communication engine"))


@cli.command()
@click.option("--server", "name", help="Its name in the directory (default: the only one).")
@click.option(
    "--move",
    "moves",
    metavar="PARTITION:ENGINE",
    multiple=True,
    help="Move this partition there, whatever the load.",
)
@click.option(
    "--look",
    type=click.FloatRange(0, 60),
    default=1.0,
    show_default=True,
    help="Seconds to count requests before deciding; 0 for all since its start.",
)
@json_option
def rebalance(name: str | None, moves: tuple[str, ...], look: float, json_path: str | None) -> None:
    """Move partitions from busy engines to idle ones.

    Of a server that runs on this machine; its clients follow by the directory.
    """
    _require_root("steering a server")
    from dpukv_xdp.server.service import call_service, services

    wanted = [_move(text) for text in moves]
    if name is None:
        names = services()
        if len(names) != 1:
            raise UsageError(
                f"{len(names) or 'no'} servers run here"
                f"{': name one with --server, of ' if names else ''}{', '.join(names)}"
            )
        name = names[0]
    for partition, engine in wanted:
        call_service(name, "move", partition=partition, engine=engine)
    made = [{"partition": partition, "engine": engine} for partition, engine in wanted]
    if not wanted:
        made = call_service(name, "rebalance", look_seconds=look)
    partitions = call_service(name, "partitions")
    _emit_json(json_path, {"server": name, "moves": made, "partitions": partitions})
    if json_path != "-":
        for move in made:
            click.echo(f"partition {move['partition']} moved to engine {move['engine']}")
        by_engine: dict[int, int] = {}
        for partition in partitions:
            by_engine[partition["engine"]] = by_engine.get(partition["engine"], 0) + 1
        click.echo(
            "; ".join(f"engine {engine}: {n} partitions" for engine, n in sorted(by_engine.items()))
        )


def _move(text: str) -> tuple[int, int]:
    partition, colon, engine = text.partition(":")
    if not (colon and partition.isdecimal() and engine.isdecimal()):
        raise UsageError(f"{text!r} is not PARTITION:ENGINE such as 3:1")
    return int(partition), int(engine)


@cli.group(name="lab")
def lab_group() -> None:
    """A server in a namespace, to try things on."""


@lab_group.command()
@click.option("--name", "lab_id", help="Of lab and namespaces (six random digits).")
@click.option(
    "--queues", type=int, default=1, show_default=True, help="Receive queues at each end."
)
@click.option(
    "--mtu", type=int, default=1500, show_default=True, help="Bytes of the largest packet."
)
@click.option("--items", type=int, help="Items that the index is laid out for (1048576).")
@_directory_option("one of the lab's own, which goes with it")
@server_options
@json_option
def up(lab_id: str | None, queues: int, mtu: int, json_path: str | None, **given: Any) -> None:
    """Build a lab with a server; it stays until `lab down`.

    A lab is two network namespaces joined by a veth pair. Its engine polls: one core is busy.
    """
    _require_root("lab up")
    from dpukv_xdp.lab.lab import Lab, directory_url, new_lab_id, remove_stale

    if lab_id == "":
        raise UsageError("--name is empty: use letters, digits and hyphens, or leave it out")
    lab_id = lab_id or new_lab_id()
    config = _server_config(given, directory=directory_url(lab_id))
    if config.port == 0:
        raise UsageError("no UDP socket can talk to port 0: give the lab's server another --port")
    config.check_memory()
    _check_mtu(mtu)
    _check_json(json_path)
    signals.catch()
    remove_stale()
    place = Lab.up(queues=queues, mtu=mtu, lab_id=lab_id)
    try:
        _start_lab_server(place, config)
        place.keep()
        facts = _lab_facts(place.record)
        _emit_json(json_path, facts)
        if json_path != "-":
            _print_lab(facts)
    except BaseException:
        place.down()
        raise


@lab_group.command()
@click.argument("lab_id", required=False)
def down(lab_id: str | None) -> None:
    """Take down one lab, or all; and what killed commands left.

    Labs of running commands stay, unless named.
    """
    _require_root("lab down")
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
    """The labs that are up."""
    from dpukv_xdp.lab.lab import list_labs

    facts = [_lab_facts(record) for record in list_labs()]
    _emit_json(json_path, facts)
    if json_path != "-":
        for lab_facts in facts:
            _print_lab(lab_facts)
        if not facts:
            click.echo("no lab is up")


# ---- Asking

client_options = _together(
    click.option("--server", "server_address", metavar="HOST:PORT", help="Whom to ask."),
    click.option(
        "--directory",
        metavar="URL",
        help="Ask the servers that are published there: file:DIR, etcd2://HOST:PORT/PREFIX, "
        "etcd3://...",
    ),
    click.option(
        "--lab", "lab_id", help="Ask the server of this lab (default: the one that is up)."
    ),
    click.option("--engines", type=int, default=1, show_default=True, help="The server's engines."),
    click.option(
        "--timeout", type=float, default=0.2, show_default=True, help="Seconds for each try."
    ),
    json_option,
)


@cli.command()
@click.argument("key")
@client_options
def get(key: str, json_path: str | None, **whom: Any) -> None:
    """Print a key's value; exit status 1 without one."""
    with _client(**whom) as client:
        value = client.get(key)
    found = value is not None
    text = value.decode(errors="backslashreplace") if found else None
    _emit_json(json_path, {"key": key, "found": found, "value": text})
    if json_path != "-" and found:
        click.echo(value)
    if not found:
        raise DpukvError(f"there is no key {key!r}")


@cli.command(name="set")
@click.argument("key")
@click.argument("value")
@client_options
def set_command(key: str, value: str, json_path: str | None, **whom: Any) -> None:
    """Store a value under a key."""
    with _client(**whom) as client:
        stored = client.set(key, value)
    _emit_json(json_path, {"key": key, "stored": stored})
    if not stored:
        raise DpukvError(f"the server did not store {key!r}")


@cli.command()
@click.argument("key")
@click.argument("value")
@client_options
def add(key: str, value: str, json_path: str | None, **whom: Any) -> None:
    """Store a value under a new key; exit status 1 if it is there."""
    with _client(**whom) as client:
        added = client.add(key, value)
    _emit_json(json_path, {"key": key, "added": added})
    if not added:
        raise DpukvError(f"there is a key {key!r} already")


@cli.command()
@click.argument("key")
@client_options
def delete(key: str, json_path: str | None, **whom: Any) -> None:
    """Forget a key; exit status 1 without one."""
    with _client(**whom) as client:
        deleted = client.delete(key)
    _emit_json(json_path, {"key": key, "deleted": deleted})
    if not deleted:
        raise DpukvError(f"there is no key {key!r}")


@cli.command()
@click.argument("key")
@click.argument("by", type=int, default=1)
@client_options
def increment(key: str, by: int, json_path: str | None, **whom: Any) -> None:
    """Add to a number; one that is not there begins at BY.

    Numbers are values of 8 bytes, little endian.
    """
    with _client(**whom) as client:
        value = client.increment(key, by)
        if value is None and client.add(key, (by % 2**64).to_bytes(8, "little")):
            value = by
        if value is None:  # somebody else has added it meanwhile
            value = client.increment(key, by)
    _emit_json(json_path, {"key": key, "value": value})
    if value is None:
        raise DpukvError(f"key {key!r} came and went: try again")
    if json_path != "-":
        click.echo(value)


@cli.command()
@json_option
def doctor(json_path: str | None) -> None:
    """What this machine has and lacks.

    Loads the programs of each design, and tries each kernel feature that they want. Each gap comes
    with its remedy; exit status 1 if something that is needed is missing, or could not be tried.
    """
    from dpukv_xdp.ops.doctor import checks

    _check_json(json_path)
    signals.catch()
    with _progress() as progress:
        found = checks(progress)
    _emit_json(
        json_path,
        [
            {
                "name": c.name,
                "ok": c.ok,
                "found": c.found,
                "remedy": c.remedy,
                "required": c.is_required,
                "tried": c.is_tried,
                **c.details,
            }
            for c in found
        ],
    )
    if json_path != "-":
        for check in found:
            mark = _mark_of(check)
            click.echo(
                f"{mark:8}{check.name}: {check.found}{'' if check.ok else f'; {check.remedy}'}"
            )
    if any(check.is_required and not check.ok for check in found):
        sys.exit(1)


def _mark_of(check: Any) -> str:
    if check.ok:
        return "ok"
    if not check.is_tried:
        return "?"
    return "MISSING" if check.is_required else "note"


@cli.command(hidden=True)
@click.argument("kind", type=click.Choice(["server", "load"]))
def role(kind: str) -> None:
    """A child process of bench: see roles.py."""
    from dpukv_xdp.bench.roles import run_role

    run_role(kind)


# ---- Helpers


cli.add_command(compare)
cli.add_command(model)
cli.add_command(recommend)
cli.add_command(reproduce)


def _settings(given: dict[str, Any], *, own_server: bool) -> tuple[Any, Any]:
    """The command line's options as ServerConfig and BenchOptions."""
    from dataclasses import fields

    from dpukv_xdp.bench.options import BenchOptions, replace_config
    from dpukv_xdp.load.workload import DISTRIBUTIONS

    if given["distribution"] not in DISTRIBUTIONS:
        raise UsageError(
            f"there is no distribution {given['distribution']!r}: choose one of "
            f"{', '.join(DISTRIBUTIONS)}"
        )
    names = {field.name for field in fields(BenchOptions)}
    options = BenchOptions(**{name: value for name, value in given.items() if name in names})
    _check_mtu(options.mtu)
    options.check()
    config = _server_config({name: value for name, value in given.items() if name not in names})
    if own_server:
        replace_config(config, options).check_memory()
    return config, options


def _numbers(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(size) for size in text.split(","))
    except ValueError as error:
        raise UsageError(f"{text!r} is not a list of numbers such as 2,1024") from error


def _check_mtu(mtu: int) -> None:
    from dpukv_xdp.wire import abi

    most = abi.KV_FRAME_MAX - abi.offset("kv_packet_header", "ip_version_ihl")
    if not MTU_MIN <= mtu <= most:
        raise UsageError(
            f"an MTU of {mtu} bytes is not {MTU_MIN} to {most}, the longest that a batch can use"
        )


def _server_config(given: dict[str, Any], **defaults: Any) -> Any:
    from dpukv_xdp.topology.config import load_config

    path = given.pop("config_path")
    for name in ("engine_cpus", "dpu_cpus"):
        cpus = given.pop(name)
        if cpus is not None:
            try:
                given[name] = [int(cpu) for cpu in cpus.split(",")]
            except ValueError as error:
                raise UsageError(f"{cpus!r} is not a list of cores such as 0,1") from error
    config = load_config(path, given, **defaults)
    cores = os.sched_getaffinity(0)
    if set(config.placement().host_cpus) == cores:
        click.echo(
            f"dpukv: engines on all of {len(cores)} cores poll all the time and leave hardly "
            f"anything to the XDP programs and to you: expect everything to crawl",
            err=True,
        )
    return config


@contextlib.contextmanager
def _client(
    server_address: str | None,
    directory: str | None,
    lab_id: str | None,
    engines: int,
    timeout: float,
) -> Iterator[Any]:
    """A client of the server named, of those in a directory, or of a lab's server, from that lab's
    client namespace.
    """
    from dpukv_xdp.bench.targets import parse_address
    from dpukv_xdp.client.client import Client
    from dpukv_xdp.kernel.namespaces import in_namespace
    from dpukv_xdp.lab.lab import Lab, list_labs

    if not 0 < timeout <= TIMEOUT_MAX_SECONDS:
        raise UsageError(f"a time-out of {timeout:g} s is not above 0 to {TIMEOUT_MAX_SECONDS:g}")
    if sum(where is not None for where in (server_address, directory, lab_id)) > 1:
        raise UsageError("--server, --directory and --lab exclude one another")
    if server_address is not None:
        with Client(parse_address(server_address), timeout=timeout, ports=engines) as client:
            yield client
        return
    if directory is not None:
        with Client.from_directory(directory, timeout=timeout) as client:
            yield client
        return
    if lab_id is None:
        labs = [record.lab_id for record in list_labs() if record.persistent]
        if len(labs) != 1:
            raise UsageError(
                f"{len(labs) or 'no'} labs are up: name a server with --server HOST:PORT or a lab "
                f"with --lab, or build one with `dpukv lab up`"
            )
        lab_id = labs[0]
    _require_root("entering a lab's namespace")
    place = Lab.load(lab_id)
    details = place.record.details
    with in_namespace(place.client.namespace):
        if details["directory"]:
            client = Client.from_directory(
                details["directory"], server=details["name"], timeout=timeout
            )
        else:
            address = (place.server.address, details["port"])
            ports, owners = details["engines"], details["owners"]
            client = Client(address, timeout=timeout, ports=ports, owners=owners)
        with client:
            yield client


def _note(sentence: str) -> None:
    click.echo(f"note: {sentence}", err=True)


def _start_lab_server(place: Any, config: Any) -> None:
    """`dpukv serve` inside the lab, in the background; returns when it answers."""
    from dpukv_xdp.discovery.directory import server_name

    with tempfile.TemporaryFile() as log:  # nameless: it goes when the server does
        with signals.held():  # between its start and its entry in the register
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
    """Whether it serves, and is where its clients look for it."""
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
    """Wait until it answers.

    Raises DpukvError, with what it said last, if it ends, or gets no further for LAB_READY_SECONDS.
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
    while it compiles and while it makes its store.
    """
    from dpukv_xdp.base.machine import resident_bytes

    return os.fstat(log_fd).st_size, resident_bytes(pid) >> 20


def _serve_arguments(place: Any, config: Any) -> list[str]:
    """The command line of `dpukv serve` with these settings."""
    import msgspec

    arguments = ["serve", "--iface", place.server.interface]
    for name, value in msgspec.structs.asdict(config).items():
        option = name.replace("_", "-")
        if isinstance(value, bool):
            arguments.append(f"--{option}" if value else f"--no-{option}")
        elif isinstance(value, tuple):
            arguments += [f"--{option}", ",".join(map(str, value))] if value else []
        else:
            arguments += [f"--{option}", str(value)]
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


@contextlib.contextmanager
def _progress() -> Iterator[Callable[[str, float], None]]:
    """A progress bar on stderr, if somebody watches."""
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    console = Console(stderr=True)
    with Progress(
        *columns,
        console=console,
        transient=True,
        refresh_per_second=4,
        disable=not console.is_terminal,
    ) as bar:
        task = bar.add_task("starting", total=1.0)
        yield lambda what, fraction: bar.update(task, description=what, completed=fraction)


def _print_notes(console: Console, runs: list[dict[str, Any]]) -> None:
    """What had to be shared or replaced in any of the runs, once each."""
    for sentence in dict.fromkeys(note for run in runs for note in run["notes"]):
        console.print(f"note: {sentence}")


def _console() -> Console:
    """Standard output; wide enough for the tables when it is no terminal."""
    return Console(highlight=False, width=None if sys.stdout.isatty() else PLAIN_COLUMNS)


def _emit_json(path: str | None, result: Any) -> None:
    if path is None:
        return
    text = json.dumps(result, indent=2)
    if path == "-":
        click.echo(text)
        return
    try:
        Path(path).write_text(text + "\n")
    except OSError as error:
        raise UsageError(f"cannot write {path}: {error.strerror}") from error


def _check_json(path: str | None) -> None:
    """Whether the result can be written later. Raises UsageError."""
    if path not in (None, "-"):
        _check_writable(Path(path), "--json")


def _check_picture(path: Path) -> None:
    if path.suffix not in PICTURE_SUFFIXES:
        raise UsageError(
            f"{path} does not end in {', '.join(PICTURE_SUFFIXES)}: choose another --output"
        )
    _check_writable(path, "--output")


def _check_writable(path: Path, option: str) -> None:
    there = path if path.exists() else path.parent
    if path.is_dir() or not os.access(there, os.W_OK):
        raise UsageError(f"cannot write {path}: choose another {option}")


def _last_port(where: dict[str, Any]) -> str:
    return "" if where["engines"] == 1 else f" to {where['port'] + where['engines'] - 1}"


def _machine_line(result: dict[str, Any]) -> str:
    machine = result["machine"]
    return f"{machine['cores']} cores of {machine['cpu']}, Linux {machine['kernel']}"


def _require_root(what: str) -> None:
    if os.geteuid() != 0:
        raise MissingError(f"`dpukv {what}`", "root: run it with sudo")


def _fail(sentence: str, status: int) -> None:
    click.echo(f"dpukv: {sentence}", err=True)
    sys.exit(status)
