# SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
"""Load BPF programs that compiler.py has compiled into the kernel, and access their maps.

Programs and maps leave this module as file descriptors.
"""

import errno
import math
import os
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from dpukv_xdp._core._native import ffi, lib
from dpukv_xdp.base.errors import DpukvError, LoadError, MissingError
from dpukv_xdp.base.places import BPF_DIR
from dpukv_xdp.kernel import compiler, features
from dpukv_xdp.kernel.compiler import MapPlan

VERIFIER_LOG_BYTES = 16 << 20
"""Size of the buffer for the verifier's log of a refused program."""
NO_MAPS: Mapping[str, int] = MappingProxyType({})
_MODEL_SUFFIX = "_model"
"""Suffix of a map that only declares the inner map of a map of maps: see bpf/base/maps.h."""


@dataclass(frozen=True, slots=True)
class Build:
    """One of our sources, its settings, and the programs to load from it."""

    name: str
    """Name for users: a design and its settings that are not defaults, or another purpose."""
    source: str
    """Name of the file in bpf/."""
    programs: tuple[str, ...]
    settings: Mapping[str, int]
    """Passed as -D, or filled in: see compiler.SETTINGS_AT_LOAD and compiler.ENTRIES_AT_LOAD."""
    tail_calls: tuple[str, ...] = ()

    def load(self, kept_maps: Mapping[str, int] = NO_MAPS) -> "LoadedObject":
        """Compile the source, or take the cached object, and load all its programs.

        `kept_maps` are descriptors of maps, by name, that an earlier load has made: they are used
        again with their content. Raises MissingError without bcc, LoadError if clang or the
        verifier refuses, or if a kept map has another size.
        """
        return load(self.source, self.programs, self.settings, self.tail_calls, kept_maps)


class LoadedObject:
    """The loaded programs and maps of one source file; close() closes their file descriptors."""

    def __init__(
        self, maps: Mapping[str, tuple[int, MapPlan]], programs: Mapping[str, int], kept: ExitStack
    ) -> None:
        """`kept` closes the file descriptors of `maps` and `programs`."""
        self._maps = dict(maps)
        self._kept = kept
        self.programs = dict(programs)

    def map_fd(self, name: str) -> int:
        """Return the file descriptor of a map."""
        return self._maps[name][0]

    def read_array(self, name: str, dtype: np.dtype[Any]) -> npt.NDArray[Any]:
        """Return a copy of all entries of an array map: shape [entries], or [entries, cores] for a
        per-core map.

        `dtype` is a multiple of eight bytes, to which the kernel rounds values up.
        """
        plan = self._maps[name][1]
        values = b"".join(self.read_entry(name, index) for index in range(plan.entries))
        array = np.frombuffer(values, dtype=dtype)
        return array.reshape(plan.entries, -1) if _is_per_core(plan) else array

    def read_entry(self, name: str, index: int) -> bytes:
        """Return the value of one entry; for a per-core map, the values of all cores."""
        fd, plan = self._maps[name]
        cores = lib.libbpf_num_possible_cpus() if _is_per_core(plan) else 1
        value = ffi.new("uint8_t[]", cores * plan.value_bytes)
        status = lib.bpf_map_lookup_elem(fd, ffi.new("__u32 *", index), value)
        if status < 0:
            raise DpukvError(f"cannot read entry {index} of {name}: {os.strerror(-status)}")
        return bytes(ffi.buffer(value))

    def write_entry(self, name: str, index: int, value: bytes) -> None:
        """Set one entry of a map that is not per-core. Raises DpukvError if the kernel refuses."""
        fd, plan = self._maps[name]
        if len(value) != plan.value_bytes:
            raise DpukvError(f"{name} has values of {plan.value_bytes} bytes, not {len(value)}")
        status = lib.bpf_map_update_elem(fd, ffi.new("__u32 *", index), value, 0)
        if status < 0:
            reason = OSError(-status, os.strerror(-status))
            raise DpukvError(f"cannot set entry {index} of {name}: {reason.strerror}") from reason

    def set_fd(self, name: str, index: int, fd: int) -> None:
        """Enter a socket or a map, by its descriptor, into a map of sockets or maps."""
        self.write_entry(name, index, fd.to_bytes(4, sys.byteorder))

    def close(self) -> None:
        """Close the descriptors; the kernel frees programs and maps that have no other users."""
        self._kept.close()


