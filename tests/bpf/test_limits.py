# SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
"""Each limit of bpf/abi at the limit, one below and one above; and errors of single requests."""

from collections.abc import Callable
from dataclasses import replace
from ipaddress import IPv4Address

import pytest
from bpf.harness import (
    CLIENT,
    CPU,
    HEADER_BYTES,
    PORT,
    RESPONSE_BYTES_MAX,
    SERVER,
    Dpu,
    PlayedEngine,
    Verdict,
    batch_at,
    expected_replies,
    patched,
    records_of,
    reply_frame,
    request_frame,
    serving,
    traffic_counters,
    without_ways_out,
)

from dpukv_xdp.base.errors import UsageError
from dpukv_xdp.topology import validation
from dpukv_xdp.topology.schema import ServerConfig
from dpukv_xdp.wire import abi, codec
from dpukv_xdp.wire.codec import Endpoint, Reply, Request

pytestmark = pytest.mark.shares_cores

WAIT = (0, 0)
INSUFFICIENT_SPACE = abi.Result.INSUFFICIENT_SPACE


# ---- Packets -------------------------------------------------------------------------------------


@pytest.mark.parametrize("stray", [b"", b"\xff" * (codec.ITEM_HEADER_BYTES - 1)])
@pytest.mark.parametrize("vlan_tag", [None, 9])
@pytest.mark.parametrize("above", [-1, 0, 1])
def test_batch_max(
    load: Callable[..., Dpu], above: int, vlan_tag: int | None, stray: bytes
) -> None:
    dpu = load()
    requests = [Request.probe(opaque) for opaque in range(abi.KV_BATCH_MAX + above)]
    frame = request_frame(requests, vlan_tag=vlan_tag, stray=stray)
    verdict, _ = dpu.receive(frame)
    assert verdict == Verdict.DROP
    if above > 0:
        assert dpu.counters() == {"DROP_BATCH_LENGTH": 1}
        assert dpu.in_flight() == 0
        return
    replies = expected_replies({}, requests)
    PlayedEngine(dpu.pair()).answer(replies)
    reply = reply_frame(replies, vlan_tag=vlan_tag)
    assert dpu.flush() == (Verdict.TX, reply)
    assert without_ways_out(dpu.counters()) == traffic_counters(frame, reply)


@pytest.mark.parametrize(
    "requests",
    [
        [Request.get(b"a key of just forty bytes, not one more.", n) for n in range(54)],
        [Request.set(b"nine byte", b"v" * (abi.KV_VALUE_MAX - 16))],
    ],
    ids=["many", "one"],
)
@pytest.mark.parametrize("vlan_tag", [None, 9])
@pytest.mark.parametrize("above", [-1, 0, 1])
def test_frame_max(
    load: Callable[..., Dpu], above: int, vlan_tag: int | None, requests: list[Request]
) -> None:
    """Longer frames cannot be tested here, because the kernel's frames for BPF_PROG_RUN end with
    the page; generic XDP has them.
    """
    dpu = load()
    missing = abi.KV_FRAME_MAX + above - len(request_frame(requests, vlan_tag=vlan_tag))
    assert 0 <= missing < codec.ITEM_HEADER_BYTES
    frame = request_frame(requests, vlan_tag=vlan_tag, stray=b"\1" * missing)
    assert dpu.receive(frame)[0] == Verdict.DROP
    if above > 0:
        assert dpu.counters() == {"DROP_IP_HEADER": 1}
        assert dpu.in_flight() == 0
        return
    batch = batch_at(dpu.pair(), 0)
    assert batch.entry["count"] == len(requests)
    if batch.entry["has_body"]:
        body = frame[HEADER_BYTES + (vlan_tag is not None) * abi.KV_VLAN_BYTES :]
        assert bytes(batch.body[: len(body)]) == body
    replies = expected_replies({}, requests)
    PlayedEngine(dpu.pair()).answer(replies)
    assert dpu.flush() == (Verdict.TX, reply_frame(replies, vlan_tag=vlan_tag))


