# SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
"""The scapy layers build and dissect the same bytes as the codec, and the captures of the real
MICA2.
"""

from pathlib import Path

import pytest
from scapy.layers.dns import DNS
from scapy.layers.inet import IP, UDP
from scapy.layers.l2 import Ether
from scapy.packet import Packet, Raw
from scapy.utils import RawPcapReader

from dpukv_xdp.wire import abi, codec, layers
from dpukv_xdp.wire.codec import Reply, Request
from dpukv_xdp.wire.layers import KVBatch, KVItem

DATA = Path(__file__).parent.parent / "data"


def rebuilt(packet: Packet) -> bytes:
    """The packet's bytes from its fields, none from scapy's cache of what it dissected."""
    copy = packet.copy()
    for layer in (copy, *copy.iterpayloads()):
        layer.raw_packet_cache = None
    for item in copy[KVBatch].items:
        item.raw_packet_cache = None
    return bytes(copy)


@pytest.mark.parametrize("name", sorted(path.name for path in DATA.glob("mica2_*.pcap")))
def test_captures_of_the_real_mica2_rebuild_byte_for_byte(name: str) -> None:
    """Reserved bytes too: they are fields here, and so are the checksums (0)."""
    count = 0
    for raw, _ in RawPcapReader(str(DATA / name)):
        packet = Ether(raw)
        assert Raw not in packet
        assert rebuilt(packet) == raw
        count += 1
    assert count > 30


def test_what_is_left_none_is_filled_in_as_the_codec_does() -> None:
    items = [KVItem.get(b"hello", opaque=7), KVItem.set(b"k", b"a value", opaque=8), KVItem.probe()]
    wanted = [Request.get(b"hello", 7), Request.set(b"k", b"a value", 8), Request.probe()]
    assert bytes(KVBatch(items=items)) == codec.encode_batch(wanted)


def test_replies_build_as_the_codec_does() -> None:
    item = KVItem(operation="GET", value=b"world", opaque=7, key_hash=9)
    wanted = codec.encode_batch([Reply(5, 0, b"world", 7, 9)])
    assert bytes(KVBatch(magic="response", items=[item])) == wanted


def test_any_field_can_be_set_wrong_on_purpose() -> None:
    item = KVItem.get(b"hello", key_length=0, value_length=77, key_hash=1, result=9, reserved1=5)
    raw = bytes(KVBatch(items=[item], magic=1, request_count=33, reserved=b"\1\2\3\4"))
    assert (
        raw
        == bytes.fromhex("01 21 01020304 05 09 0000 4d000000 0100000000000000 00000000 05000000")
        + b"hello\0\0\0"
    )


def test_a_response_in_udp_is_recognised_by_its_magic() -> None:
    reply = codec.encode_batch([Reply(5, 0, b"world", 7, 9)])
    packet = IP(bytes(IP() / UDP(sport=9000, dport=49152) / Raw(reply)))
    assert packet[KVBatch].items[0].value == b"world"
    assert packet[KVBatch].items[0].key == b""
    assert "response" in packet.summary()


def test_other_datagrams_stay_what_they_are() -> None:
    assert DNS in IP(bytes(IP() / UDP(dport=53) / DNS()))
    near_miss = codec.encode_batch([Request.get(b"hello")]) + b"\0"
    assert KVBatch not in IP(bytes(IP() / UDP(sport=9, dport=9) / Raw(near_miss)))
    assert Raw in IP(bytes(IP() / UDP(sport=9, dport=9) / Raw(b"\x78short")))


def test_a_bound_port_shows_malformed_batches_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layers, "_BOUND_PORTS", set())
    monkeypatch.setattr(UDP, "payload_guess", list(UDP.payload_guess))
    layers.bind(9123)
    stray = codec.encode_batch([Request.get(b"hello")]) + b"stray"
    packet = IP(bytes(IP() / UDP(sport=9, dport=9123) / Raw(stray)))
    assert [item.key for item in packet[KVBatch].items] == [b"hello"]
    assert packet[Raw].load == b"stray"


def test_a_truncated_item_ends_the_walk() -> None:
    whole = codec.encode_batch([Request.get(b"hello"), Request.get(b"world")])
    batch = KVBatch(whole[:-1])
    assert [item.key for item in batch.items] == [b"hello"]
    assert len(batch[Raw].load) == 31


def test_a_response_answers_its_request_only() -> None:
    request = (
        IP(src="10.0.0.2", dst="10.0.0.1")
        / UDP(sport=4, dport=9000)
        / KVBatch(items=[KVItem.get(b"hello", opaque=7)])
    )
    base = IP(src="10.0.0.1", dst="10.0.0.2") / UDP(sport=9000, dport=4)
    right = base / KVBatch(magic="response", items=[KVItem(opaque=7)])
    other = base / KVBatch(magic="response", items=[KVItem(opaque=8)])
    echo = base / KVBatch(items=[KVItem.get(b"hello", opaque=7)])
    assert right.hashret() == request.hashret()
    assert right.answers(request)
    assert not other.answers(request)
    assert not echo.answers(request)


def test_a_batch_has_a_source_port_that_is_not_dns() -> None:
    assert (UDP(dport=9000) / KVBatch()).sport == layers.CLIENT_PORT


def test_the_layers_cover_the_structures() -> None:
    fields = [field.name for field in KVItem.fields_desc]
    named = [name for name in abi.dtype("kv_item_header").names or () if name != "kv_length"]
    assert [name for name in fields if name in named] == named
