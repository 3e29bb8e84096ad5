# SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
"""Frames through DPDK, where it is installed: the EAL, and a device with its sockets.

The loop is _core/port/dpdk.c, in a shared object of its own. Running this module builds the object,
and a server loads it on demand, so that nothing else needs DPDK.
"""

import contextlib
import ctypes
import hashlib
import os
import re
import socket
import stat
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

from dpukv_xdp._core._native import ffi, lib
from dpukv_xdp.base.errors import DpukvError, MissingError, UsageError
from dpukv_xdp.base.places import BPF_DIR, BUILD_DIR
from dpukv_xdp.base.scratch import replacing
from dpukv_xdp.kernel.nic import Interface
from dpukv_xdp.wire import abi

CORE_DIR = Path(__file__).resolve().parents[1] / "_core"
SOURCES = (
    CORE_DIR / "port" / "dpdk.c",
    *sorted(CORE_DIR.rglob("*.h")),
    *sorted(abi.HEADER_DIR.glob("*.h")),
)
ADVICE = "run sudo tools/setup --with-dpdk"
MEMORY_MIB = 512
"""Memory of the EAL for buffers, in MiB; unused pages are not allocated."""
HUGE_PAGE_MIB = 2
RUN_DIR = Path("/run/dpdk")
RING_FRAME_BYTES = 4096
"""Bytes per frame of the kernel's packet ring: the longest frame and the kernel's header for it."""
RING_BLOCK_BYTES = 65536

SO_ATTACH_FILTER = 26  # asm/socket.h
DROP_ALL = struct.pack("HBBI", 0x06, 0, 0, 0)  # BPF_RET | BPF_K, 0: linux/filter.h
PACKET_STATISTICS = 6  # linux/if_packet.h
SOL_PACKET = 263


# ---- The shared object


def dpdk_version() -> str | None:
    """Return DPDK's version if it is installed with its headers, else None."""
    return _pkg_config("--modversion")


def library_path() -> Path:
    """Return the path of the shared object for the current sources; it need not exist."""
    digest = hashlib.sha256(b"".join(path.read_bytes() for path in SOURCES))
    return BUILD_DIR / f"dpdk-{digest.hexdigest()[:16]}.so"


def build() -> bool:
    """Build the shared object and remove older ones; return False if it existed already.

    Raises MissingError without DPDK, or if the compiler refuses it.
    """
    path = library_path()
    if path.exists():
        return False
    flags, libraries = _pkg_config("--cflags"), _pkg_config("--libs")
    if flags is None or libraries is None:
        raise MissingError("building for DPDK", f"DPDK with its C headers: {ADVICE}")
    BUILD_DIR.mkdir(exist_ok=True)
    # no-strict-aliasing: as in build.py
    command = [os.environ.get("CC", "cc"), "-shared", "-fPIC", "-std=gnu11", "-O3", "-g"]
    command += ["-fno-strict-aliasing", "-Wall", "-Wextra", "-Werror", "-fvisibility=hidden"]
    command += [f"-I{CORE_DIR}", f"-I{BPF_DIR}", *flags.split(), str(SOURCES[0])]
    with replacing(path, mode=0o755) as fresh:
        command += ["-o", str(fresh), "-Wl,--as-needed", *libraries.split()]
        result = subprocess.run(command, capture_output=True, text=True, check=False)
        if result.returncode:
            raise MissingError("building for DPDK", f"DPDK 22.11 or a near one:\n{result.stderr}")
    for older in set(BUILD_DIR.glob("dpdk-*.so")) - {path}:
        older.unlink()
    return True


def is_installed() -> bool:
    """Return whether a server can use `--frames dpdk`."""
    return library_path().exists()


def _pkg_config(what: str) -> str | None:
    command = ["pkg-config", what, "libdpdk"]
    try:
        result = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return None
    return result.stdout.strip() if result.returncode == 0 else None


# ---- The EAL: one for all devices of this process


