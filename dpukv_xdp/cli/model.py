# SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
"""The commands `dpukv model` and `dpukv recommend`, which need no privilege except for
`--costs here`: only that measures.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from dpukv_xdp.base.errors import UsageError
from dpukv_xdp.cli.options import Number, json_option
from dpukv_xdp.cli.output import (
    check_picture,
    emit_json,
    note,
    progress_bar,
    require_root,
    terminal,
)
from dpukv_xdp.cli.settings import check_given
from dpukv_xdp.cli.signals import signals

if TYPE_CHECKING:  # importing rich takes longer than `dpukv get`
    from rich.table import Table

MODEL_COLUMNS = 120
"""Width of the tables if standard output is not a terminal."""
PICTURE_DEFAULT = Path("dpukv-model.png")
ALL_DESIGNS = "all"
MEASURED_DPUS = ("local", "bf2", "bf3")
PAPER_DPUS = ("bf2", "bf3")
HERE = "here"

costs_option = click.option(
    "--costs",
    "source",
    default="paper",
    show_default=True,
    metavar="paper|here|committed|FILE",
    help="Costs of the stages: Table 1 of the paper; this machine, measured now (a minute or "
    "two, root); the two-core machine of docs/results; a JSON file of `dpukv bench --json`; or a "
    "TOML file of --write-costs.",
)
dpu_option = click.option(
    "--dpu",
    type=click.Choice(MEASURED_DPUS),
    help="The DPU (the paper's costs: bf2, else local).",
)
workload_option = click.option(
    "--workload",
    default="C",
    show_default=True,
    type=click.Choice(("A", "B", "C")),
    help="YCSB workload; of measured costs, if they have it.",
)


@click.command()
@click.option("--design", help="See `dpukv designs`, or all (the server's default).")
@click.option(
    "--dpu-cores", type=Number("model_cores"), help="Communication cores (the paper's: 8)."
)
@click.option(
    "--host-cores", type=Number("model_cores"), help="Host cores (the paper's, by design)."
)
@dpu_option
@click.option(
    "--requests-per-packet",
    type=Number("model_requests_per_packet"),
    help="Requests in a packet (as the costs say).",
)
@click.option(
    "--window",
    type=Number("model_window"),
    help="Packets outstanding at an endpoint (as the costs say).",
)
@click.option("--rate", type=Number("rate"), help="Requests per second of an open loop.")
@costs_option
@workload_option
@click.option("--seed", type=Number("seed"), default=1, show_default=True, help="Of the arrivals.")
@click.option(
    "--sweep", "over", type=click.Choice(("dpu-cores", "host-cores", "load")), help="A curve."
)
@click.option("--figure12", is_flag=True, help="The paper's Figure 12d-e (bf2) or i-j (bf3).")
@click.option("--fits", is_flag=True, help="The fitted parameters, and what each is fitted on.")
@click.option("--validate", is_flag=True, help="The model's errors, against the paper and here.")
@click.option("--write-costs", type=click.Path(path_type=Path), help="The costs as TOML, to edit.")
@click.option(
    "--output",
    type=click.Path(path_type=Path, dir_okay=False),
    help=f"The picture [default: {PICTURE_DEFAULT}; none with --json -].",
)
@json_option
def model(
    json_path: str | None,
    output: Path | None,
    figure12: bool,
    fits: bool,
    validate: bool,
    **given: Any,
) -> None:
    """Predict a design's performance on other machines.

    A discrete-event model, for any number of cores and for BlueField-2 and -3.
    """
    check_given()
    check_picture(output)
    if output is None and json_path != "-":
        output = PICTURE_DEFAULT
    if fits:
        _print_fits(json_path)
    elif validate:
        _print_validation(json_path, given["seed"])
    elif figure12:
        _print_figure12(json_path, output, given)
    else:
        _print_points(json_path, output, given)


@click.command()
@costs_option
@dpu_option
@click.option(
    "--host-cores", type=Number("model_cores"), help="Available host cores (the paper's)."
)
@click.option(
    "--dpu-cores",
    type=Number("model_cores"),
    help="Available communication cores (the paper's: 8).",
)
@click.option(
    "--share",
    "percent",
    type=Number("percent"),
    default=90.0,
    show_default=True,
    help="Percent of the throughput without offloading that a design with few host cores needs.",
)
@workload_option
@click.option("--seed", type=Number("seed"), default=1, show_default=True, help="Of the arrivals.")
@json_option
def recommend(
    source: str,
    dpu: str | None,
    host_cores: int | None,
    dpu_cores: int | None,
    percent: float,
    workload: str,
    seed: int,
    json_path: str | None,
) -> None:
    """Recommend a design, with reasons.

    For the highest throughput, the lowest latency, and the fewest host cores.
    """
    from dpukv_xdp.model.recommend import recommend as choose

    check_given()
    dpu = _dpu_of(source, dpu)
    found = choose(
        _costs(source, dpu, workload),
        dpu,
        host_cores=host_cores,
        dpu_cores=dpu_cores,
        share=percent / 100,
        seed=seed,
    )
    if emit_json(json_path, found.to_json()):
        return
    console = terminal(MODEL_COLUMNS)
    console.print(_points_table(found.candidates, f"{dpu}, {found.costs}"))
    for choice in found.choices():
        console.print(f"\n{choice.question}: [bold]{choice.design}[/bold]\n  {choice.reason}.")
    for sentence in found.notes:
        console.print(f"\n{sentence}")
    for name, reason in found.refused.items():
        console.print(f"\n{name}: {reason}.")


def _costs(source: str, dpu: str, workload: str) -> Any:
    from dpukv_xdp.model.cost_files import costs_of_results, find_costs

    if source != HERE:
        return find_costs(source, dpu, workload)
    from dpukv_xdp.paper.reproduce import measure_costs

    require_root(f"model --costs {HERE}")
    signals.catch()
    with progress_bar() as progress:
        return costs_of_results(measure_costs(workload, progress), dpu, workload)


def _print_points(json_path: str | None, output: Path | None, given: dict[str, Any]) -> None:
    from dpukv_xdp.model.cost_files import costs_toml
    from dpukv_xdp.model.costs import Cost
    from dpukv_xdp.model.model import Point, load_around, plot_points, plot_sweep, simulate, sweep
    from dpukv_xdp.topology.designs import DESIGNS
    from dpukv_xdp.topology.profiles import find_profile
    from dpukv_xdp.topology.schema import ServerConfig

    dpu = _dpu_of(given["source"], given["dpu"])
    costs = _costs(given["source"], dpu, given["workload"])
    if given["write_costs"] is not None:
        given["write_costs"].write_text(costs_toml(costs), encoding="utf-8")
    chosen = given["design"] or ServerConfig().design
    names = [chosen]
    if chosen == ALL_DESIGNS:
        names = [d.name for d in DESIGNS.values() if d.is_compared and _can_run(dpu, d.name)]
    check_given("model point", names, forwards=costs.forward != Cost(), design=chosen)
    over = given["over"]
    host_cores = dict.fromkeys(names, given["host_cores"])
    if chosen == ALL_DESIGNS and given["host_cores"] is not None:
        host_cores = _usable_host_cores(names, costs, given["host_cores"], given["dpu_cores"])
    curves = {}
    for name in names:
        point = Point(
            design=name,
            dpu_cores=given["dpu_cores"],
            host_cores=host_cores[name],
            requests_per_packet=given["requests_per_packet"],
            window=given["window"],
            rate_mops=(given["rate"] or 0.0) / 1e6,
            seed=given["seed"],
        )
        if name in DESIGNS:
            find_profile(dpu).check(DESIGNS[name])
        if over == "load":
            curves[name] = load_around(costs, point)
        elif over:
            curves[name] = sweep(costs, point, over)
        else:
            curves[name] = load_around(costs, point) if output else [simulate(costs, point)]
    rows = [each for curve in curves.values() for each in (curve if over else curve[-1:])]
    title = f"{dpu}, {costs.source}"
    if output is not None and over:
        plot_sweep(curves, over, f"Model: {title}", output)
    elif output is not None:
        plot_points(curves, f"Model: {title}", output)
    if emit_json(json_path, {"costs": costs.source, "points": [row.to_json() for row in rows]}):
        return
    console = terminal(MODEL_COLUMNS)
    console.print(_points_table(rows, title))
    if output is not None:
        console.print(f"As a picture: {output}")


def _usable_host_cores(
    names: Sequence[str], costs: Any, host_cores: int, dpu_cores: int | None
) -> dict[str, int]:
    """Return the host cores of each of several designs on one machine; a note on stderr names each
    design that cannot use all of them.
    """
    from dpukv_xdp.model.model import check_host_cores, host_cores_limit, machine_limit
    from dpukv_xdp.topology.designs import find_design

    check_host_cores(host_cores, machine_limit(costs))
    usable = {}
    for name in names:
        limit = host_cores_limit(find_design(name), costs, dpu_cores or costs.dpu_cores)
        usable[name] = min(host_cores, limit.cores)
        if usable[name] < host_cores:
            note(f"{name} has {usable[name]} of {host_cores} host cores: {limit.reason}")
    return usable


def _print_figure12(json_path: str | None, output: Path | None, given: dict[str, Any]) -> None:
    from dataclasses import asdict

    from dpukv_xdp.model.model import figure12, plot_sweep

    dpu = given["dpu"] or "bf2"
    if dpu not in PAPER_DPUS or given["source"] != "paper":
        raise UsageError("Figure 12 is of bf2 or bf3, with the paper's costs")
    rows = figure12(dpu, workload="B", seed=given["seed"])
    curves: dict[str, list[Any]] = {}
    for row in rows:
        curves.setdefault(row.design, []).append(row.prediction)
    letters = {"bf2": "12d-e", "bf3": "12i-j"}[dpu]
    title = f"Figure {letters}, YCSB B, {dpu}, by the model"
    if output is not None:
        marks: dict[str, list[tuple[float, float, float]]] = {}
        for row in rows:
            if row.paper_mops is not None:
                marks.setdefault(row.design, []).append((row.cores, *row.paper_mops))
        plot_sweep(curves, "cores", f"{title} (bars: the paper)", output, marks)
    if emit_json(json_path, [asdict(row) for row in rows]):
        return
    table = _table(title, ("design", "cores", "Mops", "mean, us", "paper, Mops", "paper says"))
    for row in rows:
        allowed = row.paper_mops
        table.add_row(
            row.design,
            str(row.cores),
            f"{row.prediction.throughput_mops:.2f}",
            f"{row.prediction.latency_us['mean']:.0f}",
            "-" if allowed is None else _range(*allowed),
            row.paper_says if row.cores == 1 else "",
        )
    console = terminal(MODEL_COLUMNS)
    console.print(table)
    console.print("Cores are the DPU's; the host's for cpu-only. Keys are uniform.")
    if output is not None:
        console.print(f"As a picture: {output}")


def _print_fits(json_path: str | None) -> None:
    from dataclasses import asdict

    from dpukv_xdp.model.paper_costs import ASSUMPTIONS, fit_paper
    from dpukv_xdp.model.paper_values import INCONSISTENCIES

    fits = [fit_paper(dpu) for dpu in PAPER_DPUS]
    content = {
        "fits": [asdict(fit) for fit in fits],
        "assumptions": [asdict(each) for each in ASSUMPTIONS],
        "inconsistencies": INCONSISTENCIES,
    }
    if emit_json(json_path, content):
        return
    console = terminal(MODEL_COLUMNS)
    for fit in fits:
        table = _table(fit.column, ("parameter", "value", "fitted on"))
        for each in fit.parameters:
            table.add_row(each.name, f"{each.value:.4g} {each.unit}", each.fitted_on)
        console.print(table)
    table = _table("Assumed", ("what", "value", "why"))
    for assumption in ASSUMPTIONS:
        table.add_row(assumption.name, f"{assumption.value:g} {assumption.unit}", assumption.why)
    console.print(table)
    console.print("\nWhat the paper's own numbers contradict:")
    for sentence in INCONSISTENCIES:
        console.print(f"-  {sentence}")


def _print_validation(json_path: str | None, seed: int) -> None:
    from dpukv_xdp.model.cost_files import MEASURED_PATH, read_results
    from dpukv_xdp.model.validation import (
        summary,
        validate_measured,
        validate_paper,
        validation_json,
    )

    paper = validate_paper(seed)
    results = read_results(MEASURED_PATH) if MEASURED_PATH.exists() else []
    measured = validate_measured(results, seed)
    found = {"paper": validation_json(paper), "measured": validation_json(measured)}
    if emit_json(json_path, found):
        return
    console = terminal(MODEL_COLUMNS)
    for title, checks in (("The paper", paper), ("The committed runs", measured)):
        if not checks:
            continue
        table = _table(title, ("", "what", "model", "ought to be", "error"))
        for check in checks:
            what = check.name if title == "The paper" else f"{check.name}: {check.where}"
            table.add_row(
                check.standing,
                what,
                f"{check.model:.2f}",
                _range(check.low, check.high),
                f"{check.error:+.1%}",
            )
        console.print(table)
        for name, errors in summary(checks).items():
            console.print(
                f"{name}: {errors['count']} values, mean error {errors['mean']:.1%}, "
                f"largest {errors['max']:.1%}"
            )
        for why in dict.fromkeys(check.why for check in checks if check.why and check.error):
            console.print(f"-  {why}.")


def _points_table(rows: Sequence[Any], title: str) -> "Table":
    headings = ("design", "cores\ndpu host", "offered\nMops", "Mops", "mean", "p50", "p99", "busy")
    table = _table(f"{title}\nround trip in us", headings)
    for row in rows:
        busy = " ".join(f"{k} {v:.0%}" for k, v in row.utilisation.items() if v >= 0.005)
        table.add_row(
            row.design,
            f"{row.dpu_cores} {row.host_cores:4}",
            f"{row.rate_mops:.2f}" if row.rate_mops else "-",
            f"{row.throughput_mops:.2f}{' !' if row.is_saturated else ''}",
            *(f"{row.latency_us[name]:.1f}" for name in ("mean", "p50", "p99")),
            busy,
        )
    return table


def _table(title: str, headings: Sequence[str]) -> "Table":
    from dpukv_xdp.report.layout import plain_table

    return plain_table(title, headings, justify="left", no_wrap=False)


def _range(low: float, high: float) -> str:
    return f"{low:.4g}" if low == high else f"{low:.4g} to {high:.4g}"


def _dpu_of(source: str, dpu: str | None) -> str:
    if source == "paper" and dpu == "local":
        raise UsageError("the paper has no costs of this machine: choose bf2 or bf3, or --costs")
    return dpu or ("bf2" if source == "paper" else "local")


def _can_run(dpu: str, design: str) -> bool:
    from dpukv_xdp.topology.designs import find_design
    from dpukv_xdp.topology.profiles import find_profile

    try:
        find_profile(dpu).check(find_design(design))
    except UsageError:
        return False
    return True
