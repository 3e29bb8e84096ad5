# SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
"""The load generator: prepared frames sent as live frames by one BPF program, answers checked by
another.

Python prepares, starts, watches and stops; nothing of it runs per packet.
"""

import contextlib
import time
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from dpukv_xdp._core._native import lib
from dpukv_xdp.base.errors import DpukvError
from dpukv_xdp.kernel import loader, nic
from dpukv_xdp.kernel.attachments import register_attachment, release_attachment
from dpukv_xdp.load import workload
from dpukv_xdp.load.workload import Plan
from dpukv_xdp.native import probes
from dpukv_xdp.native.senders import LIVE_BATCH_FRAMES, LiveFrames, catch_stop_signal
from dpukv_xdp.native.threads import NativeThread
from dpukv_xdp.topology import ranges
from dpukv_xdp.wire import abi

TEMPLATES = workload.STREAM_PACKETS_MAX
"""Room for prepared frames."""
TIMEOUT_NS = 200_000_000
"""Time after which an unanswered packet is lost; far longer than any pause of an engine."""
LOAD_TRIES = 3
"""Attempts at each part of the load phase when answers are lost."""


@dataclass(frozen=True, slots=True)
class Loop:
    """The pace of packets."""

    window: int
    """Most packets outstanding."""
    open_loop: bool = False
    """Send at the templates' gaps regardless of answers; latency counts from the intended start."""

    def check(self) -> None:
        """Raise UsageError for a window that the generator cannot keep."""
        ranges.check("window", self.window)


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The generator's counters at one moment; differences of two are a measurement."""

    at_ns: int
    """Time by CLOCK_MONOTONIC."""
    sent: dict[str, int]
    """Fields of kv_load_cursor."""
    received: dict[str, int]
    """Fields of kv_load_results, summed over cores."""
    latency: npt.NDArray[np.uint64]
    """Histogram of requests by kv_histogram_bucket()."""
    cpu_ns: int
    """CPU time of the generating thread, with the softirqs that ran on top of it."""
    run_time_ns: int
    """Run time of both programs while BPF statistics are on."""


def build(
    name: str, port: int, engines: int, frame_bytes_max: int = abi.KV_TEMPLATE_FRAME
) -> loader.Build:
    """Return the generator's BPF programs for a server's ports and the longest prepared frame."""
    settings = {
        "KV_PORT": port,
        "KV_PORT_COUNT": engines,
        "KV_TEMPLATES": TEMPLATES,
        "KV_TEMPLATE_ROOM": workload.template_room(frame_bytes_max),
    }
    return loader.Build(name, "kv_load.c", ("kv_generate", "kv_collect"), settings)


