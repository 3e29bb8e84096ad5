# SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
"""The pictures and tables of the report: `draw` makes those of a panel, by the kind of drawing that
its plan names.
"""

import io
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from dpukv_xdp.base.errors import UsageError
from dpukv_xdp.bench.limits import LIMITS, limit_of
from dpukv_xdp.model.paper_values import own_name, paper_range, paper_values
from dpukv_xdp.paper.plans import Panel, Plan, matches
from dpukv_xdp.paper.results import (
    COMMUNICATION,
    METRIC_NAMES,
    Point,
    Points,
    Spread,
    check_claim,
    cpu_ns,
    stage_sum_ns,
    text_of,
    text_of_range,
    text_of_spread,
    transfer_median_ns,
)
from dpukv_xdp.topology.designs import DESIGNS

PAPER_DPU = {"bf2": "BF-2", "bf3": "BF-3"}
"""What the paper's table calls the profiles."""
DPI = 100
TITLE_LETTERS_AN_INCH = 12
PANEL_WIDTH, PANEL_HEIGHT = 4.6, 3.9
"""Inches of one of several pictures side by side."""
STAGES = ("receive", "parse", "process", "wait", "prepare", "send")
MARKERS = "os^Dv<>P*X"
LINES = ("-", "--", ":", "-.")
LONG_ROWS = 14
"""From here on a table is folded in."""


@dataclass(frozen=True, slots=True)
class Table:
    """A table as texts."""

    title: str
    headings: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    may_fold: bool = True

    @property
    def is_long(self) -> bool:
        """Whether it is better folded in."""
        return self.may_fold and len(self.rows) > LONG_ROWS


@dataclass(frozen=True, slots=True)
class Picture:
    """A picture as PNG."""

    name: str
    """Without a suffix."""
    title: str
    png: bytes = field(repr=False)


Item = Table | Picture


def draw(plan: Plan, panel: Panel, points: Points) -> list[Item]:
    """A panel's pictures and tables; none if nothing of it was measured."""
    return DRAWINGS[panel.draw](plan, panel, points)


# ---- Latency against throughput


def _curves(plan: Plan, panel: Panel, points: Points) -> list[Item]:
    shown = points.where(panel.where)
    if not shown:
        return []
    groups = _split(panel, shown)
    figure, all_axes = _figure(len(groups))
    coloured = [name for name in panel.line if name != "workload"]
    colours = _colours(coloured, shown)
    has_bands = False
    for axes, (title, group) in zip(all_axes, groups.items(), strict=True):
        bands = _bands(plan, panel, group, points)
        has_bands = has_bands or bool(bands)
        for name, own in _lines(panel, group).items():
            first = own[0].settings
            style = _workload_style(panel, first)
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
                xerr=_error_bars([x for x, _ in curve]),
                yerr=_error_bars([y for _, y in curve]),
                label=name,
                color=colours[_label(coloured, first)],
                markersize=4,
                capsize=2,
                linewidth=1.2,
                **style,
            )
        for name, (low, high) in bands.items():
            axes.axvspan(low, high, alpha=0.2, color=colours.get(name, "grey"), linewidth=0)
        axes.set(title=title, xlabel="million requests a second")
        _log(axes.yaxis)
        if panel.log:
            _log(axes.xaxis)
        axes.grid(alpha=0.3)
    all_axes[0].set_ylabel("median round trip, µs")
    note = "shaded: the paper's ratio to dpu-only, times our dpu-only" if has_bands else ""
    picture = _picture(plan, panel, figure, all_axes, note)
    return [picture, _loads_table(panel, shown, points)]


