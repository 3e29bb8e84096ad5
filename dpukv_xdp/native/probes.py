# SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
"""Probe whether the running kernel has a feature of features.py.

A probe uses the feature in the smallest possible way and undoes it. Each runs at most once per
process.
"""

import errno
import os
from collections.abc import Callable
from functools import cache

from dpukv_xdp._core._native import ffi, lib
from dpukv_xdp.base.errors import MissingError
from dpukv_xdp.kernel import features, loader, nic, queues, veth
from dpukv_xdp.native.sockets import socket_needs

LOOPBACK_INDEX = 1
"""Index of `lo` in every network namespace."""
LIVE_FRAME_BYTES = 64
DESCRIPTORS = 16
RING_BYTES = 4096
# r2 = 0; r3 = r10 - 8; r4 = 8; bpf_xdp_load_bytes(r1, r2, r3, r4); r0 = XDP_DROP; exit
LOAD_BYTES_PROGRAM = bytes.fromhex(
    "b702000000000000 bfa3000000000000 07030000f8ffffff b704000008000000"
    "85000000bd000000 b700000001000000 9500000000000000"
)


def require(name: str, wanted: str) -> None:
    """Raise MissingError if this kernel lacks a feature; `wanted` is the option that needs it."""
    reason = lack_of(name)
    if reason is not None:
        raise features.missing(name, wanted, reason)


@cache
def lack_of(name: str) -> str | None:
    """Return the kernel's reason to refuse a feature; None if the kernel has it.

    Raises MissingError if this process lacks the privilege to probe.
    """
    try:
        PROBES[name]()
    except OSError as error:
        if error.errno in (errno.EPERM, errno.EACCES):
            raise MissingError(
                f"probing whether this kernel has {name}",
                "root with CAP_SYS_ADMIN, CAP_NET_ADMIN and CAP_BPF: run it with sudo, outside "
                "containers that withhold them",
            ) from error
        return error.strerror or str(error)
    return None


def _frame_access() -> None:
    os.close(nic.load_program(LOAD_BYTES_PROGRAM, "kv_probe"))


def _mapped_arrays() -> None:
    options = ffi.new("struct bpf_map_create_opts *")
    options.sz, options.map_flags = ffi.sizeof("struct bpf_map_create_opts"), lib.BPF_F_MMAPABLE
    os.close(nic.checked(lib.bpf_map_create(lib.BPF_MAP_TYPE_ARRAY, b"kv_probe", 4, 8, 1, options)))


def _ring_buffer() -> None:
    os.close(
        nic.checked(
            lib.bpf_map_create(lib.BPF_MAP_TYPE_RINGBUF, b"kv_probe", 0, 0, RING_BYTES, ffi.NULL)
        )
    )


def _live_frames() -> None:
    """Inject one frame as if `lo` had received it; the program drops it at once."""
    program_fd = nic.load_program(nic.DROP_PROGRAM, "kv_probe")
    try:
        nic.checked(lib.kv_bpf_run_live(program_fd, LOOPBACK_INDEX, LIVE_FRAME_BYTES, 1, 1))
    finally:
        os.close(program_fd)


def _af_xdp() -> None:
    """Open a socket; a refusal of need_wakeup, the last step, is not a lack of AF_XDP."""
    if (refusal := _socket_refusal()) and not _is_need_wakeup(refusal):
        raise OSError(refusal[1], socket_needs(*refusal))


def _need_wakeup() -> None:
    if refusal := _socket_refusal():
        raise OSError(refusal[1], os.strerror(refusal[1]))


@cache
def _socket_refusal() -> tuple[int, int] | None:
    """Return the step and errno with which a socket on `lo` was refused; None if it was not."""
    step = ffi.new("enum kv_socket_step *")
    opened = lib.kv_socket_open(b"lo", 0, DESCRIPTORS, 0, step)
    if opened == ffi.NULL:
        return int(step[0]), int(ffi.errno)
    lib.kv_socket_close(opened)
    return None


def _is_need_wakeup(refusal: tuple[int, int]) -> bool:
    """Return whether need_wakeup was refused: nothing else about this socket gives EINVAL."""
    return refusal == (lib.KV_SOCKET_BIND, errno.EINVAL)


def _run_time_statistics() -> None:
    os.close(nic.checked(lib.bpf_enable_stats(lib.BPF_STATS_RUN_TIME)))


def _instruction_counts() -> None:
    program_fd = nic.load_program(nic.DROP_PROGRAM, "kv_probe")
    try:
        loader.verified_instructions(program_fd)
    except MissingError as error:
        raise OSError(errno.ENODATA, "it does not tell") from error
    finally:
        os.close(program_fd)


def _native_veth() -> None:
    with veth.scratch_pair() as interface:
        program_fd = nic.load_pass_program()
        try:
            refused = nic.attach_xdp(interface, program_fd).native_refused
        finally:
            os.close(program_fd)
    if refused is not None:
        raise OSError(errno.EOPNOTSUPP, refused)


def _napi_threads() -> None:
    try:
        with veth.scratch_pair() as interface:
            queues.set_napi_threads(interface, True)
    except MissingError as error:
        if not isinstance(error.__cause__, OSError):
            raise
        raise error.__cause__ from error


PROBES: dict[str, Callable[[], None]] = {
    "frame access by helpers": _frame_access,
    "mapped array maps": _mapped_arrays,
    "native XDP on veth": _native_veth,
    "live frames": _live_frames,
    "BPF ring buffer": _ring_buffer,
    "AF_XDP": _af_xdp,
    "AF_XDP need_wakeup": _need_wakeup,
    "threaded NAPI": _napi_threads,
    "BPF run-time statistics": _run_time_statistics,
    "verified instruction counts": _instruction_counts,
}
"""Probes by feature; each raises OSError if the kernel lacks it."""
