# SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
"""The model: against formulas, its own laws, the paper and this machine."""

import json
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from dpukv_xdp.base.errors import MissingError, UsageError
from dpukv_xdp.model.bench_costs import apart, costs_from_bench, on_dpu
from dpukv_xdp.model.cost_files import (
    MEASURED_PATH,
    costs_toml,
    find_costs,
    read_costs,
    read_results,
)
from dpukv_xdp.model.costs import BusCosts, ClientCosts, Cost, Costs, EngineCosts, thread_speed
from dpukv_xdp.model.events import run_events
from dpukv_xdp.model.model import (
    Point,
    figure12,
    host_cores_limit,
    plot_sweep,
    simulate,
    sweep,
)
from dpukv_xdp.model.paper_costs import costs_from_paper, fit_paper, table1_shares
from dpukv_xdp.model.validation import (
    MEASURED_ERROR_MAX,
    Check,
    summary,
    validate_measured,
    validate_paper,
    validation_json,
)
from dpukv_xdp.model.world import BLOCK_BATCHES, BLOCKS_MAX, BLOCKS_MIN, WARM_UP_BATCHES, Machine
from dpukv_xdp.topology.designs import DESIGNS

COMPARED = [design.name for design in DESIGNS.values() if design.is_compared]
ENGINE = EngineCosts(
    receive=Cost(request_ns=10),
    parse=Cost(request_ns=20),
    process=Cost(request_ns=40),
    prepare=Cost(request_ns=15),
    send=Cost(request_ns=15),
)
PLAIN = Costs(
    name="plain",
    source="round numbers",
    host=ENGINE,
    dpu=ENGINE,
    window=256,
    batch_packets=16,
    dpu_cores=1,
    host_cores=1,
    variation=0.0,
)
"""Costs of 100 ns per request in every stage, and of nothing else."""
ERROR_TOLERANCE = 0.02


# ---- Against formulas


def test_a_saturated_closed_loop_has_its_core_s_rate_and_little_s_latency() -> None:
    found = simulate(PLAIN, Point(design="dpu-only"))
    assert found.throughput_mops == pytest.approx(10.0, rel=1e-3)
    assert found.latency_us["mean"] == pytest.approx(256 / 10, rel=0.02)
    assert found.utilisation["dpu"] == pytest.approx(1.0, rel=1e-3)
    assert found.bottleneck == "dpu"


@pytest.mark.parametrize("load", [0.3, 0.6, 0.8])
def test_an_open_loop_on_one_core_waits_as_m_d_1_does(load: float) -> None:
    costs = replace(PLAIN, batch_packets=1, burst_packets=1)
    service_us = 0.1
    found = simulate(costs, Point(design="dpu-only", rate_mops=load / service_us))
    expected_us = service_us * (1 + load / (2 * (1 - load)))
    assert found.throughput_mops == pytest.approx(load / service_us, rel=0.05)
    assert found.latency_us["mean"] == pytest.approx(expected_us, rel=0.1)


def test_one_packet_outstanding_takes_the_sum_of_its_stages() -> None:
    """Figure 10a: receive, parse, transfer, process, transfer back, send; prepare overlaps."""
    costs = replace(
        PLAIN,
        batch_packets=1,
        bus=BusCosts(latency_us=2.0),
        wire_latency_us=3.0,
        post=Cost(unit_ns=200),
        serve=Cost(unit_ns=300),
    )
    found = simulate(costs, Point(design="lat", window=1))
    expected_us = 3.0 + 0.030 + 0.2 + 2.0 + 0.040 + 0.3 + 2.0 + 0.015 + 3.0
    assert found.latency_us["mean"] == pytest.approx(expected_us, rel=1e-3)
    assert found.throughput_mops == pytest.approx(1 / expected_us, rel=1e-3)
    assert found.transfer_us == pytest.approx(2.0)


def test_preparing_longer_than_the_host_takes_is_what_counts() -> None:
    dpu = replace(ENGINE, prepare=Cost(request_ns=9000))
    found = simulate(
        replace(PLAIN, dpu=dpu, batch_packets=1, bus=BusCosts(latency_us=2.0)),
        Point(design="lat", window=1),
    )
    assert found.latency_us["mean"] == pytest.approx(0.030 + 9.0 + 0.015, rel=1e-3)


