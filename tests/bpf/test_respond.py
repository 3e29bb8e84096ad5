# SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
"""How responses are sent: after a wait, in a later frame, or flushed; and XDP never waits for an
engine that cannot answer.
"""

import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from bpf.harness import (
    ANSWER_SECONDS,
    CPU,
    FLUSH_FRAME_BYTES,
    OTHER_CPU,
    Dpu,
    PlayedEngine,
    Verdict,
    expected_replies,
    reply_frame,
    request_frame,
    run_once,
    serving,
    wait_until,
)

from dpukv_xdp._core._native import ffi, lib
from dpukv_xdp.base.places import BPF_DIR
from dpukv_xdp.native.senders import Senders
from dpukv_xdp.wire import abi
from dpukv_xdp.wire.codec import Reply, Request

HEADROOM_BYTES = 256
"""XDP_PACKET_HEADROOM: room in front of a frame."""
MOST_KEPT_BYTES = 56
"""Upper bound of what the kernel keeps of it: struct xdp_frame."""
WAIT = (0, 0)
DEEPEST = abi.KV_PIPELINE_MAX
ADAPTIVE = (0, 4)


def probe(number: int) -> bytes:
    """Return a frame with one request."""
    return request_frame([Request.probe(number)])


def answer_to(number: int) -> list[Reply]:
    return expected_replies({}, [Request.probe(number)])


def carried(number: int) -> tuple[Verdict, bytes]:
    """Return the verdict and frame of the response to `probe(number)`."""
    return Verdict.TX, reply_frame(answer_to(number))


# ---- Wait ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("depth", [WAIT, (1, 1), (DEEPEST, DEEPEST)])
def test_a_finished_batch_is_answered_in_its_own_frame(
    load: Callable[..., Dpu], depth: tuple[int, int]
) -> None:
    dpu = load(depth=depth)
    PlayedEngine(dpu.pair()).answer(answer_to(1))  # before it arrives: an engine without latency
    assert dpu.receive(probe(1)) == carried(1)
    assert dpu.counters()["RESPONSES_WAITED"] == 1
    assert dpu.in_flight() == 0


def test_waiting_for_a_real_engine(load: Callable[..., Dpu]) -> None:
    """Some waits may time out on a busy or slow machine, but not all."""
    if OTHER_CPU == CPU:
        pytest.skip("waiting for an engine needs a second core")
    dpu = load(depth=WAIT)
    deadline = time.monotonic() + ANSWER_SECONDS
    sent = 0
    with serving(dpu):
        while dpu.counters().get("RESPONSES_WAITED", 0) <= 20:
            assert time.monotonic() < deadline, dpu.counters()
            for number in range(sent, sent + 50):
                assert dpu.exchange(probe(number)) == carried(number)
            sent += 50
    counters = dpu.counters()
    assert counters["RESPONSES_WAITED"] + counters.get("RESPONSES_FLUSHED", 0) == sent


def test_a_wait_runs_out_and_after_some_nobody_waits(load: Callable[..., Dpu]) -> None:
    """Each wait that times out parks its batch. XDP waits again once the engine makes progress."""
    dpu = load(depth=WAIT)
    engine = PlayedEngine(dpu.pair())
    for number in range(3 * abi.KV_STALLED_WAITS):
        assert dpu.receive(probe(number))[0] == Verdict.DROP
        timeouts = min(number + 1, abi.KV_STALLED_WAITS)
        assert dpu.counters()["WAIT_TIMEOUTS"] == timeouts
        assert dpu.in_flight() == number + 1
    engine.answer(answer_to(0))
    assert dpu.receive(probe(100)) == carried(0)
    for _ in range(abi.KV_STALLED_WAITS + 2):
        assert dpu.receive(probe(101))[0] == Verdict.DROP
    assert dpu.counters()["WAIT_TIMEOUTS"] == 2 * abi.KV_STALLED_WAITS


def test_no_engine(load: Callable[..., Dpu]) -> None:
    dpu = load(depth=WAIT)
    dpu.reset(alive=False)
    for times in (1, 2):
        assert dpu.receive(probe(1))[0] == Verdict.TX
        assert dpu.counters()["RESPONSES_REJECTED"] == times
    assert dpu.in_flight() == dpu.pair()["request_control"]["published"] == 0


