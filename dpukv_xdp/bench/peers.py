# SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
"""Other stores, measured as our own are: in a lab, their server on the engines' cores, the load
generator on the client's.

PeerSession has the methods and results of Bench, so that a comparison need not know which of the
two it runs; a field that has no meaning for a peer is None.
"""

import contextlib
import os
import select
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np

from dpukv_xdp.base.errors import DpukvError, UsageError
from dpukv_xdp.base.patience import patient
from dpukv_xdp.base.processes import end_in_words
from dpukv_xdp.bench.limits import Result, limit_of
from dpukv_xdp.bench.options import BenchOptions, Progress
from dpukv_xdp.bench.peer_stores import Peer, PeerSize
from dpukv_xdp.bench.peer_times import (
    CPU_METHOD,
    PeerRun,
    ServerTimes,
    idle_ns,
    process_clock,
    thread_times_ns,
)
from dpukv_xdp.bench.peers_load import (
    PROTOCOLS,
    PeerLoad,
    PeerPlan,
    Transport,
    connect,
    stream_of_requests,
)
from dpukv_xdp.bench.runs import LOAD_WINDOW, await_end, run_result, warm_up_seconds
from dpukv_xdp.kernel import nic
from dpukv_xdp.kernel.namespaces import in_namespace
from dpukv_xdp.kernel.veth import End
from dpukv_xdp.lab import lab
from dpukv_xdp.lab.lab import Lab
from dpukv_xdp.load.workload import WORKLOADS, stream_packets
from dpukv_xdp.native.threads import ENGINE_NICE
from dpukv_xdp.topology.placement import default_host_cpus
from dpukv_xdp.wire import abi

START_SECONDS = 20.0
STOP_SECONDS = 5.0
PROBE_SECONDS = 1.0
LOAD_REQUESTS = 1 << 18
"""Keys prepared at a time in the load phase."""
LOG_BYTES_MAX = 1 << 12
CONGESTION_CONTROLS = ("cubic", "reno")
"""Congestion controls by preference: the first that the kernel allows in a network namespace is
used. The machine's default may be bbr, which paces; without loss these two do not differ.
"""
DATAGRAM_BYTES_MAX = 65507
"""Longest payload of a datagram; above the MTU it is fragmented, as for any memcached client."""
WINDOW_UDP = abi.KV_BATCH_MAX
"""Most messages outstanding on a UDP socket."""
NETWORK_NOTE = (
    "peers: kernel sockets on the lab's veth pair without XDP, checksum and segmentation offload "
    "on, congestion control {}"
)
KEY_NOTE = "peers: keys are ours as hexadecimal digits, twice as many bytes; values are the same"


class PeerSession:
    """A peer's server and a load generator in a lab; a context manager that takes all down."""

    def __init__(self, peer: Peer, options: BenchOptions, server_cores: int = 1) -> None:
        """Prepare a session whose server has one thread per core.

        Raises UsageError or MissingError before anything is built.
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

    def __exit__(self, *_: object) -> None:
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
        """Measure one run and return a result like that of Bench.measure()."""
        options.check()
        plan = self._plan(options)
        window = self._window(options)
        with self._death_named(), self._load(self.peer.transport, window) as load:
            load.begin(plan)
            time.sleep(warm_up_seconds(options.seconds))
            before, server_before = load.snapshot(), self._server_times()
            end_ns = before.at_ns + int(options.seconds * 1e9)
            await_end(end_ns, options.seconds, progress, load.is_running)
            after, server_after = load.snapshot(), self._server_times()
            load.end()
            last = load.snapshot()
        run = PeerRun(before, after, server_before, server_after, len(self.server_cpus))
        return self._result(options, run, window, int(last.counts["lost"]))

    def _plan(self, options: BenchOptions) -> PeerPlan:
        per_message = options.requests_per_packet or options.requests_per_packet_max()
        ranks, is_get = stream_of_requests(
            options.distribution,
            WORKLOADS[options.workload],
            options.keys,
            stream_packets(options.keys, per_message) * per_message,
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
        """Return the messages outstanding, which UDP limits."""
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

    def _server_times(self) -> "ServerTimes":
        pid = self._process.pid
        try:
            return ServerTimes(
                at_ns=time.monotonic_ns(),
                cpu_ns=time.clock_gettime_ns(process_clock(pid)),
                by_thread_ns=thread_times_ns(Path(f"/proc/{pid}/task")),
                idle_ns=idle_ns(self.server_cpus),
            )
        except OSError as error:
            raise self._died() from error

    @contextlib.contextmanager
    def _death_named(self) -> Iterator[None]:
        """Report a server that has ended as the cause of any failure within the block."""
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

    def _result(self, options: BenchOptions, run: "PeerRun", window: int, lost: int) -> Result:
        roles = run.roles()
        per_message = options.requests_per_packet or options.requests_per_packet_max()
        result = {
            "design": None,
            "peer": self.peer.name,
            "target": f"{self.peer.program} {self.version}",
            "protocol": PROTOCOLS[self.peer.protocol].summary,
            **run_result(
                options,
                run.count,
                run.after.counts["latency"] - run.before.counts["latency"],
                requests_per_packet=per_message,
                window=window,
                seconds=run.elapsed_ns() / 1e9,
                packets=run.count("messages"),
                lost=lost,
            ),
            "roles": roles,
            "cpu_method": CPU_METHOD,
            "client_busy": roles["client"]["busy_fraction"],
            "emulation": "",
            "notes": [NETWORK_NOTE.format(self.congestion_control), KEY_NOTE],
            "qp_bytes_per_op": None,
            "payload_bytes_per_op": {
                "request": run.count("bytes_sent") / max(run.count("requests_sent"), 1),
                "response": run.count("bytes") / max(run.count("responses"), 1),
            },
        }
        return {**result, "limit": limit_of(result)}


def cores(server_cores: int = 1) -> tuple[tuple[int, ...], int]:
    """Return the cores of a peer's server and the generator's core: those that our engines and our
    client would have.
    """
    servers = default_host_cpus()[:server_cores]
    others = sorted(os.sched_getaffinity(0).difference(servers))
    return servers, others[0] if others else servers[0]


def prepare_network(end: End) -> str:
    """Set a veth end up for the kernel's stack; return TCP's congestion control.

    Detaches the lab's NAPI program, for which every segment would be copied, and enables checksum
    offload, without which segmentation offload is off.
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
    """Give every thread of a process the priority of our engines."""
    for thread in Path(f"/proc/{pid}/task").iterdir():
        with contextlib.suppress(ProcessLookupError):
            os.setpriority(os.PRIO_PROCESS, int(thread.name), ENGINE_NICE)


def how_ended(process: subprocess.Popen[Any]) -> str:
    """Return a process's signal or exit status in words."""
    return end_in_words(process.wait(patient(STOP_SECONDS)))


def _ask(connection: socket.socket, request: bytes) -> bytes:
    connection.setblocking(True)
    connection.settimeout(patient(PROBE_SECONDS))
    connection.sendall(request)
    readable, _, _ = select.select([connection], [], [], patient(PROBE_SECONDS))
    return connection.recv(256) if readable else b""
