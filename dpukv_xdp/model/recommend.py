# SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
"""Recommend a design by the model, with the numbers behind the choice.

Every design that the paper evaluates gets the cores that the paper gives it (section 6.1), or as
many of the machine's cores as it can use if their number is given. The paper's guidance is in
sections 6.2 and 6.3.
"""

from bisect import bisect_left
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any

from dpukv_xdp.base.errors import UsageError
from dpukv_xdp.model.costs import Costs
from dpukv_xdp.model.model import (
    Point,
    Prediction,
    check_host_cores,
    host_cores_limit,
    machine_limit,
    simulate,
)
from dpukv_xdp.topology import ranges
from dpukv_xdp.topology.designs import DESIGNS, Design, find_design
from dpukv_xdp.topology.profiles import find_profile

SHARE = 0.9
"""Fraction of the throughput without offloading that counts as comparable."""
ALIKE = 0.01
"""Relative difference below which two designs count as equal, so that host cores decide."""
ONE_LOAD = 0.5
"""Load at which latencies are compared, as a fraction of the slowest design's throughput."""


@dataclass(frozen=True, slots=True)
class Choice:
    """The recommended design for one goal."""

    question: str
    design: str
    host_cores: int
    reason: str
    """The reason, in numbers."""


@dataclass(frozen=True, slots=True)
class Recommendation:
    """The model's recommendations for one DPU."""

    dpu: str
    costs: str
    """Source of the costs."""
    baseline: str
    """The design without offloading, to whose throughput `share` refers."""
    share: float
    candidates: tuple[Prediction, ...]
    """Predictions of the designs at their peak throughput."""
    at_one_load: tuple[Prediction, ...]
    """Predictions of the designs at the same load, which each of them can serve."""
    most_throughput: Choice
    lowest_latency: Choice
    lowest_latency_at_one_load: Choice
    fewest_host_cores: Choice
    refused: dict[str, str]
    """Designs that the DPU cannot run, each with the reason."""
    notes: tuple[str, ...]

    def choices(self) -> tuple[Choice, ...]:
        """Return the choices in order."""
        return (
            self.most_throughput,
            self.lowest_latency,
            self.lowest_latency_at_one_load,
            self.fewest_host_cores,
        )

    def to_json(self) -> dict[str, Any]:
        """Return the recommendation as `--json` prints it."""
        return asdict(self)


def recommend(
    costs: Costs,
    dpu: str,
    *,
    host_cores: int | None = None,
    dpu_cores: int | None = None,
    share: float = SHARE,
    seed: int = 1,
) -> Recommendation:
    """Run the model for all designs that this DPU can run, and choose the best for each goal.

    `host_cores` and `dpu_cores` are the cores of the machine. Each design gets as many of them as
    it can use, and the fewest host cores are searched among all counts. Without `host_cores` each
    design has the paper's count. Raises OptionError for numbers out of range.
    """
    ranges.check("percent", 100 * share, "--share")
    if host_cores is not None:
        ranges.check("model_cores", host_cores, "--host-cores")
        check_host_cores(host_cores, machine_limit(costs))
    if dpu_cores is not None:
        ranges.check("model_cores", dpu_cores, "--dpu-cores")
    profile = find_profile(dpu)
    candidates: list[Prediction] = []
    refused: dict[str, str] = {}
    for design in (row for row in DESIGNS.values() if row.is_compared):
        try:
            profile.check(design)
        except UsageError as error:
            refused[design.name] = str(error)
            continue
        candidates.append(simulate(costs, _point(design, costs, host_cores, dpu_cores, seed)))
    baseline = next(p for p in candidates if not _uses_dpu(p))
    fast = _best(candidates, _throughput_first)
    rate_mops = ONE_LOAD * min(p.throughput_mops for p in candidates)
    at_one_load = [
        simulate(costs, replace(_point_of(p, seed), rate_mops=rate_mops)) for p in candidates
    ]
    needed_mops = share * baseline.throughput_mops
    enough = [p for p in candidates if p.throughput_mops >= needed_mops]
    fewest = [_with_fewest_host_cores(costs, p, needed_mops, dpu_cores, seed) for p in enough]
    if host_cores is not None:
        enough = fewest
    lean = min(enough, key=_host_cores_first)
    return Recommendation(
        dpu,
        costs.source,
        baseline.design,
        share,
        tuple(candidates),
        tuple(at_one_load),
        _choice_fast(fast, candidates),
        _choice_quick("lowest latency at the peak", candidates),
        _choice_quick(f"lowest latency with {rate_mops:.1f} Mops for each", at_one_load),
        _choice_lean(lean, baseline, share),
        refused,
        (*_unused_cores(costs, candidates, host_cores, dpu_cores), *_notes(enough, fewest, lean)),
    )