@pytest.mark.parametrize(
    ("changes", "resource", "most_mops"),
    [
        ({"bus": BusCosts(request_ns=200)}, "bus", 5.0),
        ({"wire_gbits_per_s": 2.56}, "wire", 4.0),
    ],
)
def test_bus_and_wire_limit(changes: dict[str, Any], resource: str, most_mops: float) -> None:
    found = simulate(replace(PLAIN, **changes), Point(design="lat"))
    assert found.throughput_mops == pytest.approx(most_mops, rel=0.01)
    assert found.bottleneck == resource


def test_many_to_one_is_limited_by_its_one_core() -> None:
    found = simulate(replace(PLAIN, dpu_cores=8, host_cores=8), Point(design="sav"))
    assert found.host_cores == 1
    assert found.throughput_mops == pytest.approx(25.0, rel=0.02)
    assert found.bottleneck == "host"


def test_a_fused_core_that_sends_late_answers_a_burst_behind_the_next_one_s_parsing() -> None:
    """Section 4.3: equal throughput, and a latency that is longer by 30 of 100 ns per request."""
    costs = replace(PLAIN, batch_packets=64, burst_packets=64, window=192)
    soon, late = (
        simulate(replace(costs, sends_late=is_late), Point(design="cpu-only"))
        for is_late in (False, True)
    )
    assert late.throughput_mops == pytest.approx(soon.throughput_mops, rel=1e-3)
    costs = replace(costs, batch_packets=1, burst_packets=1)
    soon, late = (
        simulate(replace(costs, sends_late=is_late), Point(design="cpu-only", rate_mops=8.0))
        for is_late in (False, True)
    )
    assert late.latency_us["mean"] - soon.latency_us["mean"] == pytest.approx(0.8 * 0.030, rel=0.25)


def test_one_store_behind_two_doors_costs_more_and_only_there() -> None:
    costs = replace(PLAIN, dpu_cores=2, host_cores=3)
    shared = replace(costs, shared_store=Cost(request_ns=100))
    for design in COMPARED:
        before, after = (simulate(each, Point(design=design)) for each in (costs, shared))
        if DESIGNS[design].has_one_store:
            assert after.throughput_mops < 0.9 * before.throughput_mops
        else:
            assert after.throughput_mops == before.throughput_mops


def test_busy_host_threads_slow_each_other_and_those_beyond_the_last_take_turns() -> None:
    assert thread_speed(1, 0.25) == 1.0
    assert thread_speed(5, 0.25) == pytest.approx(0.5)
    carried = [count * thread_speed(count, 0.1, threads_max=12) for count in (8, 12, 16, 24)]
    assert carried[0] < carried[1]
    assert carried[1] == pytest.approx(carried[2]) == pytest.approx(carried[3])
    costs = replace(PLAIN, dpu_cores=24, host_threads=8, host_threads_max=12, host_contention=0.1)
    assert simulate(costs, Point(design="lat")).host_cores == 12
    slow, fast = (
        simulate(each, Point(design="lat", host_cores=12)).throughput_mops
        for each in (costs, replace(costs, host_contention=0.0))
    )
    assert slow < 0.9 * fast


def test_handing_over_takes_as_long_on_a_busy_host() -> None:
    """The transfer waits for the bus, not for shared caches."""
    costs = replace(
        PLAIN,
        serve=Cost(request_ns=160),
        parked_transfers=1,
        host_threads=8,
        host_contention=0.5,
    )
    assert costs.host_slowdown(1) == pytest.approx(1 / 4.5)
    found = simulate(costs, Point(design="sav"))
    assert found.throughput_mops == pytest.approx(1e3 / (40 / 4.5 + 160), rel=0.02)


