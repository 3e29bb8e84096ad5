# SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
"""`dpukv reproduce` without measurements: plans, order, resuming, medians, and the report of
invented runs.
"""

import base64
import html
import itertools
import json
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from matplotlib import pyplot

from dpukv_xdp.base.errors import DpukvError, UsageError
from dpukv_xdp.base.patience import patient
from dpukv_xdp.bench.options import BenchOptions
from dpukv_xdp.bench.transfer import PRIMITIVES, TransferPlan
from dpukv_xdp.cli.reproduce import reproduce as command
from dpukv_xdp.model.paper_values import INCONSISTENCIES, paper_values
from dpukv_xdp.paper import reproduce as runner
from dpukv_xdp.paper.claims import check_claim
from dpukv_xdp.paper.html_report import (
    Document,
    compose,
    to_html,
    to_markdown,
    write_document,
)
from dpukv_xdp.paper.pictures import Picture, Table
from dpukv_xdp.paper.plans import (
    Claim,
    PaperPlace,
    Run,
    expand,
    find_plans,
    load_plans,
    load_sizes,
    matches,
    run_key,
)
from dpukv_xdp.paper.plots import DRAWINGS
from dpukv_xdp.paper.points import METRICS, Points, Spread
from dpukv_xdp.paper.words import text_of
from dpukv_xdp.topology import validation
from dpukv_xdp.topology.designs import DESIGNS, find_design
from dpukv_xdp.topology.profiles import find_profile
from dpukv_xdp.wire import abi

FIGURES = ["fig2", "table1", "fig5", "fig6", "fig8", "fig9", "fig10", "fig11", "fig12", "fig13"]
MACHINE = {
    "cpu": "Imagined Processor",
    "cores": 2,
    "memory_bytes": 24 << 30,
    "kernel": "6.18.0",
    "architecture": "x86_64",
    "hypervisor": True,
}
MOPS = {"cpu-only": 10.0, "dpu-only": 8.0, "lat": 30.0, "sav": 29.0, "dual": 16.0, "shrd": 17.0}


# ---- Plans


def test_every_figure_of_the_paper_has_a_plan() -> None:
    assert [plan.id for plan in find_plans(["all"])] == [
        *("fig2", "table1", "fig5", "fig6", "fig8", "fig9", "fig10", "fig11", "fig12", "fig13"),
        "model",
    ]
    assert set(FIGURES) < set(load_plans())


def test_an_unknown_figure_is_named_beside_the_known() -> None:
    with pytest.raises(UsageError, match=r"fig7.*fig2.*model or all"):
        find_plans(["fig7"])


@pytest.mark.parametrize("size", ["smoke", "default", "paper"])
def test_keys_are_unique_and_repeats_come_one_after_the_other(size: str) -> None:
    runs = expand(find_plans([]), size)
    keys = [run.key for run in runs]
    assert len(set(keys)) == len(keys)
    repeats = [run.repeat for run in runs]
    assert repeats == sorted(repeats)
    assert max(repeats) + 1 == load_sizes()[size].repeats


def test_the_paper_s_size_is_the_paper_s() -> None:
    size = load_sizes()["paper"]
    assert (size.seconds, size.repeats) == (90.0, 3)


@pytest.mark.parametrize("size", ["smoke", "default", "paper"])
def test_settings_are_the_server_s_and_the_load_s(size: str) -> None:
    load_names = {field.name for field in fields(BenchOptions)}
    for run in expand(find_plans([]), size):
        if run.kind in ("bench", "peer"):
            config, options = runner.settings_of(run)
            validation.check(config)
            options.check()
            assert set(runner.LOAD_NAMES) <= load_names
        elif run.kind == "transfer":
            TransferPlan(tuple(run.settings["sizes"])).check()
            assert run.settings["primitive"] in PRIMITIVES
        else:
            assert run.settings["model"] in runner.MODELS
            if "design" in run.settings:
                find_profile(run.settings["dpu"]).check(find_design(run.settings["design"]))


@pytest.mark.parametrize("plan", load_plans().values(), ids=load_plans())
def test_plans_name_what_there_is(plan: Any) -> None:
    for panel in plan.panels:
        assert panel.draw in DRAWINGS
        assert set(panel.metrics) <= set(METRICS)
    for claim in plan.claims:
        assert {claim.metric, claim.over_metric or claim.metric} <= set(METRICS)
        assert (claim.paper is None) != (claim.shape is None)
    assert all(text.strip() for text in (plan.title, plan.question, plan.method, plan.cannot))
    for names in ([panel.name for panel in plan.panels], [claim.name for claim in plan.claims]):
        assert len(set(names)) == len(names)


