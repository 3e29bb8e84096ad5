# SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
"""Measuring: a lab (or a server elsewhere), a load phase, and runs whose every answer was checked.

Throughput, latency and the host's CPU time come from differences of counters while a run lasts.
XDP's CPU time, and the client's without it, are taken in a short phase of its own behind each run,
because the kernel's BPF statistics cost two clock reads a packet.
"""

import contextlib
import os
import subprocess
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Protocol

import msgspec

from dpukv_xdp.base.errors import UsageError
from dpukv_xdp.base.machine import machine_facts
from dpukv_xdp.bench.limits import limit_of
from dpukv_xdp.bench.roles import Role, snapshot_of, start_in
from dpukv_xdp.bench.targets import Target
from dpukv_xdp.kernel import loader
from dpukv_xdp.lab import lab
from dpukv_xdp.lab.lab import Lab
from dpukv_xdp.load.loadgen import Loop, Snapshot, latency_summary
from dpukv_xdp.load.workload import (
    GAP_MEAN_MAX_NS,
    WORKLOADS,
    Distribution,
    Plan,
    frame_bytes_max,
    requests_per_packet_max,
)
from dpukv_xdp.topology.config import ITEMS_MAX, ROOMY_LOG_BYTES, ServerConfig
from dpukv_xdp.wire import abi
from dpukv_xdp.wire.codec import Endpoint

CLIENT_PORT = 49152
WARM_UP_SECONDS = 0.3
LOAD_WINDOW = 16
ACCOUNTING_FRACTION = 0.1
ACCOUNTING_SECONDS_MIN = 0.3
ACCOUNTING_DIFFERENCE_MAX = 0.2
"""Of the run's throughput: what is farther from it in the phase for CPU time is noted."""
SECONDS_MAX = 3600.0
RATE_MAX = 1e9
PROGRESS_SECONDS = 0.25
BALANCE_SECONDS = 0.4
HOST_SHARE_MIN = 0.02

CPU_METHOD = (
    "dpu: CPU time of the interface's NAPI threads, if it has any (--dpu-cpus), else BPF run-time "
    "statistics of kv_receive, waiting included and the driver's own work not; client: CPU time "
    "of the generating thread, less dpu where that runs on top of it; both and the stages in a "
    "phase behind the run (accounting_mops); host: CPU time of the native threads in the run, "
    "which poll all the time (busy_fraction: time spent on batches); others_fraction: of client "
    "and host, the part of their cores that other programs had in the run"
)
ACCOUNTING_NOTE = (
    f"CPU time of client and dpu, and stages, are from a phase of its own whose throughput was "
    f"more than {ACCOUNTING_DIFFERENCE_MAX:.0%} away from the run's (accounting_mops)"
)
STAGE_METHOD = (
    f"one frame in {abi.KV_STAGE_FRAMES} (XDP) or one turn in 16 (host) is timed by clock, the "
    "reading of the clock included; process on the host: all batches, by the engine's own clock; "
    "receive: headers, or taking frames from the ring; wait: XDP polling for the engine; send: to "
    "the transmit ring (XDP_TX is in the driver, and not seen)"
)

