# SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
"""Recommendations: with the paper's costs they agree with the paper (sections 6.2 and 6.3)."""

import json
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from dpukv_xdp.base.errors import OptionError, UsageError
from dpukv_xdp.cli import model
from dpukv_xdp.model import world
from dpukv_xdp.model.cost_files import MEASURED_PATH, find_costs, read_results
from dpukv_xdp.model.costs import Costs
from dpukv_xdp.model.model import Point, Prediction, simulate, sweep
from dpukv_xdp.model.paper_costs import costs_from_paper
from dpukv_xdp.model.recommend import Recommendation, _choice_quick, _limit, recommend
from dpukv_xdp.paper.reproduce import expand, find_plans, gives_costs


def of_paper(dpu: str, workload: str = "C") -> Recommendation:
    """Return the recommendation with the paper's costs, computed once for all tests."""
    return _of_paper(dpu, workload)


@cache  # of both arguments: to a cache, one that is left out is another than its default
def _of_paper(dpu: str, workload: str) -> Recommendation:
    return recommend(costs_from_paper(dpu, workload), dpu)


@pytest.fixture
def few_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    """Simulate a tenth of the batches, for tests that look at no rate or time."""
    for name in ("WARM_UP_BATCHES", "BLOCK_BATCHES"):
        monkeypatch.setattr(world, name, getattr(world, name) // 10)


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


@pytest.mark.parametrize("workload", ["A", "B", "C"])
def test_on_bluefield_3_it_is_lat_for_throughput_and_latency(workload: str) -> None:
    found = of_paper("bf3", workload)
    assert found.most_throughput.design == "lat"
    assert found.lowest_latency.design == "lat"
    assert set(found.refused) == {"dual", "shrd"}


def prediction(design: str, mops: float, mean_us: float, **changes: Any) -> Prediction:
    """Return a prediction as simulate() does."""
    found = simulate(costs_from_paper("bf2"), Point(design=design))
    latency = {"mean": mean_us, "p50": mean_us, "p99": mean_us}
    return replace(found, throughput_mops=mops, latency_us=latency, **changes)


def test_a_design_that_is_as_good_with_fewer_host_cores_is_called_so() -> None:
    candidates = [
        prediction("sav", 20.0, 60.4),
        prediction("lat", 20.0, 60.0),
        prediction("dpu-only", 17.0, 80.0),
    ]
    choice = _choice_quick("lowest latency", candidates)
    assert choice.design == "sav"
    assert "equal to lat within 1%, with 7 fewer host cores" in choice.reason
    assert "0.76 times dpu-only's 80" in choice.reason


def test_the_busiest_core_is_named_and_not_the_mean() -> None:
    """dual's spare host cores are saturated, its main one is not."""
    dual = of_paper("bf2").candidates[-2]
    assert dual.design == "dual"
    assert dual.utilisation["host"] < 0.9 < dual.peak_utilisation["host"]
    assert dual.bottleneck == "host"
    assert "busiest core of the host is 100% busy (on average host 8" in _limit(dual)


def test_latencies_are_compared_at_one_load_too() -> None:
    """At the peak, each design has a different load."""
    found = of_paper("bf2")
    rates = {prediction.rate_mops for prediction in found.at_one_load}
    assert len(rates) == 1
    assert rates.pop() == pytest.approx(0.5 * min(p.throughput_mops for p in found.candidates))
    assert not any(prediction.is_saturated for prediction in found.at_one_load)
    best = min(found.at_one_load, key=lambda p: p.latency_us["mean"])
    chosen = next(
        p for p in found.at_one_load if p.design == found.lowest_latency_at_one_load.design
    )
    assert chosen.latency_us["mean"] <= 1.01 * best.latency_us["mean"]
    assert found.choices()[2] is found.lowest_latency_at_one_load


def test_a_store_on_the_dpu_is_said_to_need_its_memory() -> None:
    found = of_paper("bf3")
    assert found.fewest_host_cores.design == "dpu-only"
    assert any("do not fit there" in note and "lat" in note for note in found.notes)


def test_what_the_paper_did_not_measure_is_called_so() -> None:
    found = of_paper("bf2")
    assert any("did not measure" in note for note in found.notes)


@pytest.mark.usefixtures("few_batches")
def test_fewer_cores_at_hand_are_respected() -> None:
    found = recommend(costs_from_paper("bf2"), "bf2", host_cores=2, dpu_cores=4)
    assert all(candidate.host_cores <= 2 for candidate in found.candidates)
    assert all(candidate.dpu_cores in (0, 4) for candidate in found.candidates)


def cores(found: Recommendation) -> dict[str, int]:
    """The host cores of each design that is compared."""
    return {each.design: each.host_cores for each in found.candidates}


@cache
def committed() -> Costs:
    return find_costs("committed", "local", "C")


@pytest.mark.usefixtures("few_batches")
@pytest.mark.parametrize(("host_cores", "dpu_cores"), [(1, 1), (2, 3), (4, 1), (4, 8), (12, 8)])
@pytest.mark.parametrize("source", ["paper", "committed"])
def test_every_design_has_the_machine_s_cores_as_far_as_it_can_use_them(
    source: str, host_cores: int, dpu_cores: int
) -> None:
    """`--host-cores 4` once compared lat on 4 cores with cpu-only on 1."""
    costs = committed() if source == "committed" else costs_from_paper("bf2")
    dpu = "local" if source == "committed" else "bf2"
    found = recommend(costs, dpu, host_cores=host_cores, dpu_cores=dpu_cores)
    assert cores(found) == {
        "cpu-only": host_cores,
        "dpu-only": 0,
        "lat": min(host_cores, dpu_cores),
        "sav": 1,
        "dual": host_cores,
        "shrd": host_cores,
    }
    told = [note for note in found.notes if "of the" in note and "host cores here" in note]
    assert len(told) == (host_cores > 1) + (host_cores > dpu_cores)
    assert all(f"of the {host_cores} host cores" in note for note in told)


@pytest.mark.usefixtures("few_batches")
@pytest.mark.parametrize(("host_cores", "is_refused"), [(11, False), (12, False), (13, True)])
def test_more_host_cores_than_the_costs_have_threads_are_refused(
    host_cores: int, is_refused: bool
) -> None:
    """The paper's host has 12 hardware threads."""
    for compute in (
        lambda: recommend(costs_from_paper("bf2"), "bf2", host_cores=host_cores),
        lambda: simulate(costs_from_paper("bf2"), Point(design="cpu-only", host_cores=host_cores)),
    ):
        if is_refused:
            with pytest.raises(OptionError, match=r"--host-cores 13 .*12 hardware threads"):
                compute()
        else:
            compute()


def test_the_fewest_host_cores_are_searched_among_all_that_the_machine_has() -> None:
    """With 12 host cores dual need not use them all to reach nine tenths of cpu-only's."""
    found = recommend(costs_from_paper("bf2"), "bf2", host_cores=12)
    fewest = found.fewest_host_cores
    baseline = next(each for each in found.candidates if each.design == found.baseline)
    assert fewest.host_cores < cores(found)[fewest.design]
    point = Point(design=fewest.design, host_cores=fewest.host_cores)
    needed_mops = found.share * baseline.throughput_mops
    assert simulate(costs_from_paper("bf2"), point).throughput_mops >= needed_mops
    for each in found.candidates:
        for count in range(1, min(fewest.host_cores, each.host_cores + 1)):
            fewer = Point(design=each.design, host_cores=count)
            assert simulate(costs_from_paper("bf2"), fewer).throughput_mops < needed_mops


def test_an_expensive_bus_makes_it_choose_otherwise() -> None:
    costs = costs_from_paper("bf3")
    slow = replace(costs, bus=replace(costs.bus, latency_us=100.0))
    assert recommend(slow, "bf3").most_throughput.design == "dpu-only"


@pytest.mark.parametrize(
    "options",
    [
        {"share": 0.0},
        {"share": 1.001},
        {"share": float("nan")},
        {"host_cores": 0},
        {"host_cores": 257},
        {"dpu_cores": 0},
        {"dpu_cores": 257},
    ],
)
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
def test_the_command_says_it(
    arguments: list[str], words: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "dpukv_xdp.model.recommend.recommend", lambda costs, dpu, **options: of_paper(dpu)
    )
    result = CliRunner().invoke(model.recommend, arguments, catch_exceptions=False)
    assert result.exit_code == 0
    assert all(word in result.output for word in words)


@pytest.mark.usefixtures("few_batches")
def test_the_model_s_command_prints_and_plots_a_point(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The command is the one that the issue gives."""
    monkeypatch.chdir(tmp_path)
    asked = ["--design", "lat", "--dpu-cores", "8", "--host-cores", "8", "--dpu", "bf3"]
    result = CliRunner().invoke(model.model, asked, catch_exceptions=False)
    assert "lat       8    8" in result.output.replace("lat     8", "lat       8")
    assert "As a picture: dpukv-model.png" in result.output
    assert (tmp_path / "dpukv-model.png").stat().st_size > 10_000


@pytest.mark.usefixtures("few_batches")
@pytest.mark.parametrize(
    ("design", "dpu_cores", "most", "reason"),
    [
        ("lat", 1, 1, "one host core for each DPU core"),
        ("lat", 4, 4, "one host core for each DPU core"),
        ("sav", 8, 1, "one host core, which serves all DPU cores"),
    ],
)
def test_the_model_s_command_takes_host_cores_as_given_or_names_the_limit(
    design: str, dpu_cores: int, most: int, reason: str
) -> None:
    """`--design lat --host-cores 4 --costs committed` once used 1 without a word."""
    arguments = ["--design", design, "--costs", "committed", "--dpu-cores", str(dpu_cores)]
    for count in (most - 1, most, most + 1):
        given = [*arguments, "--host-cores", str(count), "--json", "-"]
        result = CliRunner().invoke(model.model, given)
        if 0 < count <= most:
            (point,) = json.loads(result.output)["points"]
            assert point["host_cores"] == count
        else:
            assert isinstance(result.exception, OptionError)
            assert f"--host-cores {count}" in str(result.exception)
            assert count == 0 or reason in str(result.exception)


@pytest.mark.usefixtures("few_batches")
def test_all_designs_on_one_machine_say_which_cannot_use_its_cores() -> None:
    given = ["--design", "all", "--costs", "committed", "--host-cores", "2", "--json", "-"]
    result = CliRunner().invoke(model.model, given, catch_exceptions=False)
    used = {point["design"]: point["host_cores"] for point in json.loads(result.stdout)["points"]}
    assert used == {"cpu-only": 2, "dpu-only": 0, "lat": 1, "sav": 1, "dual": 2, "shrd": 2}
    for design in ("dpu-only", "lat", "sav"):
        assert f"note: {design} has {used[design]} of 2 host cores" in result.stderr


@pytest.mark.usefixtures("few_batches")
def test_a_sweep_over_dpu_cores_gives_lat_no_more_host_cores_than_it_can_use() -> None:
    given = ["--design", "lat", "--dpu-cores", "3", "--host-cores", "2", "--sweep", "dpu-cores"]
    result = CliRunner().invoke(model.model, [*given, "--json", "-"], catch_exceptions=False)
    points = json.loads(result.stdout)["points"]
    assert [(point["dpu_cores"], point["host_cores"]) for point in points] == [
        (1, 1),
        (2, 2),
        (3, 2),
    ]


@pytest.mark.usefixtures("few_batches")
def test_a_sweep_over_host_cores_has_a_point_for_a_design_without_any() -> None:
    costs = committed()
    for design, counts in (("dpu-only", [0]), ("sav", [1])):
        found = sweep(costs, Point(design=design), "host-cores")
        assert [each.host_cores for each in found] == counts
    dual = sweep(costs, Point(design="dual", host_cores=2), "host-cores")
    assert [each.host_cores for each in dual] == [1, 2]


@pytest.mark.usefixtures("few_batches")
def test_a_sweep_over_the_load_ends_at_the_rate() -> None:
    given = ["--design", "lat", "--sweep", "load", "--rate", "8e6", "--json", "-"]
    result = CliRunner().invoke(model.model, given, catch_exceptions=False)
    rates = [point["rate_mops"] for point in json.loads(result.stdout)["points"]]
    assert rates == sorted(set(rates))
    assert rates[-1] == 8.0


@pytest.mark.usefixtures("few_batches")
def test_the_model_s_json_is_quiet_and_draws_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    asked = ["--design", "lat", "--dpu", "bf3", "--rate", "2e7", "--json", "-"]
    result = CliRunner().invoke(model.model, asked, catch_exceptions=False)
    (point,) = json.loads(result.output)["points"]
    assert point["host_cores"] == point["dpu_cores"] == 8
    assert point["rate_mops"] == 20.0
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("few_batches")
def test_the_model_s_command_draws_a_curve_and_lists_what_it_assumes(tmp_path: Path) -> None:
    runner = CliRunner()
    picture = str(tmp_path / "curve.png")
    curve = ["--design", "sav", "--sweep", "dpu-cores", "--dpu-cores", "2", "--output", picture]
    result = runner.invoke(model.model, curve, catch_exceptions=False)
    assert picture in result.output.replace("\n", "")
    result = runner.invoke(model.model, ["--fits"], catch_exceptions=False)
    assert "host_request_ns_C" in result.output
    assert "tuned by hand" in result.output
    missing = ["--design", "lat", "--output", str(tmp_path / "none" / "picture.png")]
    assert isinstance(runner.invoke(model.model, missing).exception, UsageError)


def test_costs_of_here_take_each_design_s_two_ends_once() -> None:
    """A run takes some seconds, so three rounds of all packet sizes would take ten minutes."""
    runs = [
        run.settings
        for run in expand(find_plans(["model"]), "default")
        if run.kind == "bench" and run.repeat == 0 and gives_costs(run.settings, "B")
    ]
    ends = sorted((run["design"], run["requests_per_packet"]) for run in runs)
    designs = ("cpu-only", "dpu-only", "dual", "lat", "sav", "shrd")
    assert ends == [(design, requests) for design in designs for requests in (0, 1)]


@pytest.mark.usefixtures("few_batches")
def test_costs_of_here_are_measured_and_used(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The results are those of a bench with a separate client."""
    committed = read_results(MEASURED_PATH)
    asked: list[str] = []

    def measure(workload: str, progress: object) -> list[dict[str, Any]]:
        asked.append(workload)
        return committed

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("dpukv_xdp.paper.reproduce.measure_costs", measure)
    monkeypatch.setattr("dpukv_xdp.cli.model.require_root", lambda command: None)
    monkeypatch.setattr("dpukv_xdp.cli.signals.signals.catch", lambda: None)
    here = ["--costs", "here", "--workload", "B"]
    runner = CliRunner()
    result = runner.invoke(model.recommend, [*here, "--json", "-"], catch_exceptions=False)
    found = json.loads(result.stdout)
    assert found["costs"].startswith("measured: 12 bench results, YCSB B, uniform keys")
    assert {each["design"] for each in found["candidates"]} >= {"cpu-only", "lat", "dual"}
    result = runner.invoke(
        model.model, [*here, "--design", "lat", "--json", "-"], catch_exceptions=False
    )
    assert json.loads(result.stdout)["points"][0]["throughput_mops"] > 1.0
    assert asked == ["B", "B"]


def test_the_model_s_command_refuses_what_a_dpu_cannot_run() -> None:
    runner = CliRunner()
    for arguments in (
        ["--design", "shrd", "--dpu", "bf3"],
        ["--dpu", "local"],
        ["--figure12", "--dpu", "local"],
        ["--output", "point.txt"],
        ["--sweep", "load", "--output", "curve.txt"],
    ):
        result = runner.invoke(model.model, arguments)
        assert isinstance(result.exception, UsageError), arguments
