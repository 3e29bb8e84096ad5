# SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
"""Recommendations: with the paper's costs they are the paper's (sections 6.2 and 6.3)."""

import json
from dataclasses import replace
from functools import cache

import pytest
from click.testing import CliRunner

from dpukv_xdp import cli_model
from dpukv_xdp.errors import UsageError
from dpukv_xdp.model_costs import costs_from_paper
from dpukv_xdp.recommend import Recommendation, recommend


@cache
def of_paper(dpu: str, workload: str = "C") -> Recommendation:
    """With the paper's costs."""
    return recommend(costs_from_paper(dpu, workload), dpu)


@pytest.mark.parametrize("workload", ["A", "B", "C"])
def test_on_bluefield_2_it_is_shrd_for_throughput_and_dual_for_few_host_cores(
    workload: str,
) -> None:
    found = of_paper("bf2", workload)
    assert found.most_throughput.design == "shrd"
    assert found.fewest_host_cores.design == "dual"
    assert found.fewest_host_cores.host_cores == 3
    assert "62.5% saved" in found.fewest_host_cores.reason
    assert found.lowest_latency.design in ("lat", "sav")
    assert not found.refused


@pytest.mark.parametrize("workload", ["B", "C"])
def test_on_bluefield_3_it_is_lat_for_throughput_and_latency(workload: str) -> None:
    """With A the model has lat and dpu-only within 1 % of each other."""
    found = of_paper("bf3", workload)
    assert found.most_throughput.design == "lat"
    assert found.lowest_latency.design == "lat"
    assert set(found.refused) == {"dual", "shrd"}


def test_a_store_on_the_dpu_is_said_to_need_its_memory() -> None:
    found = of_paper("bf3")
    assert found.fewest_host_cores.design == "dpu-only"
    assert any("do not fit there" in note and "lat" in note for note in found.notes)


def test_what_the_paper_did_not_measure_is_called_so() -> None:
    found = of_paper("bf2")
    assert any("did not measure" in note for note in found.notes)


def test_fewer_cores_at_hand_are_respected() -> None:
    found = recommend(costs_from_paper("bf2"), "bf2", host_cores=2, dpu_cores=4)
    assert all(candidate.host_cores <= 2 for candidate in found.candidates)
    assert all(candidate.dpu_cores in (0, 4) for candidate in found.candidates)


def test_a_share_that_nobody_reaches_is_said() -> None:
    found = recommend(costs_from_paper("bf2"), "bf2", share=2.0)
    assert "no design reaches 200%" in found.fewest_host_cores.reason


def test_an_expensive_bus_makes_it_choose_otherwise() -> None:
    costs = costs_from_paper("bf3")
    slow = replace(costs, bus=replace(costs.bus, latency_us=100.0))
    assert recommend(slow, "bf3").most_throughput.design == "dpu-only"


@pytest.mark.parametrize("options", [{"share": 0.0}, {"host_cores": 0}, {"dpu_cores": 0}])
def test_nonsense_is_refused(options: dict[str, float]) -> None:
    with pytest.raises(UsageError):
        recommend(costs_from_paper("bf2"), "bf2", **options)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--dpu", "bf3"], ("most throughput: lat", "lowest latency at the peak: lat")),
        (["--dpu", "bf2"], ("most throughput: shrd", "fewest host cores", "dual")),
    ],
)
def test_the_command_says_it(arguments: list[str], words: tuple[str, ...]) -> None:
    result = CliRunner().invoke(cli_model.recommend, arguments, catch_exceptions=False)
    assert result.exit_code == 0
    assert all(word in result.output for word in words)


def test_the_model_s_command_prints_a_point_a_curve_and_json(tmp_path: object) -> None:
    runner = CliRunner()
    asked = ["--design", "lat", "--dpu-cores", "8", "--host-cores", "8", "--dpu", "bf3"]
    result = runner.invoke(cli_model.model, asked, catch_exceptions=False)
    assert "lat" in result.output
    result = runner.invoke(cli_model.model, [*asked, "--json", "-"], catch_exceptions=False)
    (point,) = json.loads(result.output)["points"]
    assert point["host_cores"] == point["dpu_cores"] == 8
    picture = f"{tmp_path}/curve.png"
    curve = ["--design", "all", "--sweep", "host-cores", "--host-cores", "2", "--output", picture]
    result = runner.invoke(cli_model.model, curve, catch_exceptions=False)
    assert picture in result.output.replace("\n", "")
    result = runner.invoke(cli_model.model, ["--fits"], catch_exceptions=False)
    assert "host_request_ns_C" in result.output


def test_the_model_s_command_refuses_what_a_dpu_cannot_run() -> None:
    runner = CliRunner()
    for arguments in (
        ["--design", "shrd", "--dpu", "bf3"],
        ["--dpu", "local"],
        ["--figure12", "--dpu", "local"],
        ["--output", "curve.png"],
        ["--sweep", "load", "--output", "curve.txt"],
    ):
        result = runner.invoke(cli_model.model, arguments)
        assert isinstance(result.exception, UsageError), arguments
