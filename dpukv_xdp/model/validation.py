# SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
"""The model's errors against the paper and against this machine; fitted and held-out values apart.

`validate_paper` compares the paper's points, `validate_measured` results of `dpukv bench`.
docs/results/model_validation.json holds `validation_json` of both, and a test recomputes it.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache, partial
from statistics import mean
from typing import Any, Literal

from dpukv_xdp.base.errors import UsageError
from dpukv_xdp.base.repeats import merged
from dpukv_xdp.model.bench_costs import AS_IT_IS, calibration, costs_from_bench, packet_requests
from dpukv_xdp.model.costs import Costs
from dpukv_xdp.model.model import Point, Prediction, simulate
from dpukv_xdp.model.paper_costs import costs_from_paper
from dpukv_xdp.model.paper_values import PaperRange, own_name, paper_range, paper_values
from dpukv_xdp.topology.designs import DESIGNS, find_design

MEASURED_ERROR_MAX = 0.15
"""Largest relative error that the model should have on this machine."""
CPU_ONLY, DPU_ONLY = "CPU-only", "DPU-only"
LAT, SAV, DUAL, SHRD = "DPU-KV-lat", "DPU-KV-sav", "DPU-KV-dual", "DPU-KV-shrd"
"""The paper's names of the designs, by which its values are found."""
WORKLOADS = ("A", "B", "C")
HOST_CORES = range(2, 9)
"""Host cores where Figure 10d's drop is looked for: the text does not give the range."""
WIDE = 1.25
"""Ratio of a range's ends above which a value within it says little about the model."""

Standing = Literal["fitted", "derived", "held out"]
"""fitted: the value determined a parameter. derived: it follows from fitted values, or from the
numbers behind them. held out: neither.
"""
PAPER_FITTED: frozenset[tuple[str, str, str, str]] = frozenset(
    {
        *(("bf2", design, load, "throughput") for design in (CPU_ONLY, DPU_ONLY) for load in "AC"),
        ("bf2", DPU_ONLY, "C", "latency"),
        ("bf2", CPU_ONLY, "C", "latency"),
        ("bf3", CPU_ONLY, "A", "throughput"),
        *(("bf3", DPU_ONLY, load, "throughput") for load in "AC"),
        ("bf3", DPU_ONLY, "C", "latency"),
        ("bf3", SAV, "B", "throughput"),
    }
)
"""Points of the paper to which paper_costs.fit_paper is fitted: DPU, design, workload, quantity."""
PAPER_DERIVED: frozenset[tuple[str, str, str, str]] = frozenset(
    {
        # B lies on a line between A and C.
        *(("bf2", design, "B", "throughput") for design in (CPU_ONLY, DPU_ONLY)),
        *(("bf3", design, "B", "throughput") for design in (CPU_ONLY, DPU_ONLY)),
        ("bf3", CPU_ONLY, "C", "throughput"),  # taken for C from A
        # The spare cores' speed is set by dual over sav and over CPU-only, the bus by dual's peak.
        *(("bf2", DUAL, load, "throughput") for load in WORKLOADS),
    }
)
"""Points that follow from the fitted ones."""

