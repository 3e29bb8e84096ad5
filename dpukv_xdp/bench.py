# SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
"""Measuring: a lab (or a server elsewhere), a load phase, and runs whose every answer was checked.

Throughput and latency come from differences of the generator's counters while it runs. CPU time is
taken in a short phase of its own behind each run, because the kernel's BPF statistics cost two
clock reads a packet.
"""

import contextlib
import os
import subprocess
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import msgspec

from dpukv_xdp import lab, loader
from dpukv_xdp.codec import Endpoint
from dpukv_xdp.config import ServerConfig
from dpukv_xdp.errors import UsageError
from dpukv_xdp.lab import Lab
from dpukv_xdp.loadgen import Loop, Snapshot, latency_summary
from dpukv_xdp.machine import machine_facts
from dpukv_xdp.roles import Role, snapshot_of, start_in
from dpukv_xdp.targets import Target
from dpukv_xdp.workload import WORKLOADS, Distribution, Plan, requests_per_packet_max

CLIENT_PORT = 49152
WARM_UP_SECONDS = 0.3
LOAD_WINDOW = 16
ACCOUNTING_FRACTION = 0.1
ACCOUNTING_SECONDS_MIN = 0.3
SECONDS_MAX = 3600.0
RATE_MAX = 1e9
PROGRESS_SECONDS = 0.25

CPU_METHOD = (
    "dpu: BPF run-time statistics of kv_receive, waiting included; client: CPU time of the "
    "generating thread "
    "less dpu, because both run on its core; host: CPU time of the engine threads, which poll "
    "all the time "
    "(busy_fraction: time spent on batches)"
)

Progress = Callable[[str, float], None]
"""Told what is being done, and the fraction of it that is."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchOptions:
    """What to measure."""

    workload: str = "B"
    distribution: Distribution = "uniform"
    keys: int = 1 << 20
    key_size: int = 8
    value_size: int = 8
    requests_per_packet: int = 0
    """0 = as many as fit."""
    window: int = 64
    """Packets outstanding at most."""
    rate: float = 0.0
    """Requests a second of an open loop; 0 for a closed loop."""
    seconds: float = 10.0
    seed: int = 1
    queues: int = 1
    """Receive queues of the lab's interfaces."""
    mtu: int = 1500

    def check(self) -> None:
        """Raise UsageError for what cannot be measured."""
        if self.workload not in WORKLOADS:
            raise UsageError(
                f"there is no workload {self.workload!r}: choose one of {', '.join(WORKLOADS)}"
            )
        if not 0.1 <= self.seconds <= SECONDS_MAX:
            raise UsageError(f"{self.seconds:g} seconds are not 0.1 to {SECONDS_MAX:g}")
        if not 0 <= self.rate <= RATE_MAX:
            raise UsageError(f"a rate of {self.rate:g} requests a second is not 0 to {RATE_MAX:g}")
        Loop(self.window).check()
        most = self.requests_per_packet_max()
        if not 0 <= self.requests_per_packet <= most:
            raise UsageError(
                f"{self.requests_per_packet} requests per packet are not 1 to {most}, which is "
                f"what "
                f"fits with keys of {self.key_size} and values of {self.value_size} bytes"
            )

    def requests_per_packet_max(self) -> int:
        """Most requests that one packet can hold, and one packet of answers too."""
        return requests_per_packet_max(
            self.key_size, self.value_size, WORKLOADS[self.workload], self.mtu
        )

    def plan(self, source: Endpoint, destination: Endpoint, engines: int) -> Plan:
        """The generator's orders."""
        requests = self.requests_per_packet or self.requests_per_packet_max()
        return Plan(
            source=source,
            destination=destination,
            workload=WORKLOADS[self.workload],
            keys=self.keys,
            requests_per_packet=requests,
            key_size=self.key_size,
            value_size=self.value_size,
            distribution=self.distribution,
            engines=engines,
            seed=self.seed,
            mtu=self.mtu,
            gap_mean_ns=1e9 * requests / self.rate if self.rate else 0.0,
        )


