# SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
"""Unmodified MICA2 clients: their captured requests get the captured answers from every design."""

import struct
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from net.mica2 import Item, accepted, roundup8
from net.serving import PORT, Wire, answer_of, ends, serving, sharing_cores
from scapy.utils import rdpcap

from dpukv_xdp.lab import lab as labs
from dpukv_xdp.lab.lab import Lab
from dpukv_xdp.topology.designs import DESIGNS
from dpukv_xdp.wire import abi, codec
from dpukv_xdp.wire.codec import Endpoint, Request
from dpukv_xdp.wire.hashing import hash_key

GOLDEN = Path(__file__).parents[1] / "data"
OUTSIDE = ((24, 26), (44, 48))
"""Byte ranges of the headers that MICA2 does not define: the IP checksum, 0, and stale bytes."""
STALE_IN_ITEM = (20, 24)
CLIENT_MAC, SERVER_MAC = bytes.fromhex("020000000101"), bytes.fromhex("020000000001")
CLIENT_IP, SERVER_IP = bytes([10, 0, 1, 1]), bytes([10, 0, 0, 1])
PORTS = range(2)
"""Ports of the captured servers: MICA2 counts them from 0."""
FIRST_PORT = PORT
"""Port that ours have instead of 0, to which no client on a UDP socket can talk."""


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    labs.remove_stale()
    with Lab.up() as place:
        yield place


def frames(name: str) -> tuple[list[bytes], dict[tuple[int, ...], bytes]]:
    """Return a capture's requests in order, and its responses by their opaques."""
    packets = [bytes(packet) for packet in rdpcap(str(GOLDEN / f"mica2_{name}_per_packet.pcap"))]
    requests = [frame for frame in packets if frame[42] == abi.KV_MAGIC_REQUEST]
    responses = {opaques(frame): frame for frame in packets if frame[42] == abi.KV_MAGIC_RESPONSE}
    return requests, responses


def opaques(frame: bytes) -> tuple[int, ...]:
    return tuple(struct.unpack_from("<I", frame, at + 16)[0] for at in item_offsets(frame))


def item_offsets(frame: bytes) -> Iterator[int]:
    at = 48
    while at + 24 <= len(frame):
        yield at
        lengths = struct.unpack_from("<I", frame, at + 4)[0]
        at += 24 + roundup8(lengths >> 24) + roundup8(lengths & 0xFFFFFF)


def moved_to(lab: Lab, frame: bytes) -> bytes:
    """A captured frame with the lab's addresses and our ports in place of the captured ones."""
    ours = {
        CLIENT_MAC: codec.mac_to_bytes(lab.client.mac),
        SERVER_MAC: codec.mac_to_bytes(lab.server.mac),
        CLIENT_IP: codec.ip_to_bytes(lab.client.address),
        SERVER_IP: codec.ip_to_bytes(lab.server.address),
    }
    macs = ours[frame[0:6]] + ours[frame[6:12]]
    ips = ours[frame[26:30]] + ours[frame[30:34]]
    ports = [
        port + FIRST_PORT * (mac == SERVER_MAC)
        for port, mac in zip(
            struct.unpack_from("!HH", frame, 34), (frame[6:12], frame[0:6]), strict=True
        )
    ]
    return macs + frame[12:26] + ips + struct.pack("!HH", *ports) + frame[38:]


def defined(frame: bytes) -> bytes:
    """Return a response without the bytes that MICA2 does not define."""
    spans = [
        *OUTSIDE,
        *((at + STALE_IN_ITEM[0], at + STALE_IN_ITEM[1]) for at in item_offsets(frame)),
    ]
    wiped = bytearray(frame)
    for start, end in spans:
        wiped[start:end] = bytes(end - start)
    return bytes(wiped)


@pytest.mark.parametrize("design", DESIGNS)
def test_one_request_per_packet_on_two_lcores(lab: Lab, design: str) -> None:
    engines = len(PORTS) // len(DESIGNS[design].communication)
    settings = {"engines": engines, "partitions": 2, "access": "erew"}
    with sharing_cores(), serving(lab, design=design, port=FIRST_PORT, **settings) as server:
        assert server.owners == (0, 1)
        replay(lab, "one_request")


@pytest.mark.parametrize("design", DESIGNS)
def test_eight_requests_per_packet_on_one_lcore(lab: Lab, design: str) -> None:
    with sharing_cores(), serving(lab, design=design, port=FIRST_PORT) as server:
        server.give_all_to_door(DESIGNS[design].communication[0])
        replay(lab, "eight_requests")


def replay(lab: Lab, name: str) -> None:
    requests, responses = frames(name)
    assert requests
    assert set(map(opaques, requests)) == set(responses)
    with Wire(lab.client, range(FIRST_PORT, FIRST_PORT + len(PORTS))) as wire:
        for request in requests:
            wanted = moved_to(lab, responses[opaques(request)])
            answer = wire.exchange(moved_to(lab, request))
            assert defined(answer) == defined(wanted)
            assert len(accepted(answer, set(opaques(request)))) == len(opaques(request))


