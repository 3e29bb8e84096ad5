# SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
"""Results for people: tables on the terminal and the latency-throughput plot."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table

Result = dict[str, Any]


RESULTS_KEY = """
Mops: million requests answered a second. Round trip: from sending a packet to
its answer, in microseconds; half, 99 % and 99.9 % of the requests were faster.
CPU: nanoseconds for one request in each role; host polls, and idling counts.
QP: bytes through the queue pair for one request and one response, which on a
DPU would cross PCIe. Answers: wrong values, keys not found, requests lost.
"""


def results_table(results: Sequence[Result]) -> Table:
    """One row for each run of bench.measure; no wider than 80 columns.

    The title says what the first run has, and the others are taken to have, in common.
    """
    table = Table(
        title=_common_line(results[0]),
        title_justify="left",
        box=SIMPLE_HEAD,
        show_edge=False,
        padding=(0, 1, 0, 0),
        pad_edge=False,
    )
    for heading in (
        "\nYCSB",
        "\nMops",
        "round trip, µs\np50   p99 p99.9",
        "CPU, ns/op\nclient dpu host",
        "QP, bytes/op\nreq  resp",
        "answers\nwrong miss lost",
    ):
        table.add_column(heading, justify="right", no_wrap=True)
    for result in results:
        latency = result["latency_us"]
        table.add_row(
            result["workload"],
            f"{result['throughput_mops']:.2f}",
            " ".join(f"{_short(latency[name]):>5}" for name in ("p50", "p99", "p999")),
            _cpu_cell(result["roles"]),
            _queue_pair_cell(result["qp_bytes_per_op"]),
            f"{result['corrupt']} {result['misses']:4} {result['lost']:4}",
        )
    return table


def counters_table(counters: dict[str, int], title: str) -> Table:
    """Counters that are not zero."""
    table = Table(title=title)
    table.add_column("counter")
    table.add_column("count", justify="right")
    for name, count in counters.items():
        if count:
            table.add_row(name, f"{count:,}")
    return table


def plot_latency_throughput(curves: Mapping[str, Sequence[Result]], title: str, path: Path) -> None:
    """Latency against throughput as a picture, one panel for each curve; the format is the path's
    suffix.

    Along a curve the window grows: its first and last points are labelled.
    """
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, panels = plt.subplots(
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
        axes.set_xlabel("million requests a second")
    panels[0][0].set_ylabel("round trip (µs)")
    lines, labels = panels[0][0].get_legend_handles_labels()
    figure.legend(lines, labels, loc="outside lower center", ncols=len(lines))
    figure.suptitle(title)
    figure.savefig(path, dpi=120)
    plt.close(figure)


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


def _common_line(result: Result) -> str:
    whose = f"design {result['design']}" if result["design"] else f"server {result['target']}"
    loop = f"{result['rate']:g} requests/s" if result["rate"] else f"window {result['window']}"
    return (
        f"{whose}, {result['keys']:,} {result['distribution']} keys of {result['key_size']} and "
        f"values of {result['value_size']} bytes,\n"
        f"requests per packet {result['requests_per_packet']}, {loop}"
    )


def _cpu_cell(roles: dict[str, dict[str, float] | None]) -> str:
    cells = (roles[name] for name in ("client", "dpu", "host"))
    return " ".join(
        f"{'-' if role is None else format(role['cpu_ns_per_op'], '.0f'):>4}" for role in cells
    )


def _queue_pair_cell(bytes_per_op: dict[str, float] | None) -> str:
    cells = ("-", "-") if bytes_per_op is None else map(_short, bytes_per_op.values())
    return " ".join(f"{cell:>5}" for cell in cells)


def _short(number: float) -> str:
    return f"{number:.1f}" if number < 1000 else f"{number:.0f}"