def test_responses_leave_before_the_next_burst_or_with_its_frames() -> None:
    """A DPU sends finished responses at once; the lab's XDP needs a later frame for them."""
    lab = replace(
        PLAIN, batch_packets=1, parked_transfers=8, transfer_packets=1, carried_by_frames=True
    )
    soon, carried = (
        simulate(
            replace(lab, carried_by_frames=is_lab, flush_after_us=30.0),
            Point(design="lat", rate_mops=8.0),
        )
        for is_lab in (False, True)
    )
    assert carried.latency_us["p50"] > soon.latency_us["p50"] + 0.05


def test_with_time_for_it_the_lab_s_xdp_waits_and_a_late_frame_is_flushed_for() -> None:
    lab = replace(
        PLAIN,
        batch_packets=1,
        parked_transfers=8,
        transfer_packets=1,
        carried_by_frames=True,
        flush_after_us=30.0,
    )
    waits = simulate(lab, Point(design="lat", rate_mops=1.0))
    assert waits.latency_us["p50"] == pytest.approx(0.085, abs=0.02)
    # The bus makes a wait longer than the time between frames, so that some need the flush.
    far = replace(lab, bus=BusCosts(latency_us=20.0))
    parks = simulate(far, Point(design="lat", rate_mops=0.1))
    assert 40.0 < parks.latency_us["p50"] < 40.2 + 30.0
    assert 70.0 < parks.latency_us["p99"] < 75.0


def test_what_a_pause_has_parked_stays_parked() -> None:
    lab = replace(
        PLAIN,
        batch_packets=1,
        window=64,
        parked_transfers=24,
        transfer_packets=1,
        carried_by_frames=True,
        dpu=replace(ENGINE, receive=Cost(request_ns=50)),
    )
    calm, paused = (
        simulate(replace(lab, pause_us=pause_us), Point(design="lat", window=64))
        for pause_us in (0.0, 1.0)
    )
    assert paused.throughput_mops == pytest.approx(calm.throughput_mops, rel=0.01)
    assert paused.latency_us["mean"] != calm.latency_us["mean"]


def test_frames_for_the_host_cost_the_core_that_has_a_door_too_more() -> None:
    lab = replace(
        PLAIN,
        batch_packets=1,
        client=ClientCosts(lump=16, is_in_lab=True),
        forward=Cost(unit_ns=10),
    )
    dear = replace(lab, two_doors=Cost(unit_ns=20), two_doors_burst_ns=1600)
    for design in ("cpu-only", "shrd"):
        point = Point(design=design, host_share=0.0 if design == "cpu-only" else 0.5)
        before, after = (simulate(costs, point).throughput_mops for costs in (lab, dear))
        assert (after < 0.7 * before) is (design == "shrd")
        assert (after == before) is (design == "cpu-only")


# ---- The model's own laws


@pytest.mark.parametrize("design", [*COMPARED, "inverse"])
def test_batches_are_neither_lost_nor_made(design: str) -> None:
    costs = costs_from_paper("bf2")
    machine = Machine(
        design=DESIGNS[design],
        costs=costs,
        dpu_cores=2,
        host_cores=3,
        requests_per_packet=1,
        window=64,
        host_window=64,
        rate_mops=0.0,
        host_share=0.0,
        seed=1,
    )
    seen = run_events(machine)
    assert seen.sent_batches == seen.answered_batches + seen.outstanding_batches
    assert 0 < seen.outstanding_batches <= 5 * 2  # endpoints times batches per window


@pytest.mark.parametrize("design", COMPARED)
@pytest.mark.parametrize("over", ["dpu_cores", "host_cores"])
def test_more_cores_never_hurt(design: str, over: str) -> None:
    costs = replace(PLAIN, dpu_cores=4, host_cores=4)
    limit = host_cores_limit(DESIGNS[design], costs, costs.dpu_cores).cores
    counts: list[dict[str, Any]] = [
        {over: count} for count in (2, 3, 4, 6) if over == "dpu_cores" or count <= limit
    ]
    found = [simulate(costs, Point(design=design, **count)).throughput_mops for count in counts]
    assert all(more >= 0.98 * fewer for fewer, more in pairwise(found))


@pytest.mark.parametrize("design", COMPARED)
def test_the_same_seed_gives_the_same(design: str) -> None:
    costs = costs_from_paper("bf2")
    point = Point(design=design)
    once = simulate(costs, point)
    assert once == simulate(costs, point)
    if design == "dual":
        assert once != simulate(costs, replace(point, seed=2))


