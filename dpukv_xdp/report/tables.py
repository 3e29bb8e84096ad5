# SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
"""Results for people: tables on the terminal and the latency-throughput plot."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table

from dpukv_xdp.bench.limits import Result

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
    table = _plain_table(_common_line(results[0]))
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


DESIGNS_KEY = """
Cores: used by the client, the DPU's side and the host. Host %: host cores with
a polling thread, of those that the profile's host has. Stages: nanoseconds for
one request where the work was done; host processing counts all, the rest is
sampled; wait is XDP polling for the host.
"""


def designs_table(results: Sequence[Result]) -> Table:
    """One row for each design; no wider than 80 columns."""
    emulation = results[0]["emulation"]
    load = _load_line(results[0])
    table = _plain_table(f"{emulation}\n{load}" if emulation else load)
    for heading in (
        "\ndesign",
        "\nMops",
        "round trip, µs\np50    p99",
        "CPU, ns/op\nclient dpu host",
        "cores\ndpu host",
        "host\n%",
        "answers\nwrong lost",
    ):
        table.add_column(heading, justify="right", no_wrap=True)
    for result in results:
        latency, roles = result["latency_us"], result["roles"]
        usage = result["host_core_usage"]
        table.add_row(
            result["design"],
            f"{result['throughput_mops']:.2f}",
            f"{_short(latency['p50']):>6} {_short(latency['p99']):>6}",
            _cpu_cell(roles),
            f"{roles['dpu']['cores']:.2f} {roles['host']['cores']:.2f}",
            "-" if usage is None else f"{usage * 100:.0f}",
            f"{result['corrupt']} {result['lost']:4}",
        )
    return table


def stages_table(results: Sequence[Result]) -> Table:
    """Nanoseconds of each stage for one request, by design and side."""
    table = _plain_table("Stages, ns for one request")
    stages = list(results[0]["stages_ns_per_op"]["host"])
    table.add_column("design", no_wrap=True)
    table.add_column("side", no_wrap=True)
    for stage in stages:
        table.add_column(stage, justify="right", no_wrap=True)
    for result in results:
        for side, times in result["stages_ns_per_op"].items():
            if any(times.values()):
                cells = (f"{times[stage]:.1f}" if times[stage] else "-" for stage in stages)
                table.add_row(result["design"], side, *cells)
    return table


def ablations_table(results: Sequence[Result]) -> Table:
    """The effect of each switch against the first run."""
    from dpukv_xdp.bench.all_designs import effects

    table = _plain_table(_common_line(results[0]))
    for heading in ("switched", "Mops", "change", "p50, µs", "change", "p99, µs", "lost"):
        table.add_column(heading, justify="left" if heading == "switched" else "right")
    for result, (label, throughput, latency) in zip(results, effects(results), strict=True):
        table.add_row(
            label,
            f"{result['throughput_mops']:.2f}",
            f"{throughput:+.0%}",
            _short(result["latency_us"]["p50"]),
            f"{latency:+.0%}",
            _short(result["latency_us"]["p99"]),
            str(result["lost"]),
        )
    return table


def plot_designs(results: Sequence[Result], path: Path) -> None:
    """Figure 11's shape: throughput and round trip of each design relative to dpu processing alone
    if that ran, else to the first, and host cores in use.
    """
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    base = next((r for r in results if not r["roles"]["host"]["cores"]), results[0])
    names = [result["design"] for result in results]
    figure, (left, right, cores) = plt.subplots(1, 3, figsize=(13, 4.6), layout="constrained")
    throughput = [result["throughput_mops"] for result in results]
    _labelled_bars(
        left,
        names,
        [value / base["throughput_mops"] for value in throughput],
        [f"{value:.1f}" for value in throughput],
        f"throughput relative to {base['design']} (Mops on top)",
    )
    latency = [result["latency_us"]["p50"] for result in results]
    _labelled_bars(
        right,
        names,
        [value / base["latency_us"]["p50"] for value in latency],
        [_short(value) for value in latency],
        f"median round trip relative to {base['design']} (µs on top)",
    )
    used = [100 * (result["host_core_usage"] or 0.0) for result in results]
    _labelled_bars(cores, names, used, [f"{value:.0f}" for value in used], "host cores in use, %")
    title = f"YCSB {results[0]['workload']}, {_load_line(results[0])}".replace("\n", " ")
    emulation = results[0]["emulation"]
    figure.suptitle(f"{title}\n{emulation}" if emulation else title)
    figure.savefig(path, dpi=120)
    plt.close(figure)


KEY_COUNTS_KEY = """
With more keys fewer lookups find index and item in the processor's caches, and
with small pages fewer find the page in its TLB. Load: all keys, through the
network. Memory: of the server.
"""


def key_counts_table(results: Sequence[Result]) -> Table:
    """One row for each run of run_key_counts(); no wider than 80 columns."""
    table = _plain_table(_load_line(results[0]))
    for heading in (
        "\nkeys",
        "\npages",
        "\nMops",
        "round trip, µs\np50    p99",
        "host\nns/op",
        "load\ns",
        "memory\nMiB",
        "answers\nwrong miss lost",
    ):
        table.add_column(heading, justify="right", no_wrap=True)
    for result in results:
        latency = result["latency_us"]
        table.add_row(
            f"{result['keys']:,}",
            "huge" if result["huge_pages"] else "small",
            f"{result['throughput_mops']:.2f}",
            f"{_short(latency['p50']):>6} {_short(latency['p99']):>6}",
            f"{result['stages_ns_per_op']['host']['process']:.1f}",
            f"{result['load']['seconds']:.1f}",
            f"{(result['memory_bytes']['server'] or 0) >> 20:,}",
            f"{result['corrupt']} {result['misses']:4} {result['lost']:4}",
        )
    return table


def plot_key_counts(results: Sequence[Result], path: Path) -> None:
    """Throughput and 99th percentile against the number of keys, on huge and on small pages."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    for pages, huge_pages, style in (("huge pages", True, "o-"), ("small pages", False, "s--")):
        runs = [result for result in results if result["huge_pages"] == huge_pages]
        keys = [result["keys"] for result in runs]
        left.plot(keys, [result["throughput_mops"] for result in runs], style, label=pages)
        right.plot(keys, [result["latency_us"]["p99"] for result in runs], style, label=pages)
    left.set_ylabel("million requests a second")
    right.set_ylabel("99th percentile of the round trip, µs")
    for axes in (left, right):
        axes.set_xscale("log", base=2)
        axes.set_xlabel("keys")
        axes.set_ylim(bottom=0)
        axes.grid(alpha=0.3)
        axes.legend()
    figure.suptitle(_load_line(results[0]))
    figure.savefig(path, dpi=120)
    plt.close(figure)


