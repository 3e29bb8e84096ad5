# SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
"""Drawings of curves over a setting, of scaling over cores, and of the model's errors."""

from collections.abc import Mapping, Sequence
from typing import Any

from dpukv_xdp.model.paper_values import own_name, paper_range, paper_values
from dpukv_xdp.paper.labels import (
    MARKERS,
    PAPER_DPU,
    by_line,
    colours_of,
    heading_of,
    label_of,
    ordered,
    split,
)
from dpukv_xdp.paper.pictures import Item, Table, error_bars, finish, log_scale, side_by_side
from dpukv_xdp.paper.plans import Panel, Plan
from dpukv_xdp.paper.points import METRIC_NAMES, Point, Points
from dpukv_xdp.paper.words import text_of, text_of_range, text_of_spread


def draw_sweep(plan: Plan, panel: Panel, points: Points) -> list[Item]:
    """Draw each metric over a setting."""
    shown = sorted(points.where(panel.where), key=lambda p: p.settings[panel.across])
    if not shown:
        return []
    figure, all_axes = side_by_side(len(panel.metrics))
    for axes, metric in zip(all_axes, panel.metrics, strict=True):
        for number, (name, own) in enumerate(by_line(panel, shown).items()):
            known = [
                (point.settings[panel.across], spread)
                for point in own
                if (spread := points.spread(point, metric)) is not None
            ]
            if known:
                axes.errorbar(
                    [x for x, _ in known],
                    [y.median for _, y in known],
                    yerr=error_bars([y for _, y in known]),
                    fmt=f"{MARKERS[number]}-",
                    color=f"C{number}",
                    label=name,
                    markersize=4,
                    capsize=2,
                )
        axes.set_title(METRIC_NAMES[metric], fontsize="small")
        axes.set_xlabel(heading_of(panel.across))
        axes.set_ylim(bottom=0)
        axes.grid(alpha=0.3)
    rows = [
        (
            label_of(panel.line, point.settings),
            str(point.settings[panel.across]),
            *(text_of_spread(points.spread(point, metric)) for metric in panel.metrics),
        )
        for point in sorted(shown, key=lambda p: label_of(panel.line, p.settings))
    ]
    headings = (
        *("", heading_of(panel.across)),
        *(METRIC_NAMES[metric] for metric in panel.metrics),
    )
    title = f"{panel.title}: median (least–most of the repeats)"
    return [finish(plan, panel, figure, all_axes), Table(title, headings, tuple(rows))]


def draw_scaling(plan: Plan, panel: Panel, points: Points) -> list[Item]:
    """Draw throughput over engines as measured, by distribution, and over cores by the model."""
    shown, models = points.where(panel.where), points.where(panel.model)
    if not shown and not models:
        return []
    splits = split(panel, shown) if shown else {}
    figure, all_axes = side_by_side(len(splits) + bool(models))
    colours = colours_of(panel.line, [*shown, *models])
    rows: list[tuple[str, ...]] = []
    for axes, (title, group) in zip(all_axes, splits.items(), strict=False):
        for name, own in by_line(panel, group).items():
            curve = sorted(
                (point.settings.get(panel.across, 1), spread)
                for point in own
                if (spread := points.spread(point, "throughput")) is not None
            )
            x, y = [cores for cores, _ in curve], [spread for _, spread in curve]
            middle = [spread.median for spread in y]
            axes.errorbar(
                x, middle, yerr=error_bars(y), fmt="o-", color=colours[name], label=name, capsize=2
            )
            rows += [
                (f"{name}, measured", title, str(cores), text_of_spread(spread), "-")
                for cores, spread in curve
            ]
        axes.set(title=f"measured, {title}", xlabel="engines and receive queues")
        axes.set_xticks([1, 2])
    if models:
        rows += _draw_model(all_axes[-1], panel, models, colours)
    for axes in all_axes:
        axes.set_ylim(bottom=0)
        axes.grid(alpha=0.3)
    all_axes[0].set_ylabel("million requests per second")
    note = "bars and dashes in the model's picture: the paper"
    headings = ("", "keys", "cores", "Mops", "paper, Mops")
    return [
        finish(plan, panel, figure, all_axes, note),
        Table(panel.title, headings, tuple(rows)),
    ]


