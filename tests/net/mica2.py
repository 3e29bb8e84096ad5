# SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
"""The answers that an unmodified MICA2 client accepts, found by feeding it changed frames
(datagram_protocol.h:79-98, 152-174, 272-277; datagram_client_impl.h:504-515).
"""

import struct
from dataclasses import dataclass

HEADER_BYTES = 48
ITEM_BYTES = 24
MAGIC_RESPONSE = 0x79


@dataclass(frozen=True)
class Item:
    """One answer as the client reads it."""

    operation: int
    result: int
    value: bytes
    key_hash: int
    opaque: int


def accepted(frame: bytes, awaited: set[int]) -> list[Item]:
    """Return the answers that the client takes from a frame; it waits for the `awaited` opaques.

    The client ignores addresses, ports, checksums, counts and reserved fields. This is written from
    its behaviour and independent of our codec, which may have the same faults as the server.
    """
    if len(frame) < HEADER_BYTES or frame[12:15] != b"\x08\x00\x45" or frame[23] != 17:
        return []
    ip_bytes, ip_id, fragment = struct.unpack_from("!HHH", frame, 16)
    (udp_bytes,) = struct.unpack_from("!H", frame, 38)
    if (ip_id, fragment) != (0, 0) or frame[42] != MAGIC_RESPONSE:
        return []
    if ip_bytes != len(frame) - 14 or udp_bytes != len(frame) - 34:
        return []
    items = []
    offset = HEADER_BYTES
    while offset + ITEM_BYTES <= len(frame):
        operation, result, _, lengths, key_hash, opaque = struct.unpack_from(
            "<BBHIQI", frame, offset
        )
        value_at = offset + ITEM_BYTES + roundup8(lengths >> 24)
        value_bytes = lengths & 0xFFFFFF
        offset = value_at + roundup8(value_bytes)
        if offset > len(frame):
            break
        if opaque in awaited:
            value = frame[value_at : value_at + value_bytes]
            items.append(Item(operation, result, value, key_hash, opaque))
            awaited = awaited - {opaque}
    return items


def roundup8(length: int) -> int:
    return (length + 7) & ~7
