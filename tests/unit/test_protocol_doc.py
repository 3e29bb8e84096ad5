# SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
"""The exchange in docs/PROTOCOL.md agrees with the codec (test_abi.py compares its tables with
bpf/abi).
"""

import re
from pathlib import Path

from dpukv_xdp.wire import abi, codec
from dpukv_xdp.wire.codec import Endpoint, Reply, Request
from dpukv_xdp.wire.hashing import hash_key

TEXT = (Path(__file__).parents[2] / "docs" / "PROTOCOL.md").read_text()

CLIENT = Endpoint("02:00:00:00:00:02", "10.0.0.2", 49152)
SERVER = Endpoint("02:00:00:00:00:01", "10.0.0.1", 9800)
KEY_HASH = hash_key(b"hello")
REQUESTS = [Request.set(b"hello", b"wide world", 0x10001), Request.get(b"hello", 0x20001)]
REPLIES = [
    Reply(abi.Operation.SET, abi.Result.SUCCESS, b"", 0x10001, KEY_HASH),
    Reply(abi.Operation.GET, abi.Result.SUCCESS, b"wide world", 0x20001, KEY_HASH),
]


def rows(kind: str) -> list[tuple[int, bytes, str]]:
    """Return the offset, bytes and annotation of each row of a hex dump."""
    block = TEXT.split(f"```hexdump {kind}\n")[1].split("```")[0]
    parsed = []
    for line in block.splitlines():
        offset, octets, annotation = re.split(r" {2,}", line, maxsplit=2)
        parsed.append((int(offset, 16), bytes.fromhex(octets), annotation))
    return parsed


def frame(kind: str) -> bytes:
    return b"".join(octets for _, octets, _ in rows(kind))


def test_the_request_is_what_the_codec_sends() -> None:
    decoded = codec.decode_frame(frame("request"))
    assert (decoded.source, decoded.destination) == (CLIENT, SERVER)
    assert codec.decode_requests(decoded.payload) == REQUESTS
    assert frame("request") == codec.encode_frame(CLIENT, SERVER, codec.encode_batch(REQUESTS))


def test_the_response_is_what_the_codec_sends() -> None:
    decoded = codec.decode_frame(frame("response"))
    assert decoded.ip_checksum_valid
    assert codec.decode_replies(decoded.payload) == REPLIES
    assert frame("response") == codec.encode_frame(SERVER, CLIENT, codec.encode_batch(REPLIES))


def test_the_offsets_follow_each_other() -> None:
    for kind in ("request", "response"):
        at = 0
        for offset, octets, annotation in rows(kind):
            assert offset == at
            assert annotation
            at += len(octets)


def test_the_numbers_in_the_text_are_the_codecs() -> None:
    shortest = abi.SIZE("kv_packet_header") + abi.SIZE("kv_item_header")
    gets = (codec.payload_max() - codec.BATCH_HEADER_BYTES) // codec.item_bytes(8, 0)
    sets = (codec.payload_max() - codec.BATCH_HEADER_BYTES) // codec.item_bytes(8, 8)
    for sentence in (
        f"shorter than {shortest} bytes",
        f"leaves {codec.value_bytes_max(8)} for the value",
        f"{gets} GETs or {sets} SETs",
        f"fewer than {abi.SIZE('kv_item_header')} bytes are left",
        f"follows at offset {abi.SIZE('kv_packet_header')}",
        f"frame has {codec.ETHERNET_MTU + abi.KV_ETH_BYTES} bytes",
    ):
        assert sentence in re.sub(r"\s+", " ", TEXT), sentence
