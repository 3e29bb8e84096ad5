# SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
"""The experiments as data: the runs that each figure of the paper needs, and the paper's claims.

A plan is a TOML file in tools/experiments; `load_plans` reads them, `expand` makes runs of them.
Settings identify a run: two figures that need the same run share it.
"""

import hashlib
import itertools
import json
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal, get_args

import msgspec

from dpukv_xdp.base.errors import UsageError
from dpukv_xdp.base.places import PLANS_DIR

SIZES_NAME = "sizes.toml"
KEY_DIGITS = 16
"""Length of a run's key in hexadecimal digits."""
ALL = "all"

SWITCHES = ("rx_descriptors", "respond", "engines", "frames")
"""Settings that distinguish a run from the usual ones of its figure."""

Kind = Literal["bench", "peer", "transfer", "model"]
KINDS: tuple[Kind, ...] = get_args(Kind)
Drawing = Literal[
    "curves",
    "times",
    "bars",
    "stages",
    "clocks",
    "batch",
    "bytes",
    "transfers",
    "sweep",
    "scaling",
    "model-doors",
    "validation",
]
"""Names of drawings: the keys of plots.DRAWINGS."""
Reading = Literal["ratio", "reduction", "gain", "saved", "value"]
"""Form of the paper's value: a ratio; a percentage of reduction or of gain, compared as a ratio; a
percentage saved, compared as such; or a value that is no ratio.
"""

Settings = dict[str, Any]


