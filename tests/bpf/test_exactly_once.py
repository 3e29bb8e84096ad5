# SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
"""Every request is answered exactly once, in order, for any interleaving of frames, the engine and
the sender.
"""

from collections import deque
from collections.abc import Callable

import pytest
from bpf.harness import (
    CLIENT,
    Dpu,
    PlayedEngine,
    Verdict,
    records_of,
    reply_frame,
    request_frame,
)
from hypothesis import example, given, settings
from hypothesis import strategies as st

from dpukv_xdp.wire import abi
from dpukv_xdp.wire.codec import Endpoint, Reply, Request

RECEIVE, RECEIVE_WHILE_FLUSHING, FLUSH, ENGINE = "receive", "interrupt", "flush", "engine"
STEPS = st.one_of(
    st.tuples(st.just(RECEIVE), st.integers(1, 4)),
    st.tuples(st.just(RECEIVE_WHILE_FLUSHING), st.integers(1, 4)),
    st.tuples(st.just(FLUSH), st.integers(1, 3)),
    st.tuples(st.just(ENGINE), st.integers(1, 4)),
    st.tuples(st.just(RECEIVE), st.integers(1, 30)),
)


class Model:
    """The required behaviour of the communication engine, batch by batch."""

    def __init__(self, dpu: Dpu, start: int) -> None:
        dpu.reset(start)
        self.dpu = dpu
        self.engine = PlayedEngine(dpu.pair())
        self.records: deque[int] = deque()
        """Records that each parked batch takes, its body included."""
        self.records_in_use = 0
        self.in_flight: deque[bytes] = deque()
        """Frames of the answers to parked batches, oldest first."""
        self.unprocessed: deque[list[Reply]] = deque()
        self.arrived = 0
        self.answered = 0
        self.refused = 0

    def step(self, kind: str, times: int) -> None:
        for _ in range(times):
            if kind == ENGINE:
                self.process()
            elif kind == FLUSH:
                self.expect(*self.dpu.flush())
            else:
                self.receive(kind == RECEIVE_WHILE_FLUSHING)

    def receive(self, flushing: bool) -> None:
        """Send a frame from another port of the only source; it carries the oldest response if
        that is finished.
        """
        requests, replies, client, vlan_tag = self.next_batch()
        frame = request_frame(requests, client, vlan_tag=vlan_tag)
        if flushing:
            self.dpu.set_queue(flushing=1)
        verdict, out = self.dpu.receive(frame)
        if flushing:
            self.dpu.set_queue(flushing=0)
        if (
            len(self.in_flight) >= abi.KV_CROWDED_BATCHES
            or self.records_in_use >= abi.KV_CROWDED_RECORDS
        ):
            self.refused += 1
            assert verdict == Verdict.DROP
            return
        self.arrived += 1
        self.records.append(records_of(requests))
        self.records_in_use += self.records[-1]
        self.in_flight.append(reply_frame(replies, client, vlan_tag=vlan_tag))
        self.unprocessed.append(replies)
        if flushing:
            assert verdict == Verdict.DROP
        else:
            self.expect(verdict, out)

    def next_batch(self) -> tuple[list[Request], list[Reply], Endpoint, int | None]:
        number = self.arrived + 1
        requests = [
            Request(abi.KV_OP_GET, b"k" * (number % 12 + 1), b"", number << 8 | index)
            for index in range(number % 3 + 1)
        ]
        value = b"%d" % number * (number % 7)
        replies = [Reply(abi.KV_OP_GET, 0, value, r.opaque, r.key_hash) for r in requests]
        client = Endpoint(CLIENT.mac, CLIENT.ip, number % 2**16)
        return requests, replies, client, number if number % 4 == 0 else None

    def process(self) -> None:
        if self.unprocessed:
            self.engine.answer(self.unprocessed.popleft())

    def expect(self, verdict: Verdict, out: bytes) -> None:
        """Assert that the oldest response was sent if it is finished, and nothing else was."""
        if len(self.in_flight) > len(self.unprocessed):
            assert (verdict, out) == (Verdict.TX, self.in_flight.popleft())
            self.answered += 1
            self.records_in_use -= self.records.popleft()
        else:
            assert verdict == Verdict.DROP

    def finish(self) -> None:
        """Let the engine and the sender catch up in turn, and compare the counters."""
        while self.in_flight:
            self.process()
            self.expect(*self.dpu.flush())
        assert self.dpu.flush()[0] == Verdict.DROP
        counters = self.dpu.counters()
        assert self.answered == self.arrived == counters.get("FRAMES_RECEIVED", 0)
        ways_out = ("RESPONSES_WAITED", "RESPONSES_CARRIED", "RESPONSES_FLUSHED")
        assert sum(counters.get(way, 0) for way in ways_out) == self.answered
        assert counters.get("FRAMES_SENT", 0) == self.answered
        assert counters.get("DROP_SOURCE_SHARE", 0) == self.refused
        assert "DROP_BAD_RESPONSE" not in counters


@pytest.mark.parametrize(
    "depth", [(0, 0), (0, 4), (abi.KV_PIPELINE_MAX, abi.KV_PIPELINE_MAX)], ids=str
)
def test_every_request_is_answered_exactly_once(
    load: Callable[..., Dpu], depth: tuple[int, int]
) -> None:
    dpu = load(depth=depth)
    refused = 0

    @settings(max_examples=60, deadline=None, database=None)
    @given(
        st.lists(STEPS, max_size=30),
        st.sampled_from([0, 2**32 - 1, 2**32 - 20, 2**31 - 20]),
    )
    @example([(RECEIVE, abi.KV_BATCHES + 1), (ENGINE, 5), (RECEIVE, 3), (FLUSH, 2)], 2**32 - 20)
    def check(steps: list[tuple[str, int]], start: int) -> None:
        nonlocal refused
        model = Model(dpu, start)
        for kind, times in steps:
            model.step(kind, times)
        model.finish()
        refused += model.refused

    check()
    assert refused, "the example fills the queue"