def _bands(
    plan: Plan, panel: Panel, group: Sequence[Point], points: Points
) -> dict[str, tuple[float, float]]:
    """Where the paper's ratios put a line's peak, from our base's; of panels that have a base, and
    pictures in which that has one peak.
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
            found[_label(panel.line, claim.of)] = (
                max(peaks) * low - width,
                max(peaks) * high + width,
            )
    return found


def _loads_table(panel: Panel, shown: Sequence[Point], points: Points) -> Table:
    """Every point with what it was measured at: median, and least and most of its repeats."""
    names = tuple(dict.fromkeys((*panel.line, *panel.split, panel.across)))
    rows = []
    for point in sorted(shown, key=lambda p: _order(names, p.settings)):
        p99 = [result["latency_us"]["p99"] for result in point.results]
        rows.append(
            (
                _label(panel.line, point.settings),
                *(str(point.settings.get(name, "-")) for name in names if name not in panel.line),
                text_of_spread(points.spread(point, "throughput")),
                text_of_spread(points.spread(point, "latency")),
                text_of(median(p99)),
                str(sum(result["corrupt"] for result in point.results)),
                str(sum(result["lost"] for result in point.results)),
                str(len(point.results)),
            )
        )
    others = (_heading(name) for name in names if name not in panel.line)
    headings = ("", *others, "Mops", "p50, µs", "p99, µs", "wrong", "lost", "runs")
    return Table(f"{panel.title}: median (least–most of the repeats)", headings, tuple(rows))


# ---- How many times a base's throughput


def _times(plan: Plan, panel: Panel, points: Points) -> list[Item]:
    """At the largest window: throughput over the base's, and what limited each."""
    shown = points.where(panel.where)
    largest = max((point.settings[panel.across] for point in shown), default=0)
    shown = [point for point in shown if point.settings[panel.across] == largest]
    rows, bars = [], []
    for title, group in _split(panel, shown).items():
        base = next((p for p in group if matches(p.settings, panel.base)), None)
        for point in _ordered(group):
            own = points.spread(point, "throughput")
            times = points.ratio(point, base, "throughput") if base else None
            if own is None or times is None:
                continue
            name = _label(panel.line, point.settings)
            limits = dict.fromkeys(LIMITS[limit_of(result)] for result in point.results)
            rows.append(
                (title, name, text_of_spread(own), text_of_spread(times), "; ".join(limits))
            )
            bars.append((f"{title}: {name}", times.median))
    if not rows:
        return []
    figure, all_axes = _figure(1, width=9.0, height=1.2 + 0.3 * len(bars))
    axes = all_axes[0]
    drawn = axes.barh(range(len(bars)), [height for _, height in bars], label="times the base")
    axes.bar_label(drawn, [f" {text_of(height)}" for _, height in bars], fontsize="small")
    axes.set_yticks(range(len(bars)), [name for name, _ in bars], fontsize="small")
    axes.invert_yaxis()
    _log(axes.xaxis)
    axes.margins(x=0.15)
    axes.grid(axis="x", alpha=0.3)
    headings = ("load", "", "Mops", "times the base", "limited by")
    return [_picture(plan, panel, figure, all_axes), Table(panel.title, headings, tuple(rows))]


# ---- Peaks relative to a base


def _bars(plan: Plan, panel: Panel, points: Points) -> list[Item]:
    shown = points.where(panel.where)
    splits = _split(panel, shown)
    bases = [point for point in shown if matches(point.settings, panel.base)]
    if not bases:
        return []
    figure, grid = _grid(len(splits), len(panel.metrics))
    names = list(dict.fromkeys(_label(panel.line, point.settings) for point in _ordered(shown)))
    colours = _colours(panel.line, shown)
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
                            if _label(panel.line, p.settings) == name
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
    picture = _picture(plan, panel, figure, [axes for row in grid for axes in row], note)
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
    """Of a bar: relative to the base's under the same load, or the value itself."""
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
    """The paper's range for a bar, where it prints one relative to the same base."""
    for claim in plan.claims:
        same_base = all(claim.over.get(name) == value for name, value in panel.base.items())
        if claim.metric != metric or not matches(point.settings, claim.of):
            continue
        finding = check_claim(claim, points) if same_base or not claim.over else None
        if finding is None:
            continue
        low, high = finding.paper
        axes.plot([at, at], [low, high], color="black", linewidth=1.6, marker="_", markersize=6)


# ---- Where the time goes


