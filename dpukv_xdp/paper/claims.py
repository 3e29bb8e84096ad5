# SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
"""The paper's claims held against the measured points.

A claim compares a metric, or the ratio of two, with a range that the paper prints, load by load.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from dpukv_xdp.base.errors import UsageError
from dpukv_xdp.model.paper_values import paper_range
from dpukv_xdp.paper.plans import Claim, PaperPlace
from dpukv_xdp.paper.points import Point, Points, Spread, without
from dpukv_xdp.paper.words import text_of_range, text_of_spread

Verdict = Literal["within", "same way", "other way", "none", "above", "below", "open"]
Bound = Literal["", "at least", "at most"]
TOLERANCE = 0.02
"""Relative distance from the paper's range up to which a value counts as within it."""
NAMES_OF_LOADS = ("profile", "workload", "distribution")
"""Settings that distinguish the loads of a claim."""
LOAD_OF_BOTH = ("workload", "distribution", "model", "dpu")
"""Settings that both points of a ratio share."""


RATIOS = ("ratio", "reduction", "gain")
"""Readings whose value is a ratio."""
VERDICTS: dict[Verdict, str] = {
    "within": "agrees",
    "same way": "in the same direction",
    "other way": "the other way round",
    "none": "no difference here",
    "above": "above",
    "below": "below",
    "open": "undecided, as the curve ends first",
}
"""Each verdict in words."""


@dataclass(frozen=True, slots=True)
class Load:
    """A claim under one load."""

    name: str
    spread: Spread
    """The median over the rounds, and their range."""
    bound: Bound
    verdict: Verdict

    def text(self) -> str:
        """Return the load's name and median, with the range of its rounds if they differ."""
        return f"{self.name} {self.bound} {text_of_spread(self.spread)}".replace("  ", " ").strip()


@dataclass(frozen=True, slots=True)
class Finding:
    """A claim beside the measured values."""

    claim: Claim
    loads: tuple[Load, ...]
    """At least one."""
    paper: tuple[float, float]
    where: str

    @property
    def ours(self) -> tuple[float, float]:
        """Return the least and the greatest of the loads' medians."""
        medians = [load.spread.median for load in self.loads]
        return min(medians), max(medians)

    @property
    def agrees(self) -> bool:
        """Return whether the claim holds under every load."""
        return all(load.verdict == "within" for load in self.loads)

    @property
    def is_ratio(self) -> bool:
        """Return whether the value is a ratio."""
        return self.claim.reading in RATIOS

    def found(self) -> str:
        """Return our range as text, without a unit."""
        bounds = dict.fromkeys(load.bound for load in self.loads if load.bound)
        return f"{' or '.join(bounds)} {text_of_range(self.ours)}".strip()

    def printed(self) -> str:
        """Return the paper's value as text, in the same terms as ours."""
        if self.claim.says:
            return self.claim.says
        limit = "down to " if self.is_ratio and self.paper[1] < 1 else "up to "
        return f"{limit if self.claim.up_to else ''}{text_of_range(self.paper)}"

    def verdict(self) -> str:
        """Return the verdict in words; for several loads, how many have each verdict."""
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
        """Return the finding as a sentence without a full stop."""
        unit = " times" if self.is_ratio else "%" if self.claim.reading == "saved" else ""
        printed = f"{self.printed()}{'' if self.claim.says else unit}"
        found = f"{self.claim.name}: {self.found()}{unit} here, {printed} in the paper"
        if self.agrees and len(self.loads) == 1:
            return found
        return f"{found}, {self.verdict()}{self._why()}"

    def _why(self) -> str:
        """Return the plan's reasons for values below and above the paper's range."""
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
    """Return the finding for a claim; None if its runs are missing."""
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
    """Return the claim's value at a point, and whether it is only a bound."""
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
    """Return the point whose metric divides the claim's metric, or None."""
    load = {name: point.settings[name] for name in LOAD_OF_BOTH if name in point.settings}
    return next(iter(_at_peak(points.where({**load, **claim.over}))), None)


def _at_peak(found: Sequence[Point]) -> list[Point]:
    """Return the points with the largest window among those that differ in the window only."""
    best: dict[str, Point] = {}
    for point in found:
        name = repr(sorted(without(point.settings, "window").items()))
        before = best.get(name)
        if before is None or point.settings.get("window", 0) > before.settings.get("window", 0):
            best[name] = point
    return list(best.values())


def _paper_ends(claim: Claim) -> tuple[tuple[float, float], str]:
    """Return the paper's range, with percentages of more and less as ratios, and its place."""
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
    """Return the verdict for one load.

    A ratio has a direction, above or below 1, if the paper's whole range lies on that side.
    """
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
