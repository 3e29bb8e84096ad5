# SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
"""Identify and end processes without mistaking a later process with the same number for them."""

import ctypes
import os
import select
import signal
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import msgspec

from dpukv_xdp.base.errors import DpukvError, MissingError
from dpukv_xdp.base.patience import patient

PR_SET_PDEATHSIG = 1
TERMINATE_GRACE_SECONDS = 3.0
KILL_TIMEOUT_SECONDS = 10.0


class Process(msgspec.Struct, frozen=True):
    """A process, identified by its number and its start time."""

    pid: int
    start_ticks: int
    """Start time in clock ticks since boot: field 22 of /proc/<pid>/stat."""

    def is_self(self) -> bool:
        """Return whether this is the calling process."""
        return self.pid == os.getpid()


def is_alive(process: Process) -> bool:
    """Return whether this very process still runs; a zombie does not count."""
    return start_ticks(process.pid) == process.start_ticks


def die_with(parent_pid: int, libc: ctypes.CDLL) -> None:
    """Have the kernel kill the calling process, a new child, when its parent's thread ends.

    It makes system calls only, as a child between fork and exec must.
    """
    libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent_pid:  # the parent died before prctl()
        os._exit(1)


def terminate(processes: Sequence[Process]) -> None:
    """End processes, except the calling one: by SIGTERM, then by SIGKILL if they do not end.

    Raises DpukvError if the kernel cannot end one.
    """
    handles = [
        handle
        for process in processes
        if not process.is_self() and (handle := _open_process(process)) is not None
    ]
    try:
        waiting = _signal_and_wait(handles, signal.SIGTERM, patient(TERMINATE_GRACE_SECONDS))
        waiting = _signal_and_wait(waiting, signal.SIGKILL, patient(KILL_TIMEOUT_SECONDS))
    finally:
        for handle in handles:
            os.close(handle)
    if waiting:
        raise DpukvError(f"{len(waiting)} processes cannot be killed: reboot")


def this_process() -> Process:
    """Return the calling process. Raises MissingError without /proc."""
    pid = os.getpid()
    started = start_ticks(pid)
    if started is None:
        raise MissingError("the register of processes", "/proc: mount it")
    return Process(pid, started)


def start_ticks(pid: int) -> int | None:
    """Return a process's start time in clock ticks since boot; None if it is gone or a zombie."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    fields = stat.rpartition(")")[2].split()  # the name before it may contain anything
    state, started = fields[0], int(fields[19])
    return None if state in "ZX" else started


def children(pid: int) -> tuple[int, ...]:
    """Return the process numbers of a process's children; none if it is gone."""
    try:
        numbers = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return ()
    return tuple(map(int, numbers.split()))


def end_in_words(code: int) -> str:
    """Return a process's exit status, or the signal that ended it, which is negative, in words."""
    if code >= 0:
        return f"exit status {code}"
    is_named = -code in set(signal.Signals)
    return signal.Signals(-code).name if is_named else f"signal {-code}"


def require_root(feature: str) -> None:
    """Raise MissingError that names the feature unless the process runs as root."""
    if os.geteuid() != 0:
        raise MissingError(feature, "root: run it with sudo")


def _open_process(process: Process) -> int | None:
    """Return a descriptor of the process; None if it is gone.

    Opens it before comparing the start time, so that the number cannot be reused in between.
    """
    try:
        handle = os.pidfd_open(process.pid)
    except ProcessLookupError:
        return None
    if is_alive(process):
        return handle
    os.close(handle)
    return None


def _signal_and_wait(handles: Sequence[int], number: int, timeout_seconds: float) -> list[int]:
    """Send a signal; return the descriptors of the processes that have not ended in time."""
    poller = select.poll()
    remaining = set(handles)
    for handle in handles:
        poller.register(handle, select.POLLIN)
        with suppress(ProcessLookupError):
            signal.pidfd_send_signal(handle, number)
    deadline = time.monotonic() + timeout_seconds
    while remaining and (left := deadline - time.monotonic()) > 0:
        for handle, _ in poller.poll(left * 1000):
            poller.unregister(handle)
            remaining.discard(handle)
    return list(remaining)