@pytest.mark.parametrize("plan", load_plans().values(), ids=load_plans())
def test_what_the_paper_prints_is_held_only_against_what_it_is_for(plan: Any) -> None:
    """A printed value is for the paper's load, and may be an upper bound ("up to")."""
    points = [run.settings for run in expand([plan], "default")]
    for claim in plan.claims:
        loads = [settings for settings in points if matches(settings, claim.of)]
        assert loads, f"{claim.name} is about runs that the plan has not"
        if claim.paper is None:
            continue
        place = claim.paper
        rows = paper_values(
            place.metric,
            dpu=place.dpu,
            design=place.design,
            workload=place.workload,
            figure_table=place.figure_table,
        )
        is_bound = any(row.trust == "bound" for row in rows)
        assert claim.up_to == (is_bound and claim.reading != "saved"), claim.name
        for settings in loads:
            load = settings.get("workload")
            keys = {"uniform": "uniform", "zipf": "skewed"}.get(settings.get("distribution", ""))
            assert any(is_for(row.workload, load) for row in rows), (claim.name, load)
            assert any(is_for(row.distribution, keys) for row in rows), (claim.name, keys)


def is_for(printed: str, ours: str | None) -> bool:
    """Return whether the paper's value is for our load, or for any load."""
    return ours is None or ours in printed or printed in ("n/a", "any", "GET", "SET")


def test_two_figures_share_a_run() -> None:
    runs = expand(find_plans(["fig11", "fig12"]), "smoke")
    assert any(run.plans == ("fig11", "fig12") for run in runs)


def test_a_smaller_size_has_fewer_and_shorter_runs() -> None:
    seconds = {
        size: sum(run.settings.get("seconds", 0) for run in expand(find_plans([]), size))
        for size in load_sizes()
    }
    assert seconds["smoke"] < seconds["default"] / 10 < seconds["paper"] / 1000


def test_the_smoke_takes_five_minutes_at_most() -> None:
    """The estimate uses the times of a session and a run on a slow two-core machine."""
    runs = expand(find_plans([]), "smoke")
    stores = sum(session[0].kind in ("bench", "peer") for session in runner.sessions(runs))
    assert 2.8 * stores + 1.4 * len(runs) < 240


def test_the_baseline_without_a_copy_is_beside_the_one_with_it() -> None:
    for name in ("fig2", "fig5", "fig11", "fig13"):
        plan = find_plans([name])[0]
        runs = expand([plan], "smoke")
        for panel in plan.panels:
            shown = [run.settings for run in runs if matches(run.settings, panel.where)]
            frames = {s.get("frames") for s in shown if s.get("design") == "cpu-only"}
            assert frames == {None, "ring"}, (name, panel.name)
    settings = {"design": "cpu-only", "frames": "ring", "profile": "bf2"}
    assert not matches(settings, {"design": "cpu-only"})


def test_what_is_not_asked_for_must_not_be_switched() -> None:
    settings = {"design": "lat", "window": 64, "respond": "wait"}
    assert not matches(settings, {"design": "lat"})
    assert matches(settings, {"design": "lat", "respond": "wait"})
    assert matches(settings, {"window": [16, 64], "respond": ["adaptive", "wait"]})
    assert matches({"design": "lat"}, {"peer": ""})


def test_a_key_does_not_depend_on_the_order_of_settings() -> None:
    assert run_key("bench", {"a": 1, "b": 2}, 0) == run_key("bench", {"b": 2, "a": 1}, 0)
    assert run_key("bench", {"a": 1}, 0) != run_key("bench", {"a": 1}, 1)


# ---- Order


def test_rounds_are_shuffled_alike_each_time_and_stay_apart() -> None:
    runs = expand(find_plans(["fig11"]), "default")
    ordered = [run for session in runner.sessions(runs) for run in session]
    assert sorted(run.key for run in ordered) == sorted(run.key for run in runs)
    assert [run.repeat for run in ordered] == sorted(run.repeat for run in ordered)
    again = [run for session in runner.sessions(reversed(runs)) for run in session]
    assert [run.key for run in again] == [run.key for run in ordered]
    rounds = [[run.settings for run in ordered if run.repeat == repeat] for repeat in range(3)]
    assert rounds[0] != rounds[1] != rounds[2]


def test_a_session_has_only_what_its_server_can_serve() -> None:
    for session in runner.sessions(expand(find_plans([]), "smoke")):
        if session[0].kind == "bench":
            configs = {json.dumps(str(runner.settings_of(run)[0])) for run in session}
            assert len(configs) == 1
            assert len({run.settings.get("queues") for run in session}) == 1


