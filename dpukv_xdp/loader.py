# SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
"""Compile and load BPF programs with bcc. The only module that knows bcc; file descriptors cross
its boundary.
"""

import ctypes
import os
import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from dpukv_xdp import abi
from dpukv_xdp._core._native import ffi, lib
from dpukv_xdp.errors import DpukvError, LoadError, MissingError
from dpukv_xdp.kernel_headers import kernel_source

# Include paths must be absolute: bcc compiles in the kernel tree. clang warns about the kernel's
# own headers, not ours.
_CFLAGS = (f"-I{abi.BPF_DIR}", "-Wno-address-of-packed-member", "-Wno-unknown-warning-option")


class LoadedObject:
    """One compiled source file: its programs' and maps' file descriptors live as long as this
    object.
    """

    def __init__(self, bpf: Any, programs: Mapping[str, int]) -> None:
        self._bpf = bpf
        self.programs = dict(programs)

    def map_fd(self, name: str) -> int:
        """The file descriptor of a map."""
        return int(self._bpf[name.encode()].map_fd)

    def read_array(self, name: str, dtype: np.dtype[Any]) -> npt.NDArray[Any]:
        """A copy of an array map, all entries: shape [entries], or [entries, cores] for a per-core
        map.
        """
        table = self._bpf[name.encode()]
        entries = len(table)
        # Array maps round a value up to eight bytes; all of ours are multiples already.
        values = b"".join(bytes(table[index]) for index in range(entries))
        array = np.frombuffer(values, dtype=dtype)
        return array if len(array) == entries else array.reshape(entries, -1)

    def set_fd(self, name: str, index: int, fd: int) -> None:
        """Put a socket or a map into a map of such."""
        self._bpf[name.encode()][ctypes.c_int(index)] = ctypes.c_int(fd)

    def write_array(self, name: str, values: npt.NDArray[Any]) -> None:
        """Set an array map's first entries."""
        table = self._bpf[name.encode()]
        for index, value in enumerate(values):
            table[ctypes.c_uint32(index)] = table.Leaf.from_buffer_copy(value.tobytes())

    def close(self) -> None:
        """Unload the programs and maps that nothing else holds."""
        self._bpf.cleanup()


def load(
    source_name: str,
    programs: Sequence[str],
    settings: Mapping[str, int],
    tail_calls: Sequence[str] = (),
) -> LoadedObject:
    """Compile bpf/`source_name` with `settings` as -D and load `programs` as XDP programs.

    `tail_calls` names those that other programs call through kv_programs, by their index there.
    Raises MissingError without bcc, LoadError when clang or the verifier refuses.
    """
    bcc = _import_bcc()
    source = abi.BPF_DIR / source_name
    defines = [f"-D{name}={value}" for name, value in settings.items()]
    with _captured_stderr() as read_log:
        try:
            bpf = bcc.BPF(src_file=str(source).encode(), cflags=[*_CFLAGS, *defines])
            functions = {
                name: bpf.load_func(name.encode(), bcc.BPF.XDP).fd
                for name in (*programs, *tail_calls)
            }
        except Exception as error:  # bcc raises bare Exception; its reason is on stderr
            log = read_log()
            raise LoadError(_telling_line(source, log, error), log) from error
    loaded = LoadedObject(bpf, functions)
    for index, name in enumerate(tail_calls):
        loaded.set_fd("kv_programs", index, functions[name])
    return loaded


def map_memory(map_fd: int, element: str, count: int) -> Any:
    """A mapped BPF_F_MMAPABLE array as a C array pointer, for example of "struct kv_queue_pair".

    The mapping stays until the process ends. Raises DpukvError if the kernel refuses it.
    """
    memory = lib.kv_bpf_map_memory(map_fd, count * ffi.sizeof(element))
    if memory == ffi.NULL:
        raise DpukvError(f"cannot map {count} x {element}: {os.strerror(ffi.errno)}")
    return ffi.cast(f"{element} *", memory)


def map_array(map_fd: int, dtype: np.dtype[Any], count: int) -> npt.NDArray[Any]:
    """A mapped BPF_F_MMAPABLE array as a numpy array: reading and writing it is reading and writing
    the map.
    """
    memory = map_memory(map_fd, "uint8_t", count * dtype.itemsize)
    return np.frombuffer(ffi.buffer(memory, count * dtype.itemsize), dtype=dtype)


def program_stats(program_fd: int) -> tuple[int, int]:
    """Run time in nanoseconds and number of runs, counted while `enabled_stats` was on anywhere."""
    numbers = ffi.new("uint64_t[2]")
    status = lib.kv_bpf_program_stats(program_fd, numbers, numbers + 1)
    if status < 0:
        raise DpukvError(f"cannot ask for a program's statistics: {os.strerror(-status)}")
    return int(numbers[0]), int(numbers[1])


@contextmanager
def enabled_stats() -> Iterator[None]:
    """The kernel's BPF run-time statistics are on within the block; they cost two clock reads a
    run.
    """
    stats_fd = lib.kv_bpf_enable_stats()
    if stats_fd < 0:
        raise MissingError("BPF run-time statistics", f"root ({os.strerror(-stats_fd)})")
    try:
        yield
    finally:
        os.close(stats_fd)


def _import_bcc() -> Any:
    source = kernel_source()
    if source is not None:
        os.environ.setdefault("BCC_KERNEL_SOURCE", str(source))
    try:
        import bcc
    except ImportError as error:
        raise MissingError("bcc", "Debian's package python3-bpfcc: run tools/setup") from error
    return bcc


@contextmanager
def _captured_stderr() -> Iterator[Any]:
    """File descriptor 2 into a file: clang and the verifier write there from C++."""
    saved = os.dup(2)
    with tempfile.TemporaryFile() as capture:
        os.dup2(capture.fileno(), 2)

        def read() -> str:
            capture.seek(0)
            return capture.read().decode(errors="replace")

        try:
            yield read
        finally:
            os.dup2(saved, 2)
            os.close(saved)


def _telling_line(source: Path, log: str, error: Exception) -> str:
    """The line that says what is wrong: clang's first error, or the verifier's last words before
    its summary.
    """
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    for line in lines:
        if re.search(r"\berror:", line):
            return line
    verdicts = [
        line for line in lines if not re.match(r"(processed \d+ insns|verification time)", line)
    ]
    detail = verdicts[-1] if verdicts else str(error)
    return f"{source.name} was refused by the kernel's verifier: {detail}"