def test_a_point_ends_as_soon_as_it_is_known_well_enough() -> None:
    known = simulate(PLAIN, Point(design="dpu-only"))
    assert known.batches < WARM_UP_BATCHES + (BLOCKS_MIN + 1) * BLOCK_BATCHES
    found = simulate(costs_from_paper("bf3"), Point(design="lat", dpu_cores=8, host_cores=8))
    assert found.batches < WARM_UP_BATCHES + (BLOCKS_MAX + 1) * BLOCK_BATCHES


def test_latency_grows_with_the_load_and_an_overload_is_said() -> None:
    costs = costs_from_paper("bf2")
    for rates in ((9.0, 18.0), ()):
        curve = sweep(costs, Point(design="lat"), "load", rates)
        latencies = [point.latency_us["mean"] for point in curve]
        assert all(more >= 0.99 * less for less, more in pairwise(latencies))
        assert latencies[-1] > 1.3 * latencies[0]
        assert not any(point.is_saturated for point in curve)
    assert simulate(costs, Point(design="lat", rate_mops=40.0)).is_saturated


@pytest.mark.parametrize(
    "point",
    [
        Point(design="none"),
        Point(design="lat", dpu_cores=0),
        Point(design="lat", host_cores=0),
        Point(design="lat", window=1 << 20),
        Point(design="lat", requests_per_packet=65),
        Point(design="lat", rate_mops=-1.0),
        Point(design="lat", rate_mops=float("nan")),
        Point(design="lat", window=0),
        Point(design="lat", requests_per_packet=0),
        Point(design="lat", dpu_cores=257),
        Point(design="lat", host_cores=2),
        Point(design="sav", host_cores=2),
        Point(design="dpu-only", host_cores=1),
        Point(design="dual", host_share=1.0),
    ],
)
def test_what_cannot_be_is_refused(point: Point) -> None:
    with pytest.raises(UsageError):
        simulate(PLAIN, point)


# ---- Costs


def test_stage_shares_are_table_1_s() -> None:
    shares = table1_shares("BF-2", "C")
    assert shares["get_set"] == pytest.approx(0.131, abs=0.001)
    costs = costs_from_paper("bf2", "C")
    assert costs.host.process.request_ns / costs.host.request_ns(1) == pytest.approx(
        shares["get_set"]
    )


def test_each_fitted_parameter_says_what_it_is_fitted_on() -> None:
    for dpu in ("bf2", "bf3"):
        assert all(each.fitted_on for each in fit_paper(dpu).parameters)
    with pytest.raises(UsageError):
        fit_paper("local")


@pytest.mark.parametrize("dpu", ["bf2", "bf3"])
def test_costs_survive_toml(dpu: str, tmp_path: Path) -> None:
    costs = costs_from_paper(dpu)
    (tmp_path / "costs.toml").write_text(costs_toml(costs))
    assert read_costs(tmp_path / "costs.toml") == costs


@pytest.mark.parametrize("text", ["name = 1", "[[", 'name = "x"'])
def test_a_file_without_costs_is_refused(text: str, tmp_path: Path) -> None:
    for name in ("costs.toml", "results.json"):
        (tmp_path / name).write_text(text)
        with pytest.raises(UsageError, match=name):
            read_costs(tmp_path / name)


