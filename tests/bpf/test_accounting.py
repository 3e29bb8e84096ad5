# SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
"""CPU times in results are true: each method is compared with a load of known time."""

import threading
import time
from collections.abc import Callable

import numpy as np
import pytest
from bpf.harness import CPU, OTHER_CPU, Dpu, Verdict, request_frame

from dpukv_xdp.base.patience import patient
from dpukv_xdp.bench.intervals import Interval, accounting_notes, roles_of
from dpukv_xdp.kernel import loader
from dpukv_xdp.load.loadgen import Snapshot
from dpukv_xdp.native.engines import HostCore
from dpukv_xdp.native.threads import NativeThread
from dpukv_xdp.wire import abi
from dpukv_xdp.wire.codec import Request

FRAME = request_frame([Request.get(b"known")])
SPIN_SECONDS = 0.3


def test_thread_time_is_what_a_thread_has_spun() -> None:
    """The host's method, a thread's CPU clock, against a loop of known length."""
    stop = threading.Event()

    has_spun = threading.Event()
    own_seconds = []

    def spin_then_sleep() -> int:
        end = time.thread_time() + SPIN_SECONDS
        while time.thread_time() < end:
            pass
        own_seconds.append(time.thread_time())
        has_spun.set()
        stop.wait()
        own_seconds.append(time.thread_time())
        return 0

    thread = NativeThread("known load", OTHER_CPU, spin_then_sleep, stop.set)
    thread.start(lambda: None)
    assert has_spun.wait(patient(20))
    time.sleep(SPIN_SECONDS)  # sleeping must not count
    used_seconds = thread.cpu_ns() / 1e9
    thread.stop()
    assert SPIN_SECONDS <= own_seconds[0] <= used_seconds <= own_seconds[1]
    assert own_seconds[1] - own_seconds[0] < SPIN_SECONDS, "it slept"


@pytest.mark.parametrize("stall_ms", [0, 10, abi.KV_STALL_PERIOD_MS - 1])
def test_a_stalled_host_core_is_used_in_the_rest_of_each_period(stall_ms: int) -> None:
    host = HostCore(OTHER_CPU)
    host.set_stall(stall_ms)
    host.start()
    try:
        before_ns, start_ns = host.thread.cpu_ns(), time.monotonic_ns()
        time.sleep(10 * abi.KV_STALL_PERIOD_MS / 1e3)
        used_ns, passed_ns = host.thread.cpu_ns() - before_ns, time.monotonic_ns() - start_ns
        periods = passed_ns / (abi.KV_STALL_PERIOD_MS * 1e6)
        assert used_ns <= passed_ns - (int(periods) - 1) * stall_ms * 1e6
        assert used_ns > 0
    finally:
        host.stop()


@pytest.mark.needs("BPF run-time statistics")
def test_program_time_is_what_a_program_has_waited(load: Callable[..., Dpu]) -> None:
    """The DPU's method, BPF run-time statistics, against waits of KV_WAIT_NS each."""
    dpu = load(depth=(0, 0))
    dpu.reset(engine_cpu=CPU + 1)
    with loader.enabled_stats():
        before = loader.program_stats(dpu.receive_fd)
        start_ns = time.monotonic_ns()
        for _ in range(abi.KV_STALLED_WAITS):
            assert dpu.receive(FRAME)[0] == Verdict.DROP
        passed_ns = time.monotonic_ns() - start_ns
        after = loader.program_stats(dpu.receive_fd)
    waited_ns = abi.KV_STALLED_WAITS * abi.KV_WAIT_NS
    assert dpu.counters()["WAIT_TIMEOUTS"] == abi.KV_STALLED_WAITS
    assert after[1] - before[1] == abi.KV_STALLED_WAITS
    assert waited_ns <= after[0] - before[0] <= passed_ns


def test_statistics_that_are_off_count_nothing(load: Callable[..., Dpu]) -> None:
    dpu = load(depth=(0, 0))
    before = loader.program_stats(dpu.receive_fd)
    dpu.receive(FRAME)
    assert loader.program_stats(dpu.receive_fd) == before