# ---- Running and resuming


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Fake the measurement; return the list of keys in the order in which they are measured."""
    keys: list[str] = []

    @contextmanager
    def opened(runs: Sequence[Run]) -> Iterator[Callable[[Run], Any]]:
        def measure(run: Run) -> Any:
            keys.append(run.key)
            return made_up(run)

        yield lambda run: lambda progress: measure(run)

    for kind in runner.OPENERS:
        monkeypatch.setitem(runner.OPENERS, kind, opened)
    return keys


def nothing(what: str, fraction: float) -> None:
    """Ignore progress."""


def test_what_is_there_is_not_measured_again(tmp_path: Path, measured: list[str]) -> None:
    path = tmp_path / "runs.jsonl"
    some, everything = (
        expand(find_plans(names), "smoke") for names in (["fig11"], ["fig11", "fig5"])
    )
    assert runner.reproduce(some, "smoke", path, nothing, resume=False) == len(some)
    assert runner.reproduce(some, "smoke", path, nothing, resume=True) == 0
    left = runner.reproduce(everything, "smoke", path, nothing, resume=True)
    assert left == len(everything) - len(some)
    assert len(measured) == len(set(measured)) == len(everything)


def test_runs_that_are_there_are_not_overwritten(tmp_path: Path, measured: list[str]) -> None:
    path = tmp_path / "runs.jsonl"
    runs = expand(find_plans(["fig8"]), "smoke")
    runner.reproduce(runs, "smoke", path, nothing, resume=False)
    with pytest.raises(UsageError, match="--resume"):
        runner.reproduce(runs, "smoke", path, nothing, resume=False)


def test_half_a_line_is_measured_again(tmp_path: Path, measured: list[str]) -> None:
    path = tmp_path / "runs.jsonl"
    runs = expand(find_plans(["fig8"]), "smoke")
    runner.reproduce(runs, "smoke", path, nothing, resume=False)
    path.write_bytes(path.read_bytes()[:-20])
    assert runner.reproduce(runs, "smoke", path, nothing, resume=True) == 1
    assert len(runner.read_lines(path)) == len(runs)


@pytest.mark.parametrize("change", [{"version": "0.0.1"}, {"machine": MACHINE}])
def test_medians_are_of_one_machine_and_version(
    tmp_path: Path, measured: list[str], change: dict[str, Any]
) -> None:
    path = tmp_path / "runs.jsonl"
    runs = expand(find_plans(["fig8"]), "smoke")
    runner.reproduce(runs, "smoke", path, nothing, resume=False)
    lines = runner.read_lines(path)
    kept = "".join(json.dumps({**line, **change}) + "\n" for line in lines)
    path.write_text(kept)
    assert runner.reproduce(runs, "smoke", path, nothing, resume=True) == 0
    more = expand(find_plans(["fig8", "fig9"]), "smoke")
    with pytest.raises(UsageError, match=r"another (machine|version of dpukv).*--output"):
        runner.reproduce(more, "smoke", path, nothing, resume=True)
    assert path.read_text() == kept


def test_an_interruption_keeps_what_was_measured(
    tmp_path: Path, measured: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "runs.jsonl"
    runs = expand(find_plans(["fig11"]), "smoke")

    @contextmanager
    def opened(session: Sequence[Run]) -> Iterator[Callable[[Run], Any]]:
        def measure(run: Run) -> Any:
            if len(measured) == 5:
                raise KeyboardInterrupt
            measured.append(run.key)
            return made_up(run)

        yield lambda run: lambda progress: measure(run)

    calm = runner.OPENERS["bench"]
    monkeypatch.setitem(runner.OPENERS, "bench", opened)
    with pytest.raises(KeyboardInterrupt):
        runner.reproduce(runs, "smoke", path, nothing, resume=False)
    assert [line["key"] for line in runner.read_lines(path)] == measured
    monkeypatch.setitem(runner.OPENERS, "bench", calm)
    assert runner.reproduce(runs, "smoke", path, nothing, resume=True) == len(runs) - 5


def test_a_failure_is_told_and_tried_again_and_a_refusal_is_final(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = expand(find_plans(["fig8"]), "smoke")
    errors = {runs[0].key: DpukvError("it broke"), runs[1].key: UsageError("it cannot be")}

    @contextmanager
    def opened(session: Sequence[Run]) -> Iterator[Callable[[Run], Any]]:
        def measure(run: Run) -> Any:
            if run.key in errors:
                raise errors[run.key]
            return made_up(run)

        yield lambda run: lambda progress: measure(run)

    monkeypatch.setitem(runner.OPENERS, "bench", opened)
    path = tmp_path / "runs.jsonl"
    runner.reproduce(runs, "smoke", path, nothing, resume=False)
    said = {line["key"]: line for line in runner.read_lines(path)}
    assert said[runs[0].key]["failed"] == "it broke"
    assert said[runs[1].key]["refused"] == "it cannot be"
    assert sum("result" in line for line in said.values()) == len(runs) - 2
    errors.clear()
    assert runner.reproduce(runs, "smoke", path, nothing, resume=True) == 1


def test_a_file_that_holds_no_runs_is_named(tmp_path: Path) -> None:
    path = tmp_path / "runs.jsonl"
    path.write_text('{"key": "a"}\nnonsense\n')
    with pytest.raises(UsageError, match="line 2"):
        runner.read_lines(path)


def test_progress_only_grows(tmp_path: Path, measured: list[str]) -> None:
    seen: list[float] = []
    runs = expand(find_plans(["fig11"]), "smoke")
    runner.reproduce(
        runs, "smoke", tmp_path / "runs.jsonl", lambda _, part: seen.append(part), resume=False
    )
    assert seen == sorted(seen)
    assert 0 <= seen[0] <= seen[-1] <= 1


# ---- Results


def test_median_and_ends() -> None:
    assert Spread.of([3.0, 1.0, 10.0]) == Spread(3.0, 1.0, 10.0)


def test_numbers_have_three_digits() -> None:
    assert [text_of(v) for v in (0.0, 0.01234, 1.5, 12.34, 123.4, 12345.6)] == [
        *("0", "0.0123", "1.50", "12.3", "123", "12,346")
    ]


def ratio_claim(**changes: Any) -> Claim:
    """Return a claim that lat has 1.2 times the throughput of dpu-only."""
    settings: dict[str, Any] = {
        "name": "lat over dpu-only",
        "metric": "throughput",
        "of": {"design": "lat"},
        "over": {"design": "dpu-only"},
        "paper": PaperPlace("throughput_ratio_vs_DPU-only_mean", dpu="BF-2"),
        "smaller": "too slow",
        "larger": "too fast",
    }
    return Claim(**(settings | changes))


def two_designs(lat: Sequence[Sequence[float]], dpu_only: Sequence[Sequence[float]]) -> Points:
    """Return points of both designs with these throughputs: by workload A, B, C, then by round."""
    runs, lines = [], []
    for design, loads in (("lat", lat), ("dpu-only", dpu_only)):
        for workload, values in zip("ABC", loads, strict=False):
            for repeat, value in enumerate(values):
                settings = {"design": design, "workload": workload, "window": 64}
                run = Run(("fig11",), "bench", settings | {"distribution": "uniform"}, repeat)
                runs.append(run)
                lines.append(line_of(run))
                lines[-1]["result"]["throughput_mops"] = value
    return Points.of(runs, lines)


def two_points(lat: Sequence[float], dpu_only: Sequence[float]) -> Points:
    """Return points of both designs under one load."""
    return two_designs([lat], [dpu_only])


@pytest.mark.parametrize(
    ("lat", "verdict", "words"),
    [
        ([12.0, 1.2, 12.0], "within", "1.20 times here, 1.20 times in the paper"),
        ([20.0], "same way", "in the same direction: too fast"),
        ([5.0], "other way", "the other way round: too slow"),
        ([9.9], "none", "no difference here: too slow"),
    ],
)
def test_a_ratio_is_held_against_the_paper(lat: list[float], verdict: str, words: str) -> None:
    found = check_claim(ratio_claim(), two_points(lat, [10.0, 9.0, 10.0]))
    assert found is not None
    assert [load.verdict for load in found.loads] == [verdict]
    assert words in found.sentence()


def test_ratios_are_of_one_round() -> None:
    """The machine is twice as fast in the second round and slow in the third, but 1.2 holds in
    each.
    """
    found = check_claim(ratio_claim(), two_points([12.0, 24.0, 1.2], [10.0, 20.0, 1.0]))
    assert found is not None
    assert found.loads[0].spread == Spread(*[pytest.approx(1.2)] * 3)
    found = check_claim(ratio_claim(), two_points([12.0, 30.0, 11.0], [10.0, 20.0, 11.0]))
    assert found is not None
    assert found.loads[0].text() == "1.20 (1.00–1.50)"


def test_loads_that_agree_are_counted() -> None:
    """Neither the ends of their range count, nor their median, which equals the paper's here."""
    found = check_claim(ratio_claim(), two_designs([[1.0], [12.0], [90.0]], [[10.0]] * 3))
    assert found is not None
    assert not found.agrees
    assert found.sentence() == (
        "lat over dpu-only: 0.100 to 9.00 times here, 1.20 times in the paper, 1 of 3 loads agree, "
        "1 in the same direction, 1 the other way round: where it is smaller, too slow; where it "
        "is larger, too fast"
    )
    found = check_claim(ratio_claim(), two_designs([[1.0], [90.0]], [[10.0]] * 2))
    assert found is not None
    assert found.verdict().startswith("0 of 2 loads agree"), "their range covers the paper's"
    found = check_claim(ratio_claim(), two_designs([[12.0], [12.1]], [[10.0]] * 2))
    assert found is not None
    assert found.agrees
    assert found.verdict() == "2 of 2 loads agree"


