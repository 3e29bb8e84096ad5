# SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
"""Threads that send responses through BPF_PROG_RUN: one per communication core, which sleeps until
it is woken, or a single one that runs a program over live frames in one long call.
"""

import contextlib
import errno
import os
import signal
import threading
import time
from functools import partial
from typing import Any

from dpukv_xdp._core._native import ffi, lib
from dpukv_xdp.base.patience import patient
from dpukv_xdp.native.threads import STOP_TIMEOUT_SECONDS, NativeThread, become_realtime
from dpukv_xdp.wire import abi

LIVE_BATCH_FRAMES = 16
"""Live frames per batch of the kernel."""
REPEAT_MAX = 0xFFFFFFFF
"""Runs of the program per BPF_PROG_RUN call, which is repeated when they are used up."""
STOP_SIGNAL = signal.SIGUSR1
"""Signal that interrupts a BPF_PROG_RUN call."""


class Senders:
    """One sleeping thread per communication core; see sender.c."""

    def __init__(
        self,
        *,
        cpus: int,
        engines: int,
        program_fd: int,
        socket_fd: int,
        polled_engines: int = 0,
    ) -> None:
        """`polled_engines` is the number of engines in XDP, which are the first ones and have to be
        polled; the others wake their sender.
        """
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
                thread.start(become_realtime)
                self._threads.append(thread)

    def stop(self) -> None:
        """End the threads."""
        for thread in self._threads:
            thread.stop()
        self._threads.clear()

    def stats(self) -> dict[str, int]:
        """Return the counters, each summed over all senders."""
        names = ("frames_sent", "send_failures", "run_failures")
        return {name: sum(getattr(sender, name) for sender in self.array) for name in names}


def _stop_sender(sender: Any) -> None:
    sender.stop = 1
    lib.kv_sender_wake(sender)


class LiveSender:
    """A thread that runs kv_send over live frames until stopped."""

    def __init__(self, *, cpu: int, program_fd: int, interface_index: int) -> None:
        self.live = LiveFrames(program_fd, interface_index, LIVE_BATCH_FRAMES)
        self.thread = NativeThread("live sender", cpu, self.live.run, self.live.stop)

    def start(self) -> None:
        """Start sending."""
        self.thread.start(lambda: None)

    def stop(self) -> None:
        """Stop the thread and wait for it."""
        self.thread.stop()


class LiveFrames:
    """Calls of BPF_PROG_RUN over live frames, as long as the kernel allows, until stopped."""

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
        """Run the calls on the calling thread; return 0 or a negative errno."""
        self._thread_id = threading.get_ident()
        status = 0
        while not self._stopping and status in (0, -errno.EINTR):
            status = lib.kv_bpf_run_live(*self._arguments)
        self._thread_id = 0
        return 0 if status == -errno.EINTR else status

    def stop(self) -> None:
        """Make run() return. Repeat it until run() has returned: the kernel checks for signals only
        between batches, and one may arrive before the call.
        """
        self._stopping = True
        deadline = time.monotonic() + patient(STOP_TIMEOUT_SECONDS)
        while self._thread_id and time.monotonic() < deadline:
            with contextlib.suppress(ProcessLookupError):
                signal.pthread_kill(self._thread_id, STOP_SIGNAL)
            time.sleep(0.02)


def catch_stop_signal() -> None:
    """Make STOP_SIGNAL interrupt system calls instead of ending the process.

    Call it on the main thread before LiveFrames.run().
    """
    signal.signal(STOP_SIGNAL, lambda number, frame: None)
