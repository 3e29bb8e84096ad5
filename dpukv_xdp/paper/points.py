# SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
"""Points: all repeats of the same settings, with their metrics' medians and spreads.

Ratios are formed between runs of one round, so that a machine that drifts between rounds changes
none of them; their median counts.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any

from dpukv_xdp.base.repeats import median_result
from dpukv_xdp.bench.limits import is_disturbed
from dpukv_xdp.paper.metrics import RESULT_METRICS, Reader, Result, transfer_median_ns
from dpukv_xdp.paper.plans import Run, Settings, matches

Rounds = dict[int, float]
"""A number for each repeat that has it, by the repeat's index."""

LATENCY_US = 50.0
"""The latency at which Figure 2 is read."""


@dataclass(frozen=True, slots=True)
class Point:
    """All repeats of a run."""

    kind: str
    settings: Settings
    by_repeat: dict[int, Any] = field(repr=False)
    """Results of the repeats that succeeded."""

    @property
    def results(self) -> tuple[Any, ...]:
        """Return the results in the order of the repeats."""
        return tuple(self.by_repeat.values())


@dataclass(frozen=True, slots=True)
class Spread:
    """The median of some values, with the least and the greatest."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Iterable[float]) -> "Spread":
        """Return the spread of one or more values."""
        known = list(values)
        return cls(median(known), min(known), max(known))


@dataclass(slots=True)
class Points:
    """All points of some runs, and the runs that have no result."""

    points: list[Point] = field(default_factory=list)
    missing: dict[str, str] = field(default_factory=dict)
    """The reason for each missing run, by the run's description."""
    runs: int = 0
    disturbed: int = 0
    """Runs in which other programs took much of a core."""
    wrong: int = 0
    """Answers with a wrong value in all runs."""
    lost: int = 0
    _validation: dict[str, Any] | None = None

    @classmethod
    def of(cls, runs: Iterable[Run], lines: Iterable[Mapping[str, Any]]) -> "Points":
        """Return the runs' result lines grouped by settings."""
        by_key = {line["key"]: line for line in lines}
        found = cls()
        groups: dict[str, dict[int, Any]] = {}
        settings: dict[str, tuple[str, Settings]] = {}
        for run in runs:
            line = by_key.get(run.key, {"failed": "not run yet: say --resume"})
            if "result" not in line:
                reason = str(line.get("refused") or line.get("failed"))
                found.missing.setdefault(_name(run.settings), reason)
                continue
            name = f"{run.kind} {sorted(run.settings.items())!r}"
            settings[name] = run.kind, run.settings
            result = line["result"]
            if run.kind == "bench":
                result = {**result, "machine": line["machine"]}
            groups.setdefault(name, {})[run.repeat] = result
            found._count(run.kind, result)
        for name, results in groups.items():
            kind, own = settings[name]
            found.points.append(Point(kind, own, results))
        return found

    def where(self, wanted: Mapping[str, Any]) -> list[Point]:
        """Return the points with these settings."""
        return [point for point in self.points if matches(point.settings, wanted)]

    def sibling(self, point: Point, **changes: Any) -> Point | None:
        """Return the point whose settings differ from this one's by `changes` only, or None."""
        wanted = {**point.settings, **changes}
        return next((other for other in self.points if other.settings == wanted), None)

    def rounds(self, point: Point, metric: str) -> Rounds:
        """Return a metric's value for each repeat that has it."""
        return METRICS[metric](point, self)

    def spread(self, point: Point, metric: str) -> Spread | None:
        """Return a metric's median and range; None if no repeat has it."""
        rounds = self.rounds(point, metric)
        return Spread.of(rounds.values()) if rounds else None

    def ratio(self, point: Point, base: Point, metric: str, base_metric: str = "") -> Spread | None:
        """Return a metric relative to the base's, round by round; None if no round has both."""
        own, under = self.rounds(point, metric), self.rounds(base, base_metric or metric)
        found = [value / under[each] for each, value in own.items() if under.get(each, 0.0) > 0]
        return Spread.of(found) if found else None

    def bound(self, point: Point, metric: str) -> bool:
        """Return whether a metric is a lower bound only."""
        return metric in LEAST and LEAST[metric](point, self)

    def benches(self) -> list[Result]:
        """Return one result, the median of the repeats, for each point of our own stores: the
        model's input.
        """
        return [median_result(point.results) for point in self.points if point.kind == "bench"]

    def validation(self, model: Mapping[str, Any]) -> dict[str, Any]:
        """Return the model's errors against the paper and against this machine's runs; only those
        that have values to compare.
        """
        if self._validation is None:
            from dpukv_xdp.model.validation import validate_measured, validation_json

            found = {"measured": validation_json(validate_measured(self.benches()))}
            if models := self.where(model):
                found = {"paper": models[0].results[0], **found}
            self._validation = {name: part for name, part in found.items() if part["checks"]}
        return self._validation

    def _count(self, kind: str, result: Any) -> None:
        if kind not in ("bench", "peer"):
            return
        self.runs += 1
        self.wrong += result["corrupt"]
        self.lost += result["lost"]
        self.disturbed += is_disturbed(result)


