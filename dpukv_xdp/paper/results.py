# SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
"""What came of the runs: medians and spreads of repeats, and the paper's claims held against them.

A point is all repeats of the same settings. A metric is a number of each of them; a claim compares
a metric, or the ratio of two, with a range of the paper, load by load. Ratios are of runs of one
round, so that a machine that drifts between rounds changes none, and their median counts.
"""

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import mean, median
from typing import Any, Literal

from dpukv_xdp.base.errors import UsageError
from dpukv_xdp.base.repeats import median_result
from dpukv_xdp.bench.limits import is_disturbed
from dpukv_xdp.model.paper_values import paper_range
from dpukv_xdp.paper.plans import Claim, PaperPlace, Run, Settings, matches
from dpukv_xdp.wire import abi

Result = dict[str, Any]
Verdict = Literal["within", "same way", "other way", "none", "above", "below", "open"]
Bound = Literal["", "at least", "at most"]
Rounds = dict[int, float]
"""A number of each repeat."""

LATENCY_US = 50.0
"""Where Figure 2 is read."""
TOLERANCE = 0.02
"""A value that is so near to the paper's range counts as within it."""
FLAT = 0.98
"""A curve is flat from where it has this part of its top."""
ERROR_MAX = 0.15
"""What the model is meant to stay within."""
MANY_CORES = 6
"""Host cores where Figure 10d's drop is looked for: the host's physical ones. It is compared with
two, of which each door has one.
"""
NAMES_OF_LOADS = ("profile", "workload", "distribution")
"""Settings that tell the loads of a claim apart."""
LOAD_OF_BOTH = ("workload", "distribution", "model", "dpu")
"""What two points of a ratio have in common."""

COMMUNICATION = ("receive", "parse", "prepare", "send")
RESPONSE = ("prepare", "send")


@dataclass(frozen=True, slots=True)
class Point:
    """All repeats of a run."""

    kind: str
    settings: Settings
    by_repeat: dict[int, Any] = field(repr=False)
    """Of those that came to a result."""

    @property
    def results(self) -> tuple[Any, ...]:
        """In the order of the repeats."""
        return tuple(self.by_repeat.values())


@dataclass(frozen=True, slots=True)
class Spread:
    """The median of some values and their ends."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Iterable[float]) -> "Spread":
        """Of at least one value."""
        known = list(values)
        return cls(median(known), min(known), max(known))


@dataclass(slots=True)
class Points:
    """Everything that was measured for some runs, and what was not."""

    points: list[Point] = field(default_factory=list)
    missing: dict[str, str] = field(default_factory=dict)
    """Why, by what was asked for; runs with one reason are named once."""
    runs: int = 0
    disturbed: int = 0
    """Runs in which other programs had a core for long."""
    wrong: int = 0
    """Answers with a wrong value, of all runs."""
    lost: int = 0
    _validation: dict[str, Any] | None = None

    @classmethod
    def of(cls, runs: Iterable[Run], lines: Iterable[Mapping[str, Any]]) -> "Points":
        """The lines that these runs have, together by settings."""
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
        """The points with these settings."""
        return [point for point in self.points if matches(point.settings, wanted)]

    def sibling(self, point: Point, **changes: Any) -> Point | None:
        """The point with the same settings but for these."""
        wanted = {**point.settings, **changes}
        return next((other for other in self.points if other.settings == wanted), None)

    def rounds(self, point: Point, metric: str) -> Rounds:
        """A metric of each repeat that has it."""
        return METRICS[metric](point, self)

    def spread(self, point: Point, metric: str) -> Spread | None:
        """Median and ends of a metric; None if no repeat has it."""
        rounds = self.rounds(point, metric)
        return Spread.of(rounds.values()) if rounds else None

    def ratio(self, point: Point, base: Point, metric: str, base_metric: str = "") -> Spread | None:
        """Of a metric over the base's, round by round; None if no round has both."""
        own, under = self.rounds(point, metric), self.rounds(base, base_metric or metric)
        found = [value / under[each] for each, value in own.items() if under.get(each, 0.0) > 0]
        return Spread.of(found) if found else None

    def bound(self, point: Point, metric: str) -> bool:
        """Whether a metric is only the least that it may be."""
        return metric in LEAST and LEAST[metric](point, self)

    def benches(self) -> list[Result]:
        """Every point of our own stores as one result, the median of its repeats: what the model
        takes costs from.
        """
        return [median_result(point.results) for point in self.points if point.kind == "bench"]

    def validation(self, model: Mapping[str, Any]) -> dict[str, Any]:
        """The model's errors by what it is held against: what its run found of the paper, and our
        own stores here; what there is of it.
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


# ---- Metrics

Metric = Callable[[Point, Points], Rounds]


def _each(read: Callable[[Any], float | None]) -> Metric:
    def rounds(point: Point, points: Points) -> Rounds:
        found = ((repeat, read(result)) for repeat, result in point.by_repeat.items())
        return {
            repeat: value for repeat, value in found if value is not None and math.isfinite(value)
        }

    return rounds


def _throughput(result: Result) -> float | None:
    return float(result["throughput_mops"])


def _latency(result: Result) -> float | None:
    latency = result["latency_us"]["p50"]
    return float(latency) if latency and result["throughput_mops"] else None


def _host_core_usage(result: Result) -> float | None:
    usage = result.get("host_core_usage")
    return None if usage is None else 100.0 * usage


def _over(value: float, base: float, factor: float = 1.0) -> float | None:
    return factor * value / base if base > 0 else None


def stage_sum_ns(result: Result, side: str, stages: Sequence[str] = ()) -> float:
    """Stage clocks of a side for one request, together."""
    times = (result.get("stages_ns_per_op") or {}).get(side, {})
    return float(sum(time for name, time in times.items() if not stages or name in stages))


def cpu_ns(result: Result, side: str) -> float:
    """CPU time of a side for one request."""
    role = result["roles"][side]
    return 0.0 if role is None else float(role["cpu_ns_per_op"])


def _cpu_share(*stages: str) -> Metric:
    """Percent of the host's CPU time that these stages took; never more than all of it."""

    def share(result: Result) -> float | None:
        whole = max(cpu_ns(result, "host"), stage_sum_ns(result, "host"))
        return _over(stage_sum_ns(result, "host", stages), whole, 100.0)

    return _each(share)


