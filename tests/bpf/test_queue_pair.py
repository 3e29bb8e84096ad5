# SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
"""The queue pair, from both ends: its bytes, its counters around the wrap, and another end that
violates every rule.
"""

import weakref
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import pytest
from bpf.harness import (
    HEADER_BYTES,
    OTHER_CPU,
    RESPONSE_BYTES_MAX,
    Answer,
    Batch,
    Dpu,
    PlayedEngine,
    Verdict,
    answer_at,
    batch_at,
    expected_replies,
    header_word,
    queue_pairs_view,
    reply_frame,
    request_frame,
    serving,
    small_engine,
    wait_until,
    with_dirty_padding,
)
from hypothesis import example, given, settings
from hypothesis import strategies as st

from dpukv_xdp._core._native import ffi
from dpukv_xdp.native.engines import HostCore, ProcessingEngine
from dpukv_xdp.wire import abi, codec
from dpukv_xdp.wire.codec import Reply, Request
from dpukv_xdp.wire.hashing import hash_key

WAIT = (0, 0)
BATCHES = 197
NEAR_WRAP = 2**32 - 71
HALF = 2**31
KEY, LONG_KEY = b"8 bytes!", b"a key of twenty byte"


# ---- What lies in it -----------------------------------------------------------------------------

MIXED = [
    Request.get(KEY, 1),
    Request.set(KEY, b"12345678", 2),
    Request.get(b"short", 3),
    Request.set(b"short", b"val", 4),
    Request.set(LONG_KEY, b"val", 5),
    Request.set(b"short", b"a value of 21 bytes..", 6),
    Request.set(LONG_KEY, b"another long value", 7),
    Request.get(LONG_KEY, 8),
    Request(abi.KV_OP_SET, b"", b"keyless", 9),
    Request(200, b"k" * 255, b"", 10, key_hash=2**64 - 1),
    Request.probe(11),
]
INLINE = [r for r in MIXED if max(len(r.key), len(r.value)) <= abi.KV_INLINE_MAX]


def expected_records(requests: list[Request]) -> Any:
    """Return the batch's records as docs/PROTOCOL.md describes them."""
    records = np.zeros(len(requests), abi.dtype("kv_request"))
    offset = 0
    for record, request in zip(records, requests, strict=True):
        key, value = request.key, request.value
        record["header"] = header_word(request.operation, 0, len(key), len(value))
        record["key_hash"] = request.key_hash
        key_at = offset + codec.ITEM_HEADER_BYTES
        value_at = key_at + codec.roundup8(len(key))
        key_is_inline = len(key) <= abi.KV_INLINE_MAX
        record["key"] = int.from_bytes(key, "little") if key_is_inline else key_at
        value_is_inline = key_is_inline and len(value) <= abi.KV_INLINE_MAX
        record["value"] = int.from_bytes(value, "little") if value_is_inline else value_at
        if not value:
            record["value"] = 0
        offset += codec.item_bytes(len(key), len(value))
    return records


@pytest.mark.parametrize("vlan_tag", [None, 3])
@pytest.mark.parametrize(("requests", "has_body"), [(INLINE, False), (MIXED, True)])
def test_request_records(
    load: Callable[..., Dpu], requests: list[Request], has_body: bool, vlan_tag: int | None
) -> None:
    """32 bytes per request, zero padded; a body behind them only if an item is long; the rest of
    the queue pair is unchanged.
    """
    dpu = load()
    pair = dpu.pair()
    for name in ("batches", "requests", "answers", "responses"):
        pair[name].view(np.uint8)[:] = 0xA5
    before = pair.copy()
    frame = request_frame(requests, vlan_tag=vlan_tag, stray=b"\7" * 5)
    frame = with_dirty_padding(frame, requests, vlan_tag is not None)
    assert dpu.receive(frame)[0] == Verdict.DROP
    body = frame[HEADER_BYTES + (vlan_tag is not None) * abi.KV_VLAN_BYTES :]

    expected = before.copy()
    entry = expected["batches"][0]
    entry["count"], entry["has_body"], entry["first_record"] = len(requests), has_body, 0
    entry["body_bytes"] = len(body) if has_body else 0
    batch = batch_at(expected, 0)
    batch.records[:] = expected_records(requests)
    if has_body:
        batch.body[: len(body)] = list(body)
    expected["request_control"]["published"] = 1
    assert np.array_equal(batch_at(pair, 0).records, batch.records)
    assert pair.tobytes() == expected.tobytes()


