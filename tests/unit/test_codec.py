# SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
"""Bytes to requests and replies and back: exact, at every limit, and a specific error for each kind
of malformed input.
"""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scapy.utils import RawPcapReader

from dpukv_xdp.base.errors import (
    BatchLengthError,
    FrameError,
    KeyValueError,
    MagicError,
    ProtocolError,
    TruncatedError,
    UsageError,
)
from dpukv_xdp.wire import abi, codec
from dpukv_xdp.wire.codec import Endpoint, Reply, Request

DATA = Path(__file__).parent.parent / "data"
CLIENT = Endpoint("02:00:00:00:00:02", "10.0.0.2", 49152)
SERVER = Endpoint("02:00:00:00:00:01", "10.0.0.1", 9000)

words32 = st.integers(0, 2**32 - 1)
words64 = st.integers(0, 2**64 - 1)
short_keys = st.binary(min_size=1, max_size=40)
short_values = st.binary(max_size=40)
requests = st.builds(Request, st.integers(0, 255), short_keys, short_values, words32, words64)
replies = st.builds(Reply, st.integers(0, 255), st.integers(0, 255), short_values, words32, words64)


@given(st.lists(requests, min_size=1, max_size=12))
def test_requests_come_back_as_they_went(batch: list[Request]) -> None:
    assert codec.decode_batch(codec.encode_batch(batch)) == batch


@given(st.lists(replies, min_size=1, max_size=12))
def test_replies_come_back_as_they_went(batch: list[Reply]) -> None:
    assert codec.decode_batch(codec.encode_batch(batch)) == batch


def test_get_is_the_bytes_of_a_mica2_client() -> None:
    key = (1).to_bytes(8, "little")
    assert codec.encode_batch([Request.get(key, opaque=2)]) == bytes.fromhex(
        "780100000000 05000000 00000008 615a3bb00be93b52 02000000 00000000 0100000000000000"
    )


def test_get_reply_is_the_bytes_of_a_mica2_server() -> None:
    reply = Reply(5, 0, (1001).to_bytes(8, "little"), 2, 0x523BE90BB03B5A61)
    assert codec.encode_batch([reply]) == bytes.fromhex(
        "790100000000 05000000 08000000 615a3bb00be93b52 02000000 00000000 e903000000000000"
    )


def test_probe_has_no_key_and_hash_zero() -> None:
    payload = codec.encode_batch([Request.probe(opaque=0xFFFF0001)])
    assert payload == bytes.fromhex(
        "780100000000 01000000 00000000 0000000000000000 0100ffff 00000000"
    )


@pytest.mark.parametrize(
    ("key", "key_hash"),
    [
        (b"hello", 0xB48BE5A931380CE8),
        (b"helloworld12345", 0x1E1FBBD259BBB5C0),
        (bytes(8), 0x14397A23417AF284),
        ((201326591).to_bytes(8, "little"), 0x32AE36D845B1B723),
    ],
)
def test_the_hash_is_mica2s(key: bytes, key_hash: int) -> None:
    assert Request.get(key).key_hash == key_hash