def _stages(plan: Plan, panel: Panel, points: Points) -> list[Item]:
    """Table 1: shares by stage, the paper's beside ours."""
    shown = _ordered(points.where(panel.where))
    if not shown:
        return []
    figure, all_axes = _figure(1, width=11.0)
    axes = all_axes[0]
    colours = _palette()
    rows = []
    ticks: list[tuple[float, str]] = []
    for number, point in enumerate(shown):
        load, profile = point.settings["workload"], point.settings["profile"]
        for place, (name, values) in enumerate(
            (
                ("paper", _paper_shares(panel, profile, load)),
                ("here", _our_shares(panel, point, points)),
            )
        ):
            at, bottom = number + 0.38 * place - 0.19, 0.0
            for colour, metric in zip(colours, panel.metrics, strict=False):
                value = values[metric]
                axes.bar(at, value, 0.34, bottom=bottom, color=colour, label=METRIC_NAMES[metric])
                bottom += value
            ticks.append((at, f"{name}\n{load} {profile}"))
            rows.append(
                (
                    f"{load} {profile}",
                    name,
                    *(text_of(values[metric]) for metric in panel.metrics),
                    text_of(sum(values[metric] for metric in panel.metrics[:3])),
                )
            )
    axes.set_xticks([at for at, _ in ticks], [text for _, text in ticks], fontsize="x-small")
    axes.set_ylabel("% of a host core's time")
    picture = _picture(plan, panel, figure, all_axes)
    headings = ("YCSB", "", *(METRIC_NAMES[metric] for metric in panel.metrics), "communication")
    return [picture, Table(f"{panel.title}, %", headings, tuple(rows))]


def _paper_shares(panel: Panel, profile: str, load: str) -> dict[str, float]:
    return {
        metric: sum(
            row.value or 0.0
            for row in paper_values(
                metric, dpu=PAPER_DPU[profile], workload=load, figure_table="Table 1"
            )
        )
        for metric in panel.metrics
    }


def _our_shares(panel: Panel, point: Point, points: Points) -> dict[str, float]:
    spreads = {metric: points.spread(point, metric) for metric in panel.metrics}
    return {metric: spread.median if spread else 0.0 for metric, spread in spreads.items()}


def _clocks(plan: Plan, panel: Panel, points: Points) -> list[Item]:
    """Stage clocks and CPU time for one request, side by side."""
    rows, bars = [], []
    for point in _ordered(points.where(panel.where)):
        for side in ("dpu", "host"):
            by_stages = median([stage_sum_ns(result, side) for result in point.results])
            by_cpu = median([cpu_ns(result, side) for result in point.results])
            if not by_stages or not by_cpu:
                continue
            of = point.settings
            name = f"{of['design']} {side}, {of['workload']} {of['profile']}"
            clock = "BPF run-time statistics" if side == "dpu" else "the thread's CPU clock"
            rows.append(
                (
                    name,
                    text_of(by_stages),
                    text_of(by_cpu),
                    clock,
                    f"{by_stages / by_cpu - 1:+.0%}",
                )
            )
            bars.append((name, by_stages, by_cpu))
    if not rows:
        return []
    figure, all_axes = _figure(1, width=9.0, height=1.2 + 0.34 * len(bars))
    axes = all_axes[0]
    places = range(len(bars))
    axes.barh([p - 0.19 for p in places], [b[1] for b in bars], 0.36, label="stage clocks")
    axes.barh([p + 0.19 for p in places], [b[2] for b in bars], 0.36, label="CPU time")
    axes.set_yticks(list(places), [b[0] for b in bars], fontsize="small")
    axes.invert_yaxis()
    axes.set_xlabel("ns for one request")
    axes.grid(axis="x", alpha=0.3)
    headings = ("", "stage clocks, ns", "CPU time, ns", "which clock", "difference")
    return [
        _picture(plan, panel, figure, all_axes),
        Table(f"{panel.title}, ns for one request", headings, tuple(rows)),
    ]