def test_response_records_of_the_engine(load: Callable[..., Dpu]) -> None:
    """16 bytes per response, which hold values of up to 8 bytes; longer ones are behind them."""
    dpu = load()
    values = [b"", b"v", b"12345678", b"nine byte", b"x" * 100]
    keys = [b"key %d" % index for index in range(len(values))]
    with serving(dpu):
        sets = [Request.set(key, value) for key, value in zip(keys, values, strict=True)]
        assert dpu.exchange(request_frame(sets))[0] == Verdict.TX
        gets = [Request.get(key) for key in [*keys, b"none"]]
        dpu.pair()["responses"].view(np.uint8)[:] = 0xFF
        assert dpu.exchange(request_frame(gets))[0] == Verdict.TX
        answer = answer_at(dpu.pair().copy(), 1, len(gets))
    wanted = [header_word(abi.KV_OP_GET, abi.KV_SUCCESS, 0, len(value)) for value in values]
    wanted.append(header_word(abi.KV_OP_GET, abi.KV_NOT_FOUND, 0, 0))
    assert answer.records["header"].tolist() == wanted
    inline = [int.from_bytes(value, "little") for value in values[:3]]
    assert answer.records["value"].tolist() == [*inline, 0, 16, 0]
    long_values = b"nine byte".ljust(16, b"\0") + (b"x" * 100).ljust(104, b"\0")
    assert bytes(answer.values[: len(long_values) + 1]) == long_values + b"\xff"
    assert answer.entry["wire_bytes"] == sum(codec.item_bytes(0, len(v)) for v in [*values, b""])
    assert answer.entry["records"] == len(gets) + -(-len(long_values) // abi.SIZE("kv_response"))


# ---- Around and around ---------------------------------------------------------------------------


@pytest.mark.parametrize("start", [0, NEAR_WRAP, 2**32 - 1, HALF - 3])
@pytest.mark.parametrize("parked", [0, 1, abi.KV_PIPELINE_MAX])
def test_wrap_with_a_played_engine(load: Callable[..., Dpu], start: int, parked: int) -> None:
    """Each batch is published once, and answered `parked` batches later."""
    dpu = load()
    dpu.reset(start)
    engine = PlayedEngine(dpu.pair())
    store: dict[bytes, bytes] = {}
    pending: list[list[Reply]] = []
    for number in range(BATCHES):
        requests = batch(number)
        pending.append(expected_replies(store, requests))
        if len(pending) > parked:  # answered before it arrives, as by an infinitely fast engine
            engine.answer(pending[0])
        verdict, out = dpu.receive(request_frame(requests))
        assert dpu.pair()["request_control"]["published"] == (start + number + 1) % 2**32
        records = batch_at(dpu.pair(), start + number).records
        assert np.array_equal(records, expected_records(requests))
        if len(pending) > parked:
            assert (verdict, out) == (Verdict.TX, reply_frame(pending.pop(0)))
        else:
            assert verdict == Verdict.DROP
        assert (
            dpu.pair()["request_control"]["answered"] == (start + number + 1 - len(pending)) % 2**32
        )


@pytest.mark.parametrize("start", [0, NEAR_WRAP, 2**32 - 1])
def test_wrap_with_the_real_engine(load: Callable[..., Dpu], start: int) -> None:
    dpu = load(depth=WAIT)
    dpu.reset(start)
    store: dict[bytes, bytes] = {}
    with serving(dpu) as engines:
        for number in range(BATCHES):
            requests = batch(number)
            expected = reply_frame(expected_replies(store, requests))
            assert dpu.exchange(request_frame(requests)) == (Verdict.TX, expected)
        end = (start + BATCHES) % 2**32
        assert dpu.pair()["request_control"]["published"] == end
        assert dpu.pair()["request_control"]["answered"] == end
        assert dpu.pair()["response_control"]["published"] == end
        stats = engines[0].stats()
    assert (stats["batches"], stats["bad_batches"]) == (BATCHES, 0)
    assert stats["requests"] == sum(len(batch(number)) for number in range(BATCHES))


def batch(number: int) -> list[Request]:
    """Return one to five requests: in turn SETs and GETs of short keys, and of long ones, with
    short and long values.
    """
    requests = []
    for index in range(number % 5 + 1):
        key = b"key %d" % (index % 3) + b"-" * 20 * (number % 4 >= 2)
        value = b"%d/%d" % (number, index) + b"." * 30 * (number % 3 == 0)
        is_set = number % 2 == 0
        operation = abi.Operation.SET if is_set else abi.Operation.GET
        requests.append(Request(operation, key, value if is_set else b"", number << 8 | index))
    return requests


def test_an_engine_that_restarts_takes_up_where_it_stopped(load: Callable[..., Dpu]) -> None:
    dpu = load()
    dpu.reset(NEAR_WRAP)
    with serving(dpu):
        assert dpu.exchange(request_frame([Request.probe(1)]))[0] == Verdict.TX
    dpu.set_queue(looked_at_tick=0)
    assert dpu.receive(request_frame([Request.probe(2)]))[0] == Verdict.TX
    assert dpu.counters()["RESPONSES_REJECTED"] == 1
    dpu.set_beat(1)  # the next one dies silently: one batch is left unanswered
    assert dpu.receive(request_frame([Request.probe(3)]))[0] == Verdict.DROP
    with serving(dpu):
        wait_until(lambda: dpu.flush()[0] == Verdict.TX, "the batch left behind is answered")
        reply = reply_frame(expected_replies({}, [Request.probe(4)]))
        assert dpu.exchange(request_frame([Request.probe(4)])) == (Verdict.TX, reply)


# ---- A hostile processing engine -----------------------------------------------------------------

REQUESTS = [Request.get(KEY, 1), Request.get(b"k", 2), Request.get(LONG_KEY, 3)]
REPLIES = [
    Reply(abi.KV_OP_GET, abi.KV_SUCCESS, b"12345678", 1, REQUESTS[0].key_hash),
    Reply(abi.KV_OP_GET, abi.KV_SUCCESS, b"a value of 21 bytes..", 2, REQUESTS[1].key_hash),
    Reply(abi.KV_OP_GET, abi.KV_NOT_FOUND, b"", 3, REQUESTS[2].key_hash),
]
RIGHT_BYTES = sum(codec.item_bytes(0, len(reply.value)) for reply in REPLIES)


@pytest.mark.parametrize("vlan_tag", [None, 3])
@pytest.mark.parametrize(
    "wire_bytes",
    [0, 1, 8, 24, RIGHT_BYTES - 24, RIGHT_BYTES - 8, RIGHT_BYTES - 1, RIGHT_BYTES + 1,
     RIGHT_BYTES + 8, RIGHT_BYTES + 24, 1995, 1996, 1999, 2000, 2047, 0x7FFF, 0xFFFF],
)  # fmt: skip
def test_wire_bytes_that_do_not_match(
    load: Callable[..., Dpu], wire_bytes: int, vlan_tag: int | None
) -> None:
    dpu = load()
    dpu.receive(request_frame(REQUESTS, vlan_tag=vlan_tag))
    engine = PlayedEngine(dpu.pair())
    engine.answer(REPLIES, wire_bytes)
    assert dpu.flush()[0] == Verdict.DROP
    assert dpu.counters()["DROP_BAD_RESPONSE"] == 1
    assert "FRAMES_SENT" not in dpu.counters()
    assert dpu.in_flight() == 0, "the bad batch is gone"
    dpu.receive(request_frame(REQUESTS, vlan_tag=vlan_tag))
    engine.answer(REPLIES)
    assert dpu.flush() == (Verdict.TX, reply_frame(REPLIES, vlan_tag=vlan_tag))


def test_a_bad_response_is_not_sent_by_the_frame_that_carries_it(load: Callable[..., Dpu]) -> None:
    """The current frame is dropped; its own requests are still answered."""
    dpu = load()
    engine = PlayedEngine(dpu.pair())
    dpu.receive(request_frame([Request.probe(1)]))
    engine.answer(REPLIES[:1], wire_bytes=RIGHT_BYTES)
    assert dpu.receive(request_frame([Request.probe(2)]))[0] == Verdict.DROP
    assert dpu.counters()["DROP_BAD_RESPONSE"] == 1
    replies = expected_replies({}, [Request.probe(2)])
    engine.answer(replies)
    assert dpu.flush() == (Verdict.TX, reply_frame(replies))


@pytest.mark.parametrize("value_bytes", range(1, abi.KV_INLINE_MAX))
def test_what_lies_behind_a_short_value_stays_here(
    load: Callable[..., Dpu], value_bytes: int
) -> None:
    dpu = load()
    dpu.receive(request_frame(REQUESTS[:1]))
    engine = PlayedEngine(dpu.pair())
    reply = Reply(abi.KV_OP_GET, 0, b"\xff" * value_bytes, 1, REQUESTS[0].key_hash)
    engine.write([reply]).records["value"] = 2**64 - 1
    engine.publish()
    assert dpu.flush() == (Verdict.TX, reply_frame([reply]))


@pytest.mark.parametrize("parked", [1, abi.KV_PIPELINE_MAX])
@pytest.mark.parametrize("ahead", [1, 2, abi.KV_BATCHES, HALF, 2**32 - 1])
@pytest.mark.parametrize("start", [0, NEAR_WRAP, 2**32 - 1])
def test_response_counter_out_of_range(
    load: Callable[..., Dpu], start: int, ahead: int, parked: int
) -> None:
    """More batches answered than were sent, or a counter that goes back: it is ignored, and nothing
    is sent until the counter is valid again.
    """
    dpu = load()
    dpu.reset(start)
    engine = PlayedEngine(dpu.pair())
    pending = [expected_replies({}, batch(number)) for number in range(parked)]
    for number in range(parked):
        dpu.receive(request_frame(batch(number)))
    control = dpu.pair()["response_control"]
    control["published"] = (start + (parked + ahead if ahead < HALF else ahead)) % 2**32
    assert dpu.flush()[0] == Verdict.DROP
    pending.append(expected_replies({}, batch(parked)))
    if ahead > 1:  # with 1, the next batch makes the counter valid
        assert dpu.receive(request_frame(batch(parked)))[0] == Verdict.DROP
    else:
        pending.pop()
    assert "FRAMES_SENT" not in dpu.counters()
    assert "DROP_BAD_RESPONSE" not in dpu.counters()
    for replies in pending:
        engine.answer(replies)
        assert dpu.flush() == (Verdict.TX, reply_frame(replies))


def test_what_was_finished_is_known_with_one_look(load: Callable[..., Dpu]) -> None:
    """The engine's counter is read again only when all finished batches have been answered."""
    dpu = load()
    engine = PlayedEngine(dpu.pair())
    pending = [expected_replies({}, batch(number)) for number in range(4)]
    for number in range(4):
        dpu.receive(request_frame(batch(number)))
    for replies in pending[:3]:
        engine.answer(replies)
    control = dpu.pair()["response_control"]
    assert dpu.flush() == (Verdict.TX, reply_frame(pending[0]))
    control["published"] = HALF
    for replies in pending[1:3]:
        assert dpu.flush() == (Verdict.TX, reply_frame(replies))
    assert dpu.flush()[0] == Verdict.DROP
    control["published"] = 3
    engine.answer(pending[3])
    assert dpu.flush() == (Verdict.TX, reply_frame(pending[3]))


def test_an_engine_that_has_finished_something_counts_as_alive(load: Callable[..., Dpu]) -> None:
    """It does until all finished batches are answered; then its heartbeat shows that it is gone."""
    dpu = load(depth=(1, 1))
    engine = PlayedEngine(dpu.pair())
    pending = [expected_replies({}, batch(number)) for number in range(2)]
    for number in range(2):
        dpu.receive(request_frame(batch(number)))
    for replies in pending:
        engine.answer(replies)
    assert dpu.flush() == (Verdict.TX, reply_frame(pending[0]))
    dpu.set_beat(0)
    assert dpu.receive(request_frame(batch(2))) == (Verdict.TX, reply_frame(pending[1]))
    assert dpu.counters().get("RESPONSES_REJECTED", 0) == 0
    assert dpu.receive(request_frame(batch(3)))[0] == Verdict.TX
    assert dpu.counters()["RESPONSES_REJECTED"] == 1


WORDS = st.one_of(
    st.integers(0, 2**64 - 1),
    st.builds(
        header_word,
        st.integers(0, 255),
        st.integers(0, 255),
        st.sampled_from([0, 0, 8, 255]),
        st.sampled_from([0, 1, 7, 8, 9, 16, 21, 100, 1952, 2040, 2047, 2048, 0xFFFFFF]),
    ),
)
OFFSETS = st.sampled_from([0, 8, 2039, 2047, 2048, 4088, 4095, 4096, 2**16, 2**32, 2**64 - 1])


def test_garbage_responses_never_make_a_wrong_frame(load: Callable[..., Dpu]) -> None:
    """For any response of an engine, the frame's lengths agree exactly, or there is no frame."""
    dpu = load()
    seen = {Verdict.TX: 0, Verdict.DROP: 0}

    @settings(max_examples=400, deadline=None, database=None)
    @given(
        st.lists(st.tuples(WORDS, OFFSETS), min_size=3, max_size=3),
        st.one_of(st.none(), st.integers(0, 2**16 - 1)),
        st.sampled_from([None, 3]),
        st.sampled_from([0, 1, abi.KV_RECORDS - 1, abi.KV_RECORDS, 2**32 - 1]),
    )
    @example([(header_word(5, 0, 0, 9), 2**64 - 1), (0, 0), (0, 0)], None, None, 2**32 - 1)
    def check(
        records: list[tuple[int, int]], wire: int | None, vlan_tag: int | None, first_record: int
    ) -> None:
        dpu.reset()
        dpu.receive(request_frame(REQUESTS, vlan_tag=vlan_tag))
        engine = PlayedEngine(dpu.pair())
        value_bytes = [word >> 32 & 0xFFFFFF for word, _ in records]
        right = sum(codec.item_bytes(0, length) for length in value_bytes)
        engine.records_taken = first_record
        answer = engine.write([], (right if wire is None else wire) & 0xFFFF, count=3)
        answer.records["header"] = [word for word, _ in records]
        answer.records["value"] = [value for _, value in records]
        engine.publish()
        verdict, out = dpu.flush()
        counters = dpu.counters()
        seen[verdict] += 1
        assert dpu.in_flight() == 0
        assert (verdict == Verdict.DROP) == (counters.get("DROP_BAD_RESPONSE") == 1)
        if verdict == Verdict.DROP:
            return
        frame = codec.decode_frame(out)
        assert frame.vlan_tag == vlan_tag
        replies = codec.decode_replies(frame.payload)
        assert [(r.opaque, r.key_hash) for r in replies] == [
            (r.opaque, r.key_hash) for r in REQUESTS
        ]
        assert [len(r.value) for r in replies] == value_bytes
        assert len(out) == HEADER_BYTES + (vlan_tag is not None) * abi.KV_VLAN_BYTES + right
        assert [r.operation for r in replies] == [word & 0xFF for word, _ in records]
        for at in (2, 3, 7):  # offsets of reserved0 and the key's length
            assert frame.payload[codec.BATCH_HEADER_BYTES + at] == 0

    check()
    assert min(seen.values()) > 20, seen


# ---- A hostile communication engine --------------------------------------------------------------


BODY = abi.KV_FRAME_MAX
"""Bytes of the longest body."""


class PlayedDpu:
    """The DPU's end of a queue pair in plain memory, with a real engine at the other end."""

    def __init__(self) -> None:
        self.memory = ffi.new("struct kv_queue_pair[1]")
        self.pair = queue_pairs_view(self.memory, 1)[0]
        self.published = 0
        self.engine: ProcessingEngine

    @contextmanager
    def served(self) -> Iterator["PlayedDpu"]:
        """Run the engine within the block."""
        with ExitStack() as cleanup:
            self.engine = small_engine(cleanup, engine_id=0, response_bytes_max=RESPONSE_BYTES_MAX)
            self.engine.add_pairs(self.memory, 1)
            host = HostCore(OTHER_CPU)
            host.add_engine(self.engine)
            cleanup.callback(host.stop)
            host.start()
            wait_until(lambda: self.pair["response_control"]["alive"], "the engine starts")
            yield self

    def next_batch(self, count: int, body_bytes: int = 0) -> Batch:
        """Return the next batch, which begins at the start of the ring as all others."""
        entry = self.pair["batches"][self.published % abi.KV_BATCHES]
        entry["count"], entry["has_body"], entry["body_bytes"] = count, body_bytes > 0, body_bytes
        entry["first_record"] = 0
        return batch_at(self.pair, self.published, min(count, abi.KV_BATCH_MAX))

    def hand_over(self, count: int) -> Answer:
        """Publish the next batch, of `count` requests; return a copy of its responses."""
        number = self.published
        self.published = (self.published + 1) % 2**32
        self.pair["request_control"]["published"] = self.published
        control = self.pair["response_control"]
        wait_until(lambda: control["published"] == self.published, "the batch is processed")
        self.pair["request_control"]["answered"] = self.published
        return answer_at(self.pair.copy(), number, count)

    def request(
        self, count: int, header: int, key: int = 0, value: int = 0, body_bytes: int = BODY
    ) -> Answer:
        """Hand over `count` records of the same content."""
        records = self.next_batch(count, body_bytes).records
        for name, content in (("header", header), ("key", key), ("value", value)):
            records[name] = content
        records["key_hash"] = hash_key(KEY)
        return self.hand_over(count)

    def assert_serves(self) -> None:
        """Assert that a SET and a GET of an 8-byte key work."""
        word = int.from_bytes(KEY, "little")
        self.request(1, header_word(abi.KV_OP_SET, 0, 8, 8), word, 42)
        answer = self.request(1, header_word(abi.KV_OP_GET, 0, 8, 0), word)
        assert answer.records["header"][0] == header_word(abi.KV_OP_GET, abi.KV_SUCCESS, 0, 8)
        assert answer.records["value"][0] == 42
        assert answer.entry["wire_bytes"] == codec.item_bytes(0, 8)

    def bad_batches(self) -> int:
        return int(self.engine.stats()["bad_batches"])


@pytest.fixture
def played() -> Iterator[PlayedDpu]:
    with PlayedDpu().served() as dpu:
        dpu.assert_serves()
        yield dpu


@pytest.mark.parametrize(
    ("kind", "hand_over"),
    [
        ("struct kv_partition_table *", lambda part: new_engine(part)),
        ("struct kv_queue_pair[1]", lambda part: engine_with_pairs(part, ffi.NULL)),
        ("struct kv_sender[1]", lambda part: engine_with_pairs(ffi.NULL, part)),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_an_engine_keeps_its_parts_alive(
    kind: str, hand_over: Callable[[Any], ProcessingEngine]
) -> None:
    """Python frees what only C structures refer to, and an engine would read another's memory."""
    part = ffi.new(kind)
    alive = weakref.ref(part)
    engine = hand_over(part)
    del part
    assert alive() is not None
    del engine
    assert alive() is None


def new_engine(partitions: Any = ffi.NULL) -> ProcessingEngine:
    return ProcessingEngine(
        engine_id=0,
        cpu=0,
        stores=[],
        partitions=partitions,
        takes_all=False,
        response_bytes_max=RESPONSE_BYTES_MAX,
    )


def engine_with_pairs(pairs: Any, senders: Any) -> ProcessingEngine:
    engine = new_engine()
    engine.add_pairs(pairs, 1, senders)
    return engine


@pytest.mark.parametrize("ahead", [abi.KV_BATCHES + 1, HALF, 2**32 - 1])
def test_request_counter_out_of_range(played: PlayedDpu, ahead: int) -> None:
    """More batches than there can be, or a counter that goes back: nothing is processed, and the
    engine continues when the counter is in range again.
    """
    responses = played.pair["responses"].tobytes() + played.pair["answers"].tobytes()
    before = played.engine.stats()["batches"]
    control = played.pair["request_control"]
    control["published"] = (played.published + ahead) % 2**32
    wait_until(lambda: played.bad_batches() == 1, "the jump is noticed")
    assert played.engine.stats()["batches"] == before
    assert played.pair["responses"].tobytes() + played.pair["answers"].tobytes() == responses
    assert played.pair["response_control"]["published"] == played.published
    control["published"] = played.published
    played.assert_serves()
    assert played.bad_batches() == 1


@pytest.mark.parametrize("count", [0, abi.KV_BATCH_MAX + 1, 128, 255])
def test_request_count_out_of_range(played: PlayedDpu, count: int) -> None:
    requests = played.engine.stats()["requests"]
    answer = played.request(count, header_word(abi.KV_OP_GET, 0, 8, 0))
    assert answer.entry["wire_bytes"] == 0, "no frame: the DPU drops the batch"
    assert (played.bad_batches(), played.engine.stats()["requests"]) == (1, requests)
    played.assert_serves()


@pytest.mark.parametrize("count", [1, abi.KV_BATCH_MAX - 1, abi.KV_BATCH_MAX])
def test_request_count_in_range(played: PlayedDpu, count: int) -> None:
    answer = played.request(count, header_word(abi.KV_OP_NOOP_READ, 0, 0, 0))
    assert answer.entry["wire_bytes"] == count * codec.ITEM_HEADER_BYTES
    assert played.bad_batches() == 0


@pytest.mark.parametrize(
    ("key_bytes", "offset", "result"),
    [
        (9, BODY - 9, abi.KV_NOT_FOUND),
        (9, BODY - 8, abi.KV_ERROR),
        (255, BODY - 255, abi.KV_NOT_FOUND),
        (255, BODY - 254, abi.KV_ERROR),
        (9, BODY, abi.KV_ERROR),
        (9, BODY + 1, abi.KV_ERROR),
        (9, 2**32, abi.KV_ERROR),
        (9, 2**63, abi.KV_ERROR),
        (255, 2**64 - 1, abi.KV_ERROR),
        (255, 2**64 - 255, abi.KV_ERROR),
    ],
)
def test_key_offset(played: PlayedDpu, key_bytes: int, offset: int, result: int) -> None:
    answer = played.request(1, header_word(abi.KV_OP_GET, 0, key_bytes, 0), key=offset)
    assert answer.records["header"][0] == header_word(abi.KV_OP_GET, result, 0, 0)
    played.assert_serves()


@pytest.mark.parametrize(
    ("value_bytes", "offset", "result"),
    [
        (9, BODY - 9, abi.KV_SUCCESS),
        (9, BODY - 8, abi.KV_INSUFFICIENT_SPACE),
        (abi.KV_VALUE_MAX, BODY - abi.KV_VALUE_MAX, abi.KV_SUCCESS),
        (abi.KV_VALUE_MAX + 1, 0, abi.KV_INSUFFICIENT_SPACE),
        (abi.KV_VALUE_MAX, BODY + 1 - abi.KV_VALUE_MAX, abi.KV_INSUFFICIENT_SPACE),
        (BODY + 1, 0, abi.KV_INSUFFICIENT_SPACE),
        (0xFFFFFF, 0, abi.KV_INSUFFICIENT_SPACE),
        (9, 2**64 - 1, abi.KV_INSUFFICIENT_SPACE),
        (0xFFFFFF, 2**64 - 0xFFFFFF, abi.KV_INSUFFICIENT_SPACE),
    ],
)
def test_value_offset(played: PlayedDpu, value_bytes: int, offset: int, result: int) -> None:
    answer = played.request(1, header_word(abi.KV_OP_SET, 0, 8, value_bytes), 7, offset)
    assert answer.records["header"][0] == header_word(abi.KV_OP_SET, result, 0, 0)
    played.assert_serves()


@pytest.mark.parametrize(
    ("header", "result"),
    [
        (header_word(abi.KV_OP_GET, 0, 9, 0), abi.KV_ERROR),
        (header_word(abi.KV_OP_SET, 0, 8, 9), abi.KV_INSUFFICIENT_SPACE),
        (header_word(abi.KV_OP_SET, 0, 9, 8), abi.KV_ERROR),
    ],
)
def test_offsets_into_a_body_that_the_batch_has_not(
    played: PlayedDpu, header: int, result: int
) -> None:
    """Bytes that an earlier batch left behind the records do not belong to this batch."""
    answer = played.request(1, header, body_bytes=0)
    assert answer.records["header"][0] == header_word(header & 0xFF, result, 0, 0)
    played.assert_serves()


def test_garbage_requests_get_well_formed_responses(played: PlayedDpu) -> None:
    """Records of random bytes: each gets a result, lengths are consistent, the engine survives."""
    random = np.random.default_rng(20260101)
    for _ in range(200):
        count = int(random.integers(1, abi.KV_BATCH_MAX + 1))
        batch = played.next_batch(count, int(random.integers(2)) * BODY)
        raw = random.bytes(count * abi.SIZE("kv_request"))
        batch.records[:] = np.frombuffer(raw, abi.dtype("kv_request"))
        words = batch.records["header"]
        words[::2] = words[::2] & ~np.uint64(0xFF) | np.uint64(abi.KV_OP_GET)
        words[1::4] = words[1::4] & ~np.uint64(0xFF) | np.uint64(abi.KV_OP_SET)
        answer = played.hand_over(count)
        headers = answer.records["header"]
        lengths = [int(word) >> 32 & 0xFFFFFF for word in headers]
        assert not np.any(headers & ~np.uint64(abi.KV_RESPONSE_HEADER_MASK))
        assert (headers & np.uint64(0xFF)).tolist() == (words & np.uint64(0xFF)).tolist()
        assert answer.entry["wire_bytes"] == sum(codec.item_bytes(0, n) for n in lengths)
    played.assert_serves()
