# SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
"""The cost of a hand-over between a DPU core and a host core, by primitive: the paper's Figure 9.

A row of PRIMITIVES names the program and the host loop for each direction. The DPU's end is
bpf/kv_transfer.c, the host's end _core/load/transfer.c; both read every byte that they receive.
"""

import contextlib
import errno
import os
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from dpukv_xdp._core._bench import ffi, lib
from dpukv_xdp.base.errors import DpukvError, MissingError, UsageError
from dpukv_xdp.base.machine import machine_facts
from dpukv_xdp.base.patience import patient
from dpukv_xdp.kernel import loader, nic, queues
from dpukv_xdp.kernel.attachments import register_attachment, release_attachment
from dpukv_xdp.kernel.namespaces import in_namespace
from dpukv_xdp.kernel.veth import End
from dpukv_xdp.lab import lab
from dpukv_xdp.native import probes
from dpukv_xdp.native.sockets import open_socket
from dpukv_xdp.native.threads import raise_priority
from dpukv_xdp.topology import ranges
from dpukv_xdp.wire import abi

SIZES = (2, 8, 32, 128, 512, 1024, 2048, 4096, 8192)
"""Payloads of the paper's figure, in bytes."""
OPERATIONS = 5000
"""Operations of one measurement, as in the paper."""
WARM_UP_OPERATIONS = 200
"""Operations before the measurement, which warm up caches, page tables and branch prediction."""
TIMEOUT_SECONDS = 20.0
TIMEOUT_SECONDS_PER_OPERATION = 0.0005
"""Both ends of a measurement give up after TIMEOUT_SECONDS plus this for each operation."""
MODES = {"blocking": 1, "non-blocking": abi.KV_TRANSFER_SLOTS}
"""Most operations in flight, by mode."""
SOCKET_DESCRIPTORS = 1024
FRAMES_IN_FLIGHT_MAX = 128
"""Most frames in flight over AF_XDP; a veth end drops frames beyond 256."""
BATCH_FRAMES_MAX = 16
"""Frames sent together; blocking operations send one by one."""
INTERRUPTION_NS = 500_000
"""Time above which an operation counts as interrupted by another program on one of the cores: time
slices are milliseconds, and waking a sleeper takes less than a tenth of that.
"""
RINGBUF_NO_WAKEUP = 1
"""BPF_RB_NO_WAKEUP of linux/bpf.h; 0 wakes a consumer that has read everything."""

Progress = Callable[[str, float], None]


@dataclass(frozen=True, slots=True)
class Way:
    """One direction of a primitive."""

    program: str
    """Program of the DPU's end, in bpf/kv_transfer.c."""
    end: int
    """The host's end, of enum kv_transfer_end."""
    sleeps: bool = False
    """Whether the host waits in the kernel instead of polling."""
    frames: bool = False
    """Whether payloads travel in frames through an AF_XDP socket."""
    attached: bool = False
    """Whether frames run the program, instead of BPF_PROG_RUN."""
    ringbuf_wakeup: int = RINGBUF_NO_WAKEUP


@dataclass(frozen=True, slots=True)
class Primitive:
    """A means of handing a payload over."""

    title: str
    ways: dict[str, Way | str]
    """The way for each direction, or the reason why there is none."""


DIRECTIONS = {"dpu-to-host": "dpu → host", "host-to-dpu": "host → dpu"}

_NO_RINGBUF_TO_DPU = "a BPF ring buffer goes only to the host: the other way is the mapped ring's"

PRIMITIVES = {
    "ring": Primitive(
        "mapped ring, polled",
        {
            "dpu-to-host": Way("kv_transfer_ring_send", lib.KV_TRANSFER_RING_RECEIVE),
            "host-to-dpu": Way("kv_transfer_ring_receive", lib.KV_TRANSFER_RING_SEND),
        },
    ),
    "ringbuf": Primitive(
        "BPF ring buffer, polled",
        {
            "dpu-to-host": Way("kv_transfer_ringbuf_send", lib.KV_TRANSFER_RINGBUF_RECEIVE),
            "host-to-dpu": _NO_RINGBUF_TO_DPU,
        },
    ),
    "ringbuf-epoll": Primitive(
        "BPF ring buffer, epoll",
        {
            "dpu-to-host": Way(
                "kv_transfer_ringbuf_send",
                lib.KV_TRANSFER_RINGBUF_RECEIVE,
                sleeps=True,
                ringbuf_wakeup=0,
            ),
            "host-to-dpu": _NO_RINGBUF_TO_DPU,
        },
    ),
    "af-xdp": Primitive(
        "AF_XDP, polled",
        {
            "dpu-to-host": Way(
                "kv_transfer_frame_send", lib.KV_TRANSFER_SOCKET_RECEIVE, frames=True
            ),
            "host-to-dpu": Way(
                "kv_transfer_frame_receive",
                lib.KV_TRANSFER_SOCKET_SEND,
                frames=True,
                attached=True,
            ),
        },
    ),
    "af-xdp-poll": Primitive(
        "AF_XDP, poll()",
        {
            "dpu-to-host": Way(
                "kv_transfer_frame_send", lib.KV_TRANSFER_SOCKET_RECEIVE, sleeps=True, frames=True
            ),
            "host-to-dpu": "poll() is how the host waits for frames: it sends as in AF_XDP polled",
        },
    ),
}


