# SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
"""Comparisons of several runs on one load: all designs, and the switches of one design."""

import json
from pathlib import Path
from typing import Any

import pytest
from net.commands import SMALL, dpukv

from dpukv_xdp.bench import all_designs
from dpukv_xdp.bench.all_designs import ABLATIONS, run_ablations
from dpukv_xdp.bench.options import BenchOptions
from dpukv_xdp.topology.designs import DESIGNS
from dpukv_xdp.topology.schema import ServerConfig
from dpukv_xdp.wire import abi

pytestmark = pytest.mark.needs("live frames", "BPF run-time statistics")

COMPARED = [design.name for design in DESIGNS.values() if design.is_compared]


def compare(tmp_path: Path, *arguments: str) -> dict[str, Any]:
    """The JSON of a bench of several runs."""
    picture = () if "--ablate" in arguments else ("--output", str(tmp_path / "designs.png"))
    said = dpukv("bench", *SMALL, *picture, "--json", "-", *arguments)
    result: dict[str, Any] = json.loads(said.stdout)
    return result


def assert_healthy(run: dict[str, Any]) -> None:
    """Assert that every request was answered correctly and every cost is accounted for."""
    assert (run["corrupt"], run["lost"], run["misses"], run["refused"]) == (0, 0, 0, 0), run
    assert run["throughput_mops"] > 0
    assert run["load"]["lost"] == 0
    for role in ("client", "dpu", "host"):
        assert run["roles"][role]["cpu_ns_per_op"] >= 0
    assert run["cpu_method"]
    assert run["stage_method"]
    assert set(run["stages_ns_per_op"]) == {"dpu", "host"}
    for times in run["stages_ns_per_op"].values():
        assert set(times) == {stage.name.lower() for stage in abi.Stage}
    assert any(time for times in run["stages_ns_per_op"].values() for time in times.values())


def test_all_designs_on_the_same_load(tmp_path: Path) -> None:
    load = ["--dist", "zipf", "--workload", "A"]
    result = compare(tmp_path, "--design", "all", *load)
    assert [run["design"] for run in result["results"]] == COMPARED
    assert result["refused"] == {}
    assert Path(result["picture"]).stat().st_size > 10_000
    for run in result["results"]:
        assert_healthy(run)
        host_works = "host" in (
            *DESIGNS[run["design"]].communication,
            *DESIGNS[run["design"]].processing,
        )
        assert (run["roles"]["host"]["cores"] > 0) == host_works
        assert (run["host_core_usage"] > 0) == host_works


def test_what_is_emulated_is_labelled() -> None:
    run = json.loads(dpukv("bench", *SMALL, "--profile", "bf3", "--json", "-").stdout)
    assert_healthy(run)
    assert run["profile"] == "bf3"
    assert "emulated bf3" in run["emulation"]


SWITCHES = {
    "lat": ("one transfer for each request", "prepare before handing over"),
    "cpu-only": ("send before the next parse", "128 receive descriptors"),
}
"""Switches that no other test covers: --respond is in test_serve.py, transports are in
test_transports.py, --frames is in test_frames.py."""


@pytest.mark.parametrize("design", SWITCHES)
def test_switches_serve_as_well(design: str, monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = tuple(each for each in ABLATIONS if each.label in SWITCHES[design])
    monkeypatch.setattr(all_designs, "ABLATIONS", chosen)
    options = BenchOptions(keys=20_000, seconds=0.1)
    found = run_ablations(ServerConfig(design=design), options, lambda what, fraction: None)
    assert [run["label"] for run in found.runs] == ["as it is", *SWITCHES[design]]
    for run in found.runs:
        assert (run["corrupt"], run["misses"]) == (0, 0), run["label"]
        assert run["throughput_mops"] > 0


def test_a_design_without_switches_is_compared_with_nothing(tmp_path: Path) -> None:
    result = compare(tmp_path, "--design", "dpu-only", "--ablate")
    assert [run["label"] for run in result["results"]] == ["as it is"]


def test_more_and_more_keys(tmp_path: Path) -> None:
    """Measure on huge and on small pages; sizes that do not fit into memory are refused by name."""
    picture = tmp_path / "keys.png"
    said = dpukv(
        *("bench", "--key-counts", "1000,10000000000", "--seconds", "0.1"),
        *("--output", str(picture), "--json", "-"),
    )
    result = json.loads(said.stdout)
    runs = [(run["keys"], run["huge_pages"]) for run in result["results"]]
    assert runs == [(1000, True), (1000, False)]
    for run in result["results"]:
        assert (run["corrupt"], run["misses"]) == (0, 0)
        assert run["memory_bytes"]["server"] > 0
    assert len(result["refused"]) == 2
    assert all("of memory" in reason for reason in result["refused"].values())
    assert picture.stat().st_size > 10_000
    for wrong in ("1000,x", "", "0"):
        dpukv("bench", "--key-counts", wrong, status=2)


@pytest.mark.shares_cores
def test_what_excludes_one_another_is_said(tmp_path: Path) -> None:
    said = dpukv("bench", "--design", "all", "--ablate", status=2)
    assert "exclude one another" in said.stderr
    said = dpukv("bench", "--design", "all", "--target", "10.0.0.1:9800", status=2)
    assert "exclude one another" in said.stderr
    said = dpukv("bench", "--design", "none", status=2)
    assert ", ".join(DESIGNS) in said.stderr


@pytest.mark.shares_cores
def test_designs_are_explained_in_two_lines_each() -> None:
    lines = dpukv("designs").stdout.splitlines()
    assert len(lines) == 2 * len(DESIGNS)
    assert [line.split()[0] for line in lines[::2]] == list(DESIGNS)
    rows = json.loads(dpukv("designs", "--json", "-").stdout)
    assert [row["name"] for row in rows] == list(DESIGNS)