def _point(
    design: Design, costs: Costs, host_cores: int | None, dpu_cores: int | None, seed: int
) -> Point:
    if host_cores is not None:
        limit = host_cores_limit(design, costs, _dpu_cores(costs, dpu_cores))
        host_cores = min(host_cores, limit.cores)
    return Point(design=design.name, dpu_cores=dpu_cores, host_cores=host_cores, seed=seed)


def _dpu_cores(costs: Costs, dpu_cores: int | None) -> int:
    return costs.dpu_cores if dpu_cores is None else dpu_cores


def _point_of(prediction: Prediction, seed: int) -> Point:
    """Return the point that a prediction is for, with its core counts made explicit."""
    return Point(
        design=prediction.design,
        dpu_cores=prediction.dpu_cores or None,
        host_cores=prediction.host_cores or None,
        seed=seed,
    )


def _best(candidates: list[Prediction], cost: Callable[[Prediction], float]) -> Prediction:
    """Return the candidate with the least cost; among those within ALIKE of it, the one with the
    fewest host cores.
    """
    least = min(cost(p) for p in candidates)
    alike = [p for p in candidates if cost(p) <= least + ALIKE * abs(least)]
    return min(alike, key=lambda p: (p.host_cores, cost(p)))


def _throughput_first(prediction: Prediction) -> float:
    return -prediction.throughput_mops


def _latency(prediction: Prediction) -> float:
    return prediction.latency_us["mean"]


def _choice_fast(best: Prediction, candidates: list[Prediction]) -> Choice:
    others = sorted((p for p in candidates if p is not best), key=_throughput_first)
    return Choice(
        "most throughput",
        best.design,
        best.host_cores,
        f"{best.throughput_mops:.1f} Mops, "
        f"{_against(others, best, lambda p: p.throughput_mops, '.1f')}; "
        f"{_limit(best)}; {others[0].design} is limited by its {_limit_name(others[0])}",
    )


def _choice_quick(question: str, candidates: list[Prediction]) -> Choice:
    """Return the candidate with the lowest mean latency.

    At the peak, latency also reflects the client's window, which differs between designs.
    """
    best = _best(candidates, _latency)
    others = sorted((p for p in candidates if p is not best), key=_latency)
    return Choice(
        question,
        best.design,
        best.host_cores,
        f"{_latency(best):.0f} us at {best.throughput_mops:.1f} Mops, "
        f"{_against(others, best, _latency, '.0f')}; {_limit(best)}",
    )


def _choice_lean(best: Prediction, baseline: Prediction, share: float) -> Choice:
    part = best.throughput_mops / baseline.throughput_mops
    saved = 1 - best.host_cores / baseline.host_cores if baseline.host_cores else 0.0
    return Choice(
        f"fewest host cores for {share:.0%} of {baseline.design}'s throughput",
        best.design,
        best.host_cores,
        f"{best.host_cores} instead of {baseline.host_cores} host cores "
        f"({saved:.1%} saved), {best.throughput_mops:.1f} Mops ({part:.0%}), "
        f"{best.latency_us['mean']:.0f} us against {baseline.latency_us['mean']:.0f}; "
        f"{_limit(best)}",
    )


