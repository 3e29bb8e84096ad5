# SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
"""Our designs and other stores on the same cores, with the same keys and the same load, in one run.

Contenders take turns, round by round and in an order shuffled by a fixed seed, so that a drift of
the machine favours none of them. A contender's row has the medians of its rounds and the range of
its throughput.
"""

import contextlib
import os
import random
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import msgspec

from dpukv_xdp.base.errors import DpukvError, MissingError, OptionError, UsageError
from dpukv_xdp.base.machine import machine_facts
from dpukv_xdp.bench.bench import Bench
from dpukv_xdp.bench.limits import Result, is_disturbed, limit_of, server_busy_of, window_full
from dpukv_xdp.bench.options import BenchOptions, Progress, replace_config
from dpukv_xdp.bench.peer_stores import find_peer
from dpukv_xdp.bench.peers import PeerSession
from dpukv_xdp.bench.runs import Session, same_cpus
from dpukv_xdp.topology import ranges, sizing, validation
from dpukv_xdp.topology.designs import DESIGNS
from dpukv_xdp.topology.schema import FRAMES, ServerConfig

REQUESTS_PER_PACKET = 45
"""Requests in a full packet: as many as one of ours holds with keys and values of 8 bytes."""
BASE = ServerConfig().design
"""The contender to whose throughput the others' is compared."""
ORDER_SEED = 1
"""Seed of the order within each round."""
LATENCIES = ("p50", "p99", "p999", "mean")
ROLES = ("client", "dpu", "host")


@dataclass(frozen=True, slots=True)
class Contender:
    """A store that takes part in the comparison."""

    label: str
    summary: str
    open: Callable[[ServerConfig, BenchOptions], contextlib.AbstractContextManager[Session]]


def our_design(label: str, summary: str, **changes: Any) -> Contender:
    """Return one of our designs as a contender: the configuration with some changes.

    Another way to get frames to an engine, such as another `frames`, is another entry in OURS.
    """

    @contextlib.contextmanager
    def start(config: ServerConfig, options: BenchOptions) -> Iterator[Session]:
        candidate = msgspec.structs.replace(config, **changes)
        validation.check(candidate)
        with same_cpus(), Bench(candidate, options) as bench:
            candidate.placement().leave_host_cpus()
            yield bench

    return Contender(label, summary, start)


def other_store(name: str) -> Contender:
    """Return a store of peer_stores.PEERS as a contender."""
    peer = find_peer(name)

    @contextlib.contextmanager
    def start(config: ServerConfig, options: BenchOptions) -> Iterator[Session]:
        with same_cpus() as cpus, PeerSession(peer, options, config.engines) as session:
            os.sched_setaffinity(0, cpus.difference(session.server_cpus) or cpus)
            yield session

    return Contender(name, peer.summary, start)


def _our_contenders() -> Iterator[Contender]:
    """Return every design that the paper compares; a host-only design once per way for frames."""
    for design in DESIGNS.values():
        if not design.is_compared:
            continue
        yield our_design(design.name, design.summary[0], design=design.name)
        if design.communication == ("host",):
            for frames in FRAMES[1:]:
                yield our_design(
                    f"{design.name} {frames}",
                    f"the same, frames by {frames}",
                    design=design.name,
                    frames=frames,
                )


OURS = {contender.label: contender for contender in _our_contenders()}
OURS_BY_DEFAULT = tuple(
    label
    for label in OURS
    if label == BASE or DESIGNS[label.partition(" ")[0]].communication == ("host",)
)
"""The base, and the same without offloading: everything on the host."""


@dataclass(slots=True)
class Outcome:
    """The outcome of a comparison."""

    runs: list[Result] = field(default_factory=list)
    """The result of every run, with its label and round."""
    missing: dict[str, str] = field(default_factory=dict)
    """The reason for each contender that could not be run in all rounds, by label."""
    labels: list[str] = field(default_factory=list)
    """All contenders, in the order of the request."""

    def rows(self) -> list[Result]:
        """Return a row for each contender and number of requests per packet; see summary()."""
        ordered = sorted(self.runs, key=lambda run: self.labels.index(run["label"]))
        return summary(ordered, BASE)


def contenders_of(ours: Sequence[str], peers: Sequence[str]) -> list[Contender]:
    """Return our designs, then the peers, by name. Raises UsageError for an unknown name."""
    unknown = [name for name in ours if name not in OURS]
    if unknown:
        raise UsageError(f"{unknown[0]!r} is none of ours: choose among {', '.join(OURS)}")
    return [*(OURS[name] for name in ours), *(other_store(name) for name in peers)]


def server_of(server_cores: int) -> ServerConfig:
    """Return our server's settings with an engine on each of so many cores.

    Raises UsageError if no core is left for the client.
    """
    cores = len(os.sched_getaffinity(0))
    if not 1 <= server_cores < cores:
        raise OptionError(
            "server_cores",
            f"--server-cores {server_cores} is not 1 to {cores - 1}: the load generator needs one "
            f"of the {cores} cores that this process may use, so choose fewer",
        )
    return ServerConfig(engines=server_cores)


def rounds_of(contenders: Sequence[Contender], repeats: int) -> Iterator[tuple[int, Contender]]:
    """Return the contenders' order in each round: shuffled, and the same in every comparison."""
    for round_number in range(repeats):
        order = list(contenders)
        random.Random(ORDER_SEED + round_number).shuffle(order)
        yield from ((round_number, contender) for contender in order)