LITTLE = (
    "a closed loop's latency is what is outstanding over the throughput; the paper's own values "
    "imply 2481 requests for DPU-only, 2125 for lat and fewer than 1950 for sav, the model has one "
    "number"
)
QUEUE = (
    "the paper's CPU-only has congested receive queues, differently for each workload; the model "
    "has one queue length, fitted on the middle of the range"
)
CONGESTED = (
    "the text does not say how far the figure goes, so the model's host cores are those where the "
    "drop is nearest to the paper's; its bus is one queue, which frames for 128 descriptors an "
    "endpoint stand in once it is full"
)
BUFFER = (
    "with as many packets outstanding as before, a burst of 128 leaves the client little to send "
    "meanwhile; the paper does not say how many it had"
)
SHARDS = (
    "the model's two doors do not hinder each other, so that they reach the sum of CPU-only and "
    "DPU-only; the paper's reach 77 to 93 % of it, and it does not say what limits them"
)
EQUALS = (
    "four DPU cores carry in the model what the one host core does, 20 Mops, so that now and then "
    "one side waits for the other"
)
OPEN_LOOP = (
    "the median of an open loop is a matter of the generator's batches of 16 runs, at whose end "
    "frames leave, of caches that have cooled down between frames, and of other programs' pauses; "
    "the model has none of these"
)
SYSTEM_CALLS = (
    "with one request per packet the host's engine spends most of its time in system calls, which "
    "the DPU's door waits behind; the model has their mean"
)
MEASURED_EXCEPTIONS: tuple[tuple[Callable[[dict[str, Any]], bool], str, str], ...] = (
    (lambda result: bool(result["rate"]), "latency", OPEN_LOOP),
    (
        lambda result: find_design(result["design"]).has_one_store and packet_requests(result) == 1,
        "latency",
        SYSTEM_CALLS,
    ),
)
"""Measured points where the error may exceed MEASURED_ERROR_MAX: test, quantity and reason."""


@dataclass(frozen=True, slots=True)
class Check:
    """A value of the model beside its reference."""

    name: str
    kind: str
    """`throughput`, `latency` or `other`: errors of one kind are averaged."""
    standing: Standing
    model: float
    low: float
    high: float
    """The reference's range, from `low`; both are equal for a single value."""
    unit: str
    error: float
    """Relative distance from the reference's range; 0 inside."""
    where: str
    """Figure or section of the paper; for a measured point, its settings."""
    why: str
    """Known reason for the error."""

    @property
    def span(self) -> str:
        """Return `value`, `range` or `wide range`: the wider, the less an agreement says."""
        if self.low == self.high:
            return "value"
        return "wide range" if self.high > WIDE * self.low else "range"


def validate_paper(seed: int = 1) -> list[Check]:
    """Compare the model with the paper's printed values; takes some seconds."""
    predict = cache(partial(_paper_point, seed))
    return [*_bf2_checks(predict), *_bf3_checks(predict)]


def validate_measured(results: Sequence[dict[str, Any]], seed: int = 1) -> list[Check]:
    """Compare the model with bench results of one machine; repeats count as their median.

    Within each workload, costs come from closed loops with the largest window and the smallest and
    largest packets. Of these, cpu-only, dpu-only, lat and shrd are fitted. sav is derived, because
    with one core on each side it is the same computation as lat; so is dual, which gives the cost
    of sharing a store. All other windows, packet sizes, rates and ways to respond are held out.
    Ablations, emulated runs, and workloads without the three designs that costs need are left out.
    """
    checks: list[Check] = []
    for group in _by_workload(merged(results, _point_of)):
        known = _calibration(group)
        try:
            costs = costs_from_bench(known)
        except UsageError:
            continue
        for result in filter(_is_modelled, group):
            standing = _standing_of(result, is_known=result in known)
            checks += _measured_checks(costs, result, standing, seed)
    return checks


def validation_json(checks: Sequence[Check]) -> dict[str, Any]:
    """Return the checks and their summary."""
    return {"summary": summary(checks), "checks": [asdict(check) for check in checks]}


def summary(checks: Sequence[Check]) -> dict[str, dict[str, float]]:
    """Return count, mean and largest absolute error by kind and standing.

    Ranges and wide ranges are separate, because lying within one is easier than hitting a value.
    """
    groups: dict[str, list[float]] = {}
    for check in checks:
        span = "" if check.span == "value" else f", a {check.span}"
        groups.setdefault(f"{check.kind}{span}, {check.standing}", []).append(abs(check.error))
    return {
        name: {"count": len(errors), "mean": mean(errors), "max": max(errors)}
        for name, errors in sorted(groups.items())
    }


# ---- The paper

Predict = Callable[..., Prediction]


