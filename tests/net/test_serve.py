# SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
"""A server in the lab answers the Python client, scapy and the captures of the real MICA2, byte for
byte, and does not touch the rest of the interface's traffic.
"""

import hashlib
import itertools
import json
import os
import secrets
import socket
import statistics
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pytest
from net.commands import dpukv, wait_for
from net.serving import (
    DROPS,
    ENGINE_CPU,
    OTHER_CPU,
    PORT,
    TIMEOUT_SECONDS,
    Wire,
    client_of,
    ends,
    gained,
    pinned,
    serving,
    serving_child,
    set_link,
)

from dpukv_xdp.base.errors import KeyValueError
from dpukv_xdp.base.patience import patient
from dpukv_xdp.client.client import Client
from dpukv_xdp.discovery.directory import server_name
from dpukv_xdp.kernel.namespaces import in_namespace, spawn
from dpukv_xdp.lab import lab as labs
from dpukv_xdp.lab.lab import Lab
from dpukv_xdp.report.tables import stats_tables
from dpukv_xdp.server.server import Server
from dpukv_xdp.server.service import Service, call_service, services
from dpukv_xdp.topology.schema import RESPOND_WAYS
from dpukv_xdp.wire import codec
from dpukv_xdp.wire.codec import Endpoint, Request

DATA = Path(__file__).parent.parent / "data"

KEY_SIZES = (1, 5, 8, 12, 255)
VALUE_SIZES = (0, 1, 7, 8, 9, 100, 1400)
LONG_VALUE = 1400
"""Bytes of a value for which a GET's received frame cannot grow enough: the sender must send it."""

PAUSE_SECONDS = 0.005
ANSWER_SECONDS = patient(0.005)
"""Time-out of a parked response: the sender sends it after 30 us, later on a busy machine."""


@dataclass
class Served:
    """A lab with a server, and a client of it."""

    lab: Lab
    server: Server
    client: Client


@pytest.fixture(scope="module", params=RESPOND_WAYS)
def served(request: pytest.FixtureRequest) -> Iterator[Served]:
    """Yield one server per --respond for all tests that only send requests to it."""
    labs.remove_stale()
    with Lab.up() as lab, serving(lab, respond=request.param) as server, client_of(lab) as client:
        yield Served(lab, server, client)


def items_of_all_sizes() -> dict[bytes, bytes]:
    """Return distinct keys and values of each pair of sizes that fits into a packet of MTU 1500."""
    pairs = itertools.product(KEY_SIZES, VALUE_SIZES)
    return {
        bytes([number]) * key_bytes: secrets.token_bytes(value_bytes)
        for number, (key_bytes, value_bytes) in enumerate(pairs)
        if value_bytes <= codec.value_bytes_max(key_bytes)
    }


# ---- The Python client


def test_every_size_comes_back_exact_one_by_one(served: Served) -> None:
    with pinned(OTHER_CPU):
        items = items_of_all_sizes()
        for key, value in items.items():
            assert served.client.set(key, value)
        for key, value in items.items():
            assert served.client.get(key) == value


@pytest.mark.parametrize("cpu", [ENGINE_CPU, OTHER_CPU])
def test_every_size_comes_back_exact_together(served: Served, cpu: int) -> None:
    with pinned(cpu):
        items = items_of_all_sizes()
        assert served.client.set_many(items) == []
        assert served.client.get_many(items) == items


def test_a_value_that_no_packet_carries_is_refused_by_the_client(served: Served) -> None:
    with pytest.raises(KeyValueError, match="1400 bytes"):
        served.client.set(b"k" * 255, bytes(LONG_VALUE))


def test_a_long_value_leaves_by_the_sender(served: Served) -> None:
    value = secrets.token_bytes(LONG_VALUE)
    with pinned(OTHER_CPU):
        served.client.set(b"long", value)
        before = served.server.counters()
        for _ in range(20):
            assert served.client.get(b"long") == value
        moved = gained(served.server, before)
    assert moved["responses_flushed"] == moved["frames_sent"] == 20
    if served.server.config.respond == "wait":
        late = moved.get("wait_timeouts", 0)  # may be all on a busy or slow machine
        assert moved.get("tail_refused", 0) + late > 0
    if served.server.config.respond != "sender":  # that sender runs in the kernel's transmit path
        assert served.server.stats()["senders"]["send_failures"] == 0
    assert DROPS & set(moved) == set()


def test_values_too_many_for_one_response_packet_come_each_in_its_own(served: Served) -> None:
    items = {b"large %d" % number: secrets.token_bytes(700) for number in range(12)}
    assert served.client.set_many(items) == []
    assert served.client.get_many(items) == items