class Eal:
    """DPDK's run time (EAL). A process can start it only once: the first device starts it, and it
    stays until the process ends.
    """

    def __init__(self) -> None:
        self._calls: Any = None
        self._pci: str | None = None
        self._keep: Any = None  # the arguments: DPDK does not copy them

    def calls(self, pci: str | None) -> Any:
        """Return the functions of dpdk.c, as a struct kv_dpdk_calls, and start the EAL if needed.

        The EAL probes the PCI bus only for the device at `pci`. Raises MissingError if it does not
        start, or has been started for another device.
        """
        if self._calls is None:
            calls = _load()
            arguments = [argument.encode() for argument in _eal_arguments(pci)]
            self._keep = [ffi.new("char[]", argument) for argument in arguments]
            status = calls.start(len(arguments), ffi.new("char *[]", self._keep))
            _remove_run_directory()
            if status:
                raise MissingError(
                    "DPDK's run time", f"what it printed above ({os.strerror(-status)})"
                )
            self._calls, self._pci = calls, pci
        if pci != self._pci:
            raise MissingError(
                f"DPDK for {pci or 'an interface of the kernel'}",
                f"a process of its own: this one has started DPDK for "
                f"{self._pci or 'interfaces of the kernel'}, which is possible only once",
            )
        return self._calls


_eal = Eal()


def _load() -> Any:
    path = library_path()
    if not path.exists():
        raise MissingError("frames through DPDK", f"DPDK and our port for it: {ADVICE}")
    try:
        library = ctypes.CDLL(str(path), mode=os.RTLD_NOW | os.RTLD_GLOBAL)
        symbol = ctypes.c_char.in_dll(library, "kv_dpdk_calls")
    except (OSError, ValueError) as error:
        raise MissingError(
            "frames through DPDK", f"a DPDK that loads ({error}): {ADVICE}"
        ) from error
    return ffi.cast("struct kv_dpdk_calls *", ctypes.addressof(symbol))


def _eal_arguments(pci: str | None) -> list[str]:
    """Return the EAL's arguments: no files, no threads on other cores, no device except `pci`."""
    cpus = ",".join(map(str, sorted(os.sched_getaffinity(0))))
    arguments = ["dpukv", "--no-telemetry", "--log-level=*:error", f"--lcores=0@({cpus})"]
    arguments += [f"--file-prefix={_run_directory().name}"]
    if _has_huge_pages():
        arguments += ["--in-memory"]
    else:
        arguments += ["--no-shconf", "--no-huge", "-m", str(MEMORY_MIB)]
    return arguments + (["-a", pci] if pci else ["--no-pci"])


def _run_directory() -> Path:
    return RUN_DIR / f"dpukv-{os.getpid()}"


def _remove_run_directory() -> None:
    """Remove the empty directory that the EAL makes: a killed process would leave it behind."""
    with contextlib.suppress(OSError):  # RUN_DIR may hold other programs' directories
        _run_directory().rmdir()
        RUN_DIR.rmdir()


def _has_huge_pages() -> bool:
    free = re.search(r"^HugePages_Free:\s*(\d+)", Path("/proc/meminfo").read_text(), re.MULTILINE)
    return free is not None and int(free[1]) * HUGE_PAGE_MIB >= MEMORY_MIB


# ---- A device