def _cpu_others(result: Result) -> float | None:
    whole = cpu_ns(result, "host")
    return _over(max(whole - stage_sum_ns(result, "host"), 0.0), max(whole, 1e-9), 100.0)


def _processing_share(result: Result) -> float | None:
    process = stage_sum_ns(result, "host", ("process",))
    return _over(process, process + stage_sum_ns(result, "host", COMMUNICATION), 100.0)


def _communication_over_processing(result: Result) -> float | None:
    process = stage_sum_ns(result, "host", ("process",))
    return _over(stage_sum_ns(result, "host", COMMUNICATION), process)


def _receive_share(result: Result) -> float | None:
    whole = stage_sum_ns(result, "host", COMMUNICATION)
    return _over(stage_sum_ns(result, "host", ("receive",)), whole, 100.0)


def _bytes(path: str, direction: str) -> Metric:
    def read(result: Result) -> float | None:
        found = (result.get(path) or {}).get(direction, 0.0)
        return float(found) if found else None

    return _each(read)


def _set_bytes(direction: str) -> Metric:
    """Wire bytes of a SET: what a mixed load's mean leaves when GETs are taken off."""

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


def _door_throughput(result: Result) -> tuple[float, float] | None:
    """Mops through the DPU's door and through the host's, by what crossed the queue pair."""
    share = result.get("host_share")
    if share is None:
        return None
    counters = result.get("server_counters") or {}
    records = counters.get("qp_request_bytes", 0) / abi.SIZE("kv_request")
    in_dpu = min(records / max(counters.get("requests_received", 0), 1), 1.0)
    whole = float(result["throughput_mops"])
    return whole * in_dpu, whole * (1 - in_dpu)


def _of_door(door: int) -> Metric:
    def read(result: Result) -> float | None:
        found = _door_throughput(result)
        return None if found is None else found[door]

    return _each(read)


def _transfer_us(result: Result) -> float | None:
    """There and back for one packet's requests, processing included; of runs that wait for it."""
    if result.get("respond") != "wait" or not result.get("stages_ns_per_op"):
        return None
    requests = int(result["requests_per_packet"])
    return stage_sum_ns(result, "dpu", ("wait",)) * requests / 1e3


