# SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
"""Well-formed packets through kv_receive, the queue pair and a real engine: the reply is exact,
byte for byte.
"""

import struct
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from bpf.harness import (
    CLIENT,
    HEADER_BYTES,
    SERVER,
    Case,
    Dpu,
    Verdict,
    expected_replies,
    patched,
    reply_frame,
    request_frame,
    serving,
    traffic_counters,
    with_dirty_padding,
    without_ways_out,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from scapy.utils import RawPcapReader
from unit.test_abi import PROTOCOL, hexdump

from dpukv_xdp.wire import abi, codec
from dpukv_xdp.wire.codec import Endpoint, Request
from dpukv_xdp.wire.hashing import hash_key
from dpukv_xdp.wire.layers import KVBatch, KVItem

pytestmark = pytest.mark.shares_cores

DATA = Path(__file__).parent.parent / "data"
WAIT = (0, 0)
LAST_KEY_ITEM = abi.KV_ITEM_MAX - codec.roundup8(abi.KV_KEY_MAX)
"""Bytes of the longest value beside the longest key."""
ODD_LENGTHS = (0, 1, 5, 7, 8, 9, 12, 15, 16, 17, 100, 1000)


@pytest.fixture
def dpu(load: Callable[..., Dpu]) -> Iterator[Dpu]:
    dpu = load(depth=WAIT)
    with serving(dpu):
        yield dpu


# ---- One packet, one reply -----------------------------------------------------------------------


def served(name: str, requests: list[Request], **frame: object) -> Case:
    """Return a packet whose requests a fresh server serves; `frame` goes to request_frame."""
    packet = request_frame(requests, **frame)  # type: ignore[arg-type]
    tag = codec.decode_frame(packet).vlan_tag
    reply = reply_frame(expected_replies({}, requests), vlan_tag=tag)
    return Case(name, packet, Verdict.TX, reply, traffic_counters(packet, reply))


def as_written(name: str, like: Case, vlan: bool = False, **fields: int | bytes) -> Case:
    """Return the same packet with other values in header fields that a server must ignore."""
    return Case(name, patched(like.packet, vlan, **fields), Verdict.TX, like.reply, like.counters)


PAIR = [Request.set(b"hello", b"wide world", 0x10001), Request.get(b"hello", 0x20001)]
HELLO = served("set_then_get", PAIR)
TAGGED = served("vlan", PAIR, vlan_tag=0x6123)
PROBE = served("probe", [Request.probe(0xFFFF0000)])
EIGHT = [Request.set(b"8" * 8, b"v" * 8, 1), Request.get(b"8" * 8, 2)]

CASES = [
    HELLO,
    TAGGED,
    PROBE,
    served("get_miss", [Request.get(b"nothing!", 7)]),
    served("eight_byte_words", EIGHT),
    served("empty_value", [Request.set(b"k", b""), Request.get(b"k", 1)]),
    served("any_opaque_and_hash", [Request(abi.KV_OP_GET, b"k", b"", 2**32 - 1, 2**64 - 1)]),
    served("noop_write_with_value", [Request(abi.KV_OP_NOOP_WRITE, b"k" * 20, b"v" * 20, 3)]),
    served("value_in_a_get", [Request(abi.KV_OP_GET, b"k" * 8, b"v" * 30, 4)]),
    served("short_value_behind_long_key",
           [Request.set(b"k" * 40, b"v" * 3), Request.get(b"k" * 40, 1)]),
    served("long_value_behind_short_key",
           [Request.set(b"k", b"v" * 333), Request.get(b"k", 1)]),
    served("vlan_long", [Request.set(b"k" * 40, b"v" * 1200), Request.get(b"k" * 40, 1)],
           vlan_tag=1),
    as_written("ip_checksum_zero", HELLO, ip_checksum=0),
    as_written("ip_checksum_wrong", HELLO, ip_checksum=0xBAD),
    as_written("udp_checksum_any", HELLO, udp_checksum=0xBAD),
    as_written("ip_tos_id_ttl_df", HELLO, ip_tos=0xB8, ip_id=7, ip_ttl=3, ip_fragment=0x4000),
    as_written("request_count_zero", HELLO, request_count=0),
    as_written("request_count_more", HELLO, request_count=255),
    as_written("reserved_is_not_echoed", HELLO, reserved=b"leak"),
    as_written("vlan_reserved", TAGGED, True, reserved=b"leak", request_count=9, ip_checksum=1),
    *(served(f"stray_{n}", PAIR, stray=b"\xff" * n) for n in range(1, codec.ITEM_HEADER_BYTES)),
    *(served(f"vlan_stray_{n}", EIGHT, stray=b"\xff" * n, vlan_tag=5) for n in (1, 7, 8, 23)),
]  # fmt: skip


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_served(dpu: Dpu, case: Case) -> None:
    verdict, reply = dpu.exchange(case.packet)
    assert (verdict, reply) == (case.verdict, case.reply)
    assert without_ways_out(dpu.counters()) == case.counters


def test_the_exchange_of_protocol_md(dpu: Dpu) -> None:
    text = PROTOCOL.read_text()
    verdict, reply = dpu.exchange(hexdump(text, "request"))
    assert verdict == Verdict.TX
    assert reply.hex(" ") == hexdump(text, "response").hex(" ")


def test_reserved_item_bytes_are_zero_in_the_reply(dpu: Dpu) -> None:
    """MICA2 leaves parts of other packets there; a request's result field is ignored, too."""
    dirty = [
        KVItem.set(b"hello", b"wide world", opaque=1, result=9, reserved0=0xDEAD, reserved1=0xBEEF),
        KVItem.get(b"hello", opaque=2, result=9, reserved0=0xDEAD, reserved1=0xBEEF),
        KVItem.get(b"8 bytes!", opaque=3, reserved0=1, reserved1=2**32 - 1),
    ]
    frame = codec.encode_frame(CLIENT, SERVER, bytes(KVBatch(items=dirty)))
    clean = [*PAIR, Request.get(b"8 bytes!", 3)]
    for opaque, request in enumerate(clean, start=1):
        object.__setattr__(request, "opaque", opaque)
    expected = reply_frame(expected_replies({}, clean))
    assert dpu.exchange(frame) == (Verdict.TX, expected)


def test_ip_checksum_of_any_addresses(dpu: Dpu) -> None:
    """Also of addresses whose sum carries again after its first carry has been added."""
    carries = set()
    for last in range(0, 1 << 16, 13):
        client = Endpoint(CLIENT.mac, f"223.255.{last >> 8}.{last & 0xFF}", 1)
        server = Endpoint(SERVER.mac, "222.241.252.253", SERVER.port)
        replies = expected_replies({}, [Request.probe(1)])
        expected = reply_frame(replies, client, server)
        answer = dpu.exchange(request_frame([Request.probe(1)], client, server))
        assert answer == (Verdict.TX, expected), client
        words = struct.unpack("<10H", patched(expected, ip_checksum=0)[14:34])
        carries.add((sum(words) >> 16) + (sum(words) & 0xFFFF) >> 16)
    assert carries == {0, 1}


def test_port_zero_on_both_sides(load: Callable[..., Dpu]) -> None:
    dpu = load(depth=WAIT, port=0)
    client = Endpoint(CLIENT.mac, CLIENT.ip, 0)
    server = Endpoint(SERVER.mac, SERVER.ip, 0)
    with serving(dpu):
        answer = dpu.exchange(request_frame([Request.probe(5)], client, server))
    assert answer == (
        Verdict.TX,
        reply_frame(expected_replies({}, [Request.probe(5)]), client, server),
    )


# ---- Lengths -------------------------------------------------------------------------------------


@pytest.mark.parametrize("vlan_tag", [None, 0x0FFF], ids=["plain", "vlan"])
def test_every_key_length(dpu: Dpu, vlan_tag: int | None) -> None:
    store: dict[bytes, bytes] = {}
    for key_bytes in range(1, abi.KV_KEY_MAX + 1):
        key = bytes([key_bytes]) * key_bytes
        for value_bytes in (0, 3, 8, key_bytes):
            value = bytes(range(256))[-value_bytes:] if value_bytes else b""
            requests = [Request.set(key, value, key_bytes), Request.get(key, value_bytes)]
            expected = reply_frame(expected_replies(store, requests), vlan_tag=vlan_tag)
            frame = request_frame(requests, vlan_tag=vlan_tag)
            assert dpu.exchange(frame) == (Verdict.TX, expected), (key_bytes, value_bytes)


@pytest.mark.parametrize("key_bytes", [1, 5, 8, 9, 12, 16, 254, abi.KV_KEY_MAX])
def test_values_up_to_what_a_frame_holds(dpu: Dpu, key_bytes: int) -> None:
    key = b"k" * key_bytes
    longest = codec.value_bytes_max(key_bytes, mtu=abi.KV_FRAME_MAX)
    assert key_bytes != abi.KV_KEY_MAX or longest == LAST_KEY_ITEM
    store: dict[bytes, bytes] = {}
    for value_bytes in (*ODD_LENGTHS, *range(longest - 9, longest + 1)):
        value = bytes(n * 7 & 0xFF for n in range(value_bytes))
        for request in (Request.set(key, value, 1), Request.get(key, 2)):
            expected = reply_frame(expected_replies(store, [request]))
            assert dpu.exchange(request_frame([request])) == (Verdict.TX, expected), value_bytes


def test_padding_of_requests_is_not_looked_at(dpu: Dpu) -> None:
    """MICA2 pads with arbitrary memory; replies are padded with zeros nevertheless."""
    store: dict[bytes, bytes] = {}
    for key_bytes in (1, 5, 7, 9, 12, 100):
        for value_bytes in (1, 7, 9, 13, 333):
            key = b"%03d" % value_bytes * 40
            key, value = key[:key_bytes], b"v" * value_bytes
            for request in (Request.set(key, value), Request.get(key)):
                expected = reply_frame(expected_replies(store, [request]))
                frame = request_frame([request])
                dirty = with_dirty_padding(frame, [request])
                assert dpu.exchange(dirty) == (Verdict.TX, expected), request
            assert dpu.exchange(frame) == (Verdict.TX, expected), "found by the same key"


def test_a_reply_longer_and_shorter_than_its_request(dpu: Dpu) -> None:
    """The frame grows, shrinks or keeps its size, and contains no byte of the request."""
    store: dict[bytes, bytes] = {}
    for value_bytes in (0, 1, 8, 9, 400, 1400):
        key = b"key %4d" % value_bytes
        for request in (Request.set(key, b"\xff" * value_bytes), Request.get(key)):
            frame = request_frame([request], stray=b"\xee" * 20)
            expected = reply_frame(expected_replies(store, [request]))
            assert dpu.exchange(frame) == (Verdict.TX, expected)


KEYS = st.sampled_from([b"a", b"hello", b"8 bytes!", b"nine byte", b"k" * 100, b"z" * 255])
VALUES = st.sampled_from([b"", b"v", b"1234567", b"12345678", b"123456789", b"w" * 31])
REQUESTS = st.builds(
    Request,
    st.sampled_from([abi.KV_OP_GET, abi.KV_OP_SET, *range(9), 0xFF]),
    st.one_of(KEYS, KEYS, st.just(b"")),
    VALUES,
    st.integers(0, 2**32 - 1),
)


def test_any_batches_against_a_dictionary(dpu: Dpu) -> None:
    """Mixed operations, keys and values, many per packet, in frames with and without a tag."""
    store: dict[bytes, bytes] = {}

    @settings(max_examples=100, deadline=None, database=None)
    @given(st.lists(REQUESTS, min_size=1, max_size=12), st.sampled_from([None, 0, 0xFFFF]))
    def check(requests: list[Request], vlan_tag: int | None) -> None:
        frame = request_frame(requests, vlan_tag=vlan_tag)
        while len(frame) > abi.KV_FRAME_MAX:
            requests = requests[:-1]
            frame = request_frame(requests, vlan_tag=vlan_tag)
        expected = reply_frame(expected_replies(store, requests), vlan_tag=vlan_tag)
        assert dpu.exchange(frame) == (Verdict.TX, expected)

    check()


# ---- Ports and partitions ------------------------------------------------------------------------


def test_each_engine_serves_its_own_partition(load: Callable[..., Dpu]) -> None:
    """A key of another engine is refused, probes are as in MICA2; other requests are served."""
    dpu = load(depth=WAIT, port=0, engines=2)
    keys = [[key for key in keys_of_two() if owner(key, 2) == engine][:3] for engine in (0, 1)]
    with serving(dpu) as engines:
        for engine in (0, 1):
            server = Endpoint(SERVER.mac, SERVER.ip, engine)
            mine, other = keys[engine], keys[1 - engine]
            requests = [Request.set(mine[0], b"mine"), Request.set(other[0], b"not mine")]
            requests += [Request.get(key) for key in (mine[0], other[0], mine[1])]
            expected = expected_replies({}, requests)
            for index in (1, 3):
                object.__setattr__(expected[index], "result", abi.Result.REJECTED)
                object.__setattr__(expected[index], "value", b"")
            answer = dpu.exchange(request_frame(requests, server=server), engine)
            assert answer == (Verdict.TX, reply_frame(expected, server=server))
        assert [engine.stats()["rejected"] for engine in engines] == [2, 2]


def keys_of_two() -> Iterator[bytes]:
    yield from (number.to_bytes(8, "little") for number in range(100))


def owner(key: bytes, engines: int) -> int:
    return (hash_key(key) >> 48) % engines


# ---- Captures of the real MICA2 client and server ------------------------------------------------


@pytest.mark.parametrize(
    ("capture", "engines"),
    [("mica2_one_request_per_packet", 2), ("mica2_eight_requests_per_packet", 1)],
)
def test_captured_requests_get_the_captured_answers(
    load: Callable[..., Dpu], capture: str, engines: int
) -> None:
    """The requests are sent in order to the captured ports; the answers match byte for byte."""
    frames = [frame for frame, _ in RawPcapReader(str(DATA / f"{capture}.pcap"))]
    payload_of = {frame: codec.decode_frame(frame).payload for frame in frames}
    requests = [f for f in frames if payload_of[f][0] == abi.KV_MAGIC_REQUEST]
    answers = {opaques(f): f for f in reversed(frames) if f not in requests}
    dpu = load(depth=WAIT, port=0, engines=engines)
    compared = 0
    with serving(dpu):
        for frame in requests:
            verdict, reply = dpu.exchange(frame, codec.decode_frame(frame).destination.port)
            assert verdict == Verdict.TX
            if opaques(frame) not in answers:  # the capture ends before its answer
                continue
            assert reply.hex(" ") == as_we_answer(answers[opaques(frame)]).hex(" ")
            compared += 1
    assert compared == {2: 16, 1: 25}[engines]


def opaques(frame: bytes) -> tuple[int, ...]:
    return tuple(item.opaque for item in codec.decode_batch(codec.decode_frame(frame).payload))


def as_we_answer(captured: bytes) -> bytes:
    """Return a captured answer with defined values in the fields that MICA2 does not define: zero
    in reserved ones, and a valid IP checksum.
    """
    frame = codec.decode_frame(captured)
    replies = codec.decode_replies(frame.payload)
    clean = codec.encode_frame(frame.source, frame.destination, codec.encode_batch(replies))
    same = patched(captured, ip_checksum=clean[24:26], reserved=bytes(4))
    assert same[:HEADER_BYTES] == clean[:HEADER_BYTES]
    return clean
