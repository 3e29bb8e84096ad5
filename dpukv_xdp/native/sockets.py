# SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
"""A server's sockets: AF_XDP sockets, opened in the best available mode and tested before use, and
UDP sockets of the kernel.
"""

import errno
import os
import time
from typing import Any

from dpukv_xdp._core._native import ffi, lib
from dpukv_xdp.base.errors import DpukvError, SocketError, UsageError
from dpukv_xdp.base.patience import patient
from dpukv_xdp.kernel import loader, nic
from dpukv_xdp.wire import abi, codec
from dpukv_xdp.wire.codec import Endpoint, network_order_word

MODES = {
    "auto": ("zero-copy", "copy"),
    "zero-copy": ("zero-copy",),
    "copy": ("copy",),
}
"""Modes that each setting tries, best first."""
INSTEAD = "--frames ring and --transport ring"
_MEMORY = "more memory: free some, or ask for fewer --rx-descriptors"
_FILES = "more file descriptors: raise `ulimit -n`"
_LOCKED = "more locked memory than it may have: raise `ulimit -l`, or give it CAP_IPC_LOCK"
MAP_STEP = lib.KV_SOCKET_STEPS
"""The step after those of enum kv_socket_step: entering the socket into the XSKMAP."""
STEPS = {
    lib.KV_SOCKET_ALLOCATE: "memory for frames",
    lib.KV_SOCKET_CREATE: "a socket of its family",
    lib.KV_SOCKET_REGISTER: "registered memory (UMEM)",
    lib.KV_SOCKET_BIND: "a socket that is bound to the queue",
    MAP_STEP: "a place in the program's map of sockets",
}
"""The resource that each step obtains."""
CAUSES = {
    (lib.KV_SOCKET_ALLOCATE, errno.ENOMEM): _MEMORY,
    (lib.KV_SOCKET_CREATE, errno.EAFNOSUPPORT): "a kernel with CONFIG_XDP_SOCKETS, Linux 4.18",
    (lib.KV_SOCKET_CREATE, errno.EPERM): "CAP_NET_RAW: run it with sudo",
    (lib.KV_SOCKET_CREATE, errno.EMFILE): _FILES,
    (lib.KV_SOCKET_CREATE, errno.ENFILE): "more open files: raise the sysctl fs.file-max",
    (lib.KV_SOCKET_CREATE, errno.ENOMEM): _MEMORY,
    (lib.KV_SOCKET_CREATE, errno.ENOBUFS): _MEMORY,
    (lib.KV_SOCKET_REGISTER, errno.ENOBUFS): _LOCKED,
    (lib.KV_SOCKET_REGISTER, errno.EPERM): _LOCKED,
    (lib.KV_SOCKET_REGISTER, errno.EMFILE): _FILES,
    (lib.KV_SOCKET_REGISTER, errno.ENOMEM): _MEMORY,
    (lib.KV_SOCKET_REGISTER, errno.EINVAL): "a power of two up to 32768 as --rx-descriptors",
    (lib.KV_SOCKET_BIND, errno.ENODEV): "an interface that exists: it has gone meanwhile",
    (lib.KV_SOCKET_BIND, errno.ENETDOWN): "an interface that is up: see 'ip link set'",
    (lib.KV_SOCKET_BIND, errno.EBUSY): "a queue of its own: stop the program whose socket has it",
    (lib.KV_SOCKET_BIND, errno.EOPNOTSUPP): "a driver with zero-copy",
    (lib.KV_SOCKET_BIND, errno.EINVAL): "a receive queue of that number, and for zero-copy an MTU "
    "that fits into a page: see `ethtool -l` and 'ip link set'",
    (lib.KV_SOCKET_BIND, errno.ENOMEM): _MEMORY,
    (lib.KV_SOCKET_BIND, errno.ENOBUFS): _MEMORY,
    (MAP_STEP, errno.E2BIG): f"a receive queue below {abi.KV_QUEUES_MAX}: see `ethtool -L`",
    (MAP_STEP, errno.EPERM): "CAP_BPF and CAP_NET_ADMIN: run it with sudo",
    (MAP_STEP, errno.ENOMEM): _MEMORY,
}
"""By refused step and errno: what the socket needs, and how to get it."""
PROBE_SECONDS = 0.5
SNMP_BYTES_MAX = 1 << 16
PROBE = codec.Request(abi.Operation.NOOP_READ, b"")