def _throughput_at_50us(point: Point, points: Points) -> Rounds:
    """The most throughput at which the curve of a round, in the order of its windows and straight
    between them, has LATENCY_US or less; none where the smallest window takes longer already.
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
    """Whether the largest window is still quicker, in any round: what it had with more packets
    outstanding is not known.
    """
    ends = (_curve(point, points, repeat)[-1:] for repeat in point.by_repeat)
    return any(latency_us < LATENCY_US for end in ends for _, latency_us in end)


def _curve(point: Point, points: Points, repeat: int) -> list[tuple[float, float]]:
    """Throughput and latency of one round's runs that differ from this one in their window."""
    curve = [
        (other.settings["window"], throughput[repeat], latency[repeat])
        for other in points.points
        if _but(other.settings, "window") == _but(point.settings, "window")
        if repeat in (throughput := points.rounds(other, "throughput"))
        if repeat in (latency := points.rounds(other, "latency"))
    ]
    return [(mops, latency_us) for _, mops, latency_us in sorted(curve)]


def transfer_median_ns(
    result: Result, direction: str, mode: str, size: int | None = None
) -> float | None:
    """Median of an operation of a hand-over, of the smallest payload or of one of at least so many
    bytes.
    """
    found = [
        each
        for each in result["measurements"]
        if (each["direction"], each["mode"]) == (direction, mode)
    ]
    if not found:
        return None
    wanted = min((each["bytes"] for each in found), key=lambda b: abs(b - (size or 0)))
    return next(float(e["latency_ns"]["p50"]) for e in found if e["bytes"] == wanted)


def _transfer_rank(point: Point, points: Points) -> Rounds:
    """How many ways are as quick as this one's non-blocking one, with it, for 2 KiB."""
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


def _transfer_size_ratio(result: Result) -> float | None:
    small = transfer_median_ns(result, "dpu-to-host", "blocking")
    large = transfer_median_ns(result, "dpu-to-host", "blocking", 2048)
    return None if small is None or large is None else _over(large, small)


def _mops(curve: Sequence[Result]) -> list[float]:
    return [float(row["throughput_mops"]) for row in curve]


def _model_scaling(curve: Sequence[Result]) -> float:
    """The DPU door's throughput with the most cores over one."""

    def by_dpu(row: Result) -> float:
        doors = row["door_mops"]
        return float(doors.get("dpu", row["throughput_mops"]))

    return by_dpu(curve[-1]) / by_dpu(curve[0])


def _model_flat_from(curve: Sequence[Result]) -> float:
    top = max(_mops(curve))
    return float(next(row["cores"] for row in curve if row["throughput_mops"] >= FLAT * top))


def _at(curve: Sequence[Result], at: int, name: str = "cores") -> Result:
    return next(row for row in curve if row[name] == at)


def _model_buffer(read: Callable[[Result], float], requests: int, over: int) -> Metric:
    """A number of the model with a transfer of so many requests, over that with fewer."""

    def ratio(curve: Sequence[Result]) -> float | None:
        return _over(read(_at(curve, requests, "requests")), read(_at(curve, over, "requests")))

    return _each(ratio)


def _model_door(door: str) -> Callable[[Result], float]:
    return lambda row: float(row["door_mops"][door])