def _batch(plan: Plan, panel: Panel, points: Points) -> list[Item]:
    """Figure 6: time of a packet's requests by stage."""
    shown = [
        point
        for point in _ordered(points.where(panel.where))
        if any(stage_sum_ns(result, "host") for result in point.results)
    ]
    if not shown:
        return []
    figure, all_axes = _figure(1, width=8.0)
    axes = all_axes[0]
    rows = []
    used = [stage for stage in STAGES if stage in ("process", *COMMUNICATION)]
    for number, point in enumerate(shown):
        bottom, cells = 0.0, []
        requests = point.results[0]["requests_per_packet"]
        for colour, stage in zip(_palette(), used, strict=False):
            time_us = requests / 1e3
            time_us *= median([stage_sum_ns(r, "host", (stage,)) for r in point.results])
            axes.bar(number, time_us, 0.6, bottom=bottom, color=colour, label=stage)
            bottom += time_us
            cells.append(text_of(time_us))
        share = points.spread(point, "processing_share")
        rows.append(
            (
                f"{point.settings['workload']} {point.settings['profile']}",
                str(requests),
                *cells,
                text_of(bottom),
                text_of_spread(share),
            )
        )
    names = [f"{p.settings['workload']}\n{p.settings['profile']}" for p in shown]
    axes.set_xticks(range(len(shown)), names)
    axes.set_ylabel("µs for the requests of a packet")
    headings = ("YCSB", "requests", *(f"{s}, µs" for s in used), "sum, µs", "process, %")
    return [
        _picture(plan, panel, figure, all_axes),
        Table(f"{panel.title} (the paper: process is 10 to 19 %)", headings, tuple(rows)),
    ]


# ---- Bytes

KEY_AND_VALUE = {
    ("GET", "request"): 8,
    ("GET", "response"): 8,
    ("SET", "request"): 16,
    ("SET", "response"): 0,
}
"""Bytes of a request or response that are not about how it travels."""


BYTES = ("packet, counted here", "packet, implied by the paper", "record in the queue pair")


def _bytes(plan: Plan, panel: Panel, points: Points) -> list[Item]:
    shown = points.where(panel.where)
    rows: list[tuple[str, ...]] = []
    bars: list[tuple[Any, ...]] = []
    for (operation, direction), payload in KEY_AND_VALUE.items():
        load = "C" if operation == "GET" else "A"
        packet_metric = f"wire_{direction}" + ("_set" if operation == "SET" else "")
        packet = _of_load(points, shown, load, 1, packet_metric)
        record = _of_load(points, shown, load, 0, f"qp_{direction}")
        printed = paper_range(f"implied_packet_bytes_{direction}", workload=operation)
        saved = paper_range(f"pcie_bytes_saved_{direction}", design="KV-QP", workload=operation)
        if packet is None or record is None:
            continue
        bars.append((f"{operation}\n{direction}", packet, printed.middle, record))
        rows.append(
            (
                f"{operation} {direction}",
                text_of(packet),
                text_of(record),
                f"{text_of(packet - payload)} / {text_of(record - payload)}",
                f"{1 - record / packet:.1%}",
                f"{1 - record / printed.middle:.1%}",
                text_of(printed.middle),
                f"{saved.middle:g}%",
            )
        )
    if not rows:
        return []
    figure, all_axes = _figure(1, width=8.0)
    axes = all_axes[0]
    for number, label in enumerate(BYTES):
        heights = [float(bar[1 + number]) for bar in bars]
        drawn = axes.bar(
            [place + 0.27 * (number - 1) for place in range(len(bars))],
            heights,
            0.25,
            label=label,
        )
        axes.bar_label(drawn, [text_of(height) for height in heights], fontsize="x-small")
    axes.set_xticks(range(len(bars)), [bar[0] for bar in bars])
    axes.set_ylabel("bytes")
    axes.margins(y=0.1)
    headings = (
        *("", "packet, B", "record, B", "of these not key or value, B"),
        *("saved", "saved of the implied packet", "implied by the paper, B", "paper: saved"),
    )
    return [_picture(plan, panel, figure, all_axes), Table(panel.title, headings, tuple(rows))]


def _of_load(
    points: Points, shown: Sequence[Point], load: str, requests: int, metric: str
) -> float | None:
    for point in shown:
        if matches(point.settings, {"workload": load, "requests_per_packet": requests}):
            spread = points.spread(point, metric)
            return None if spread is None else spread.median
    return None


# ---- Hand-overs


