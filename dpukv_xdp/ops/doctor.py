# SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
"""Check this machine for everything that dpukv_xdp needs, and list each gap with its remedy.

The checks undo whatever they try. Kernels are judged by their behaviour: features by their probes,
and our programs by loading them.
"""

import errno
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from dpukv_xdp.base.errors import DpukvError, LoadError, MissingError
from dpukv_xdp.kernel import loader, nic
from dpukv_xdp.kernel.features import FEATURES, TRIED_KERNELS
from dpukv_xdp.kernel.kernel_headers import kernel_source
from dpukv_xdp.kernel.loader import Build
from dpukv_xdp.lab import lab
from dpukv_xdp.native import dpdk, probes
from dpukv_xdp.ops.builds import usual_builds

CPUS_WANTED = 2
CAPABILITIES = {"CAP_NET_ADMIN": 12, "CAP_SYS_ADMIN": 21, "CAP_BPF": 39}  # linux/capability.h
VERIFIED_MAX = 1_000_000
"""Most instructions that the verifier processes in one program."""
AS_ROOT = "run it with sudo"

Progress = Callable[[str, float], None]
"""Called with the current step and the fraction of all steps that is done, 0 to 1."""


@dataclass(frozen=True)
class Check:
    """The result of one check."""

    name: str
    ok: bool
    found: str
    """The finding, or the missing part."""
    remedy: str = ""
    """How to get it; empty if nothing is missing."""
    is_required: bool = True
    """False for features that only improve performance or that only some settings need."""
    is_tried: bool = True
    """False if the check could not be made; `found` says why."""
    details: dict[str, Any] = field(default_factory=dict)
    """The findings in machine-readable form."""


def checks(progress: Progress = lambda what, fraction: None) -> list[Check]:
    """Return the results of all checks, in the order in which to repair what is missing.

    A machine's faults are results, not errors. Programs that are not in the cache are compiled,
    which takes seconds each.
    """
    groups: list[tuple[str, Callable[[], list[Check]]]] = [
        ("privilege", _privilege),
        ("kernel", _kernel),
        ("BPF system call", _bpf),
        ("bcc", _bcc),
        ("kernel headers", _kernel_headers),
        ("network namespaces, veth", _lab_checks),
        *((name, partial(_feature, name)) for name in FEATURES),
        ("programs", lambda: list(_program_checks(progress))),
        ("DPDK", _dpdk),
        ("cores", _cpus),
        ("huge pages", _huge_pages),
    ]
    return [check for name, look in groups for check in _guarded(name, look)]


def _guarded(name: str, look: Callable[[], list[Check]]) -> list[Check]:
    """Return the results of a check; a failed check is a result, too."""
    try:
        return look()
    except (DpukvError, OSError) as error:
        return [Check(name, False, str(error), "repair this, and run doctor again", is_tried=False)]


def _privilege() -> list[Check]:
    status = Path("/proc/self/status").read_text()
    found = re.search(r"^CapEff:\s*([0-9a-f]+)", status, re.MULTILINE)
    effective = int(found[1], 16) if found else 0
    lacking = [name for name, bit in CAPABILITIES.items() if not effective >> bit & 1]
    if lacking:
        return [Check("privilege", False, f"without {', '.join(lacking)}", AS_ROOT)]
    return [Check("privilege", True, ", ".join(CAPABILITIES))]


def _kernel() -> list[Check]:
    """Report whether dpukv_xdp was tested on this kernel version; nothing depends on it."""
    release = os.uname().release
    version = re.match(r"\d+\.\d+", release)
    is_tried = version is not None and version[0] in TRIED_KERNELS
    tried = ", ".join(TRIED_KERNELS)
    details = {"release": release, "tried": list(TRIED_KERNELS), "is_tried": is_tried}
    if is_tried:
        found = f"Linux {release}, a tested version ({tried})"
        return [Check("kernel", True, found, details=details)]
    remedy = "programs that load below work; if one does not, use a tested version"
    found = f"Linux {release}, not a tested version ({tried})"
    return [Check("kernel", False, found, remedy, is_required=False, details=details)]


def _bpf() -> list[Check]:
    """Load a minimal XDP program without bcc."""
    name = "BPF system call"
    try:
        os.close(nic.load_pass_program())
    except OSError as error:
        remedy = {
            errno.EPERM: "run it with sudo, outside containers that filter system calls",
            errno.ENOSYS: "use a kernel with CONFIG_BPF_SYSCALL",
        }
        found = error.strerror or str(error)
        return [Check(name, False, found, remedy.get(error.errno or 0, "see bpf(2)"))]
    return [Check(name, True, "loads XDP programs")]


