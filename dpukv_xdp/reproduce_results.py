# SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
"""What came of the runs: medians and spreads of repeats, and the paper's claims held against them.

A point is all repeats of the same settings. A metric is a number of a point; a claim compares a
metric, or the ratio of two, with a range of the paper.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import mean, median
from typing import Any, Literal

from dpukv_xdp import abi
from dpukv_xdp.errors import UsageError
from dpukv_xdp.paper import paper_range
from dpukv_xdp.repeats import median_result
from dpukv_xdp.reproduce_plans import Claim, PaperPlace, Run, Settings, matches

Result = dict[str, Any]
Verdict = Literal["within", "partly", "same way", "other way", "above", "below"]

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
BUSY = 0.9
"""From here on a core counts as what limits a run."""
DISTURBED_CORES = 0.9
"""A host thread polls: with less of its core, other programs had the rest."""
LOAD_OF_BOTH = ("workload", "distribution", "model", "dpu")
"""What two points of a ratio have in common."""

COMMUNICATION = ("receive", "parse", "prepare", "send")
RESPONSE = ("prepare", "send")


@dataclass(frozen=True, slots=True)
class Point:
    """All repeats of a run."""

    kind: str
    settings: Settings
    results: tuple[Any, ...]


@dataclass(frozen=True, slots=True)
class Spread:
    """The median of some values and their ends."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> "Spread":
        """Of at least one value."""
        return cls(median(values), min(values), max(values))


@dataclass(slots=True)
class Points:
    """Everything that was measured for some runs, and what was not."""

    points: list[Point] = field(default_factory=list)
    missing: dict[str, str] = field(default_factory=dict)
    """Why, by what was asked for; runs with one reason are named once."""
    runs: int = 0
    disturbed: int = 0
    """Runs in which other programs had the host's core for long."""
    wrong: int = 0
    """Answers with a wrong value, of all runs."""
    lost: int = 0
    _validation: dict[str, Any] | None = None

    @classmethod
    def of(cls, runs: Iterable[Run], lines: Iterable[Mapping[str, Any]]) -> "Points":
        """The lines that these runs have, together by settings."""
        by_key = {line["key"]: line for line in lines}
        found = cls()
        groups: dict[str, list[Any]] = {}
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
            groups.setdefault(name, []).append(result)
            found._count(run.kind, result)
        for name, results in groups.items():
            kind, own = settings[name]
            found.points.append(Point(kind, own, tuple(results)))
        return found

    def where(self, wanted: Mapping[str, Any]) -> list[Point]:
        """The points with these settings."""
        return [point for point in self.points if matches(point.settings, wanted)]

    def sibling(self, point: Point, **changes: Any) -> Point | None:
        """The point with the same settings but for these."""
        wanted = {**point.settings, **changes}
        return next((other for other in self.points if other.settings == wanted), None)

    def values(self, point: Point, metric: str) -> list[float]:
        """A metric of each repeat that has it."""
        return METRICS[metric](point, self)

    def spread(self, point: Point, metric: str) -> Spread | None:
        """Median and ends of a metric; None if no repeat has it."""
        values = self.values(point, metric)
        return Spread.of(values) if values else None

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
            from dpukv_xdp.model_validation import validate_measured, validation_json

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
        host = result["roles"]["host"]
        polls = kind == "bench" and host is not None and host["cores"] > 0
        self.disturbed += bool(polls and host["cores"] < DISTURBED_CORES)


# ---- Metrics

Metric = Callable[[Point, Points], list[float]]


def _each(read: Callable[[Any], float | None]) -> Metric:
    def values(point: Point, points: Points) -> list[float]:
        found = (read(result) for result in point.results)
        return [value for value in found if value is not None and math.isfinite(value)]

    return values


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

    def values(point: Point, points: Points) -> list[float]:
        gets_only = points.sibling(point, workload="C")
        get_bytes = points.spread(gets_only, f"wire_{direction}") if gets_only else None
        if get_bytes is None:
            return []
        found = []
        for result in point.results:
            gets, sets = result["hits"] + result["misses"], result["stored"]
            if sets:
                mean = result["wire_bytes_per_op"][direction]
                found.append((mean * (gets + sets) - get_bytes.median * gets) / sets)
        return found

    return values


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


def _throughput_at_50us(point: Point, points: Points) -> list[float]:
    """The most throughput at which the curve, in the order of its windows, has LATENCY_US or less.

    It is taken to begin at nothing, and to be straight between windows.
    """
    curve = sorted(
        (other.settings["window"], throughput.median, latency.median)
        for other in points.points
        if _but(other.settings, "window") == _but(point.settings, "window")
        if (throughput := points.spread(other, "throughput")) is not None
        if (latency := points.spread(other, "latency")) is not None
    )
    best, before_mops, before_us = 0.0, 0.0, 0.0
    for _, mops, latency_us in curve:
        if latency_us <= LATENCY_US:
            best = max(best, mops)
        elif before_us <= LATENCY_US:
            part = (LATENCY_US - before_us) / (latency_us - before_us)
            best = max(best, before_mops + part * (mops - before_mops))
        before_mops, before_us = mops, latency_us
    return [best] if best else []


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