@dataclass(frozen=True, slots=True)
class TransferPlan:
    """The measurements to make."""

    sizes: tuple[int, ...] = SIZES
    """Payload sizes in bytes."""
    operations: int = OPERATIONS
    """Operations of each measurement."""
    primitives: tuple[str, ...] = tuple(PRIMITIVES)
    """Names from PRIMITIVES."""

    def check(self) -> None:
        """Raise UsageError for what cannot be measured."""
        for size in self.sizes:
            ranges.check("sizes", size)
        if not self.sizes:
            raise UsageError("no payload size is given: name one, such as 32")
        ranges.check("operations", self.operations)
        for name in self.primitives:
            if name not in PRIMITIVES:
                raise UsageError(
                    f"there is no primitive {name!r}: choose from {', '.join(PRIMITIVES)}"
                )

    def needs_link(self) -> bool:
        """Return whether any measurement goes through AF_XDP."""
        return any(_uses_link(name, direction) for name, direction, _ in self.cells())

    def cells(self) -> Iterator[tuple[str, str, str]]:
        """Yield primitive, direction and mode of each row of the table."""
        for primitive in self.primitives:
            for direction in DIRECTIONS:
                for mode in MODES:
                    yield primitive, direction, mode


def measure(plan: TransferPlan, transfers: "Transfers", progress: Progress) -> dict[str, Any]:
    """Measure everything in the plan and return the result.

    The result has `measurements`, one for each primitive, direction, mode and size; `missing`, the
    combinations that do not exist, with reasons; `machine` and `cores`. A measurement has bytes,
    operations, window (most operations in flight), frames (per payload; 0 without AF_XDP),
    latency_ns (mean, p50, p99: the round trip of a blocking operation, otherwise the time per
    operation), mops, mb_per_s, interruptions (count and ms of the operations that another program
    held up; the other numbers exclude them) and wrong (payloads that arrived damaged).

    Raises DpukvError when operations get lost.
    """
    cells = list(plan.cells())
    measurements, missing = [], []
    for done, (name, direction, mode) in enumerate(cells):
        primitive = PRIMITIVES[name]
        progress(f"{primitive.title}, {DIRECTIONS[direction]}, {mode}", done / len(cells))
        cell = {"primitive": name, "direction": direction, "mode": mode}
        way = primitive.ways[direction]
        if isinstance(way, str):
            missing.append({**cell, "reason": way})
            continue
        for size in plan.sizes:
            found = transfers.run(way, size, plan.operations, MODES[mode])
            measurements.append({**cell, **found})
    progress("done", 1.0)
    return {
        "operations": plan.operations,
        "sizes": list(plan.sizes),
        "primitives": {name: PRIMITIVES[name].title for name in plan.primitives},
        "cores": {"dpu": transfers.dpu_cpu, "host": transfers.host_cpu},
        "measurements": measurements,
        "missing": missing,
        "machine": machine_facts(),
    }


def build() -> loader.Build:
    """Return the DPU's end of all primitives as BPF programs."""
    ways = [way for each in PRIMITIVES.values() for way in each.ways.values()]
    programs = sorted({way.program for way in ways if isinstance(way, Way)})
    return loader.Build("transfer", "kv_transfer.c", tuple(programs), {})


