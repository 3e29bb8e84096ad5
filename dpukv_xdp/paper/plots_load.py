# SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
"""Drawings of throughput and latency: curves over the load, and bars relative to a base."""

from collections.abc import Sequence
from statistics import median
from typing import Any

from dpukv_xdp.bench.limits import LIMITS, limit_of
from dpukv_xdp.paper.claims import check_claim
from dpukv_xdp.paper.labels import (
    by_line,
    colours_of,
    heading_of,
    label_of,
    order_key,
    ordered,
    split,
    workload_style,
)
from dpukv_xdp.paper.pictures import (
    Item,
    Table,
    error_bars,
    finish,
    grid_of_axes,
    log_scale,
    side_by_side,
)
from dpukv_xdp.paper.plans import Panel, Plan, matches
from dpukv_xdp.paper.points import METRIC_NAMES, Point, Points, Spread
from dpukv_xdp.paper.words import text_of, text_of_spread


def draw_curves(plan: Plan, panel: Panel, points: Points) -> list[Item]:
    """Draw latency against throughput, a point for each window."""
    shown = points.where(panel.where)
    if not shown:
        return []
    groups = split(panel, shown)
    figure, all_axes = side_by_side(len(groups))
    coloured = [name for name in panel.line if name != "workload"]
    colours = colours_of(coloured, shown)
    has_bands = False
    for axes, (title, group) in zip(all_axes, groups.items(), strict=True):
        bands = _bands(plan, panel, group, points)
        has_bands = has_bands or bool(bands)
        for name, own in by_line(panel, group).items():
            first = own[0].settings
            style = workload_style(panel, first)
            curve = [
                (x, y)
                for point in sorted(own, key=lambda p: p.settings["window"])
                if (x := points.spread(point, "throughput")) is not None
                if (y := points.spread(point, "latency")) is not None
            ]
            if not curve:
                continue
            middle = [x.median for x, _ in curve]
            axes.errorbar(
                middle,
                [y.median for _, y in curve],
                xerr=error_bars([x for x, _ in curve]),
                yerr=error_bars([y for _, y in curve]),
                label=name,
                color=colours[label_of(coloured, first)],
                markersize=4,
                capsize=2,
                linewidth=1.2,
                **style,
            )
        for name, (low, high) in bands.items():
            axes.axvspan(low, high, alpha=0.2, color=colours.get(name, "grey"), linewidth=0)
        axes.set(title=title, xlabel="million requests per second")
        log_scale(axes.yaxis)
        if panel.log:
            log_scale(axes.xaxis)
        axes.grid(alpha=0.3)
    all_axes[0].set_ylabel("median round trip, µs")
    note = "shaded: the paper's ratio to dpu-only, times our dpu-only" if has_bands else ""
    picture = finish(plan, panel, figure, all_axes, note)
    return [picture, _loads_table(panel, shown, points)]


def _bands(
    plan: Plan, panel: Panel, group: Sequence[Point], points: Points
) -> dict[str, tuple[float, float]]:
    """Return where the paper's ratios to the base put each line's peak, in Mops.

    Only panels with a base have bands, and only pictures in which the base has one peak.
    """
    if not panel.base or "workload" in panel.line:
        return {}
    peaks = [
        spread.median
        for point in group
        if matches(point.settings, panel.base)
        if (spread := points.spread(point, "throughput")) is not None
    ]
    found = {}
    for claim in plan.claims:
        is_here = claim.metric == "throughput" and all(
            claim.over.get(name) == value for name, value in panel.base.items()
        )
        here = {**panel.where, "workload": group[0].settings["workload"]}
        same_place = all(claim.of.get(name, value) == value for name, value in here.items())
        finding = check_claim(claim, points) if is_here and same_place and peaks else None
        if finding is not None:
            low, high = finding.paper
            width = 0.004 * max(peaks)
            found[label_of(panel.line, claim.of)] = (
                max(peaks) * low - width,
                max(peaks) * high + width,
            )
    return found


def _loads_table(panel: Panel, shown: Sequence[Point], points: Points) -> Table:
    """Return a table with a row for each point: medians, and the range of its repeats."""
    names = tuple(dict.fromkeys((*panel.line, *panel.split, panel.across)))
    rows = []
    for point in sorted(shown, key=lambda p: order_key(names, p.settings)):
        p99 = [result["latency_us"]["p99"] for result in point.results]
        rows.append(
            (
                label_of(panel.line, point.settings),
                *(str(point.settings.get(name, "-")) for name in names if name not in panel.line),
                text_of_spread(points.spread(point, "throughput")),
                text_of_spread(points.spread(point, "latency")),
                text_of(median(p99)),
                str(sum(result["corrupt"] for result in point.results)),
                str(sum(result["lost"] for result in point.results)),
                str(len(point.results)),
            )
        )
    others = (heading_of(name) for name in names if name not in panel.line)
    headings = ("", *others, "Mops", "p50, µs", "p99, µs", "wrong", "lost", "runs")
    return Table(f"{panel.title}: median (least–most of the repeats)", headings, tuple(rows))


