# SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
"""The experiments as data: which runs each figure of the paper needs, and what it is held against.

A plan is a TOML file in tools/experiments; `load_plans` reads them, `expand` makes runs of them.
Runs are known by their settings: two figures that need the same run share it.
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
"""Of a run's key, hexadecimal."""
ALL = "all"

SWITCHES = ("rx_descriptors", "respond", "engines", "frames")
"""Settings that make a run another one than its figure's usual."""

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
"""How the paper prints a ratio: itself; as percent of less or of more, which are compared as
ratios; as percent of less that are compared as such. Or no ratio.
"""

Settings = dict[str, Any]


class Size(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How long and how often everything runs: a table of sizes.toml."""

    seconds: float
    """Of each run."""
    repeats: int
    keys: int
    operations: int
    """Of each measurement of a hand-over."""
    summary: str


class RunSet(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Runs that are the product of some settings."""

    kind: Kind
    vary: dict[str, list[Any]]
    """Settings, by the names that ServerConfig, BenchOptions, TransferPlan and the models have."""
    smoke: dict[str, list[Any]] = {}
    """What `vary` is instead, in the smallest size."""
    only: list[str] = []
    """Sizes that have these runs at all; all if empty."""


class PaperPlace(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Where a value stands in paper_results.csv."""

    metric: str
    dpu: str | None = None
    design: str | None = None
    workload: str | None = None
    figure_table: str | None = None
    over_design: str | None = None
    """The value is a ratio: over that of another design, by the paper's name."""


class Panel(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One picture."""

    name: str
    draw: Drawing
    title: str
    where: dict[str, Any] = {}
    """Settings of the runs in it; a list allows each of its values."""
    split: list[str] = []
    """Settings that have a picture of their own for each value, side by side."""
    line: tuple[str, ...] = ("design",)
    """Settings that make a line, or a bar."""
    across: str = "window"
    """The setting on the axis."""
    base: dict[str, Any] = {}
    """The runs that the others are relative to."""
    metrics: list[str] = []
    model: dict[str, Any] = {}
    """The settings of the model's runs whose curves are beside ours."""
    log: bool = False


class Claim(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What the paper says, and what we hold against it."""

    name: str
    metric: str
    """A key of points.METRICS."""
    of: dict[str, Any]
    paper: PaperPlace | None = None
    over: dict[str, Any] = {}
    """The runs that it is relative to; empty for the metric itself."""
    over_metric: str = ""
    """Of those, if it is another one."""
    over_paper: PaperPlace | None = None
    """A value of the paper that it is relative to."""
    shape: tuple[float, float] | None = None
    """Where the paper prints a shape instead of a number: what counts as such."""
    says: str = ""
    """The paper's words for that."""
    reading: Reading = "ratio"
    by_construction: bool = False
    """Ours follows from where cores are, and is not measured: it neither agrees nor differs."""
    up_to: bool = False
    """The paper says "up to": whatever is between it and 1 (or 0) agrees."""
    smaller: str = ""
    """Why ours is below the paper's range, if it is."""
    larger: str = ""
    """Why ours is above it, if it is."""
    again: list[dict[str, Any]] = []
    """What is different where the same is held against other runs: one more claim for each."""


class Plan(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One figure or table."""

    id: str
    order: int
    title: str
    question: str
    method: str
    cannot: str
    """What this machine cannot show."""
    runs: list[RunSet]
    panels: list[Panel]
    claims: list[Claim] = []
    paper_figures: list[str] = []
    """Prefixes of paper_results.csv's figure_table."""
    notes: list[str] = []


@dataclass(frozen=True, slots=True)
class Run:
    """One measurement of one repeat."""

    plans: tuple[str, ...]
    """Of all figures that need it."""
    kind: Kind
    settings: Settings
    repeat: int

    @property
    def key(self) -> str:
        """What it is known by: the settings, and which repeat."""
        return run_key(self.kind, self.settings, self.repeat)


def run_key(kind: str, settings: Mapping[str, Any], repeat: int) -> str:
    """The key of a run with these settings, however they are ordered."""
    text = json.dumps([kind, dict(settings), repeat], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:KEY_DIGITS]


@cache
def load_plans() -> dict[str, Plan]:
    """Every plan by its name, in the paper's order."""
    plans = [_read_plan(path) for path in sorted(PLANS_DIR.glob("*.toml")) if _is_plan(path)]
    return {plan.id: plan for plan in sorted(plans, key=lambda plan: plan.order)}


@cache
def load_sizes() -> dict[str, Size]:
    """The sizes, from the smallest."""
    sizes: dict[str, Size] = _read(PLANS_DIR / SIZES_NAME, dict[str, Size])
    return sizes


def find_plans(names: Sequence[str]) -> list[Plan]:
    """The plans of these names in the paper's order; none, or `all`, means all of them."""
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
    """Every run of these plans, each once, all of the first repeat first.

    A model has no spread and is asked once.
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
    """Whether settings are what is asked for: a list allows each of its values, an empty text means
    that there is no such setting, and SWITCHES that are not asked for must not be set.
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
    """A plan in which every `again` is a claim of its own."""
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