class Bench:
    """A server and a load generator, up and ready; a context manager that takes everything down."""

    def __init__(
        self, config: ServerConfig, options: BenchOptions, target: Target | None = None
    ) -> None:
        """Without `target` the server is our own, in a lab. Raises UsageError before anything is
        built.
        """
        options.check()
        self.client_cpu = _client_cpu(config)
        self.config = replace_config(config, options)
        self.config.check()
        self.options = options
        self.target = target
        self.started_ns = time.monotonic_ns()
        self._cleanup = contextlib.ExitStack()
        self._server: Role | None = None

    def __enter__(self) -> "Bench":
        with contextlib.ExitStack() as cleanup:
            if self.target is None:
                self._start_lab(cleanup)
            else:
                self._start_client(cleanup, self.target)
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
        """Store every key through the network; seconds and counts, and how long it took to get
        here.
        """
        setup_seconds = (time.monotonic_ns() - self.started_ns) / 1e9
        plan = options.plan(self.source, self.destination, self.engines)
        result = self._load.call("load", plan=msgspec.to_builtins(plan), window=LOAD_WINDOW)
        return {**result, "setup_seconds": setup_seconds}

    def measure(self, options: BenchOptions, progress: Progress) -> dict[str, Any]:
        """One run: the result as it is printed with --json."""
        options.check()
        plan = options.plan(self.source, self.destination, self.engines)
        self._load.call("prepare", plan=msgspec.to_builtins(plan))
        loop = Loop(options.window, open_loop=options.rate > 0)
        self._load.call("begin", loop=msgspec.to_builtins(loop))
        try:
            time.sleep(WARM_UP_SECONDS)
            run = self._interval(options.seconds, progress)
            seconds = max(ACCOUNTING_SECONDS_MIN, ACCOUNTING_FRACTION * options.seconds)
            with loader.enabled_stats():
                accounting = self._interval(seconds, lambda what, fraction: None)
        finally:
            lost_at_end = self._load.call("end")
        return self._result(options, plan, run, accounting, lost_at_end)

    def _start_lab(self, cleanup: contextlib.ExitStack) -> None:
        lab.remove_stale()
        place = cleanup.enter_context(Lab.up(queues=self.options.queues, mtu=self.options.mtu))
        server = cleanup.enter_context(Role("server", start_in(place, place.server)))
        load = cleanup.enter_context(Role("load", start_in(place, place.client)))
        # Each compiles its programs: at the same time, on two cores.
        with ThreadPoolExecutor(2) as pool:
            started = pool.submit(
                server.call,
                "start",
                config=msgspec.to_builtins(self.config),
                interface=place.server.interface,
            )
            opened = pool.submit(
                load.call,
                "open",
                interface=place.client.interface,
                port=self.config.port,
                engines=self.config.engines,
                cpu=self.client_cpu,
            )
            facts = started.result()
            opened.result()
        self._server, self._load = server, load
        self.attachment = facts["attachment"]
        self.engines = self.config.engines
        self.source = Endpoint(place.client.mac, place.client.address, CLIENT_PORT)
        self.destination = Endpoint(place.server.mac, place.server.address, self.config.port)

    def _start_client(self, cleanup: contextlib.ExitStack, target: Target) -> None:
        load = cleanup.enter_context(Role("load", _start_here))
        load.call(
            "open",
            interface=target.interface,
            port=target.destination.port,
            engines=target.engines,
            cpu=self.client_cpu,
        )
        self._load = load
        self.attachment = None
        self.engines = target.engines
        self.source = target.source
        self.destination = target.destination

    def _interval(self, seconds: float, progress: Progress) -> "Interval":
        server_before = self._server.call("stats") if self._server else None
        before = snapshot_of(self._load.call("snapshot"))
        end_ns = before.at_ns + int(seconds * 1e9)
        while (left_seconds := (end_ns - time.monotonic_ns()) / 1e9) > 0:
            progress("measuring", 1 - left_seconds / seconds)
            time.sleep(min(left_seconds, PROGRESS_SECONDS))
        after = snapshot_of(self._load.call("snapshot"))
        server_after = self._server.call("stats") if self._server else None
        return Interval(before, after, server_before, server_after)

    def _result(
        self,
        options: BenchOptions,
        plan: Plan,
        run: "Interval",
        accounting: "Interval",
        lost_at_end: int,
    ) -> dict[str, Any]:
        responses = run.received("responses")
        seconds = run.seconds()
        latency = latency_summary(run.after.latency - run.before.latency)
        return {
            "design": self.config.design if self.target is None else None,
            "target": None if self.target is None else str(self.target),
            "workload": options.workload,
            "distribution": options.distribution,
            "keys": options.keys,
            "key_size": options.key_size,
            "value_size": options.value_size,
            "requests_per_packet": plan.requests_per_packet,
            "window": options.window,
            "rate": options.rate or None,
            "respond": self.config.respond,
            "seconds": round(seconds, 3),
            "throughput_mops": responses / seconds / 1e6,
            "packets_mpps": run.received("packets") / seconds / 1e6,
            "latency_us": {
                "mean": run.received("latency_sum_ns") / max(responses, 1) / 1e3,
                **latency,
            },
            "hits": run.received("hits"),
            "misses": run.received("misses"),
            "stored": run.received("stored"),
            "corrupt": run.received("corrupt"),
            "refused": run.received("refused"),
            "late": run.received("late"),
            "lost": run.sent("lost_requests") + accounting.sent("lost_requests") + lost_at_end,
            "roles": accounting.roles(),
            "cpu_method": CPU_METHOD,
            "qp_bytes_per_op": run.queue_pair_bytes_per_op(),
            "wire_bytes_per_op": {
                "request": run.sent("bytes_sent") / max(run.sent("requests_sent"), 1),
                "response": run.received("bytes") / max(responses, 1),
            },
            "server_counters": run.server_counters(),
            "xdp_mode": None if self.attachment is None else self.attachment["mode"],
            "machine": machine_facts(),
        }