def _transfers(plan: Plan, panel: Panel, points: Points) -> list[Item]:
    shown = [point for point in points.points if point.kind == "transfer"]
    if not shown:
        return []
    ways = ("dpu-to-host", "host-to-dpu")
    modes = ("blocking", "non-blocking")
    sizes = sorted({each["bytes"] for p in shown for r in p.results for each in r["measurements"]})
    figure, grid = _grid(len(modes), len(ways))
    rows = []
    for axes_row, mode in zip(grid, modes, strict=True):
        for axes, way in zip(axes_row, ways, strict=True):
            for number, point in enumerate(shown):
                times = [_transfer_time(point, way, mode, size) for size in sizes]
                known = [(s, t) for s, t in zip(sizes, times, strict=True) if t is not None]
                if not known:
                    continue
                name = str(point.settings["primitive"])
                axes.plot(
                    *zip(*known, strict=True), f"{MARKERS[number]}-", label=name, markersize=4
                )
                cells = [text_of(t) if t is not None else "-" for t in times]
                rows.append((name, way.replace("-", " "), mode, *cells))
            axes.set_title(f"{way.replace('-', ' ')}, {mode}")
            _log(axes.xaxis)
            _log(axes.yaxis)
            axes.set_xlabel("payload, bytes")
            axes.grid(alpha=0.3)
        axes_row[0].set_ylabel("median of an operation, ns")
    picture = _picture(plan, panel, figure, [axes for row in grid for axes in row])
    headings = ("primitive", "way", "mode", *(f"{size} B" for size in sizes))
    return [picture, Table(f"{panel.title}, ns", headings, tuple(sorted(rows)))]


def _transfer_time(point: Point, way: str, mode: str, size: int) -> float | None:
    times = [transfer_median_ns(result, way, mode, size) for result in point.results]
    known = [time for time in times if time is not None]
    return median(known) if known else None


# ---- Curves over a setting


def _sweep(plan: Plan, panel: Panel, points: Points) -> list[Item]:
    shown = sorted(points.where(panel.where), key=lambda p: p.settings[panel.across])
    if not shown:
        return []
    figure, all_axes = _figure(len(panel.metrics))
    for axes, metric in zip(all_axes, panel.metrics, strict=True):
        for number, (name, own) in enumerate(_lines(panel, shown).items()):
            known = [
                (point.settings[panel.across], spread)
                for point in own
                if (spread := points.spread(point, metric)) is not None
            ]
            if known:
                axes.errorbar(
                    [x for x, _ in known],
                    [y.median for _, y in known],
                    yerr=_error_bars([y for _, y in known]),
                    fmt=f"{MARKERS[number]}-",
                    color=f"C{number}",
                    label=name,
                    markersize=4,
                    capsize=2,
                )
        axes.set_title(METRIC_NAMES[metric], fontsize="small")
        axes.set_xlabel(_heading(panel.across))
        axes.set_ylim(bottom=0)
        axes.grid(alpha=0.3)
    rows = [
        (
            _label(panel.line, point.settings),
            str(point.settings[panel.across]),
            *(text_of_spread(points.spread(point, metric)) for metric in panel.metrics),
        )
        for point in sorted(shown, key=lambda p: _label(panel.line, p.settings))
    ]
    headings = (
        *("", _heading(panel.across)),
        *(METRIC_NAMES[metric] for metric in panel.metrics),
    )
    title = f"{panel.title}: median (least–most of the repeats)"
    return [_picture(plan, panel, figure, all_axes), Table(title, headings, tuple(rows))]