def test_an_engine_on_this_core_is_not_waited_for(load: Callable[..., Dpu]) -> None:
    dpu = load(depth=WAIT)
    dpu.reset(engine_cpu=CPU)
    engine = PlayedEngine(dpu.pair())
    for number in range(10):
        assert dpu.receive(probe(number))[0] == Verdict.DROP
    assert "WAIT_TIMEOUTS" not in dpu.counters()
    engine.answer(answer_to(0))
    assert dpu.receive(probe(10)) == carried(0), "what is finished goes out all the same"


# ---- Pipeline ------------------------------------------------------------------------------------


@pytest.mark.parametrize("depth", [1, DEEPEST])
def test_pipeline_parks_as_many_as_its_depth(load: Callable[..., Dpu], depth: int) -> None:
    """Then XDP waits; while the engine works, each frame carries the oldest response."""
    dpu = load(depth=(depth, depth))
    engine = PlayedEngine(dpu.pair())
    for number in range(depth):
        assert dpu.receive(probe(number))[0] == Verdict.DROP
    assert "WAIT_TIMEOUTS" not in dpu.counters()
    for number in range(depth, depth + 5):
        engine.answer(answer_to(number - depth))
        assert dpu.receive(probe(number)) == carried(number - depth)
        assert dpu.in_flight() == depth
    assert dpu.counters()["RESPONSES_CARRIED"] == 5
    assert dpu.receive(probe(99))[0] == Verdict.DROP
    assert dpu.counters()["WAIT_TIMEOUTS"] == 1, "one more than the depth is waited for"


def test_a_frame_carries_a_response_of_another_size_and_another_client(
    load: Callable[..., Dpu],
) -> None:
    """Tagged and untagged, long and short: it contains no byte of the current frame."""
    dpu = load(depth=(DEEPEST, DEEPEST))
    engine = PlayedEngine(dpu.pair())
    sizes = [0, 900, 3, 1800, 8, 9, 0]
    tags = [None, 7, None, None, 0xFFF, 7, None]
    previous = None
    for number, (size, tag) in enumerate(zip(sizes, tags, strict=True)):
        request = Request.set(b"key", b"\xff" * size, number)
        replies = [Reply(abi.KV_OP_GET, 0, b"v" * sizes[-number], number, request.key_hash)]
        verdict, out = dpu.receive(request_frame([request], vlan_tag=tag))
        assert (verdict, out) == previous if previous else verdict == Verdict.DROP
        engine.answer(replies)
        previous = Verdict.TX, reply_frame(replies, vlan_tag=tag)


# ---- The depth that adapts -----------------------------------------------------------------------


def answered_frames(dpu: Dpu, engine: PlayedEngine, count: int) -> None:
    """Send frames whose answers are ready, so that nothing is parked afterwards."""
    for _ in range(count):
        engine.answer(answer_to(1))
        assert dpu.receive(probe(1))[0] == Verdict.TX


def depth_of(dpu: Dpu) -> int:
    return int(dpu.queue()["depth"])


def flush_some(dpu: Dpu, engine: PlayedEngine, batches: int) -> None:
    """Leave that many batches to the sender, and flush them."""
    for _ in range(batches):
        assert dpu.receive(probe(2))[0] == Verdict.DROP
    for _ in range(batches):
        engine.answer(answer_to(2))
        assert dpu.flush() == carried(2)


def test_depth_grows_after_calm_frames_up_to_the_setting(load: Callable[..., Dpu]) -> None:
    dpu = load(depth=ADAPTIVE)
    engine = PlayedEngine(dpu.pair())
    for depth in range(ADAPTIVE[1]):
        answered_frames(dpu, engine, abi.KV_CALM_FRAMES - 1)
        assert depth_of(dpu) == depth
        answered_frames(dpu, engine, 1)
        assert depth_of(dpu) == depth + 1
    answered_frames(dpu, engine, 3 * abi.KV_CALM_FRAMES)
    assert depth_of(dpu) == ADAPTIVE[1]


def test_depth_is_how_many_are_parked_without_a_wait(load: Callable[..., Dpu]) -> None:
    dpu = load(depth=ADAPTIVE)
    dpu.set_queue(depth=2)
    for waits, number in ((0, 1), (0, 2), (1, 3), (2, 4)):
        assert dpu.receive(probe(number))[0] == Verdict.DROP
        assert dpu.counters().get("WAIT_TIMEOUTS", 0) == waits


