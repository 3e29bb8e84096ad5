# SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
"""Bytes to requests and replies, and back: no sockets, no clock.

A *batch* is the content of one UDP datagram: the batch header (the end of `struct
kv_packet_header`, from `magic` on) and the items, each a `struct kv_item_header`, a key and a
value, both zero padded to 8 bytes. A *frame* is the whole Ethernet frame around it.
docs/PROTOCOL.md describes the bytes; every offset here comes from bpf/abi through `abi`.
"""

import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from ipaddress import AddressValueError, IPv4Address

from dpukv_xdp.base.errors import (
    BatchLengthError,
    FrameError,
    KeyValueError,
    MagicError,
    TruncatedError,
    UsageError,
)
from dpukv_xdp.wire import abi
from dpukv_xdp.wire.hashing import hash_key

ETHERNET_MTU = 1500
"""MTU of ordinary Ethernet, in bytes of an IP packet."""

NETWORK_HEADER_BYTES = abi.offset("kv_packet_header", "magic")
"""Bytes of the Ethernet, IPv4 and UDP headers of a frame without VLAN tag."""

BATCH_HEADER_BYTES = abi.SIZE("kv_packet_header") - NETWORK_HEADER_BYTES
ITEM_HEADER_BYTES = abi.SIZE("kv_item_header")

KEY_LENGTH_SHIFT = 8 * abi.fields("kv_item_header")["kv_length"].size - abi.KV_KEY_MAX.bit_length()
"""`kv_length` holds the key's length in its top bits, as many as KV_KEY_MAX needs, and below it the
value's.
"""

COUNTER_BYTES = abi.KV_NUMBER_BYTES
"""Of a value that INCREMENT counts with, and of what it adds: little endian, wrapping around."""

COMPUTE_HASH = -1
"""As `key_hash`: CityHash64 of the key, or 0 for the empty key of a probe."""

_OPERATIONS: dict[int, int] = {int(member): member for member in abi.Operation}
_KEYLESS_OPERATIONS = abi.operations(abi.KV_OPS_KNOWN & ~abi.KV_OPS_KEYED)
_RESULTS: dict[int, int] = {int(member): member for member in abi.Result}


@dataclass(frozen=True, slots=True)
class Request:
    """A client's request. Any operation code can be expressed, including those that servers do not
    know.
    """

    operation: int
    """A member of abi.Operation, or another number."""
    key: bytes
    """1 to KV_KEY_MAX bytes; empty in a probe."""
    value: bytes = b""
    """Empty unless the operation stores something."""
    opaque: int = 0
    """The client's own 32 bits, echoed in the reply."""
    key_hash: int = COMPUTE_HASH
    """64 bits that choose partition and bucket."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "operation", _OPERATIONS.get(self.operation, self.operation))
        if self.key_hash == COMPUTE_HASH:
            object.__setattr__(self, "key_hash", hash_key(self.key) if self.key else 0)

    @classmethod
    def get(cls, key: bytes, opaque: int = 0) -> "Request":
        """Return a request for the value of `key`."""
        return cls(abi.Operation.GET, key, opaque=opaque)

    @classmethod
    def set(cls, key: bytes, value: bytes, opaque: int = 0) -> "Request":
        """Return a request to insert or overwrite an item."""
        return cls(abi.Operation.SET, key, value, opaque)

    @classmethod
    def add(cls, key: bytes, value: bytes, opaque: int = 0) -> "Request":
        """Return a request to insert an item, unless the key exists."""
        return cls(abi.Operation.ADD, key, value, opaque)

    @classmethod
    def test(cls, key: bytes, opaque: int = 0) -> "Request":
        """Return a request that tests whether `key` exists."""
        return cls(abi.Operation.TEST, key, opaque=opaque)

    @classmethod
    def delete(cls, key: bytes, opaque: int = 0) -> "Request":
        """Return a request to remove `key`."""
        return cls(abi.Operation.DELETE, key, opaque=opaque)

    @classmethod
    def increment(cls, key: bytes, by: int = 1, opaque: int = 0) -> "Request":
        """Return a request to add `by`, 0 to 2^64 - 1, to the counter of COUNTER_BYTES at `key`."""
        if not 0 <= by < 1 << 8 * COUNTER_BYTES:
            raise UsageError(f"a counter cannot be incremented by {by}: use 0 to 2^64 - 1")
        return cls(abi.Operation.INCREMENT, key, by.to_bytes(COUNTER_BYTES, "little"), opaque)

    @classmethod
    def noop(cls, key: bytes, opaque: int = 0) -> "Request":
        """Return a request that changes nothing, to the engine that serves a GET of `key`."""
        return cls(abi.Operation.NOOP_READ, key, opaque=opaque)

    @classmethod
    def probe(cls, opaque: int = 0) -> "Request":
        """Return the NoopRead without a key, which MICA2 clients send first; servers answer."""
        return cls(abi.Operation.NOOP_READ, b"", opaque=opaque)


@dataclass(frozen=True, slots=True)
class Reply:
    """The server's reply to one request; replies are in the order of the requests."""

    operation: int
    """As in the request."""
    result: int
    """A member of abi.Result, or another number."""
    value: bytes = b""
    """Value of a GET or INCREMENT that succeeded; else empty."""
    opaque: int = 0
    """As in the request."""
    key_hash: int = 0
    """As in the request."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "operation", _OPERATIONS.get(self.operation, self.operation))
        object.__setattr__(self, "result", _RESULTS.get(self.result, self.result))


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One end of a datagram."""

    mac: str
    """Six hexadecimal bytes with colons."""
    ip: str
    """Dotted IPv4 address."""
    port: int
    """UDP port; 0 is legal here, because MICA2 clients use it."""


