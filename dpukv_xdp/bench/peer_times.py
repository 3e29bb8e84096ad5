# SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
"""CPU times of a peer's server, which is a separate process, and of the generator."""

import contextlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dpukv_xdp.bench.peers_load import Snapshot, total

CPU_METHOD = (
    "host: CPU time of the server's process, including the kernel's network stack in its system "
    "calls and the client's receive path, which runs in the softirq of a send (busy_fraction: "
    "share of the server's cores, or of one core for its busiest thread); client: CPU time of the "
    "generating thread, which polls all the time (busy_fraction: share of the time in which polls "
    "found data), including the server's receive path in the same way; there is no dpu; "
    "stolen_fraction: share of the cores' time that unrelated processes used"
)


@dataclass(frozen=True, slots=True)
class ServerTimes:
    """CPU times of a server's process at one moment."""

    at_ns: int
    """CLOCK_MONOTONIC."""
    cpu_ns: int
    """CPU time of all threads."""
    by_thread_ns: dict[str, int]
    """CPU time of each thread, by its id."""
    idle_ns: int
    """Idle time of the cores to which the server is pinned."""


@dataclass(frozen=True, slots=True)
class PeerRun:
    """The counters and times at two moments, and their differences."""

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
        """Return the roles as intervals.roles_of() does, with their busy fractions."""
        return {"client": self._client(), "dpu": None, "host": self._server()}

    def _client(self) -> dict[str, float]:
        """Return the generator's times. It polls: the rest of its core went to other programs."""
        elapsed_ns, cpu_ns = self.elapsed_ns(), self.after.cpu_ns - self.before.cpu_ns
        return {
            **self._times(cpu_ns),
            "busy_fraction": _fraction(elapsed_ns - self.count("idle_ns"), elapsed_ns),
            "stolen_fraction": _fraction(elapsed_ns - cpu_ns, elapsed_ns),
        }

    def _server(self) -> dict[str, float]:
        """Return the server's times. It sleeps when it has no work, so the time that is neither its
        own nor idle went to other programs.
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
    """Return the CPU time of each thread in a directory such as /proc/<pid>/task, in ns.

    Threads that end meanwhile are left out.
    """
    times = {}
    for thread in tasks.iterdir():
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            times[thread.name] = int((thread / "schedstat").read_text().split()[0])
    return times


def idle_ns(cpus: Sequence[int], statistics: Path = Path("/proc/stat")) -> int:
    """Return the sum of some cores' idle times; the kernel counts in hundredths of a second."""
    wanted = {f"cpu{cpu}" for cpu in cpus}
    lines = (line.split() for line in statistics.read_text().splitlines())
    ticks = sum(int(line[4]) + int(line[5]) for line in lines if line[0] in wanted)
    return ticks * 1_000_000_000 // os.sysconf("SC_CLK_TCK")


def process_clock(pid: int) -> int:
    """Return the clock id of another process's CPU time, as clock_getcpuclockid(3) does."""
    return (~pid << 3) | CPUCLOCK_SCHED


CPUCLOCK_SCHED = 2
