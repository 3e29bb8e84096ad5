# SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
"""Whole frames past XDP, through the kernel's UDP sockets and through DPDK: the answers are those
of XDP, and every frame that is not served is counted.
"""

import os
import signal
import socket
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from bpf.harness import (
    SERVER,
    expected_replies,
    patched,
    reply_frame,
    request_frame,
)
from bpf.test_malformed import FIELD_CASES, GOOD, ITEM_CASES, TRUNCATED_CASES
from net.conversation import conversation, converse
from net.serving import (
    CPUS,
    DROPS,
    PORT,
    TIMEOUT_SECONDS,
    Wire,
    client_of,
    ends,
    gained,
    generating,
    native_threads,
    pinned,
    plan_for,
    programs_on,
    run_load,
    serving,
    serving_child,
    sharing_cores,
)
from net.test_transports import expected_drops, readdress
from net.test_wire import LONG_MTU
from scapy.layers.inet import IP, fragment

from dpukv_xdp.base.errors import MissingError, UsageError
from dpukv_xdp.kernel.attachments import NAPI_PROGRAM
from dpukv_xdp.kernel.namespaces import in_namespace
from dpukv_xdp.lab import lab as labs
from dpukv_xdp.lab.lab import Lab
from dpukv_xdp.load.loadgen import Loop
from dpukv_xdp.native import dpdk
from dpukv_xdp.server.server import Server
from dpukv_xdp.topology import validation
from dpukv_xdp.topology.schema import FRAMES_PAST_XDP, ServerConfig
from dpukv_xdp.wire import abi, codec
from dpukv_xdp.wire.codec import Request

PACKETS = 120
RUN_SECONDS = 0.2
SENT_TOGETHER = 16
"""Malformed frames between two readings of the counters."""
PAYLOAD_MAX = LONG_MTU - abi.KV_IP_BYTES - abi.KV_UDP_BYTES
FRAGMENT_BYTES = 2000
LOSSES = ("rx_dropped", "rx_errors", "rx_missed", "rx_no_room", "rx_ring_full", "tx_invalid")
LOSSES += ("tx_full", "tx_refused", "tx_errors", "tx_dropped")


def require(frames: str) -> None:
    """Skip a test that needs DPDK if it is not installed, or fail it if the environment has
    DPUKV_NEEDS_DPDK=1.
    """
    if frames != "dpdk" or dpdk.is_installed():
        return
    lack = "needs DPDK, which this machine lacks: run sudo tools/setup --with-dpdk"
    if os.environ.get("DPUKV_NEEDS_DPDK"):
        pytest.fail(lack)
    pytest.skip(lack)


@pytest.fixture(params=FRAMES_PAST_XDP)
def frames(request: pytest.FixtureRequest) -> str:
    """Return each of the two values of --frames."""
    require(request.param)
    return str(request.param)


@pytest.fixture(scope="module", params=[1500, LONG_MTU])
def shared(request: pytest.FixtureRequest) -> Iterator[Lab]:
    """Yield one lab for all tests that do not change it."""
    labs.remove_stale()
    with Lab.up(mtu=request.param) as lab:
        yield lab


def counted(server: Server) -> dict[str, int]:
    """Return the counters of all sources and of the communication engine."""
    return {**sources(server), **server.counters()}


def sources(server: Server) -> dict[str, int]:
    """Return the counters summed over all sources of frames."""
    totals: Counter[str] = Counter()
    for source in server.stats()["past_xdp"]:
        totals.update({name: n for name, n in source.items() if isinstance(n, int)})
    return totals


def wait_for(server: Server, before: dict[str, int], **wanted: int) -> dict[str, int]:
    """Wait until the sources' counters have gained `wanted`; return everything that they gained."""
    deadline = time.monotonic() + TIMEOUT_SECONDS
    while True:
        moved = {name: n - before.get(name, 0) for name, n in counted(server).items()}
        if all(moved[name] >= count for name, count in wanted.items()):
            return {name: count for name, count in moved.items() if count}
        assert time.monotonic() < deadline, moved
        time.sleep(0.001)


# ---- Answers


@pytest.mark.parametrize("engines", [1, 2])
def test_the_same_answers(shared: Lab, frames: str, engines: int) -> None:
    packets = conversation(PACKETS, shared.record.mtu)
    said_before = icmp_sent(shared)
    with sharing_cores(), serving(shared, design="cpu-only", frames=frames, engines=engines) as it:
        before = it.counters()
        converse(shared, it, packets)
        moved = gained(it, before)
        assert DROPS & set(moved) == set()
        assert moved["frames_received"] == moved["frames_sent"] == len(packets)
        requests = sum(len(packet.requests) for packet in packets)
        assert moved["requests_received"] == moved["responses_sent"] == requests
        after = sources(it)
        assert after["sent"] == len(packets)
        assert after["received"] - moved.get("passed", 0) == len(packets)
        assert {name: after[name] for name in LOSSES if after[name]} == {}
    assert icmp_sent(shared) == said_before, "the kernel said that nobody listens"