class ReceiveSocket:
    """An AF_XDP socket for one receive queue."""

    def __init__(self, interface: str, queue: int, descriptors: int, wanted: str) -> None:
        """Open the socket; `wanted` is a setting of MODES, `descriptors` a power of two.

        Raises SocketError, with the kernel's reason for each mode, if none is available.
        """
        self.queue = queue
        self._name = f"AF_XDP on queue {queue} of {interface}"
        needs: dict[str, str] = {}
        for mode in MODES[wanted]:
            try:
                self.native = open_socket(interface, queue, descriptors, mode)
                break
            except SocketError as error:
                needs[mode] = error.needs
        else:
            raise SocketError(self._name, f"{_each_or_both(needs)}; or use {INSTEAD} instead")
        self.mode = mode
        self.fd = int(self._stats().fd)
        self.refused = (
            f"queue {queue} of {interface} copies frames: zero-copy needs {needs['zero-copy']}"
            if needs
            else None
        )

    def join(self, programs: loader.LoadedObject) -> None:
        """Enter the socket into the XDP program's map, so that it gets the queue's frames.

        Raises SocketError if the kernel refuses.
        """
        try:
            programs.set_fd("kv_sockets", self.queue, self.fd)
        except DpukvError as error:
            if not isinstance(error.__cause__, OSError):
                raise
            needs = socket_needs(MAP_STEP, error.__cause__.errno or 0)
            raise SocketError(self._name, f"{needs}; or use {INSTEAD} instead") from error

    def check(self, programs: loader.LoadedObject, interface: nic.Interface, port: int) -> None:
        """Send a probe to `port` through the XDP program.

        Raises SocketError if the socket never receives it. Sockets that the kernel's test frames
        cannot reach are not checked: those of queues other than the first, which all test frames
        appear to come from, and those in zero-copy mode, which expect frames in the driver's
        memory. Their counters show whether they receive.
        """
        if self.queue > 0 or self.mode != "copy":
            return
        before = int(self._stats().received)
        frame = _probe_frame(interface, port)
        program_fd = programs.programs["kv_receive"]
        status = lib.kv_bpf_run_live_frame(program_fd, interface.index, 0, frame, len(frame))
        if status < 0:
            raise DpukvError(
                f"cannot test the socket of queue {self.queue}: {os.strerror(-status)}"
            )
        deadline = time.monotonic() + patient(PROBE_SECONDS)
        while int(self._stats().received) == before:
            if time.monotonic() > deadline:
                raise SocketError(
                    self._name,
                    f"a driver that delivers: it is bound and receives nothing; use {INSTEAD} "
                    "instead",
                )
            time.sleep(0.001)

    def stats(self) -> dict[str, Any]:
        """Return the socket's counters, the kernel's for it, and the mode."""
        stats = self._stats()
        names = (name for name, _ in ffi.typeof("struct kv_socket_stats").fields)
        numbers = {name: int(getattr(stats, name)) for name in names if name not in ("mode", "fd")}
        return {"queue": self.queue, "mode": self.mode, **numbers}

    def close(self) -> None:
        """Unbind and free the socket."""
        lib.kv_socket_close(self.native)

    def _stats(self) -> Any:
        stats = ffi.new("struct kv_socket_stats *")
        lib.kv_socket_get_stats(self.native, stats)
        return stats


