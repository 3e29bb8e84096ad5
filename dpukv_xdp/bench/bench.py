# SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
"""Measuring: a lab (or a server elsewhere), a load phase, and runs whose every answer is checked.

Throughput, latency and the host's CPU time are differences of counters over the run. XDP's CPU
time, and the client's without it, come from a short accounting phase after each run, because the
kernel's BPF statistics cost two clock reads per packet.
"""

import contextlib
import os
import subprocess
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import msgspec

from dpukv_xdp.bench.intervals import CPU_METHOD, STAGE_METHOD, Interval, accounting_notes, roles_of
from dpukv_xdp.bench.limits import limit_of
from dpukv_xdp.bench.options import BenchOptions, Progress, replace_config
from dpukv_xdp.bench.roles import Role, snapshot_of, start_in
from dpukv_xdp.bench.runs import LOAD_WINDOW, await_end, run_result, warm_up_seconds
from dpukv_xdp.bench.targets import Target
from dpukv_xdp.kernel import loader
from dpukv_xdp.lab import lab
from dpukv_xdp.lab.lab import Lab
from dpukv_xdp.load.loadgen import Loop
from dpukv_xdp.load.workload import Plan
from dpukv_xdp.topology import sizing, validation
from dpukv_xdp.topology.schema import ServerConfig
from dpukv_xdp.wire.codec import Endpoint

CLIENT_PORT = 49152
ACCOUNTING_FRACTION = 0.1
ACCOUNTING_SECONDS = 0.3
BALANCE_SECONDS_MAX = 0.4
HOST_SHARE_MIN = 0.02
Counted = TypeVar("Counted")