def test_a_range_around_1_has_no_direction() -> None:
    place = PaperPlace("latency_ratio_vs_DPU-only", dpu="BF-2", design="CPU-only")
    claim = ratio_claim(paper=place)
    for lat, words in ((30.0, "above"), (9.0, "below"), (20.0, "agrees")):
        found = check_claim(claim, two_points([lat], [10.0]))
        assert found is not None
        assert found.verdict() == words


def test_a_claim_without_runs_is_no_finding() -> None:
    assert check_claim(ratio_claim(), two_points([1.0], [])) is None
    assert check_claim(ratio_claim(), two_points([1.0], [0.0])) is None
    claim = ratio_claim(over={"design": "dpu-only"}, of={"design": "lat"})
    points = two_points([1.0], [1.0])
    points.points[1].by_repeat[1] = points.points[1].by_repeat.pop(0)
    assert check_claim(claim, points) is None, "no round has both"


def test_up_to_allows_whatever_is_between() -> None:
    place = PaperPlace("throughput_gain_vs_DPU-only_max", dpu="BF-3", figure_table="Fig.13")
    claim = ratio_claim(paper=place, reading="gain", up_to=True)
    for lat, agrees in ((10.5, True), (11.0, True), (12.0, False), (9.0, False)):
        found = check_claim(claim, two_points([lat], [10.0]))
        assert found is not None
        assert found.agrees == agrees, lat


