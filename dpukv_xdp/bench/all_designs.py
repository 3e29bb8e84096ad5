# SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
"""Several runs on one load: all designs, ablations of one design, or growing numbers of keys."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec

from dpukv_xdp.base.errors import UsageError
from dpukv_xdp.bench.bench import Bench
from dpukv_xdp.bench.floor import for_each_count, measure_floor
from dpukv_xdp.bench.limits import Result
from dpukv_xdp.bench.options import BenchOptions, Progress
from dpukv_xdp.bench.runs import relative
from dpukv_xdp.topology import applies, validation
from dpukv_xdp.topology.designs import DESIGNS
from dpukv_xdp.topology.schema import ServerConfig


@dataclass(frozen=True, slots=True)
class Ablation:
    """A change of one setting that reverts an optimisation or a choice."""

    label: str
    changes: dict[str, Any]


ABLATIONS = (
    Ablation("one transfer for each request", {"transfer": "request"}),
    Ablation("prepare before handing over", {"prepare": "serial"}),
    Ablation("wait for each response", {"respond": "wait"}),
    Ablation("always 4 batches parked", {"respond": "pipeline", "depth": 4}),
    Ablation("always 24 batches parked", {"respond": "pipeline", "depth": 24}),
    Ablation("responses by the sender alone", {"respond": "sender"}),
    Ablation("requests by BPF ring buffer", {"transport": "ringbuf"}),
    Ablation("frames with records by AF_XDP", {"transport": "af_xdp"}),
    Ablation("send before the next parse", {"send": "before-parse"}),
    Ablation("whole frames by mapped ring", {"frames": "ring"}),
    Ablation("128 receive descriptors", {"rx_descriptors": 128}),
    Ablation("256 receive descriptors", {"rx_descriptors": 256}),
)
"""The paper's optimisations (section 4.3) and this system's choices, each reverted."""


@dataclass(slots=True)
class Comparison:
    """The runs of a comparison, and those that were refused."""

    runs: list[Result] = field(default_factory=list)
    refused: dict[str, str] = field(default_factory=dict)
    """The reason for each run that was refused, by its label."""


def run_designs(config: ServerConfig, options: BenchOptions, progress: Progress) -> Comparison:
    """Run every design that the paper compares, one after the other, each in a lab of its own.

    A design that the profile cannot run is named with the reason. Raises UsageError if none can.
    """
    configs, comparison = {}, Comparison()
    for design in (design for design in DESIGNS.values() if design.is_compared):
        candidate = msgspec.structs.replace(config, design=design.name)
        try:
            validation.check(candidate)
        except UsageError as error:
            comparison.refused[design.name] = str(error)
        else:
            configs[design.name] = candidate
    if not configs:
        raise UsageError("; ".join(comparison.refused.values()))
    _run_each(
        {name: (candidate, options) for name, candidate in configs.items()}, progress, comparison
    )
    return comparison


def run_ablations(config: ServerConfig, options: BenchOptions, progress: Progress) -> Comparison:
    """Run the configuration unchanged, then with each ablation that has an effect on it."""
    comparison = Comparison()
    configs = {"as it is": config}
    for ablation in ABLATIONS:
        candidate = msgspec.structs.replace(config, **ablation.changes)
        if not all(applies.has_effect(name, candidate) for name in ablation.changes):
            continue
        try:
            validation.check(candidate)
        except UsageError as error:
            comparison.refused[ablation.label] = str(error)
        else:
            configs[ablation.label] = candidate
    _run_each(
        {label: (candidate, options) for label, candidate in configs.items()}, progress, comparison
    )
    return comparison


def run_key_counts(
    config: ServerConfig, options: BenchOptions, counts: Sequence[int], progress: Progress
) -> Comparison:
    """Run the configuration with each number of keys, on huge pages and on small pages.

    A store that does not fit into memory is named with the reason. Raises UsageError if none fits.
    """
    runs, refused = for_each_count(config, options, counts)
    comparison = Comparison(refused=refused)
    _run_each(runs, progress, comparison)
    for run, (candidate, candidate_options) in zip(comparison.runs, runs.values(), strict=True):
        progress(f"{run['label']}: the machine's floor", 1.0)
        run["floor"] = measure_floor(candidate, candidate_options)
    return comparison


def _run_each(
    runs: dict[str, tuple[ServerConfig, BenchOptions]], progress: Progress, comparison: Comparison
) -> None:
    for done, (label, (config, options)) in enumerate(runs.items()):

        def step(what: str, fraction: float, label: str = label, done: int = done) -> None:
            progress(f"{label}: {what}", (done + fraction) / len(runs))

        step("starting", 0.0)
        cpus = os.sched_getaffinity(0)
        try:
            with Bench(config, options) as bench:
                config.placement().leave_host_cpus()
                load = bench.load_keys(options)
                result = bench.measure(options, step)
        finally:
            os.sched_setaffinity(0, cpus)  # what the next one's processes inherit
        comparison.runs.append(
            {"label": label, "huge_pages": config.huge_pages, **result, "load": load}
        )


def effects(runs: Sequence[Result]) -> list[tuple[str, float, float]]:
    """Return each run's label and its relative change of throughput and of the median round trip
    against the first run; NaN if that had no answer.
    """
    first = runs[0]
    return [
        (
            run["label"],
            relative(run["throughput_mops"], first["throughput_mops"]) - 1,
            relative(run["latency_us"]["p50"], first["latency_us"]["p50"]) - 1,
        )
        for run in runs
    ]
