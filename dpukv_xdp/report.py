# SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
"""Results for people: tables on the terminal and the latency-throughput plot."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

Result = dict[str, Any]


def results_table(results: Sequence[Result], title: str) -> Table:
    """One row for each run of bench.measure."""
    table = Table(title=title)
    for heading in ("workload", "req/pkt", "window", "Mops", "p50 us", "p99 us", "p99.9 us"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("CPU ns/op\nclient dpu host", justify="right", no_wrap=True)
    table.add_column("QP bytes/op\nreq resp", justify="right", no_wrap=True)
    table.add_column("wrong missing lost", justify="right")
    for result in results:
        latency = result["latency_us"]
        table.add_row(
            f"{result['workload']} {result['distribution']}",
            str(result["requests_per_packet"]),
            str(result["window"]),
            f"{result['throughput_mops']:.2f}",
            *(f"{latency[name]:.1f}" for name in ("p50", "p99", "p999")),
            _cpu_cell(result["roles"]),
            _queue_pair_cell(result["qp_bytes_per_op"]),
            f"{result['corrupt']} {result['misses']} {result['lost']}",
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


def plot_latency_throughput(curves: Mapping[str, Sequence[Result]], path: Path) -> None:
    """Latency against throughput, one curve for each name, as a picture; the format is the path's
    suffix.
    """
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(8, 5), layout="constrained")
    for name, results in curves.items():
        throughput = [result["throughput_mops"] for result in results]
        for quantile, style in (("p50", "o-"), ("p99", "s--")):
            latency = [result["latency_us"][quantile] for result in results]
            axes.plot(throughput, latency, style, label=f"{name}, {quantile}", markersize=4)
    axes.set_xlabel("throughput (million requests a second)")
    axes.set_ylabel("round trip (µs)")
    axes.set_yscale("log")
    axes.set_xscale("log")
    axes.grid(True, which="both", alpha=0.3)
    axes.legend()
    axes.set_title("dpukv_xdp: latency against throughput, window growing along each curve")
    figure.savefig(path, dpi=120)
    plt.close(figure)


def _cpu_cell(roles: dict[str, dict[str, float] | None]) -> str:
    cells = (roles[name] for name in ("client", "dpu", "host"))
    return "  ".join("-" if cell is None else f"{cell['cpu_ns_per_op']:.0f}" for cell in cells)


def _queue_pair_cell(bytes_per_op: dict[str, float] | None) -> str:
    if bytes_per_op is None:
        return "-"
    return f"{bytes_per_op['request']:.1f} {bytes_per_op['response']:.1f}"