def test_bytes_of_a_set_are_what_a_mix_leaves() -> None:
    runs = expand(find_plans(["fig8"]), "smoke")
    points = Points.of(runs, [line_of(run) for run in runs])
    mixed = points.where({"workload": "A", "requests_per_packet": 1})[0]
    assert points.rounds(mixed, "wire_request_set") == {0: pytest.approx(88.0)}
    assert points.rounds(mixed, "wire_response_set") == {0: pytest.approx(72.0)}


Curve = dict[int, tuple[float, float]]
"""Million requests per second, and microseconds, by window."""


def with_curves(ours: Curve, redis: Curve) -> Points:
    """Return points of lat and Redis with full messages."""
    runs = [
        run
        for run in expand(find_plans(["fig2"]), "smoke")
        if matches(run.settings, {"requests_per_packet": 0})
        if run.kind == "peer" or run.settings["design"] == "lat"
    ]
    lines = [line_of(run) for run in runs]
    for run, line in zip(runs, lines, strict=True):
        curve = redis if run.kind == "peer" else ours
        line["result"]["throughput_mops"], line["result"]["latency_us"]["p50"] = curve[
            run.settings["window"]
        ]
    return Points.of(runs, lines)


CROSSING = {1: (10.0, 10.0), 64: (20.0, 90.0)}
SHORT = {1: (10.0, 10.0), 64: (20.0, 40.0)}
SLOW = {1: (0.5, 60.0), 64: (1.0, 900.0)}


@pytest.mark.parametrize(
    ("curve", "value", "is_bound"),
    [(CROSSING, 15.0, False), (SHORT, 20.0, True), (SLOW, None, False)],
)
def test_the_curve_is_read_where_it_crosses_50_us(
    curve: Curve, value: float | None, is_bound: bool
) -> None:
    points = with_curves(curve, SLOW)
    (point, *_) = points.where({"design": "lat"})
    known = {} if value is None else {0: pytest.approx(value)}
    assert points.rounds(point, "throughput_at_50us") == known
    assert points.bound(point, "throughput_at_50us") == is_bound


@pytest.mark.parametrize(
    ("ours", "redis", "says"),
    [
        (CROSSING, CROSSING, "1.00 times here"),
        (SHORT, CROSSING, "at least 1.33 times here"),
        (CROSSING, SHORT, "at most 0.750 times here"),
        (SHORT, SHORT, None),
        (CROSSING, SLOW, None),
        (SLOW, CROSSING, None),
    ],
)
def test_a_ratio_of_curves_that_end_early_is_a_bound(
    ours: Curve, redis: Curve, says: str | None
) -> None:
    claims = [c for c in find_plans(["fig2"])[0].claims if "lat over Redis, a packet" in c.name]
    found = check_claim(claims[0], with_curves(ours, redis))
    assert (found is None) == (says is None)
    if found is not None and says is not None:
        assert says in found.sentence()
        assert ("undecided" in found.sentence()) == ("at least" in says)


# ---- The report


def made_up(run: Run) -> Any:
    """Return an invented result of the kind that such a run has."""
    return {
        "bench": bench_result,
        "peer": bench_result,
        "transfer": transfer_result,
        "model": model_result,
    }[run.kind](run.settings)


def line_of(run: Run) -> dict[str, Any]:
    return {
        "key": run.key,
        "kind": run.kind,
        "settings": run.settings,
        "machine": MACHINE,
        "result": made_up(run),
    }