METRICS: dict[str, Metric] = {
    "throughput": _each(_throughput),
    "latency": _each(_latency),
    "host_core_usage": _each(_host_core_usage),
    "throughput_at_50us": _throughput_at_50us,
    "cpu_receive": _cpu_share("receive"),
    "cpu_parse": _cpu_share("parse"),
    "cpu_response": _cpu_share(*RESPONSE),
    "cpu_get_set": _cpu_share("process"),
    "cpu_comm_total": _cpu_share(*COMMUNICATION),
    "cpu_others": _each(_cpu_others),
    "comm_over_getset": _each(_communication_over_processing),
    "comm_over_processing": _each(_communication_over_processing),
    "receive_share_of_comm": _each(_receive_share),
    "processing_share": _each(_processing_share),
    "qp_request": _bytes("qp_bytes_per_op", "request"),
    "qp_response": _bytes("qp_bytes_per_op", "response"),
    "wire_request": _bytes("wire_bytes_per_op", "request"),
    "wire_response": _bytes("wire_bytes_per_op", "response"),
    "wire_request_set": _set_bytes("request"),
    "wire_response_set": _set_bytes("response"),
    "dpu_throughput": _of_door(0),
    "host_throughput": _of_door(1),
    "transfer_us": _each(_transfer_us),
    "transfer_rank": _transfer_rank,
    "transfer_size_ratio": _each(_transfer_size_ratio),
    "model_scaling": _each(_model_scaling),
    "model_flat_from": _each(_model_flat_from),
    "model_peak": _each(lambda curve: max(_mops(curve))),
    "model_transfer_growth": _each(
        lambda curve: _over(_at(curve, MANY_CORES)["transfer_us"], _at(curve, 2)["transfer_us"])
    ),
    "model_door_ratio": _each(
        lambda curve: _over(
            _at(curve, MANY_CORES)["door_mops"]["dpu"], _at(curve, 2)["door_mops"]["dpu"]
        )
    ),
    "model_4kb_over_1kb": _model_buffer(lambda row: float(row["throughput_mops"]), 128, 32),
    "model_dpu_4kb_over_2kb": _model_buffer(_model_door("dpu"), 128, 64),
    "model_host_4kb_over_2kb": _model_buffer(_model_door("host"), 128, 64),
}

LEAST: dict[str, Callable[[Point, Points], bool]] = {"throughput_at_50us": _ends_below_50us}
"""Metrics that are read off a curve, and whether it ends before they could be."""

