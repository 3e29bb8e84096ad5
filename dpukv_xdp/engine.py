# SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
"""The host's native threads: processing engines, and the senders of the communication cores.

Python makes, pins, watches and stops them; the loops are C and run without the GIL.
"""

import contextlib
import errno
import os
import threading
import time
from collections.abc import Callable
from functools import partial
from typing import Any

from dpukv_xdp._core._native import ffi, lib
from dpukv_xdp.errors import DpukvError, MissingError

ENGINE_NICE = -20
SENDER_PRIORITY = 10
STOP_TIMEOUT_SECONDS = 5.0


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
        self._thread.join(STOP_TIMEOUT_SECONDS)
        if self._thread.is_alive():
            raise DpukvError(f"{self._thread.name} did not stop within {STOP_TIMEOUT_SECONDS:g} s")
        if self._status < 0:
            raise DpukvError(f"{self._thread.name} failed: {os.strerror(-self._status)}")

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


class ProcessingEngine:
    """One engine: its partition and the thread that serves it."""

    def __init__(
        self,
        *,
        engine_id: int,
        engines: int,
        cpu: int,
        cpus: int,
        pairs: Any,
        items: int,
        log_bytes: int,
        huge_pages: bool,
        response_bytes_max: int,
        flush_after_us: float,
    ) -> None:
        """`pairs` is the C array of this engine's queue pairs, one for each of `cpus` cores.

        Raises MissingError when the partition's memory cannot be had.
        """
        self._store = lib.kv_store_create(items, log_bytes, huge_pages)
        if self._store == ffi.NULL:
            raise MissingError(
                f"a partition of {items} items and a log of {log_bytes} bytes",
                f"more memory ({os.strerror(ffi.errno)}): ask for fewer items or a smaller log",
            )
        engine = ffi.new("struct kv_engine *")
        engine.pairs = pairs
        engine.store = self._store
        engine.id, engine.engines, engine.cpu, engine.cpus = engine_id, engines, cpu, cpus
        engine.response_bytes_max = response_bytes_max
        engine.flush_after_ticks = int(flush_after_us * lib.kv_ticks_per_second() / 1e6)
        self._engine = engine
        self.thread = NativeThread(
            f"engine {engine_id}",
            cpu,
            lambda: int(lib.kv_engine_run(engine)),
            lambda: setattr(engine, "stop", 1),
        )

    def start(self, senders: "Senders") -> None:
        """Serve. Overdue responses are reported to `senders`."""
        self._engine.senders = senders.array
        self.thread.start(_raise_priority)

    def stop(self) -> None:
        """Stop serving; the store stays readable."""
        self.thread.stop()

    def close(self) -> None:
        """Give the partition's memory back."""
        lib.kv_store_destroy(self._store)

    def stats(self) -> dict[str, Any]:
        """The engine's and its partition's counters."""
        store = ffi.new("struct kv_store_stats *")
        lib.kv_store_get_stats(self._store, store)
        return {
            **_fields(self._engine.stats),
            "cpu": self.thread.cpu,
            "cpu_ns": self.thread.cpu_ns(),
            "store": _fields(store),
        }


class Senders:
    """One sleeping thread for each communication core; see sender.c."""

    def __init__(self, *, cpus: int, engines: int, program_fd: int, socket_fd: int) -> None:
        self.array = ffi.new("struct kv_sender[]", cpus)
        self._threads: list[NativeThread] = []
        for cpu in range(cpus):
            sender = ffi.addressof(self.array, cpu)
            sender.cpu, sender.cpus, sender.engines = cpu, cpus, engines
            sender.program_fd, sender.socket_fd = program_fd, socket_fd

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


def _raise_priority() -> None:
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
