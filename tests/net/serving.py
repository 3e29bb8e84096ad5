# SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
"""Helpers of the end-to-end tests: a server in a lab, its clients, raw frames, leftovers."""

import os
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from unittest import mock

from pyroute2 import IPRoute

from dpukv_xdp.base.patience import patient
from dpukv_xdp.client.client import Client
from dpukv_xdp.kernel import nic
from dpukv_xdp.kernel.attachments import list_attachments
from dpukv_xdp.kernel.namespaces import NAMESPACE_DIR, in_namespace
from dpukv_xdp.kernel.veth import End
from dpukv_xdp.lab.lab import Lab
from dpukv_xdp.load import loadgen
from dpukv_xdp.load.loadgen import LoadGenerator, Loop, latency_summary
from dpukv_xdp.load.workload import WORKLOADS, Plan, build_templates, requests_per_packet_max
from dpukv_xdp.native import threads
from dpukv_xdp.server.server import Server
from dpukv_xdp.topology import validation
from dpukv_xdp.topology.schema import ServerConfig, load_config
from dpukv_xdp.wire import abi, codec
from dpukv_xdp.wire.codec import Endpoint

CPUS = sorted(os.sched_getaffinity(0))
ENGINE_CPU, OTHER_CPU = CPUS[0], CPUS[-1]
PORT = ServerConfig().port
CLIENT_PORT = 40000
TIMEOUT_SECONDS = patient(5.0)
"""Time-out for an answer, far longer than any answer takes: reaching it is a bug."""

PATIENCE_NS = 400_000_000
TEMPLATES = 8192
"""Prepared frames of a run: few, so that the preparation is quick."""

UDP_AND_IP = (abi.KV_ETHERTYPE_IPV4, abi.KV_IP_PROTOCOL_UDP)
DROPS = {counter.name.lower() for counter in abi.Counter if counter.name.startswith("DROP_")}


@contextmanager
def serving(lab: Lab, **settings: Any) -> Iterator[Server]:
    """Run a server on the lab's server end, small unless `settings` say otherwise.

    The calling thread is moved off the engine's core, where it would starve.
    """
    defaults = {"engine_cpus": (ENGINE_CPU,), "items": 1 << 16}
    if settings.get("engines", 1) > 1:
        defaults["engine_cpus"] = tuple(CPUS)
    with pinned(*CPUS), in_namespace(lab.server.namespace):
        config = load_config(None, defaults | settings)
        validation.check(config)
        server = Server(config, lab.server.interface)
        server.start()
    try:
        with pinned(OTHER_CPU):
            yield server
    finally:
        with in_namespace(lab.server.namespace):
            server.stop()


@contextmanager
def serving_child(lab: Lab, *options: str) -> Iterator[subprocess.Popen[str]]:
    """Run `dpukv serve` on the lab's server end, in a process that may be killed."""
    argv = [sys.executable, "-m", "dpukv_xdp", "serve", "--iface", lab.server.interface]
    with (
        pinned(*CPUS),
        lab.spawn(
            lab.server, [*argv, "--items", "65536", *options], stderr=subprocess.PIPE, text=True
        ) as child,
    ):
        try:
            assert child.stderr is not None
            said = []
            while not any("serving" in line for line in said):
                said.append(child.stderr.readline())
                assert said[-1], said
            with pinned(OTHER_CPU):
                yield child
        finally:
            child.kill()


def client_of(lab: Lab, port: int = PORT, **options: Any) -> Client:
    """Return a Python client in the client's namespace that does not repeat requests."""
    with in_namespace(lab.client.namespace):
        return Client(
            (lab.server.address, port), **({"timeout": TIMEOUT_SECONDS, "retries": 0} | options)
        )


@contextmanager
def pinned(*cpus: int) -> Iterator[None]:
    """Pin the calling thread, and with it the communication engine, to these cores."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cpus)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def sharing_cores() -> Any:
    """Let engines yield their cores: engines that spin on every core would starve the test."""
    return mock.patch.object(threads, "ENGINE_NICE", 0)


def let_probe_pass(server: Server) -> None:
    """Wait until the frame with which a server tested its sockets no longer changes counters."""
    wanted = int(bool(server.stats()["sockets"]))
    deadline = time.monotonic() + TIMEOUT_SECONDS
    counters = server.counters()
    while not counters["frames_received"] == counters["frames_sent"] >= wanted:
        assert time.monotonic() < deadline, counters
        time.sleep(0.001)
        counters = server.counters()


def gained(server: Server, before: dict[str, int]) -> dict[str, int]:
    """Return the counters that have changed since `before`, and by how much."""
    return {
        name: count - before[name]
        for name, count in server.counters().items()
        if count != before[name]
    }


def ends(lab: Lab, port: int = PORT) -> tuple[Endpoint, Endpoint]:
    """Return a client's endpoint in the lab, and the server's."""
    return (
        Endpoint(lab.client.mac, lab.client.address, CLIENT_PORT),
        Endpoint(lab.server.mac, lab.server.address, port),
    )


def _udp_port(frame: bytes, field: str) -> int:
    return int(struct.unpack_from("!H", frame, abi.offset("kv_packet_header", field))[0])


class Wire:
    """The client's end of the link, for whole frames; a context manager."""

    def __init__(
        self,
        end: End,
        ports: range = range(PORT, PORT + 1),
        timeout_seconds: float = TIMEOUT_SECONDS,
    ) -> None:
        """`ports` are the server's; frames from other ports are ignored."""
        self._ports = ports
        with in_namespace(end.namespace):
            self._socket = socket.socket(
                socket.AF_PACKET, socket.SOCK_RAW, socket.htons(UDP_AND_IP[0])
            )
            self._socket.bind((end.interface, UDP_AND_IP[0]))
        self._socket.settimeout(timeout_seconds)

    def send(self, frame: bytes) -> None:
        """Send a frame."""
        assert self._socket.send(frame) == len(frame)

    def receive(self) -> bytes:
        """Return the next frame from the server's ports. Raises TimeoutError."""
        while True:
            frame, address = self._socket.recvfrom(abi.KV_FRAME_MAX + 1)
            is_ours = address[2] != socket.PACKET_OUTGOING and self._is_from_server(frame)
            if is_ours:
                return frame

    def exchange(self, frame: bytes) -> bytes:
        """Send a request; return the next answer to its UDP port.

        Late answers to the frame with which a server tested its sockets go to another port.
        """
        self.send(frame)
        while True:
            answer = self.receive()
            if _udp_port(answer, "udp_destination_port") == _udp_port(frame, "udp_source_port"):
                return answer

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()

    def _is_from_server(self, frame: bytes) -> bool:
        protocol_at = abi.offset("kv_packet_header", "ip_protocol")
        header_bytes = abi.SIZE("kv_packet_header")
        if len(frame) < header_bytes or frame[protocol_at] != UDP_AND_IP[1]:
            return False
        return _udp_port(frame, "udp_source_port") in self._ports

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def answer_of(frame: bytes) -> list[codec.Reply]:
    """Return the replies in a response frame; all of its headers must be correct."""
    decoded = codec.decode_frame(frame)
    assert decoded.ip_checksum_valid
    assert (decoded.ip_id, decoded.ip_fragment, decoded.udp_checksum) == (0, 0, 0)
    return codec.decode_replies(decoded.payload)