def draw_times(plan: Plan, panel: Panel, points: Points) -> list[Item]:
    """Draw the throughput at the largest window relative to the base's, and name the limits."""
    shown = points.where(panel.where)
    largest = max((point.settings[panel.across] for point in shown), default=0)
    shown = [point for point in shown if point.settings[panel.across] == largest]
    rows, bars = [], []
    for title, group in split(panel, shown).items():
        base = next((p for p in group if matches(p.settings, panel.base)), None)
        for point in ordered(group):
            own = points.spread(point, "throughput")
            times = points.ratio(point, base, "throughput") if base else None
            if own is None or times is None:
                continue
            name = label_of(panel.line, point.settings)
            limits = dict.fromkeys(LIMITS[limit_of(result)] for result in point.results)
            rows.append(
                (title, name, text_of_spread(own), text_of_spread(times), "; ".join(limits))
            )
            bars.append((f"{title}: {name}", times.median))
    if not rows:
        return []
    figure, all_axes = side_by_side(1, width=9.0, height=1.2 + 0.3 * len(bars))
    axes = all_axes[0]
    drawn = axes.barh(range(len(bars)), [height for _, height in bars], label="times the base")
    axes.bar_label(drawn, [f" {text_of(height)}" for _, height in bars], fontsize="small")
    axes.set_yticks(range(len(bars)), [name for name, _ in bars], fontsize="small")
    axes.invert_yaxis()
    log_scale(axes.xaxis)
    axes.margins(x=0.15)
    axes.grid(axis="x", alpha=0.3)
    headings = ("load", "", "Mops", "times the base", "limited by")
    return [finish(plan, panel, figure, all_axes), Table(panel.title, headings, tuple(rows))]


def draw_bars(plan: Plan, panel: Panel, points: Points) -> list[Item]:
    """Draw metrics as bars, relative to the base's under the same load where that makes sense."""
    shown = points.where(panel.where)
    splits = split(panel, shown)
    bases = [point for point in shown if matches(point.settings, panel.base)]
    if not bases:
        return []
    figure, grid = grid_of_axes(len(splits), len(panel.metrics))
    names = list(dict.fromkeys(label_of(panel.line, point.settings) for point in ordered(shown)))
    colours = colours_of(panel.line, shown)
    rows: dict[tuple[str, ...], list[str]] = {}
    for axes_row, (title, group) in zip(grid, splits.items(), strict=True):
        loads = sorted({str(point.settings["workload"]) for point in group})
        for axes, metric in zip(axes_row, panel.metrics, strict=True):
            is_relative = metric in ("throughput", "latency")
            for number, name in enumerate(names):
                for place, load in enumerate(loads):
                    point = next(
                        (
                            p
                            for p in group
                            if label_of(panel.line, p.settings) == name
                            and p.settings["workload"] == load
                        ),
                        None,
                    )
                    height = _height(point, metric, group, panel, points)
                    if point is None or height is None:
                        continue
                    at = place + (number - (len(names) - 1) / 2) * 0.8 / len(names)
                    axes.bar(at, height.median, 0.8 / len(names), color=colours[name], label=name)
                    _paper_mark(axes, plan, metric, point, at, panel, points)
                    cells = rows.setdefault((name, load, title), [])
                    cells.append(text_of_spread(points.spread(point, metric)))
                    if is_relative:
                        cells.append(text_of_spread(height))
            axes.set_xticks(range(len(loads)), [f"YCSB {load}" for load in loads])
            axes.set_title(
                f"{title}: {METRIC_NAMES[metric]}" + (", relative" if is_relative else ""),
                fontsize="small",
            )
            axes.axhline(1.0 if is_relative else 0.0, color="black", linewidth=0.6)
            axes.grid(axis="y", alpha=0.3)
    note = "black bars: the ranges that the paper prints"
    picture = finish(plan, panel, figure, [axes for row in grid for axes in row], note)
    headings = ["", "workload", "keys"]
    for metric in panel.metrics:
        headings.append(METRIC_NAMES[metric])
        headings += ["relative"] if metric in ("throughput", "latency") else []
    table = Table(
        f"{panel.title}: median (least–most of the repeats)",
        tuple(headings),
        tuple(
            (*row, *cells, *["-"] * (len(headings) - 3 - len(cells))) for row, cells in rows.items()
        ),
    )
    return [picture, table]


def _height(
    point: Point | None, metric: str, group: Sequence[Point], panel: Panel, points: Points
) -> Spread | None:
    """Return a bar's height: the metric relative to the base's under the same load, or itself."""
    if point is None:
        return None
    if metric not in ("throughput", "latency"):
        return points.spread(point, metric)
    load = {**panel.base, "workload": point.settings["workload"]}
    base = next((other for other in group if matches(other.settings, load)), None)
    return points.ratio(point, base, metric) if base else None


def _paper_mark(
    axes: Any, plan: Plan, metric: str, point: Point, at: float, panel: Panel, points: Points
) -> None:
    """Mark the paper's range for a bar where it prints one relative to the same base."""
    for claim in plan.claims:
        same_base = all(claim.over.get(name) == value for name, value in panel.base.items())
        if claim.metric != metric or not matches(point.settings, claim.of):
            continue
        finding = check_claim(claim, points) if same_base or not claim.over else None
        if finding is None:
            continue
        low, high = finding.paper
        axes.plot([at, at], [low, high], color="black", linewidth=1.6, marker="_", markersize=6)
