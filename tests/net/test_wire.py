# SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
"""Frames made by hand, and malformed ones, against a server in the lab."""

import re
import secrets
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from net.serving import DROPS, Wire, answer_of, client_of, ends, gained, serving
from scapy.layers.inet import IP, UDP
from scapy.layers.l2 import Ether
from scapy.packet import Packet

from dpukv_xdp.base.patience import patient
from dpukv_xdp.kernel.namespaces import spawn
from dpukv_xdp.lab import lab as labs
from dpukv_xdp.lab.lab import Lab
from dpukv_xdp.server.server import Server
from dpukv_xdp.wire import abi
from dpukv_xdp.wire.layers import KVBatch, KVItem

DATA = Path(__file__).parent.parent / "data"
README = Path(__file__).parent.parent.parent / "README.md"
# ---- scapy

LONG_MTU = abi.KV_FRAME_MAX - abi.KV_ETH_BYTES
"""The driver's largest MTU with XDP: longer frames cannot arrive."""


@pytest.fixture(scope="module")
def served() -> Iterator[tuple[Lab, Server]]:
    """Yield one server for the tests that only send to it."""
    labs.remove_stale()
    with Lab.up(mtu=LONG_MTU) as lab, serving(lab) as server:
        yield lab, server


def test_the_readme_s_request_made_by_hand_and_its_answer(served: tuple[Lab, Server]) -> None:
    lab, _ = served
    with client_of(lab) as client:
        client.set(b"hello", b"world")
    child = spawn(
        lab.client.namespace,
        [sys.executable, "-c", readme_example(lab)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    shown, _ = child.communicate(timeout=patient(20))
    assert child.returncode == 0, shown
    fields = dict(re.findall(r"^ *\|? *(\w+) *= (.*?) *$", shown, re.MULTILINE))
    assert fields["magic"] == "response"
    assert fields["request_count"] == "1"
    assert fields["operation"] == "GET"
    assert fields["result"] == "SUCCESS"
    assert fields["value"] == "b'world'"


def readme_example(lab: Lab) -> str:
    """Return the README's lines after Python's prompts, with the lab's addresses filled in."""
    lines = re.findall(r"^ +(?:>>>|\.\.\.) (.*)$", README.read_text(), re.MULTILINE)
    assert len(lines) > 3
    script = "\n".join(lines)
    for name, value in (("SERVER MAC", lab.server.mac), ("SERVER ADDRESS", lab.server.address)):
        assert name in script
        script = script.replace(name, value)
    return script


def test_set_and_get_in_one_hand_made_packet(served: tuple[Lab, Server]) -> None:
    lab, _ = served
    items = [KVItem.set(b"by hand", b"a value", opaque=1), KVItem.get(b"by hand", opaque=2)]
    request = request_packet(lab, items)
    with Wire(lab.client) as wire:
        answer = Ether(wire.exchange(bytes(request)))
    assert answer.answers(request)
    stored, found = answer[KVBatch].items
    assert (stored.operation, stored.result, stored.value) == (abi.Operation.SET, 0, b"")
    assert (found.operation, found.result, found.value) == (abi.Operation.GET, 0, b"a value")
    assert (answer[IP].id, int(answer[IP].flags), answer[UDP].chksum) == (0, 0, 0)


def request_packet(lab: Lab, items: list[KVItem], **batch: object) -> Packet:
    """Return a request from the client's end to the server's."""
    client, server = ends(lab)
    return (
        Ether(src=client.mac, dst=server.mac)
        / IP(src=client.ip, dst=server.ip)
        / UDP(sport=client.port, dport=server.port)
        / KVBatch(items=items, **batch)
    )


def malformed_packets(lab: Lab) -> dict[str, tuple[Packet, str]]:
    """Return malformed packets by their fault, each with the counter that must move."""

    def one(**batch: object) -> Packet:
        return request_packet(lab, [KVItem.get(b"malformed", opaque=1)], **batch)

    def many(count: int) -> Packet:
        return request_packet(lab, [KVItem(operation="NOOP_READ") for _ in range(count)])

    options, ip_long, fragment, udp_short = one(), one(), one(), one()
    options[IP].options = [b"\x01\x01\x01\x00"]
    ip_long[IP].len = len(ip_long[IP]) + 1
    fragment[IP].flags = "MF"
    udp_short[UDP].len = len(udp_short[UDP]) - 1
    bare = request_packet(lab, [])
    past_end = request_packet(lab, [KVItem.get(b"malformed", value_length=9)])
    return {
        "IP options": (options, "drop_ip_header"),
        "IP length": (ip_long, "drop_ip_header"),
        "a first fragment": (fragment, "drop_fragment"),
        "UDP length": (udp_short, "drop_udp_length"),
        "no request": (bare, "drop_frame_length"),
        "magic of a response": (one(magic="response"), "drop_magic"),
        "a value past the end": (past_end, "drop_truncated"),
        "a request too many": (many(abi.KV_BATCH_MAX + 1), "drop_batch_length"),
    }


def test_malformed_packets_are_counted_by_cause_and_disturb_nobody(
    served: tuple[Lab, Server],
) -> None:
    lab, server = served
    good = request_packet(lab, [KVItem.set(b"well formed", b"value", opaque=7)])
    with Wire(lab.client) as wire:
        for what, (packet, counter) in malformed_packets(lab).items():
            before = server.counters()
            wire.send(bytes(packet))
            (reply,) = answer_of(wire.exchange(bytes(good)))
            assert (reply.opaque, reply.result) == (7, abi.Result.SUCCESS), what
            moved = gained(server, before)
            assert {name: moved[name] for name in DROPS & set(moved)} == {counter: 1}, what
            assert (moved["frames_received"], moved["frames_sent"]) == (1, 1), what


def test_a_request_that_breaks_a_limit_gets_its_own_error(served: tuple[Lab, Server]) -> None:
    lab, server = served
    before = server.counters()
    items = [
        KVItem.set(b"before", b"1", opaque=1),
        KVItem(operation="GET", opaque=2),
        KVItem(operation=99, key=b"unknown", opaque=3),
        KVItem.get(b"before", opaque=4),
    ]
    with Wire(lab.client) as wire:
        replies = answer_of(wire.exchange(bytes(request_packet(lab, items))))
    assert DROPS & set(gained(server, before)) == set()
    results = [(reply.opaque & 0xFF, reply.result) for reply in replies]
    assert results == [
        (1, abi.Result.SUCCESS),
        (2, abi.Result.ERROR),
        (3, abi.Result.NOT_SUPPORTED),
        (4, abi.Result.SUCCESS),
    ]
    assert replies[3].value == b"1"


def test_a_longer_mtu_carries_the_longest_key_beside_a_long_value(
    served: tuple[Lab, Server],
) -> None:
    lab, _ = served
    items = {b"k" * 255: secrets.token_bytes(1400), b"k": secrets.token_bytes(1900)}
    with client_of(lab, mtu=LONG_MTU) as client:
        assert client.set_many(items) == []
        assert client.get_many(items) == items