def _paper_point(
    seed: int,
    dpu: str,
    workload: str,
    design: str,
    dpu_cores: int | None = None,
    host_cores: int | None = None,
    **changes: Any,
) -> Prediction:
    costs = replace(costs_from_paper(dpu, workload), **changes)
    point = Point(design=own_name(design), dpu_cores=dpu_cores, host_cores=host_cores, seed=seed)
    return simulate(costs, point)


Point3 = tuple[str, str, str]
"""DPU, design and workload of a value in the paper."""


def _against(
    name: str,
    value: float,
    allowed: PaperRange,
    kind: str,
    of: Sequence[Point3] = (),
    *,
    standing: Standing | None = None,
    why: str = "",
) -> Check:
    """Return the check of a value; `of` lists its points, for a ratio the numerator first."""
    return Check(
        name,
        kind,
        standing or _standing(kind, of),
        value,
        allowed.low,
        allowed.high,
        allowed.unit,
        allowed.error(value),
        allowed.where,
        why,
    )


def _standing(kind: str, of: Sequence[Point3]) -> Standing:
    """Return the standing of a value that these points give: fitted if all points are, derived if
    the first, a ratio's numerator, is fitted or derived.
    """
    points = [(*point, kind) for point in of]
    if points and PAPER_FITTED.issuperset(points):
        return "fitted"
    return "derived" if points and points[0] in PAPER_FITTED | PAPER_DERIVED else "held out"


def _ratio(allowed: PaperRange, *, reduction: bool = False, increase: bool = False) -> PaperRange:
    """Return a percentage of reduction or increase as a ratio; an "up to" becomes a range's end."""
    if reduction:
        return PaperRange(1 - allowed.high / 100, 1 - allowed.low / 100, "x", allowed.where)
    if increase:
        return PaperRange(1 + allowed.low / 100, 1 + allowed.high / 100, "x", allowed.where)
    return allowed


def _bf2_checks(predict: Predict) -> Iterator[Check]:
    yield from _bf2_throughput(predict)
    yield from _bf2_latency(predict)
    yield from _bf2_shapes(predict)


def _bf2_throughput(predict: Predict) -> Iterator[Check]:
    for design in (CPU_ONLY, DPU_ONLY, SAV, DUAL):
        for load in WORKLOADS:
            allowed = paper_range(
                "throughput_peak",
                dpu="BF-2",
                design=design,
                workload=load,
                figure_table="Fig.12a-c",
            )
            yield _against(
                f"bf2 {own_name(design)} {load} throughput",
                predict("bf2", load, design).throughput_mops,
                allowed,
                "throughput",
                [("bf2", design, load)],
            )
    gains = [_over(predict, "bf2", load, LAT, DPU_ONLY, "throughput") for load in WORKLOADS]
    yield _against(
        "bf2 lat over dpu-only, throughput, mean of A, B, C",
        mean(gains),
        paper_range("throughput_ratio_vs_DPU-only_mean", dpu="BF-2"),
        "throughput",
    )
    ratios = (
        (DUAL, DPU_ONLY, "throughput_ratio_vs_DPU-only", DUAL, "Fig.12a-c"),
        (DUAL, SAV, "throughput_ratio_vs_DPU-KV-sav", DUAL, "Fig.12a-c"),
        (DUAL, CPU_ONLY, "throughput_ratio_vs_CPU-only", DUAL, "Fig.12a-c"),
        (SHRD, CPU_ONLY, "throughput_ratio_vs_CPU-only", SHRD, "Fig.11"),
    )
    for design, base, metric, column, figure in ratios:
        allowed = paper_range(metric, dpu="BF-2", design=column, figure_table=figure)
        for load in WORKLOADS:
            yield _against(
                f"bf2 {own_name(design)} over {own_name(base)} {load}, throughput",
                _over(predict, "bf2", load, design, base, "throughput"),
                allowed,
                "throughput",
                [("bf2", design, load), ("bf2", base, load)],
                why=SHARDS if design == SHRD else "",
            )