def _is_per_core(plan: MapPlan) -> bool:
    return bool(plan.type == lib.BPF_MAP_TYPE_PERCPU_ARRAY)


def load(
    source_name: str,
    programs: Sequence[str],
    settings: Mapping[str, int],
    tail_calls: Sequence[str] = (),
    kept_maps: Mapping[str, int] = NO_MAPS,
) -> LoadedObject:
    """Compile bpf/`source_name` with `settings` and load `programs` as XDP programs.

    `tail_calls` names programs that others call through kv_programs, in the order of their index
    there; `kept_maps` are used as in Build.load(). Raises MissingError without bcc, LoadError if
    clang or the verifier refuses.
    """
    source = BPF_DIR / source_name
    compiled = compiler.compile_source(source, settings)
    for name in (*programs, *tail_calls):
        if name not in compiled.programs:
            raise LoadError(f"{source.name} has no program {name}")
    with ExitStack() as kept:
        maps = _make_maps(source, _sized(compiled.maps, settings), compiled.btf, kept, kept_maps)
        fds = [fd for fd, _ in maps.values()]
        functions = {
            name: _load_program(
                source,
                name,
                compiler.filled_in(
                    compiler.patched(compiled.programs[name], fds.__getitem__), settings
                ),
                kept,
            )
            for name in (*programs, *tail_calls)
        }
        loaded = LoadedObject(maps, functions, kept.pop_all())
    for index, name in enumerate(tail_calls):
        loaded.set_fd("kv_programs", index, functions[name])
    return loaded


def _sized(plans: Sequence[MapPlan], settings: Mapping[str, int]) -> list[MapPlan]:
    """Return the maps with the numbers of entries that the settings ask for."""
    return [
        msgspec.structs.replace(
            plan,
            entries=math.prod(settings[name] for name in compiler.ENTRIES_AT_LOAD[plan.name]),
        )
        if plan.name in compiler.ENTRIES_AT_LOAD
        else plan
        for plan in plans
    ]


def _make_maps(
    source: Path,
    plans: Sequence[MapPlan],
    btf: bytes,
    kept: ExitStack,
    kept_maps: Mapping[str, int],
) -> dict[str, tuple[int, MapPlan]]:
    """Create the maps, or take kept ones; return their file descriptors and plans by name, in the
    object's order.
    """
    maps: dict[str, tuple[int, MapPlan]] = {}
    with ExitStack() as temporary:
        btf_fd = 0
        if any(plan.value_type for plan in plans):
            btf_fd = lib.bpf_btf_load(btf, len(btf), ffi.NULL)
            _check(btf_fd, f"{source.name}: the kernel refused its types")
            temporary.callback(os.close, btf_fd)
        maps_of_maps = lib.BPF_MAP_TYPE_ARRAY_OF_MAPS
        for plan in sorted(plans, key=lambda plan: plan.type == maps_of_maps):
            models = [fd for name, (fd, _) in maps.items() if name.endswith(_MODEL_SUFFIX)]
            inner_fd = models[-1] if plan.type == maps_of_maps else 0
            if plan.name in kept_maps:
                _check_size(source, plan, kept_maps[plan.name])
                fd = os.dup(kept_maps[plan.name])
            else:
                fd = _create_map(plan, btf_fd, inner_fd)
                _check(fd, f"{source.name}: the kernel refused its map {plan.name}")
            kept.callback(os.close, fd)
            maps[plan.name] = (fd, plan)
    return {plan.name: maps[plan.name] for plan in plans}


def _create_map(plan: MapPlan, btf_fd: int, inner_fd: int) -> int:
    """Create a map; return its descriptor, or a negative errno."""
    options = ffi.new("struct bpf_map_create_opts *")
    options.sz = ffi.sizeof("struct bpf_map_create_opts")
    options.map_flags, options.inner_map_fd = plan.flags, inner_fd
    if plan.value_type:
        options.btf_fd = btf_fd
        options.btf_key_type_id, options.btf_value_type_id = plan.key_type, plan.value_type
    name = plan.name[: lib.BPF_OBJ_NAME_LEN - 1].encode()
    sizes = (plan.key_bytes, plan.value_bytes, plan.entries)
    return int(lib.bpf_map_create(plan.type, name, *sizes, options))


