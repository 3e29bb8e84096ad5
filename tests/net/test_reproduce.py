# SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
"""`dpukv reproduce` from the command to the report, with real runs of two figures."""

import json
from pathlib import Path
from typing import Any

import pytest
from net.commands import dpukv, started, wait_for

from dpukv_xdp.base.patience import patient

pytestmark = pytest.mark.needs("live frames", "BPF run-time statistics")

FIGURES = ("fig8", "fig9")


def lines(output: Path) -> list[dict[str, Any]]:
    path = output / "runs.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """Return the folder of a reproduction of both figures, and the command's output."""
    output = tmp_path_factory.mktemp("measured")
    return output, dpukv("reproduce", *FIGURES, "--smoke", "--output", str(output)).stdout


def test_two_figures_from_runs_to_report(measured: tuple[Path, str]) -> None:
    output, said = measured
    found = lines(output)
    assert f"{len(found)} of {len(found)} runs measured" in said
    assert {plan for line in found for plan in line["plans"]} == set(FIGURES)
    for line in found:
        assert "result" in line, line
        assert line["machine"]["kernel"]
        assert line["version"]
        assert line["size"] == "smoke"
    stores = [line["result"] for line in found if line["kind"] == "bench"]
    assert all((run["corrupt"], run["misses"], run["refused"]) == (0, 0, 0) for run in stores)
    page = (output / "report.html").read_text()
    assert page.count("<img ") == 2
    # Measured: the bytes of a GET's request in full batches of records.
    assert "32.0" in page
    assert (output / "report.md").read_text().count("## Figure") == 2


def test_runs_that_are_there_are_kept(measured: tuple[Path, str]) -> None:
    output, _ = measured
    before = lines(output)
    again = ["reproduce", *FIGURES, "--smoke", "--output", str(output)]
    assert "--resume" in dpukv(*again, status=2).stderr
    assert dpukv(*again, "--resume").stdout.startswith("0 of ")
    assert lines(output) == before


def test_ctrl_c_keeps_what_was_measured(tmp_path: Path) -> None:
    with started("reproduce", "fig8", "--smoke", "--output", str(tmp_path)) as process:
        wait_for(lambda: lines(tmp_path))
        process.terminate()
        _, said = process.communicate(timeout=patient(60))
    kept = lines(tmp_path)
    assert "interrupted" in said
    assert kept
    dpukv("reproduce", "fig8", "--smoke", "--output", str(tmp_path), "--resume")
    assert lines(tmp_path)[: len(kept)] == kept
    assert all("result" in line for line in lines(tmp_path))


@pytest.mark.shares_cores
def test_an_unknown_figure_is_refused(tmp_path: Path) -> None:
    said = dpukv("reproduce", "fig7", "--output", str(tmp_path / "new"), status=2)
    assert "fig11" in said.stderr
    assert not (tmp_path / "new").exists()