def _transfer_rank(point: Point, points: Points) -> list[float]:
    """How many ways are as quick as this one's non-blocking one, with it, for 2 KiB."""
    rows = [
        (other is point and mode == "non-blocking", time)
        for other in points.points
        if other.kind == "transfer"
        for mode in ("blocking", "non-blocking")
        if (time := _median_of(other, mode)) is not None
    ]
    own = [time for is_own, time in rows if is_own]
    return [1.0 + sum(time < own[0] for _, time in rows)] if own else []


def _median_of(point: Point, mode: str) -> float | None:
    found = [transfer_median_ns(result, "dpu-to-host", mode, 2048) for result in point.results]
    known = [time for time in found if time is not None]
    return median(known) if known else None


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


def _at(curve: Sequence[Result], cores: int) -> Result:
    return next(row for row in curve if row["cores"] == cores)


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
}

METRIC_NAMES = {
    "throughput": "million requests a second",
    "latency": "median round trip, µs",
    "host_core_usage": "host cores in use, % of the profile's",
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
VERDICTS = {
    "within": "agrees",
    "partly": "for some of the loads",
    "same way": "in the same direction",
    "other way": "the other way round",
    "above": "above",
    "below": "below",
}
"""In words."""


@dataclass(frozen=True, slots=True)
class Finding:
    """A claim beside what was found."""

    claim: Claim
    ours: tuple[float, float]
    """Over the loads that it was looked at with: least and most of the medians."""
    median: float
    """Over those loads."""
    loads: int
    paper: tuple[float, float]
    is_bound: bool
    where: str
    verdict: Verdict

    @property
    def agrees(self) -> bool:
        """Whether the median over the loads is within the paper's range."""
        return self.verdict == "within"

    def printed(self) -> str:
        """What the paper says, in the same terms as ours."""
        if self.claim.says:
            return self.claim.says
        limit = "down to" if self.is_ratio and self.paper[1] < 1 else "up to"
        return (
            f"{limit} {text_of_range(self.paper)}" if self.is_bound else text_of_range(self.paper)
        )

    @property
    def is_ratio(self) -> bool:
        """Whether it is one, and to be written so."""
        return self.claim.reading in RATIOS

    def sentence(self) -> str:
        """What it says, without a full stop."""
        unit = " times" if self.is_ratio else "%" if self.claim.reading == "saved" else ""
        printed = f"{self.printed()}{'' if self.claim.says else unit}"
        found = f"{self.claim.name}: {text_of_range(self.ours)}{unit} here, {printed} in the paper"
        if self.agrees:
            return found
        why = self.claim.smaller if self.median < self.paper[0] else self.claim.larger
        return f"{found}, {VERDICTS[self.verdict]}{f': {why}' if why else ''}"


def check_claim(claim: Claim, points: Points) -> Finding | None:
    """What came of a claim; None if its runs are missing."""
    found = []
    for point in _at_peak(points.where(claim.of)):
        own = points.spread(point, claim.metric)
        base = _base(claim, point, points)
        if own is not None and base:
            found.append(own.median / base)
    if not found:
        return None
    if claim.reading == "saved":
        found = [100 * (1 - ratio) for ratio in found]
    ours = min(found), max(found)
    paper, where = _paper_ends(claim)
    meet = paper
    if claim.up_to:
        nothing = 0.0 if claim.reading == "value" else 1.0
        meet = min(paper[0], nothing), max(paper[1], nothing)
    return Finding(
        claim,
        ours,
        median(found),
        len(found),
        paper,
        claim.up_to,
        where,
        _verdict(ours, median(found), meet, is_ratio=claim.reading in RATIOS),
    )


def _base(claim: Claim, point: Point, points: Points) -> float | None:
    """What the claim's metric is divided by."""
    if claim.over_paper is not None:
        return _place(claim.over_paper)[0]
    if not claim.over:
        return 1.0
    load = {name: point.settings[name] for name in LOAD_OF_BOTH if name in point.settings}
    for other in _at_peak(points.where({**load, **claim.over})):
        spread = points.spread(other, claim.over_metric or claim.metric)
        if spread is not None and spread.median > 0:
            return spread.median
    return None


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


def _verdict(
    ours: tuple[float, float], middle: float, paper: tuple[float, float], *, is_ratio: bool
) -> Verdict:
    low, high = paper[0] * (1 - TOLERANCE), paper[1] * (1 + TOLERANCE)
    if low <= middle <= high:
        return "within"
    if ours[1] >= low and ours[0] <= high:
        return "partly"
    if not is_ratio:
        return "above" if middle > high else "below"
    return "same way" if (middle - 1) * (sum(paper) / 2 - 1) > 0 else "other way"


# ---- Findings that are not claims


def limit_of(result: Result) -> str:
    """What a run was limited by: a side that was busy nearly all the time."""
    if "limit" in result:
        return str(result["limit"])
    roles = result["roles"]
    host = roles["host"] or {}
    if host.get("cores", 0.0) and host["cores"] < DISTURBED_CORES:
        return "others"
    if host.get("busy_fraction", 0.0) >= BUSY:
        return "processing on the host"
    if stage_sum_ns(result, "host", COMMUNICATION):
        return "the host, which also communicates"
    if sum((roles[name] or {}).get("cores", 0.0) for name in ("client", "dpu")) >= BUSY:
        return "the core of the client and of XDP"
    return "nothing that was busy all the time"


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