class Transfers:
    """The two ends, ready to run; a context manager that takes down the lab it may have built."""

    def __init__(self, *, needs_link: bool) -> None:
        """Choose the cores; `needs_link` asks for a lab with an AF_XDP socket on the host's end.

        Raises MissingError on a machine with a single core.
        """
        cpus = sorted(os.sched_getaffinity(0))
        if len(cpus) < 2:
            raise MissingError("measuring a hand-over", "two cores, one for each end")
        self.host_cpu, self.dpu_cpu = cpus[0], cpus[1]
        self._needs_link = needs_link
        self._link: _Link | None = None
        self._cleanup = contextlib.ExitStack()

    def __enter__(self) -> "Transfers":
        with contextlib.ExitStack() as cleanup:
            programs = build().load()
            cleanup.callback(programs.close)
            self._programs = programs
            self._control = _mapped(
                programs, "kv_transfer_control", "struct kv_transfer_control", 1
            )
            self._slots = _mapped_payloads(programs, "kv_transfer_slots", abi.KV_TRANSFER_SLOTS)
            self.dpu_payloads = _mapped_payloads(
                programs, "kv_transfer_payloads", abi.KV_TRANSFER_PAYLOADS
            )
            payload_bytes = abi.KV_TRANSFER_PAYLOADS * abi.KV_TRANSFER_BYTES_MAX
            self.host_payloads = ffi.new("uint8_t[]", payload_bytes)
            lib.kv_transfer_fill(self.dpu_payloads)
            lib.kv_transfer_fill(self.host_payloads)
            if self._needs_link:
                self._link = cleanup.enter_context(_link(programs, self.dpu_cpu))
            self._cleanup = cleanup.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._cleanup.close()

    def run(self, way: Way, size: int, operations: int, window: int) -> dict[str, Any]:
        """Return one measurement: see `measure`. Raises DpukvError when operations get lost."""
        frames = -(-size // abi.KV_TRANSFER_FRAGMENT_MAX) if way.frames else 0
        if frames:
            window = min(window, FRAMES_IN_FLIGHT_MAX // frames)
        total = WARM_UP_OPERATIONS + operations
        stamps = np.zeros(total + 1, dtype=np.uint64)
        self._reset(way, size, total, window)
        transfer = self._transfer(way, size, window, stamps)
        self._run_ends(transfer, way)
        wrong = int(transfer.wrong) + int(self._control.dpu_wrong)
        tick_ns = 1e9 / lib.kv_ticks_per_second()
        times_ns = (stamps[WARM_UP_OPERATIONS:] - stamps[WARM_UP_OPERATIONS]) * tick_ns
        return {
            "bytes": size,
            "operations": operations,
            "window": window,
            "frames": frames,
            **_statistics(times_ns, size, window),
            "wrong": wrong,
        }

    def _reset(self, way: Way, size: int, operations: int, window: int) -> None:
        ffi.memmove(
            self._control, bytes(ffi.sizeof(self._control[0])), ffi.sizeof(self._control[0])
        )
        self._control.operations, self._control.bytes = operations, size
        self._control.window, self._control.ringbuf_wakeup = window, way.ringbuf_wakeup

    def _transfer(self, way: Way, size: int, window: int, stamps: npt.NDArray[np.uint64]) -> Any:
        """Return the native plan of one measurement; `stamps` gets operations + 1 times."""
        transfer = ffi.new("struct kv_transfer *")
        transfer.control, transfer.slots = self._control, self._slots
        transfer.payloads = self.host_payloads
        transfer.stamps = ffi.cast("uint64_t *", ffi.from_buffer(stamps))
        transfer.ringbuf_fd = self._programs.map_fd("kv_transfer_ringbuf")
        transfer.ringbuf_bytes = abi.KV_TRANSFER_RINGBUF_PAGES * os.sysconf("SC_PAGESIZE")
        transfer.end, transfer.sleeps = way.end, way.sleeps
        transfer.program_fd = self._programs.programs[way.program]
        if way.frames:
            assert self._link is not None, "a way with frames needs a link"
            fragment_bytes = min(size, abi.KV_TRANSFER_FRAGMENT_MAX)
            transfer.socket = self._link.socket
            transfer.interface = self._link.index
            transfer.frame_bytes = abi.SIZE("kv_transfer_frame") + fragment_bytes
            transfer.batch_frames = 1 if window == 1 else BATCH_FRAMES_MAX
        timeout_seconds = patient(TIMEOUT_SECONDS + len(stamps) * TIMEOUT_SECONDS_PER_OPERATION)
        transfer.timeout_ticks = int(timeout_seconds * lib.kv_ticks_per_second())
        return transfer

    def _run_ends(self, transfer: Any, way: Way) -> None:
        """Run both loops to their end, each on a thread pinned to its core."""
        ends = {"host": (self.host_cpu, lib.kv_transfer_run_host)}
        if not way.attached:
            ends["dpu"] = (self.dpu_cpu, lib.kv_transfer_run_dpu)
        place = contextlib.nullcontext() if self._link is None else self._link.entered()
        # A thread inherits the network namespace of the thread that starts it.
        with place, ThreadPoolExecutor(len(ends)) as pool:
            try:
                running = {
                    end: pool.submit(_run_pinned, cpu, loop, transfer)
                    for end, (cpu, loop) in ends.items()
                }
                wait(running.values(), return_when=FIRST_EXCEPTION)
            finally:
                self._control.stop = 1  # end a loop whose other end has failed
        _raise_failure(running, way)


# ---- The ends' threads


def _run_pinned(cpu: int, loop: Callable[[Any], int], transfer: Any) -> int:
    os.sched_setaffinity(0, {cpu})
    raise_priority()
    return loop(transfer)


def _raise_failure(running: dict[str, "Future[int]"], way: Way) -> None:
    """Raise DpukvError for the end that failed; the other end was only told to stop.

    A time-out concerns both ends, whichever notices it first.
    """
    failed = {end: -future.result() for end, future in running.items() if future.result() < 0}
    for end, number in sorted(failed.items(), key=lambda item: item[1] == errno.ECANCELED):
        if number == errno.ETIMEDOUT:
            raise DpukvError(
                f"{way.program}: operations got lost, or the machine is too busy: run it again"
            )
        raise DpukvError(f"{way.program}, {end} end: {os.strerror(number)}")


# ---- The link that AF_XDP needs


@dataclass(frozen=True, slots=True)
class _Link:
    """A lab's link: the host's socket on the client's end, the DPU's program on the server's."""

    place: lab.Lab
    socket: Any
    index: int
    """Index of the socket's interface."""

    def entered(self) -> contextlib.AbstractContextManager[None]:
        return in_namespace(self.place.client.namespace)


@contextlib.contextmanager
def _link(programs: loader.LoadedObject, dpu_cpu: int) -> Iterator[_Link]:
    probes.require("live frames", "qp-bench over AF_XDP")
    lab.remove_stale()
    with lab.Lab.up() as place, contextlib.ExitStack() as cleanup:
        host, dpu = place.client, place.server
        with in_namespace(host.namespace):
            index = nic.index_of(host.interface)
            socket = open_socket(host.interface, 0, SOCKET_DESCRIPTORS, "copy")
        cleanup.callback(lib.kv_socket_close, socket)
        stats = ffi.new("struct kv_socket_stats *")
        lib.kv_socket_get_stats(socket, stats)
        programs.set_fd("kv_transfer_sockets", 0, stats.fd)
        cleanup.enter_context(_attached(dpu, programs.programs["kv_transfer_frame_receive"]))
        with in_namespace(dpu.namespace):
            # Else the program would run on the core of whoever sends: the host's.
            queues.set_napi_threads(dpu.interface, True)
            queues.pin_napi_threads(dpu.interface, [dpu_cpu])
        yield _Link(place, socket, index)


@contextlib.contextmanager
def _attached(end: End, program_fd: int) -> Iterator[None]:
    """Attach an XDP program to one end of the lab's link for the duration of the block."""
    with in_namespace(end.namespace):
        attachment = register_attachment(end.interface, program_fd)
    try:
        yield
    finally:
        with in_namespace(end.namespace):
            release_attachment(attachment)


# ---- Helpers


def _statistics(times_ns: npt.NDArray[np.float64], size: int, window: int) -> dict[str, Any]:
    """Return latency and throughput from the moments between operations.

    Operations in flight together end in bursts: quantiles are those of the time of `window`
    consecutive operations, divided by their number.
    """
    took_ns = np.diff(times_ns)
    is_interruption = took_ns > INTERRUPTION_NS
    undisturbed_ns = took_ns[~is_interruption]
    if not len(undisturbed_ns):
        raise DpukvError("other programs interrupted every operation: run it on an idle machine")
    ends_ns = np.concatenate([[0.0], np.cumsum(undisturbed_ns)])
    burst = min(window, len(undisturbed_ns))
    burst_ns = (ends_ns[burst:] - ends_ns[:-burst]) / burst
    mean_ns = float(undisturbed_ns.mean())
    return {
        "latency_ns": {
            "mean": mean_ns,
            "p50": float(np.quantile(burst_ns, 0.5)),
            "p99": float(np.quantile(burst_ns, 0.99)),
        },
        "mops": 1e3 / mean_ns,
        "mb_per_s": 1e3 * size / mean_ns,
        "interruptions": {
            "count": int(is_interruption.sum()),
            "ms": float(took_ns[is_interruption].sum()) / 1e6,
        },
    }


def _uses_link(primitive: str, direction: str) -> bool:
    way = PRIMITIVES[primitive].ways[direction]
    return isinstance(way, Way) and way.frames


def _mapped(programs: loader.LoadedObject, name: str, element: str, count: int) -> Any:
    return loader.map_memory(programs.map_fd(name), element, count)


def _mapped_payloads(programs: loader.LoadedObject, name: str, count: int) -> Any:
    return _mapped(programs, name, "uint8_t", count * abi.KV_TRANSFER_BYTES_MAX)