@pytest.mark.parametrize("vlan_tag", [None, 9])
@pytest.mark.parametrize("above", [-1, 0, 1])
def test_response_frame_max(load: Callable[..., Dpu], above: int, vlan_tag: int | None) -> None:
    """An engine's responses that fill the frame exactly, or would exceed it."""
    dpu = load()
    reply = Reply(abi.KV_OP_GET, abi.KV_SUCCESS, b"v" * (abi.KV_VALUE_MAX - 40), 1)
    shift = 0 if vlan_tag is None else abi.KV_VLAN_BYTES
    room = abi.KV_FRAME_MAX - shift - HEADER_BYTES - codec.item_bytes(0, len(reply.value))
    last = room // 8 * 8 + 8 * above - codec.ITEM_HEADER_BYTES
    replies = [reply, Reply(abi.KV_OP_GET, abi.KV_SUCCESS, b"w" * last, 2)]
    requests = [Request(abi.KV_OP_GET, b"", b"", r.opaque) for r in replies]
    dpu.receive(request_frame(requests, vlan_tag=vlan_tag))
    PlayedEngine(dpu.pair()).answer(replies)
    if above > 0:
        assert dpu.flush()[0] == Verdict.DROP
        assert dpu.counters()["DROP_BAD_RESPONSE"] == 1
    else:
        expected = reply_frame(replies, vlan_tag=vlan_tag)
        assert abi.KV_FRAME_MAX - 16 < len(expected) <= abi.KV_FRAME_MAX
        assert dpu.flush() == (Verdict.TX, expected)
    assert dpu.in_flight() == 0


# ---- Keys, values and operations: a request's own error, the others served -----------------------


SMALL = [Request.set(b"before", b"1", 1), Request.get(b"after", 2)]


def assert_answers(dpu: Dpu, requests: list[Request], results: list[int]) -> None:
    """Assert the results of the requests, values as in a dict, and exactly these bytes."""
    store: dict[bytes, bytes] = {b"after": b"2"}
    replies = expected_replies(store, requests)
    assert [reply.result for reply in replies] == results, "the test's own model"
    dpu.exchange(request_frame([Request.set(b"after", b"2")]))
    assert dpu.exchange(request_frame(requests)) == (Verdict.TX, reply_frame(replies))


@pytest.mark.parametrize("key_bytes", [0, 1, abi.KV_KEY_MAX - 1, abi.KV_KEY_MAX])
@pytest.mark.parametrize("operation", [abi.Operation.GET, abi.Operation.SET])
@pytest.mark.parametrize("value", [b"", b"short", b"longer than a word"])
def test_key_length(load: Callable[..., Dpu], key_bytes: int, operation: int, value: bytes) -> None:
    """Keys longer than KV_KEY_MAX cannot be expressed: the length has one byte."""
    request = Request(operation, b"k" * key_bytes, value, 7)
    result = abi.KV_ERROR if key_bytes == 0 else abi.KV_SUCCESS
    if key_bytes and operation == abi.Operation.GET:
        result = abi.KV_NOT_FOUND
    dpu = load(depth=WAIT)
    with serving(dpu):
        assert_answers(dpu, [SMALL[0], request, SMALL[1]], [0, result, 0])


@pytest.mark.parametrize("key_bytes", [1, 8])
@pytest.mark.parametrize("above", [-1, 0, 1, 8])
def test_value_max(load: Callable[..., Dpu], above: int, key_bytes: int) -> None:
    """The request has a packet of its own: nothing else fits."""
    key, value = b"k" * key_bytes, b"v" * (abi.KV_VALUE_MAX + above)
    result = INSUFFICIENT_SPACE if above > 0 else abi.KV_SUCCESS
    dpu = load(depth=WAIT)
    with serving(dpu):
        dpu.exchange(request_frame([Request.set(key, b"old")]))
        verdict, reply = dpu.exchange(request_frame([Request.set(key, value, 1)]))
        assert (verdict, replies_in(reply)[0].result) == (Verdict.TX, result)
        verdict, reply = dpu.exchange(request_frame([Request.get(key, 2)]))
        kept = b"old" if above > 0 else value
        assert (verdict, replies_in(reply)[0].value) == (Verdict.TX, kept)


def replies_in(frame: bytes) -> list[Reply]:
    return codec.decode_replies(codec.decode_frame(frame).payload)


@pytest.mark.parametrize("key_bytes", [8, 16, 200, abi.KV_KEY_MAX])
@pytest.mark.parametrize("above", [-8, -1, 0])
def test_item_max(load: Callable[..., Dpu], above: int, key_bytes: int) -> None:
    """A longer item would exceed KV_FRAME_MAX with a VLAN tag, or its value KV_VALUE_MAX."""
    key = b"k" * key_bytes
    value = b"v" * (abi.KV_ITEM_MAX - codec.roundup8(key_bytes) + above)
    dpu = load(depth=WAIT)
    with serving(dpu):
        store: dict[bytes, bytes] = {}
        for request in (Request.set(key, value, 1), Request.get(key, 2)):
            replies = expected_replies(store, [request])
            for tag in (None, 5):
                answer = dpu.exchange(request_frame([request], vlan_tag=tag))
                assert answer == (Verdict.TX, reply_frame(replies, vlan_tag=tag))
            assert replies[0].result == abi.KV_SUCCESS