def icmp_sent(lab: Lab) -> int:
    """Return the number of ICMP messages that the server's kernel has sent."""
    with in_namespace(lab.server.namespace):
        lines = Path("/proc/thread-self/net/snmp").read_text().splitlines()
    names, numbers = (line.split() for line in lines if line.startswith("Icmp:"))
    return int(numbers[names.index("OutMsgs")])


@pytest.mark.needs("live frames")
def test_load_comes_back_right(lab: Lab, frames: str) -> None:
    with serving(lab, design="cpu-only", frames=frames) as server, generating(lab) as generator:
        plan = plan_for(lab, keys=1 << 14)
        stored = generator.load(plan, window=16)
        assert (stored["stored"], stored["lost"], stored["corrupt"]) == (1 << 14, 0, 0)
        measured = run_load(generator, plan, Loop(32), RUN_SECONDS)
        assert measured.received["hits"] == measured.received["responses"] > 0
        assert (measured.received["corrupt"], measured.received["misses"]) == (0, 0)
        assert measured.sent["lost_requests"] == 0
        after = sources(server)
        assert {name: after[name] for name in LOSSES if after[name]} == {}


def test_a_vlan_tag_comes_back_through_dpdk(lab: Lab) -> None:
    """The kernel's packet socket removes the tag from the frame."""
    require("dpdk")
    client, here = ends(lab)
    frame = codec.encode_frame(client, here, codec.encode_batch([Request.probe(9)]), vlan_tag=5)
    with serving(lab, design="cpu-only", frames="dpdk") as server, Wire(lab.client) as wire:
        before, counters = sources(server), server.counters()
        wire.send(frame)
        wait_for(server, before, sent=1)
        assert gained(server, counters)["bytes_sent"] == len(frame)


# ---- What is not served


def test_dpdk_drops_malformed_frames_for_the_same_reasons(lab: Lab) -> None:
    require("dpdk")
    readdress(lab, SERVER)
    cases = [
        case
        for case in (*FIELD_CASES, *ITEM_CASES, *TRUNCATED_CASES)
        if len(case.packet) > abi.KV_ETH_BYTES
    ]
    with serving(lab, design="cpu-only", frames="dpdk") as server, Wire(lab.client) as wire:
        for first in range(0, len(cases), SENT_TOGETHER):
            some = cases[first : first + SENT_TOGETHER]
            before = server.counters()
            for case in some:
                wire.send(case.packet)
            assert wire.exchange(request_frame(GOOD)) == reply_frame(expected_replies({}, GOOD))
            moved = gained(server, before)
            dropped = Counter({name: moved[name] for name in DROPS & set(moved)})
            wanted = expected_drops(some)
            del wanted["drop_fragment"]  # the kernel reassembles fragments before they get here
            names = ", ".join(case.id for case in some)
            assert dropped == wanted, names
            assert (moved["frames_received"], moved["frames_sent"]) == (1, 1), names


ONE = codec.encode_batch(GOOD)
KERNEL_CASES = {
    "no_magic": (b"\0" + ONE[1:], {}, "drop_magic"),
    "empty": (b"", {}, "drop_frame_length"),
    "header_alone": (ONE[: codec.BATCH_HEADER_BYTES], {}, "drop_frame_length"),
    "cut": (ONE[:-1], {}, "drop_truncated"),
    "key_past_the_end": (codec.decode_frame(ITEM_CASES[0].packet).payload, {}, "drop_truncated"),
    "too_many": (ONE + ONE[codec.BATCH_HEADER_BYTES :] * abi.KV_BATCH_MAX, {}, "drop_batch_length"),
    "too_long": (ONE.ljust(PAYLOAD_MAX + 1, b"\0"), {}, "drop_frame_length"),
    "ip_checksum": (ONE, {"ip_checksum": 1}, "IpInHdrErrors"),
    "udp_checksum": (ONE, {"udp_checksum": 1}, "UdpInErrors"),
    "udp_length": (ONE, {"udp_length": 2000}, "UdpInErrors"),
    "from_port_0": (ONE, {"udp_source_port": 0}, "tx_invalid"),
}
"""Datagrams by name: the fields of the headers that are wrong, and the counter that moves."""


@pytest.mark.parametrize(
    ("payload", "fields", "counter"), KERNEL_CASES.values(), ids=list(KERNEL_CASES)
)
def test_the_kernel_s_sockets_count_what_is_not_answered(
    long_served: tuple[Lab, Server], payload: bytes, fields: dict[str, int], counter: str
) -> None:
    lab, server = long_served
    client, here = ends(lab)
    before, counters = counted(server), server.counters()
    with Wire(lab.client) as wire:
        for frame in fragments(codec.encode_frame(client, here, payload), lab.record.mtu):
            wire.send(patched(frame, **fields))
        moved = wait_for(server, before, **{counter: 1})
        assert {name: moved[name] for name in (DROPS | set(LOSSES)) & set(moved)} in (
            {counter: 1},
            {},  # a counter of the stack
        )
        answer = codec.decode_frame(wire.exchange(codec.encode_frame(client, here, ONE)))
        assert codec.decode_replies(answer.payload) == expected_replies({}, GOOD)
        wait_for(server, before, sent=1)
    assert gained(server, counters)["frames_sent"] == 1 + (counter == "tx_invalid")


