# SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
"""The command `dpukv compare`."""

from pathlib import Path
from typing import Any

import click

from dpukv_xdp.base.errors import DpukvError, UsageError
from dpukv_xdp.cli.options import Number, json_option, load_options, output_option
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
from dpukv_xdp.cli.settings import check_given
from dpukv_xdp.cli.signals import signals

ALL, NONE = "all", "none"


@click.command()
@click.option(
    "--peers",
    default="all",
    show_default=True,
    help="Comma-separated: redis, redis-mget, memcached, memcached-udp; or all; or none.",
)
@click.option(
    "--ours",
    help="Designs, or a design and its way for frames such as 'cpu-only ring', with commas "
    "between; all; or none. Default: the usual design, and what is all on the host.",
)
@click.option("--workload", default="B", show_default=True, help="YCSB A, B or C.")
@load_options
@click.option(
    "--requests-per-packet",
    type=Number("requests_per_packet"),
    default=0,
    help="Requests per full packet or message (45, or what fits); single requests run, too.",
)
@click.option(
    "--window",
    type=Number("window"),
    default=64,
    show_default=True,
    help="Packets or messages outstanding.",
)
@click.option(
    "--server-cores",
    type=Number("server_cores"),
    default=1,
    show_default=True,
    help="Cores of each server: our engines and receive queues, redis's and memcached's threads.",
)
@click.option(
    "--repeats",
    type=Number("repeats"),
    default=3,
    show_default=True,
    help="Rounds; results are their medians.",
)
@click.option(
    "--seconds", type=Number("seconds"), default=3.0, show_default=True, help="Seconds per run."
)
@output_option("dpukv-compare.png", "The plot.")
@click.option(
    "--import",
    "imports",
    metavar="FILE",
    type=click.Path(path_type=Path),
    multiple=True,
    help="Also show results from elsewhere: see docs/results/README.md. May be repeated.",
)
@click.option("--import-only", is_flag=True, help="Measure nothing; show imported results only.")
@json_option
def compare(
    peers: str,
    ours: str | None,
    server_cores: int,
    repeats: int,
    output: Path,
    imports: tuple[Path, ...],
    import_only: bool,
    json_path: str | None,
    **load: Any,
) -> None:
    """Compare our designs with Redis and memcached.

    All stores run on the same cores with the same keys and the same load, in turn.
    """
    from dpukv_xdp.bench.peers_import import imported_rows, read_results
    from dpukv_xdp.report.peers_report import plot_compare

    check_given()
    if import_only and not imports:
        raise UsageError("--import-only needs --import FILE")
    imported = [row for path in imports for row in imported_rows(read_results(path))]
    check_json(json_path)
    check_picture(output)
    measured: dict[str, Any] = {"rows": [], "runs": [], "missing": {}}
    if not import_only:
        measured = _measure(ours, peers, server_cores, repeats, load)
    if not measured["rows"] and not imported:
        reasons = "; ".join(f"{label}: {why}" for label, why in measured["missing"].items())
        raise DpukvError(f"nothing could be measured: {reasons}")
    plot_compare(measured["rows"], imported, _title(measured), output)
    result = {**measured, "imported": imported, "picture": str(output)}
    emit_json(json_path, result)
    if json_path != "-":
        _print(result)


def _measure(
    ours: str | None, peers: str, server_cores: int, repeats: int, load: dict[str, Any]
) -> dict[str, Any]:
    from dpukv_xdp.bench.compare import (
        OURS,
        OURS_BY_DEFAULT,
        contenders_of,
        document,
        run_rounds,
        server_of,
    )
    from dpukv_xdp.bench.options import BenchOptions
    from dpukv_xdp.bench.peer_stores import PEERS

    require_root("compare")
    config = server_of(server_cores)
    options = BenchOptions(**load, queues=server_cores)
    our_names = OURS_BY_DEFAULT if ours is None else _names("--ours", ours, list(OURS))
    contenders = contenders_of(our_names, _names("--peers", peers, list(PEERS)))
    if not contenders:
        raise UsageError("--ours none and --peers none leave nothing to measure")
    signals.catch()
    with progress_bar() as progress:
        outcome = run_rounds(contenders, config, options, repeats, progress)
    return document(outcome, config, options, repeats)


def _names(option: str, given: str, known: list[str]) -> list[str]:
    """Return the names of a comma-separated list, each once. Raises UsageError if it has none."""
    names = [name.strip() for name in given.split(",") if name.strip()]
    if names == [ALL]:
        return known
    if names == [NONE]:
        return []
    if not names or {ALL, NONE} & set(names):
        raise UsageError(
            f"{option} {given!r} is not {ALL}, {NONE} or names with commas between: choose among "
            f"{', '.join(known)}"
        )
    return list(dict.fromkeys(names))


def _print(result: dict[str, Any]) -> None:
    from dpukv_xdp.bench.limits import OTHERS_MAX
    from dpukv_xdp.report.peers_report import COMPARE_KEY, compare_tables, imported_tables

    console = terminal()
    if result["rows"]:
        console.print(*compare_tables(result["rows"], result["base"], _load_line(result)), sep="\n")
    if result["imported"]:
        console.print(*imported_tables(result["imported"]), sep="\n")
        for source in dict.fromkeys(row["source"] for row in result["imported"]):
            console.print(f"imported from: {source}")
    console.print(COMPARE_KEY)
    targets = {row["label"]: row["target"] for row in result["rows"] if row["target"]}
    for label, target in targets.items():
        console.print(f"{label}: {target}")
    for label, reason in result["missing"].items():
        console.print(f"{label}: not measured: {reason}")
    print_notes(console, [run for run in result["runs"] if run["notes"]])
    disturbed = sum(row["disturbed_rounds"] for row in result["rows"])
    if disturbed:
        console.print(
            f"note: other programs had more than {OTHERS_MAX:.0%} of a core in {disturbed} of "
            f"{len(result['runs'])} runs (disturbed_rounds in the JSON): measure again when "
            f"nothing else runs"
        )
    if result["runs"]:
        console.print(machine_line(result))
    console.print(f"The same as a picture: {result['picture']}")


def _load_line(result: dict[str, Any]) -> str:
    options, cores = result["options"], result["server_cores"]
    return (
        f"YCSB {options['workload']}, {options['keys']:,} {options['distribution']} keys of "
        f"{options['key_size']} and values of {options['value_size']} bytes, window "
        f"{options['window']}" + (f", {cores} server cores" if cores > 1 else "")
    )


def _title(measured: dict[str, Any]) -> str:
    if not measured["rows"]:
        return "Results from elsewhere"
    return f"{_load_line(measured)}, median of {measured['repeats']}\n{machine_line(measured)}"
