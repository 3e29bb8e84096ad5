# SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
"""Scapy layers of the wire: `KVBatch` on UDP, with a list of `KVItem`.

The fields, their order and sizes are computed from bpf/abi. Counts, lengths and key hashes that
are left None are filled in when the packet is built, and any of them can be set wrong on purpose.
Importing this module makes scapy recognise well-formed batches on every UDP port (by magic and
exact lengths); `bind(port)` makes it dissect every datagram of a port, malformed or not.
"""

from typing import Any

from scapy.fields import (
    ByteEnumField,
    ByteField,
    LEIntField,
    LELongField,
    LEShortField,
    LEThreeBytesField,
    PacketListField,
    StrFixedLenField,
    StrLenField,
    XByteEnumField,
    XLELongField,
)
from scapy.layers.inet import UDP
from scapy.packet import Packet, Raw, bind_bottom_up, bind_top_down

from dpukv_xdp.wire import abi
from dpukv_xdp.wire.codec import (
    BATCH_HEADER_BYTES,
    COMPUTE_HASH,
    ITEM_HEADER_BYTES,
    KEY_LENGTH_SHIFT,
    Request,
    roundup8,
)

CLIENT_PORT = 49152
"""Default source port of a batch: the first dynamic port (RFC 6335). Scapy's own default is DNS's
port, so that it would dissect the answer as DNS.
"""

Fields = list[Any]
"""List of scapy fields; scapy's own type for it is private."""


def bind(port: int) -> None:
    """Make scapy dissect every datagram from or to this UDP port as KVBatch, malformed or not."""
    _BOUND_PORTS.add(port)
    bind_bottom_up(UDP, KVBatch, dport=port)
    bind_bottom_up(UDP, KVBatch, sport=port)


# ---- Fields that fill themselves in --------------------------------------------------------------


class _KeyLength(ByteField):
    def i2m(self, pkt: Packet | None, x: int | None) -> int:
        return len(pkt.key) if x is None and pkt is not None else int(x or 0)


class _ValueLength(LEThreeBytesField):
    def i2m(self, pkt: Packet | None, x: int | None) -> int:
        return len(pkt.value) if x is None and pkt is not None else int(x or 0)


class _KeyHash(XLELongField):
    def i2m(self, pkt: Packet | None, x: int | None) -> int:
        if x is None and pkt is not None:
            return Request(0, pkt.key, key_hash=COMPUTE_HASH).key_hash
        return int(x or 0)


class _RequestCount(ByteField):
    def i2m(self, pkt: Packet | None, x: int | None) -> int:
        return len(pkt.items) & 0xFF if x is None and pkt is not None else int(x or 0)


class _PaddedBytes(StrLenField):
    """Bytes of a length given elsewhere, zero padded to 8 on the wire; the padding is not kept."""

    def addfield(self, pkt: Packet, s: bytes, val: bytes | None) -> bytes:
        content = self.i2m(pkt, val)
        return s + content + bytes(roundup8(len(content)) - len(content))

    def getfield(self, pkt: Packet, s: bytes) -> tuple[bytes, bytes]:
        assert self.length_from is not None
        length_bytes = self.length_from(pkt)
        return s[roundup8(length_bytes) :], self.m2i(pkt, s[:length_bytes])


# ---- Layouts from the ABI ------------------------------------------------------------------------


def _item_fields() -> Fields:
    """Return the fields of struct kv_item_header in the compiler's order, with `kv_length` as its
    two parts, then key and value.
    """
    special: dict[str, Fields] = {
        "operation": [ByteEnumField("operation", abi.Operation.GET, _names(abi.Operation))],
        "result": [ByteEnumField("result", abi.Result.SUCCESS, _names(abi.Result))],
        "kv_length": [_ValueLength("value_length", None), _KeyLength("key_length", None)],
        "key_hash": [_KeyHash("key_hash", None)],
    }
    fields = _fields_of("kv_item_header", "operation", special)
    fields.append(_PaddedBytes("key", b"", length_from=lambda item: item.key_length))
    fields.append(_PaddedBytes("value", b"", length_from=lambda item: item.value_length))
    return fields


def _batch_fields() -> Fields:
    """Return the fields of struct kv_packet_header from `magic` on, and the items."""
    magics = {abi.KV_MAGIC_REQUEST: "request", abi.KV_MAGIC_RESPONSE: "response"}
    special: dict[str, Fields] = {
        "magic": [XByteEnumField("magic", abi.KV_MAGIC_REQUEST, magics)],
        "request_count": [_RequestCount("request_count", None)],
    }
    fields = _fields_of("kv_packet_header", "magic", special)
    fields.append(PacketListField("items", [], next_cls_cb=_next_item, max_count=abi.KV_FRAME_MAX))
    return fields


