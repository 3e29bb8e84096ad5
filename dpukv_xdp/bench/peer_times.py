# SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
"""CPU times of a peer's server, which is a process of its own, and of the generator beside it."""

import contextlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dpukv_xdp.bench.peers_load import Snapshot, total

CPU_METHOD = (
    "host: CPU time of the server's process, the kernel's network stack in its system calls "
    "included, and the client's share of it that runs in the softirq of a send (busy_fraction: its "
    "part of the server's cores, or its busiest thread's of one); client: CPU time of the "
    "generating thread, which polls all the time (busy_fraction: the time in which its polls found "
    "something), with the server's share of the stack in the same way; there is no dpu; "
    "stolen_fraction: the part of the cores that was neither theirs nor idle"
)


@dataclass(frozen=True, slots=True)
class ServerTimes:
    """Of a server's process at one moment."""

    at_ns: int
    """CLOCK_MONOTONIC."""
    cpu_ns: int
    """All threads."""
    by_thread_ns: dict[str, int]
    """CPU time of each."""
    idle_ns: int
    """Of the cores that it is pinned to."""


@dataclass(frozen=True, slots=True)
class PeerRun:
    """What happened between two moments."""

    before: Snapshot
    after: Snapshot
    server_before: ServerTimes
    server_after: ServerTimes
    server_cores: int

    def elapsed_ns(self) -> int:
        return self.after.at_ns - self.before.at_ns

    def count(self, name: str) -> int:
        return total([self.before.counts, self.after.counts], name)

    def roles(self) -> dict[str, Any]:
        """As roles_of() of bench.py, with the time that each was busy."""
        return {"client": self._client(), "dpu": None, "host": self._server()}

    def _client(self) -> dict[str, float]:
        """It polls: what it did not get of its core, other programs had."""
        elapsed_ns, cpu_ns = self.elapsed_ns(), self.after.cpu_ns - self.before.cpu_ns
        return {
            **self._times(cpu_ns),
            "busy_fraction": _fraction(elapsed_ns - self.count("idle_ns"), elapsed_ns),
            "stolen_fraction": _fraction(elapsed_ns - cpu_ns, elapsed_ns),
        }

    def _server(self) -> dict[str, float]:
        """It sleeps when there is nothing to do, and its threads wait for each other: what is
        neither its own time nor idle, other programs had.
        """
        before, after = self.server_before, self.server_after
        elapsed_ns = after.at_ns - before.at_ns
        cores_ns = elapsed_ns * self.server_cores
        cpu_ns = after.cpu_ns - before.cpu_ns
        others_ns = cores_ns - cpu_ns - (after.idle_ns - before.idle_ns)
        by_thread_ns = (
            after_ns - before.by_thread_ns.get(thread, 0)
            for thread, after_ns in after.by_thread_ns.items()
        )
        busiest_ns = max(by_thread_ns, default=0)
        return {
            **self._times(cpu_ns),
            "busy_fraction": max(_fraction(cpu_ns, cores_ns), _fraction(busiest_ns, elapsed_ns)),
            "stolen_fraction": _fraction(others_ns, cores_ns),
        }

    def _times(self, cpu_ns: int) -> dict[str, float]:
        operations = max(self.count("responses"), 1)
        return {"cores": cpu_ns / self.elapsed_ns(), "cpu_ns_per_op": cpu_ns / operations}


def _fraction(part_ns: int, whole_ns: int) -> float:
    return min(max(part_ns / whole_ns, 0.0), 1.0)


def thread_times_ns(tasks: Path) -> dict[str, int]:
    """CPU time of each thread in a directory such as /proc/<pid>/task; nothing of those that end,
    or if the kernel does not say.
    """
    times = {}
    for thread in tasks.iterdir():
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            times[thread.name] = int((thread / "schedstat").read_text().split()[0])
    return times


def idle_ns(cpus: Sequence[int], statistics: Path = Path("/proc/stat")) -> int:
    """Time that cores have been idle, added up; the kernel counts in hundredths of a second."""
    wanted = {f"cpu{cpu}" for cpu in cpus}
    lines = (line.split() for line in statistics.read_text().splitlines())
    ticks = sum(int(line[4]) + int(line[5]) for line in lines if line[0] in wanted)
    return ticks * 1_000_000_000 // os.sysconf("SC_CLK_TCK")


def process_clock(pid: int) -> int:
    """The clock id of another process's CPU time: clock_getcpuclockid(3)."""
    return (~pid << 3) | CPUCLOCK_SCHED


CPUCLOCK_SCHED = 2