@pytest.mark.parametrize("parked", [1, 2, 3, 4])
def test_depth_falls_when_a_flush_shows_it_was_too_deep(
    load: Callable[..., Dpu], parked: int
) -> None:
    """It falls to the depth that frames did carry; growing again takes longer each time."""
    dpu = load(depth=ADAPTIVE)
    engine = PlayedEngine(dpu.pair())
    dpu.set_queue(depth=ADAPTIVE[1], ceiling=ADAPTIVE[1])
    flush_some(dpu, engine, parked)
    assert depth_of(dpu) == parked - 1
    answered_frames(dpu, engine, abi.KV_CALM_FRAMES)
    assert depth_of(dpu) == parked
    flush_some(dpu, engine, parked)
    assert depth_of(dpu) == parked - 1
    answered_frames(dpu, engine, abi.KV_CALM_FRAMES)
    assert depth_of(dpu) == parked - 1
    answered_frames(dpu, engine, abi.KV_CALM_FRAMES)
    assert depth_of(dpu) == parked


def test_growing_gets_no_slower_than_a_limit(load: Callable[..., Dpu]) -> None:
    dpu = load(depth=ADAPTIVE)
    engine = PlayedEngine(dpu.pair())
    for _ in range(2):
        dpu.set_queue(depth=2, calm=0, calm_wanted=abi.KV_CALM_FRAMES_MAX)
        flush_some(dpu, engine, 2)
        assert dpu.queue()["calm_wanted"] == abi.KV_CALM_FRAMES_MAX


def test_a_rare_flush_says_nothing_about_the_depth(load: Callable[..., Dpu]) -> None:
    dpu = load(depth=ADAPTIVE)
    engine = PlayedEngine(dpu.pair())
    dpu.set_queue(depth=ADAPTIVE[1], ceiling=ADAPTIVE[1])
    answered_frames(dpu, engine, abi.KV_CALM_FLUSH_FRAMES)
    flush_some(dpu, engine, 3)
    assert depth_of(dpu) == ADAPTIVE[1]


def test_a_late_engine_says_nothing_about_the_depth(load: Callable[..., Dpu]) -> None:
    """If more is parked than the depth allows, the engine was late, not the frames."""
    dpu = load(depth=ADAPTIVE)
    engine = PlayedEngine(dpu.pair())
    dpu.set_queue(depth=1, ceiling=1)
    flush_some(dpu, engine, 4)
    assert depth_of(dpu) == 1


@pytest.mark.parametrize("depth", [WAIT, (DEEPEST, DEEPEST)])
def test_a_fixed_depth_stays(load: Callable[..., Dpu], depth: tuple[int, int]) -> None:
    dpu = load(depth=depth)
    dpu.reset(engine_cpu=CPU)  # XDP never waits for an engine on its own core
    engine = PlayedEngine(dpu.pair())
    answered_frames(dpu, engine, 5 * abi.KV_CALM_FRAMES)
    flush_some(dpu, engine, 1)
    dpu.reset()
    for number in range(depth[1] + 1):
        assert "WAIT_TIMEOUTS" not in dpu.counters()
        dpu.receive(probe(number))
    assert dpu.counters()["WAIT_TIMEOUTS"] == 1


# ---- Flush ---------------------------------------------------------------------------------------


def test_flush_with_nothing_to_do(load: Callable[..., Dpu]) -> None:
    """First nothing is parked, then nothing is finished."""
    dpu = load()
    before = dpu.queue().tobytes(), dpu.pairs.tobytes()
    assert dpu.flush()[0] == Verdict.DROP
    assert (dpu.queue().tobytes(), dpu.pairs.tobytes()) == before
    dpu.receive(probe(1))
    before = dpu.queue().tobytes(), dpu.pairs.tobytes()
    assert dpu.flush()[0] == Verdict.DROP
    assert (dpu.queue().tobytes(), dpu.pairs.tobytes()) == before


@pytest.mark.parametrize("above", [0, 1, 1 << 16, 2**32 - 1])
def test_flush_of_a_queue_pair_that_is_not_there(load: Callable[..., Dpu], above: int) -> None:
    dpu = load()
    dpu.receive(probe(1))
    PlayedEngine(dpu.pair()).answer(answer_to(1))
    index = min(len(dpu.pairs) + above, 2**32 - 1)
    assert dpu.flush_index(index)[0] == Verdict.ABORTED
    assert dpu.flush() == carried(1)