class Size(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Length and number of the runs: a table of sizes.toml."""

    seconds: float
    """Seconds of each run."""
    repeats: int
    keys: int
    operations: int
    """Operations of each measurement of a hand-over."""
    summary: str


class RunSet(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Runs that are the product of some settings."""

    kind: Kind
    vary: dict[str, list[Any]]
    """Settings, by the names that ServerConfig, BenchOptions, TransferPlan and the models have."""
    smoke: dict[str, list[Any]] = {}
    """Replacements for values of `vary` in the smallest size."""
    only: list[str] = []
    """Sizes that have these runs; empty for all."""


class PaperPlace(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The place of a value in paper_results.csv."""

    metric: str
    dpu: str | None = None
    design: str | None = None
    workload: str | None = None
    figure_table: str | None = None
    over_design: str | None = None
    """The paper's name of the design that the value is divided by, if it is a ratio."""


class Panel(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A picture of a figure."""

    name: str
    draw: Drawing
    title: str
    where: dict[str, Any] = {}
    """Settings of the runs in it; a list allows each of its values."""
    split: list[str] = []
    """Settings with one set of axes for each value, side by side."""
    line: tuple[str, ...] = ("design",)
    """Settings that distinguish lines or bars."""
    across: str = "window"
    """The setting on the axis."""
    base: dict[str, Any] = {}
    """Settings of the runs to which the others are relative."""
    metrics: list[str] = []
    model: dict[str, Any] = {}
    """Settings of the model's runs whose curves are drawn beside ours."""
    log: bool = False


class Claim(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A statement of the paper, and our metric to compare with it."""

    name: str
    metric: str
    """A key of points.METRICS."""
    of: dict[str, Any]
    paper: PaperPlace | None = None
    over: dict[str, Any] = {}
    """Settings of the runs to which the metric is relative; empty for the metric itself."""
    over_metric: str = ""
    """The metric of those runs, if it differs."""
    over_paper: PaperPlace | None = None
    """A value of the paper to which the metric is relative."""
    shape: tuple[float, float] | None = None
    """Range that counts as agreement where the paper prints a shape instead of a number."""
    says: str = ""
    """The paper's words for the shape."""
    reading: Reading = "ratio"
    by_construction: bool = False
    """Whether our value follows from the assignment of cores: then it proves nothing."""
    up_to: bool = False
    """Whether the paper says "up to": then any value between it and 1 (or 0) agrees."""
    smaller: str = ""
    """Reason why our value is below the paper's range, if it is."""
    larger: str = ""
    """Reason why our value is above the paper's range, if it is."""
    again: list[dict[str, Any]] = []
    """Changes that make further claims of this one, about other runs."""


class Plan(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A figure or table of the paper."""

    id: str
    order: int
    title: str
    question: str
    method: str
    cannot: str
    """Limits of this machine."""
    runs: list[RunSet]
    panels: list[Panel]
    claims: list[Claim] = []
    paper_figures: list[str] = []
    """Prefixes of paper_results.csv's figure_table."""
    notes: list[str] = []


@dataclass(frozen=True, slots=True)
class Run:
    """A measurement in one of its repeats."""

    plans: tuple[str, ...]
    """Ids of all figures that need the run."""
    kind: Kind
    settings: Settings
    repeat: int

    @property
    def key(self) -> str:
        """Return the run's key: a hash of kind, settings and repeat."""
        return run_key(self.kind, self.settings, self.repeat)


def run_key(kind: str, settings: Mapping[str, Any], repeat: int) -> str:
    """Return the key of a run with these settings, in any order."""
    text = json.dumps([kind, dict(settings), repeat], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:KEY_DIGITS]


@cache
def load_plans() -> dict[str, Plan]:
    """Return every plan by its id, in the paper's order."""
    plans = [_read_plan(path) for path in sorted(PLANS_DIR.glob("*.toml")) if _is_plan(path)]
    return {plan.id: plan for plan in sorted(plans, key=lambda plan: plan.order)}


@cache
def load_sizes() -> dict[str, Size]:
    """Return the sizes, from the smallest."""
    sizes: dict[str, Size] = _read(PLANS_DIR / SIZES_NAME, dict[str, Size])
    return sizes


def find_plans(names: Sequence[str]) -> list[Plan]:
    """Return the plans of these names in the paper's order; no name, or `all`, means all.

    Raises UsageError for an unknown name.
    """
    plans = load_plans()
    for name in names:
        if name not in (*plans, ALL):
            raise UsageError(
                f"there is no figure {name!r} here: choose among {', '.join(plans)} or {ALL}"
            )
    if not names or ALL in names:
        return list(plans.values())
    return [plan for plan in plans.values() if plan.id in names]


def expand(plans: Sequence[Plan], size_name: str) -> list[Run]:
    """Return every run of these plans once, ordered by repeat.

    A model has no spread and runs once.
    """
    size = load_sizes()[size_name]
    found: dict[tuple[int, str], Run] = {}
    for plan in plans:
        for kind, settings in _points(plan, size_name, size):
            for repeat in range(1 if kind == "model" else size.repeats):
                key = repeat, run_key(kind, settings, repeat)
                before = found[key].plans if key in found else ()
                if plan.id not in before:
                    found[key] = Run((*before, plan.id), kind, settings, repeat)
    return sorted(found.values(), key=lambda run: run.repeat)


def matches(settings: Mapping[str, Any], where: Mapping[str, Any]) -> bool:
    """Return whether settings match `where`.

    A list allows each of its values, an empty text means that the setting is absent, and SWITCHES
    that `where` does not name must be absent.
    """
    wanted = {**dict.fromkeys(SWITCHES, ""), **where}
    return all(
        settings.get(name, "") in (value if isinstance(value, list) else [value])
        for name, value in wanted.items()
    )


def _points(plan: Plan, size_name: str, size: Size) -> Iterator[tuple[Kind, Settings]]:
    for runs in plan.runs:
        if runs.only and size_name not in runs.only:
            continue
        vary = runs.vary | (runs.smoke if size_name == next(iter(load_sizes())) else {})
        for values in itertools.product(*vary.values()):
            yield runs.kind, _sized(runs.kind, dict(zip(vary, values, strict=True)), size)


def _sized(kind: Kind, settings: Settings, size: Size) -> Settings:
    if kind == "transfer":
        return {**settings, "operations": size.operations}
    if kind == "model":
        return settings
    return {"keys": size.keys, "seconds": size.seconds, **settings}


def _is_plan(path: Path) -> bool:
    return path.name != SIZES_NAME


def _read_plan(path: Path) -> Plan:
    """Return a plan in which every `again` is a claim of its own. Raises UsageError."""
    plan: Plan = _read(path, Plan)
    claims: list[Claim] = []
    for claim in plan.claims:
        own = {**msgspec.to_builtins(claim), "again": []}
        claims += [_converted(path, {**own, **changes}, Claim) for changes in ({}, *claim.again)]
    return msgspec.structs.replace(plan, claims=claims)


def _read(path: Path, kind: Any) -> Any:
    try:
        return _converted(path, tomllib.loads(path.read_text(encoding="utf-8")), kind)
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}") from error
    except tomllib.TOMLDecodeError as error:
        raise UsageError(f"{path}: {error}") from error


def _converted(path: Path, content: Any, kind: Any) -> Any:
    try:
        return msgspec.convert(content, kind)
    except msgspec.ValidationError as error:
        raise UsageError(f"{path}: {error}") from error
