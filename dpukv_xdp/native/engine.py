# SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
"""The host's native threads: host cores with their engines of both kinds, and the senders of the
communication cores.

Python makes, pins, watches and stops them; the loops are C and run without the GIL.
"""

import contextlib
import errno
import os
import signal
import threading
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from dpukv_xdp._core._native import ffi, lib
from dpukv_xdp.base.errors import DpukvError, MissingError
from dpukv_xdp.base.patience import patient
from dpukv_xdp.wire import abi

ENGINE_NICE = -20
SENDER_PRIORITY = 10
STOP_TIMEOUT_SECONDS = 5.0
LIVE_BATCH_FRAMES = 16
"""Live frames that leave together."""
REPEAT_MAX = 0xFFFFFFFF
"""Turns of one BPF_PROG_RUN call; a call is started again when it has used them up."""
STOP_SIGNAL = signal.SIGUSR1
"""Ends a BPF_PROG_RUN call."""


class NativeThread:
    """A pinned thread that runs one native loop until it is told to stop."""

    def __init__(
        self, name: str, cpu: int, loop: Callable[[], int], stop: Callable[[], None]
    ) -> None:
        self.cpu = cpu
        self._loop = loop
        self._stop = stop
        self._status = 0
        self._clock: int | None = None
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def start(self, prepare: Callable[[], None]) -> None:
        """Start it, pinned; `prepare` runs on the thread first and may set its priority.

        Raises DpukvError if the kernel does not let it run there.
        """
        self._prepare = prepare
        self._thread.start()
        self._ready.wait()
        if self._status < 0:
            self._thread.join()
            raise DpukvError(
                f"{self._thread.name} cannot run on core {self.cpu}: {os.strerror(-self._status)}"
            )

    def stop(self) -> None:
        """Tell the loop to end and wait for it. Raises DpukvError if it does not or has failed."""
        self._stop()
        timeout_seconds = patient(STOP_TIMEOUT_SECONDS)
        self._thread.join(timeout_seconds)
        if self._thread.is_alive():
            raise DpukvError(f"{self._thread.name} did not stop within {timeout_seconds:g} s")
        if self._status < 0:
            raise DpukvError(f"{self._thread.name} failed: {os.strerror(-self._status)}")

    def is_alive(self) -> bool:
        """Whether the loop still runs."""
        return self._thread.is_alive()

    def cpu_ns(self) -> int:
        """CPU time that the thread has used; softirqs that interrupted it are in it."""
        if self._clock is None or not self._thread.is_alive():
            return 0
        return time.clock_gettime_ns(self._clock)

    def _run(self) -> None:
        try:
            os.sched_setaffinity(0, {self.cpu})
            self._prepare()
            self._clock = time.pthread_getcpuclockid(threading.get_ident())
        except OSError as error:
            self._status = -(error.errno or errno.EINVAL)
            return
        finally:
            self._ready.set()
        self._status = self._loop()


class Store:
    """The native store of one partition, or of several engines together."""

    def __init__(self, options: Any, partition: int = 0) -> None:
        """`options` is a struct kv_store_options. Raises MissingError when its memory cannot be
        had.
        """
        self.partition = partition
        self.handle = lib.kv_store_create(options)
        if self.handle == ffi.NULL:
            raise MissingError(
                f"a store of {options.item_count} items and a log of {options.log_bytes} bytes",
                f"more memory ({os.strerror(ffi.errno)}): ask for fewer items or a smaller log",
            )

    def share(self) -> "Store":
        """Another handle on the same memory, for another engine's thread."""
        shared = object.__new__(Store)
        shared.partition = self.partition
        shared.handle = lib.kv_store_share(self.handle)
        if shared.handle == ffi.NULL:
            raise MissingError("sharing a store", f"more memory ({os.strerror(ffi.errno)})")
        return shared

    def set_reader(self, is_reader: bool) -> None:
        """Whether this handle only reads now, as another's engine owns the partition."""
        lib.kv_store_set_reader(self.handle, is_reader)

    def close(self) -> None:
        """Give the memory back, with the last handle."""
        lib.kv_store_destroy(self.handle)
        self.handle = ffi.NULL

    def stats(self) -> dict[str, int]:
        """The handle's counters."""
        if self.handle == ffi.NULL:
            return {}
        stats = ffi.new("struct kv_store_stats *")
        lib.kv_store_get_stats(self.handle, stats)
        return _fields(stats)