def _bf2_latency(predict: Predict) -> Iterator[Check]:
    allowed = paper_range("latency_at_peak", dpu="BF-2", design=DPU_ONLY)
    lowest = PaperRange(allowed.low, allowed.low, allowed.unit, allowed.where)
    yield _against(
        "bf2 dpu-only, latency, least of A, B, C",
        min(predict("bf2", load, DPU_ONLY).latency_us["mean"] for load in WORKLOADS),
        lowest,
        "latency",
        [("bf2", DPU_ONLY, "C")],
    )
    yield _against(
        "bf2 dpu-only, latency, most of A, B, C",
        max(predict("bf2", load, DPU_ONLY).latency_us["mean"] for load in WORKLOADS),
        PaperRange(allowed.high, allowed.high, allowed.unit, allowed.where),
        "latency",
    )
    yield _against(
        "bf2 cpu-only over dpu-only C, latency",
        _over(predict, "bf2", "C", CPU_ONLY, DPU_ONLY, "latency"),
        paper_range("latency_ratio_vs_DPU-only", dpu="BF-2", design=CPU_ONLY),
        "latency",
        [("bf2", CPU_ONLY, "C"), ("bf2", DPU_ONLY, "C")],
        why=QUEUE,
    )
    for design in (LAT, SAV, DUAL):
        for base in (DPU_ONLY, CPU_ONLY):
            metric = f"latency_reduction_vs_{base}"
            rows = paper_values(metric, dpu="BF-2", design=design)
            if not rows:
                continue
            reduction = paper_range(metric, dpu="BF-2", design=design)
            for load in WORKLOADS:
                yield _against(
                    f"bf2 {own_name(design)} over {own_name(base)} {load}, latency",
                    _over(predict, "bf2", load, design, base, "latency"),
                    _ratio(reduction, reduction=True),
                    "latency",
                    [("bf2", design, load), ("bf2", base, load)],
                    why=QUEUE if base == CPU_ONLY else LITTLE,
                )


def _bf2_shapes(predict: Predict) -> Iterator[Check]:
    yield from _bf2_congestion(predict)
    for design in (DPU_ONLY, SAV, DUAL, SHRD):
        one, eight = (
            point.throughput_mops - point.door_mops.get("host", 0.0)
            for point in (predict("bf2", "B", design, cores) for cores in (1, 8))
        )
        yield _against(
            f"bf2 {own_name(design)} B: DPU door with 8 cores over 1",
            eight / one,
            PaperRange(8.0, 8.0, "x", "Fig.12d: linear"),
            "other",
        )


def _bf2_congestion(predict: Predict) -> Iterator[Check]:
    """Yield the checks of Figure 10c-d."""
    dual = [predict("bf2", "C", DUAL, 8, cores) for cores in HOST_CORES]
    top = max(point.throughput_mops for point in dual)
    yield _against(
        "bf2 dual C: host cores from which the throughput is flat",
        next(p.host_cores for p in dual if p.throughput_mops >= 0.98 * top),
        paper_range("host_cores_where_total_flat", dpu="BF-2"),
        "other",
    )
    alone = predict("bf2", "C", SAV)
    drop = _ratio(paper_range("dpu_throughput_drop", dpu="BF-2"), reduction=True)
    full = min(
        dual,
        key=lambda point: abs(point.door_mops["dpu"] / alone.door_mops["dpu"] - drop.middle),
    )
    yield _against(
        f"bf2 dual C: DPU door's throughput over sav's, nearest at {full.host_cores} host cores",
        full.door_mops["dpu"] / alone.door_mops["dpu"],
        drop,
        "other",
        standing="fitted",
        why=CONGESTED,
    )
    yield _against(
        "bf2 dual C: transfer latency there over sav's",
        full.transfer_us / alone.transfer_us,
        paper_range("dma_latency_growth", dpu="BF-2"),
        "other",
        why=CONGESTED,
    )
    before = predict("bf2", "C", DUAL)
    after = predict("bf2", "C", DUAL, burst_packets=128)
    for door in ("dpu", "host"):
        metric = f"{door}_throughput_change_2KB_to_4KB"
        yield _against(
            f"bf2 dual C: {door} door's throughput with buffers of 4 KB over 2 KB",
            after.door_mops[door] / before.door_mops[door],
            _ratio(paper_range(metric, dpu="BF-2"), increase=True),
            "other",
            why=BUFFER,
        )