@pytest.mark.parametrize("key", [b"k", b"a long key of 24 bytes.."], ids=["short", "long"])
@pytest.mark.parametrize("operation", [0, 9, 100, 255])
def test_operations_not_served(load: Callable[..., Dpu], operation: int, key: bytes) -> None:
    request = Request(operation, key, b"some value", 7)
    dpu = load(depth=WAIT)
    with serving(dpu):
        assert_answers(dpu, [SMALL[0], request, SMALL[1]], [0, abi.KV_NOT_SUPPORTED, 0])


# ---- Replies that do not fit the frame -----------------------------------------------------------


def test_only_the_reply_that_does_not_fit_is_refused(load: Callable[..., Dpu]) -> None:
    """Room for a header and a short value is reserved for each reply after a long one."""
    dpu = load(depth=WAIT)
    long_value, short_value = b"L" * 2200, b"s" * 8
    with serving(dpu):
        for key, value in ((b"long", long_value), (b"short", short_value)):
            dpu.exchange(request_frame([Request.set(key, value)]))
        keys = [b"long", b"long", b"short", b"none", b"short"]
        _, reply = dpu.exchange(request_frame([Request.get(k, i) for i, k in enumerate(keys)]))
    assert [(r.result, r.value) for r in replies_in(reply)] == [
        (abi.KV_SUCCESS, long_value),
        (INSUFFICIENT_SPACE, b""),
        (abi.KV_SUCCESS, short_value),
        (abi.KV_NOT_FOUND, b""),
        (abi.KV_SUCCESS, short_value),
    ]


@pytest.mark.parametrize("above", [-8, 0, 8])
def test_a_reply_at_the_frame_s_edge(load: Callable[..., Dpu], above: int) -> None:
    """With `response_bytes_max` for two replies of 600 bytes exactly, 8 fewer, and 8 more."""
    dpu = load(depth=WAIT)
    value = b"v" * 600
    room = 2 * codec.item_bytes(0, len(value)) - above
    with serving(dpu, response_bytes_max=room):
        dpu.exchange(request_frame([Request.set(b"k", value)]))
        _, reply = dpu.exchange(request_frame([Request.get(b"k", 1), Request.get(b"k", 2)]))
    first, second = replies_in(reply)
    assert (first.result, first.value) == (abi.KV_SUCCESS, value)
    wanted = (INSUFFICIENT_SPACE, b"") if above > 0 else (abi.KV_SUCCESS, value)
    assert (second.result, second.value) == wanted
    assert len(reply) <= HEADER_BYTES + room


@pytest.mark.parametrize("above", [-1, 0, 1])
def test_a_value_that_no_reply_could_carry_is_refused(load: Callable[..., Dpu], above: int) -> None:
    dpu = load(depth=WAIT)
    room = 1466  # with MTU 1500
    longest = (room - codec.ITEM_HEADER_BYTES) & ~7
    request = Request.set(b"k", b"v" * (longest + above))
    with serving(dpu, response_bytes_max=room):
        _, reply = dpu.exchange(request_frame([request]))
        (stored,) = replies_in(reply)
        _, reply = dpu.exchange(request_frame([Request.get(b"k")]))
    wanted = (INSUFFICIENT_SPACE, abi.KV_NOT_FOUND) if above > 0 else (0, 0)
    assert (stored.result, replies_in(reply)[0].result) == wanted