class ProcessingEngine:
    """One native engine: its stores, and the queue pairs that it serves."""

    def __init__(
        self,
        *,
        engine_id: int,
        cpu: int,
        stores: list[Store],
        partitions: Any,
        takes_all: bool,
        response_bytes_max: int,
        flush_after_us: float = 30.0,
        transfer_per_request: bool = False,
        bus_latency_us: float = 0.0,
        bus_gbytes_per_s: float = 0.0,
        ring: Any = ffi.NULL,
    ) -> None:
        """`stores` has this engine's handle on each partition's; `partitions` is a struct
        kv_partition_table whose owners may change, and `takes_all` says not to look at them; `ring`
        is a struct kv_ringbuf that requests come from instead of queue pairs.
        """
        ticks_per_us = lib.kv_ticks_per_second() / 1e6
        engine = ffi.new("struct kv_engine *")
        engine.partitions = partitions
        engine.partition_count = len(stores)
        engine.takes_all = takes_all
        for partition, store in enumerate(stores):
            engine.stores[partition] = store.handle
        engine.ring = ring
        engine.id, engine.cpu = engine_id, cpu
        engine.response_bytes_max = response_bytes_max
        engine.flush_after_ticks = int(flush_after_us * ticks_per_us)
        engine.transfer_per_request = transfer_per_request
        engine.bus.latency_ticks = int(bus_latency_us * ticks_per_us)
        if bus_gbytes_per_s:
            engine.bus.ticks_per_mib = int(
                ticks_per_us * 1e6 * (1 << 20) / (bus_gbytes_per_s * 1e9)
            )
        self.native = engine
        self.engine_id = engine_id
        self.cpu = cpu
        self.stores = stores

    def add_pairs(self, pairs: Any, count: int, senders: Any = ffi.NULL) -> None:
        """Serve `count` queue pairs of a C array; `senders` is as long, or NULL where the other end
        polls.
        """
        first = self.native.pair_count
        for index in range(count):
            state = self.native.pairs[first + index]
            state.pair = pairs + index
            if senders != ffi.NULL:
                state.sender = senders + index
        self.native.pair_count = first + count

    def stats(self) -> dict[str, Any]:
        """The engine's and its store's counters."""
        bus = self.native.bus
        return {
            **_fields(self.native.stats),
            "engine": self.engine_id,
            "cpu": self.cpu,
            "bus_transfers": list(bus.transfers),
            "bus_bytes": list(bus.bytes),
        }

    def partition_requests(self) -> npt.NDArray[np.uint64]:
        """Requests for each partition so far; all 0 where there is only one."""
        count = self.native.partition_count
        return np.array(list(self.native.partition_requests[0:count]), dtype=np.uint64)


class Communicator:
    """A communication engine on the host: one source of frames, and a queue pair with each
    engine.
    """

    def __init__(
        self, *, engines: int, port: int, address: int, send_after_parse: bool, noted: bool = False
    ) -> None:
        """`address` in network order, 0 for any. Raises MissingError without memory."""
        self.native = lib.kv_communicator_create(engines)
        if self.native == ffi.NULL:
            raise MissingError("a host communication engine", os.strerror(ffi.errno))
        self.native.first_port, self.native.address = port, address
        self.native.send_after_parse = send_after_parse
        self.native.noted = noted

    def pair_of(self, engine: int) -> Any:
        """Its queue pair with an engine, as a C pointer."""
        return self.native.pairs + engine

    def own_queues(self) -> npt.NDArray[np.void]:
        """The private sides with the counters: a copy, shape [engines]."""
        count = self.native.engines
        buffer = ffi.buffer(self.native.queues, count * abi.SIZE("kv_dpu_queue"))
        return np.frombuffer(bytes(buffer), abi.dtype("kv_dpu_queue"))

    def close(self) -> None:
        """Give its memory back."""
        lib.kv_communicator_destroy(self.native)


class HostCore:
    """A host core and the engines of both kinds that it runs, in one polling loop."""

    def __init__(self, cpu: int) -> None:
        self.cpu = cpu
        self.native = ffi.new("struct kv_host *")
        self.native.cpu = cpu
        self._parts: list[Any] = []  # cffi keeps nothing alive that only C points to
        self.thread = NativeThread(
            f"host core {cpu}",
            cpu,
            lambda: int(lib.kv_host_run(self.native)),
            lambda: setattr(self.native, "stop", 1),
        )

    def add_engine(self, engine: ProcessingEngine) -> None:
        """Run a processing engine here."""
        self._parts.append(engine)
        self.native.engines[self.native.engine_count] = engine.native
        self.native.engine_count += 1

    def add_communicator(self, communicator: Communicator) -> None:
        """Run a communication engine here."""
        self._parts.append(communicator)
        self.native.communicators[self.native.communicator_count] = communicator.native
        self.native.communicator_count += 1

    def start(self) -> None:
        """Begin to poll."""
        self.thread.start(raise_priority)

    def stop(self) -> None:
        """End; the stores stay readable."""
        self.thread.stop()

    def stats(self) -> dict[str, Any]:
        """What the loop has used."""
        return {
            "cpu": self.cpu,
            "cpu_ns": self.thread.cpu_ns(),
            "rounds": int(self.native.rounds),
            "total_ticks": int(self.native.total_ticks),
        }