@dataclass(frozen=True, slots=True)
class Frame:
    """A decoded Ethernet frame."""

    source: Endpoint
    destination: Endpoint
    payload: bytes
    """The datagram: a batch."""
    ip_checksum_valid: bool
    """False for MICA2's requests, which leave the checksum 0."""
    ip_id: int
    ip_fragment: int
    """Flags and fragment offset as in the header: 0, or the don't-fragment bit."""
    udp_checksum: int
    vlan_tag: int | None = None
    """The 802.1Q tag control information, if there is one."""


# ---- Batches -------------------------------------------------------------------------------------


def encode_batch(
    items: Sequence[Request] | Sequence[Reply], mtu: int = ETHERNET_MTU, strict: bool = True
) -> bytes:
    """Return the datagram that carries these requests, or these replies, in order.

    `strict=False` permits items that a server must refuse (empty keys, oversized values and
    batches), for tests. Raises KeyValueError for an item beyond a limit of bpf/abi, UsageError for
    no items, too many, or more than a frame of `mtu` bytes carries.
    """
    if not items:
        raise UsageError("a batch needs at least one request: give some")
    if strict:
        _check_count(len(items))
        for item in items:
            check_item(item, mtu)
    is_request = isinstance(items[0], Request)
    magic = abi.KV_MAGIC_REQUEST if is_request else abi.KV_MAGIC_RESPONSE
    parts = [_BATCH.pack(magic, len(items) & 0xFF, b"")]
    parts += (_encode_item(item) for item in items)
    payload = b"".join(parts)
    if strict and len(payload) > payload_max(mtu):
        raise UsageError(
            f"a batch of {len(payload)} bytes exceeds the {payload_max(mtu)} bytes of a datagram "
            f"at MTU {mtu}: put fewer requests into it"
        )
    return payload


def decode_batch(payload: bytes) -> list[Request] | list[Reply]:
    """Return the requests or replies of a datagram, according to its magic. Raises the errors of
    `decode_requests`.
    """
    magic = payload[0] if payload else -1
    return decode_replies(payload) if magic == abi.KV_MAGIC_RESPONSE else decode_requests(payload)


def decode_requests(payload: bytes) -> list[Request]:
    """Return the requests of a datagram.

    As in MICA2, the lengths determine the items: the header's count is ignored, and so is a rest
    shorter than an item header. Raises MagicError, TruncatedError or BatchLengthError.
    """
    _check_magic(payload, abi.KV_MAGIC_REQUEST, "request")
    return [
        Request(operation, key, value, opaque, key_hash)
        for operation, _, key, value, opaque, key_hash in _walk(payload)
    ]


def decode_replies(payload: bytes) -> list[Reply]:
    """Return the replies of a datagram, without their keys. Raises as `decode_requests` does."""
    _check_magic(payload, abi.KV_MAGIC_RESPONSE, "response")
    return [
        Reply(operation, result, value, opaque, key_hash)
        for operation, result, _, value, opaque, key_hash in _walk(payload)
    ]