def test_replies_as_many_as_requests_of_any_size_fit(load: Callable[..., Dpu]) -> None:
    """A frame full of the shortest GETs, all hits."""
    dpu = load(depth=WAIT)
    count = min(RESPONSE_BYTES_MAX // codec.item_bytes(8, 0), abi.KV_BATCH_MAX)
    with serving(dpu):
        store: dict[bytes, bytes] = {}
        for key in (b"8 bytes!", b"k"):
            request = Request.set(key, b"12345678")
            expected_replies(store, [request])
            dpu.exchange(request_frame([request]))
            requests = [Request.get(key, opaque) for opaque in range(count)]
            answer = dpu.exchange(request_frame(requests))
            assert answer == (Verdict.TX, reply_frame(expected_replies(store, requests)))


# ---- Queues and engines --------------------------------------------------------------------------


LONG_BODY = Request.set(b"k" * 9, b"v" * 200)
"""Its body takes 8 records behind its own."""
FREE_RECORDS = abi.KV_RECORDS - abi.KV_BATCH_RECORDS_MAX
"""A batch is taken as long as no more records than these are in use."""


@pytest.mark.parametrize(
    ("requests", "capacity"),
    [
        ([Request.probe()], abi.KV_BATCHES),
        ([Request.probe()] * abi.KV_BATCH_MAX, FREE_RECORDS // abi.KV_BATCH_MAX + 1),
        ([LONG_BODY], FREE_RECORDS // 9 + 1),
    ],
    ids=["batches", "records", "bodies"],
)
def test_a_full_queue_pair(
    load: Callable[..., Dpu], requests: list[Request], capacity: int
) -> None:
    """So many batches of as many sources wait; the next one is dropped, and all others are finally
    answered.
    """
    dpu = load()
    assert records_of([LONG_BODY]) == 1 + 8
    frame = request_frame(requests)
    for number in range(capacity - 1):
        dpu.receive(patched(frame, ip_source=source(number)))
    assert dpu.in_flight() == capacity - 1
    dpu.receive(patched(frame, ip_source=source(capacity - 1)))
    assert dpu.in_flight() == capacity
    assert "DROP_QUEUE_FULL" not in dpu.counters()
    for times in (1, 2):
        assert dpu.receive(frame)[0] == Verdict.DROP
        assert dpu.counters()["DROP_QUEUE_FULL"] == times
        assert dpu.in_flight() == dpu.pair()["request_control"]["published"] == capacity
    engine = PlayedEngine(dpu.pair())
    replies = expected_replies({}, requests)
    for number in range(capacity):
        engine.answer(replies)
        client = replace(CLIENT, ip=str(IPv4Address(source(number))))
        assert dpu.flush() == (Verdict.TX, reply_frame(replies, client=client))
    assert dpu.receive(frame)[0] == Verdict.DROP
    assert dpu.in_flight() == 1, "there is room again"


def source(number: int) -> bytes:
    """Return the IPv4 address of one of many clients."""
    return (IPv4Address("10.1.0.0") + number).packed


MOST_RECORDS = [Request.probe()] * abi.KV_BATCH_MAX


@pytest.mark.parametrize(
    ("requests", "share"),
    [
        ([Request.probe()], abi.KV_CROWDED_BATCHES),
        (MOST_RECORDS, abi.KV_CROWDED_RECORDS // abi.KV_BATCH_MAX),
    ],
    ids=["batches", "records"],
)
def test_one_source_leaves_room_for_others(
    load: Callable[..., Dpu], requests: list[Request], share: int
) -> None:
    """A source alone is refused when the queue pair is nearly full; then another one is served."""
    dpu = load()
    frame = request_frame(requests)
    for _ in range(share):
        dpu.receive(frame)
    assert dpu.in_flight() == share
    assert "DROP_SOURCE_SHARE" not in dpu.counters()
    for times in (1, 2):
        dpu.receive(frame)
        assert dpu.in_flight() == share
        assert dpu.counters()["DROP_SOURCE_SHARE"] == times
    dpu.receive(patched(frame, ip_source=source(0)))
    assert dpu.in_flight() == share + 1
    for number in range(1, 9):
        dpu.receive(patched(frame, ip_source=source(number)))
    assert dpu.in_flight() == share + 9, "each of many sources is served"


@pytest.mark.parametrize("engines", [1, abi.KV_ENGINES_MAX])
def test_ports_of_engines(load: Callable[..., Dpu], engines: int) -> None:
    """Every port leads to its own engine's queue pair; adjacent ports are not ours."""
    dpu = load(engines=engines, cpus=CPU + 2 if engines > 1 else CPU + 1)
    for port in (PORT - 1, PORT + engines):
        server = Endpoint(SERVER.mac, SERVER.ip, port)
        assert dpu.receive(request_frame([Request.probe()], server=server))[0] == Verdict.PASS
    for engine in range(engines):
        server = Endpoint(SERVER.mac, SERVER.ip, PORT + engine)
        dpu.receive(request_frame([Request.probe(engine)], server=server))
    assert [dpu.in_flight(engine) for engine in range(engines)] == [1] * engines
    assert dpu.pairs["request_control"]["published"].sum() == engines
    for engine in reversed(range(engines)):
        server = Endpoint(SERVER.mac, SERVER.ip, PORT + engine)
        replies = expected_replies({}, [Request.probe(engine)])
        PlayedEngine(dpu.pair(engine)).answer(replies)
        assert dpu.flush(engine) == (Verdict.TX, reply_frame(replies, server=server))


def test_settings_over_a_limit_are_refused() -> None:
    for wrong in (
        {"engines": abi.KV_ENGINES_MAX + 1},
        {"engines": 0},
        {"depth": abi.KV_PIPELINE_MAX + 1},
        {"depth": -1},
    ):
        with pytest.raises(UsageError):
            validation.check(ServerConfig(**wrong))
    validation.check(ServerConfig(engines=abi.KV_ENGINES_MAX, depth=abi.KV_PIPELINE_MAX))