def bench_result(settings: dict[str, Any]) -> dict[str, Any]:
    window = settings["window"]
    full = MOPS.get(settings.get("design", ""), 1.0)
    mops = full * window / (window + 4)
    gets = {"A": 0.5, "B": 0.95, "C": 1.0}[settings["workload"]]
    stages = {stage.name.lower(): 5.0 for stage in abi.Stage}
    role = {"cores": 1.0, "cpu_ns_per_op": 40.0, "busy_fraction": 0.8}
    return {
        "design": settings.get("design"),
        "workload": settings["workload"],
        "distribution": settings["distribution"],
        "key_size": 8,
        "value_size": 8,
        "requests_per_packet": settings.get("requests_per_packet") or 45,
        "window": window,
        "rate": settings.get("rate"),
        "respond": settings.get("respond", "adaptive"),
        "emulation": None if settings.get("profile", "local") == "local" else "emulated",
        "throughput_mops": mops,
        "packets_mpps": mops / (settings.get("requests_per_packet") or 45),
        "latency_us": {"p50": window / mops, "p99": 2 * window / mops, "mean": window / mops},
        "hits": int(1e6 * gets),
        "misses": 0,
        "stored": int(1e6 * (1 - gets)),
        "corrupt": 0,
        "lost": 0,
        "roles": {"client": role, "dpu": role, "host": role},
        "accounting_mops": mops,
        "stages_ns_per_op": {"dpu": stages, "host": stages},
        "host_core_usage": 1 / 12,
        "host_share": 0.4,
        "server_counters": {"qp_request_bytes": 3200, "requests_received": 200},
        "qp_bytes_per_op": {"request": 32.02, "response": 16.02},
        "wire_bytes_per_op": {
            "request": 80 * gets + 88 * (1 - gets),
            "response": 80 * gets + 72 * (1 - gets),
        },
    }


def transfer_result(settings: dict[str, Any]) -> dict[str, Any]:
    return {
        "measurements": [
            {"direction": way, "mode": mode, "bytes": size, "latency_ns": {"p50": base + size}}
            for way in ("dpu-to-host", "host-to-dpu")
            for mode, base in (("blocking", 400.0), ("non-blocking", 60.0))
            for size in settings["sizes"]
        ],
    }


def model_result(settings: dict[str, Any]) -> Any:
    if settings["model"] == "validation":
        check = {
            "name": "a value",
            "kind": "latency",
            "standing": "held out",
            "model": 12.0,
            "low": 9.0,
            "high": 10.0,
            "unit": "us",
            "error": 0.2,
            "where": "Fig.5",
            "why": "it is a model",
        }
        summary = {"latency, held out": {"count": 1, "mean": 0.2, "max": 0.2}}
        return {"summary": summary, "checks": [check]}
    return [
        {
            "cores": cores,
            "requests": requests,
            "bytes": 32 * requests + 1,
            "throughput_mops": 4.0 * cores,
            "transfer_us": 2.0 + cores,
            "door_mops": {"dpu": 3.0 * cores, "host": 1.0 * cores},
        }
        for cores, requests in enumerate((8, 16, 32, 64, 128, 256, 512, 1024), start=1)
    ]


@dataclass(frozen=True)
class Report:
    """The report of all figures, made once because its pictures take seconds."""

    document: Document
    directory: Path
    figures: Sequence[Any]
    """Figures of matplotlib."""

    def page(self) -> str:
        return (self.directory / "report.html").read_text()

    def markdown(self) -> str:
        return (self.directory / "report.md").read_text()


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Report]:
    """Yield the report of invented runs."""
    output = tmp_path_factory.mktemp("report")
    plans = find_plans([])
    runs = expand(plans, "smoke")
    lines = [line_of(run) for run in runs]
    figures: list[Any] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pyplot, "close", figures.append)
        patch.setitem(pyplot.rcParams, "figure.max_open_warning", 0)
        document = compose(plans, runs, "smoke", lines)
    written = write_document(document, Points.of(runs, lines), output)
    assert written.missing == {}
    yield Report(document, output, figures)
    pyplot.close("all")


class Reader(HTMLParser):
    """Collects the headings, pictures and tables of a page, and the resources it would fetch."""

    def __init__(self) -> None:
        super().__init__()
        self.headings: list[str] = []
        self.pictures: list[bytes] = []
        self.cells: list[int] = []
        self.fetched: list[str] = []
        self._in = ""

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self._in = tag
        named = dict(attributes)
        source = named.get("src") or ""
        if tag == "img" and source.startswith("data:image/png;base64,"):
            self.pictures.append(base64.b64decode(source.partition(",")[2]))
        elif source or tag in ("link", "script", "iframe"):
            self.fetched.append(f"{tag} {source}")
        if tag == "table":
            self.cells.append(0)
        if tag == "td":
            self.cells[-1] += 1

    def handle_data(self, data: str) -> None:
        if self._in == "h2" and data.strip():
            self.headings.append(data)


def test_the_html_shows_every_figure_and_needs_no_network(report: Report) -> None:
    text = report.page()
    reader = Reader()
    reader.feed(text)
    plans = find_plans([])
    assert reader.headings[: len(plans)] == [plan.title for plan in plans]
    assert len(reader.pictures) == sum(len(plan.panels) for plan in plans)
    assert all(
        picture.startswith(b"\x89PNG") and len(picture) > 8000 for picture in reader.pictures
    )
    assert all(reader.cells)
    assert reader.fetched == []
    assert "http" not in text
    assert "nan" not in re.findall(r"<td>([^<]*)</td>", text)
    plain = re.sub(r"</?code>", "`", text)
    assert all(html.escape(sentence, quote=False) in plain for sentence in INCONSISTENCIES)