RoleTimes = dict[str, float]
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
        if not 1 <= self.keys <= ITEMS_MAX:
            raise UsageError(f"{self.keys} keys are not 1 to {ITEMS_MAX}")
        if self.seed < 0:
            raise UsageError(f"a seed of {self.seed} is below 0")
        if not 0.1 <= self.seconds <= SECONDS_MAX:
            raise UsageError(f"{self.seconds:g} seconds are not 0.1 to {SECONDS_MAX:g}")
        if not 0 <= self.rate <= RATE_MAX:
            raise UsageError(f"a rate of {self.rate:g} requests a second is not 0 to {RATE_MAX:g}")
        Loop(self.window).check()
        most = self.requests_per_packet_max()  # which refuses keys and values of impossible sizes
        if self.keys > 256**self.key_size:
            raise UsageError(
                f"{self.keys} keys cannot be told apart by {self.key_size} bytes: use longer keys "
                f"or fewer"
            )
        if not 0 <= self.requests_per_packet <= most:
            raise UsageError(
                f"{self.requests_per_packet} requests per packet are not 1 to {most}, which is "
                f"what fits with keys of {self.key_size} and values of {self.value_size} bytes"
            )
        requests = self.requests_per_packet or most
        rate_min = 1e9 * requests / GAP_MEAN_MAX_NS
        if 0 < self.rate < rate_min:
            raise UsageError(
                f"{self.rate:g} requests a second, {requests} a packet, are too slow: use "
                f"{rate_min:g} or more, or fewer requests per packet"
            )

    def requests_per_packet_max(self) -> int:
        """Most requests that one packet can hold, and one packet of answers too."""
        return requests_per_packet_max(
            self.key_size, self.value_size, WORKLOADS[self.workload], self.packet_mtu()
        )

    def packet_mtu(self) -> int:
        """What a packet may use of the link's: the kernel's live frames are a bit shorter."""
        return min(self.mtu, abi.KV_LIVE_FRAME_MAX - abi.KV_ETH_BYTES)

    def frame_bytes_max(self) -> int:
        """Bytes of the longest frame that these options ask for; others may not ask for more."""
        requests = self.requests_per_packet or self.requests_per_packet_max()
        return frame_bytes_max(self.key_size, self.value_size, requests)

    def plan(self, source: Endpoint, destination: Endpoint, owners: tuple[int, ...]) -> Plan:
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
            owners=owners,
            seed=self.seed,
            mtu=self.packet_mtu(),
            gap_mean_ns=1e9 * requests / self.rate if self.rate else 0.0,
        )


class Session(Protocol):
    """A server and a load generator that are up: Bench and PeerSession."""

    def load_keys(self, options: BenchOptions) -> dict[str, float]:
        """Store every key through the network."""

    def measure(self, options: BenchOptions, progress: Progress) -> dict[str, Any]:
        """One run."""