def bench_result(design: str, requests: int, mops: float, **changes: Any) -> dict[str, Any]:
    """Return the part of bench.measure's result that the model reads, with round costs: 8 and 10 ns
    per request, 100 ns per packet.
    """
    zero = dict.fromkeys(("receive", "parse", "process", "wait", "prepare", "send"), 0.0)
    packet_ns = 100 / requests
    dpu = {**zero, "parse": packet_ns / 2 + 4, "prepare": packet_ns / 2 + 4}
    host = {**zero, "process": 25.0}
    dpu_ns = packet_ns + 8
    if DESIGNS[design].processing == ("dpu",):
        dpu, host = {**dpu, "process": 50.0}, zero
        dpu_ns += 50
    if "host" in DESIGNS[design].communication:
        host = {**host, "parse": packet_ns + 8, "send": 400 / requests}
    return {
        "design": design,
        "workload": "B",
        "distribution": "uniform",
        "key_size": 8,
        "value_size": 8,
        "requests_per_packet": requests,
        "window": 64,
        "rate": None,
        "respond": "adaptive",
        "emulation": None,
        "host_share": 0.5 if len(DESIGNS[design].communication) > 1 else None,
        "throughput_mops": mops,
        "packets_mpps": mops / requests,
        "latency_us": {"mean": 50.0, "p50": 50.0},
        "roles": {
            "client": {"cores": 0.5, "cpu_ns_per_op": 0.5e3 / mops},
            "dpu": {"cores": 0.5, "cpu_ns_per_op": dpu_ns},
        },
        "stages_ns_per_op": {"dpu": dpu, "host": host},
        "wire_bytes_per_op": {"request": 32 + 48 / requests, "response": 32 + 48 / requests},
        "machine": {"cores": 2, "cpu": "a processor"},
        **changes,
    }


def bench_results() -> list[dict[str, Any]]:
    """Return one run of each design from which costs are derived, with two packet sizes."""
    return [
        bench_result(design, requests, mops)
        for design in ("cpu-only", "dpu-only", "lat")
        for requests, mops in ((1, 2.0), (45, 20.0))
    ]


def test_costs_of_this_machine_are_its_clocks_by_packet_and_request() -> None:
    costs = costs_from_bench(bench_results())
    assert costs.dpu.parse.unit_ns == pytest.approx(50)
    assert costs.dpu.parse.request_ns == pytest.approx(4)
    assert costs.dpu.process.request_ns == pytest.approx(50)
    assert costs.host.process.request_ns == pytest.approx(25)
    assert costs.host.send.unit_ns == pytest.approx(400)
    assert costs.packet_header_bytes == 48
    assert costs.client.is_in_lab
    assert not apart(costs).client.is_in_lab
    assert not costs.two_doors


def test_what_two_doors_cost_is_what_is_left_of_xdp_s_core() -> None:
    """160 ns more per packet of a burst, whatever share of the packets is for the host."""
    results = bench_results()
    for design, own, share in (("shrd", "dpu-only", 0.5), ("dual", "lat", 0.25)):
        for requests, mops in ((1, 2.0), (45, 20.0)):
            result = bench_result(design, requests, mops, host_share=share)
            dpu_ns = bench_result(own, requests, mops)["roles"]["dpu"]["cpu_ns_per_op"]
            client_ns = result["roles"]["client"]["cpu_ns_per_op"] + 160 / requests
            result["roles"] = {
                "client": {"cores": mops * client_ns / 1e3, "cpu_ns_per_op": client_ns},
                "dpu": {
                    "cores": 0.5,
                    "cpu_ns_per_op": (1 - share) * dpu_ns + share * 7.0 / requests,
                },
            }
            results.append(result)
    for result in results:
        if result["design"] == "cpu-only":
            result["roles"]["dpu"]["cpu_ns_per_op"] = 7.0 / result["requests_per_packet"]
    costs = costs_from_bench(results)
    assert costs.forward == Cost(unit_ns=pytest.approx(7.0))
    assert costs.two_doors_burst_ns == pytest.approx(16 * 160, rel=0.02)
    assert costs.two_doors == Cost()


def test_accounting_does_not_count_as_work() -> None:
    """CPU time is measured while the kernel's statistics slow everything down."""
    plain = bench_results()
    slowed = []
    for result in plain:
        roles = {
            name: {**role, "cpu_ns_per_op": 2 * role["cpu_ns_per_op"]}
            for name, role in result["roles"].items()
        }
        slowed.append({**result, "roles": roles})
    assert costs_from_bench(slowed).dpu.parse.unit_ns == pytest.approx(
        costs_from_bench(plain).dpu.parse.unit_ns
    )


