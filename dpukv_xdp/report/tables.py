# SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
"""Results as tables on the terminal."""

import math
from collections.abc import Sequence
from typing import Any

from rich.table import Table

from dpukv_xdp.bench.limits import Result
from dpukv_xdp.report.layout import plain_table
from dpukv_xdp.report.lines import common_line, load_line, short_number

RESULTS_KEY = """
Mops: million requests answered per second. Round trip: from sending a packet
to its answer, in microseconds; half, 99 % and 99.9 % of the requests were
faster. CPU: nanoseconds per request in each role; the host polls, so its idle
time counts. QP: bytes per request and per response through the queue pair,
which on a DPU would cross PCIe. Answers: wrong values, keys not found,
requests lost.
"""


def results_table(results: Sequence[Result]) -> Table:
    """Return a table with a row for each run of Bench.measure, at most 80 columns wide.

    The title is the first run's load; all runs are assumed to share it.
    """
    table = plain_table(
        common_line(results[0]),
        (
            "\nYCSB",
            "\nMops",
            "round trip, µs\np50   p99 p99.9",
            "CPU, ns/op\nclient dpu host",
            "QP, bytes/op\nreq  resp",
            "answers\nwrong miss lost",
        ),
    )
    for result in results:
        latency = result["latency_us"]
        table.add_row(
            result["workload"],
            f"{result['throughput_mops']:.2f}",
            " ".join(f"{short_number(latency[name]):>5}" for name in ("p50", "p99", "p999")),
            _cpu_cell(result["roles"]),
            _queue_pair_cell(result["qp_bytes_per_op"]),
            f"{result['corrupt']} {result['misses']:4} {result['lost']:4}",
        )
    return table


DESIGNS_KEY = """
Cores: used by the DPU's side and by the host. Host %: host cores with a polling
thread, relative to the cores of the profile's host. Stages: nanoseconds per
request, by the side that did the work; processing on the host is measured for
all requests, every other stage for a sample; wait is XDP polling for the host.
"""


def designs_table(results: Sequence[Result]) -> Table:
    """Return a table with a row for each design, at most 80 columns wide."""
    emulation = results[0]["emulation"]
    load = load_line(results[0])
    table = plain_table(
        f"{emulation}\n{load}" if emulation else load,
        (
            "\ndesign",
            "\nMops",
            "round trip, µs\np50    p99",
            "CPU, ns/op\nclient dpu host",
            "cores\ndpu host",
            "host\n%",
            "answers\nwrong lost",
        ),
    )
    for result in results:
        latency, roles = result["latency_us"], result["roles"]
        usage = result["host_core_usage"]
        table.add_row(
            result["design"],
            f"{result['throughput_mops']:.2f}",
            f"{short_number(latency['p50']):>6} {short_number(latency['p99']):>6}",
            _cpu_cell(roles),
            f"{roles['dpu']['cores']:.2f} {roles['host']['cores']:.2f}",
            "-" if usage is None else f"{usage * 100:.0f}",
            f"{result['corrupt']} {result['lost']:4}",
        )
    return table


def stages_table(results: Sequence[Result]) -> Table:
    """Return a table of each stage's time per request, in ns, by design and side."""
    table = plain_table("Stages, ns for one request")
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
    """Return a table of each switch's effect, relative to the first run."""
    from dpukv_xdp.bench.all_designs import effects

    table = plain_table(common_line(results[0]))
    for heading in ("switched", "Mops", "change", "p50, µs", "change", "p99, µs", "lost"):
        table.add_column(heading, justify="left" if heading == "switched" else "right")
    for result, (label, throughput, latency) in zip(results, effects(results), strict=True):
        table.add_row(
            label,
            f"{result['throughput_mops']:.2f}",
            _change(throughput),
            short_number(result["latency_us"]["p50"]),
            _change(latency),
            short_number(result["latency_us"]["p99"]),
            str(result["lost"]),
        )
    return table


def _change(share: float) -> str:
    return "-" if math.isnan(share) else f"{share:+.0%}"


KEY_COUNTS_KEY = """
With more keys, fewer lookups find index and item in the processor's caches;
with small pages, fewer find the page in its TLB. Floor: nanoseconds of a
look-up that only reads bucket and item, or one line if the item is in it
(bench --floor). Load: time to store all keys through the network. Memory:
resident memory of the server.
"""