@contextlib.contextmanager
def same_cpus() -> Iterator[set[int]]:
    """The cores of this process, as they are again behind the block: what the next one inherits."""
    cpus = os.sched_getaffinity(0)
    try:
        yield cpus
    finally:
        os.sched_setaffinity(0, cpus)


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
        self.source: Endpoint
        self.destination: Endpoint
        self.owners: tuple[int, ...]
        self.host_share: float | None = config.host_share or None

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
        if self._server and self._doors_to_balance():
            self._balance_doors(self._server, options)
        plan = options.plan(self.source, self.destination, self.owners)
        result = self._load.call("load", plan=msgspec.to_builtins(plan), window=LOAD_WINDOW)
        return {**result, "setup_seconds": setup_seconds}

    def measure(self, options: BenchOptions, progress: Progress) -> dict[str, Any]:
        """One run: the result as it is printed with --json."""
        options.check()
        plan = options.plan(self.source, self.destination, self.owners)
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

    def _doors_to_balance(self) -> bool:
        return len(self.config.row().communication) > 1 and not self.config.host_share

    def _balance_doors(self, server: Role, options: BenchOptions) -> None:
        """Measure each door with all keys behind it, then share the keys by what they can do."""
        speeds = {}
        loop = msgspec.to_builtins(Loop(options.window))
        for door in self.config.row().communication:
            owners = tuple(server.call("give_all_to_door", door=door))
            plan = msgspec.to_builtins(options.plan(self.source, self.destination, owners))
            self._load.call("load", plan=plan, window=LOAD_WINDOW)
            self._load.call("prepare", plan=plan)
            self._load.call("begin", loop=loop)
            try:
                time.sleep(WARM_UP_SECONDS)
                run = self._interval(BALANCE_SECONDS, lambda what, fraction: None)
            finally:
                self._load.call("end")
            speeds[door] = run.received("responses") / run.seconds()
        host_share = speeds["host"] / max(sum(speeds.values()), 1.0)
        self.host_share = min(max(host_share, HOST_SHARE_MIN), 1 - HOST_SHARE_MIN)
        self.owners = tuple(server.call("set_host_share", host_share=self.host_share))

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
                engines=self.config.endpoint_count(),
                cpu=self.client_cpu,
                frame_bytes_max=self.options.frame_bytes_max(),
            )
            facts = started.result()
            opened.result()
        self._server, self._load = server, load
        self.attachment = facts["attachment"]
        self.owners = tuple(facts["endpoint"]["owners"])
        self.notes = facts["notes"]
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
            frame_bytes_max=self.options.frame_bytes_max(),
        )
        self._load = load
        self.attachment = None
        self.owners = target.owners
        self.notes = []
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
        accounting_mops = accounting.throughput_mops()
        throughput_mops = run.throughput_mops()
        roles = roles_of(run, accounting)
        latency = latency_summary(run.after.latency - run.before.latency)
        result = {
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
            "seconds": round(run.seconds(), 3),
            "throughput_mops": throughput_mops,
            "packets_mpps": run.received("packets") / run.seconds() / 1e6,
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
            "roles": roles,
            "cpu_method": CPU_METHOD,
            "accounting_mops": accounting_mops,
            "host_core_usage": _host_core_usage(roles["host"], self.config),
            "stages_ns_per_op": accounting.stages_ns_per_op(),
            "stage_method": STAGE_METHOD,
            **self._settings(),
            "notes": [*self.notes, *accounting_notes(throughput_mops, accounting_mops)],
            "memory_bytes": {
                "predicted": self.config.memory_bytes(),
                "server": self._server.call("memory_bytes") if self._server else None,
            },
            "qp_bytes_per_op": run.queue_pair_bytes_per_op(),
            "wire_bytes_per_op": {
                "request": run.sent("bytes_sent") / max(run.sent("requests_sent"), 1),
                "response": run.received("bytes") / max(responses, 1),
            },
            "server_counters": run.server_counters(),
            "xdp_mode": None if self.attachment is None else self.attachment["mode"],
            "machine": machine_facts(),
        }
        return {**result, "limit": limit_of(result)}

    def _settings(self) -> dict[str, Any]:
        """Of the server, as far as a result needs them."""
        config, profile = self.config, self.config.profile_row()
        return {
            "respond": config.respond,
            "profile": config.profile,
            "burst_requests": profile.burst_requests,
            "buffer_bytes": {
                "request": profile.request_buffer_bytes,
                "response": profile.response_buffer_bytes,
            },
            "emulation": profile.label(),
            "transport": config.transport,
            "frames": config.frames,
            "host_share": self.host_share if len(config.row().communication) > 1 else None,
            "access": config.access_mode(),
            "store": config.store,
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

    def throughput_mops(self) -> float:
        """Million requests answered a second."""
        return self.received("responses") / self.seconds() / 1e6

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

    def client_ns(self) -> int:
        """CPU time of the generating thread, with the softirqs that ran on top of it."""
        return self.after.cpu_ns - self.before.cpu_ns

    def communication(self) -> tuple[RoleTimes, RoleTimes | None]:
        """Cores and CPU time per operation of client and dpu, while BPF statistics were on."""
        operations = max(self.received("responses"), 1)
        elapsed_ns = self.after.at_ns - self.before.at_ns
        if self.server_before is None or self.server_after is None:
            return _role(self.client_ns(), operations, elapsed_ns), None
        dpu_ns, dpu_is_apart = _dpu_ns(self.server_before, self.server_after)
        client_ns = self.client_ns() - (0 if dpu_is_apart else dpu_ns)
        return (
            _role(max(client_ns, 0), operations, elapsed_ns),
            _role(dpu_ns, operations, elapsed_ns),
        )

    def host(self) -> RoleTimes | None:
        """The same of the host, and how busy it was; None for a server elsewhere."""
        if self.server_before is None or self.server_after is None:
            return None
        before, after = self.server_before, self.server_after
        elapsed_ns = self.after.at_ns - self.before.at_ns
        threads = len(after["hosts"])
        cpu_ns = _growth(before["hosts"], after["hosts"], "cpu_ns")
        busy_ticks = _growth(before["engines"], after["engines"], "busy_ticks")
        busy_ns = busy_ticks * 1e9 / after["ticks_per_second"]
        return {
            **_role(cpu_ns, max(self.received("responses"), 1), elapsed_ns),
            "busy_fraction": busy_ns / elapsed_ns / max(threads, 1),
            "others_fraction": _others_fraction(cpu_ns, elapsed_ns * threads),
        }

    def stages_ns_per_op(self) -> dict[str, dict[str, float]] | None:
        """Time of one request in each stage, by side; see STAGE_METHOD."""
        if self.server_before is None or self.server_after is None:
            return None
        stages = {}
        for side, after in self.server_after["stages"].items():
            before = self.server_before["stages"][side]
            requests = after["requests"] - before["requests"]
            stages[side] = {
                stage.name.lower(): (after[stage.name.lower()] - before[stage.name.lower()])
                / requests
                if requests
                else 0.0
                for stage in abi.Stage
            }
        engines = self.server_before["engines"], self.server_after["engines"]
        processed = _growth(*engines, "requests")
        if processed:
            busy_ns = _growth(*engines, "busy_ticks") * 1e9 / self.server_after["ticks_per_second"]
            stages["host"]["process"] = busy_ns / processed
        return stages


def roles_of(run: Interval, accounting: Interval) -> dict[str, RoleTimes | None]:
    """Cores used and CPU time per operation of client, dpu and host; see CPU_METHOD. The
    generating thread polls too: what it did not get of its core, other programs had.
    """
    client, dpu = accounting.communication()
    client["others_fraction"] = _others_fraction(run.client_ns(), round(run.seconds() * 1e9))
    return {"client": client, "dpu": dpu, "host": run.host()}


def accounting_notes(throughput_mops: float, accounting_mops: float) -> list[str]:
    """What has to be said where the phase for CPU time was far from the run."""
    away_mops = abs(accounting_mops - throughput_mops)
    return [ACCOUNTING_NOTE] if away_mops > ACCOUNTING_DIFFERENCE_MAX * throughput_mops else []


def _others_fraction(cpu_ns: int, polled_ns: int) -> float:
    """Of the time that threads would have polled, what they did not get."""
    return max(1 - cpu_ns / polled_ns, 0.0) if polled_ns else 0.0


def _growth(before: list[dict[str, Any]], after: list[dict[str, Any]], name: str) -> int:
    return sum(int(b[name]) - int(a[name]) for a, b in zip(before, after, strict=True))


def _dpu_ns(before: dict[str, Any], after: dict[str, Any]) -> tuple[int, bool]:
    """CPU time of the DPU's cores, and whether the client's own does not contain it."""
    if after["napi"]:
        threads = before["napi"] or {}
        gained = (
            thread["cpu_ns"] - threads.get(pid, thread)["cpu_ns"]
            for pid, thread in after["napi"].items()
        )
        return sum(gained), True
    return after["xdp"]["run_time_ns"] - before["xdp"]["run_time_ns"], False


def replace_config(config: ServerConfig, options: BenchOptions) -> ServerConfig:
    """The server's settings with room for the bench's keys.

    A log that has no room for all of them twice would lose some to others that GETs move to its
    head: there nothing moves.
    """
    items_bytes = options.keys * config.item_bytes(options.key_size, options.value_size)
    log_bytes = config.log_bytes or items_bytes + min(items_bytes, ROOMY_LOG_BYTES)
    is_roomy = log_bytes >= 2 * items_bytes
    return msgspec.structs.replace(
        config,
        items=options.keys,
        log_bytes=log_bytes,
        move_to_head=config.move_to_head if is_roomy else 1.0,
    )


def _client_cpu(config: ServerConfig) -> int:
    """The first core without an engine and without a receive queue; the last one if all have."""
    cpus = sorted(os.sched_getaffinity(0))
    taken = {*config.placement().host_cpus, *config.dpu_cpus}
    return next((cpu for cpu in cpus if cpu not in taken), cpus[-1])


def _host_core_usage(role: dict[str, float] | None, config: ServerConfig) -> float | None:
    """The paper's: cores used of the cores that the profile's host has (section 6.2)."""
    if role is None:
        return None
    cores = config.profile_row().host_cores or os.cpu_count() or 1
    return len(config.placement().host_cpus) / cores


def _role(cpu_ns: float, operations: int, elapsed_ns: int) -> dict[str, float]:
    return {"cores": cpu_ns / elapsed_ns, "cpu_ns_per_op": cpu_ns / operations}


def _start_here(argv: list[str], **options: Any) -> subprocess.Popen[Any]:
    return subprocess.Popen(argv, **options)