def _against(
    others: list[Prediction], best: Prediction, value: Callable[[Prediction], float], form: str
) -> str:
    """Return the comparison of a candidate with the next two."""
    parts = []
    for other in others[:2]:
        ratio = value(best) / value(other)
        if abs(ratio - 1) <= ALIKE:
            fewer = other.host_cores - best.host_cores
            why = f", with {fewer} fewer host cores" if fewer > 0 else ""
            parts.append(f"equal to {other.design} within {ALIKE:.0%}{why}")
        else:
            parts.append(f"{ratio:.2f} times {other.design}'s {value(other):{form}}")
    return " and ".join(parts)


def _limit(prediction: Prediction) -> str:
    """Return the limiting resource with its peak utilisation, then the mean utilisations."""
    name = _limit_name(prediction)
    peak, average = prediction.peak_utilisation[name], prediction.utilisation[name]
    means = {name: average} if round(peak, 2) != round(average, 2) else {}
    means |= {other: part for other, part in prediction.utilisation.items() if other != name}
    busy = ", ".join(f"{resource} {part:.0%}" for resource, part in means.items() if part >= 0.005)
    rest = f" (on average {busy})" if busy else ""
    what = "busiest core of the " if name in ("host", "dpu") else ""
    return f"its {what}{name} is {peak:.0%} busy{rest}"


def _limit_name(prediction: Prediction) -> str:
    peak = prediction.peak_utilisation
    return max(peak, key=lambda name: peak[name])


def _uses_dpu(prediction: Prediction) -> bool:
    design = find_design(prediction.design)
    return "dpu" in (*design.communication, *design.processing)


def _host_cores_first(prediction: Prediction) -> tuple[int, float]:
    return (prediction.host_cores, -prediction.throughput_mops)


def _with_fewest_host_cores(
    costs: Costs, candidate: Prediction, needed_mops: float, dpu_cores: int | None, seed: int
) -> Prediction:
    """Return a candidate that reaches the throughput, with the fewest host cores that suffice."""
    found = {candidate.host_cores: candidate}

    def is_enough(count: int) -> bool:
        if count not in found:
            point = Point(design=candidate.design, dpu_cores=dpu_cores, host_cores=count, seed=seed)
            found[count] = simulate(costs, point)
        return found[count].throughput_mops >= needed_mops

    counts = range(1, candidate.host_cores + 1)
    place = bisect_left(counts, True, key=is_enough)
    return found[counts[place]] if counts else candidate


def _unused_cores(
    costs: Costs, candidates: list[Prediction], host_cores: int | None, dpu_cores: int | None
) -> list[str]:
    """Return a sentence for each design that cannot use all host cores of the machine."""
    if host_cores is None:
        return []
    notes = []
    for each in candidates:
        design = find_design(each.design)
        limit = host_cores_limit(design, costs, _dpu_cores(costs, dpu_cores))
        if each.host_cores < host_cores and design.has_native_threads:
            notes.append(
                f"{each.design} has {each.host_cores} of the {host_cores} host cores here: "
                f"{limit.reason}."
            )
    return notes


def _notes(enough: list[Prediction], fewest: list[Prediction], lean: Prediction) -> list[str]:
    """Return what to know about the design with the fewest host cores.

    `enough` reach the throughput, `fewest` are the same designs with no more host cores than that
    takes; both lists are the same where the machine's host cores are given.
    """
    notes = []
    if "dpu" in find_design(lean.design).processing:
        on_host = [p for p in enough if "dpu" not in find_design(p.design).processing]
        best = min(on_host, key=_host_cores_first)
        notes.append(
            f"{lean.design} keeps items in the DPU's memory; if they do not fit there, it is "
            f"{best.design} with {best.host_cores} host cores ({best.throughput_mops:.1f} Mops)."
        )
    row = find_design(lean.design)
    others = [p for p in fewest if find_design(p.design) is not row]
    fewer = min(others, key=_host_cores_first, default=lean)
    if _host_cores_first(fewer) < _host_cores_first(lean):
        notes.append(
            f"With other core counts than the paper's, the model has {fewer.design} reach that "
            f"with {fewer.host_cores} host cores ({fewer.throughput_mops:.1f} Mops); the paper did "
            f"not measure it."
        )
    return notes
