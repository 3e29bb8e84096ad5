# SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
"""Every transport, --respond and switch gives the same answers, drops malformed frames for the same
reasons, and passes frames that are not ours.
"""

import itertools
import random
import socket
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from typing import Any, get_args
from unittest import mock

import pytest
from bpf.harness import SERVER, Case, Verdict, expected_replies, reply_frame, request_frame
from bpf.test_malformed import FIELD_CASES, GOOD, ITEM_CASES, TRUNCATED_CASES
from net.conversation import conversation, converse
from net.serving import (
    DROPS,
    PORT,
    TIMEOUT_SECONDS,
    Wire,
    bpf_descriptors,
    client_of,
    gained,
    let_probe_pass,
    native_threads,
    programs_on,
    serving,
)
from pyroute2 import IPRoute

from dpukv_xdp.base.errors import SocketError, UsageError
from dpukv_xdp.base.patience import patient
from dpukv_xdp.kernel import nic
from dpukv_xdp.kernel.loader import LoadedObject
from dpukv_xdp.kernel.namespaces import in_namespace
from dpukv_xdp.lab import lab as labs
from dpukv_xdp.lab.lab import Lab
from dpukv_xdp.topology import validation
from dpukv_xdp.topology.designs import DESIGNS
from dpukv_xdp.topology.profiles import PROFILES
from dpukv_xdp.topology.schema import (
    FRAMES,
    FRAMES_PAST_XDP,
    RESPOND_WAYS,
    TRANSPORTS,
    Prepare,
    Send,
    ServerConfig,
    Transfer,
)
from dpukv_xdp.wire import abi
from dpukv_xdp.wire.codec import Endpoint

PACKETS = 120
STACK_PORT = PORT - 1
"""A UDP port of the server's address that the server does not serve."""
SENT_TOGETHER = 16
"""Malformed frames between two readings of the counters: fewer than any queue holds."""
Settings = dict[str, Any]

SETTINGS: dict[str, tuple[Any, ...]] = {
    "design": tuple(DESIGNS),
    "transport": TRANSPORTS,
    "frames": tuple(
        way for way in FRAMES if way not in FRAMES_PAST_XDP
    ),  # test_frames.py has those
    "respond": RESPOND_WAYS,
    "transfer": get_args(Transfer),
    "prepare": get_args(Prepare),
    "send": get_args(Send),
    "profile": tuple(PROFILES),
}


def every_pair() -> Iterator[Settings]:
    """Yield settings that combine each value of one with each value of any other, where valid."""
    rows = [
        settings
        for values in itertools.product(*SETTINGS.values())
        if can_start(settings := dict(zip(SETTINGS, values, strict=True)))
    ]
    random.Random(0).shuffle(rows)
    pairs = [set(itertools.combinations(settings.items(), 2)) for settings in rows]
    left = set().union(*pairs)
    while left:
        best = max(range(len(rows)), key=lambda index: len(pairs[index] & left))
        left -= pairs[best]
        yield rows[best]


def can_start(settings: Settings) -> bool:
    """Return whether a server accepts the settings, even those that its design does not use."""
    try:
        validation.check(ServerConfig(**settings))
    except UsageError:
        return False
    return True


@pytest.fixture(scope="module")
def shared() -> Iterator[Lab]:
    """Yield one lab for all tests that do not change it."""
    labs.remove_stale()
    with Lab.up() as lab:
        yield lab


@pytest.mark.parametrize(
    "settings", list(every_pair()), ids=lambda settings: "-".join(settings.values())
)
def test_every_way_gives_the_same_answers(shared: Lab, settings: Settings) -> None:
    packets = conversation(PACKETS, shared.record.mtu)
    with serving(shared, **settings) as server:
        assert server.config.frames == settings["frames"], server.notes
        let_probe_pass(server)
        before = server.counters()
        converse(shared, server, packets)
        moved = gained(server, before)
        assert DROPS & set(moved) == set()
        assert moved["frames_received"] == moved["frames_sent"] == len(packets)
        requests = sum(len(packet.requests) for packet in packets)
        assert moved["requests_received"] == moved["responses_sent"] == requests
        check_stack(shared)


def check_stack(lab: Lab) -> None:
    """Check that a datagram for another port reaches a socket of the server's host, and its answer
    the client.
    """
    with (
        in_namespace(lab.server.namespace),
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as listener,
    ):
        listener.bind((lab.server.address, STACK_PORT))
        listener.settimeout(TIMEOUT_SECONDS)
        with (
            in_namespace(lab.client.namespace),
            socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking,
        ):
            asking.settimeout(TIMEOUT_SECONDS)
            asking.sendto(b"not ours" * 10, (lab.server.address, STACK_PORT))
            question, sender = listener.recvfrom(1000)
            listener.sendto(question, sender)
            assert asking.recv(1000) == b"not ours" * 10


# ---- Malformed frames

DOORS = (
    {"design": "lat"},
    {"design": "lat", "transport": "ringbuf"},
    {"design": "lat", "transport": "af_xdp"},
    {"design": "dpu-only"},
    {"design": "cpu-only", "frames": "af_xdp"},
    {"design": "cpu-only", "frames": "ring"},
)
CASES = [
    case
    for case in (*FIELD_CASES, *ITEM_CASES, *TRUNCATED_CASES)
    if len(case.packet) > abi.KV_ETH_BYTES
]


