# SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
"""Facts about the machine, which every measured result states."""

import os
import platform
from pathlib import Path
from typing import Any


def machine_facts() -> dict[str, Any]:
    """Return the processor, cores, memory, kernel, architecture and clock source, by name."""
    return {
        "cpu": _cpu_model(),
        "cores": os.cpu_count(),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "kernel": platform.release(),
        "architecture": platform.machine(),
        "clocksource": _read("/sys/devices/system/clocksource/clocksource0/current_clocksource"),
        "hypervisor": "hypervisor" in _read("/proc/cpuinfo"),
    }


def resident_bytes(pid: int | str = "self") -> int:
    """Return the resident memory of a process in bytes, huge pages included; 0 if it has ended."""
    try:
        lines = _read(f"/proc/{pid}/status").splitlines()
    except ProcessLookupError:
        return 0
    fields = dict(line.split(":", 1) for line in lines)
    return sum(int(fields.get(name, "0").split()[0]) << 10 for name in ("VmRSS", "HugetlbPages"))


def _cpu_model() -> str:
    for line in _read("/proc/cpuinfo").splitlines():
        name, _, value = line.partition(":")
        if name.strip() in ("model name", "CPU part"):
            return value.strip()
    return "unknown"


def _read(path: str) -> str:
    file = Path(path)
    return file.read_text().strip() if file.exists() else ""


def possible_cpus() -> int:
    """Return the number of possible CPUs: the highest number that the kernel may use, plus one."""
    ranges = Path("/sys/devices/system/cpu/possible").read_text().strip()
    return int(ranges.rpartition("-")[2].rpartition(",")[2]) + 1