Metric = Callable[[Point, Points], Rounds]


def each_repeat(read: Reader) -> Metric:
    """Return the metric that reads each repeat's result on its own."""

    def rounds(point: Point, points: Points) -> Rounds:
        found = ((repeat, read(result)) for repeat, result in point.by_repeat.items())
        return {
            repeat: value for repeat, value in found if value is not None and math.isfinite(value)
        }

    return rounds


def _set_bytes(direction: str) -> Metric:
    """Read the wire bytes of a SET: the mean of a mixed load less the bytes of its GETs."""

    def rounds(point: Point, points: Points) -> Rounds:
        gets_only = points.sibling(point, workload="C")
        get_bytes = points.rounds(gets_only, f"wire_{direction}") if gets_only else {}
        found = {}
        for repeat, result in point.by_repeat.items():
            gets, sets = result["hits"] + result["misses"], result["stored"]
            if sets and repeat in get_bytes:
                mean = result["wire_bytes_per_op"][direction]
                found[repeat] = (mean * (gets + sets) - get_bytes[repeat] * gets) / sets
        return found

    return rounds


def _throughput_at_50us(point: Point, points: Points) -> Rounds:
    """Return, for each round, the highest throughput with a latency of at most LATENCY_US.

    A round's curve connects its windows by straight lines. A round whose smallest window takes
    longer already has none.
    """
    found = {}
    for repeat in point.by_repeat:
        best = _most_within(_curve(point, points, repeat))
        if best is not None:
            found[repeat] = best
    return found


def _most_within(curve: Sequence[tuple[float, float]]) -> float | None:
    best: float | None = None
    before: tuple[float, float] | None = None
    for mops, latency_us in curve:
        if latency_us <= LATENCY_US:
            best = max(best or 0.0, mops)
        elif before is not None and before[1] <= LATENCY_US:
            part = (LATENCY_US - before[1]) / (latency_us - before[1])
            best = max(best or 0.0, before[0] + part * (mops - before[0]))
        before = mops, latency_us
    return best


def _ends_below_50us(point: Point, points: Points) -> bool:
    """Return whether a round's largest window is still faster than LATENCY_US: its throughput at
    that latency is then unknown.
    """
    ends = (_curve(point, points, repeat)[-1:] for repeat in point.by_repeat)
    return any(latency_us < LATENCY_US for end in ends for _, latency_us in end)


def _curve(point: Point, points: Points, repeat: int) -> list[tuple[float, float]]:
    """Return the throughput and latency of one round's runs that differ only in their window."""
    curve = [
        (other.settings["window"], throughput[repeat], latency[repeat])
        for other in points.points
        if without(other.settings, "window") == without(point.settings, "window")
        if repeat in (throughput := points.rounds(other, "throughput"))
        if repeat in (latency := points.rounds(other, "latency"))
    ]
    return [(mops, latency_us) for _, mops, latency_us in sorted(curve)]


def _transfer_rank(point: Point, points: Points) -> Rounds:
    """Return the rank of the point's non-blocking hand-over among all, by speed, for 2 KiB."""
    found = {}
    for repeat, result in point.by_repeat.items():
        own = transfer_median_ns(result, "dpu-to-host", "non-blocking", 2048)
        times = [
            transfer_median_ns(other.by_repeat[repeat], "dpu-to-host", mode, 2048)
            for other in points.points
            if other.kind == "transfer" and repeat in other.by_repeat
            for mode in ("blocking", "non-blocking")
        ]
        if own is not None:
            found[repeat] = 1.0 + sum(time < own for time in times if time is not None)
    return found


METRICS: dict[str, Metric] = {
    **{name: each_repeat(read) for name, read in RESULT_METRICS.items()},
    "throughput_at_50us": _throughput_at_50us,
    "wire_request_set": _set_bytes("request"),
    "wire_response_set": _set_bytes("response"),
    "transfer_rank": _transfer_rank,
}

LEAST: dict[str, Callable[[Point, Points], bool]] = {"throughput_at_50us": _ends_below_50us}
"""Metrics that are read off a curve, with a test whether the curve ends too early to read them."""

METRIC_NAMES = {
    "throughput": "million requests per second",
    "latency": "median round trip, µs",
    "host_core_usage": "host cores in use by construction, % of the profile's",
    "dpu_throughput": "of it by the DPU's door, Mops",
    "host_throughput": "of it by the host's door, Mops",
    "transfer_us": "transfer and processing, there and back, µs",
    "cpu_receive": "receive",
    "cpu_parse": "parse",
    "cpu_response": "response",
    "cpu_get_set": "get/set",
    "cpu_others": "others",
}


def without(settings: Settings, name: str) -> Settings:
    """Return the settings but for one."""
    return {other: value for other, value in settings.items() if other != name}


def _name(settings: Settings) -> str:
    """Return a description of settings without the load, which seldom explains a missing run."""
    names = ("peer", "primitive", "model", "dpu", "profile", "design", *("respond", "engines"))
    return " ".join(str(settings[name]) for name in names if name in settings)