class LiveSender:
    """The sender in one long call: a thread that runs kv_send over live frames until stopped."""

    def __init__(self, *, cpu: int, program_fd: int, interface_index: int) -> None:
        self.live = LiveFrames(program_fd, interface_index, LIVE_BATCH_FRAMES)
        self.thread = NativeThread("live sender", cpu, self.live.run, self.live.stop)

    def start(self) -> None:
        """Begin to send."""
        self.thread.start(lambda: None)

    def stop(self) -> None:
        """End."""
        self.thread.stop()


class LiveFrames:
    """BPF_PROG_RUN over live frames in calls as long as the kernel allows, until stopped."""

    def __init__(self, program_fd: int, interface_index: int, batch_frames: int) -> None:
        self._arguments = (
            program_fd,
            interface_index,
            abi.KV_LIVE_FRAME_MAX,
            REPEAT_MAX,
            batch_frames,
        )
        self._stopping = False
        self._thread_id = 0

    def run(self) -> int:
        """On the thread that generates: 0, or a negative errno."""
        self._thread_id = threading.get_ident()
        status = 0
        while not self._stopping and status in (0, -errno.EINTR):
            status = lib.kv_bpf_run_live(*self._arguments)
        self._thread_id = 0
        return 0 if status == -errno.EINTR else status

    def stop(self) -> None:
        """Make run() return. The kernel looks for signals between batches only, and one may arrive
        before the call: repeat it.
        """
        self._stopping = True
        deadline = time.monotonic() + patient(STOP_TIMEOUT_SECONDS)
        while self._thread_id and time.monotonic() < deadline:
            with contextlib.suppress(ProcessLookupError):
                signal.pthread_kill(self._thread_id, STOP_SIGNAL)
            time.sleep(0.02)


def catch_stop_signal() -> None:
    """Let STOP_SIGNAL interrupt system calls instead of ending the process: call it on the main
    thread before LiveFrames.run().
    """
    signal.signal(STOP_SIGNAL, lambda number, frame: None)


class Senders:
    """One sleeping thread for each communication core; see sender.c."""

    def __init__(
        self,
        *,
        cpus: int,
        engines: int,
        program_fd: int,
        socket_fd: int,
        polled_engines: int = 0,
    ) -> None:
        """`polled_engines`: the first ones, if they are in XDP; the others wake their sender."""
        self.array = ffi.new("struct kv_sender[]", cpus)
        self._threads: list[NativeThread] = []
        for cpu in range(cpus):
            sender = ffi.addressof(self.array, cpu)
            sender.cpu, sender.cpus, sender.engines = cpu, cpus, engines
            sender.program_fd, sender.socket_fd = program_fd, socket_fd
            sender.polled_engines = polled_engines

    def start(self) -> None:
        """Start a sender on each core that this process may use."""
        for cpu in sorted(os.sched_getaffinity(0)):
            if cpu < len(self.array):
                sender = ffi.addressof(self.array, cpu)
                thread = NativeThread(
                    f"sender {cpu}",
                    cpu,
                    partial(lib.kv_sender_run, sender),
                    partial(_stop_sender, sender),
                )
                thread.start(_become_realtime)
                self._threads.append(thread)

    def stop(self) -> None:
        """End the threads."""
        for thread in self._threads:
            thread.stop()
        self._threads.clear()

    def stats(self) -> dict[str, int]:
        """Counters over all senders."""
        names = ("frames_sent", "send_failures", "run_failures")
        return {name: sum(getattr(sender, name) for sender in self.array) for name in names}


def _stop_sender(sender: Any) -> None:
    sender.stop = 1
    lib.kv_sender_wake(sender)


def raise_priority() -> None:
    """An engine that is preempted makes the communication engine wait in vain; not being allowed is
    no failure.
    """
    with contextlib.suppress(PermissionError):
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), ENGINE_NICE)


def _become_realtime() -> None:
    """A sender sleeps nearly always and must not queue behind a spinning engine or generator when
    it wakes.
    """
    with contextlib.suppress(PermissionError):
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(SENDER_PRIORITY))


def _fields(struct: Any) -> dict[str, int]:
    kind = ffi.typeof(struct)
    fields = (kind.item if kind.kind == "pointer" else kind).fields
    return {name: int(getattr(struct, name)) for name, _ in fields}