def _check_size(source: Path, plan: MapPlan, map_fd: int) -> None:
    """Raise LoadError if a kept map has not the size that the plan asks for."""
    info = compiler.info_of("struct bpf_map_info", map_fd)
    found = (info.type, info.key_size, info.value_size, info.max_entries)
    if found != (plan.type, plan.key_bytes, plan.value_bytes, plan.entries):
        raise LoadError(f"{source.name}: the kept map {plan.name} is of another size or version")


def _load_program(source: Path, name: str, instructions: bytes, kept: ExitStack) -> int:
    options = ffi.new("struct bpf_prog_load_opts *")
    options.sz = ffi.sizeof("struct bpf_prog_load_opts")
    arguments = (lib.BPF_PROG_TYPE_XDP, name.encode(), b"GPL", instructions, len(instructions) // 8)
    fd = int(lib.bpf_prog_load(*arguments, options))
    if fd < 0:
        room = ffi.new("char[]", VERIFIER_LOG_BYTES)
        options.log_level, options.log_size, options.log_buf = 1, VERIFIER_LOG_BYTES, room
        fd = int(lib.bpf_prog_load(*arguments, options))
        if fd < 0:
            log = ffi.string(room).decode(errors="replace")
            raise LoadError(compiler.telling_line(source, log, os.strerror(-fd)), log)
    kept.callback(os.close, fd)
    return fd


def _check(status: int, what: str) -> None:
    if status < 0:
        raise LoadError(f"{what}: {os.strerror(-status)}")


def map_memory(map_fd: int, element: str, count: int) -> Any:
    """Map a BPF_F_MMAPABLE array; return a C pointer to `count` elements of the C type `element`.

    The mapping stays until the process ends. Raises DpukvError if the kernel refuses it.
    """
    memory = lib.kv_bpf_map_memory(map_fd, count * ffi.sizeof(element))
    if memory == ffi.NULL:
        raise DpukvError(f"cannot map {count} x {element}: {os.strerror(ffi.errno)}")
    return ffi.cast(f"{element} *", memory)


def map_array(map_fd: int, dtype: np.dtype[Any], count: int) -> npt.NDArray[Any]:
    """Return a BPF_F_MMAPABLE array, mapped, as a numpy array of shape [count]: reads and writes
    access the map itself.
    """
    memory = map_memory(map_fd, "uint8_t", count * dtype.itemsize)
    return np.frombuffer(ffi.buffer(memory, count * dtype.itemsize), dtype=dtype)


def program_stats(program_fd: int) -> tuple[int, int]:
    """Return a program's run time in nanoseconds and its number of runs, counted while any process
    had `enabled_stats`.
    """
    info = ffi.new("struct bpf_prog_info *")
    info_bytes = ffi.new("__u32 *", ffi.sizeof("struct bpf_prog_info"))
    status = lib.bpf_obj_get_info_by_fd(program_fd, info, info_bytes)
    if status < 0:
        raise DpukvError(f"cannot ask for a program's statistics: {os.strerror(-status)}")
    return int(info.run_time_ns), int(info.run_cnt)


def verified_instructions(program_fd: int) -> int:
    """Return the number of instructions that the verifier processed to accept a program, at most a
    million. Raises MissingError if the kernel does not report it.
    """
    text = Path(f"/proc/self/fdinfo/{program_fd}").read_text()
    found = re.search(r"^verified_insns:\s*(\d+)", text, re.MULTILINE)
    if found is None:
        wanted = "counting a program's verified instructions"
        raise features.missing("verified instruction counts", wanted, "it does not tell")
    return int(found[1])


@contextmanager
def enabled_stats() -> Iterator[None]:
    """Enable the kernel's BPF run-time statistics within the block; they cost two clock reads per
    run of a program. Raises MissingError without the privilege or the feature.
    """
    stats_fd = lib.bpf_enable_stats(lib.BPF_STATS_RUN_TIME)
    if stats_fd in (-errno.EPERM, -errno.EACCES):
        raise MissingError("BPF run-time statistics", "CAP_SYS_ADMIN: run it with sudo")
    if stats_fd < 0:
        wanted = "measuring XDP's CPU time"
        raise features.missing("BPF run-time statistics", wanted, os.strerror(-stats_fd))
    try:
        yield
    finally:
        os.close(stats_fd)
