# SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
"""`dpukv compare` for people: tables of rows as compare.summary() makes them, and the picture."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table

Row = dict[str, Any]

COMPARE_KEY = """
Mops: million requests answered a second, the median of the rounds; ±: half the
distance from the slowest to the fastest round, in %. Round trip of a packet or
message, median and 99 %, µs; ~: the source does not say which of the two. CPU,
ns for one request: c client, d DPU (XDP), h host (a peer's server with its part
of the kernel's network stack; our engines poll all the time). Busy, %: c the
peers' load generator, where less than 100 means that it was not the limit,
s the server. Limit: engine, processing on the host; host, which communicates as
well; server, the peers'; client, the core of the load generator, and of XDP where
that runs there; window, the requests in flight; others, other programs. Ratio:
how many times as many requests the base answered, on the same machine and load.
Bad: wrong, missing, refused and lost answers.
"""

COLOURS = ("tab:blue", "tab:orange", "tab:green", "tab:red")
ROLE_COLOURS = {"client": "tab:gray", "dpu": "tab:blue", "host": "tab:orange"}
ROLE_LABELS = {"client": "client", "dpu": "dpu (XDP)", "host": "host or server"}
BAR_INCHES = 0.27


def compare_tables(rows: Sequence[Row], base: str, load: str) -> list[Table]:
    """A table for each number of requests in a packet, of rows measured here; `load` says what is
    common to them. No wider than 80 columns.
    """
    return [
        _table(f"{load}\n{_packet(count)}; ratio: {base} to each", group, with_load=False)
        for count, group in _groups(rows, "requests_per_packet").items()
    ]


def imported_tables(rows: Sequence[Row]) -> list[Table]:
    """A table for each machine that results were imported from."""
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
    """Throughput, round trip and CPU time of every row as bars, a band of panels for each machine;
    the format is the path's suffix.
    """
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    bands = {"this machine": list(rows)} if rows else {}
    bands |= {f"imported: {name}": group for name, group in _groups(imported, "machine").items()}
    heights = [1.0 + BAR_INCHES * len(group) for group in bands.values()]
    figure, panels = plt.subplots(
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
        axes[0].set_title(f"{name}: million requests a second", fontsize="medium")
        axes[1].set_title("round trip, µs: median, and 99 % (line)", fontsize="medium")
        axes[2].set_title("CPU time, ns for one request", fontsize="medium")
    everything = [*rows, *imported]
    _limit(panels[0][0], [row["throughput_mops"] for row in everything], most=8)
    latencies = (row["latency_us"] for row in everything)
    _limit(panels[0][1], [value for latency in latencies for value in latency.values()], most=2)
    widths = [sum(filter(None, row["cpu_ns_per_op"].values())) for row in everything]
    panels[0][2].set_xlim(0, 1.15 * max([*widths, 1.0]))
    figure.suptitle(title)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def _table(title: str, rows: Sequence[Row], *, with_load: bool) -> Table:
    table = Table(
        title=title,
        title_justify="left",
        box=SIMPLE_HEAD,
        show_edge=False,
        padding=(0, 1, 0, 0),
        pad_edge=False,
    )
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
    return f"{count} request{'s' if count > 1 else ''} in a packet or message"


def _imported_label(row: Row) -> str:
    load = " ".join(filter(None, (row["workload"], row["distribution"])))
    count = row["requests_per_packet"]
    return ", ".join(filter(None, (row["label"], load, f"{count} a packet" if count else "")))


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
    if value is None:
        return "-"
    return f"{value:.1f}" if value < 1000 else f"{value:.0f}"


def _bad(row: Row) -> str:
    counts = [row.get(name) for name in ("corrupt", "misses", "refused", "lost")]
    known = [count for count in counts if count is not None]
    return str(sum(known)) if known else "-"


def _colours(here: Sequence[Row], rows: Sequence[Row]) -> list[str]:
    """One for each number of requests in a packet."""
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
    """The same scale for all machines, with room for text on the right."""
    known = [value for value in values if value]
    if known:
        axes.set_xlim(0.5 * min(known), most * max(known))
        axes.set_xscale("log")