def test_markdown_says_the_same(report: Report) -> None:
    markdown, page = report.markdown(), report.page()
    pictures = re.findall(r"!\[[^\]]*\]\(([^)]*)\)", markdown)
    assert len(pictures) == page.count("<img ")
    assert all((report.directory / picture).stat().st_size > 8000 for picture in pictures)
    assert markdown.count("\n| --- ") == page.count("<table>")
    rows = len(re.findall(r"^\| ", markdown, re.MULTILINE))
    assert rows - 2 * page.count("<table>") == page.count("<tr>") - page.count("<thead>")
    for plan in find_plans([]):
        assert f"## {plan.title}" in markdown
    assert "Imagined Processor" in markdown
    assert "Imagined Processor" in page


def test_every_section_has_its_four_parts(report: Report) -> None:
    for plan, section in zip(find_plans([]), report.document.sections, strict=False):
        headings = [heading for heading, _ in section.paragraphs]
        assert headings[:2] == ["Question", "Method"]
        assert headings[-1] == "What this machine cannot show"
        assert {"What agrees", "What differs, and why"} & set(headings)
        assert all(texts and all(texts) for _, texts in section.paragraphs)
        assert sum(isinstance(item, Picture) for item in section.items) == len(plan.panels)
        for item in section.items:
            if isinstance(item, Table):
                assert item.rows, (plan.id, item.title)
                assert {len(row) for row in item.rows} == {len(item.headings)}, item.title
        named = [claim.name for claim in plan.claims]
        table = next(item for item in section.items if isinstance(item, Table))
        assert not named or {row[0] for row in table.rows} <= set(named)
        assert not named or len(table.rows) >= len(named) / 2, plan.id


def test_what_follows_from_the_placement_neither_agrees_nor_differs(report: Report) -> None:
    claims = [claim.name for claim in find_plans(["fig11"])[0].claims if claim.by_construction]
    assert len(claims) == 5
    section = next(section for section in report.document.sections if section.id == "fig11")
    table = next(item for item in section.items if isinstance(item, Table))
    for name in claims:
        assert name not in str(section.paragraphs)
        assert next(row for row in table.rows if row[0] == name)[3] == "by construction"


def test_a_report_of_nothing_says_so() -> None:
    plans = find_plans([])
    document = compose(plans, expand(plans, "smoke"), "smoke", [])
    page, markdown = to_html(document), to_markdown(document)
    assert page.count("Nothing of this was measured.") == len(plans)
    assert markdown.count("Nothing of this was measured.") == len(plans)
    assert "<img" not in page


def test_a_store_that_answered_nothing_is_shown_all_the_same() -> None:
    plans = find_plans(["fig2", "table1", "fig13"])
    runs = expand(plans, "smoke")
    lines = [line_of(run) for run in runs]
    for line in lines:
        if "throughput_mops" in line["result"]:
            line["result"] |= {"throughput_mops": 0.0, "hits": 0, "misses": 0, "stored": 0}
            line["result"]["latency_us"] = dict.fromkeys(("p50", "p99", "mean"), 0.0)
            line["result"]["qp_bytes_per_op"] = {"request": 0.0, "response": 0.0}
            line["result"]["stages_ns_per_op"] = {
                side: dict.fromkeys(times, 0.0)
                for side, times in line["result"]["stages_ns_per_op"].items()
            }
            for role in line["result"]["roles"].values():
                role["cpu_ns_per_op"] = 0.0
    page = to_html(compose(plans, runs, "smoke", lines))
    assert "nan" not in re.sub(r"base64,[^\"]*", "", page)
    assert page.count("<h2>") == len(plans) + 1


def test_what_was_refused_is_in_the_report() -> None:
    plans = find_plans(["fig8"])
    runs = expand(plans, "smoke")
    lines = [line_of(run) for run in runs[1:]]
    lines.append({"key": runs[0].key, "machine": MACHINE, "refused": "that cannot <be>"})
    page = to_html(compose(plans, runs, "smoke", lines))
    assert "that cannot &lt;be&gt;" in page


def texts_of(axis: Any) -> list[Any]:
    """Return the boxes of the numbers and names along an axis."""
    low, high = sorted(axis.get_view_interval())
    return [
        tick.label1.get_window_extent()
        for tick in axis.get_major_ticks()
        if tick.label1.get_text() and low <= tick.get_loc() <= high
    ]


