# SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
"""Recommend a design by the model, with the numbers behind the choice.

Every design that the paper evaluates gets the cores that the paper gives it (section 6.1), as far
as the machine has them. The paper's guidance is in sections 6.2 and 6.3.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any

from dpukv_xdp.base.errors import UsageError
from dpukv_xdp.model.costs import Costs
from dpukv_xdp.model.model import Point, Prediction, default_host_cores, simulate
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

    `host_cores` and `dpu_cores` are what the machine has. Raises UsageError if there is no core.
    """
    if not 0 < share <= 2:
        raise UsageError(f"a share of {share:g} of the throughput is not above 0 and up to 2")
    if min(host_cores or 1, dpu_cores or 1) < 1 or host_cores == 0:
        raise UsageError("a recommendation needs at least one host core and one DPU core")
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
    enough = [p for p in candidates if p.throughput_mops >= share * baseline.throughput_mops]
    lean = min(enough or [fast], key=lambda p: (p.host_cores, -p.throughput_mops))
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
        tuple(_notes(costs, candidates, lean, baseline, share, host_cores, dpu_cores, seed)),
    )


def _point(
    design: Design, costs: Costs, host_cores: int | None, dpu_cores: int | None, seed: int
) -> Point:
    wanted = default_host_cores(design, costs, dpu_cores or costs.dpu_cores)
    return Point(
        design=design.name,
        dpu_cores=dpu_cores,
        host_cores=wanted if host_cores is None else min(wanted, host_cores),
        seed=seed,
    )


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
    enough = "" if part >= share else f"no design reaches {share:.0%}; this one has the most: "
    return Choice(
        f"fewest host cores for {share:.0%} of {baseline.design}'s throughput",
        best.design,
        best.host_cores,
        f"{enough}{best.host_cores} instead of {baseline.host_cores} host cores "
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


def _notes(
    costs: Costs,
    candidates: list[Prediction],
    lean: Prediction,
    baseline: Prediction,
    share: float,
    host_cores: int | None,
    dpu_cores: int | None,
    seed: int,
) -> list[str]:
    notes = []
    if "dpu" in find_design(lean.design).processing:
        on_host = [
            p
            for p in candidates
            if p.throughput_mops >= share * baseline.throughput_mops
            and "dpu" not in find_design(p.design).processing
        ]
        best = min(on_host, key=lambda p: (p.host_cores, -p.throughput_mops), default=None)
        instead = (
            f"{best.design} with {best.host_cores} host cores ({best.throughput_mops:.1f} Mops)"
            if best
            else "no design"
        )
        notes.append(
            f"{lean.design} keeps items in the DPU's memory; if they do not fit there, it is "
            f"{instead}."
        )
    fewer = _fewer_cores(costs, candidates, lean, baseline, share, host_cores, dpu_cores, seed)
    if fewer is not None:
        notes.append(
            f"With other core counts than the paper's, the model has {fewer.design} reach that "
            f"with {fewer.host_cores} host cores ({fewer.throughput_mops:.1f} Mops); the paper did "
            f"not measure it."
        )
    return notes


def _fewer_cores(
    costs: Costs,
    candidates: list[Prediction],
    lean: Prediction,
    baseline: Prediction,
    share: float,
    host_cores: int | None,
    dpu_cores: int | None,
    seed: int,
) -> Prediction | None:
    """A design that does with fewer host cores, or with as many and more throughput."""
    found = []
    most = min(lean.host_cores, host_cores or lean.host_cores)
    for candidate in (each for each in candidates if each is not lean):
        for count in range(1, min(most, candidate.host_cores) + 1):
            point = Point(design=candidate.design, dpu_cores=dpu_cores, host_cores=count, seed=seed)
            prediction = simulate(costs, point)
            if prediction.throughput_mops >= share * baseline.throughput_mops:
                found.append(prediction)
                break
    best = min(found, key=lambda p: (p.host_cores, -p.throughput_mops), default=None)
    if best is None or (best.host_cores, -best.throughput_mops) >= (
        lean.host_cores,
        -lean.throughput_mops,
    ):
        return None
    return best
