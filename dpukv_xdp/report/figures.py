# SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
"""Results as pictures."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dpukv_xdp.base.plotting import pyplot, save_figure
from dpukv_xdp.bench.limits import Result
from dpukv_xdp.bench.runs import relative
from dpukv_xdp.report.lines import load_line, short_number


def plot_designs(results: Sequence[Result], path: Path) -> None:
    """Draw throughput and round trip of each design, and its host cores in use, as in Figure 11.

    The base is the design without host cores if it ran, otherwise the first design.
    """
    base = next((r for r in results if not r["roles"]["host"]["cores"]), results[0])
    names = [result["design"] for result in results]
    figure, (left, right, cores) = pyplot().subplots(1, 3, figsize=(13, 4.6), layout="constrained")
    throughput = [result["throughput_mops"] for result in results]
    _labelled_bars(
        left,
        names,
        [relative(value, base["throughput_mops"]) for value in throughput],
        [f"{value:.1f}" for value in throughput],
        f"throughput relative to {base['design']} (Mops on top)",
    )
    latency = [result["latency_us"]["p50"] for result in results]
    _labelled_bars(
        right,
        names,
        [relative(value, base["latency_us"]["p50"]) for value in latency],
        [short_number(value) for value in latency],
        f"median round trip relative to {base['design']} (µs on top)",
    )
    used = [100 * (result["host_core_usage"] or 0.0) for result in results]
    _labelled_bars(cores, names, used, [f"{value:.0f}" for value in used], "host cores in use, %")
    title = f"YCSB {results[0]['workload']}, {load_line(results[0])}".replace("\n", " ")
    emulation = results[0]["emulation"]
    figure.suptitle(f"{title}\n{emulation}" if emulation else title)
    save_figure(figure, path)


def plot_key_counts(results: Sequence[Result], path: Path) -> None:
    """Draw throughput and 99th percentile over the number of keys, on huge and on small pages."""
    figure, (left, right) = pyplot().subplots(1, 2, figsize=(10, 4), layout="constrained")
    for pages, huge_pages, style in (("huge pages", True, "o-"), ("small pages", False, "s--")):
        runs = [result for result in results if result["huge_pages"] == huge_pages]
        keys = [result["keys"] for result in runs]
        left.plot(keys, [result["throughput_mops"] for result in runs], style, label=pages)
        right.plot(keys, [result["latency_us"]["p99"] for result in runs], style, label=pages)
    left.set_ylabel("million requests per second")
    right.set_ylabel("99th percentile of the round trip, µs")
    for axes in (left, right):
        axes.set_xscale("log", base=2)
        axes.set_xlabel("keys")
        axes.set_ylim(bottom=0)
        axes.grid(alpha=0.3)
        axes.legend()
    figure.suptitle(load_line(results[0]))
    save_figure(figure, path)


def _labelled_bars(
    axes: Any, names: Sequence[str], heights: Sequence[float], labels: Sequence[str], title: str
) -> None:
    bars = axes.bar(names, heights, color="tab:blue")
    axes.bar_label(bars, labels, fontsize="small")
    axes.set_title(title, fontsize="medium")
    axes.tick_params(axis="x", rotation=30)
    axes.margins(y=0.15)
    axes.grid(True, axis="y", alpha=0.3)


def plot_latency_throughput(curves: Mapping[str, Sequence[Result]], title: str, path: Path) -> None:
    """Draw latency against throughput, a panel for each curve.

    Along a curve the window grows: its first and last points are labelled.
    """
    figure, panels = pyplot().subplots(
        1,
        len(curves),
        figsize=(5 * len(curves), 4.8),
        sharey=True,
        squeeze=False,
        layout="constrained",
    )
    for axes, (name, results) in zip(panels[0], curves.items(), strict=True):
        _plot_curve(axes, results)
        axes.set_title(name, fontsize="medium")
        axes.set_xlabel("million requests per second")
    panels[0][0].set_ylabel("round trip (µs)")
    lines, labels = panels[0][0].get_legend_handles_labels()
    figure.legend(lines, labels, loc="outside lower center", ncols=len(lines))
    figure.suptitle(title)
    save_figure(figure, path)


def _plot_curve(axes: Any, results: Sequence[Result]) -> None:
    throughput = [result["throughput_mops"] for result in results]
    for quantile, style, label in (
        ("p50", "o-", "half of the requests are faster"),
        ("p99", "s--", "99 % of the requests are faster"),
    ):
        latency = [result["latency_us"][quantile] for result in results]
        axes.plot(throughput, latency, style, label=label, markersize=4)
    first, last = results[0], results[-1]
    _label_window(axes, first, "p50", (0, -8), "left", "top")
    _label_window(axes, last, "p99", (0, 8), "right", "bottom")
    axes.set_yscale("log")
    axes.set_xlim(0, 1.1 * max(throughput))
    axes.grid(True, which="both", alpha=0.3)
    axes.margins(y=0.2)


def _label_window(
    axes: Any, result: Result, quantile: str, offset: tuple[int, int], across: str, up: str
) -> None:
    axes.annotate(
        f"window {result['window']}",
        (result["throughput_mops"], result["latency_us"][quantile]),
        xytext=offset,
        textcoords="offset points",
        horizontalalignment=across,
        verticalalignment=up,
        fontsize="small",
    )