# ---- Load


@contextmanager
def generating(lab: Lab, engines: int = 1) -> Iterator[LoadGenerator]:
    """Yield a load generator on the client's end; the block runs in the client's namespace.

    Its time-out is long, so that packets do not count as lost on a busy machine.
    """
    with (
        mock.patch.object(loadgen, "TIMEOUT_NS", PATIENCE_NS),
        in_namespace(lab.client.namespace),
        LoadGenerator(lab.client.interface, port=PORT, engines=engines, cpu=OTHER_CPU) as generator,
    ):
        yield generator


def plan_for(lab: Lab, **settings: Any) -> Plan:
    """Return a plan: 64 Ki keys, read only, 45 requests per packet unless `settings` say otherwise.

    A packet has fewer requests if not all of them fit.
    """
    source, destination = ends(lab)
    defaults = {"workload": WORKLOADS["C"], "keys": 1 << 16, "requests_per_packet": 45}
    plan = Plan(source=source, destination=destination, **(defaults | settings))
    fit = requests_per_packet_max(plan.key_size, plan.value_size, plan.workload)
    return replace(plan, requests_per_packet=min(fit, plan.requests_per_packet))


@dataclass(frozen=True)
class Measured:
    """The counters of one run of the generator."""

    packets_per_second: float
    sent: dict[str, int]
    received: dict[str, int]
    latency_us: dict[str, float]


def run_load(
    generator: LoadGenerator, plan: Plan, loop: Loop, seconds: float, templates: int = TEMPLATES
) -> Measured:
    """Send the plan's stream repeatedly for `seconds`, and wait for the last answers."""
    prepared = build_templates(plan, generator.templates[:templates])
    start = generator.snapshot()
    generator.begin(plan, loop, prepared.templates)
    time.sleep(seconds / 10)
    first = generator.snapshot()
    time.sleep(seconds)
    last = generator.snapshot()
    generator.end()
    end = generator.snapshot()
    packets = last.sent["packets_sent"] - first.sent["packets_sent"]
    return Measured(
        packets_per_second=packets / (last.at_ns - first.at_ns) * 1e9,
        sent={name: end.sent[name] - start.sent[name] for name in end.sent},
        received={name: end.received[name] - start.received[name] for name in end.received},
        latency_us=latency_summary(end.latency - start.latency),
    )


# ---- The link


def set_link(end: End, **attributes: object) -> None:
    """Change an end's link, as `ip link set` does."""
    with in_namespace(end.namespace), IPRoute() as netlink:
        netlink.link("set", index=nic.index_of(end.interface), **attributes)


# ---- What is left


def native_threads() -> list[str]:
    """Return the names of this process's host core and sender threads."""
    kinds = ("host core", "sender", "live sender", "generator")
    names = (thread.name for thread in threading.enumerate())
    return sorted(name for name in names if name.startswith(kinds))


def bpf_descriptors(pid: int | str = "self") -> int:
    """Return the number of BPF programs and maps that a process holds open."""
    links = []
    for path in Path(f"/proc/{pid}/fd").iterdir():
        try:
            links.append(str(path.readlink()))
        except FileNotFoundError:  # closed meanwhile
            continue
    return sum(link.startswith(("anon_inode:bpf-prog", "anon_inode:bpf-map")) for link in links)


def mapped_queue_pairs() -> int:
    """Return the number of queue pair maps that this process has mapped, which keeps them alive."""
    size = abi.SIZE("kv_queue_pair")
    count = 0
    for line in Path("/proc/self/maps").read_text().splitlines():
        if "bpf-map" in line:
            first, _, last = line.split()[0].partition("-")
            count += (int(last, 16) - int(first, 16)) % size < 4096
    return count


def programs_on(end: End) -> list[str]:
    """Return the names of the XDP programs on an end of the lab."""
    with in_namespace(end.namespace):
        return [program.name for program in nic.find(end.interface).programs]


def registered_on(end: End) -> list[int]:
    """Return the ids of the programs that are registered for an end of the lab."""
    inode = (NAMESPACE_DIR / end.namespace).stat().st_ino
    return [r.program_id for r in list_attachments() if r.namespace_inode == inode]