def open_socket(interface: str, queue: int, descriptors: int, mode: str) -> Any:
    """Return a bound kv_socket of the core, to be closed with kv_socket_close().

    `descriptors` is a power of two. Raises SocketError, whose `needs` names the cause.
    """
    step = ffi.new("enum kv_socket_step *")
    is_zero_copy = int(mode == "zero-copy")
    opened = lib.kv_socket_open(interface.encode(), queue, descriptors, is_zero_copy, step)
    if opened == ffi.NULL:
        name = f"AF_XDP on queue {queue} of {interface}"
        raise SocketError(name, socket_needs(int(step[0]), ffi.errno)) from OSError(
            ffi.errno, os.strerror(ffi.errno)
        )
    return opened


def socket_needs(step: int, number: int) -> str:
    """Return what a socket needs, and how to get it, after the kernel refused a step with the
    errno `number`.
    """
    known = CAUSES.get((step, number))
    return known or f"{STEPS[step]}, which the kernel refuses: {os.strerror(number)}"


def _each_or_both(needs: dict[str, str]) -> str:
    """Return what each mode needs, stated once if it is the same for all."""
    different = set(needs.values())
    if len(different) == 1:
        return different.pop()
    return "; ".join(f"in {mode} mode {each}" for mode, each in needs.items())


class UdpSocket:
    """A UDP socket of the kernel for one endpoint: datagrams instead of frames."""

    def __init__(self, address: str, port: int, datagrams: int) -> None:
        """Bind the socket; its buffer has room for about `datagrams` datagrams.

        Raises UsageError if the port is unavailable.
        """
        self.port = port
        self.source = lib.kv_udp_open(network_order_word(address), port, datagrams)
        if self.source == ffi.NULL:
            reason = os.strerror(ffi.errno)
            advice = ": choose another --port" if ffi.errno == errno.EADDRINUSE else ""
            raise UsageError(f"UDP port {port} of {address} is unavailable: {reason}{advice}")

    def stats(self) -> dict[str, Any]:
        """Return the socket's counters, and the kernel's for it."""
        stats = ffi.new("struct kv_udp_stats *")
        lib.kv_udp_get_stats(self.source, stats)
        names = (name for name, _ in ffi.typeof("struct kv_udp_stats").fields)
        numbers = {n: int(getattr(stats, n)) for n in names if n not in ("fd", "padding")}
        return {"frames": "udp", "port": self.port, **numbers}

    def close(self) -> None:
        """Close the socket, which frees the port."""
        lib.kv_udp_close(self.source)


class StackDrops:
    """Counters of datagrams that the kernel's stack drops before any socket, in the network
    namespace of the thread that made this. They include other programs' traffic.
    """

    NAMES = (("Ip", "InHdrErrors"), ("Ip", "InDiscards"), ("Ip", "ReasmFails"), ("Udp", "InErrors"))

    def __init__(self) -> None:
        self._fd = os.open("/proc/thread-self/net/snmp", os.O_RDONLY)
        self._before = self._read()

    def stats(self) -> dict[str, int | str]:
        """Return the datagrams dropped since this was made, by the kernel's names in
        /proc/net/snmp: see RFC 1213.
        """
        now = self._read()
        return {"frames": "stack", **{name: now[name] - self._before[name] for name in now}}

    def close(self) -> None:
        """Close the file of counters."""
        os.close(self._fd)

    def _read(self) -> dict[str, int]:
        text = os.pread(self._fd, SNMP_BYTES_MAX, 0).decode()
        lines = [line.split() for line in text.splitlines()]
        tables = {
            names[0].rstrip(":"): dict(zip(names[1:], numbers[1:], strict=True))
            for names, numbers in zip(lines[::2], lines[1::2], strict=True)
        }
        return {f"{table}{name}": int(tables[table][name]) for table, name in self.NAMES}


def _probe_frame(interface: nic.Interface, port: int) -> bytes:
    """Return a frame with a no-op request to the interface's last port, from an address that
    documents use (RFC 5737); its answer is sent to our own MAC and lost.
    """
    here = Endpoint(interface.mac, interface.address or "192.0.2.2", port)
    nobody = Endpoint(interface.mac, "192.0.2.1", (port + 1) & 0xFFFF)
    return codec.encode_frame(nobody, here, codec.encode_batch([PROBE]))