@pytest.mark.parametrize("settings", DOORS, ids=lambda settings: "-".join(settings.values()))
def test_malformed_frames_are_dropped_for_the_same_reasons(lab: Lab, settings: Settings) -> None:
    readdress(lab, SERVER)
    with serving(lab, **settings) as server, Wire(lab.client) as wire:
        let_probe_pass(server)
        for first in range(0, len(CASES), SENT_TOGETHER):
            cases = CASES[first : first + SENT_TOGETHER]
            before = server.counters()
            for case in cases:
                wire.send(case.packet)
            assert wire.exchange(request_frame(GOOD)) == reply_frame(expected_replies({}, GOOD))
            moved = gained(server, before)
            dropped = Counter({name: moved[name] for name in DROPS & set(moved)})
            names = ", ".join(case.id for case in cases)
            assert dropped == expected_drops(cases), names
            assert moved.get("passed", 0) >= sum(case.verdict == Verdict.PASS for case in cases)
            assert (moved["frames_received"], moved["frames_sent"]) == (1, 1), names


def expected_drops(cases: list[Case]) -> Counter[str]:
    """Return how often each counter must move."""
    drops = (case for case in cases if case.verdict == Verdict.DROP)
    return Counter(name.lower() for case in drops for name in case.counters or {})


def readdress(lab: Lab, server: Endpoint) -> None:
    """Give the lab's server end the addresses of the captured requests."""
    with in_namespace(lab.server.namespace), IPRoute() as netlink:
        index = nic.find(lab.server.interface).index
        netlink.flush_addr(index=index)
        netlink.addr("add", index=index, address=server.ip, prefixlen=8)
        netlink.link("set", index=index, address=server.mac)


# ---- Where AF_XDP does not work

SOCKET_USERS = (
    {"design": "cpu-only"},
    {"design": "lat", "transport": "af_xdp"},
    {"design": "dual", "transport": "af_xdp"},
)


def deaf_sockets() -> Any:
    """Make sockets bind but never receive a frame."""
    set_fd = LoadedObject.set_fd

    def set_but_sockets(self: LoadedObject, name: str, index: int, fd: int) -> None:
        if name != "kv_sockets":
            set_fd(self, name, index, fd)

    return mock.patch.object(LoadedObject, "set_fd", set_but_sockets)


@pytest.mark.usefixtures("fresh_programs")
@pytest.mark.parametrize("settings", SOCKET_USERS, ids=lambda settings: "-".join(settings.values()))
def test_rings_take_over_from_sockets_that_receive_nothing(shared: Lab, settings: Settings) -> None:
    threads, descriptors = native_threads(), bpf_descriptors()
    packets = conversation(PACKETS, shared.record.mtu)
    with deaf_sockets(), serving(shared, **settings) as server:
        assert any("mapped rings" in note and "receives nothing" in note for note in server.notes)
        assert (server.config.transport, server.config.frames) == ("ring", "ring")
        assert server.stats()["sockets"] == []
        let_probe_pass(server)
        before = server.counters()
        converse(shared, server, packets)
        moved = gained(server, before)
        assert moved["frames_received"] == moved["frames_sent"] == len(packets)
    assert (native_threads(), bpf_descriptors()) == (threads, descriptors)


@pytest.mark.usefixtures("fresh_programs")
@pytest.mark.parametrize("mode", ["copy", "zero-copy"])
def test_a_mode_that_was_asked_for_and_cannot_be_had_is_refused(shared: Lab, mode: str) -> None:
    """A veth pair has no zero-copy mode, and the fixture disables copy mode."""
    threads, descriptors = native_threads(), bpf_descriptors()
    with (
        deaf_sockets(),
        pytest.raises(SocketError, match=r"^AF_XDP on queue 0 of .*--frames ring"),
        serving(shared, design="cpu-only", socket_mode=mode),
    ):
        pass
    assert (native_threads(), bpf_descriptors()) == (threads, descriptors)
    assert programs_on(shared.server) == []


def test_without_locked_memory_rings_take_over_and_the_note_says_why(shared: Lab) -> None:
    """The process has a container's default capabilities and limits."""
    limited = ["setpriv", "--bounding-set=-ipc_lock", "prlimit", "--memlock=65536", "--"]
    argv = [sys.executable, "-m", "dpukv_xdp", "serve", "--iface", shared.server.interface]
    argv += ["--design", "cpu-only", "--items", "65536", "--directory", ""]
    with shared.spawn(shared.server, [*limited, *argv], stderr=subprocess.PIPE, text=True) as child:
        assert child.stderr is not None
        said = ""
        while "serving" not in said:
            line = child.stderr.readline()
            assert line, said
            said += line
        with client_of(shared) as client:
            assert client.set(b"key", b"value")
        child.terminate()
        child.communicate(timeout=patient(60))
    (note,) = (line for line in said.splitlines() if "mapped rings" in line)
    assert "needs more locked memory" in note
    assert "ulimit -l" in note
    assert "driver" not in note


def test_the_command_refuses_it_in_one_sentence(shared: Lab) -> None:
    argv = [sys.executable, "-m", "dpukv_xdp", "serve", "--iface", shared.server.interface]
    argv += ["--design", "cpu-only", "--items", "65536", "--socket-mode", "zero-copy"]
    with shared.spawn(shared.server, argv, stderr=subprocess.PIPE, text=True) as child:
        _, said = child.communicate(timeout=patient(60))
    assert child.returncode != 0
    lines = said.strip().splitlines()
    assert "needs a driver with zero-copy" in lines[-1]
    assert [line for line in lines if "rror" in line or "Traceback" in line] == []
