# SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
"""Other stores, measured as our own are: in a lab, their server on the engines' cores, the
load generator on the client's.

A peer is a row of PEERS. Its session has Bench's methods and results (bench.py), so that whoever
compares need not know which is which; where a field cannot mean the same it is None.
"""

import contextlib
import os
import re
import select
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Any

import numpy as np

from dpukv_xdp.base.errors import DpukvError, MissingError, UsageError
from dpukv_xdp.base.machine import machine_facts
from dpukv_xdp.base.patience import patient
from dpukv_xdp.bench.bench import BenchOptions, Progress
from dpukv_xdp.bench.limits import limit_of
from dpukv_xdp.bench.peers_load import (
    PROTOCOLS,
    PeerLoad,
    PeerPlan,
    Snapshot,
    Transport,
    connect,
    stream_of_requests,
    total,
)
from dpukv_xdp.kernel import nic
from dpukv_xdp.kernel.namespaces import in_namespace
from dpukv_xdp.kernel.veth import End
from dpukv_xdp.lab import lab
from dpukv_xdp.lab.lab import Lab
from dpukv_xdp.load.loadgen import TEMPLATES, latency_summary
from dpukv_xdp.load.workload import WORKLOADS
from dpukv_xdp.native.threads import ENGINE_NICE
from dpukv_xdp.topology.placement import default_host_cpus
from dpukv_xdp.wire import abi

Result = dict[str, Any]

WARM_UP_SECONDS = 0.3
PROGRESS_SECONDS = 0.25
START_SECONDS = 20.0
STOP_SECONDS = 5.0
PROBE_SECONDS = 1.0
LOAD_WINDOW = 16
LOAD_REQUESTS = 1 << 18
"""Keys that are prepared at a time for the load phase."""
LOG_BYTES_MAX = 1 << 12
CONGESTION_CONTROLS = ("cubic", "reno")
"""The first that the kernel lets a network namespace choose. The machine's own may be bbr, which
paces; without loss these two do not differ."""
DATAGRAM_BYTES_MAX = 65507
"""What is longer than the MTU goes in fragments, as it would for any client of memcached."""
WINDOW_UDP = abi.KV_BATCH_MAX
"""Messages outstanding behind a UDP socket, at most."""
CPU_METHOD = (
    "host: CPU time of the server's process, the kernel's network stack in its system calls "
    "included, and the client's share of it that runs in the softirq of a send (busy_fraction: its "
    "part of the server's cores, or its busiest thread's of one); client: CPU time of the "
    "generating thread, which polls all the time (busy_fraction: the time in which its polls found "
    "something), with the server's share of the stack in the same way; there is no dpu; "
    "others_fraction: the part of the cores that was neither theirs nor idle"
)
NETWORK_NOTE = (
    "peers: kernel sockets on the lab's veth pair without XDP, checksum and segmentation offload "
    "on, congestion control {}"
)
KEY_NOTE = "peers: keys are ours as hexadecimal digits, twice as many bytes; values are the same"