def test_costs_without_the_designs_that_they_are_made_of_are_refused() -> None:
    with pytest.raises(UsageError, match="no results of dpu-only"):
        costs_from_bench([r for r in bench_results() if r["design"] != "dpu-only"])
    emulated = [{**result, "emulation": "emulated bf2"} for result in bench_results()]
    with pytest.raises(UsageError):
        costs_from_bench(emulated)


def test_a_profile_slows_the_dpu_and_adds_its_bus() -> None:
    costs = apart(costs_from_bench(bench_results()))
    there = on_dpu(costs, "bf2")
    assert there.dpu.parse.request_ns == pytest.approx(costs.dpu.parse.request_ns / 0.85)
    assert there.bus.latency_us == 2.0
    assert not there.forward
    assert on_dpu(costs, "local") == costs


def test_hardware_steers_to_an_emulated_dpu_s_host_door() -> None:
    """In the lab XDP steers by itself, which must not make dual slower than sav."""
    lab = replace(
        costs_from_bench(bench_results()),
        forward=Cost(unit_ns=5000),
        two_doors=Cost(unit_ns=500),
        two_doors_burst_ns=50_000,
    )
    there = on_dpu(apart(lab), "bf2")
    sav, dual = (
        simulate(there, Point(design=design)).throughput_mops for design in ("sav", "dual")
    )
    assert dual >= sav


def test_results_are_read_as_one_as_a_list_and_as_a_comparison(tmp_path: Path) -> None:
    results = bench_results()
    path = tmp_path / "results.json"
    for content in (results, {"results": results, "refused": {}}):
        path.write_text(json.dumps(content))
        assert read_results(path) == results
    path.write_text(json.dumps(results[0]))
    assert read_results(path) == results[:1]
    path.write_text(json.dumps(results))
    assert find_costs(str(path), "local", "C") == apart(costs_from_bench(results))


def test_missing_measurements_are_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("dpukv_xdp.model.cost_files.MEASURED_PATH", tmp_path / "none.json")
    with pytest.raises(MissingError, match="--costs here"):
        find_costs("committed", "local", "C")


# ---- Figures


def test_figure_12_has_the_paper_s_shapes() -> None:
    bf3 = {(row.design, row.cores): row for row in figure12("bf3", cores=(1, 4, 8))}
    assert {design for design, _ in bf3} == {"cpu-only", "dpu-only", "lat", "sav"}
    lat, sav = (
        [bf3[design, cores].prediction.throughput_mops for cores in (1, 4, 8)]
        for design in ("lat", "sav")
    )
    assert lat[2] > 7 * lat[0]
    assert sav[2] < 1.4 * sav[1]
    assert bf3["sav", 8].paper_mops == (20.5, 20.5)
    assert bf3["sav", 1].paper_mops is None
    assert "linear" in bf3["lat", 1].paper_says


def test_a_sweep_can_be_plotted(tmp_path: Path) -> None:
    costs = costs_from_paper("bf2")
    curve = sweep(costs, Point(design="sav"), "dpu-cores", (1, 4))
    plot_sweep({"sav": curve}, "dpu-cores", "scaling", tmp_path / "sweep.png")
    assert (tmp_path / "sweep.png").stat().st_size > 10_000


# ---- Against the paper and this machine


@pytest.fixture(scope="module")
def paper_checks() -> list[Check]:
    return validate_paper()


@pytest.fixture(scope="module")
def measured_checks() -> list[Check]:
    return validate_measured(read_results(MEASURED_PATH))


def test_errors_against_the_paper_are_what_they_were(paper_checks: list[Check]) -> None:
    errors = summary(paper_checks)
    assert errors["throughput, fitted"]["max"] < 0.03
    assert errors["throughput, held out"]["mean"] < 0.05
    assert errors["throughput, held out"]["max"] < 0.12
    assert errors["throughput, a range, held out"]["max"] < 0.10
    assert errors["latency, fitted"]["max"] < 0.02
    assert errors["latency, held out"]["mean"] < 0.14
    assert errors["latency, held out"]["max"] < 0.35
    assert errors["other, held out"]["mean"] < 0.08
    assert errors["other, held out"]["max"] < 0.5