@pytest.mark.parametrize("length", [0, 1, 5, 7, 8, 9, 12, 15, 16, 17])
def test_lengths_are_exact_and_padding_is_zero(length: int) -> None:
    value = b"\xff" * length
    payload = codec.encode_batch([Request.set(b"k", value)])
    assert len(payload) == 6 + 24 + 8 + -(-length // 8) * 8
    assert payload[6 + 24 + 8 :] == value + bytes(-length % 8)
    assert codec.decode_requests(payload)[0].value == value


def test_known_codes_read_by_name_and_unknown_ones_stay_numbers() -> None:
    known, unknown = codec.decode_requests(
        codec.encode_batch([Request(5, b"k"), Request(200, b"k")])
    )
    assert known.operation is abi.Operation.GET
    assert unknown.operation == 200


# ---- Limits


@pytest.mark.parametrize("key_bytes", [1, abi.KV_KEY_MAX - 1, abi.KV_KEY_MAX])
def test_keys_up_to_the_limit_pass(key_bytes: int) -> None:
    request = Request.get(b"k" * key_bytes)
    assert codec.decode_requests(codec.encode_batch([request])) == [request]


@pytest.mark.parametrize("key_bytes", [0, abi.KV_KEY_MAX + 1])
def test_keys_over_the_limits_are_refused(key_bytes: int) -> None:
    with pytest.raises(KeyValueError, match=f"not {key_bytes}"):
        codec.encode_batch([Request.get(b"k" * key_bytes)])


def test_a_key_that_the_length_field_cannot_hold_is_refused_even_when_lenient() -> None:
    with pytest.raises(KeyValueError):
        codec.encode_batch([Request.get(b"k" * (abi.KV_KEY_MAX + 1))], strict=False)


@pytest.mark.parametrize("mtu", [576, 1500, 9000])
@pytest.mark.parametrize("key_bytes", [1, 8, 9, 255])
def test_the_longest_value_fits_exactly(key_bytes: int, mtu: int) -> None:
    value_max = codec.value_bytes_max(key_bytes, mtu)
    request = Request.set(b"k" * key_bytes, b"v" * value_max)
    payload = codec.encode_batch([request], mtu)
    assert len(payload) <= codec.payload_max(mtu) < len(payload) + 8 or value_max in (
        abi.KV_VALUE_MAX,
        abi.KV_ITEM_MAX - codec.roundup8(key_bytes),
    )
    assert codec.decode_requests(payload) == [request]
    with pytest.raises(KeyValueError, match=str(value_max)):
        codec.encode_batch([Request.set(b"k" * key_bytes, b"v" * (value_max + 1))], mtu)


def test_an_eight_byte_key_leaves_1432_bytes_as_in_mica2() -> None:
    assert codec.value_bytes_max(8, 1500) == 1432


def test_a_batch_ends_at_its_limits() -> None:
    probes = [Request.probe(opaque) for opaque in range(abi.KV_BATCH_MAX + 1)]
    full = probes[: abi.KV_BATCH_MAX]
    assert codec.decode_requests(codec.encode_batch(full, mtu=9000)) == full
    with pytest.raises(UsageError, match="too many"):
        codec.encode_batch(probes, mtu=9000)
    with pytest.raises(BatchLengthError):
        codec.decode_requests(codec.encode_batch(probes, strict=False))


def test_a_batch_longer_than_the_datagram_is_refused() -> None:
    gets = [Request.get(bytes(8))] * 46
    assert len(codec.encode_batch(gets[:45])) + 42 <= 1514
    with pytest.raises(UsageError, match="MTU 1500"):
        codec.encode_batch(gets)


def test_an_empty_batch_is_refused() -> None:
    with pytest.raises(UsageError):
        codec.encode_batch([])


@pytest.mark.parametrize(("field", "bits"), [("opaque", 32), ("key_hash", 64)])
def test_numbers_too_large_for_their_field_are_refused(field: str, bits: int) -> None:
    with pytest.raises(KeyValueError, match="fields"):
        codec.encode_batch([Request(5, b"k", **{field: 1 << bits})])


# ---- Malformed datagrams


def test_every_truncation_is_noticed_or_leaves_whole_requests() -> None:
    batch = [Request.set(b"hello", b"wide world"), Request.get(b"a longer key")]
    payload = codec.encode_batch(batch)
    first_end = 6 + codec.item_bytes(5, 10)
    for length in range(len(payload)):
        cut = payload[:length]
        if first_end <= length < first_end + 24:  # a rest shorter than a header is ignored
            assert codec.decode_requests(cut) == batch[:1]
        else:
            with pytest.raises(TruncatedError):
                codec.decode_requests(cut)


@pytest.mark.parametrize("stray", [1, 8, 23])
def test_stray_bytes_behind_the_last_item_are_ignored(stray: int) -> None:
    payload = codec.encode_batch([Request.get(b"hello")])
    assert codec.decode_requests(payload + b"\xff" * stray) == [Request.get(b"hello")]


def test_the_count_in_the_header_is_not_believed() -> None:
    payload = bytearray(codec.encode_batch([Request.get(b"hello")] * 2))
    payload[1] = 200
    assert len(codec.decode_requests(bytes(payload))) == 2


def test_the_wrong_kind_is_refused() -> None:
    request = codec.encode_batch([Request.get(b"hello")])
    reply = codec.encode_batch([Reply(5, 4)])
    with pytest.raises(MagicError):
        codec.decode_replies(request)
    with pytest.raises(MagicError):
        codec.decode_requests(reply)
    with pytest.raises(MagicError):
        codec.decode_batch(b"\0" + request[1:])


@given(st.binary(max_size=200))
def test_garbage_is_decoded_or_a_protocol_error(garbage: bytes) -> None:
    for first in (b"\x78", b"\x79", b""):
        try:
            decoded = codec.decode_batch(first + garbage)
        except ProtocolError:
            continue
        assert 1 <= len(decoded) <= abi.KV_BATCH_MAX


# ---- Frames


@pytest.mark.parametrize("vlan_tag", [None, 0x2005])
def test_frames_come_back_as_they_went(vlan_tag: int | None) -> None:
    payload = codec.encode_batch([Request.get(b"hello")])
    raw = codec.encode_frame(CLIENT, SERVER, payload, vlan_tag)
    frame = codec.decode_frame(raw)
    assert (frame.source, frame.destination, frame.payload) == (CLIENT, SERVER, payload)
    assert (frame.ip_checksum_valid, frame.ip_id, frame.ip_fragment) == (True, 0, 0)
    assert (frame.udp_checksum, frame.vlan_tag) == (0, vlan_tag)


FRAME = codec.encode_frame(CLIENT, SERVER, codec.encode_batch([Request.get(b"hello")]))


@pytest.mark.parametrize(
    ("field", "value", "telling"),
    [
        ("eth_type", b"\x86\xdd", "EtherType"),
        ("ip_version_ihl", b"\x46", "options"),
        ("ip_fragment", b"\x20\x00", "fragment"),
        ("ip_fragment", b"\x00\x01", "fragment"),
        ("ip_protocol", b"\x06", "not UDP"),
        ("ip_total_length", b"\x00\x43", "IP total length"),
        ("udp_length", b"\x00\x2f", "UDP length"),
    ],
)
def test_a_wrong_header_field_is_named(field: str, value: bytes, telling: str) -> None:
    at = abi.offset("kv_packet_header", field)
    with pytest.raises(FrameError, match=telling):
        codec.decode_frame(FRAME[:at] + value + FRAME[at + len(value) :])


def test_every_shorter_or_longer_frame_is_refused() -> None:
    for length in range(len(FRAME)):
        with pytest.raises(FrameError):
            codec.decode_frame(FRAME[:length])
    with pytest.raises(FrameError):
        codec.decode_frame(FRAME + b"\0")


def test_a_broken_ip_checksum_is_reported() -> None:
    at = abi.offset("kv_packet_header", "ip_checksum")
    broken = FRAME[:at] + b"\0\0" + FRAME[at + 2 :]
    assert not codec.decode_frame(broken).ip_checksum_valid


@pytest.mark.parametrize(
    "endpoint", [Endpoint("nonsense", "10.0.0.1", 1), Endpoint("02:00:00:00:00:01", "10.0.0", 1)]
)
def test_a_wrong_address_is_a_usage_error(endpoint: Endpoint) -> None:
    with pytest.raises(UsageError, match="write it as"):
        codec.encode_frame(endpoint, SERVER, b"")


@pytest.mark.parametrize("name", sorted(path.name for path in DATA.glob("mica2_*.pcap")))
def test_captures_of_the_real_mica2_decode_and_encode_again(name: str) -> None:
    """Byte for byte except the reserved fields (MICA2 leaks old bytes there) and the IP checksum
    (which it sends as 0).
    """
    count = 0
    for raw, _ in RawPcapReader(str(DATA / name)):
        frame = codec.decode_frame(raw)
        items = codec.decode_batch(frame.payload)
        again = codec.encode_frame(frame.source, frame.destination, codec.encode_batch(items))
        assert without_undefined(again, len(items)) == without_undefined(raw, len(items))
        count += 1
    assert count > 30


def without_undefined(raw: bytes, item_count: int) -> bytes:
    """Return the frame with zeros in the bytes that MICA2 does not define."""
    frame = bytearray(raw)
    at = abi.offset("kv_packet_header", "ip_checksum")
    frame[at : at + 2] = bytes(2)
    at = abi.offset("kv_packet_header", "reserved")
    frame[at : at + 4] = bytes(4)
    item = abi.SIZE("kv_packet_header")
    for _ in range(item_count):
        at = item + abi.offset("kv_item_header", "reserved1")
        frame[at : at + 4] = bytes(4)
        kv_length = int.from_bytes(frame[item + 4 : item + 8], "little")
        item += codec.item_bytes(kv_length >> 24, kv_length & 0xFFFFFF)
    return bytes(frame)