def test_nothing_in_a_picture_overlaps_or_is_cut_off(report: Report) -> None:
    assert len(report.figures) == sum(len(plan.panels) for plan in find_plans([]))
    for figure in report.figures:
        (legend,) = figure.legends
        whole, said = figure.bbox.padded(1), figure.get_suptitle()
        places = [axes.get_tightbbox() for axes in figure.axes]
        places += [legend.get_window_extent(), figure._suptitle.get_window_extent()]
        for each in places:
            assert whole.containsx(each.x0), said
            assert whole.containsx(each.x1), said
            assert whole.containsy(each.y0), said
            assert whole.containsy(each.y1), said
        texts = [texts_of(axis) for axes in figure.axes for axis in (axes.xaxis, axes.yaxis)]
        for group in (places, *texts):
            for one, other in itertools.combinations(group, 2):
                assert not one.padded(-1).overlaps(other.padded(-1)), said


# ---- In a browser

BROWSER = "chromium"
LOOK = """
<script>
addEventListener("load", () => {
  for (const each of document.querySelectorAll("details")) each.open = true;
  const wrong = [], named = (e) => e.tagName + " " + (e.alt || e.textContent || "").slice(0, 60);
  const pictures = [...document.images];
  for (const image of pictures)
    if (!image.complete || !image.naturalWidth || image.getBoundingClientRect().height < 100)
      wrong.push("empty: " + named(image));
  const width = document.documentElement.clientWidth;
  for (const each of document.body.querySelectorAll("*")) {
    const box = each.getBoundingClientRect();
    if (box.left < 0 || box.right > width + 1) wrong.push("beyond the page: " + named(each));
  }
  const blocks = [...document.querySelectorAll("h1, h2, h3, p, ul, figure, table, summary")];
  const boxes = blocks.map((each) => each.getBoundingClientRect());
  for (let i = 0; i < blocks.length; i++)
    for (let j = i + 1; j < blocks.length; j++)
      if (Math.min(boxes[i].right, boxes[j].right) - Math.max(boxes[i].left, boxes[j].left) > 1 &&
          Math.min(boxes[i].bottom, boxes[j].bottom) - Math.max(boxes[i].top, boxes[j].top) > 1)
        wrong.push("overlap: " + named(blocks[i]) + " | " + named(blocks[j]));
  const said = document.createElement("pre");
  said.textContent = JSON.stringify(
    {wrong, pictures: pictures.length, tables: document.querySelectorAll("table").length});
  document.body.replaceChildren(said);
});
</script>
"""
"""Script that returns a page's faults: empty pictures, content beyond its edge, overlapping blocks.
"""


def looked_at(page: str, directory: Path) -> dict[str, Any]:
    """Return the result of LOOK in a window as wide as a laptop's: narrower ones scroll tables."""
    path = directory / "looked-at.html"
    path.write_text(page.replace("</body>", f"{LOOK}</body>"))
    said = subprocess.run(
        [
            *(BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic"),
            *("--no-first-run", "--disable-background-networking", "--disable-component-update"),
            *("--disable-sync", f"--user-data-dir={directory / 'browser'}"),
            *("--window-size=1200,900", "--dump-dom", path.as_uri()),
        ],
        capture_output=True,
        text=True,
        timeout=patient(120),
        check=True,
    )
    found = re.search(r"<pre>(.*?)</pre>", said.stdout, re.DOTALL)
    assert found is not None, said.stderr
    answer: dict[str, Any] = json.loads(html.unescape(found[1]))
    return answer


in_a_browser = pytest.mark.skipif(
    shutil.which(BROWSER) is None,
    reason=f"this box lacks {BROWSER} (Debian's package of that name): nobody looks at the report",
)


@in_a_browser
def test_a_browser_shows_every_figure_and_nothing_overlaps(report: Report, tmp_path: Path) -> None:
    page = report.page()
    found = looked_at(page, tmp_path)
    assert found["wrong"] == []
    assert found["pictures"] == sum(len(plan.panels) for plan in find_plans([]))
    assert found["tables"] == page.count("<table>")


@in_a_browser
def test_a_browser_would_see_what_is_wrong(tmp_path: Path) -> None:
    picture = '<img alt="no picture" src="data:image/png;base64,AAAA">'
    wide = '<div style="width: 3000px">wide</div>'
    above = '<p>below</p><p style="margin-top: -40px">above</p>'
    found = looked_at(f"<html><body>{picture}{wide}{above}</body></html>", tmp_path)
    kinds = [each.partition(":")[0] for each in found["wrong"]]
    assert kinds == ["empty", "beyond the page", "overlap"]


# ---- The command


def test_the_command_lists_what_it_would_do() -> None:
    said = CliRunner().invoke(command, ["--list", "fig11", "fig9", "--smoke"])
    assert said.exit_code == 0
    assert [line.split()[0] for line in said.output.splitlines()[:2]] == ["fig9", "fig11"]


def test_every_evaluated_design_is_in_figure_11() -> None:
    shown = {run.settings["design"] for run in expand(find_plans(["fig11"]), "smoke")}
    assert shown == {design.name for design in DESIGNS.values() if design.is_compared}