def _scaling(plan: Plan, panel: Panel, points: Points) -> list[Item]:
    """Measured over engines, a picture for each distribution; and the model over cores."""
    shown, models = points.where(panel.where), points.where(panel.model)
    if not shown and not models:
        return []
    splits = _split(panel, shown) if shown else {}
    figure, all_axes = _figure(len(splits) + bool(models))
    colours = _colours(panel.line, [*shown, *models])
    rows: list[tuple[str, ...]] = []
    for axes, (title, group) in zip(all_axes, splits.items(), strict=False):
        for name, own in _lines(panel, group).items():
            curve = sorted(
                (point.settings.get(panel.across, 1), spread)
                for point in own
                if (spread := points.spread(point, "throughput")) is not None
            )
            x, y = [cores for cores, _ in curve], [spread for _, spread in curve]
            middle = [spread.median for spread in y]
            axes.errorbar(
                x, middle, yerr=_error_bars(y), fmt="o-", color=colours[name], label=name, capsize=2
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
    all_axes[0].set_ylabel("million requests a second")
    note = "bars and dashes in the model's picture: the paper"
    headings = ("", "keys", "cores", "Mops", "paper, Mops")
    return [
        _picture(plan, panel, figure, all_axes, note),
        Table(panel.title, headings, tuple(rows)),
    ]


def _draw_model(
    axes: Any, panel: Panel, models: Sequence[Point], colours: Mapping[str, Any]
) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = []
    for point in _ordered(models):
        name, curve = _label(panel.line, point.settings), point.results[0]
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


def _model_doors(plan: Plan, panel: Panel, points: Points) -> list[Item]:
    """Throughput by door and the time of a transfer, by the model."""
    models = points.where(panel.model)
    if not models:
        return []
    curve = models[0].results[0]
    heading = _heading(panel.across)
    places = [row[panel.across] for row in curve]
    figure, (left, right) = _figure(2)
    left.plot(places, [row["throughput_mops"] for row in curve], "o-", label="in all")
    for door, colour in (("dpu", "C1"), ("host", "C2")):
        doors = [row["door_mops"].get(door, 0.0) for row in curve]
        name = f"by the {door}'s door"
        left.plot(places, doors, "s--", color=colour, label=name, markersize=4)
    right.plot(places, [row["transfer_us"] for row in curve], "o-", color="C3", label="transfer")
    left.set(xlabel=heading, ylabel="million requests a second", ylim=(0, None))
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
    return [_picture(plan, panel, figure, [left, right]), Table(panel.title, headings, rows)]


def _validation(plan: Plan, panel: Panel, points: Points) -> list[Item]:
    found = points.validation(panel.model)
    if not found:
        return []
    titles = {"paper": "against the paper", "measured": "against this machine"}
    shown = {name: titles[name] for name in found}
    figure, all_axes = _figure(len(shown), width=5.4)
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
        _log(axes.xaxis)
        _log(axes.yaxis)
        axes.set_xlabel("value that it ought to have (µs, Mops or ratio)")
        axes.grid(alpha=0.3)
        items += _validation_tables(title, found[name])
    all_axes[0].set_ylabel("model")
    return [_picture(plan, panel, figure, all_axes), *items]


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


DRAWINGS: dict[str, Callable[[Plan, Panel, Points], list[Item]]] = {
    "curves": _curves,
    "times": _times,
    "bars": _bars,
    "stages": _stages,
    "clocks": _clocks,
    "batch": _batch,
    "bytes": _bytes,
    "transfers": _transfers,
    "sweep": _sweep,
    "scaling": _scaling,
    "model-doors": _model_doors,
    "validation": _validation,
}


# ---- Helpers


def _figure(count: int, *, width: float = PANEL_WIDTH, height: float = PANEL_HEIGHT) -> Any:
    """A picture of some axes side by side."""
    figure, grid = _grid(1, count, width=width, height=height)
    return figure, list(grid[0])


def _grid(
    rows: int, columns: int, *, width: float = PANEL_WIDTH, height: float = PANEL_HEIGHT
) -> Any:
    """A picture of axes in rows and columns; a single row that is too long is broken."""
    import matplotlib as mpl

    mpl.use("Agg")
    mpl.rcParams["axes.titlesize"] = "medium"
    from matplotlib import pyplot as plt

    if rows == 1 and columns > COLUMNS_MAX:
        across = next(n for n in (COLUMNS_MAX, 2) if columns % n == 0 or n == 2)
        figure, grid = _grid(-(-columns // across), across, width=width, height=height)
        every = [axes for row in grid for axes in row]
        for axes in every[columns:]:
            axes.remove()
        return figure, [every[:columns]]
    return plt.subplots(
        rows,
        columns,
        figsize=(max(width * columns, 6.0), height * rows),
        squeeze=False,
        layout="constrained",
    )


COLUMNS_MAX = 3
"""Pictures side by side."""


def _log(axis: Any) -> None:
    """A logarithmic axis whose numbers are written out and do not overlap."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    set_scale = axis.axes.set_xscale if axis.axis_name == "x" else axis.axes.set_yscale
    set_scale("log")
    low, high = axis.get_view_interval()
    axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if high < 200 * low else (1.0,)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_locator(NullLocator())  # a text each, which is most of a picture's time


def _picture(
    plan: Plan, panel: Panel, figure: Any, all_axes: Sequence[Any], note: str = ""
) -> Picture:
    """The finished picture with one legend for all axes."""
    from matplotlib import pyplot as plt

    handles: dict[str, Any] = {}
    for axes in all_axes:
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            handles.setdefault(label, handle)
    figure.legend(
        handles.values(),
        handles.keys(),
        loc="outside lower center",
        ncols=min(len(handles), int(figure.get_figwidth() / 1.7)),
        fontsize="small",
    )
    title = f"{panel.title} ({note})" if note else panel.title
    width = int(figure.get_figwidth() * TITLE_LETTERS_AN_INCH)
    figure.suptitle("\n".join(textwrap.wrap(title, width)), fontsize="medium")
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=DPI)
    plt.close(figure)
    name = f"{plan.id}-{panel.name.replace(' ', '-')}"
    return Picture(name, f"{plan.title}. {panel.title}", buffer.getvalue())


def save(picture: Picture, directory: Path) -> Path:
    """The picture as a file."""
    path = directory / f"{picture.name}.png"
    try:
        path.write_bytes(picture.png)
    except OSError as error:
        raise UsageError(f"{path} cannot be written: {error.strerror}") from error
    return path


def _split(panel: Panel, shown: Sequence[Point]) -> dict[str, list[Point]]:
    groups: dict[str, list[Point]] = {}
    for point in sorted(shown, key=lambda p: _order(tuple(panel.split), p.settings)):
        parts = [_part(name, point.settings[name]) for name in panel.split]
        groups.setdefault(", ".join(parts), []).append(point)
    return groups


def _part(name: str, value: Any) -> str:
    """A setting in a title."""
    if name == "requests_per_packet":
        return f"{value} a message" if value else "messages full"
    return f"YCSB {value}" if name == "workload" else str(value)


def _lines(panel: Panel, shown: Sequence[Point]) -> dict[str, list[Point]]:
    groups: dict[str, list[Point]] = {}
    for point in _ordered(shown):
        groups.setdefault(_label(panel.line, point.settings), []).append(point)
    return groups


def _label(names: Sequence[str], settings: Mapping[str, Any]) -> str:
    parts = []
    for name in names:
        if name in settings:
            text = str(settings[name])
            parts.append(f"{text} descriptors" if name == "rx_descriptors" else text)
    return " ".join(parts) or "-"


def _heading(name: str) -> str:
    return {
        "distribution": "keys",
        "requests_per_packet": "requests in a packet",
        "cores": "host cores",
        "bytes": "bytes of a transfer's buffer",
        "window": "packets outstanding",
    }.get(name, name.replace("_", " "))


def _ordered(shown: Sequence[Point]) -> list[Point]:
    """By profile, design and load."""
    names = (
        *("peer", "dpu", "profile", "design", "frames", "rx_descriptors"),
        *("workload", "distribution"),
    )
    return sorted(shown, key=lambda p: _order(names, p.settings))


def _order(names: Sequence[str], settings: Mapping[str, Any]) -> tuple[Any, ...]:
    """Designs in the table's order, numbers by size, the rest by name."""
    ranks = list(DESIGNS)
    key: list[tuple[int, float, str]] = []
    for name in names:
        value = settings.get(name, "")
        if value in ranks:
            key.append((0, ranks.index(value), ""))
        elif isinstance(value, int | float):
            key.append((0, float(value), ""))
        else:
            key.append((1, 0.0, str(value)))
    return tuple(key)


def _colours(names: Sequence[str], shown: Sequence[Point]) -> dict[str, str]:
    """A colour for each line; a design has the same one in all pictures."""
    found = {name: f"C{number}" for number, name in enumerate((*DESIGNS, "cpu-only ring"))}
    for point in _ordered(shown):
        label = _label(names, point.settings)
        found.setdefault(label, f"C{(len(found)) % 10}")
    return found


def _workload_style(panel: Panel, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Lines of different workloads in one picture differ in their dashes."""
    if "workload" not in panel.line:
        return {"marker": "o", "linestyle": LINES[0]}
    number = sorted("ABC").index(str(settings["workload"]))
    return {"marker": MARKERS[number], "linestyle": LINES[number]}


def _palette() -> list[str]:
    return [f"C{number}" for number in range(10)]


def _error_bars(spreads: Sequence[Spread]) -> list[list[float]]:
    return [
        [max(spread.median - spread.low, 0.0) for spread in spreads],
        [max(spread.high - spread.median, 0.0) for spread in spreads],
    ]
