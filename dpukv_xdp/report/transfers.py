# SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
"""Results of `dpukv qp-bench` as tables and as a picture."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.table import Table

from dpukv_xdp.base.plotting import pyplot, save_figure
from dpukv_xdp.bench.limits import Result
from dpukv_xdp.report.layout import plain_table

TRANSFERS_KEY = """
d→h: DPU to host; h→d: host to DPU. In one operation a payload is copied to
where the other side sees it, handed over, and read there as a whole.
blk: blocking, one operation in flight, timed until the sender knows that the
payload has been read: a round trip. nbk: non-blocking, many in flight; the time
per operation. Operations that other programs interrupted are left out. A
payload over 1 KiB takes several AF_XDP frames.
"""

_TRANSFER_QUANTITIES: tuple[tuple[str, Callable[[Result], float]], ...] = (
    ("median, ns", lambda found: found["latency_ns"]["p50"]),
    ("mean, ns", lambda found: found["latency_ns"]["mean"]),
    ("throughput, MB/s", lambda found: found["mb_per_s"]),
)


def transfers_tables(result: Result) -> list[Table]:
    """Return a table for each quantity that transfer.measure measures.

    Rows are primitive, direction and mode; columns are payload sizes.
    """
    return [_transfers_table(result, title, pick) for title, pick in _TRANSFER_QUANTITIES]


def transfers_notes(result: Result) -> list[str]:
    """Return a sentence for each reason why cells are empty."""
    names: dict[str, list[str]] = {}
    for absent in result["missing"]:
        found = names.setdefault(absent["reason"], [])
        if absent["primitive"] not in found:
            found.append(absent["primitive"])
    return [f"-  {', '.join(absent)}: {reason}." for reason, absent in names.items()]


def _transfers_table(result: Result, title: str, pick: Callable[[Result], float]) -> Table:
    table = plain_table(f"\n{title}, by payload in bytes", gap=0)
    for heading in ("primitive", ""):
        table.add_column(heading, no_wrap=True)
    for size in result["sizes"]:
        table.add_column(str(size), justify="right", no_wrap=True)
    rows: dict[tuple[str, ...], list[str]] = {}
    for found in result["measurements"]:
        rows.setdefault(_transfer_row(found), []).append(_five_characters(pick(found)))
    for absent in result["missing"]:
        rows[_transfer_row(absent)] = ["-"] * len(result["sizes"])
    for row, cells in sorted(rows.items(), key=lambda item: _transfer_order(result, item[0])):
        table.add_row(row[0], f"{_DIRECTIONS[row[1]]} {_MODES[row[2]]}", *cells)
    return table


_DIRECTIONS = {"dpu-to-host": "d→h", "host-to-dpu": "h→d"}
_MODES = {"blocking": "blk", "non-blocking": "nbk"}


def _transfer_row(cell: Result) -> tuple[str, ...]:
    return cell["primitive"], cell["direction"], cell["mode"]


def _transfer_order(result: Result, row: tuple[str, ...]) -> tuple[int, ...]:
    names = list(result["primitives"])
    return (names.index(row[0]), list(_DIRECTIONS).index(row[1]), list(_MODES).index(row[2]))


def plot_transfers(result: Result, path: Path) -> None:
    """Latency against payload as a picture, a panel for each direction and mode, a line for each
    primitive.
    """
    figure, panels = pyplot().subplots(
        len(_MODES),
        len(_DIRECTIONS),
        figsize=(10, 8),
        sharex=True,
        sharey=True,
        layout="constrained",
    )
    for axes_row, mode in zip(panels, _MODES, strict=True):
        for axes, direction in zip(axes_row, _DIRECTIONS, strict=True):
            _plot_transfers(axes, result, direction, mode)
            axes.set_title(f"{direction.replace('-', ' ')}, {mode}", fontsize="medium")
        axes_row[0].set_ylabel("median of an operation (ns)")
    for axes in panels[-1]:
        axes.set_xlabel("payload (bytes)")
    lines, labels = panels[0][0].get_legend_handles_labels()
    figure.legend(lines, labels, loc="outside lower center", ncols=3)
    figure.suptitle(f"dpukv_xdp: hand-over between two cores, {result['operations']} operations")
    save_figure(figure, path)


def _plot_transfers(axes: Any, result: Result, direction: str, mode: str) -> None:
    for number, (name, title) in enumerate(result["primitives"].items()):
        found = [
            each
            for each in result["measurements"]
            if _transfer_row(each) == (name, direction, mode)
        ]
        if found:
            axes.plot(
                [each["bytes"] for each in found],
                [each["latency_ns"]["p50"] for each in found],
                "o-",
                color=f"C{number}",
                label=title,
                markersize=4,
            )
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.grid(True, which="both", alpha=0.3)


def _five_characters(number: float) -> str:
    """Return a number in at most five characters."""
    if number < 100:
        return f"{number:.2f}" if number < 10 else f"{number:.1f}"
    if number < 10000:
        return f"{number:.0f}"
    return f"{number / 1e3:.1f}k" if number < 99950 else f"{number / 1e3:.0f}k"