def check_item(item: Request | Reply, mtu: int = ETHERNET_MTU) -> None:
    """Raise KeyValueError if no server can accept this request, or send this reply, in a frame of
    `mtu` bytes.
    """
    if isinstance(item, Reply):
        _check_value(0, len(item.value), mtu)
    elif item.key or item.operation not in _KEYLESS_OPERATIONS:
        check_lengths(len(item.key), len(item.value), mtu)
    else:
        _check_value(0, len(item.value), mtu)


def check_lengths(key_bytes: int, value_bytes: int, mtu: int = ETHERNET_MTU) -> None:
    """Raise KeyValueError if no server accepts a key and value of these lengths, or no frame of
    `mtu` bytes can carry them.
    """
    if not 1 <= key_bytes <= abi.KV_KEY_MAX:
        raise KeyValueError(
            f"a key has 1 to {abi.KV_KEY_MAX} bytes, not {key_bytes}: use another one"
        )
    _check_value(key_bytes, value_bytes, mtu)


def payload_max(mtu: int = ETHERNET_MTU) -> int:
    """Return the bytes of the longest datagram that fits both the MTU and KV_FRAME_MAX."""
    return min(mtu + abi.KV_ETH_BYTES, abi.KV_FRAME_MAX) - NETWORK_HEADER_BYTES


def value_bytes_max(key_bytes: int, mtu: int = ETHERNET_MTU) -> int:
    """Return the bytes of the longest value that a packet carries with such a key; negative if the
    key alone is too long.
    """
    room = min(payload_max(mtu) - BATCH_HEADER_BYTES - ITEM_HEADER_BYTES, abi.KV_ITEM_MAX)
    return min((room & ~7) - roundup8(key_bytes), abi.KV_VALUE_MAX)


def item_bytes(key_bytes: int, value_bytes: int) -> int:
    """Return the bytes of an item on the wire, including header and padding."""
    return ITEM_HEADER_BYTES + roundup8(key_bytes) + roundup8(value_bytes)


def roundup8(length_bytes: int) -> int:
    """Return the next multiple of 8, at which the following field starts."""
    return (length_bytes + 7) & ~7


def _check_value(key_bytes: int, value_bytes: int, mtu: int) -> None:
    value_max = value_bytes_max(key_bytes, mtu)
    if not 0 <= value_bytes <= value_max:
        raise KeyValueError(
            f"a value of {value_bytes} bytes is out of range: beside a key of {key_bytes} bytes "
            f"a packet of MTU {mtu} has room for {value_max}"
        )


def _check_count(count: int) -> None:
    if count > abi.KV_BATCH_MAX:
        raise UsageError(
            f"{count} requests are too many for a batch: at most {abi.KV_BATCH_MAX} fit"
        )


def _check_magic(payload: bytes, magic: int, kind: str) -> None:
    if len(payload) < BATCH_HEADER_BYTES + ITEM_HEADER_BYTES:
        raise TruncatedError(
            f"{len(payload)} bytes are no batch: the shortest has "
            f"{BATCH_HEADER_BYTES + ITEM_HEADER_BYTES}"
        )
    if payload[0] != magic:
        raise MagicError(
            f"the datagram begins with {payload[0]:#04x}, not with {magic:#04x}: it is no {kind}"
        )


def _walk(payload: bytes) -> Iterator[tuple[int, int, bytes, bytes, int, int]]:
    """Yield the operation, result, key, value, opaque and key hash of each item."""
    offset = BATCH_HEADER_BYTES
    count = 0
    while len(payload) - offset >= ITEM_HEADER_BYTES:
        operation, result, _, kv_length, key_hash, opaque, _ = _ITEM.unpack_from(payload, offset)
        key_bytes = kv_length >> KEY_LENGTH_SHIFT
        value_bytes = kv_length & ((1 << KEY_LENGTH_SHIFT) - 1)
        key_offset = offset + ITEM_HEADER_BYTES
        value_offset = key_offset + roundup8(key_bytes)
        offset = value_offset + roundup8(value_bytes)
        if offset > len(payload):
            raise TruncatedError(
                f"item {count} (key {key_bytes} bytes, value {value_bytes} bytes) ends "
                f"{offset - len(payload)} bytes past the datagram"
            )
        if count == abi.KV_BATCH_MAX:
            raise BatchLengthError(f"more than {abi.KV_BATCH_MAX} items in one datagram")
        count += 1
        key = payload[key_offset : key_offset + key_bytes]
        value = payload[value_offset : value_offset + value_bytes]
        yield operation, result, key, value, opaque, key_hash