METRIC_NAMES = {
    "throughput": "million requests a second",
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


# ---- Claims

RATIOS = ("ratio", "reduction", "gain")
"""Readings that end as a ratio."""
VERDICTS: dict[Verdict, str] = {
    "within": "agrees",
    "same way": "in the same direction",
    "other way": "the other way round",
    "none": "no difference here",
    "above": "above",
    "below": "below",
    "open": "undecided, as the curve ends first",
}
"""In words."""


@dataclass(frozen=True, slots=True)
class Load:
    """A claim under one load."""

    name: str
    spread: Spread
    """Of the rounds."""
    bound: Bound
    verdict: Verdict

    def text(self) -> str:
        """Its name, its median, and the ends of its rounds if there are several."""
        return f"{self.name} {self.bound} {text_of_spread(self.spread)}".replace("  ", " ").strip()


@dataclass(frozen=True, slots=True)
class Finding:
    """A claim beside what was found."""

    claim: Claim
    loads: tuple[Load, ...]
    """At least one."""
    paper: tuple[float, float]
    where: str

    @property
    def ours(self) -> tuple[float, float]:
        """Least and most of the loads' medians."""
        medians = [load.spread.median for load in self.loads]
        return min(medians), max(medians)

    @property
    def agrees(self) -> bool:
        """Whether it does under every load."""
        return all(load.verdict == "within" for load in self.loads)

    @property
    def is_ratio(self) -> bool:
        """Whether it is one, and to be written so."""
        return self.claim.reading in RATIOS

    def found(self) -> str:
        """The range of ours, without a unit."""
        bounds = dict.fromkeys(load.bound for load in self.loads if load.bound)
        return f"{' or '.join(bounds)} {text_of_range(self.ours)}".strip()

    def printed(self) -> str:
        """What the paper says, in the same terms as ours."""
        if self.claim.says:
            return self.claim.says
        limit = "down to " if self.is_ratio and self.paper[1] < 1 else "up to "
        return f"{limit if self.claim.up_to else ''}{text_of_range(self.paper)}"

    def verdict(self) -> str:
        """In words; of several loads, how many there are of each kind."""
        counts = Counter(load.verdict for load in self.loads)
        if self.claim.by_construction:
            return "by construction"
        if len(self.loads) == 1:
            return VERDICTS[self.loads[0].verdict]
        others = (
            f"{counts[verdict]} {words}"
            for verdict, words in VERDICTS.items()
            if verdict != "within" and counts[verdict]
        )
        return ", ".join((f"{counts['within']} of {len(self.loads)} loads agree", *others))

    def sentence(self) -> str:
        """What it says, without a full stop."""
        unit = " times" if self.is_ratio else "%" if self.claim.reading == "saved" else ""
        printed = f"{self.printed()}{'' if self.claim.says else unit}"
        found = f"{self.claim.name}: {self.found()}{unit} here, {printed} in the paper"
        if self.agrees and len(self.loads) == 1:
            return found
        return f"{found}, {self.verdict()}{self._why()}"

    def _why(self) -> str:
        """The plan's reasons for what is beyond the paper's range, on either side."""
        low, high = self.paper
        beyond = [
            load.spread.median for load in self.loads if load.verdict not in ("within", "open")
        ]
        smaller = any(value < low for value in beyond) and self.claim.smaller
        larger = any(value > high for value in beyond) and self.claim.larger
        if smaller and larger and smaller != larger:
            return f": where it is smaller, {smaller}; where it is larger, {larger}"
        return f": {smaller or larger}" if smaller or larger else ""


def check_claim(claim: Claim, points: Points) -> Finding | None:
    """What came of a claim; None if its runs are missing."""
    paper, where = _paper_ends(claim)
    shown = _at_peak(points.where(claim.of))
    varying = [name for name in NAMES_OF_LOADS if len({p.settings.get(name) for p in shown}) > 1]
    loads = []
    for point in shown:
        found = _reading(claim, point, points)
        if found is not None:
            spread, bound = found
            name = " ".join(str(point.settings.get(each, "")) for each in varying)
            verdict = _verdict(claim, spread.median, bound, paper)
            loads.append(Load(name, spread, bound, verdict))
    return Finding(claim, tuple(loads), paper, where) if loads else None


def _reading(claim: Claim, point: Point, points: Points) -> tuple[Spread, Bound] | None:
    """What the claim is about at a point, and whether that is only a bound."""
    bound: Bound = "at least" if points.bound(point, claim.metric) else ""
    if claim.over:
        base = _base(claim, point, points)
        spread = points.ratio(point, base, claim.metric, claim.over_metric) if base else None
        if base is not None and points.bound(base, claim.over_metric or claim.metric):
            if bound:
                return None  # neither end of such a ratio is known
            bound = "at most"
    else:
        spread = points.spread(point, claim.metric)
        if spread is not None and claim.over_paper is not None:
            spread = _mapped(spread, 1 / _place(claim.over_paper)[0])
    if spread is not None and claim.reading == "saved":
        spread = _mapped(spread, -100.0, 100.0)
    return None if spread is None else (spread, bound)


def _mapped(spread: Spread, factor: float, offset: float = 0.0) -> Spread:
    return Spread.of(offset + factor * value for value in (spread.median, spread.low, spread.high))


def _base(claim: Claim, point: Point, points: Points) -> Point | None:
    """What the claim's metric is divided by."""
    load = {name: point.settings[name] for name in LOAD_OF_BOTH if name in point.settings}
    return next(iter(_at_peak(points.where({**load, **claim.over}))), None)


def _at_peak(found: Sequence[Point]) -> list[Point]:
    """Those with the largest window, of points that differ in nothing else."""
    best: dict[str, Point] = {}
    for point in found:
        name = repr(sorted(_but(point.settings, "window").items()))
        before = best.get(name)
        if before is None or point.settings.get("window", 0) > before.settings.get("window", 0):
            best[name] = point
    return list(best.values())


def _paper_ends(claim: Claim) -> tuple[tuple[float, float], str]:
    """The paper's range, percentages of more and less as ratios; and where it is printed."""
    if claim.shape is not None:
        return claim.shape, claim.says
    if claim.paper is None:
        raise UsageError(f"the claim {claim.name!r} names nothing in the paper")
    low, high, where = _place(claim.paper)
    if claim.paper.over_design is not None:
        over = PaperPlace(
            claim.paper.metric,
            claim.paper.dpu,
            claim.paper.over_design,
            claim.paper.workload,
            claim.paper.figure_table,
        )
        base_low, base_high, _ = _place(over)
        low, high = low / base_high, high / base_low
    if claim.reading == "reduction":
        low, high = 1 - high / 100, 1 - low / 100
    elif claim.reading == "gain":
        low, high = 1 + low / 100, 1 + high / 100
    return (low, high), where


def _place(place: PaperPlace) -> tuple[float, float, str]:
    found = paper_range(
        place.metric,
        dpu=place.dpu,
        design=place.design,
        workload=place.workload,
        figure_table=place.figure_table,
    )
    return found.low, found.high, found.where


def _verdict(claim: Claim, value: float, bound: Bound, printed: tuple[float, float]) -> Verdict:
    """Of one load. Directions are from 1, where the paper has one: all its range on one side."""
    is_ratio = claim.reading in RATIOS
    low, high = printed
    if claim.up_to:
        nothing = 1.0 if is_ratio else 0.0
        low, high = min(low, nothing), max(high, nothing)
    low, high = low * (1 - TOLERANCE), high * (1 + TOLERANCE)
    if (bound == "at least" and value <= high) or (bound == "at most" and value >= low):
        return "open"
    if low <= value <= high:
        return "within"
    if not is_ratio or printed[0] <= 1 <= printed[1]:
        return "above" if value > high else "below"
    if abs(value - 1) <= TOLERANCE:
        return "none"
    return "same way" if (value > 1) == (printed[0] > 1) else "other way"


# ---- Findings that are not claims


def clock_sentences(shown: Iterable[Point]) -> list[str]:
    """How far the two clocks of a request's time are apart, for XDP and for the host."""
    found: dict[str, list[float]] = {"dpu": [], "host": []}
    for point in shown:
        for side, differences in found.items():
            by_stages = median([stage_sum_ns(result, side) for result in point.results])
            by_cpu = median([cpu_ns(result, side) for result in point.results])
            if by_stages and by_cpu:
                differences.append(by_stages / by_cpu - 1)
    names = {
        "dpu": "XDP, stage clocks against BPF run-time statistics",
        "host": "host, stage clocks against the thread's CPU time",
    }
    why = {
        "dpu": "both count the program's run; the clock readings between stages are in one only",
        "host": "a host that waits for requests polls, which no stage clock sees; a stage that "
        "other programs interrupt counts their time, which the CPU clock does not",
    }
    return [
        f"{names[side]}: {min(values):+.0%} to {max(values):+.0%} over {len(values)} loads, median "
        f"{median(values):+.0%} ({why[side]})."
        for side, values in found.items()
        if values
    ]


def validation_sentences(found: Mapping[str, Any]) -> tuple[list[str], list[str]]:
    """What agrees with the model, and what does not: values that are off by more than ERROR_MAX,
    with what is known about them.
    """
    agreeing, differing = [], []
    names = {"paper": "the paper's", "measured": "this machine's"}
    for source, part in found.items():
        checks = part["checks"]
        good = [check for check in checks if abs(check["error"]) <= ERROR_MAX]
        errors = [abs(check["error"]) for check in checks if check["standing"] == "held out"]
        held_out = (
            f"; the {len(errors)} held-out ones have a mean error of {mean(errors):.1%}"
            if errors
            else ""
        )
        agreeing.append(
            f"{len(good)} of {names[source]} {len(checks)} values are within {ERROR_MAX:.0%}"
            f"{held_out}."
        )
        for check in checks:
            if abs(check["error"]) > ERROR_MAX:
                why = f": {check['why']}" if check["why"] else ""
                differing.append(
                    f"{check['name']} ({check['where']}): {text_of(check['model'])} instead of "
                    f"{text_of_range((check['low'], check['high']))} {check['unit']}{why}."
                )
    return agreeing, differing


# ---- Words


def text_of(value: float) -> str:
    """Three digits."""
    if value == 0:
        return "0"
    digits = max(2 - math.floor(math.log10(abs(value))), 0)
    return f"{value:,.{digits}f}"


def text_of_range(ends: tuple[float, float]) -> str:
    """One value if both ends read the same."""
    low, high = text_of(ends[0]), text_of(ends[1])
    return low if low == high else f"{low} to {high}"


def text_of_spread(spread: Spread | None) -> str:
    """The median, and its repeats' ends if there are several."""
    if spread is None:
        return "-"
    if spread.low == spread.high:
        return text_of(spread.median)
    return f"{text_of(spread.median)} ({text_of(spread.low)}–{text_of(spread.high)})"


def _but(settings: Settings, name: str) -> Settings:
    return {other: value for other, value in settings.items() if other != name}


def _name(settings: Settings) -> str:
    """What was not measured, in words; without the load, which seldom is why."""
    names = ("peer", "primitive", "model", "dpu", "profile", "design", *("respond", "engines"))
    return " ".join(str(settings[name]) for name in names if name in settings)