@pytest.mark.parametrize("key_bytes", [8, 12])
def test_overwriting_with_shorter_and_longer_values(served: Served, key_bytes: int) -> None:
    key = secrets.token_bytes(key_bytes)
    for value_bytes in (8, 3, 0, 9, 100, 8, 1400, 1, 700):
        value = secrets.token_bytes(value_bytes)
        assert served.client.set(key, value)
        assert served.client.get(key) == value


def test_a_miss_is_the_default(served: Served) -> None:
    assert served.client.get(secrets.token_bytes(9)) is None
    assert served.client.get(secrets.token_bytes(9), b"none") == b"none"
    hit = secrets.token_bytes(9)
    served.client.set(hit, b"value")
    assert served.client.get_many([hit, secrets.token_bytes(9)]) == {hit: b"value"}


def test_ping(served: Served) -> None:
    assert 0 < served.client.ping() < TIMEOUT_SECONDS


@pytest.mark.parametrize("cpu", [ENGINE_CPU, OTHER_CPU])
def test_an_answer_comes_soon_even_when_nothing_follows(served: Served, cpu: int) -> None:
    """The kernel takes the time: on the engine's core the client itself waits long for the core."""
    with in_namespace(served.lab.client.namespace):
        plain = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    batch = codec.encode_batch([Request.get(b"soon")])
    with plain, pinned(cpu):
        plain.connect((served.lab.server.address, PORT))
        plain.settimeout(TIMEOUT_SECONDS)
        plain.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMPNS, 1)
        seconds = [timed_exchange(plain, batch) for _ in range(15)]
    assert statistics.median(seconds) < ANSWER_SECONDS


SO_TIMESTAMPNS = 35  # not in the socket module


def timed_exchange(plain: socket.socket, batch: bytes) -> float:
    """Return the seconds until the answer was in the socket, by the kernel's time stamp.

    A thread that has just slept gets its core at once and keeps it until the request is sent. The
    client sleeps first, because it would never sleep if answers arrived before it waits for them.
    """
    time.sleep(PAUSE_SECONDS)
    start_ns = time.time_ns()
    plain.send(batch)
    _, ancillary, _, _ = plain.recvmsg(2048, 256)
    (stamp,) = (data for _, kind, data in ancillary if kind == SO_TIMESTAMPNS)
    seconds, nanoseconds = struct.unpack("qq", stamp)
    return (seconds * 10**9 + nanoseconds - start_ns) / 1e9


# ---- Everybody else's traffic


def test_a_tcp_connection_passes_while_requests_are_served(served: Served) -> None:
    sent = secrets.token_bytes(1 << 20)
    with in_namespace(served.lab.server.namespace):
        listener = socket.create_server((served.lab.server.address, 22))
    with in_namespace(served.lab.client.namespace):
        connection = socket.create_connection((served.lab.server.address, 22), TIMEOUT_SECONDS)
    before = served.server.counters()
    echo = threading.Thread(target=echo_once, args=(listener,))
    with listener, connection:
        connection.settimeout(TIMEOUT_SECONDS)
        echo.start()
        writer = threading.Thread(target=send_and_finish, args=(connection, sent))
        writer.start()
        digest, received = hashlib.sha256(), 0
        while chunk := connection.recv(1 << 16):
            digest.update(chunk)
            received += len(chunk)
            key = received.to_bytes(8, "little")
            assert served.client.set(key, key)
            assert served.client.get(key) == key
        writer.join(TIMEOUT_SECONDS)
        echo.join(TIMEOUT_SECONDS)
    assert received == len(sent)
    assert digest.digest() == hashlib.sha256(sent).digest()
    moved = gained(served.server, before)
    assert moved["passed"] > 10
    assert DROPS & set(moved) == set()


def echo_once(listener: socket.socket) -> None:
    """Accept one connection and echo its data."""
    with listener.accept()[0] as peer:
        peer.settimeout(TIMEOUT_SECONDS)
        while chunk := peer.recv(1 << 16):
            peer.sendall(chunk)


def send_and_finish(connection: socket.socket, content: bytes) -> None:
    """Send all data and shut the sending side down."""
    connection.sendall(content)
    connection.shutdown(socket.SHUT_WR)


def test_ping_passes(served: Served) -> None:
    before = served.server.counters()
    child = spawn(
        served.lab.client.namespace,
        [sys.executable, "-c", PING, served.lab.server.address],
        stdout=subprocess.PIPE,
    )
    answer, _ = child.communicate(timeout=TIMEOUT_SECONDS)
    assert answer == b"dpukv"
    moved = gained(served.server, before)
    assert moved == {"passed": 1}