def test_a_large_error_has_a_reason(paper_checks: list[Check]) -> None:
    assert [check.name for check in paper_checks if abs(check.error) > 0.07 and not check.why] == []


def test_what_a_parameter_was_set_by_counts_as_fitted_and_what_follows_as_derived(
    paper_checks: list[Check],
) -> None:
    standing = {check.name: check.standing for check in paper_checks}
    assert standing["bf2 cpu-only A throughput"] == "fitted"
    assert standing["bf2 cpu-only B throughput"] == "derived"
    assert standing["bf2 dual over cpu-only C, throughput"] == "derived"
    assert standing["bf3 cpu-only over dpu-only, throughput, least of A, B, C"] == "derived"
    assert standing["bf3 cpu-only A throughput"] == "fitted"
    assert standing["bf2 lat over dpu-only C, latency"] == "held out"
    assert standing["bf2 shrd over cpu-only C, throughput"] == "held out"
    assert standing["bf3 sav B: saturation"] == "fitted"


def test_a_value_a_range_and_a_wide_range_are_summed_up_apart() -> None:
    def check(low: float, high: float) -> Check:
        return Check("a", "latency", "held out", 1.0, low, high, "x", 0.0, "here", "")

    assert [check(1, 1).span, check(1, 1.2).span, check(1, 2).span] == [
        "value",
        "range",
        "wide range",
    ]
    assert set(summary([check(1, 1), check(1, 1.2), check(1, 2)])) == {
        "latency, held out",
        "latency, a range, held out",
        "latency, a wide range, held out",
    }


def test_this_machine_s_points_are_met_within_what_is_promised(
    measured_checks: list[Check],
) -> None:
    """Larger deviations are in model/validation.py's MEASURED_EXCEPTIONS, each with its reason."""
    off = [
        f"{check.name}, {check.where}: {check.error:+.1%}"
        for check in measured_checks
        if abs(check.error) > MEASURED_ERROR_MAX and not check.why
    ]
    assert off == []
    assert all(not check.why for check in measured_checks if check.kind.startswith("throughput"))


def test_the_committed_errors_are_recomputed(
    paper_checks: list[Check], measured_checks: list[Check]
) -> None:
    committed = json.loads(MEASURED_PATH.with_name("model_validation.json").read_text())
    for part, checks in (("paper", paper_checks), ("measured", measured_checks)):
        before = {(c["name"], c["where"]): c for c in committed[part]["checks"]}
        after = {(c["name"], c["where"]): c for c in validation_json(checks)["checks"]}
        assert before.keys() == after.keys()
        for key, check in after.items():
            tolerance = ERROR_TOLERANCE * max(1.0, abs(check["error"]))
            assert check["error"] == pytest.approx(before[key]["error"], abs=tolerance), key
            assert check["standing"] == before[key]["standing"]


def test_fitted_derived_and_held_out_points_of_this_machine_are_told_apart() -> None:
    results = [
        *bench_results(),
        bench_result("lat", 45, 20.0, window=4),
        bench_result("lat", 8, 10.0),
        bench_result("sav", 45, 20.0),
        bench_result("lat", 45, 20.0, emulation="emulated bf2"),
    ]
    checks = validate_measured(results)
    where = {
        standing: {check.where.split(";")[0] for check in checks if check.standing == standing}
        for standing in ("derived", "held out")
    }
    assert where["held out"] == {
        "B uniform, 45 a packet, window 4",
        "B uniform, 8 a packet, window 64",
    }
    assert where["derived"] == {"B uniform, 45 a packet, window 64"}
    assert len([check for check in checks if check.standing == "fitted"]) == 2 * 6
    assert validate_measured(results[:1]) == []


def test_repeats_count_as_their_median() -> None:
    slow, usual, quick = (bench_result("sav", 45, mops) for mops in (1.0, 20.0, 21.0))
    slow["roles"]["dpu"] = None
    alone, together = (
        validate_measured([*bench_results(), *runs])[-2:]
        for runs in ([usual], [slow, usual, quick])
    )
    for one, three in zip(alone, together, strict=True):
        assert three.where == f"{one.where}; median of 3 runs"
        assert replace(three, where=one.where) == one
