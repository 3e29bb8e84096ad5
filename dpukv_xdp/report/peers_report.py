# SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
"""Results of `dpukv compare` as tables and as a picture, from the rows of compare.summary()."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

from dpukv_xdp.base.plotting import pyplot, save_figure
from dpukv_xdp.report.layout import plain_table
from dpukv_xdp.report.lines import short_number

Row = dict[str, Any]

COMPARE_KEY = """
Mops: million requests answered per second, median of the rounds; ±: half the
distance from the slowest to the fastest round, in %. Round trip of a packet or
message, median and 99 %, µs; ~: the source does not say which of the two. CPU,
ns per request: c client, d DPU (XDP), h host (a peer's server with its part of
the kernel's network stack; our engines poll all the time). Busy, %: c the load
generator of a peer, which was not the limit if it is below 100; s the server.
Limit: engine, processing on the host; host, processing and communication;
server, the peer's server; client, the core of the load generator and of XDP on
it; window, the requests in flight; others, other programs. Ratio: throughput of
the base over this row's, on the same machine and load. Bad: wrong, missing,
refused and lost answers.
"""

COLOURS = ("tab:blue", "tab:orange", "tab:green", "tab:red")
ROLE_COLOURS = {"client": "tab:gray", "dpu": "tab:blue", "host": "tab:orange"}
ROLE_LABELS = {"client": "client", "dpu": "dpu (XDP)", "host": "host or server"}
BAR_INCHES = 0.27


def compare_tables(rows: Sequence[Row], base: str, load: str) -> list[Table]:
    """Return a table for each number of requests per packet, of rows measured here.

    `load` describes the load that all rows share. Tables are at most 80 columns wide.
    """
    return [
        _table(f"{load}\n{_packet(count)}; ratio: {base} to each", group, with_load=False)
        for count, group in _groups(rows, "requests_per_packet").items()
    ]


def imported_tables(rows: Sequence[Row]) -> list[Table]:
    """Return a table for each machine from which results were imported."""
    return [
        _table(
            f"imported, measured elsewhere: {machine}\n{group[0]['machine_description']}"
            + (f"\nratio: {group[0]['base']} to each, same load" if group[0]["base"] else ""),
            group,
            with_load=True,
        )
        for machine, group in _groups(rows, "machine").items()
    ]


def plot_compare(rows: Sequence[Row], imported: Sequence[Row], title: str, path: Path) -> None:
    """Draw throughput, round trip and CPU time as bars, a row of panels for each machine."""
    bands = {"this machine": list(rows)} if rows else {}
    bands |= {f"imported: {name}": group for name, group in _groups(imported, "machine").items()}
    heights = [1.0 + BAR_INCHES * len(group) for group in bands.values()]
    figure, panels = pyplot().subplots(
        len(bands),
        3,
        sharex="col",
        figsize=(14, 0.8 + sum(heights)),
        height_ratios=heights,
        squeeze=False,
        layout="constrained",
    )
    for axes, (name, group) in zip(panels, bands.items(), strict=True):
        labels = [_plot_label(row) for row in group]
        colours = _colours(rows, group)
        _plot_throughput(axes[0], group, labels, colours)
        _plot_latency(axes[1], group, colours)
        _plot_cpu(axes[2], group)
        axes[0].set_title(f"{name}: million requests per second", fontsize="medium")
        axes[1].set_title("round trip, µs: median, and 99 % (line)", fontsize="medium")
        axes[2].set_title("CPU time, ns for one request", fontsize="medium")
    everything = [*rows, *imported]
    _limit(panels[0][0], [row["throughput_mops"] for row in everything], most=8)
    latencies = (row["latency_us"] for row in everything)
    _limit(panels[0][1], [value for latency in latencies for value in latency.values()], most=2)
    widths = [sum(filter(None, row["cpu_ns_per_op"].values())) for row in everything]
    panels[0][2].set_xlim(0, 1.15 * max([*widths, 1.0]))
    figure.suptitle(title)
    save_figure(figure, path)


def _table(title: str, rows: Sequence[Row], *, with_load: bool) -> Table:
    table = plain_table(title)
    table.add_column("\nstore", no_wrap=not with_load, overflow="fold")
    for heading in (
        "\nMops",
        "\n±",
        "round trip\np50    p99",
        "CPU, ns/op\nc   d    h",
        "busy, %\nc   s",
        "\nlimit",
        "\nratio",
        "\nbad",
    ):
        table.add_column(heading, justify="right", no_wrap=True)
    for row in rows:
        cpu, ratio = row["cpu_ns_per_op"], row["ratio"]
        table.add_row(
            _imported_label(row) if with_load else row["label"],
            _number(row["throughput_mops"]),
            _spread(row),
            _latency_cell(row["latency_us"]),
            " ".join(f"{_whole(cpu[role]):>4}" for role in ("client", "dpu", "host")),
            f"{_percent(row['client_busy']):>3} {_percent(row['server_busy']):>3}",
            row["limit"] or "-",
            "-" if ratio is None else f"{ratio:.2f}" if ratio < 10 else f"{ratio:.1f}",
            _bad(row),
        )
    return table


def _groups(rows: Sequence[Row], name: str) -> dict[Any, list[Row]]:
    groups: dict[Any, list[Row]] = {}
    for row in rows:
        groups.setdefault(row[name], []).append(row)
    return groups


def _packet(count: int) -> str:
    return f"{count} request{'s' if count > 1 else ''} per packet or message"


def _imported_label(row: Row) -> str:
    load = " ".join(filter(None, (row["workload"], row["distribution"])))
    count = row["requests_per_packet"]
    return ", ".join(filter(None, (row["label"], load, f"{count} per packet" if count else "")))


def _plot_label(row: Row) -> str:
    if "machine" in row:
        return _imported_label(row)
    return f"{row['label']}, {row['requests_per_packet']}"


def _number(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:.2f}" if value >= 1 else f"{value:.3f}"


def _whole(value: float | None) -> str:
    return "-" if value is None else f"{value:.0f}"


def _percent(fraction: float | None) -> str:
    return "-" if fraction is None else f"{100 * fraction:.0f}"


def _spread(row: Row) -> str:
    spread = row["throughput_spread_mops"]
    if spread is None:
        return "-"
    low, high = spread
    return f"{50 * (high - low) / row['throughput_mops']:.0f}%" if row["throughput_mops"] else "-"


def _latency_cell(latency: dict[str, float | None]) -> str:
    p50, unspecified = latency["p50"], latency.get("unspecified")
    first = f"~{_tenths(unspecified)}" if p50 is None and unspecified else _tenths(p50)
    return f"{first:>6} {_tenths(latency['p99']):>6}"


def _tenths(value: float | None) -> str:
    return "-" if value is None else short_number(value)


def _bad(row: Row) -> str:
    counts = [row.get(name) for name in ("corrupt", "misses", "refused", "lost")]
    known = [count for count in counts if count is not None]
    return str(sum(known)) if known else "-"


def _colours(here: Sequence[Row], rows: Sequence[Row]) -> list[str]:
    """Return a colour for each row, by its number of requests per packet."""
    counts = list(dict.fromkeys(row["requests_per_packet"] for row in [*here, *rows]))
    return [COLOURS[counts.index(row["requests_per_packet"]) % len(COLOURS)] for row in rows]


def _plot_throughput(
    axes: Any, rows: Sequence[Row], labels: Sequence[str], colours: Sequence[str]
) -> None:
    values = [row["throughput_mops"] or 0.0 for row in rows]
    places = range(len(rows))
    axes.barh(places, values, color=colours)
    for place, row, value in zip(places, rows, values, strict=True):
        end = value
        if row["throughput_spread_mops"]:
            axes.plot(row["throughput_spread_mops"], [place, place], color="black", linewidth=1)
            end = row["throughput_spread_mops"][1]
        ratio = f" (1/{row['ratio']:.3g})" if row["ratio"] and row["ratio"] > 1.005 else ""
        text = f" {_number(row['throughput_mops'])}{ratio}"
        axes.text(end or 1.0, place, text, va="center", size=8)
    axes.set_yticks(places, labels, fontsize="small")
    axes.invert_yaxis()
    _shared_axis(axes)


def _plot_latency(axes: Any, rows: Sequence[Row], colours: Sequence[str]) -> None:
    medians = [
        row["latency_us"]["p50"] or row["latency_us"].get("unspecified") or 0.0 for row in rows
    ]
    places = range(len(rows))
    axes.barh(places, medians, color=colours)
    for place, row, median in zip(places, rows, medians, strict=True):
        p99 = row["latency_us"]["p99"]
        if p99 and median:
            axes.plot([median, p99], [place, place], color="black", linewidth=1, marker="|")
        axes.text(  # at the left edge, where no line is
            0.01,
            place,
            _latency_cell(row["latency_us"]).split()[0],
            transform=axes.get_yaxis_transform(),
            va="center",
            size=8,
        )
    axes.set_yticks(places, [""] * len(rows))
    axes.invert_yaxis()
    _shared_axis(axes)


def _plot_cpu(axes: Any, rows: Sequence[Row]) -> None:
    places = range(len(rows))
    left = [0.0] * len(rows)
    for role, colour in ROLE_COLOURS.items():
        widths = [row["cpu_ns_per_op"][role] or 0.0 for row in rows]
        axes.barh(places, widths, left=left, color=colour, label=ROLE_LABELS[role])
        left = [start + width for start, width in zip(left, widths, strict=True)]
    for place, whole in zip(places, left, strict=True):
        axes.text(whole, place, f" {whole:.0f}" if whole else " not known", va="center", size=8)
    axes.set_yticks(places, [""] * len(rows))
    axes.invert_yaxis()
    axes.tick_params(axis="x", labelbottom=True)
    if any(left):
        axes.legend(fontsize="small", loc="best")
    axes.grid(True, axis="x", alpha=0.3)


def _shared_axis(axes: Any) -> None:
    axes.tick_params(axis="x", labelbottom=True)
    axes.grid(True, axis="x", which="major", alpha=0.3)


def _limit(axes: Any, values: Sequence[float | None], most: float) -> None:
    """Set one logarithmic scale for all machines, with room for text on the right."""
    known = [value for value in values if value]
    if known:
        axes.set_xlim(0.5 * min(known), most * max(known))
        axes.set_xscale("log")