PING = """
import socket, struct, sys
body = struct.pack("!HH", 1, 1) + b"dpukv\\0"
words = struct.unpack("!5H", body)
total = (8 << 8) + sum(words)
checksum = ~((total & 0xFFFF) + (total >> 16)) & 0xFFFF
ping = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP)
ping.settimeout(4)
ping.sendto(struct.pack("!BBH", 8, 0, checksum) + body, (sys.argv[1], 0))
answer = ping.recv(1500)
assert answer[20] == 0, "an echo reply"
print(answer[28:33].decode(), end="")
"""


def test_a_datagram_to_another_port_passes(served: Served) -> None:
    before = served.server.counters()
    with in_namespace(served.lab.server.namespace):
        other = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        other.bind((served.lab.server.address, PORT + 1))
    with in_namespace(served.lab.client.namespace):
        plain = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    batch = codec.encode_batch([Request.get(b"not for us")])
    with other, plain:
        other.settimeout(TIMEOUT_SECONDS)
        plain.sendto(batch, (served.lab.server.address, PORT + 1))
        assert other.recv(2048) == batch
    assert gained(served.server, before) == {"passed": 1}


def test_a_datagram_to_another_address_passes(served: Served) -> None:
    """The interface may have addresses other than the one that is served."""
    with in_namespace(served.lab.client.namespace):
        plain = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    before = served.server.counters()
    client, server = ends(served.lab)
    elsewhere = Endpoint(server.mac, "10.77.0.99", server.port)
    with plain, Wire(served.lab.client) as wire:
        wire.send(codec.encode_frame(client, elsewhere, codec.encode_batch([Request.probe()])))
        assert served.client.ping() > 0
    moved = gained(served.server, before)
    assert (moved["passed"], moved["frames_received"]) == (1, 1)


def test_a_vlan_tag_comes_back(served: Served) -> None:
    """The test uses a packet socket, which sees tags: the kernel's stack has no VLAN interface."""
    client, server = ends(served.lab)
    frame = codec.encode_frame(client, server, codec.encode_batch([Request.probe(9)]), vlan_tag=5)
    before = served.server.counters()
    with Wire(served.lab.client) as wire:
        wire.send(frame)
        deadline = time.monotonic() + TIMEOUT_SECONDS
        while time.monotonic() < deadline and not gained(served.server, before).get("frames_sent"):
            time.sleep(0.001)
    moved = gained(served.server, before)
    assert (moved["frames_received"], moved["frames_sent"]) == (1, 1)
    assert moved["bytes_sent"] == len(frame)


def test_counters_can_be_read_while_it_serves(lab: Lab) -> None:
    with serving_child(lab, "--directory", "") as child:
        name = server_name(child.pid)
        wait_for(lambda: name in services())
        with client_of(lab) as client:
            assert client.set("key", "value")
            assert [client.get("key"), client.get("nobody")] == [b"value", None]
        with in_namespace(lab.client.namespace), socket.socket(type=socket.SOCK_DGRAM) as sender:
            sender.sendto(b"not a batch" * 8, (lab.server.address, PORT))
        wait_for(lambda: call_service(name, "stats")["counters"]["drop_magic"] == 1)
        found = json.loads(dpukv("stats", "--server", name, "--json", "-").stdout)
        assert found["server"] == name
        assert found["counters"]["responses_sent"] >= 3
        said = dpukv("stats", "--server", name).stdout
        for text in (f"server {name}", "drop_magic", "communication engine", "get_found"):
            assert text in said
        assert "drop_truncated" not in said, "what is 0 is left out"


def test_what_the_link_loses_is_counted(lab: Lab) -> None:
    """A veth end that is down takes nothing of what the server's end sends."""
    frames = 3
    with serving(lab) as server:
        before = server.stats()["link"]
        set_link(lab.client, state="down")
        for _ in range(frames):
            with (
                in_namespace(lab.server.namespace),
                raw_socket(lab.server.interface) as sender,
                suppress(OSError),  # newer kernels tell the sender
            ):
                sender.send(bytes(60))
        lost = server.stats()["link"]
        assert lost["tx_dropped"] - before["tx_dropped"] == frames
        assert "link" in {str(table.title) for table in stats_tables(server.stats())}


def raw_socket(interface: str) -> socket.socket:
    """Return a socket that sends whole frames through an interface."""
    found = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
    found.bind((interface, 0))
    return found


@pytest.mark.parametrize("design", ["dpu-only", "cpu-only", "dual", "shrd"])
def test_every_design_has_tables_of_counters(lab: Lab, design: str) -> None:
    with serving(lab, design=design) as server, Service(server, str):
        with client_of(lab) as client:
            assert client.ping() > 0
        stats = call_service(server_name(os.getpid()), "stats")
    titles = {str(table.title) for table in stats_tables(stats)}
    assert "communication engine" in titles
    has_native = design != "dpu-only"
    assert has_native == any(title.startswith("processing engine") for title in titles)
    assert ("store in XDP 0" in titles) == (design in ("dpu-only", "shrd"))