def _bf3_checks(predict: Predict) -> Iterator[Check]:
    exact = (
        (CPU_ONLY, "A", "throughput_peak", ""),
        (DPU_ONLY, "A", "throughput_peak", ""),
        (DPU_ONLY, "C", "throughput_peak", ""),
        (LAT, "C", "throughput_peak", ""),
        (DPU_ONLY, "C", "latency_at_peak", ""),
        (DPU_ONLY, "A", "latency_at_peak", ""),
        (CPU_ONLY, "A", "latency_at_peak", LITTLE),
        (LAT, "C", "latency_at_peak", LITTLE),
    )
    for design, load, metric, why in exact:
        allowed = paper_range(metric, dpu="BF-3", design=design, workload=load)
        prediction = predict("bf3", load, design)
        kind = metric.split("_")[0]
        yield _against(
            f"bf3 {own_name(design)} {load} {kind}",
            prediction.latency_us["mean"] if kind == "latency" else prediction.throughput_mops,
            allowed,
            kind,
            [("bf3", design, load)],
            why=why,
        )
    yield from _bf3_bounds(predict)
    sav = [predict("bf3", "B", SAV, cores).throughput_mops for cores in range(1, 9)]
    saturation = paper_range("saturation_throughput", dpu="BF-3")
    yield _against("bf3 sav B: saturation", max(sav), saturation, "throughput", [("bf3", SAV, "B")])
    enough = int(paper_range("arm_cores_at_saturation", dpu="BF-3").middle)
    yield _against(
        f"bf3 sav B: with {enough} DPU cores",
        sav[enough - 1],
        saturation,
        "throughput",
        why=EQUALS,
    )
    one, eight = (predict("bf3", "B", LAT, cores).throughput_mops for cores in (1, 8))
    yield _against(
        "bf3 lat B: 8 DPU cores over 1",
        eight / one,
        PaperRange(8.0, 8.0, "x", "Fig.12i: linear"),
        "other",
    )


def _bf3_bounds(predict: Predict) -> Iterator[Check]:
    """Compare an "up to" with the model's extreme over the workloads."""
    bounds = (
        (CPU_ONLY, DPU_ONLY, "throughput", "throughput_reduction_vs_DPU-only_max", -1, ""),
        (CPU_ONLY, DPU_ONLY, "latency", "latency_increase_vs_DPU-only_max", 1, ""),
        (SAV, DPU_ONLY, "throughput", "throughput_reduction_vs_DPU-only_max", -1, ""),
        (SAV, DPU_ONLY, "latency", "latency_increase_vs_DPU-only_max", 1, LITTLE),
        (LAT, CPU_ONLY, "throughput", "throughput_gain_vs_CPU-only_max", 1, ""),
        (LAT, DPU_ONLY, "throughput", "throughput_gain_vs_DPU-only_max", 1, ""),
        (LAT, CPU_ONLY, "latency", "latency_reduction_vs_CPU-only_max", -1, LITTLE),
        (LAT, DPU_ONLY, "latency", "latency_reduction_vs_DPU-only_max", -1, LITTLE),
    )
    for design, base, kind, metric, sign, why in bounds:
        percent = paper_range(metric, dpu="BF-3", design=design, figure_table="Fig.13")
        ratios = [_over(predict, "bf3", load, design, base, kind) for load in WORKLOADS]
        end = 1 + sign * percent.high / 100
        yield _against(
            f"bf3 {own_name(design)} over {own_name(base)}, {kind}, "
            f"{'most' if sign > 0 else 'least'} of A, B, C",
            (max if sign > 0 else min)(ratios),
            PaperRange(end, end, "x", percent.where),
            kind,
            [("bf3", each, load) for each in (design, base) for load in WORKLOADS],
            why=why,
        )