def _draw_model(
    axes: Any, panel: Panel, models: Sequence[Point], colours: Mapping[str, Any]
) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = []
    for point in ordered(models):
        name, curve = label_of(panel.line, point.settings), point.results[0]
        cores = [row["cores"] for row in curve]
        mops = [row["throughput_mops"] for row in curve]
        axes.plot(cores, mops, "s-", color=colours[name], label=name, markersize=3)
        column = PAPER_DPU[point.settings["dpu"]]
        load = point.settings["workload"]
        for metric, figure, first in (
            ("throughput_peak", "Fig.12a-c", cores[-1]),
            ("saturation_throughput", "Fig.12i-j", 4),
        ):
            allowed = _printed(metric, column, name, load, figure)
            if allowed is None:
                continue
            axes.plot([first, cores[-1]], [allowed[0]] * 2, "--", color=colours[name], linewidth=1)
            axes.plot([cores[-1]] * 2, allowed, "_-", color=colours[name], markersize=12)
            rows.append((f"{name}, paper", "uniform", str(cores[-1]), "-", text_of_range(allowed)))
        rows += [
            (f"{name}, model", "uniform", str(at), text_of(value), "-")
            for at, value in zip(cores, mops, strict=True)
        ]
    axes.set(title="the model with the paper's costs", xlabel="cores of the DPU (cpu-only: host)")
    return rows


def _printed(
    metric: str, column: str, name: str, load: str, figure: str
) -> tuple[float, float] | None:
    for row in paper_values(metric, dpu=column, workload=load, figure_table=figure):
        if own_name(row.design) == name:
            found = paper_range(
                metric, dpu=column, design=row.design, workload=load, figure_table=figure
            )
            return found.low, found.high
    return None


def draw_model_doors(plan: Plan, panel: Panel, points: Points) -> list[Item]:
    """Draw the model's throughput by door and its time of a transfer."""
    models = points.where(panel.model)
    if not models:
        return []
    curve = models[0].results[0]
    heading = heading_of(panel.across)
    places = [row[panel.across] for row in curve]
    figure, (left, right) = side_by_side(2)
    left.plot(places, [row["throughput_mops"] for row in curve], "o-", label="in all")
    for door, colour in (("dpu", "C1"), ("host", "C2")):
        doors = [row["door_mops"].get(door, 0.0) for row in curve]
        name = f"by the {door}'s door"
        left.plot(places, doors, "s--", color=colour, label=name, markersize=4)
    right.plot(places, [row["transfer_us"] for row in curve], "o-", color="C3", label="transfer")
    left.set(xlabel=heading, ylabel="million requests per second", ylim=(0, None))
    right.set(xlabel=heading, ylabel="time of a transfer, µs", ylim=(0, None))
    for axes in (left, right):
        axes.grid(alpha=0.3)
    rows = tuple(
        (
            str(row[panel.across]),
            text_of(row["throughput_mops"]),
            *(text_of(row["door_mops"].get(door, 0.0)) for door in ("dpu", "host")),
            text_of(row["transfer_us"]),
        )
        for row in curve
    )
    headings = (heading, "Mops", "DPU's door", "host's door", "transfer, µs")
    return [finish(plan, panel, figure, [left, right]), Table(panel.title, headings, rows)]


def draw_validation(plan: Plan, panel: Panel, points: Points) -> list[Item]:
    """Draw the model's values against the paper's and against this machine's."""
    found = points.validation(panel.model)
    if not found:
        return []
    titles = {"paper": "against the paper", "measured": "against this machine"}
    shown = {name: titles[name] for name in found}
    figure, all_axes = side_by_side(len(shown), width=5.4)
    items: list[Item] = []
    for axes, (name, title) in zip(all_axes, shown.items(), strict=True):
        checks = found[name]["checks"]
        for label, marker in (("fitted", "o"), ("derived", "+"), ("held out", "x")):
            own = [check for check in checks if check["standing"] == label]
            axes.plot(
                [(check["low"] + check["high"]) / 2 for check in own],
                [check["model"] for check in own],
                marker,
                label=label,
                markersize=5,
            )
        ends = [value for c in checks for value in ((c["low"] + c["high"]) / 2, c["model"])]
        axes.plot([min(ends), max(ends)], [min(ends), max(ends)], "k-", linewidth=0.6)
        axes.set_title(title)
        log_scale(axes.xaxis)
        log_scale(axes.yaxis)
        axes.set_xlabel("value that it ought to have (µs, Mops or ratio)")
        axes.grid(alpha=0.3)
        items += _validation_tables(title, found[name])
    all_axes[0].set_ylabel("model")
    return [finish(plan, panel, figure, all_axes), *items]


def _validation_tables(title: str, found: Mapping[str, Any]) -> list[Item]:
    summary = tuple(
        (kind, str(errors["count"]), f"{errors['mean']:.1%}", f"{errors['max']:.1%}")
        for kind, errors in found["summary"].items()
    )
    checks = tuple(
        (
            check["standing"],
            check["name"],
            text_of(check["model"]),
            text_of_range((check["low"], check["high"])),
            check["unit"],
            f"{check['error']:+.1%}",
            check["where"],
            check["why"] if abs(check["error"]) >= 0.005 else "",
        )
        for check in found["checks"]
    )
    headings = ("", "what", "model", "ought to be", "unit", "error", "where", "what is known of it")
    return [
        Table(f"Errors {title}", ("kind", "values", "mean error", "largest"), summary),
        Table(f"Every value {title}", headings, checks),
    ]