def _labelled_bars(
    axes: Any, names: Sequence[str], heights: Sequence[float], labels: Sequence[str], title: str
) -> None:
    bars = axes.bar(names, heights, color="tab:blue")
    axes.bar_label(bars, labels, fontsize="small")
    axes.set_title(title, fontsize="medium")
    axes.tick_params(axis="x", rotation=30)
    axes.margins(y=0.15)
    axes.grid(True, axis="y", alpha=0.3)


def _plain_table(title: str) -> Table:
    return Table(
        title=title,
        title_justify="left",
        box=SIMPLE_HEAD,
        show_edge=False,
        padding=(0, 1, 0, 0),
        pad_edge=False,
    )


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


TRANSFERS_KEY = """
d→h: DPU to host; h→d: host to DPU. One operation: a payload is copied to where
the other side sees it, handed over, and all of it read there.
blk: blocking, one in flight, from the start to when the starter knows that it
has been read: there and back. nbk: non-blocking, many in flight, time for each,
averaged over as many. Interruptions by other programs are left out. A payload
over 1 KiB takes several frames of AF_XDP.
"""

_TRANSFER_QUANTITIES: tuple[tuple[str, Callable[[Result], float]], ...] = (
    ("median, ns", lambda found: found["latency_ns"]["p50"]),
    ("mean, ns", lambda found: found["latency_ns"]["mean"]),
    ("throughput, MB/s", lambda found: found["mb_per_s"]),
)


def transfers_tables(result: Result) -> list[Table]:
    """What transfer.measure found: a table for each quantity, a row for each primitive, direction
    and mode, a column for each payload.
    """
    return [_transfers_table(result, title, pick) for title, pick in _TRANSFER_QUANTITIES]


def transfers_notes(result: Result) -> list[str]:
    """Why cells are empty: a sentence for each reason."""
    names: dict[str, list[str]] = {}
    for absent in result["missing"]:
        found = names.setdefault(absent["reason"], [])
        if absent["primitive"] not in found:
            found.append(absent["primitive"])
    return [f"-  {', '.join(absent)}: {reason}." for reason, absent in names.items()]


def _transfers_table(result: Result, title: str, pick: Callable[[Result], float]) -> Table:
    table = Table(
        title=f"\n{title}, by payload in bytes",
        title_justify="left",
        box=SIMPLE_HEAD,
        show_edge=False,
        padding=0,
        pad_edge=False,
    )
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
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, panels = plt.subplots(
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
    figure.savefig(path, dpi=120)
    plt.close(figure)


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
    if result["emulation"]:
        whose = f"{whose} ({result['emulation']})"
    return f"{whose}, {_load_line(result)}"


def _load_line(result: Result) -> str:
    loop = f"{result['rate']:g} requests/s" if result["rate"] else f"window {result['window']}"
    return (
        f"{result['keys']:,} {result['distribution']} keys of {result['key_size']} and "
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


def _five_characters(number: float) -> str:
    if number < 100:
        return f"{number:.2f}" if number < 10 else f"{number:.1f}"
    if number < 10000:
        return f"{number:.0f}"
    return f"{number / 1e3:.1f}k" if number < 99950 else f"{number / 1e3:.0f}k"


def _short(number: float) -> str:
    return f"{number:.1f}" if number < 1000 else f"{number:.0f}"