@pytest.mark.parametrize("frame_bytes", [14, 60, FLUSH_FRAME_BYTES, abi.KV_FRAME_MAX])
def test_flush_does_not_care_what_it_starts_from(
    load: Callable[..., Dpu], frame_bytes: int
) -> None:
    dpu = load()
    dpu.receive(probe(1))
    PlayedEngine(dpu.pair()).answer(answer_to(1))
    start = dpu.index().to_bytes(4, "little").ljust(frame_bytes, b"\xff")
    assert run_once(dpu.flush_fd, start) == carried(1)
    assert dpu.counters()["RESPONSES_FLUSHED"] == 1


def test_while_the_sender_works_a_frame_only_parks(load: Callable[..., Dpu]) -> None:
    """kv_receive may interrupt kv_flush before Linux 6.3."""
    dpu = load(depth=WAIT)
    engine = PlayedEngine(dpu.pair())
    dpu.receive(probe(1))
    engine.answer(answer_to(1))
    dpu.set_queue(flushing=1)
    timeouts = dpu.counters()["WAIT_TIMEOUTS"]
    assert dpu.receive(probe(2))[0] == Verdict.DROP
    assert dpu.in_flight() == 2
    assert dpu.counters()["WAIT_TIMEOUTS"] == timeouts
    assert dpu.flush() == carried(1)
    assert dpu.queue()["flushing"] == 0
    engine.answer(answer_to(2))
    assert dpu.receive(probe(3)) == carried(2)


def test_a_response_that_the_frame_cannot_hold_is_left_to_the_sender(
    load: Callable[..., Dpu], tmp_path_factory: pytest.TempPathFactory
) -> None:
    """BPF_PROG_RUN gives every frame most of a page to grow into, unlike any driver. So the program
    is compiled with a bpf_xdp_adjust_tail that refuses growth beyond a small buffer. The headroom,
    of 256 bytes less what the kernel keeps there, is real. The sender's own buffer is unchanged.
    """
    tailroom = 100
    source = tmp_path_factory.getbasetemp() / "small_tailroom.c"
    refusal = (
        f"#define bpf_xdp_adjust_tail(ctx, growth) ((growth) > {tailroom} && (ctx)->data_end - "
        f"(ctx)->data != {FLUSH_FRAME_BYTES} ? -22 : bpf_xdp_adjust_tail(ctx, growth))\n"
    )
    source.write_text(refusal + (BPF_DIR / "kv_receive.c").read_text())
    dpu = load(source=str(source))
    engine = PlayedEngine(dpu.pair())
    request = [Request.get(b"key", 1)]

    def replies(growth: int) -> list[Reply]:
        value = b"v" * (8 + growth)
        return [Reply(abi.KV_OP_GET, 0, value, 1, request[0].key_hash)]

    in_front = HEADROOM_BYTES - MOST_KEPT_BYTES
    for growth, fits in (
        *((tailroom - 4, True), (tailroom + 4, True), (in_front, True)),
        *((HEADROOM_BYTES + 8, False), (1800, False)),
    ):
        dpu.reset()
        engine = PlayedEngine(dpu.pair())
        engine.answer(replies(growth))
        frame = request_frame(request)
        whole = Verdict.TX, reply_frame(replies(growth))
        if fits:
            assert dpu.receive(frame) == whole
            continue
        assert dpu.receive(frame) == (Verdict.DROP, frame), "untouched"
        assert dpu.counters()["TAIL_REFUSED"] == 1
        assert dpu.in_flight() == 1
        assert dpu.flush() == whole
        assert dpu.in_flight() == 0


# ---- The sender ----------------------------------------------------------------------------------