def _over(predict: Predict, dpu: str, load: str, design: str, base: str, kind: str) -> float:
    one, other = predict(dpu, load, design), predict(dpu, load, base)
    if kind == "throughput":
        return one.throughput_mops / other.throughput_mops
    return one.latency_us["mean"] / other.latency_us["mean"]


# ---- This machine


def _by_workload(results: Sequence[dict[str, Any]]) -> list[list[dict[str, Any]]]:
    groups: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for result in results:
        names = ("workload", "distribution", "key_size", "value_size", "store")
        key = tuple(result.get(name) for name in names)
        groups.setdefault(key, []).append(result)
    return list(groups.values())


def _point_of(result: dict[str, Any]) -> tuple[Any, ...]:
    """Return the settings that repeats of one run share."""
    names = ("workload", "distribution", "design", "requests_per_packet", "window", "rate")
    more = ("respond", "emulation", "label", "key_size", "value_size", "store")
    return tuple(result.get(name) for name in names + more)


def _calibration(group: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the results with the smallest and the largest packets; others are held out."""
    usable = calibration(group)
    sizes = {packet_requests(result) for result in usable}
    ends = {min(sizes), max(sizes)} if sizes else set()
    return [result for result in usable if packet_requests(result) in ends]


def _is_modelled(result: dict[str, Any]) -> bool:
    """Return whether a result has no ablation, or only the one that waits for responses."""
    labels = (None, *DESIGNS, AS_IT_IS, "wait for each response")
    return (
        bool(result["design"])
        and not result.get("emulation")
        and result.get("label") in labels
        and result.get("respond") in ("adaptive", "pipeline", "wait")
    )


def _standing_of(result: dict[str, Any], *, is_known: bool) -> Standing:
    """Return the standing of a measured point; `is_known` if costs are computed from it."""
    if not is_known:
        return "held out"
    return "derived" if find_design(result["design"]).pairing == "many-to-one" else "fitted"


def _measured_checks(
    costs: Costs, result: dict[str, Any], standing: Standing, seed: int
) -> Iterator[Check]:
    if result["respond"] == "wait":
        costs = replace(costs, parked_transfers=0)
    rate_mops = (result["rate"] or 0.0) / 1e6
    prediction = simulate(
        costs,
        Point(
            design=result["design"],
            requests_per_packet=packet_requests(result),
            window=result["window"],
            rate_mops=rate_mops,
            host_share=result["host_share"] or 0.0,
            seed=seed,
        ),
    )
    # Pauses of other programs make an open loop's mean; a closed one's hardly feels them.
    quantile = "p50" if rate_mops else "mean"
    kind_suffix = ", open loop" if rate_mops else ""
    for kind, unit, value, measured in (
        ("throughput", "Mops", prediction.throughput_mops, result["throughput_mops"]),
        ("latency", "us", prediction.latency_us[quantile], result["latency_us"][quantile]),
    ):
        yield Check(
            f"{result['design']} {kind}",
            f"{kind}{kind_suffix}",
            standing,
            value,
            measured,
            measured,
            unit,
            value / measured - 1,
            _load_of(result),
            _why_measured(result, kind),
        )


def _why_measured(result: dict[str, Any], kind: str) -> str:
    reasons = (
        why for applies, what, why in MEASURED_EXCEPTIONS if what == kind and applies(result)
    )
    return next(reasons, "")


def _load_of(result: dict[str, Any]) -> str:
    rate = result["rate"]
    loop = f"{rate / 1e6:g} Mops offered" if rate else f"window {result['window']}"
    waits = ", waiting for each response" if result["respond"] == "wait" else ""
    runs = f"; median of {result['repeats']} runs" if result["repeats"] > 1 else ""
    return (
        f"{result['workload']} {result['distribution']}, {packet_requests(result)} a "
        f"packet, {loop}{waits}{runs}"
    )