class DpdkDevice:
    """A DPDK device with one queue for each communication engine.

    Without a PCI address it is the kernel's interface, behind a packet socket (net_af_packet). That
    works everywhere, but the kernel's stack also sees all frames and would answer that their ports
    are unreachable. A socket on each port that drops everything prevents this.

    With a PCI address, DPDK's driver alone receives the frames. This was written after DPDK's
    documentation and has never run, for lack of such a device.
    """

    def __init__(
        self, interface: Interface, pci: str, *, queues: int, descriptors: int, ports: range
    ) -> None:
        """Open and start the device. `pci` is its PCI address or empty; `descriptors` are frames
        per queue and direction.

        Raises MissingError without DPDK, or if it refuses the device; UsageError if a port is in
        use.
        """
        self.name = pci or f"net_af_packet_{interface.index}"
        self._cleanup = contextlib.ExitStack()
        self._drops: dict[int, int] = {}
        calls = _eal.calls(pci or None)
        with contextlib.ExitStack() as cleanup:
            if not pci:
                for port in ports:
                    cleanup.callback(_silent_socket(interface, port).close)
            bus, options = (
                ("pci", "") if pci else ("vdev", _ring_options(interface, queues, descriptors))
            )
            reason = ffi.new("char[]", lib.KV_DPDK_REASON_BYTES)
            before = _packet_sockets()
            self._device = calls.open(
                bus.encode(),
                self.name.encode(),
                options.encode(),
                queues,
                descriptors,
                len(ports) * lib.KV_DPDK_HELD,
                interface.mtu if pci else 0,
                reason,
            )
            if self._device == ffi.NULL:
                said = ffi.string(reason).decode()
                raise MissingError(
                    f"DPDK on {pci or interface.name}", f"a device that it accepts ({said})"
                )
            cleanup.callback(calls.close, self._device)
            self._drops = dict.fromkeys(_packet_sockets() - before, 0)
            self._cleanup = cleanup.pop_all()
        self.port = calls.port
        self.sources = [calls.queue(self._device, queue) for queue in range(queues)]
        self._calls = calls

    def stats(self) -> dict[str, Any]:
        """Return the driver's counters, ours, and the kernel's drops because its ring was full."""
        stats = ffi.new("struct kv_dpdk_stats *")
        self._calls.get_stats(self._device, stats)
        names = (name for name, _ in ffi.typeof("struct kv_dpdk_stats").fields)
        for fd in self._drops:
            self._drops[fd] += _packet_drops(fd)
        ring_full = sum(self._drops.values())
        numbers = {name: int(getattr(stats, name)) for name in names}
        return {"frames": "dpdk", "device": self.name, **numbers, "rx_ring_full": ring_full}

    def close(self) -> None:
        """Stop the device and release it."""
        self._cleanup.close()


def _ring_options(interface: Interface, queues: int, descriptors: int) -> str:
    """Return net_af_packet's options: a ring of `descriptors` frames per queue and direction."""
    return (
        f"iface={interface.name},qpairs={queues},framesz={RING_FRAME_BYTES},"
        f"blocksz={RING_BLOCK_BYTES},framecnt={descriptors},qdisc_bypass=1"
    )


def _silent_socket(interface: Interface, port: int) -> socket.socket:
    """Return a socket that occupies the port and whose filter drops every datagram.

    Raises UsageError if the port is in use.
    """
    silent = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    filters = ctypes.create_string_buffer(DROP_ALL, len(DROP_ALL))
    program = struct.pack("HxxxxxxP", 1, ctypes.addressof(filters))
    try:
        silent.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, program)
        silent.bind((interface.address or "", port))
    except OSError as error:
        silent.close()
        raise UsageError(
            f"UDP port {port} of {interface.name} is unavailable ({error.strerror}): choose "
            f"another --port"
        ) from error
    return silent


def _packet_sockets() -> set[int]:
    """Return the descriptors of this process's packet sockets."""
    found = set()
    for path in Path("/proc/self/fd").iterdir():
        fd = int(path.name)
        with contextlib.suppress(OSError):  # closed meanwhile
            if stat.S_ISSOCK(os.fstat(fd).st_mode):
                with socket.socket(fileno=os.dup(fd)) as duplicate:
                    found |= {fd} if duplicate.family == socket.AF_PACKET else set()
    return found


def _packet_drops(fd: int) -> int:
    """Return the frames that a packet socket dropped since the last call: reading resets it."""
    with socket.socket(fileno=os.dup(fd)) as duplicate:
        statistics = duplicate.getsockopt(SOL_PACKET, PACKET_STATISTICS, 8)
    return int(struct.unpack("II", statistics)[1])


if __name__ == "__main__":
    try:
        if build():
            sys.stdout.write(f"built our port for DPDK {dpdk_version()}\n")
    except DpukvError as error:
        sys.exit(str(error))