@dataclass(frozen=True, slots=True)
class Interval:
    """What happened between two moments."""

    before: Snapshot
    after: Snapshot
    server_before: dict[str, Any] | None
    server_after: dict[str, Any] | None

    def seconds(self) -> float:
        """Between the generator's two snapshots."""
        return (self.after.at_ns - self.before.at_ns) / 1e9

    def received(self, name: str) -> int:
        """Growth of a field of kv_load_results."""
        return self.after.received[name] - self.before.received[name]

    def sent(self, name: str) -> int:
        """Growth of a field of kv_load_cursor."""
        return self.after.sent[name] - self.before.sent[name]

    def server_counters(self) -> dict[str, int] | None:
        """Growth of the communication engine's counters; None for a server elsewhere."""
        if self.server_before is None or self.server_after is None:
            return None
        before = self.server_before["counters"]
        return {
            name: count - before[name]
            for name, count in self.server_after["counters"].items()
            if count != before[name]
        }

    def queue_pair_bytes_per_op(self) -> dict[str, float] | None:
        """Bytes that crossed the queue pair for one request and for one response."""
        counters = self.server_counters()
        if counters is None:
            return None
        return {
            "request": counters.get("qp_request_bytes", 0)
            / max(counters.get("requests_received", 0), 1),
            "response": counters.get("qp_response_bytes", 0)
            / max(counters.get("responses_sent", 0), 1),
        }

    def roles(self) -> dict[str, dict[str, float] | None]:
        """Cores used and CPU time per operation of client, dpu and host; see CPU_METHOD."""
        operations = max(self.received("responses"), 1)
        elapsed_ns = self.after.at_ns - self.before.at_ns
        client_ns = self.after.cpu_ns - self.before.cpu_ns
        if self.server_before is None or self.server_after is None:
            return {"client": _role(client_ns, operations, elapsed_ns), "dpu": None, "host": None}
        dpu_ns = self.server_after["xdp"]["run_time_ns"] - self.server_before["xdp"]["run_time_ns"]
        engines = list(
            zip(self.server_before["engines"], self.server_after["engines"], strict=True)
        )
        host_ns = sum(after["cpu_ns"] - before["cpu_ns"] for before, after in engines)
        busy_ticks = sum(after["busy_ticks"] - before["busy_ticks"] for before, after in engines)
        tick_ns = 1e9 / self.server_after["ticks_per_second"]
        host = _role(host_ns, operations, elapsed_ns)
        host["busy_fraction"] = busy_ticks * tick_ns / elapsed_ns / len(engines)
        return {
            "client": _role(max(client_ns - dpu_ns, 0), operations, elapsed_ns),
            "dpu": _role(dpu_ns, operations, elapsed_ns),
            "host": host,
        }


def replace_config(config: ServerConfig, options: BenchOptions) -> ServerConfig:
    """The server's settings: room for the bench's keys, and engines on the first cores."""
    cpus = sorted(os.sched_getaffinity(0))
    return msgspec.structs.replace(
        config,
        items=options.keys,
        log_bytes=config.log_bytes or _log_bytes(options, config.engines),
        engine_cpus=config.engine_cpus
        or tuple(cpus[engine % len(cpus)] for engine in range(config.engines)),
    )


def _log_bytes(options: BenchOptions, engines: int) -> int:
    """Twice what the keys take: no item is overwritten while the partitions' shares are uneven."""
    return (
        2 * options.keys * ServerConfig.entry_bytes(options.key_size, options.value_size) + engines
    )


def _client_cpu(config: ServerConfig) -> int:
    """The first core that no engine has; the last one if they have all."""
    cpus = sorted(os.sched_getaffinity(0))
    engine_cpus = config.engine_cpus or cpus[: config.engines]
    return next((cpu for cpu in cpus if cpu not in engine_cpus), cpus[-1])


def _role(cpu_ns: float, operations: int, elapsed_ns: int) -> dict[str, float]:
    return {"cores": cpu_ns / elapsed_ns, "cpu_ns_per_op": cpu_ns / operations}


def _start_here(argv: list[str], **options: Any) -> subprocess.Popen[Any]:
    return subprocess.Popen(argv, **options)