def test_the_sender_lets_out_what_no_frame_carries(load: Callable[..., Dpu]) -> None:
    """The engine and the sender are real; a datagram socket replaces the packet socket. Every batch
    is answered once; responses of the sender may overtake one that a frame carries.
    """
    dpu = load()
    wire, ours = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    senders = Senders(
        cpus=dpu.cpus, engines=dpu.engines, program_fd=dpu.flush_fd, socket_fd=ours.fileno()
    )
    count = DEEPEST
    with wire, ours:
        wire.settimeout(ANSWER_SECONDS)
        senders.start()
        try:
            with serving(dpu, senders) as engines:
                for number in range(count):
                    verdict, out = dpu.receive(probe(number))
                    if verdict == Verdict.TX:
                        ours.send(out)
                received = [wire.recv(abi.KV_FRAME_MAX) for _ in range(count)]
                wait_until(lambda: dpu.in_flight() == 0, "all is answered")
                wakeups = engines[0].stats()["wakeups"]
        finally:
            senders.stop()
        wire.setblocking(False)
        with pytest.raises(BlockingIOError):
            wire.recv(abi.KV_FRAME_MAX)
    assert sorted(received) == sorted(reply_frame(answer_to(n)) for n in range(count))
    flushed = dpu.counters()["RESPONSES_FLUSHED"]
    assert senders.stats() == {"frames_sent": flushed, "send_failures": 0, "run_failures": 0}
    assert wakeups >= 1


@pytest.mark.parametrize("broken", ["program", "socket"])
def test_a_sender_s_failures_are_counted(load: Callable[..., Dpu], broken: str) -> None:
    """The sender continues after failures. Its loop runs here, with the stop already requested by
    the time it would sleep.
    """
    dpu = load()
    dpu.receive(probe(1))
    PlayedEngine(dpu.pair()).answer(answer_to(1))
    with Path("/dev/null").open("rb") as nothing:
        senders = Senders(
            cpus=dpu.cpus,
            engines=dpu.engines,
            program_fd=nothing.fileno() if broken == "program" else dpu.flush_fd,
            socket_fd=nothing.fileno(),
        )
        senders.start()
        try:
            senders.array[CPU].overdue[0] = 1
            lib.kv_sender_wake(ffi.addressof(senders.array, CPU))
            name = "run_failures" if broken == "program" else "send_failures"
            wait_until(lambda: senders.stats()[name] == 1, "the failure is counted")
        finally:
            senders.stop()
    assert senders.stats()["frames_sent"] == 0
    assert dpu.in_flight() == (1 if broken == "program" else 0)


# ---- Time for waits


LONG_WAIT_NS = 10**15
BURST_WAIT_NS = 10**10
"""Longer than any gap between frames of a test."""
ENTERS = abi.KV_FITS_ALL // 2 + abi.KV_FITS_ALL // 8
LEAVES = abi.KV_FITS_ALL // 2 - abi.KV_FITS_ALL // 8


def frame_behind_a_timed_one(dpu: Dpu, **fields: int) -> Any:
    """Return the private side after a frame that follows a timed one by some microseconds."""
    dpu.set_queue(**({"ended_ns": time.monotonic_ns() - 1000, "wait_ns": 1} | fields))
    dpu.receive(request_frame([Request.get(b"key")]))
    return dpu.queue()


@pytest.mark.parametrize(
    ("fits", "wait_ns", "before", "after"),
    [
        (ENTERS, 1, 0, 1),
        (ENTERS - 256, 1, 0, 0),
        (ENTERS, LONG_WAIT_NS, 0, 0),
        (ENTERS - 256, 1, 1, 1),
        (LEAVES - 256, 1, 1, 0),
        (abi.KV_FITS_ALL, LONG_WAIT_NS, 1, 1),
    ],
    ids=["enters", "almost", "too short", "stays", "leaves", "has time whatever a wait takes"],
)
def test_a_wait_fits_between_frames_or_not(
    load: Callable[..., Dpu], fits: int, wait_ns: int, before: int, after: int
) -> None:
    dpu = load(depth=(0, abi.KV_PIPELINE_MAX))
    queue = frame_behind_a_timed_one(dpu, fits=fits, wait_ns=wait_ns, has_time=before)
    assert queue["has_time"] == after
    assert queue["ended_ns"] == 0


def test_frames_of_a_burst_leave_no_time(load: Callable[..., Dpu]) -> None:
    """Each frame follows sooner than a wait would take. The wait is far longer than any machine
    needs from frame to frame, so that the result does not depend on the machine's speed.
    """
    dpu = load(depth=(0, abi.KV_PIPELINE_MAX))
    frame = request_frame([Request.get(b"key")])
    fits = abi.KV_FITS_ALL
    dpu.set_queue(
        sampled=abi.KV_STAGE_FRAMES - 1, has_time=0, fits=fits, wait_ns=BURST_WAIT_NS, stalled=8
    )
    assert lib.kv_bpf_run_again(dpu.receive_fd, frame, len(frame), 2) == 0
    assert dpu.queue()["fits"] == fits - (fits >> abi.KV_FITS_SHIFT)