def _fields_of(struct_name: str, first: str, special: dict[str, Fields]) -> Fields:
    """Return scapy fields for an ABI structure from `first` on.

    Raises TypeError if they would not cover it byte for byte.
    """
    plain = {1: ByteField, 2: LEShortField, 4: LEIntField, 8: LELongField}
    parts = abi.fields(struct_name)
    names = list(parts)
    end = abi.offset(struct_name, first)
    fields: Fields = []
    for name in names[names.index(first) :]:
        part = parts[name]
        if part.offset != end:
            raise TypeError(f"struct {struct_name} has a hole before {name}")
        if part.is_array:
            here = [StrFixedLenField(name, bytes(part.size), length=part.size)]
        else:
            here = special.get(name) or [plain[part.size](name, 0)]
        if sum(field.sz for field in here) != part.size and not part.is_array:
            raise TypeError(f"struct {struct_name} gives {name} {part.size} bytes")
        fields += here
        end += part.size
    return fields


def _names(enumeration: Any) -> dict[int, str]:
    return {int(member): member.name for member in enumeration}


# ---- Telling batches from other datagrams --------------------------------------------------------


_BOUND_PORTS: set[int] = set()


def _next_item(
    _batch: Packet, _items: list[Any], _current: Packet | None, remain: bytes
) -> type[Packet] | None:
    """Return KVItem if a complete one is left, else None, which leaves the rest undissected."""
    return KVItem if 0 < _item_bytes(remain) <= len(remain) else None


def _is_batch(payload: bytes) -> bool:
    """Return whether a datagram has our magic and its lengths add up exactly."""
    if len(payload) < BATCH_HEADER_BYTES + ITEM_HEADER_BYTES:
        return False
    if payload[0] not in (abi.KV_MAGIC_REQUEST, abi.KV_MAGIC_RESPONSE):
        return False
    rest = payload[BATCH_HEADER_BYTES:]
    while rest and 0 < _item_bytes(rest) <= len(rest):
        rest = rest[_item_bytes(rest) :]
    return not rest


def _item_bytes(rest: bytes) -> int:
    """Return the bytes of the item that begins here, by its lengths; 0 if its header is cut."""
    if len(rest) < ITEM_HEADER_BYTES:
        return 0
    field = abi.fields("kv_item_header")["kv_length"]
    kv_length = int.from_bytes(rest[field.offset : field.offset + field.size], "little")
    value_bytes = kv_length & ((1 << KEY_LENGTH_SHIFT) - 1)
    return ITEM_HEADER_BYTES + roundup8(kv_length >> KEY_LENGTH_SHIFT) + roundup8(value_bytes)


def _next_guess(udp: Packet) -> type[Packet]:
    """Return the layer that other bindings select, which may have been made after ours."""
    for wanted, layer in udp.payload_guess:
        if layer is not KVBatch and all(udp.getfieldval(k) == v for k, v in wanted.items()):
            return layer
    return Raw


# ---- The layers: last, because scapy wants their fields when the class is made -------------------


class KVItem(Packet):
    """A request, or in a response batch a reply, which has no key."""

    name = "KV item"
    fields_desc = _item_fields()

    @classmethod
    def get(cls, key: bytes, **fields: Any) -> "KVItem":
        """Return a GET of `key`."""
        return cls(operation=abi.Operation.GET, key=key, **fields)

    @classmethod
    def set(cls, key: bytes, value: bytes, **fields: Any) -> "KVItem":
        """Return a SET of `key` to `value`."""
        return cls(operation=abi.Operation.SET, key=key, value=value, **fields)

    @classmethod
    def probe(cls, **fields: Any) -> "KVItem":
        """Return the NoopRead without a key that MICA2 clients send first."""
        return cls(operation=abi.Operation.NOOP_READ, **fields)

    def extract_padding(self, s: bytes) -> tuple[bytes, bytes]:
        """Return all following bytes as padding: they belong to the next item."""
        return b"", s

    def mysummary(self) -> str:
        """Return the operation, the result and the key in one line."""
        return str(self.sprintf("%KVItem.operation% %KVItem.result% key=%KVItem.key%"))


class KVBatch(Packet):
    """The content of one datagram: the batch header and the items."""

    name = "KV batch"
    fields_desc = _batch_fields()

    @classmethod
    def dispatch_hook(cls, _pkt: bytes | None = None, *_args: Any, **fields: Any) -> type[Packet]:
        """Return KVBatch, or for a UDP payload that is not a batch the layer that scapy would
        choose without us.
        """
        udp = fields.get("_underlayer")
        if _pkt is None or udp is None or {udp.sport, udp.dport} & _BOUND_PORTS:
            return cls
        return cls if _is_batch(_pkt) else _next_guess(udp)

    def hashret(self) -> bytes:
        """Equal for a request and its response, so that `sr1` pairs them."""
        return b"".join(item.opaque.to_bytes(4, "little") for item in self.items)

    def answers(self, other: Packet) -> int:
        """1 if this is the response to `other`: same opaques in the same order."""
        kinds = (abi.KV_MAGIC_RESPONSE, abi.KV_MAGIC_REQUEST)
        return int((self.magic, other.magic) == kinds and self.hashret() == other.hashret())

    def mysummary(self) -> str:
        """Direction and count in one line."""
        return str(self.sprintf(f"KV %KVBatch.magic% {len(self.items)} items"))


bind_bottom_up(UDP, KVBatch)
bind_top_down(UDP, KVBatch, sport=CLIENT_PORT)
