# SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
"""Commands that measure: bench, demo and qp-bench."""

import contextlib
from pathlib import Path
from typing import Any

import click

from dpukv_xdp.base.errors import UsageError
from dpukv_xdp.cli.options import Number, json_option, load_options, output_option, server_options
from dpukv_xdp.cli.output import (
    check_json,
    check_picture,
    emit_json,
    machine_line,
    print_notes,
    progress_bar,
    require_root,
    terminal,
)
from dpukv_xdp.cli.settings import numbers_of, settings_of
from dpukv_xdp.cli.signals import signals
from dpukv_xdp.wire import abi

ALL_DESIGNS = "all"


@click.command()
@server_options
@load_options
@click.option("--workload", default="B", show_default=True, help="YCSB A, B or C.")
@click.option(
    "--requests-per-packet",
    type=Number("requests_per_packet"),
    default=0,
    help="Requests per packet, 1 to what fits; 0, the default, is what fits.",
)
@click.option(
    "--window", type=Number("window"), default=64, show_default=True, help="Packets outstanding."
)
@click.option("--rate", type=Number("rate"), help="Requests per second of an open loop.")
@click.option(
    "--stall",
    type=Number("stall"),
    default=0.0,
    show_default=True,
    help=f"Milliseconds of each {abi.KV_STALL_PERIOD_MS} that the server's host cores pause.",
)
@click.option(
    "--seconds", type=Number("seconds"), default=10.0, show_default=True, help="Seconds to measure."
)
@click.option(
    "--queues",
    type=Number("queues"),
    default=1,
    show_default=True,
    help="The lab's receive queues.",
)
@click.option("--mtu", type=Number("mtu"), default=1500, show_default=True, help="The lab's MTU.")
@click.option("--target", metavar="HOST:PORT", help="Measure a server elsewhere, not in a lab.")
@click.option(
    "--directory",
    "target_directory",
    metavar="URL",
    help="Directory with the owners of --target's partitions.",
)
@click.option("--skip-load", is_flag=True, help="Do not store the keys first (with --target).")
@click.option("--ablate", is_flag=True, help="Revert each optimisation and print the effect.")
@click.option(
    "--key-counts",
    metavar="KEYS,KEYS...",
    help="Measure with each number of keys, on huge and on small pages, and plot it.",
)
@click.option(
    "--floor",
    is_flag=True,
    help="Measure what a store's look-ups cost at least on this machine, without a server; for "
    "--keys, or for each of --key-counts.",
)
@output_option("dpukv-designs.png", "The plot of --design all and --key-counts.")
@json_option
def bench(
    json_path: str | None,
    target: str | None,
    target_directory: str | None,
    skip_load: bool,
    ablate: bool,
    key_counts: str | None,
    floor: bool,
    output: Path,
    **given: Any,
) -> None:
    """Measure a workload; every value is checked.

    --design all compares all designs on the same load.
    """
    wants_all = given["design"] == ALL_DESIGNS
    chosen = [wants_all, ablate, key_counts is not None or floor, target is not None]
    if sum(chosen) > 1:
        raise UsageError(
            "--design all, --ablate, --target, and --key-counts or --floor exclude one another"
        )
    if key_counts is not None or floor:
        listed = str(given["keys"]) if key_counts is None else key_counts
        counts = numbers_of(listed, "keys", "--key-counts")
        if floor:
            _measure_floors(json_path, counts, given)
        else:
            require_root("bench")
            _compare_key_counts(json_path, counts, output, given)
        return
    require_root("bench")
    if wants_all or ablate:
        _compare(json_path, ablate, output, given)
        return
    from dpukv_xdp.bench.bench import Bench
    from dpukv_xdp.bench.targets import find_target
    from dpukv_xdp.report.tables import counters_table, results_table

    config, options = settings_of(given, own_server=target is None, compares_designs=False)
    check_json(json_path)
    destination = None if target is None else find_target(target, config.engines, target_directory)
    signals.catch()
    with progress_bar() as progress:
        progress("building the lab, compiling the XDP programs", 0.0)
        with Bench(config, options, destination) as session:
            if target is None:
                session.config.placement().leave_host_cpus()
            load = None
            if not skip_load:
                progress(f"storing {options.keys:,} keys through the network", 0.0)
                load = session.load_keys(options)
            result = {**session.measure(options, progress), "load": load}
    emit_json(json_path, result)
    if json_path != "-":
        console = terminal()
        console.print(results_table([result]), f"\n{machine_line(result)}")
        if load:
            console.print(
                f"stored {load['stored']:,} keys in {load['seconds']:.2f} s; "
                f"first packet after {load['setup_seconds']:.2f} s"
            )
        if memory_bytes := result["memory_bytes"]["server"]:
            console.print(f"the server has {memory_bytes / (1 << 20):,.0f} MiB of memory")
        print_notes(console, [result])
        if result["server_counters"]:
            console.print(counters_table(result["server_counters"], "communication engine"))
        if result["link_counters"]:
            console.print(counters_table(result["link_counters"], "the server's link"))


@click.command()
@server_options
@load_options
@click.option(
    "--seconds",
    type=Number("seconds"),
    default=3.0,
    show_default=True,
    help="Seconds per workload.",
)
@output_option("dpukv-demo.png", "The plot.")
@json_option
def demo(json_path: str | None, output: Path, **given: Any) -> None:
    """Give a tour: YCSB A, B and C in a lab, a table and a plot."""
    require_root("demo")
    from dpukv_xdp.ops.demo import run_demo, story
    from dpukv_xdp.report.tables import RESULTS_KEY, results_table

    config, options = settings_of(given, own_server=True)
    check_picture(output)
    check_json(json_path)
    console = terminal()
    if json_path != "-":
        console.print(story(config, options))
    signals.catch()
    with progress_bar() as progress:
        result = run_demo(config, options, output, progress)
    emit_json(json_path, result)
    if json_path != "-":
        load = result["load"]
        console.print(
            f"Stored {load['stored']:,} keys in {load['seconds']:.2f} s through "
            f"{result['attachment']['mode']} XDP. Then, on {machine_line(result['runs'][0])}:\n"
        )
        console.print(results_table(result["runs"]), RESULTS_KEY)
        print_notes(console, result["runs"])
        console.print(f"Latency against throughput, as a picture: {result['picture']}")


