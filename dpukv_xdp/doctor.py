# SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
"""What this machine has of what dpukv_xdp wants: every gap at once, each with its remedy.

The checks look and try; what they try is removed again.
"""

import errno
import os
import re
import socket
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from dpukv_xdp import dpdk, lab, nic
from dpukv_xdp.errors import DpukvError
from dpukv_xdp.kernel_headers import kernel_source

KERNEL_NEEDED = (5, 18)
CPUS_WANTED = 2
CAPABILITIES = {"CAP_NET_ADMIN": 12, "CAP_SYS_ADMIN": 21, "CAP_BPF": 39}  # linux/capability.h
AF_XDP = 44  # linux/socket.h; the socket module has no name for it


@dataclass(frozen=True)
class Check:
    """One thing looked at."""

    name: str
    ok: bool
    found: str
    """What there is, or what is missing."""
    remedy: str = ""
    """How to get it; empty when it is there."""
    is_required: bool = True
    """False for what only makes dpukv_xdp faster, and for what only some settings need."""


def checks() -> list[Check]:
    """All checks, in the order in which to repair them. Raises nothing that a machine can cause."""
    return [
        _privilege(),
        _kernel_version(),
        _bpf(),
        _bcc(),
        _kernel_headers(),
        *_lab_checks(),
        _af_xdp(),
        _dpdk(),
        _cpus(),
        _huge_pages(),
    ]


def _privilege() -> Check:
    status = Path("/proc/self/status").read_text()
    found = re.search(r"^CapEff:\s*([0-9a-f]+)", status, re.MULTILINE)
    effective = int(found[1], 16) if found else 0
    lacking = [name for name, bit in CAPABILITIES.items() if not effective >> bit & 1]
    if lacking:
        return Check("privilege", False, f"without {', '.join(lacking)}", "run it with sudo")
    return Check("privilege", True, ", ".join(CAPABILITIES))


def _kernel_version() -> Check:
    release = os.uname().release
    ok = kernel_version() >= KERNEL_NEEDED
    wanted = ".".join(map(str, KERNEL_NEEDED))
    remedy = "" if ok else f"live frames (BPF_PROG_RUN) need Linux {wanted} or later: upgrade"
    return Check("kernel", ok, f"Linux {release}", remedy)


def kernel_version() -> tuple[int, int]:
    """Major and minor version of the running kernel."""
    major, minor = re.findall(r"\d+", os.uname().release)[:2]
    return int(major), int(minor)


def _bpf() -> Check:
    """Loads the smallest XDP program that there is, by itself and without bcc."""
    name = "BPF system call"
    try:
        os.close(nic.load_pass_program())
    except OSError as error:
        remedy = {
            errno.EPERM: "run it with sudo, outside containers that filter system calls",
            errno.ENOSYS: "use a kernel with CONFIG_BPF_SYSCALL",
        }
        found = error.strerror or str(error)
        return Check(name, False, found, remedy.get(error.errno or 0, "see bpf(2)"))
    return Check(name, True, "loads XDP programs")


def _bcc() -> Check:
    """In a process of its own: bcc is compiler.py's alone, and takes LLVM into memory."""
    command = [sys.executable, "-c", "import bcc; print(bcc.__version__)"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode == 0:
        return Check("bcc", True, f"version {result.stdout.strip()}")
    found = (result.stderr.strip().splitlines() or ["it cannot be imported"])[-1]
    return Check(
        "bcc", False, found, "sudo tools/setup installs python3-bpfcc on Debian and Ubuntu"
    )


def _kernel_headers() -> Check:
    try:
        source = kernel_source()
    except DpukvError as error:
        return Check("kernel headers", False, str(error), "sudo tools/setup")
    own = f"the running kernel's, /lib/modules/{os.uname().release}/build"
    return Check("kernel headers", True, str(source or own))


def _lab_checks() -> list[Check]:
    """Namespaces, veth and native XDP: makes a lab of its own, and puts a program on it."""
    if os.geteuid() != 0:
        return [
            Check("network namespaces, veth, native XDP", False, "not tried", "run it with sudo")
        ]
    try:
        with lab.Lab.up() as own:
            namespaces = Check("network namespaces", True, "can be made")
            return [namespaces, Check("veth", True, "can be made"), _native_xdp(own)]
    except OSError as error:
        found = error.strerror or str(error)
        return [Check("network namespaces", False, found, "use a kernel with CONFIG_NET_NS")]
    except DpukvError as error:
        return [Check("veth", False, str(error), "modprobe veth, or a kernel with CONFIG_VETH")]


def _native_xdp(own: lab.Lab) -> Check:
    name = "native XDP on veth"
    with lab.in_namespace(own.server.namespace):
        program_fd = nic.load_pass_program()
        try:
            attachment = nic.attach_xdp(own.server.interface, program_fd)
        finally:
            os.close(program_fd)
    if attachment.native_refused is None:
        return Check(name, True, "attached and taken off again")
    return Check(name, False, attachment.native_refused, "use Linux 4.19 or later")


def _af_xdp() -> Check:
    """Opens a socket, unbound, as every AF_XDP socket begins."""
    name = "AF_XDP"
    try:
        socket.socket(AF_XDP, socket.SOCK_RAW).close()
    except OSError as error:
        remedy = {
            errno.EPERM: "run it with sudo",
            errno.EAFNOSUPPORT: "use a kernel with CONFIG_XDP_SOCKETS; until then, frames go to "
            "the host through mapped rings only",
        }
        found = error.strerror or str(error)
        advice = remedy.get(error.errno or 0, "see socket(2)")
        return Check(name, False, found, advice, is_required=False)
    return Check(name, True, "opens sockets", is_required=False)


def _dpdk() -> Check:
    """Asks for it without starting it."""
    name = "DPDK"
    version = dpdk.dpdk_version()
    if version is None:
        remedy = "sudo tools/setup --with-dpdk, if you want --frames dpdk"
        return Check(name, False, "not installed", remedy, is_required=False)
    if not dpdk.is_installed():
        found = f"version {version}, and our port for it is not built"
        return Check(name, False, found, "sudo tools/setup --with-dpdk", is_required=False)
    return Check(name, True, f"version {version}, and our port for it", is_required=False)


def _cpus() -> Check:
    count = len(os.sched_getaffinity(0))
    ok = count >= CPUS_WANTED
    remedy = "" if ok else f"give it {CPUS_WANTED} cores: one for each engine"
    return Check("cores", ok, f"{count} usable", remedy, is_required=False)


def _huge_pages() -> Check:
    """hugetlbfs pages that are free, or transparent ones."""
    meminfo = Path("/proc/meminfo").read_text()
    found = re.search(r"^HugePages_Free:\s*(\d+)", meminfo, re.MULTILINE)
    free = int(found[1]) if found else 0
    setting = Path("/sys/kernel/mm/transparent_hugepage/enabled")
    transparent = setting.exists() and "[never]" not in setting.read_text()
    what = f"{free} free, transparent ones {'on' if transparent else 'off'}"
    ok = free > 0 or transparent
    remedy = "" if ok else "echo madvise > /sys/kernel/mm/transparent_hugepage/enabled"
    return Check("huge pages", ok, what, remedy, is_required=False)
