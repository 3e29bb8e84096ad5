# SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
"""A random conversation, the same for every server: packets of requests, and the exact frames that
must come back, according to a dict.
"""

import random
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache

from net.serving import CLIENT_PORT, PORT, Wire, ends
from reference import COUNTER_BYTES, NOOPS, execute

from dpukv_xdp.lab.lab import Lab
from dpukv_xdp.server.server import Server
from dpukv_xdp.wire import abi, codec
from dpukv_xdp.wire.codec import Reply, Request, item_bytes
from dpukv_xdp.wire.hashing import hash_key

SEED = 20250720
GROUPS = 16
"""Groups of keys: a packet's keys are of one group, and so of one partition in every design."""
KEY_LENGTHS = (1, 2, 7, 8, 8, 8, 9, 16, 17, 100, 254, 255)
"""Lengths of a group's first keys."""
ANY_LENGTH = (12, 400)
"""Packets per further key of a group: least and most."""
PACKETS_PER_KEY = 500
VALUE_BYTES_MAX = 1400
REQUESTS_MAX = 40
"""Most requests in a packet: as many responses of the shortest items fit into one frame."""
WINDOW = 8
"""Packets in flight."""
GROUP_SHIFT = 48
"""First bit of the key hash that chooses the partition: KV_PARTITION of bpf/abi/partitions.h."""
HEADERS_BYTES = abi.SIZE("kv_packet_header")

WRITES = (abi.Operation.SET, abi.Operation.ADD, abi.Operation.INCREMENT)
KNOWN = (*WRITES, abi.Operation.GET, abi.Operation.TEST, abi.Operation.DELETE)
KNOWN_WEIGHTS = (10, 3, 3, 12, 2, 2)
UNKNOWN = (*(code for code in abi.Operation if code not in KNOWN + NOOPS), 9, 99, 255)


@dataclass(frozen=True)
class Packet:
    """Requests of one group, and the replies that the server must give."""

    group: int
    requests: tuple[Request, ...]
    replies: tuple[Reply, ...]


