# SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
"""The runs that make up a comparison, and its table; no server is built here."""

import io
from pathlib import Path
from types import TracebackType
from typing import Any

import msgspec
import pytest
from rich.console import Console

from dpukv_xdp.bench import all_designs
from dpukv_xdp.bench.all_designs import ABLATIONS, Ablation, effects, run_ablations, run_designs
from dpukv_xdp.bench.options import BenchOptions, Progress
from dpukv_xdp.report.figures import plot_designs
from dpukv_xdp.report.tables import ablations_table
from dpukv_xdp.topology.designs import DESIGNS
from dpukv_xdp.topology.schema import ServerConfig

COMPARED = [design.name for design in DESIGNS.values() if design.is_compared]


class FakeBench:
    """A bench whose results have one more run each time."""

    runs = 0

    def __init__(self, config: ServerConfig, options: BenchOptions) -> None:
        self.config = config

    def __enter__(self) -> "FakeBench":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        pass

    def load_keys(self, options: BenchOptions) -> dict[str, float]:
        return {}

    def measure(self, options: BenchOptions, progress: Progress) -> dict[str, Any]:
        FakeBench.runs += 1
        return {
            "config": self.config,
            "design": self.config.design,
            "workload": "B",
            "distribution": "uniform",
            "keys": 1000,
            "key_size": 8,
            "value_size": 8,
            "requests_per_packet": 45,
            "window": 64,
            "rate": None,
            "emulation": "",
            "throughput_mops": 10.0 * FakeBench.runs,
            "latency_us": {"p50": 10.0, "p99": 20.0},
            "lost": 0,
        }


@pytest.fixture(autouse=True)
def fake_bench(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(all_designs, "Bench", FakeBench)
    monkeypatch.setattr(FakeBench, "runs", 0)


def nothing(what: str, fraction: float) -> None:
    """Ignore progress."""


def undoes_something(ablation: Ablation, config: ServerConfig) -> bool:
    """By the design's columns: switches are on XDP's way to the host, or at a host's door."""
    design = config.row()
    if {"send", "frames", "rx_descriptors"} & set(ablation.changes):
        return "host" in design.communication
    return "dpu" in design.communication and design.processing_of("dpu") == "host"


@pytest.mark.parametrize("design", COMPARED)
def test_every_switch_that_applies_is_undone_once(design: str) -> None:
    config = ServerConfig(design=design)
    found = run_ablations(config, BenchOptions(), nothing)
    expected = [each for each in ABLATIONS if undoes_something(each, config)]
    assert [run["label"] for run in found.runs] == ["as it is", *(each.label for each in expected)]
    assert found.runs[0]["config"] == config
    for run, ablation in zip(found.runs[1:], expected, strict=True):
        assert run["config"] == msgspec.structs.replace(config, **ablation.changes) != config


def test_the_table_has_every_switch_with_its_effect() -> None:
    runs = run_ablations(ServerConfig(design="lat"), BenchOptions(), nothing).runs
    assert effects(runs)[1] == (runs[1]["label"], 1.0, 0.0)
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(ablations_table(runs))
    said = console.export_text()
    assert "+100%" in said
    for run in runs:
        assert run["label"] in said


def test_a_first_run_without_an_answer_is_no_base(tmp_path: Path) -> None:
    """As on a machine whose cores other programs have for the whole of a short run."""
    runs = run_ablations(ServerConfig(design="lat"), BenchOptions(), nothing).runs
    runs[0] |= {"throughput_mops": 0.0, "latency_us": {"p50": 0.0, "p99": 0.0}}
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(ablations_table(runs))
    assert "nan" not in console.export_text()
    bars = [run | {"roles": {"host": {"cores": 1.0}}, "host_core_usage": 0.5} for run in runs]
    plot_designs(bars, tmp_path / "designs.png")
    assert (tmp_path / "designs.png").stat().st_size > 10_000


def test_a_profile_names_what_it_cannot_run() -> None:
    found = run_designs(ServerConfig(profile="bf3"), BenchOptions(), nothing)
    doors = {name: len(DESIGNS[name].communication) for name in COMPARED}
    assert set(found.refused) == {name for name, count in doors.items() if count > 1}
    assert all("DPU mode" in reason for reason in found.refused.values())
    assert [run["label"] for run in found.runs] == [n for n in COMPARED if n not in found.refused]
