# SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
"""An engine whose heartbeat has stopped: its requests are rejected or passed on, never parked."""

import time
from collections.abc import Callable, Sequence

import pytest
from bpf.harness import (
    Dpu,
    PlayedEngine,
    Verdict,
    expected_replies,
    patched,
    reply_frame,
    request_frame,
    with_lengths_of,
)

from dpukv_xdp.base.patience import patient
from dpukv_xdp.wire import abi
from dpukv_xdp.wire.codec import Reply, Request

pytestmark = pytest.mark.shares_cores

SILENT_NS = 1_000_000_000
"""Long enough for a test to be fast beside it, also on a busy machine."""
GET = Request.get(b"8 bytes!", 7)
EVERY_SHAPE = [
    Request.get(b"8 bytes!", 1),
    Request.set(b"k", b"12345678", 2),
    Request.set(b"k" * abi.KV_KEY_MAX, b"v" * 1000, 3),
    Request.probe(4),
    Request(abi.KV_OP_RESET, b"", b"", 5),
    Request(abi.KV_OP_INCREMENT, b"counter", b"\1" + bytes(7), 2**32 - 1),
    Request(255, b"unknown", b"", 6),
]


def now_ns() -> int:
    """Return the clock that XDP compares heartbeats with, which is coarser there by a tick."""
    return time.monotonic_ns()


def rejections(requests: Sequence[Request]) -> list[Reply]:
    return [
        Reply(each.operation, abi.KV_REJECTED, b"", each.opaque, each.key_hash) for each in requests
    ]


# ---- Rejections


@pytest.mark.parametrize("vlan_tag", [None, 7])
@pytest.mark.parametrize(
    "requests",
    [
        [GET],
        EVERY_SHAPE,
        EVERY_SHAPE[::-1],
        [Request.set(b"key", b"v" * 3000, 9)],
        [Request.get(b"key %d" % i, i) for i in range(abi.KV_BATCH_MAX - 1)],
        [Request.probe(i) for i in range(abi.KV_BATCH_MAX)],
    ],
    ids=["one", "every shape", "reversed", "long value", "limit-1", "limit"],
)
def test_each_request_is_rejected(
    load: Callable[..., Dpu], requests: list[Request], vlan_tag: int | None
) -> None:
    dpu = load()
    dpu.set_beat(0)
    frame = request_frame(requests, vlan_tag=vlan_tag)
    reply = reply_frame(rejections(requests), vlan_tag=vlan_tag)
    assert dpu.receive(frame) == (Verdict.TX, reply)
    assert len(reply) <= len(frame)
    assert dpu.counters() == {
        "FRAMES_RECEIVED": 1,
        "REQUESTS_RECEIVED": len(requests),
        "BYTES_RECEIVED": len(frame),
        "FRAMES_SENT": 1,
        "RESPONSES_SENT": len(requests),
        "RESPONSES_REJECTED": 1,
        "BYTES_SENT": len(reply),
    }
    assert dpu.in_flight() == dpu.pair()["request_control"]["published"] == 0


TOO_MANY = request_frame([Request.probe(i) for i in range(abi.KV_BATCH_MAX + 1)])
BODY = abi.offset("kv_packet_header", "magic")
LONG = request_frame([GET, Request.set(b"key", b"v" * 100, 1)])
MALFORMED = {
    "too many": (TOO_MANY, "BATCH_LENGTH"),
    "cut value": (with_lengths_of(LONG[:-8]), "TRUNCATED"),
    "magic": (patched(LONG, magic=0), "MAGIC"),
    "lengths": (patched(LONG, udp_length=8), "UDP_LENGTH"),
    "merged": (
        with_lengths_of(LONG + LONG[BODY:]),
        "SUPER_PACKET",
    ),
}


@pytest.mark.parametrize("name", MALFORMED)
def test_what_is_malformed_is_dropped_and_not_rejected(load: Callable[..., Dpu], name: str) -> None:
    frame, counter = MALFORMED[name]
    dpu = load()
    dpu.set_beat(0)
    assert dpu.receive(frame)[0] == Verdict.DROP
    assert dpu.counters() == {f"DROP_{counter}": 1}


def test_frames_are_passed_on_if_so_configured(load: Callable[..., Dpu]) -> None:
    dpu = load(when_silent=abi.KV_SILENT_PASS)
    dpu.set_beat(0)
    frame = request_frame(EVERY_SHAPE)
    assert dpu.receive(frame) == (Verdict.PASS, frame)
    assert dpu.counters() == {"PASSED_NO_ENGINE": 1}


# ---- Heartbeats


@pytest.mark.parametrize(
    ("age_ns", "is_silent"),
    [
        (0, False),
        (SILENT_NS // 2, False),
        (SILENT_NS + 50_000_000, True),
        (60 * SILENT_NS, True),
        (-SILENT_NS // 2, False),
        (-2 * SILENT_NS, True),
        (-(2**62), True),
    ],
)
def test_a_heartbeat_counts_for_so_long(
    load: Callable[..., Dpu], age_ns: int, is_silent: bool
) -> None:
    """One from the far future does not count either, or its writer could never be missed."""
    dpu = load(silent_ns=SILENT_NS)
    dpu.set_beat(now_ns() - age_ns)
    assert dpu.receive(request_frame([GET]))[0] == (Verdict.TX if is_silent else Verdict.DROP)
    assert dpu.counters().get("RESPONSES_REJECTED", 0) == is_silent
    assert dpu.in_flight() == (not is_silent)


@pytest.mark.parametrize("beat_ns", [0, 2**64 - 1])
def test_words_that_are_no_time_count_as_silence(load: Callable[..., Dpu], beat_ns: int) -> None:
    dpu = load(silent_ns=SILENT_NS)
    dpu.set_beat(beat_ns)
    assert dpu.receive(request_frame([GET]))[0] == Verdict.TX


def test_silence_and_its_end_are_noticed_within_some_ticks(load: Callable[..., Dpu]) -> None:
    """XDP looks once in a tick, whatever it saw in the last one."""
    dpu = load(silent_ns=SILENT_NS)
    dpu.set_beat(now_ns())
    assert dpu.receive(request_frame([GET]))[0] == Verdict.DROP
    PlayedEngine(dpu.pair()).answer(expected_replies({}, [GET]))
    assert dpu.flush()[0] == Verdict.TX
    for beat_ns, verdict in ((0, Verdict.TX), (now_ns(), Verdict.DROP)):
        dpu.heartbeats[0].beat_ns = beat_ns
        deadline = time.monotonic() + patient(0.1)
        while dpu.receive(request_frame([GET]))[0] != verdict:
            assert time.monotonic() < deadline


def test_each_engine_has_a_heartbeat_of_its_own(load: Callable[..., Dpu]) -> None:
    dpu = load(engines=2)
    dpu.set_beat(0, engine=1)
    for engine, verdict in ((0, Verdict.DROP), (1, Verdict.TX)):
        ports = patched(request_frame([GET]), udp_destination_port=dpu.port + engine)
        assert dpu.receive(ports)[0] == verdict