@cache
def conversation(packets: int, mtu: int) -> tuple[Packet, ...]:
    """Return the packets, which are always the same: some hundred keys of all lengths, thousands in
    a long conversation, are written and read repeatedly.
    """
    fewest, most = ANY_LENGTH
    more_keys = min(max(packets // PACKETS_PER_KEY, fewest), most)
    speaker = Speaker(random.Random(SEED), mtu, more_keys)
    return tuple(speaker.packet() for _ in range(packets))


def converse(lab: Lab, server: Server, packets: tuple[Packet, ...]) -> None:
    """Send all packets to the server. Each answer must be the expected frame, byte for byte; from
    the kernel's sockets it must be the datagram in that frame.

    If several doors lead to one store, packets alternate between them; otherwise each goes to its
    owner's door.
    """
    from_kernel = server.config.frames == "udp" and "host" in server.config.row().communication
    one_store = server.config.access_mode() == "crcw"
    engines = len(server.placement.engines)
    routes = random.Random(SEED)
    with Wire(lab.client, range(PORT, PORT + engines)) as wire:
        expected: dict[int, tuple[int, bytes]] = {}
        for packet in packets:
            # The order of answers from two doors is not defined.
            while len(expected) >= WINDOW or (
                one_store and packet.group in {group for group, _ in expected.values()}
            ):
                take_answer(wire, expected, from_kernel)
            owner = server.owners[packet.group % len(server.owners)]
            engine = routes.randrange(engines) if one_store else owner
            request, reply = frames_of(lab, packet, engine)
            expected[packet.requests[0].opaque] = packet.group, reply
            wire.send(request)
        while expected:
            take_answer(wire, expected, from_kernel)


def take_answer(
    wire: Wire, expected: dict[int, tuple[int, bytes]], from_kernel: bool = False
) -> None:
    """Receive an answer and compare it with the expected one, found by its first opaque."""
    frame = wire.receive()
    decoded = codec.decode_frame(frame)
    first = codec.decode_replies(decoded.payload)[0]
    _, wanted = expected.pop(first.opaque)
    if from_kernel:  # the kernel sets its own packet ids and forbids fragmentation
        assert decoded.ip_checksum_valid
        numbers = {"ip_id": 0, "ip_fragment": 0}
        assert replace(decoded, **numbers) == codec.decode_frame(wanted)
        return
    if frame != wanted:
        assert codec.decode_replies(wanted[codec.NETWORK_HEADER_BYTES :]) == codec.decode_replies(
            frame[codec.NETWORK_HEADER_BYTES :]
        )
    assert frame == wanted


def frames_of(lab: Lab, packet: Packet, engine: int) -> tuple[bytes, bytes]:
    """Return the frames of the request to an engine and of its answer."""
    client, server = ends(lab, PORT + engine)
    client = replace(client, port=CLIENT_PORT + packet.group)
    request = codec.encode_batch(packet.requests, lab.record.mtu, strict=False)
    reply = codec.encode_batch(packet.replies, lab.record.mtu)
    return codec.encode_frame(client, server, request), codec.encode_frame(server, client, reply)


class Speaker:
    """Makes requests, and answers them from a dict."""

    def __init__(self, choices: random.Random, mtu: int, more_keys: int) -> None:
        self._choices = choices
        self._mtu = mtu
        self._opaque = choices.getrandbits(31)
        self._values: dict[bytes, bytes] = {}
        self._keys = {group: list(self._keys_of(group, more_keys)) for group in range(GROUPS)}
        self._counters = {keys[number] for keys in self._keys.values() for number in (3, -1)}

    def packet(self) -> Packet:
        """Return a packet of up to REQUESTS_MAX requests, as many as one datagram carries."""
        group = self._choices.randrange(GROUPS)
        count = self._choices.choice((1, 1, 1, 2, 3, 5, 8, REQUESTS_MAX))
        room = codec.payload_max(self._mtu) - codec.BATCH_HEADER_BYTES
        requests: list[Request] = []
        while len(requests) < count:
            request = self._request(group, room)
            room -= item_bytes(len(request.key), len(request.value))
            if room < 0:
                break
            requests.append(request)
        if not requests:
            return self.packet()
        return Packet(group, tuple(requests), tuple(self._answers(requests)))

    def _keys_of(self, group: int, more_keys: int) -> Iterator[bytes]:
        """Yield keys that no other group has."""
        lengths = (*KEY_LENGTHS, *(self._choices.randrange(3, 256) for _ in range(more_keys)))
        for number, length in enumerate(lengths):
            start = bytes([group]) + number.to_bytes(2, "little")
            yield (start + self._choices.randbytes(length))[:length]

    def _request(self, group: int, room: int) -> Request:
        choices = self._choices
        kind = choices.choices(("known", "noop", "empty", "unknown"), (30, 1, 1, 1))[0]
        operation = {
            "known": int(choices.choices(KNOWN, KNOWN_WEIGHTS)[0]),
            "noop": choices.choice(NOOPS),
            "empty": choices.choice(KNOWN),
            "unknown": choices.choice(UNKNOWN),
        }[kind]
        key, value = choices.choice(self._keys[group]), b""
        if kind == "empty" or (kind == "noop" and choices.random() < 0.5):
            key = b""
        counts = operation == abi.Operation.INCREMENT and choices.random() < 0.9
        if counts or (key in self._counters and operation in WRITES):
            value = choices.randbytes(COUNTER_BYTES)
        elif operation in WRITES or choices.random() < 0.05:
            most = max(min(room - item_bytes(len(key), 0), abi.KV_VALUE_MAX), 0)
            length = choices.choice(
                (
                    0,
                    1,
                    7,
                    8,
                    8,
                    8,
                    9,
                    choices.randrange(300),
                    choices.randrange(VALUE_BYTES_MAX),
                    most,
                )
            )
            value = choices.randbytes(min(length, most & ~7))
        self._opaque += 1
        hashed = hash_key(key) if key else 0
        key_hash = hashed & ((1 << GROUP_SHIFT) - 1) | group << GROUP_SHIFT
        return Request(operation, key, value, self._opaque, key_hash)

    def _answers(self, requests: list[Request]) -> Iterator[Reply]:
        """Yield the replies. A value is left out if it does not leave room for a header and a short
        value of each later response: docs/PROTOCOL.md.
        """
        reserved = item_bytes(0, abi.KV_INLINE_MAX)
        room = min(self._mtu + abi.KV_ETH_BYTES, abi.KV_FRAME_MAX - abi.KV_VLAN_BYTES)
        room -= HEADERS_BYTES + reserved * (len(requests) - 1)
        for request in requests:
            result, value = execute(self._values, request, room)
            yield Reply(request.operation, result, value, request.opaque, request.key_hash)
            room -= item_bytes(0, len(value)) - reserved
