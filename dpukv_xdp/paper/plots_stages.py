# SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
"""Drawings of where a request's time and bytes go: stages, clocks, packets, records, hand-overs."""

from collections.abc import Sequence
from statistics import median
from typing import Any

from dpukv_xdp.model.paper_values import paper_range, paper_values
from dpukv_xdp.paper.labels import MARKERS, PAPER_DPU, ordered
from dpukv_xdp.paper.metrics import COMMUNICATION, cpu_ns, stage_sum_ns, transfer_median_ns
from dpukv_xdp.paper.pictures import (
    Item,
    Table,
    finish,
    grid_of_axes,
    log_scale,
    palette,
    side_by_side,
)
from dpukv_xdp.paper.plans import Panel, Plan, matches
from dpukv_xdp.paper.points import METRIC_NAMES, Point, Points
from dpukv_xdp.paper.words import text_of, text_of_spread

STAGES = ("receive", "parse", "process", "wait", "prepare", "send")


def draw_stages(plan: Plan, panel: Panel, points: Points) -> list[Item]:
    """Draw Table 1: the stages' shares of a host core's time, the paper's beside ours."""
    shown = ordered(points.where(panel.where))
    if not shown:
        return []
    figure, all_axes = side_by_side(1, width=11.0)
    axes = all_axes[0]
    colours = palette()
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
    picture = finish(plan, panel, figure, all_axes)
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


def draw_clocks(plan: Plan, panel: Panel, points: Points) -> list[Item]:
    """Draw the stage clocks and the CPU time of one request side by side."""
    rows, bars = [], []
    for point in ordered(points.where(panel.where)):
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
    figure, all_axes = side_by_side(1, width=9.0, height=1.2 + 0.34 * len(bars))
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
        finish(plan, panel, figure, all_axes),
        Table(f"{panel.title}, ns for one request", headings, tuple(rows)),
    ]


def draw_batch(plan: Plan, panel: Panel, points: Points) -> list[Item]:
    """Draw Figure 6: the time of a packet's requests by stage."""
    shown = [
        point
        for point in ordered(points.where(panel.where))
        if any(stage_sum_ns(result, "host") for result in point.results)
    ]
    if not shown:
        return []
    figure, all_axes = side_by_side(1, width=8.0)
    axes = all_axes[0]
    rows = []
    used = [stage for stage in STAGES if stage in ("process", *COMMUNICATION)]
    for number, point in enumerate(shown):
        bottom, cells = 0.0, []
        requests = point.results[0]["requests_per_packet"]
        for colour, stage in zip(palette(), used, strict=False):
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
        finish(plan, panel, figure, all_axes),
        Table(f"{panel.title} (the paper: process is 10 to 19 %)", headings, tuple(rows)),
    ]


KEY_AND_VALUE = {
    ("GET", "request"): 8,
    ("GET", "response"): 8,
    ("SET", "request"): 16,
    ("SET", "response"): 0,
}
"""Bytes of the key and the value themselves in a request or a response."""


BYTES = ("packet, counted here", "packet, implied by the paper", "record in the queue pair")


def draw_bytes(plan: Plan, panel: Panel, points: Points) -> list[Item]:
    """Draw the bytes of a request and of a response on the wire and in the queue pair."""
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
    figure, all_axes = side_by_side(1, width=8.0)
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
    return [finish(plan, panel, figure, all_axes), Table(panel.title, headings, tuple(rows))]


def _of_load(
    points: Points, shown: Sequence[Point], load: str, requests: int, metric: str
) -> float | None:
    for point in shown:
        if matches(point.settings, {"workload": load, "requests_per_packet": requests}):
            spread = points.spread(point, metric)
            return None if spread is None else spread.median
    return None


def draw_transfers(plan: Plan, panel: Panel, points: Points) -> list[Item]:
    """Draw Figure 9: the latency of a hand-over by payload, direction, mode and primitive."""
    shown = [point for point in points.points if point.kind == "transfer"]
    if not shown:
        return []
    ways = ("dpu-to-host", "host-to-dpu")
    modes = ("blocking", "non-blocking")
    sizes = sorted({each["bytes"] for p in shown for r in p.results for each in r["measurements"]})
    figure, grid = grid_of_axes(len(modes), len(ways))
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
            log_scale(axes.xaxis)
            log_scale(axes.yaxis)
            axes.set_xlabel("payload, bytes")
            axes.grid(alpha=0.3)
        axes_row[0].set_ylabel("median of an operation, ns")
    picture = finish(plan, panel, figure, [axes for row in grid for axes in row])
    headings = ("primitive", "way", "mode", *(f"{size} B" for size in sizes))
    return [picture, Table(f"{panel.title}, ns", headings, tuple(sorted(rows)))]


def _transfer_time(point: Point, way: str, mode: str, size: int) -> float | None:
    times = [transfer_median_ns(result, way, mode, size) for result in point.results]
    known = [time for time in times if time is not None]
    return median(known) if known else None
