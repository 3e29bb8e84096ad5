# SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
"""`dpukv reproduce` without measuring: plans, order, resuming, medians, and the report of made-up
runs.
"""

import base64
import json
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from dpukv_xdp import abi
from dpukv_xdp import reproduce as runner
from dpukv_xdp.bench import BenchOptions
from dpukv_xdp.cli_reproduce import reproduce as command
from dpukv_xdp.designs import DESIGNS, find_design
from dpukv_xdp.errors import DpukvError, UsageError
from dpukv_xdp.paper import INCONSISTENCIES
from dpukv_xdp.profiles import find_profile
from dpukv_xdp.reproduce_plans import (
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
from dpukv_xdp.reproduce_plots import DRAWINGS, Picture, Table
from dpukv_xdp.reproduce_report import compose, to_html, to_markdown, write_report
from dpukv_xdp.reproduce_results import METRICS, Points, Spread, check_claim, limit_of, text_of
from dpukv_xdp.transfer import PRIMITIVES, TransferPlan

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
            config.check()
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
    names = [panel.name for panel in plan.panels]
    assert len(set(names)) == len(names)


def test_two_figures_share_a_run() -> None:
    runs = expand(find_plans(["fig11", "fig5"]), "smoke")
    assert any(run.plans == ("fig5", "fig11") for run in runs)


def test_a_smaller_size_has_fewer_and_shorter_runs() -> None:
    seconds = {
        size: sum(run.settings.get("seconds", 0) for run in expand(find_plans([]), size))
        for size in load_sizes()
    }
    assert seconds["smoke"] < seconds["default"] / 10 < seconds["paper"] / 1000


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
    """Keys in the order in which they were measured; nothing is."""
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
    """Progress that nobody watches."""


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
    """Throughput of lat over dpu-only, held against 1.2 times."""
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


def two_points(lat: Sequence[float], dpu_only: Sequence[float]) -> Points:
    """Both designs under one load, with these throughputs."""
    runs, lines = [], []
    for design, values in (("lat", lat), ("dpu-only", dpu_only)):
        for repeat, value in enumerate(values):
            settings = {"design": design, "workload": "B", "distribution": "uniform", "window": 64}
            run = Run(("fig11",), "bench", settings, repeat)
            runs.append(run)
            lines.append(
                {
                    "key": run.key,
                    "machine": MACHINE,
                    "result": {**made_up(run), "throughput_mops": value},
                }
            )
    return Points.of(runs, lines)


@pytest.mark.parametrize(
    ("lat", "verdict", "words"),
    [
        ([12.0, 1.0, 13.0], "within", "1.20 times here, 1.20 times in the paper"),
        ([20.0], "same way", "in the same direction: too fast"),
        ([5.0], "other way", "the other way round: too slow"),
    ],
)
def test_a_ratio_of_medians_is_held_against_the_paper(
    lat: list[float], verdict: str, words: str
) -> None:
    found = check_claim(ratio_claim(), two_points(lat, [10.0, 9.0, 11.0]))
    assert found is not None
    assert found.verdict == verdict
    assert words in found.sentence()


def test_a_claim_without_runs_is_no_finding() -> None:
    assert check_claim(ratio_claim(), two_points([1.0], [])) is None
    assert check_claim(ratio_claim(), two_points([1.0], [0.0])) is None


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
    assert points.values(mixed, "wire_request_set") == [pytest.approx(88.0)]
    assert points.values(mixed, "wire_response_set") == [pytest.approx(72.0)]


@pytest.mark.parametrize(
    ("changes", "limit"),
    [
        ({"limit": "server"}, "server"),
        ({"cores": 0.5}, "others"),
        ({"busy_fraction": 0.95}, "processing on the host"),
        ({}, "the host, which also communicates"),
    ],
)
def test_what_limits_a_run(changes: dict[str, Any], limit: str) -> None:
    result = made_up(expand(find_plans(["fig11"]), "smoke")[0])
    if "limit" in changes:
        result |= changes
    else:
        result["roles"]["host"] = {**result["roles"]["host"], **changes}
    assert limit_of(result) == limit


def test_the_curve_is_read_where_it_crosses_50_us() -> None:
    runs = [run for run in expand(find_plans(["fig2"]), "smoke") if run.kind == "bench"]
    lines = [line_of(run) for run in runs]
    for line in lines:
        slow = line["settings"]["window"] == 64
        line["result"]["throughput_mops"] = 20.0 if slow else 10.0
        line["result"]["latency_us"]["p50"] = 90.0 if slow else 10.0
    points = Points.of(runs, lines)
    assert points.values(points.points[0], "throughput_at_50us") == [pytest.approx(15.0)]


# ---- The report


def made_up(run: Run) -> Any:
    """A result of the kind that such a run has."""
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
            "throughput_mops": 4.0 * cores,
            "transfer_us": 2.0 + cores,
            "door_mops": {"dpu": 3.0 * cores, "host": 1.0 * cores},
        }
        for cores in runner.MODEL_CORES
    ]


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with the report of all figures."""
    output = tmp_path_factory.mktemp("report")
    plans = find_plans([])
    runs = expand(plans, "smoke")
    written = write_report(plans, runs, "smoke", [line_of(run) for run in runs], output)
    assert written.missing == {}
    return output


class Reader(HTMLParser):
    """What a browser would show: headings, pictures, tables; and what it would have to fetch."""

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


def test_the_html_shows_every_figure_and_needs_no_network(report: Path) -> None:
    text = (report / "report.html").read_text()
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
    for sentence in INCONSISTENCIES:
        assert sentence.partition('"')[0] in text


def test_markdown_says_the_same(report: Path) -> None:
    markdown = (report / "report.md").read_text()
    page = (report / "report.html").read_text()
    pictures = re.findall(r"!\[[^\]]*\]\(([^)]*)\)", markdown)
    assert len(pictures) == page.count("<img ")
    assert all((report / picture).stat().st_size > 8000 for picture in pictures)
    assert markdown.count("\n| --- ") == page.count("<table>")
    rows = len(re.findall(r"^\| ", markdown, re.MULTILINE))
    assert rows - 2 * page.count("<table>") == page.count("<tr>") - page.count("<thead>")
    for plan in find_plans([]):
        assert f"## {plan.title}" in markdown
    assert "Imagined Processor" in markdown
    assert "Imagined Processor" in page


def test_every_section_has_its_four_parts(report: Path) -> None:
    plans = find_plans([])
    runs = expand(plans, "smoke")
    document = compose(plans, runs, "smoke", [line_of(run) for run in runs])
    for plan, section in zip(plans, document.sections, strict=False):
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
        assert not named or [row[0] for row in table.rows] == named


def test_a_report_of_nothing_says_so() -> None:
    plans = find_plans([])
    document = compose(plans, expand(plans, "smoke"), "smoke", [])
    page, markdown = to_html(document), to_markdown(document)
    assert page.count("Nothing of this was measured.") == len(plans)
    assert markdown.count("Nothing of this was measured.") == len(plans)
    assert "<img" not in page


def test_a_store_that_answered_nothing_is_shown_all_the_same() -> None:
    plans = find_plans(["fig2", "table1", "fig6", "fig10", "fig13"])
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


# ---- The command


def test_the_command_lists_what_it_would_do() -> None:
    said = CliRunner().invoke(command, ["--list", "fig11", "fig9", "--smoke"])
    assert said.exit_code == 0
    assert [line.split()[0] for line in said.output.splitlines()[:2]] == ["fig9", "fig11"]


def test_every_evaluated_design_is_in_figure_11() -> None:
    shown = {run.settings["design"] for run in expand(find_plans(["fig11"]), "smoke")}
    assert shown == {design.name for design in DESIGNS.values() if design.is_compared}