def test_without_a_wait_yet_nothing_is_known(load: Callable[..., Dpu]) -> None:
    dpu = load(depth=(0, abi.KV_PIPELINE_MAX))
    assert frame_behind_a_timed_one(dpu, wait_ns=0, fits=ENTERS)["has_time"] == 0


def test_every_so_many_frames_one_is_timed(load: Callable[..., Dpu]) -> None:
    dpu = load(depth=(abi.KV_PIPELINE_MAX, abi.KV_PIPELINE_MAX))
    frame = request_frame([Request.get(b"key")])
    for number in range(1, abi.KV_STAGE_FRAMES + 2):
        dpu.receive(frame)
        assert (dpu.queue()["ended_ns"] != 0) == (number == abi.KV_STAGE_FRAMES)


def test_with_time_nothing_stays_parked(load: Callable[..., Dpu]) -> None:
    """The pipeline is deep from busier times: its responses are fetched, and the depth is kept."""
    dpu = load(depth=(0, abi.KV_PIPELINE_MAX))
    frame = request_frame([Request.get(b"key")])
    dpu.set_queue(depth=8)
    for _ in range(3):
        assert dpu.receive(frame)[0] == Verdict.DROP
    assert dpu.pair()["request_control"]["drain"] == 0
    dpu.set_queue(has_time=1)
    assert dpu.receive(frame)[0] == Verdict.DROP
    assert dpu.pair()["request_control"]["drain"] == 1
    engine = PlayedEngine(dpu.pair())
    for _ in range(4):
        engine.answer([Reply(abi.Operation.GET, abi.Result.NOT_FOUND)])
        assert dpu.flush()[0] == Verdict.TX
    assert dpu.queue()["depth"] == 8
    assert dpu.receive(frame)[0] == Verdict.DROP
    assert dpu.pair()["request_control"]["drain"] == 0


@pytest.mark.parametrize("depth", [(0, 0), (0, 4), (4, 4)], ids=str)
def test_a_backlog_asks_for_the_sender(load: Callable[..., Dpu], depth: tuple[int, int]) -> None:
    """Frames bring a batch each and carry a response each: alone they never reduce a backlog."""
    dpu = load(depth=depth)
    dpu.reset(engine_cpu=CPU)  # XDP never waits for an engine on its own core
    engine = PlayedEngine(dpu.pair())
    frame = request_frame([Request.get(b"key")])
    replies = [Reply(abi.Operation.GET, abi.Result.NOT_FOUND)]
    waiting = abi.KV_BACKLOG_MAX + 4
    for _ in range(waiting):
        assert dpu.receive(frame)[0] == Verdict.DROP
    for _ in range(waiting):
        engine.answer(replies)
    wanted = []
    for left in range(waiting - 1, abi.KV_BACKLOG_MAX - 3, -1):
        assert dpu.receive(frame)[0] == Verdict.TX
        wanted.append((left, int(dpu.pair()["request_control"]["drain"])))
    # A frame looks at what is known before it carries a response: first at nothing.
    above = [(left, int(left + 1 > abi.KV_BACKLOG_MAX)) for left, _ in wanted[1:]]
    assert wanted == [(waiting - 1, 0), *above]


def test_a_refused_response_asks_for_the_sender(load: Callable[..., Dpu]) -> None:
    """Until it has left, whatever is known to be finished."""
    dpu = load(depth=(4, 4))
    dpu.reset(engine_cpu=CPU)
    engine = PlayedEngine(dpu.pair())
    frame = request_frame([Request.get(b"key")])
    for _ in range(2):
        assert dpu.receive(frame)[0] == Verdict.DROP
    dpu.set_queue(refused=1)
    assert dpu.receive(frame)[0] == Verdict.DROP
    assert dpu.pair()["request_control"]["drain"] == 1
    engine.answer([Reply(abi.Operation.GET, abi.Result.NOT_FOUND)])
    assert dpu.flush()[0] == Verdict.TX
    assert dpu.receive(frame)[0] == Verdict.DROP
    assert dpu.pair()["request_control"]["drain"] == 0