def _encode_item(item: Request | Reply) -> bytes:
    key = item.key if isinstance(item, Request) else b""
    result = item.result if isinstance(item, Reply) else 0
    try:
        header = _ITEM.pack(
            item.operation,
            result,
            0,
            _kv_length(len(key), len(item.value)),
            item.key_hash,
            item.opaque,
            0,
        )
    except struct.error as error:
        raise KeyValueError(f"{item!r:.200} does not fit the wire's fields: {error}") from error
    return header + _padded(key) + _padded(item.value)


def _kv_length(key_bytes: int, value_bytes: int) -> int:
    if value_bytes >> KEY_LENGTH_SHIFT:
        raise KeyValueError(f"a value of {value_bytes} bytes is too long for the length field")
    return key_bytes << KEY_LENGTH_SHIFT | value_bytes


def _padded(content: bytes) -> bytes:
    return content.ljust(roundup8(len(content)), b"\0")


# ---- Frames --------------------------------------------------------------------------------------


def encode_frame(
    source: Endpoint, destination: Endpoint, payload: bytes, vlan_tag: int | None = None
) -> bytes:
    """Return the Ethernet frame around a datagram: valid IP checksum, ID 0, no don't-fragment bit,
    UDP checksum 0 (none).
    """
    udp_length = len(payload) + abi.KV_UDP_BYTES
    ip_header = _IP.pack(
        abi.KV_IP_VERSION_IHL,
        0,
        udp_length + abi.KV_IP_BYTES,
        0,
        0,
        abi.KV_IP_TTL,
        abi.KV_IP_PROTOCOL_UDP,
        0,
        ip_to_bytes(source.ip),
        ip_to_bytes(destination.ip),
    )
    checksum_at = abi.offset("kv_packet_header", "ip_checksum") - abi.KV_ETH_BYTES
    checksum = ipv4_checksum(ip_header).to_bytes(2, "big")
    ip_header = ip_header[:checksum_at] + checksum + ip_header[checksum_at + 2 :]
    addresses = mac_to_bytes(destination.mac) + mac_to_bytes(source.mac)
    tag = b"" if vlan_tag is None else struct.pack(">HH", abi.KV_ETHERTYPE_VLAN, vlan_tag)
    eth_type = abi.KV_ETHERTYPE_IPV4.to_bytes(2, "big")
    udp_header = _UDP.pack(source.port, destination.port, udp_length, 0)
    return addresses + tag + eth_type + ip_header + udp_header + payload


def decode_frame(frame: bytes) -> Frame:
    """Return the datagram in an Ethernet frame, and its addresses. Checksums are reported, not
    checked. Raises FrameError unless the frame is plain IPv4/UDP with lengths that agree exactly.
    """
    type_at = abi.offset("kv_packet_header", "eth_type")
    vlan_tag = None
    if frame[type_at : type_at + 2] == abi.KV_ETHERTYPE_VLAN.to_bytes(2, "big"):
        vlan_tag = int.from_bytes(frame[type_at + 2 : type_at + 4], "big")
        frame = frame[:type_at] + frame[type_at + abi.KV_VLAN_BYTES :]
    if len(frame) < NETWORK_HEADER_BYTES:
        raise FrameError(f"{len(frame)} bytes are too short for Ethernet, IPv4 and UDP headers")
    eth_destination, eth_source, eth_type = _ETHERNET.unpack_from(frame)
    ip_header = frame[abi.KV_ETH_BYTES : abi.KV_ETH_BYTES + abi.KV_IP_BYTES]
    version_ihl, _, ip_length, ip_id, fragment, _, protocol, _, ip_source, ip_destination = (
        _IP.unpack(ip_header)
    )
    udp = _UDP.unpack_from(frame, NETWORK_HEADER_BYTES - abi.KV_UDP_BYTES)
    source_port, destination_port, udp_length, udp_checksum = udp
    _check_network_header(eth_type, version_ihl, fragment, protocol)
    _check_lengths(len(frame), ip_length, udp_length)
    return Frame(
        source=Endpoint(eth_source.hex(":"), str(IPv4Address(ip_source)), source_port),
        destination=Endpoint(
            eth_destination.hex(":"), str(IPv4Address(ip_destination)), destination_port
        ),
        payload=frame[NETWORK_HEADER_BYTES:],
        ip_checksum_valid=ipv4_checksum(ip_header) == 0,
        ip_id=ip_id,
        ip_fragment=fragment,
        udp_checksum=udp_checksum,
        vlan_tag=vlan_tag,
    )


