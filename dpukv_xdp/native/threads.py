# SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
"""Native loops on pinned threads: Python starts, watches and stops them; they run without a GIL."""

import contextlib
import errno
import os
import threading
import time
from collections.abc import Callable

from dpukv_xdp.base.errors import DpukvError
from dpukv_xdp.base.patience import patient

ENGINE_NICE = -20
SENDER_PRIORITY = 10
STOP_TIMEOUT_SECONDS = 5.0


class NativeThread:
    """A pinned thread that runs one native loop until it is stopped."""

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
        """Start the thread on its core; `prepare` runs on it first and may set its priority.

        Raises DpukvError if the kernel refuses the core.
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
        """Stop the loop and wait for it. Raises DpukvError if it does not end, or has failed."""
        self._stop()
        timeout_seconds = patient(STOP_TIMEOUT_SECONDS)
        self._thread.join(timeout_seconds)
        if self._thread.is_alive():
            raise DpukvError(f"{self._thread.name} did not stop within {timeout_seconds:g} s")
        if self._status < 0:
            raise DpukvError(f"{self._thread.name} failed: {os.strerror(-self._status)}")

    def is_alive(self) -> bool:
        """Return whether the loop still runs."""
        return self._thread.is_alive()

    def cpu_ns(self) -> int:
        """Return the thread's CPU time in nanoseconds, including softirqs that interrupted it."""
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


def raise_priority() -> None:
    """Raise the calling thread's priority, if permitted: while an engine is preempted, the
    communication engine waits in vain.
    """
    with contextlib.suppress(PermissionError):
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), ENGINE_NICE)


def become_realtime() -> None:
    """Make the calling thread a real-time thread, if permitted: a sender sleeps nearly always, and
    must preempt a spinning engine or generator when it wakes.
    """
    with contextlib.suppress(PermissionError):
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(SENDER_PRIORITY))