def key_counts_table(results: Sequence[Result]) -> Table:
    """Return a table with a row for each run of run_key_counts(), at most 80 columns wide."""
    table = plain_table(
        load_line(results[0]),
        (
            "\nkeys",
            "\npages",
            "\nMops",
            "round trip, µs\np50    p99",
            "host, ns/op\nrun floor",
            "load\ns",
            "memory\nMiB",
            "answers\nwrong miss lost",
        ),
    )
    for result in results:
        latency = result["latency_us"]
        table.add_row(
            f"{result['keys']:,}",
            "huge" if result["huge_pages"] else "small",
            f"{result['throughput_mops']:.2f}",
            f"{short_number(latency['p50']):>6} {short_number(latency['p99']):>6}",
            f"{result['stages_ns_per_op']['host']['process']:.1f} "
            f"{result['floor'][result['floor']['reads']]['ns']:5.1f}",
            f"{result['load']['seconds']:.1f}",
            f"{(result['memory_bytes']['server'] or 0) >> 20:,}",
            f"{result['corrupt']} {result['misses']:4} {result['lost']:4}",
        )
    return table


FLOOR_KEY = """
Nanoseconds of a look-up that only reads the cache lines it needs, in memory as
large as the store: two lines are MICA's bucket and item, one line a bucket with
the item in it; each with the best distance between prefetch and use, in
requests. Chained: two lines, each look-up after the one before.
"""
FLOOR_WAYS = ("one_line", "two_lines")


def floor_table(floors: Sequence[Result]) -> Table:
    """Return a table with a row for each floor of run_floors(), at most 80 columns wide."""
    sizes = f"keys of {floors[0]['key_size']} and values of {floors[0]['value_size']} bytes"
    columns = ("keys", "pages", "MiB", "one line", "two lines", "chained")
    table = plain_table(f"the machine's floor, {floors[0]['store']} store, {sizes}", columns)
    for floor in floors:
        table.add_row(
            f"{floor['keys']:,}",
            floor["pages"],
            f"{floor['memory_bytes'] >> 20:,}",
            *(f"{floor[way]['ns']:.1f} ({floor[way]['ahead']})" for way in FLOOR_WAYS),
            f"{floor['two_lines_chained_ns']:.0f}",
        )
    return table


def stats_tables(stats: dict[str, Any]) -> list[Table]:
    """Return the tables of Server.stats(): one for each part of the server that has counted."""
    parts = [(stats["counters"], "communication engine")]
    for engine in stats["engines"]:
        title = f"processing engine {engine['engine']} on core {engine['cpu']}"
        parts.append((engine, title))
    parts.append((stats["stores"], "stores on the host"))
    for title, each in (("store in XDP", "dpu_stores"), ("AF_XDP socket", "sockets")):
        parts += [(part, f"{title} {index}") for index, part in enumerate(stats[each])]
    parts += [(part, f"source {index} of frames") for index, part in enumerate(stats["past_xdp"])]
    parts.append((stats["link"], "link"))
    tables = []
    for part, title in parts:
        counts = {name: count for name, count in part.items() if _is_counter(name, count)}
        if any(counts.values()):
            tables.append(counters_table(counts, title))
    return tables


def _is_counter(name: str, value: object) -> bool:
    return type(value) is int and name not in ("engine", "cpu")


def counters_table(counters: dict[str, int], title: str) -> Table:
    """Return a table of the counters that are not zero."""
    table = Table(title=title)
    table.add_column("counter")
    table.add_column("count", justify="right")
    for name, count in counters.items():
        if count:
            table.add_row(name, f"{count:,}")
    return table


def _cpu_cell(roles: dict[str, dict[str, float] | None]) -> str:
    cells = (roles[name] for name in ("client", "dpu", "host"))
    return " ".join(
        f"{'-' if role is None else format(role['cpu_ns_per_op'], '.0f'):>4}" for role in cells
    )


def _queue_pair_cell(bytes_per_op: dict[str, float] | None) -> str:
    cells = ("-", "-") if bytes_per_op is None else map(short_number, bytes_per_op.values())
    return " ".join(f"{cell:>5}" for cell in cells)