class Bench:
    """A server and a load generator, up and ready; a context manager that takes everything down."""

    def __init__(
        self, config: ServerConfig, options: BenchOptions, target: Target | None = None
    ) -> None:
        """Prepare a session on our own server in a lab, or on `target`.

        Raises UsageError before anything is built.
        """
        options.check()
        self.client_cpu = _client_cpu(config)
        self.config = replace_config(config, options)
        validation.check(self.config)
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

    def __exit__(self, *_: object) -> None:
        self._cleanup.close()

    def load_keys(self, options: BenchOptions) -> dict[str, float]:
        """Store every key through the network; return counts, the time that it took, and the
        `setup_seconds` before it.
        """
        setup_seconds = (time.monotonic_ns() - self.started_ns) / 1e9
        if self._server and self._doors_to_balance():
            self._balance_doors(self._server, options)
        plan = options.plan(self.source, self.destination, self.owners)
        result = self._load.call("load", plan=msgspec.to_builtins(plan), window=LOAD_WINDOW)
        return {**result, "setup_seconds": setup_seconds}

    def measure(self, options: BenchOptions, progress: Progress) -> dict[str, Any]:
        """Measure one run and return its result as --json prints it."""
        options.check()
        plan = options.plan(self.source, self.destination, self.owners)
        loop = Loop(options.window, open_loop=options.rate > 0)

        def count() -> tuple[Interval, Interval]:
            run = self._interval(options.seconds, progress)
            seconds = max(
                min(ACCOUNTING_SECONDS, options.seconds), ACCOUNTING_FRACTION * options.seconds
            )
            with loader.enabled_stats():
                return run, self._interval(seconds)

        with self._stalled(options.stall):
            (run, accounting), lost_at_end = self._under_load(options, plan, loop, count)
        return self._result(options, plan, run, accounting, lost_at_end)

    def _under_load(
        self, options: BenchOptions, plan: Plan, loop: Loop, count: Callable[[], Counted]
    ) -> tuple[Counted, int]:
        """Return what `count` returns while the load runs, and the requests lost at its end."""
        self._load.call("prepare", plan=msgspec.to_builtins(plan))
        self._load.call("begin", loop=msgspec.to_builtins(loop))
        try:
            time.sleep(warm_up_seconds(options.seconds))
            counted = count()
        finally:
            lost_at_end = self._load.call("end")
        return counted, lost_at_end

    @contextlib.contextmanager
    def _stalled(self, stall_ms: float) -> Iterator[None]:
        """Have the server's host cores pause within the block."""
        if not stall_ms or self._server is None:
            yield
            return
        self._server.call("set_stall", stall_ms=stall_ms)
        try:
            yield
        finally:
            self._server.call("set_stall", stall_ms=0.0)

    def _doors_to_balance(self) -> bool:
        return len(self.config.row().communication) > 1 and not self.config.host_share

    def _balance_doors(self, server: Role, options: BenchOptions) -> None:
        """Measure each door with all keys behind it, then share the keys in proportion."""
        speeds = {}
        balance_seconds = min(BALANCE_SECONDS_MAX, options.seconds)
        for door in self.config.row().communication:
            owners = tuple(server.call("give_all_to_door", door=door))
            plan = options.plan(self.source, self.destination, owners)
            self._load.call("load", plan=msgspec.to_builtins(plan), window=LOAD_WINDOW)
            run, _ = self._under_load(
                options, plan, Loop(options.window), lambda: self._interval(balance_seconds)
            )
            speeds[door] = run.received("responses") / run.seconds()
        host_share = speeds["host"] / max(sum(speeds.values()), 1.0)
        self.host_share = min(max(host_share, HOST_SHARE_MIN), 1 - HOST_SHARE_MIN)
        self.owners = tuple(server.call("set_host_share", host_share=self.host_share))

    def _start_lab(self, cleanup: contextlib.ExitStack) -> None:
        lab.remove_stale()
        place = cleanup.enter_context(Lab.up(queues=self.options.queues, mtu=self.options.mtu))
        server = cleanup.enter_context(Role("server", start_in(place, place.server)))
        load = cleanup.enter_context(Role("load", start_in(place, place.client)))
        cleanup.callback(server.finish)  # before the first of them is waited for
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

    def _interval(
        self, seconds: float, progress: Progress = lambda what, fraction: None
    ) -> Interval:
        server_before = self._server.call("stats") if self._server else None
        before = snapshot_of(self._load.call("snapshot"))
        await_end(before.at_ns + int(seconds * 1e9), seconds, progress)
        after = snapshot_of(self._load.call("snapshot"))
        server_after = self._server.call("stats") if self._server else None
        return Interval(before, after, server_before, server_after)

    def _result(
        self,
        options: BenchOptions,
        plan: Plan,
        run: Interval,
        accounting: Interval,
        lost_at_end: int,
    ) -> dict[str, Any]:
        responses = run.received("responses")
        accounting_mops = accounting.throughput_mops()
        throughput_mops = run.throughput_mops()
        roles = roles_of(run, accounting)
        result = {
            "design": self.config.design if self.target is None else None,
            "target": None if self.target is None else str(self.target),
            **run_result(
                options,
                run.received,
                run.after.latency - run.before.latency,
                requests_per_packet=plan.requests_per_packet,
                window=options.window,
                seconds=run.seconds(),
                packets=run.received("packets"),
                lost=run.sent("lost_requests") + accounting.sent("lost_requests") + lost_at_end,
            ),
            "roles": roles,
            "cpu_method": CPU_METHOD,
            "accounting_mops": accounting_mops,
            "host_core_usage": _host_core_usage(roles["host"], self.config),
            "stages_ns_per_op": accounting.stages_ns_per_op(),
            "stage_method": STAGE_METHOD,
            **self._settings(),
            "stall_ms": options.stall,
            "notes": [*self.notes, *accounting_notes(throughput_mops, accounting_mops)],
            "memory_bytes": {
                "predicted": sizing.memory_bytes(self.config),
                "server": self._server.call("memory_bytes") if self._server else None,
            },
            "qp_bytes_per_op": run.queue_pair_bytes_per_op(),
            "wire_bytes_per_op": {
                "request": run.sent("bytes_sent") / max(run.sent("requests_sent"), 1),
                "response": run.received("bytes") / max(responses, 1),
            },
            "server_counters": run.server_counters(),
            "link_counters": run.link_counters(),
            "xdp_mode": None if self.attachment is None else self.attachment["mode"],
        }
        return {**result, "limit": limit_of(result)}

    def _settings(self) -> dict[str, Any]:
        """Return the server's settings that a result needs."""
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


def _client_cpu(config: ServerConfig) -> int:
    """Return the first core without an engine or a receive queue; the last core if all have one."""
    cpus = sorted(os.sched_getaffinity(0))
    taken = {*config.placement().host_cpus, *config.dpu_cpus}
    return next((cpu for cpu in cpus if cpu not in taken), cpus[-1])


def _host_core_usage(role: dict[str, float] | None, config: ServerConfig) -> float | None:
    """Return the cores used relative to the cores of the profile's host, as in section 6.2."""
    if role is None:
        return None
    cores = config.profile_row().host_cores or os.cpu_count() or 1
    return len(config.placement().host_cpus) / cores


def _start_here(argv: list[str], **options: Any) -> subprocess.Popen[Any]:
    return subprocess.Popen(argv, **options)