class LoadGenerator:
    """Programs on one interface of the client; a context manager that detaches at the end."""

    def __init__(
        self,
        interface: str,
        *,
        port: int,
        engines: int,
        cpu: int,
        frame_bytes_max: int = abi.KV_TEMPLATE_FRAME,
    ) -> None:
        """Prepare a generator on core `cpu`; on a veth pair the server's XDP runs there, too.

        A smaller `frame_bytes_max` makes plans with short frames faster, because prepared frames
        then take less memory.
        """
        self._build = build("load", port, engines, frame_bytes_max)
        self._template_dtype = workload.template_dtype(self._build.settings["KV_TEMPLATE_ROOM"])
        self.interface = nic.find(interface)
        self.cpu = cpu
        self._thread: NativeThread | None = None
        self._cleanup = contextlib.ExitStack()

    def __enter__(self) -> "LoadGenerator":
        probes.require("live frames", "the load generator")
        with contextlib.ExitStack() as cleanup:
            programs = self._build.load()
            cleanup.callback(programs.close)
            self._programs = programs
            self.templates = loader.map_array(
                programs.map_fd("kv_templates"), self._template_dtype, TEMPLATES
            )
            self._control = _map(programs, "kv_load_control", "kv_load_control", 1)[0]
            self._cursor = _map(programs, "kv_load_cursor", "kv_load_cursor", 1)[0]
            self._slots = _map(programs, "kv_load_slots", "kv_load_slot", abi.KV_WINDOW_MAX)
            attachment = register_attachment(self.interface.name, programs.programs["kv_collect"])
            cleanup.callback(release_attachment, attachment)
            self.attachment = attachment
            catch_stop_signal()
            cleanup.callback(self.abort)
            self._cleanup = cleanup.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._cleanup.close()

    def load(self, plan: Plan, window: int) -> dict[str, float]:
        """Store all of the plan's keys through the network; return times and counts."""
        start = self.snapshot()
        first_key, lost = 0, 0
        while first_key < plan.keys:
            prepared = workload.load_templates(plan, self.templates, first_key)
            for _ in range(LOAD_TRIES):
                lost_before = int(self._cursor["lost_requests"])
                self.begin(plan, Loop(window), prepared.templates, packets=prepared.templates)
                self._wait_until_sent(prepared.templates)
                self.end()
                lost_now = int(self._cursor["lost_requests"]) - lost_before
                if lost_now == 0:
                    break
            lost += lost_now
            first_key += prepared.requests
        end = self.snapshot()
        return {
            "keys": plan.keys,
            "seconds": (end.at_ns - start.at_ns) / 1e9,
            "stored": min(end.received["stored"] - start.received["stored"], plan.keys),
            "lost": lost,
            "corrupt": end.received["corrupt"] - start.received["corrupt"],
            "refused": end.received["refused"] - start.received["refused"],
        }

    def begin(self, plan: Plan, loop: Loop, templates: int, packets: int = 0) -> None:
        """Start sending the first `templates` frames over and over, or `packets` in all."""
        loop.check()
        if self._thread is not None:
            raise DpukvError("the generator runs already: end it first")
        control = self._control
        control["window"] = loop.window
        control["template_first"] = 0
        control["template_count"] = templates
        control["packets_limit"] = int(self._cursor["packets_sent"]) + packets if packets else 0
        control["timeout_ns"] = TIMEOUT_NS
        control["open_loop"] = loop.open_loop
        control["value_bytes"] = plan.value_size
        self._cursor["template_next"] = 0
        self._cursor["next_start_ns"] = 0
        self._cursor["slot"] = 0
        control["state"] = abi.KV_LOAD_RUNNING
        batch_frames = min(LIVE_BATCH_FRAMES, loop.window)
        program_fd = self._programs.programs["kv_generate"]
        live = LiveFrames(program_fd, self.interface.index, batch_frames)
        thread = NativeThread("generator", self.cpu, live.run, live.stop)
        thread.start(lambda: None)
        self._thread = thread

    def end(self) -> int:
        """Stop sending, wait for outstanding answers, and return the number of requests lost."""
        self._control["state"] = abi.KV_LOAD_DRAINING
        deadline_ns = time.monotonic_ns() + 2 * TIMEOUT_NS
        while self._slots["busy"].any() and time.monotonic_ns() < deadline_ns:
            time.sleep(0.0005)
        try:
            self._stop_thread()
        finally:
            lost = self._give_up_unanswered()
        return lost

    def abort(self) -> None:
        """Stop sending at once, without waiting for answers."""
        try:
            self._stop_thread()
        finally:
            self._slots["busy"] = 0

    def _give_up_unanswered(self) -> int:
        unanswered = self._slots["template_index"][self._slots["busy"] != 0]
        lost = int(self.templates["request_count"][unanswered].sum())
        self._cursor["lost_requests"] += lost
        self._cursor["lost_packets"] += len(unanswered)
        self._slots["busy"] = 0
        return lost

    def snapshot(self) -> Snapshot:
        """Return the present counters."""
        results = self._programs.read_array("kv_load_results", abi.dtype("kv_load_results"))[0]
        cursor = self._cursor.copy()
        at_ns = time.monotonic_ns()
        received = {
            name: int(results[name].max() if name.endswith("_max_ns") else results[name].sum())
            for name in results.dtype.names
            if name != "latency"
        }
        return Snapshot(
            at_ns=at_ns,
            sent={name: int(cursor[name]) for name in cursor.dtype.names},
            received=received,
            latency=results["latency"].sum(axis=0, dtype=np.uint64),
            cpu_ns=self._thread.cpu_ns() if self._thread else 0,
            run_time_ns=sum(loader.program_stats(fd)[0] for fd in self._programs.programs.values()),
        )

    def _wait_until_sent(self, packets: int) -> None:
        limit = int(self._control["packets_limit"])
        while int(self._cursor["packets_sent"]) < limit:
            if self._thread is None or not self._thread.is_alive():
                raise DpukvError(f"the generator ended before it had sent {packets} packets")
            time.sleep(0.001)

    def _stop_thread(self) -> None:
        self._control["state"] = abi.KV_LOAD_STOPPED
        thread, self._thread = self._thread, None
        if thread is not None:
            thread.stop()


def latency_summary(latency: npt.NDArray[np.uint64]) -> dict[str, float]:
    """Return the quantiles of a histogram of requests, in us; zeros if it is empty."""
    total = int(latency.sum())
    if total == 0:
        return dict.fromkeys(("p50", "p90", "p99", "p999", "max"), 0.0)
    cumulative = np.cumsum(latency)
    last = int(np.flatnonzero(latency)[-1])
    summary = {}
    for name, fraction in (("p50", 0.5), ("p90", 0.9), ("p99", 0.99), ("p999", 0.999)):
        bucket = int(np.searchsorted(cumulative, fraction * total))
        summary[name] = _bucket_middle_us(min(bucket, last))
    summary["max"] = lib.kv_latency_floor_ns(last + 1) / 1e3
    return summary


def _bucket_middle_us(bucket: int) -> float:
    floor_ns = lib.kv_latency_floor_ns(bucket)
    return float(floor_ns + lib.kv_latency_floor_ns(bucket + 1)) / 2e3


def _map(
    programs: loader.LoadedObject, name: str, struct_name: str, count: int
) -> npt.NDArray[np.void]:
    return loader.map_array(programs.map_fd(name), abi.dtype(struct_name), count)