@pytest.fixture(scope="module")
def long_served() -> Iterator[tuple[Lab, Server]]:
    """Yield a server whose link carries our longest frames."""
    labs.remove_stale()
    with Lab.up(mtu=LONG_MTU) as lab, serving(lab, design="cpu-only", frames="udp") as server:
        yield lab, server


def fragments(frame: bytes, mtu: int) -> list[bytes]:
    """Return the frame, or two fragments of it if it is too long for the link."""
    if len(frame) <= mtu + abi.KV_ETH_BYTES:
        return [frame]
    packet = IP(frame[abi.KV_ETH_BYTES :])
    return [frame[: abi.KV_ETH_BYTES] + bytes(part) for part in fragment(packet, FRAGMENT_BYTES)]


def test_datagrams_that_find_no_room_are_counted(lab: Lab) -> None:
    """The engine's thread is kept off its core meanwhile, so that it receives nothing."""
    require("udp")
    with serving(lab, design="cpu-only", frames="udp", rx_descriptors=64) as server:
        host = next(iter(server._hosts.values()))
        host.stop()
        before = sources(server)
        frame = codec.encode_frame(*ends(lab), codec.encode_batch(GOOD))
        with Wire(lab.client) as wire:
            for _ in range(2000):
                wire.send(frame)
        assert wait_for(server, before, rx_dropped=1)["rx_dropped"] < 2000


# ---- What is refused, and what is left


def test_a_port_that_somebody_has_is_refused(lab: Lab, frames: str) -> None:
    threads = native_threads()
    with in_namespace(lab.server.namespace):
        holder = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        holder.bind((lab.server.address, PORT))
    with (
        holder,
        pytest.raises(UsageError, match=rf"UDP port {PORT} .*already in use.*--port"),
        serving(lab, design="cpu-only", frames=frames),
    ):
        pass
    assert native_threads() == threads
    assert programs_on(lab.server) in ([], [NAPI_PROGRAM])


@pytest.mark.parametrize("design", ["dual", "shrd"])
@pytest.mark.parametrize("frames_past", FRAMES_PAST_XDP)
def test_two_doors_are_refused(design: str, frames_past: Any) -> None:
    with pytest.raises(
        UsageError, match=rf"{design}, which has a door in XDP too.*--frames af_xdp"
    ):
        validation.check(ServerConfig(design=design, frames=frames_past))


def test_a_device_must_be_one(lab: Lab) -> None:
    with pytest.raises(UsageError, match=r"no PCI address"):
        validation.check(ServerConfig(design="cpu-only", frames="dpdk", dpdk_device="eth0"))


def test_without_dpdk_it_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, lab: Lab
) -> None:
    monkeypatch.setattr(dpdk, "BUILD_DIR", tmp_path)
    monkeypatch.setattr(dpdk, "_eal", dpdk.Eal())
    with (
        pytest.raises(MissingError, match=r"tools/setup --with-dpdk"),
        serving(lab, design="cpu-only", frames="dpdk"),
    ):
        pass
    assert programs_on(lab.server) in ([], [NAPI_PROGRAM])


def test_dpdk_starts_once_in_a_process(lab: Lab) -> None:
    """The same device may be opened again; another kind of device needs another process."""
    require("dpdk")
    for _ in range(2):
        with serving(lab, design="cpu-only", frames="dpdk"), client_of(lab) as client:
            client.set(b"key", b"value")
            assert client.get(b"key") == b"value"
    with (
        pytest.raises(MissingError, match=r"a process of its own"),
        serving(lab, design="cpu-only", frames="dpdk", dpdk_device="0000:03:00.0"),
    ):
        pass


def test_nothing_is_left(lab: Lab, frames: str) -> None:
    with serving(lab, design="cpu-only", frames=frames):
        pass  # so that everything that stays loaded once per process is loaded
    threads, descriptors = native_threads(), len(list(Path("/proc/self/fd").iterdir()))
    with serving(lab, design="cpu-only", frames=frames), client_of(lab) as client:
        client.ping()
    assert native_threads() == threads
    assert len(list(Path("/proc/self/fd").iterdir())) == descriptors
    assert programs_on(lab.server) in ([], [NAPI_PROGRAM])


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_another_server_follows_one_that_ended(lab: Lab, frames: str, how: signal.Signals) -> None:
    options = ("--design", "cpu-only", "--frames", frames, "--directory", "")
    with pinned(*CPUS):
        for _ in range(2):
            with serving_child(lab, *options) as child, client_of(lab) as client:
                client.set(b"key", b"value")
                assert client.get(b"key") == b"value"
                child.send_signal(how)
                child.wait(TIMEOUT_SECONDS)
    assert list(dpdk.RUN_DIR.glob("dpukv-*")) == []