@pytest.mark.parametrize("design", DESIGNS)
def test_the_client_accepts_every_answer(lab: Lab, design: str) -> None:
    """Answers of all lengths and results, including a probe's, to the client's port 0."""
    key, missing = b"a key", b"another"
    probe = Request.probe(0xFFFF0003)
    requests = [
        Request.set(key, b"v" * 100, 1),
        Request.get(key, 2),
        Request.get(missing, 3),
        Request(int(abi.Operation.DELETE), key, b"", 4, hash_key(key)),
        Request(99, key, b"", 5, hash_key(key)),
    ]
    with sharing_cores(), serving(lab, design=design, access="auto") as server:
        server.give_all_to_door(DESIGNS[design].communication[0])
        with Wire(lab.client) as wire:
            for batch in ([probe], *([request] for request in requests), requests):
                answer = wire.exchange(request_frame(lab, batch))
                items = accepted(answer, {request.opaque for request in batch})
                assert [item.opaque for item in items] == [request.opaque for request in batch]
                assert [item.operation for item in items] == [r.operation for r in batch]
                assert [item.key_hash for item in items] == [r.key_hash for r in batch]


def request_frame(lab: Lab, batch: list[Request], source_port: int = 0) -> bytes:
    """Return a frame from UDP port 0, which MICA2's clients use, with a valid IP checksum."""
    client, server = ends(lab, PORT)
    client = Endpoint(client.mac, client.ip, source_port)
    frame = bytearray(codec.encode_frame(client, server, codec.encode_batch(batch, strict=False)))
    frame[24:26] = bytes(2)
    return bytes(frame)


@pytest.mark.parametrize("checksum", [b"\x00\x00", b"\xff\xff", b"\x12\x34"])
@pytest.mark.parametrize("source_port", [0, 1, 65535])
def test_ports_and_invalid_checksums_are_accepted(
    lab: Lab, checksum: bytes, source_port: int
) -> None:
    with serving(lab), Wire(lab.client) as wire:
        frame = bytearray(request_frame(lab, [Request.probe(7)], source_port))
        frame[24:26] = checksum
        answer = wire.exchange(bytes(frame))
        (reply,) = answer_of(answer)
        assert (reply.opaque, reply.result) == (7, abi.KV_SUCCESS)
        assert codec.decode_frame(answer).destination.port == source_port


# ---- The list of what the real client accepts and rejects, applied to an answer of ours

CHANGES: dict[str, tuple[Callable[[bytearray], None], bool]] = {
    "nothing": (lambda f: None, True),
    "IP checksum": (lambda f: f.__setitem__(slice(24, 26), b"\xab\xcd"), True),
    "UDP checksum": (lambda f: f.__setitem__(slice(40, 42), b"\xab\xcd"), True),
    "TOS": (lambda f: f.__setitem__(15, 0x10), True),
    "TTL": (lambda f: f.__setitem__(22, 1), True),
    "num_requests 0": (lambda f: f.__setitem__(43, 0), True),
    "num_requests 200": (lambda f: f.__setitem__(43, 200), True),
    "reserved all ones": (lambda f: f.__setitem__(slice(44, 48), b"\xff" * 4), True),
    "other source port": (lambda f: f.__setitem__(slice(34, 36), b"\x01\x02"), True),
    "other source address": (lambda f: f.__setitem__(slice(26, 30), b"\x01\x02\x03\x04"), True),
    "other source MAC": (lambda f: f.__setitem__(slice(6, 12), b"\x02" * 6), True),
    "key hash 0": (lambda f: f.__setitem__(slice(56, 64), bytes(8)), True),
    "operation 0": (lambda f: f.__setitem__(48, 0), True),
    "rejected": (lambda f: f.__setitem__(49, 9), True),
    "IP ID": (lambda f: f.__setitem__(slice(18, 20), b"\x00\x01"), False),
    "don't fragment": (lambda f: f.__setitem__(20, 0x40), False),
    "IHL 6": (lambda f: f.__setitem__(14, 0x46), False),
    "magic of a request": (lambda f: f.__setitem__(42, 0x78), False),
    "epoch": (lambda f: f.__setitem__(64, f[64] ^ 1), False),
    "value past the end": (lambda f: f.__setitem__(53, 1), False),
    "trailer": (lambda f: f.extend(bytes(2)), False),
}


@pytest.fixture(scope="module")
def answer(lab: Lab) -> tuple[bytes, Item]:
    """Yield a real server's answer to a GET that hits."""
    with serving(lab), Wire(lab.client) as wire:
        wire.exchange(request_frame(lab, [Request.set(b"12345678", b"abcdefgh", 1)]))
        frame = wire.exchange(request_frame(lab, [Request.get(b"12345678", 0x00050002)]))
    return frame, Item(5, 0, b"abcdefgh", hash_key(b"12345678"), 0x00050002)


@pytest.mark.parametrize("name", CHANGES)
def test_an_answer_as_it_is_and_changed(answer: tuple[bytes, Item], name: str) -> None:
    """The client accepts our answer, and each change as the list says."""
    frame, item = answer
    change, is_accepted = CHANGES[name]
    changed = bytearray(frame)
    change(changed)
    taken = accepted(bytes(changed), {item.opaque})
    assert bool(taken) == is_accepted
    if name == "nothing":
        assert taken == [item]