@dataclass(frozen=True, slots=True)
class Peer:
    """A store that is not ours, and how to talk to it."""

    name: str
    summary: str
    program: str
    package: str
    """Debian's."""
    protocol: str
    """A row of peers_load.PROTOCOLS."""
    load_protocol: str
    """How keys are stored before a run: over TCP, where nothing is lost."""
    port: int
    arguments: Callable[["PeerSize"], list[str]]
    probe: bytes
    """Sent to see whether it is up."""
    reply: bytes
    """How its answer to that begins."""

    @property
    def transport(self) -> Transport:
        """What the measured messages travel by."""
        return PROTOCOLS[self.protocol].transport

    def find(self) -> str:
        """The program's path. Raises MissingError with the package to install."""
        path = shutil.which(self.program, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/bin")
        if path is None:
            raise MissingError(
                f"comparing with {self.name}",
                f"the program {self.program}: install the package {self.package}, or run "
                f"tools/setup --with-peers",
            )
        return path

    def version(self) -> str:
        """Its version as it says itself."""
        said = subprocess.run(
            [self.find(), "--version"], capture_output=True, text=True, check=False
        )
        found = re.search(r"\d+(\.\d+)+", said.stdout)
        return found[0] if found else "unknown"


@dataclass(frozen=True, slots=True)
class PeerSize:
    """What a server has to be laid out for."""

    address: str
    port: int
    keys: int
    item_bytes: int
    """Of a key's text and a value."""
    connections: int
    threads: int
    """As many as the server has cores."""


def _redis(size: PeerSize) -> list[str]:
    """One thread for the commands, others beside it for the sockets, and nothing on disk."""
    return [
        *("--bind", size.address, "--port", str(size.port), "--protected-mode", "no"),
        *("--save", "", "--appendonly", "no", "--daemonize", "no"),
        *("--io-threads", str(size.threads), "--io-threads-do-reads", "yes"),
        *("--maxclients", str(size.connections + 32), "--dir", "/"),
    ]


def _memcached(size: PeerSize) -> list[str]:
    """Worker threads, room for every key, and an index that need not grow during a run."""
    megabytes = 64 + size.keys * (size.item_bytes + 128) // (1 << 20) * 5 // 4
    return [
        *("-u", "nobody", "-l", size.address, "-p", str(size.port), "-U", str(size.port)),
        *("-t", str(size.threads), "-c", str(size.connections + 32), "-m", str(megabytes)),
        *("-o", f"hashpower={max(16, size.keys.bit_length())}"),
    ]


PEERS = {
    peer.name: peer
    for peer in (
        Peer(
            name="redis",
            summary="redis-server over TCP, commands pipelined",
            program="redis-server",
            package="redis-server",
            protocol="resp",
            load_protocol="resp",
            port=6379,
            arguments=_redis,
            probe=b"PING\r\n",
            reply=b"+PONG\r\n",
        ),
        Peer(
            name="redis-mget",
            summary="redis-server over TCP, the GETs of a message as one MGET",
            program="redis-server",
            package="redis-server",
            protocol="resp-mget",
            load_protocol="resp",
            port=6379,
            arguments=_redis,
            probe=b"PING\r\n",
            reply=b"+PONG\r\n",
        ),
        Peer(
            name="memcached",
            summary="memcached over TCP, the GETs of a message as one multi-get, SETs pipelined",
            program="memcached",
            package="memcached",
            protocol="memcached",
            load_protocol="memcached",
            port=11211,
            arguments=_memcached,
            probe=b"version\r\n",
            reply=b"VERSION ",
        ),
        Peer(
            name="memcached-udp",
            summary="memcached over UDP, a message one datagram, an answer one for each value",
            program="memcached",
            package="memcached",
            protocol="memcached-udp",
            load_protocol="memcached",
            port=11211,
            arguments=_memcached,
            probe=b"version\r\n",
            reply=b"VERSION ",
        ),
    )
}


def find_peer(name: str) -> Peer:
    """The row of that name. Raises UsageError."""
    if name not in PEERS:
        raise UsageError(f"there is no peer {name!r}: choose among {', '.join(PEERS)}")
    return PEERS[name]


class PeerSession:
    """A peer's server and a load generator in a lab; a context manager that takes all down."""

    def __init__(self, peer: Peer, options: BenchOptions, server_cores: int = 1) -> None:
        """The server has as many threads as cores. Raises UsageError or MissingError before
        anything is built.
        """
        if options.rate:
            raise UsageError("peers are measured in a closed loop: leave out --rate")
        options.check()
        self.peer = peer
        self.options = options
        self.program = peer.find()
        self.version = peer.version()
        self.started_ns = time.monotonic_ns()
        self.server_cpus, self.client_cpu = cores(server_cores)
        self._cleanup = contextlib.ExitStack()

    def __enter__(self) -> "PeerSession":
        with contextlib.ExitStack() as cleanup:
            lab.remove_stale()
            self._place = cleanup.enter_context(Lab.up(mtu=self.options.mtu))
            for end in (self._place.server, self._place.client):
                self.congestion_control = prepare_network(end)
            self.address = (self._place.server.address, self.peer.port)
            self._process = cleanup.enter_context(self._server())
            self._cleanup = cleanup.pop_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._cleanup.close()

    def load_keys(self, options: BenchOptions) -> dict[str, float]:
        """Store every key through the network, as Bench.load_keys()."""
        setup_seconds = (time.monotonic_ns() - self.started_ns) / 1e9
        protocol = PROTOCOLS[self.peer.load_protocol]
        per_message = options.requests_per_packet or options.requests_per_packet_max()
        start_ns = time.monotonic_ns()
        with self._load(protocol.transport, LOAD_WINDOW) as load:
            for first in range(0, options.keys, LOAD_REQUESTS):
                ranks = np.arange(first, min(first + LOAD_REQUESTS, options.keys), dtype=np.uint64)
                plan = PeerPlan(
                    protocol,
                    ranks,
                    np.zeros(len(ranks), np.bool_),
                    per_message=per_message,
                    key_size=options.key_size,
                    value_size=options.value_size,
                )
                load.send_all(plan)
            counts = load.snapshot().counts
        return {
            "keys": options.keys,
            "seconds": (time.monotonic_ns() - start_ns) / 1e9,
            "stored": int(counts["stored"]),
            "lost": int(counts["lost"]),
            "corrupt": int(counts["corrupt"]),
            "refused": int(counts["refused"]),
            "setup_seconds": setup_seconds,
        }

    def measure(self, options: BenchOptions, progress: Progress) -> Result:
        """One run: a result like Bench.measure()'s."""
        options.check()
        plan = self._plan(options)
        window = self._window(options)
        with self._death_named(), self._load(self.peer.transport, window) as load:
            load.begin(plan)
            time.sleep(WARM_UP_SECONDS)
            before, server_before = load.snapshot(), self._server_times()
            end_ns = before.at_ns + int(options.seconds * 1e9)
            while (left_seconds := (end_ns - time.monotonic_ns()) / 1e9) > 0 and load.is_running():
                progress("measuring", 1 - left_seconds / options.seconds)
                time.sleep(min(left_seconds, PROGRESS_SECONDS))
            after, server_after = load.snapshot(), self._server_times()
            load.end()
            last = load.snapshot()
        run = _Run(before, after, server_before, server_after, len(self.server_cpus))
        return self._result(options, run, window, int(last.counts["lost"]))

    def _plan(self, options: BenchOptions) -> PeerPlan:
        per_message = options.requests_per_packet or options.requests_per_packet_max()
        ranks, is_get = stream_of_requests(
            options.distribution,
            WORKLOADS[options.workload],
            options.keys,
            TEMPLATES * per_message,
            options.seed,
        )
        plan = PeerPlan(
            PROTOCOLS[self.peer.protocol],
            ranks,
            is_get,
            per_message=per_message,
            key_size=options.key_size,
            value_size=options.value_size,
        )
        if self.peer.transport == "udp" and plan.bytes_max() > DATAGRAM_BYTES_MAX:
            raise UsageError(
                f"{per_message} requests to {self.peer.name} take {plan.bytes_max()} bytes, and a "
                f"datagram has {DATAGRAM_BYTES_MAX}: ask for fewer requests per packet"
            )
        return plan

    def _window(self, options: BenchOptions) -> int:
        """Messages outstanding: over UDP there is a most."""
        return options.window if self.peer.transport == "tcp" else min(options.window, WINDOW_UDP)

    def _load(self, transport: Transport, window: int) -> PeerLoad:
        with in_namespace(self._place.client.namespace):
            return PeerLoad(self.address, transport, window=window, cpu=self.client_cpu)

    @contextlib.contextmanager
    def _server(self) -> Iterator[subprocess.Popen[Any]]:
        size = PeerSize(
            address=self._place.server.address,
            port=self.peer.port,
            keys=self.options.keys,
            item_bytes=2 * self.options.key_size + self.options.value_size,
            connections=self.options.window + LOAD_WINDOW,
            threads=len(self.server_cpus),
        )
        cpus = ",".join(map(str, self.server_cpus))
        argv = ["taskset", "--cpu-list", cpus, self.program]
        with tempfile.TemporaryFile() as log:  # nameless: it goes when the server does
            process = self._place.spawn(
                self._place.server,
                [*argv, *self.peer.arguments(size)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                process_group=0,  # Ctrl-C is the parent's to handle
            )
            try:
                self._wait_until_up(process, log)
                favour(process.pid)
                yield process
            finally:
                process.terminate()
                try:
                    process.wait(patient(STOP_SECONDS))
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait()

    def _wait_until_up(self, process: subprocess.Popen[Any], log: IO[bytes]) -> None:
        deadline = time.monotonic() + patient(START_SECONDS)
        while not self._answers():
            if process.poll() is not None or time.monotonic() > deadline:
                said = os.pread(log.fileno(), LOG_BYTES_MAX, 0).decode(errors="replace").strip()
                reason = said.splitlines()[-1] if said else "it said nothing"
                raise DpukvError(f"{self.peer.program} did not start: {reason}")
            time.sleep(0.02)

    def _answers(self) -> bool:
        try:
            with (
                in_namespace(self._place.client.namespace),
                connect(self.address, "tcp") as connection,
            ):
                return _ask(connection, self.peer.probe).startswith(self.peer.reply)
        except (OSError, DpukvError):
            return False

    def _server_times(self) -> "_ServerTimes":
        pid = self._process.pid
        try:
            return _ServerTimes(
                at_ns=time.monotonic_ns(),
                cpu_ns=time.clock_gettime_ns(process_clock(pid)),
                by_thread_ns=thread_times_ns(Path(f"/proc/{pid}/task")),
                idle_ns=idle_ns(self.server_cpus),
            )
        except OSError as error:
            raise self._died() from error

    @contextlib.contextmanager
    def _death_named(self) -> Iterator[None]:
        """A server that has ended is what went wrong, whoever noticed it first and by what."""
        try:
            yield
        except DpukvError as error:
            try:
                self._process.wait(patient(PROBE_SECONDS))
            except subprocess.TimeoutExpired:  # it lives
                raise error from None
            raise self._died() from error

    def _died(self) -> DpukvError:
        return DpukvError(
            f"{self.peer.program} ended in the middle of a run: {how_ended(self._process)}"
        )

    def _result(self, options: BenchOptions, run: "_Run", window: int, lost: int) -> Result:
        responses, seconds = run.count("responses"), run.elapsed_ns() / 1e9
        latency = run.after.counts["latency"] - run.before.counts["latency"]
        roles = run.roles()
        per_message = options.requests_per_packet or options.requests_per_packet_max()
        result = {
            "design": None,
            "peer": self.peer.name,
            "target": f"{self.peer.program} {self.version}",
            "protocol": PROTOCOLS[self.peer.protocol].summary,
            "workload": options.workload,
            "distribution": options.distribution,
            "keys": options.keys,
            "key_size": options.key_size,
            "value_size": options.value_size,
            "requests_per_packet": per_message,
            "window": window,
            "rate": None,
            "seconds": round(seconds, 3),
            "throughput_mops": responses / seconds / 1e6,
            "packets_mpps": run.count("messages") / seconds / 1e6,
            "latency_us": {
                "mean": run.count("latency_sum_ns") / max(responses, 1) / 1e3,
                **latency_summary(latency),
            },
            "hits": run.count("hits"),
            "misses": run.count("misses"),
            "stored": run.count("stored"),
            "corrupt": run.count("corrupt"),
            "refused": run.count("refused"),
            "late": run.count("late"),
            "lost": lost,
            "roles": roles,
            "cpu_method": CPU_METHOD,
            "client_busy": roles["client"]["busy_fraction"],
            "emulation": "",
            "notes": [NETWORK_NOTE.format(self.congestion_control), KEY_NOTE],
            "qp_bytes_per_op": None,
            "payload_bytes_per_op": {
                "request": run.count("bytes_sent") / max(run.count("requests_sent"), 1),
                "response": run.count("bytes") / max(responses, 1),
            },
            "machine": machine_facts(),
        }
        return {**result, "limit": limit_of(result)}


@dataclass(frozen=True, slots=True)
class _ServerTimes:
    """Of a server's process at one moment."""

    at_ns: int
    """CLOCK_MONOTONIC."""
    cpu_ns: int
    """All threads."""
    by_thread_ns: dict[str, int]
    """CPU time of each."""
    idle_ns: int
    """Of the cores that it is pinned to."""


@dataclass(frozen=True, slots=True)
class _Run:
    """What happened between two moments."""

    before: Snapshot
    after: Snapshot
    server_before: _ServerTimes
    server_after: _ServerTimes
    server_cores: int

    def elapsed_ns(self) -> int:
        return self.after.at_ns - self.before.at_ns

    def count(self, name: str) -> int:
        return total([self.before.counts, self.after.counts], name)

    def roles(self) -> dict[str, Any]:
        """As roles_of() of bench.py, with the time that each was busy."""
        return {"client": self._client(), "dpu": None, "host": self._server()}

    def _client(self) -> dict[str, float]:
        """It polls: what it did not get of its core, other programs had."""
        elapsed_ns, cpu_ns = self.elapsed_ns(), self.after.cpu_ns - self.before.cpu_ns
        return {
            **self._times(cpu_ns),
            "busy_fraction": _fraction(elapsed_ns - self.count("idle_ns"), elapsed_ns),
            "others_fraction": _fraction(elapsed_ns - cpu_ns, elapsed_ns),
        }

    def _server(self) -> dict[str, float]:
        """It sleeps when there is nothing to do, and its threads wait for each other: what is
        neither its own time nor idle, other programs had.
        """
        before, after = self.server_before, self.server_after
        elapsed_ns = after.at_ns - before.at_ns
        cores_ns = elapsed_ns * self.server_cores
        cpu_ns = after.cpu_ns - before.cpu_ns
        others_ns = cores_ns - cpu_ns - (after.idle_ns - before.idle_ns)
        by_thread_ns = (
            after_ns - before.by_thread_ns.get(thread, 0)
            for thread, after_ns in after.by_thread_ns.items()
        )
        busiest_ns = max(by_thread_ns, default=0)
        return {
            **self._times(cpu_ns),
            "busy_fraction": max(_fraction(cpu_ns, cores_ns), _fraction(busiest_ns, elapsed_ns)),
            "others_fraction": _fraction(others_ns, cores_ns),
        }

    def _times(self, cpu_ns: int) -> dict[str, float]:
        operations = max(self.count("responses"), 1)
        return {"cores": cpu_ns / self.elapsed_ns(), "cpu_ns_per_op": cpu_ns / operations}


def _fraction(part_ns: int, whole_ns: int) -> float:
    return min(max(part_ns / whole_ns, 0.0), 1.0)


def cores(server_cores: int = 1) -> tuple[tuple[int, ...], int]:
    """The cores of a peer's server and that of the generator: those of as many of our engines and
    of their client.
    """
    servers = default_host_cpus()[:server_cores]
    others = sorted(os.sched_getaffinity(0).difference(servers))
    return servers, others[0] if others else servers[0]


def thread_times_ns(tasks: Path) -> dict[str, int]:
    """CPU time of each thread in a directory such as /proc/<pid>/task; nothing of those that end,
    or if the kernel does not say.
    """
    times = {}
    for thread in tasks.iterdir():
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            times[thread.name] = int((thread / "schedstat").read_text().split()[0])
    return times


def idle_ns(cpus: Sequence[int], statistics: Path = Path("/proc/stat")) -> int:
    """Time that cores have been idle, added up; the kernel counts in hundredths of a second."""
    wanted = {f"cpu{cpu}" for cpu in cpus}
    lines = (line.split() for line in statistics.read_text().splitlines())
    ticks = sum(int(line[4]) + int(line[5]) for line in lines if line[0] in wanted)
    return ticks * 1_000_000_000 // os.sysconf("SC_CLK_TCK")


def prepare_network(end: End) -> str:
    """The best that the kernel's stack can have on a veth end; TCP's congestion control then.

    The lab's NAPI program would have every segment copied, and its missing checksum offload turns
    segmentation offload off.
    """
    with in_namespace(end.namespace):
        interface = nic.find(end.interface)
        for program in interface.programs:
            nic.detach_xdp(interface.index, program.program_id)
        nic.set_offloads(end.interface, tx_checksum=True, gro=False)
        control = Path("/proc/sys/net/ipv4/tcp_congestion_control")
        for name in CONGESTION_CONTROLS:
            with contextlib.suppress(OSError):
                control.write_text(name)
                break
        return control.read_text().strip()


def favour(pid: int) -> None:
    """The priority that our engines have, for every thread of a process."""
    for thread in Path(f"/proc/{pid}/task").iterdir():
        with contextlib.suppress(ProcessLookupError):
            os.setpriority(os.PRIO_PROCESS, int(thread.name), ENGINE_NICE)


def process_clock(pid: int) -> int:
    """The clock id of another process's CPU time: clock_getcpuclockid(3)."""
    return (~pid << 3) | CPUCLOCK_SCHED


CPUCLOCK_SCHED = 2


def how_ended(process: subprocess.Popen[Any]) -> str:
    """How a process ended, in words."""
    status = process.wait(patient(STOP_SECONDS))
    return signal.Signals(-status).name if status < 0 else f"exit status {status}"


def _ask(connection: socket.socket, request: bytes) -> bytes:
    connection.setblocking(True)
    connection.settimeout(patient(PROBE_SECONDS))
    connection.sendall(request)
    readable, _, _ = select.select([connection], [], [], patient(PROBE_SECONDS))
    return connection.recv(256) if readable else b""