def ipv4_checksum(header: bytes) -> int:
    """Return the checksum of an IPv4 header whose checksum field is 0; over a header with a valid
    checksum, return 0.
    """
    total: int = sum(struct.unpack(f">{len(header) // 2}H", header))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def mac_to_bytes(mac: str) -> bytes:
    """Return the six bytes of a MAC address. Raises UsageError if it is malformed."""
    try:
        raw = bytes.fromhex(mac.replace(":", ""))
    except ValueError:
        raw = b""
    if len(raw) != 6:
        raise UsageError(f"{mac!r} is no MAC address: write it as 02:00:00:00:00:01")
    return raw


def ip_to_bytes(ip: str) -> bytes:
    """Return the four bytes of an IPv4 address. Raises UsageError if it is malformed."""
    try:
        return IPv4Address(ip).packed
    except AddressValueError as error:
        raise UsageError(f"{ip!r} is no IPv4 address: write it as 10.0.0.1") from error


def network_order_word(address: str | None) -> int:
    """Return an IPv4 address as the word that XDP loads from the packet; 0 for None.

    Raises UsageError if it is malformed.
    """
    return int.from_bytes(ip_to_bytes(address), "little") if address else 0


def mac_word(mac: str) -> int:
    """Return a MAC address as the word that XDP compares with the frame's; 0 for an empty one."""
    return int.from_bytes(mac_to_bytes(mac), "little") if mac else 0


def _check_network_header(eth_type: int, version_ihl: int, fragment: int, protocol: int) -> None:
    if eth_type != abi.KV_ETHERTYPE_IPV4:
        raise FrameError(f"EtherType {eth_type:#06x} is not IPv4")
    if version_ihl != abi.KV_IP_VERSION_IHL:
        raise FrameError(
            f"IP version and header length {version_ihl:#04x} mean options or not IPv4"
        )
    if fragment & abi.KV_IP_FRAGMENT_MASK:
        raise FrameError("the frame holds a fragment of a larger datagram")
    if protocol != abi.KV_IP_PROTOCOL_UDP:
        raise FrameError(f"IP protocol {protocol} is not UDP")


def _check_lengths(frame_bytes: int, ip_length: int, udp_length: int) -> None:
    if ip_length != frame_bytes - abi.KV_ETH_BYTES:
        raise FrameError(
            f"IP total length {ip_length} does not match a frame of {frame_bytes} bytes"
        )
    if udp_length != ip_length - abi.KV_IP_BYTES:
        raise FrameError(f"UDP length {udp_length} does not match IP total length {ip_length}")


# ---- Layouts from the ABI ------------------------------------------------------------------------


def _layout(struct_name: str, first: str, until: str | None, byte_order: str) -> struct.Struct:
    """Return a struct.Struct for the fields of an ABI structure from `first` up to, but without,
    `until` (None: to the end).
    """
    fields = abi.fields(struct_name)
    names = list(fields)
    chosen = names[names.index(first) : None if until is None else names.index(until)]
    codes = {1: "B", 2: "H", 4: "I", 8: "Q"}
    parts = (fields[name] for name in chosen)
    return struct.Struct(
        byte_order
        + "".join(f"{part.size}s" if part.is_array else codes[part.size] for part in parts)
    )


_ETHERNET = _layout("kv_packet_header", "eth_destination", "ip_version_ihl", ">")
_IP = _layout("kv_packet_header", "ip_version_ihl", "udp_source_port", ">")
_UDP = _layout("kv_packet_header", "udp_source_port", "magic", ">")
_BATCH = _layout("kv_packet_header", "magic", None, "<")
_ITEM = _layout("kv_item_header", "operation", None, "<")