def test_a_sampled_wait_is_in_the_stage_clocks(load: Callable[..., Dpu]) -> None:
    """One frame in KV_STAGE_FRAMES is timed; this one waits for KV_WAIT_NS."""
    dpu = load(depth=(0, 0))
    dpu.reset(engine_cpu=CPU + 1)
    dpu.set_queue(sampled=abi.KV_STAGE_FRAMES - 1)
    start_ns = time.monotonic_ns()
    dpu.receive(FRAME)
    passed_ns = time.monotonic_ns() - start_ns
    queue = dpu.queue()
    assert (queue["stage_frames"], queue["stage_requests"]) == (1, 1)
    stage_ns = {stage: int(queue["stage_ns"][stage]) for stage in abi.Stage}
    assert stage_ns[abi.Stage.WAIT] >= abi.KV_WAIT_NS
    for stage in (abi.Stage.RECEIVE, abi.Stage.PARSE, abi.Stage.PREPARE):
        assert stage_ns[stage] > 0
    assert stage_ns[abi.Stage.SEND] == 0
    assert sum(stage_ns.values()) <= passed_ns, "no stage contains another one"


@pytest.mark.parametrize("napi", [None, {7: {"cpu": CPU, "cpu_ns": 0}}])
def test_roles_are_differences_of_what_was_counted(napi: dict[int, dict[str, int]] | None) -> None:
    """The client uses half a core, with a tenth of DPU on top of it or on a thread of its own."""
    interval = Interval(
        before=snapshot(0, 0, 0),
        after=snapshot(10**9, 500_000_000, 1_000_000),
        server_before=server_stats(0, napi),
        server_after=server_stats(10**8, napi and {7: {"cpu": CPU, "cpu_ns": 10**8}}),
    )
    roles = roles_of(interval, interval)
    client, dpu, host = roles["client"], roles["dpu"], roles["host"]
    assert client
    assert dpu
    assert host
    assert dpu["cpu_ns_per_op"] == 100
    assert client["cpu_ns_per_op"] == (500 if napi else 400)
    assert host["cores"] == pytest.approx(0.1)
    assert host["busy_fraction"] == pytest.approx(0.1)
    assert (client["stolen_fraction"], host["stolen_fraction"]) == (0.5, 0.9)


def test_the_host_s_time_is_the_run_s_and_xdp_s_the_accounting_phase_s() -> None:
    """The accounting phase runs at half the rate here, which the client's two counts tell."""
    run = interval_of(host_ns=8 * 10**8, responses=1_000_000)
    accounting = interval_of(host_ns=10**8, responses=500_000)
    roles = roles_of(run, accounting)
    assert roles["host"] == {
        "cores": 0.8,
        "cpu_ns_per_op": 800,
        "busy_fraction": 0.8,
        "stolen_fraction": pytest.approx(0.2),
    }
    assert roles["dpu"] == {"cores": pytest.approx(0.1), "cpu_ns_per_op": 200}
    client = roles["client"]
    assert client
    assert client["cores"] / client["cpu_ns_per_op"] * 1e3 == accounting.throughput_mops() == 0.5


@pytest.mark.parametrize(
    ("accounting_mops", "notes"), [(10.0, 0), (8.01, 0), (11.99, 0), (7.9, 1), (12.1, 1)]
)
def test_a_phase_that_is_far_from_the_run_is_noted(accounting_mops: float, notes: int) -> None:
    assert len(accounting_notes(10.0, accounting_mops)) == notes


def interval_of(host_ns: int, responses: int) -> Interval:
    """Return one second in which XDP used as much time as the host."""
    return Interval(
        before=snapshot(0, 0, 0),
        after=snapshot(10**9, 900_000_000, responses),
        server_before=server_stats(0, None),
        server_after=server_stats(host_ns, None),
    )


def snapshot(at_ns: int, cpu_ns: int, responses: int) -> Snapshot:
    received = {"responses": responses}
    return Snapshot(at_ns, {}, received, np.zeros(1, np.uint64), cpu_ns, 0)


def server_stats(ns: int, napi: dict[int, dict[str, int]] | None) -> dict[str, object]:
    return {
        "xdp": {"run_time_ns": ns},
        "napi": napi,
        "hosts": [{"cpu_ns": ns}],
        "engines": [{"busy_ticks": ns, "requests": ns}],
        "ticks_per_second": 10**9,
        "stages": {},
    }