def run_rounds(
    contenders: Sequence[Contender],
    config: ServerConfig,
    options: BenchOptions,
    repeats: int,
    progress: Progress,
) -> Outcome:
    """Run all contenders in turn, `repeats` times: with full packets, then with single requests.

    A contender that cannot be run is left out and named. Raises UsageError if the load cannot be
    measured, MissingError if our store, the smallest of all, does not fit into memory.
    """
    ranges.check("repeats", repeats)
    options.check()
    sizing.check_memory(replace_config(config, options))
    outcome = Outcome(labels=[contender.label for contender in contenders])
    for done, (round_number, contender) in enumerate(rounds_of(contenders, repeats)):
        if contender.label in outcome.missing:
            continue

        def step(what: str, fraction: float, label: str = contender.label, at: int = done) -> None:
            progress(f"{label}: {what}", (at + fraction) / (repeats * len(contenders)))

        step("starting", 0.0)
        try:
            runs = _one_round(contender, config, options, step)
        except DpukvError as error:
            outcome.missing[contender.label] = _reason(contender, error, round_number)
        else:
            outcome.runs += [
                {"label": contender.label, "round": round_number, **run} for run in runs
            ]
    return outcome


def loads(options: BenchOptions) -> list[BenchOptions]:
    """Return the load with full packets, then with one request per packet."""
    fit = options.requests_per_packet_max()
    full = options.requests_per_packet or min(REQUESTS_PER_PACKET, fit)
    return [replace(options, requests_per_packet=count) for count in dict.fromkeys((full, 1))]


def summary(runs: Sequence[Result], base: str) -> list[Result]:
    """Return a row for each label and number of requests per packet.

    A row has the medians over the rounds, the sums of the wrong answers, and `ratio`, the
    throughput of `base` relative to the row's.
    """
    groups: dict[tuple[str, int], list[Result]] = {}
    for run in runs:
        groups.setdefault((run["label"], run["requests_per_packet"]), []).append(run)
    rows = [_row(label, count, group) for (label, count), group in groups.items()]
    bases = {row["requests_per_packet"]: row for row in rows if row["label"] == base}
    for row in rows:
        row["ratio"] = _ratio(bases.get(row["requests_per_packet"]), row)
    counts = list(dict.fromkeys(row["requests_per_packet"] for row in rows))
    return sorted(rows, key=lambda row: counts.index(row["requests_per_packet"]))


def document(outcome: Outcome, config: ServerConfig, options: BenchOptions, repeats: int) -> Result:
    """Return the comparison as --json writes it."""
    return {
        "rows": outcome.rows(),
        "runs": outcome.runs,
        "missing": outcome.missing,
        "base": BASE,
        "repeats": repeats,
        "server_cores": config.engines,
        "options": msgspec.to_builtins(options),
        "machine": machine_facts(),
    }


def _one_round(
    contender: Contender, config: ServerConfig, options: BenchOptions, progress: Progress
) -> list[Result]:
    """Measure each load on a server of its own.

    The generator's prepared frames are as long as its longest load needs; longer frames would cost
    it a quarter of its speed with single requests.
    """
    each = loads(options)
    runs = []
    for done, wanted in enumerate(each):

        def step(what: str, fraction: float, done: int = done) -> None:
            progress(what, (done + fraction) / len(each))

        with contender.open(config, wanted) as session:
            step("storing the keys", 0.0)
            load = session.load_keys(wanted)
            runs.append({**session.measure(wanted, step), "load": load})
    return runs


def _row(label: str, requests_per_packet: int, group: Sequence[Result]) -> Result:
    throughput = [run["throughput_mops"] for run in group]
    first = group[0]
    row: Result = {
        "label": label,
        "target": first["target"],
        "workload": first["workload"],
        "distribution": first["distribution"],
        "requests_per_packet": requests_per_packet,
        "window": first["window"],
        "rounds": len(group),
        "disturbed_rounds": sum(is_disturbed(run) for run in group),
        "throughput_mops": statistics.median(throughput),
        "throughput_spread_mops": [min(throughput), max(throughput)],
        "latency_us": {
            name: statistics.median(run["latency_us"][name] for run in group) for name in LATENCIES
        },
        "cpu_ns_per_op": {
            name: _median_of([(run["roles"][name] or {}).get("cpu_ns_per_op") for run in group])
            for name in ROLES
        },
        "client_busy": _median_of([run.get("client_busy") for run in group]),
        "server_busy": _median_of([server_busy_of(run) for run in group]),
        "window_full": _median_of([window_full(run) for run in group]),
        "limit": statistics.mode(limit_of(run) for run in group),
    }
    for name in ("misses", "corrupt", "refused", "lost"):
        row[name] = sum(run[name] for run in group)
    return row


def _median_of(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.median(known) if known else None


def _ratio(base: Result | None, row: Result) -> float | None:
    if base is None or not row["throughput_mops"]:
        return None
    return float(base["throughput_mops"] / row["throughput_mops"])


def _reason(contender: Contender, error: DpukvError, round_number: int) -> str:
    if isinstance(error, MissingError) or round_number == 0:
        return str(error)
    return f"{error} (in round {round_number + 1}; the rounds before it count)"