def _bcc() -> list[Check]:
    """Import bcc in a process of its own: only compiler.py may use it here, and it loads LLVM."""
    command = [sys.executable, "-c", "import bcc; print(bcc.__version__)"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode == 0:
        return [Check("bcc", True, f"version {result.stdout.strip()}")]
    found = (result.stderr.strip().splitlines() or ["it cannot be imported"])[-1]
    remedy = "sudo tools/setup installs python3-bpfcc on Debian and Ubuntu"
    return [Check("bcc", False, found, remedy)]


def _kernel_headers() -> list[Check]:
    try:
        source = kernel_source()
    except DpukvError as error:
        return [Check("kernel headers", False, str(error), "sudo tools/setup")]
    own = f"the running kernel's, /lib/modules/{os.uname().release}/build"
    return [Check("kernel headers", True, str(source or own))]


def _lab_checks() -> list[Check]:
    """Check namespaces and veth by making a lab."""
    name = "network namespaces, veth"
    if os.geteuid() != 0:
        return [Check(name, False, "not tried: this needs root", AS_ROOT, is_tried=False)]
    try:
        with lab.Lab.up():
            return [
                Check("network namespaces", True, "can be made"),
                Check("veth", True, "can be made"),
            ]
    except OSError as error:
        found = error.strerror or str(error)
        return [Check("network namespaces", False, found, "use a kernel with CONFIG_NET_NS")]
    except MissingError as error:
        return [Check("veth", False, str(error), "modprobe veth, or a kernel with CONFIG_VETH")]


def _feature(name: str) -> list[Check]:
    feature = FEATURES[name]
    required = feature.is_required
    details = {"since": feature.since, "lost": feature.lost, "instead": feature.instead}
    if os.geteuid() != 0:
        found = "not tried: this needs root"
        return [Check(name, False, found, AS_ROOT, required, is_tried=False, details=details)]
    try:
        reason = probes.lack_of(name)
    except MissingError as error:
        return [Check(name, False, str(error), AS_ROOT, required, is_tried=False, details=details)]
    if reason is None:
        return [Check(name, True, "available", is_required=required, details=details)]
    found = (
        f"missing ({reason}); Linux has it since {feature.since}; it is needed by {feature.lost}"
    )
    return [Check(name, False, found, feature.instead, required, details=details)]


# ---- Our programs


def _program_checks(progress: Progress) -> Iterator[Check]:
    """Load the builds of the commands' defaults, from the cache if possible."""
    if os.geteuid() != 0:
        found = "not loaded: this needs root"
        yield Check("programs", False, found, AS_ROOT, is_tried=False)
        return
    builds = usual_builds()
    found_checks = []
    for number, build in enumerate(builds):
        progress(f"loading {build.source} for {build.name}", number / len(builds))
        found_checks.append(_program_check(build))
    progress("all programs have been tried", 1.0)
    loads = [build.name for build, check in zip(builds, found_checks, strict=True) if check.ok]
    for check in found_checks:
        yield check if check.remedy or check.ok else replace(check, remedy=_remedy(loads))


def _program_check(build: Build) -> Check:
    name = f"programs of {build.name}"
    try:
        loaded = build.load()
    except LoadError as error:
        details = {"refused": error.summary, "source": build.source}
        if "verifier" in error.summary:
            return Check(name, False, f"refused: {error.summary}", details=details)
        found = f"{build.source} did not compile: {error.summary}"
        remedy = "sudo tools/setup installs a compiler and headers that are known to work"
        return Check(name, False, found, remedy, details=details)
    except (DpukvError, OSError) as error:
        remedy = "repair this, and run doctor again"
        return Check(name, False, f"not loaded: {error}", remedy, is_tried=False)
    try:
        counts = {
            program: loader.verified_instructions(fd) for program, fd in loaded.programs.items()
        }
    except MissingError:
        return Check(name, True, f"{build.source} loads")
    finally:
        loaded.close()
    said = ", ".join(f"{program} {count:,}" for program, count in counts.items())
    found = f"{build.source} loads; instructions verified, of {VERIFIED_MAX:,} at most: {said}"
    return Check(name, True, found, details={"verified": counts, "source": build.source})


def _remedy(loads: list[str]) -> str:
    """Return the remedy for a program that the kernel refuses; `loads` names builds that load."""
    instead = f"use a build that loads ({', '.join(loads)}), or" if loads else "use"
    return f"{instead} one of the kernels {', '.join(TRIED_KERNELS)}, and report this line"


# ---- Optional performance features


def _dpdk() -> list[Check]:
    """Look for DPDK without starting it."""
    name = "DPDK"
    version = dpdk.dpdk_version()
    if version is None:
        remedy = "sudo tools/setup --with-dpdk, for --frames dpdk"
        return [Check(name, False, "not installed", remedy, is_required=False)]
    if not dpdk.is_installed():
        found = f"version {version}, and our port for it is not built"
        return [Check(name, False, found, "sudo tools/setup --with-dpdk", is_required=False)]
    return [Check(name, True, f"version {version}, and our port for it", is_required=False)]


def _cpus() -> list[Check]:
    count = len(os.sched_getaffinity(0))
    ok = count >= CPUS_WANTED
    remedy = "" if ok else f"give it {CPUS_WANTED} cores: one for each engine"
    return [Check("cores", ok, f"{count} usable", remedy, is_required=False)]


def _huge_pages() -> list[Check]:
    """Look for free hugetlbfs pages and transparent huge pages."""
    meminfo = Path("/proc/meminfo").read_text()
    found = re.search(r"^HugePages_Free:\s*(\d+)", meminfo, re.MULTILINE)
    free = int(found[1]) if found else 0
    setting = Path("/sys/kernel/mm/transparent_hugepage/enabled")
    transparent = setting.exists() and "[never]" not in setting.read_text()
    what = f"{free} free, transparent ones {'on' if transparent else 'off'}"
    ok = free > 0 or transparent
    remedy = "" if ok else "echo madvise > /sys/kernel/mm/transparent_hugepage/enabled"
    return [Check("huge pages", ok, what, remedy, is_required=False)]