def _measure_floors(json_path: str | None, counts: tuple[int, ...], given: dict[str, Any]) -> None:
    from dpukv_xdp.bench.floor import run_floors
    from dpukv_xdp.report.tables import FLOOR_KEY, floor_table

    given["keys"] = min(counts)
    config, options = settings_of(given, own_server=True, compares_designs=False)
    check_json(json_path)
    signals.catch()
    with progress_bar() as progress:
        result = run_floors(config, options, counts, progress)
    emit_json(json_path, result)
    if json_path == "-":
        return
    console = terminal()
    console.print(floor_table(result["floors"]), FLOOR_KEY)
    for label, reason in result["refused"].items():
        console.print(f"{label}: not measured: {reason}")
    console.print(machine_line(result))


def _compare_key_counts(
    json_path: str | None, counts: tuple[int, ...], output: Path, given: dict[str, Any]
) -> None:
    from dpukv_xdp.bench.all_designs import run_key_counts
    from dpukv_xdp.report.figures import plot_key_counts
    from dpukv_xdp.report.tables import KEY_COUNTS_KEY, key_counts_table

    given["keys"] = min(counts)
    config, options = settings_of(given, own_server=True, compares_designs=False)
    check_json(json_path)
    check_picture(output)
    signals.catch()
    with progress_bar() as progress:
        comparison = run_key_counts(config, options, counts, progress)
    plot_key_counts(comparison.runs, output)
    emit_json(
        json_path,
        {"results": comparison.runs, "refused": comparison.refused, "picture": str(output)},
    )
    if json_path == "-":
        return
    console = terminal()
    console.print(key_counts_table(comparison.runs), KEY_COUNTS_KEY)
    console.print(f"Throughput and 99th percentile, as a picture: {output}")
    for label, reason in comparison.refused.items():
        console.print(f"{label}: not run: {reason}")
    print_notes(console, comparison.runs)
    console.print(machine_line(comparison.runs[0]))


def _compare(json_path: str | None, ablate: bool, output: Path, given: dict[str, Any]) -> None:
    from dpukv_xdp.bench.all_designs import run_ablations, run_designs
    from dpukv_xdp.report.figures import plot_designs
    from dpukv_xdp.report.tables import DESIGNS_KEY, ablations_table, designs_table, stages_table
    from dpukv_xdp.topology.designs import DESIGNS

    designs: tuple[str, ...] = ()
    if not ablate:
        given["design"] = None
        designs = tuple(name for name, design in DESIGNS.items() if design.is_compared)
    config, options = settings_of(
        given, own_server=True, designs=designs, compares_designs=not ablate
    )
    check_json(json_path)
    if not ablate:
        check_picture(output)
    signals.catch()
    with progress_bar() as progress:
        comparison = (run_ablations if ablate else run_designs)(config, options, progress)
    if not ablate:
        plot_designs(comparison.runs, output)
    picture = None if ablate else str(output)
    emit_json(
        json_path,
        {"results": comparison.runs, "refused": comparison.refused, "picture": picture},
    )
    if json_path == "-":
        return
    console = terminal()
    if ablate:
        console.print(ablations_table(comparison.runs))
    else:
        console.print(designs_table(comparison.runs), stages_table(comparison.runs), DESIGNS_KEY)
        console.print(f"Throughput, round trip and host cores, as a picture: {output}")
    for name, reason in comparison.refused.items():
        console.print(f"{name}: not run: {reason}")
    print_notes(console, comparison.runs)
    console.print(machine_line(comparison.runs[0]))


@click.command(name="qp-bench")
@click.option("--sizes", help="Payloads in bytes, such as 2,1024 (2 to 8192, as in the paper).")
@click.option(
    "--operations",
    type=Number("operations"),
    default=5000,
    show_default=True,
    help="Operations per measurement.",
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
    """Measure the cost of hand-overs between DPU and host.

    Measures every primitive by payload, blocking (one in flight) and non-blocking.
    """
    require_root("qp-bench")
    from dpukv_xdp.bench.transfer import PRIMITIVES, SIZES, TransferPlan, Transfers, measure
    from dpukv_xdp.report.transfers import (
        TRANSFERS_KEY,
        plot_transfers,
        transfers_notes,
        transfers_tables,
    )

    plan = TransferPlan(
        sizes=SIZES if sizes is None else numbers_of(sizes, "sizes", "--sizes"),
        operations=operations,
        primitives=primitives or tuple(PRIMITIVES),
    )
    plan.check()
    check_json(json_path)
    if output is not None:
        check_picture(output)
    signals.catch()
    with progress_bar() as progress, contextlib.ExitStack() as cleanup:
        progress("compiling the programs, building the lab", 0.0)
        transfers = cleanup.enter_context(Transfers(needs_link=plan.needs_link()))
        result = measure(plan, transfers, progress)
    emit_json(json_path, result)
    if output is not None:
        plot_transfers(result, output)
    if json_path != "-":
        console = terminal()
        for table in transfers_tables(result):
            console.print(table)
        console.print(*transfers_notes(result), TRANSFERS_KEY, machine_line(result), sep="\n")
        if output is not None:
            console.print(f"Latency against payload, as a picture: {output}")
