# SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
"""Compile BPF programs with bcc and cache the result. The only module that uses bcc.

clang takes 1 to 5 seconds for one of our sources, and a bench needs two; loading a compiled one
takes a tenth of that. bcc creates the maps while it compiles, so a cached object describes what the
kernel was given: the maps, the programs' instructions, and the types (BTF), without which the
kernel refuses a map with a lock.
"""

import ctypes
import fcntl
import hashlib
import importlib.util
import os
import re
import signal
import stat
import struct
import tempfile
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, NoReturn

import msgspec

from dpukv_xdp._core._native import ffi, lib
from dpukv_xdp.base.errors import DpukvError, LoadError, MissingError
from dpukv_xdp.base.places import BPF_DIR
from dpukv_xdp.base.processes import die_with
from dpukv_xdp.base.scratch import replacing
from dpukv_xdp.kernel import kernel_headers

LOCK_NAME = "programs.lock"
"""File beside the directory of compiled objects: see `_alone`."""
KEPT_OBJECTS_MAX = 500
"""Most compiled objects in the cache; the oldest are removed first."""

# clang warns about the kernel's own headers, not ours.
_WARNINGS = ("-Wno-address-of-packed-member", "-Wno-unknown-warning-option")
_KEEPS = "4"
"""Version of the cache: change it with the layout of CompiledObject or the parts of its key."""
_INSTRUCTION = struct.Struct("=BBhi")
_WIDE_LOAD = struct.Struct("=BBhIII")
"""A double instruction: the first half has the constant's lower word, the second its upper word."""
_LOAD_WORD = 0x18
"""Opcode of the instruction that loads 64 bits: BPF_LD | BPF_IMM | BPF_DW."""
_MAP_FD = 1
"""Its source register if the constant is a map's file descriptor: BPF_PSEUDO_MAP_FD."""
_NUMBER = 0
"""Its source register if the constant is a plain number."""
SETTINGS_AT_LOAD = (
    "KV_PORT",
    "KV_ADDRESS",
    "KV_PORT_COUNT",
    "KV_RESPONSE_BYTES_MAX",
    "KV_ENGINES",
    "KV_DPU_ENGINES",
    "KV_CPUS",
    "KV_DEPTH_MIN",
    "KV_DEPTH_MAX",
    "KV_SENDER_ONLY",
    "KV_TRANSFER_PER_REQUEST",
    "KV_PREPARE_OVERLAPS",
    "KV_SLOWER_PERCENT",
    "KV_SILENT_NS",
    "KV_WHEN_SILENT",
    "KV_MAC",
    "KV_BROADCAST",
    "KV_DPU_STORES",
    "KV_DPU_SHORT_ENTRIES",
    "KV_DPU_BUCKETS",
    "KV_DPU_LINES",
    "KV_DPU_SEGMENTS",
    "KV_DPU_SEGMENT_MASK",
    "KV_DPU_LOG_BYTES",
    "KV_DPU_SHORT_LINES",
)
"""Settings that are filled in at load time; compiled code has their index instead of a value."""
ENTRIES_AT_LOAD = {
    "kv_queue_pairs": ("KV_ENGINES", "KV_CPUS"),
    "kv_dpu_queues": ("KV_ENGINES", "KV_CPUS"),
    "kv_parked": ("KV_ENGINES", "KV_CPUS"),
    "kv_request_rings": ("KV_ENGINES",),
    "kv_heartbeats": ("KV_ENGINES",),
    "kv_dpu_lines": ("KV_DPU_STORES", "KV_DPU_LINES"),
    "kv_dpu_segments": ("KV_DPU_STORES", "KV_DPU_SEGMENTS"),
    "kv_dpu_short_lines": ("KV_DPU_STORES", "KV_DPU_SHORT_ENTRIES"),
    "kv_dpu_stores": ("KV_DPU_STORES",),
}
"""The settings whose product is the number of entries of a map."""
_SETTING_MARKER = 0x4B56A70A
"""Upper word of a constant that is such a setting: see KV_AT_LOAD in bpf/base/side.h."""
_OPERAND_MARKER = 0x4B56A700
"""Operand of an instruction, less the index of such a setting: see KV_WITH_SETTING there."""
OPERAND_END = 1 << 31
"""End of the range of an operand's values: it is signed, and none of ours is negative."""
_ALU64_WITH_NUMBER = 0x07
"""Lower four bits of the opcode of 64-bit arithmetic with a number in the instruction."""


class MapPlan(msgspec.Struct, frozen=True):
    """The arguments of bpf_map_create() for one map."""

    name: str
    type: int
    key_bytes: int
    value_bytes: int
    entries: int
    flags: int
    key_type: int
    """Number of the key's type in the object's BTF; 0 = none."""
    value_type: int
    """Number of the value's type in the object's BTF; 0 = none."""


class CompiledObject(msgspec.Struct, frozen=True):
    """One source file, compiled with some settings."""

    maps: tuple[MapPlan, ...]
    programs: dict[str, bytes]
    """Instructions of each program by name. They contain the index in `maps` instead of a map's
    file descriptor, and a marker instead of a setting of SETTINGS_AT_LOAD: see `filled_in`.
    """
    btf: bytes


def compile_source(source: Path, settings: Mapping[str, int]) -> CompiledObject:
    """Return `source` compiled with `settings` as -D options, from the cache if possible.

    The result has all programs, and does not depend on the values of SETTINGS_AT_LOAD, which
    `filled_in` inserts. Raises MissingError without bcc, LoadError if clang refuses the source.
    """
    defines = tuple(_options(settings))
    key = _key(source, defines)
    found = _kept(key)
    if found is None:
        with _alone(key):
            found = _kept(key)
            if found is None:
                found = _compile(source, defines)
                _keep(key, found)
    return found


def telling_line(source: Path, log: str, error: str) -> str:
    """Return the line of a log that says what is wrong: clang's first error, or the verifier's last
    line before its summary.
    """
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    for line in lines:
        if re.search(r"\berror:", line):
            return line
    verdicts = [
        line for line in lines if not re.match(r"(processed \d+ insns|verification time)", line)
    ]
    detail = verdicts[-1] if verdicts else error
    return f"{source.name} was refused by the kernel's verifier: {detail}"


# ---- Compiling


def _compile(source: Path, defines: Sequence[str]) -> CompiledObject:
    """Compile in a child process, because LLVM ends its process for some errors, such as too large
    a stack. Raises MissingError without bcc or headers, LoadError if clang refuses the source.
    """
    if importlib.util.find_spec("bcc") is None:
        raise MissingError("bcc", "Debian's package python3-bpfcc: run tools/setup")
    headers = kernel_headers.kernel_source()
    answer_fd, answer_end_fd = os.pipe()
    with os.fdopen(answer_fd, "rb") as answer, tempfile.TemporaryFile() as log:
        parent, libc = os.getpid(), ctypes.CDLL(None)
        child = os.fork()
        if child == 0:
            die_with(parent, libc)
            if headers is not None:
                os.environ[kernel_headers.VARIABLE] = str(headers)
            _compile_and_end(answer_end_fd, log.fileno(), source, defines)
        os.close(answer_end_fd)
        try:
            compiled = answer.read()
        finally:
            os.kill(child, signal.SIGKILL)  # it has answered, or Ctrl-C wants no answer any more
            os.waitpid(child, 0)
        if compiled:
            return msgspec.msgpack.decode(compiled, type=CompiledObject)
        log.seek(0)
        text = log.read().decode(errors="replace")
    raise LoadError(telling_line(source, text, "the compiler ended without a word"), text)


def _compile_and_end(
    answer_fd: int,
    log_fd: int,
    source: Path,
    defines: Sequence[str],
) -> NoReturn:
    """Write the compiled object to `answer_fd`, or what is wrong to `log_fd`; end this process.

    clang writes to file descriptor 2 from C++.
    """
    try:
        os.dup2(log_fd, 2)
        compiled = _compile_here(source, defines)
        with os.fdopen(answer_fd, "wb") as answer:
            answer.write(msgspec.msgpack.encode(compiled))
    except Exception:  # noqa: BLE001 - bcc raises it bare; the parent raises what is written here
        os.write(2, f"\n{traceback.format_exc()}".encode())
    finally:
        os._exit(0)


def _compile_here(source: Path, defines: Sequence[str]) -> CompiledObject:
    import bcc

    module = bcc.BPF(
        src_file=str(source).encode(),
        cflags=[*_include_flags(source), *_WARNINGS, *defines],
    )
    fds = _map_fds(bcc, module)
    numbers = {fd: number for number, fd in enumerate(fds.values())}
    infos = {name: info_of("struct bpf_map_info", fd) for name, fd in fds.items()}
    return CompiledObject(
        maps=tuple(_map_plan(name, info) for name, info in infos.items()),
        programs={
            name.decode(): patched(module.dump_func(name), numbers.__getitem__)
            for name in _program_names(bcc, module)
        },
        btf=_btf({info.btf_id for info in infos.values()} - {0}),
    )


def _include_flags(source: Path) -> list[str]:
    """Return the -I options for our headers: the source's folder, then bpf/.

    The paths must be absolute, because bcc compiles in the kernel tree.
    """
    return [f"-I{directory}" for directory in (source.parent.resolve(), BPF_DIR)]


def _map_fds(bcc: Any, module: Any) -> dict[str, int]:
    """Return the file descriptors of all maps by name.

    bcc's Python offers no list of maps, so the C functions are declared here.
    """
    table_count, table_name = bcc.lib.bpf_num_tables, bcc.lib.bpf_table_name
    table_count.argtypes = [ctypes.c_void_p]
    table_name.argtypes, table_name.restype = [ctypes.c_void_p, ctypes.c_size_t], ctypes.c_char_p
    names = [table_name(module.module, number) for number in range(table_count(module.module))]
    return {name.decode(): bcc.lib.bpf_table_fd(module.module, name) for name in names}


def _program_names(bcc: Any, module: Any) -> list[bytes]:
    count, name = bcc.lib.bpf_num_functions, bcc.lib.bpf_function_name
    return [name(module.module, number) for number in range(count(module.module))]


def _map_plan(name: str, info: Any) -> MapPlan:
    return MapPlan(
        name=name,
        type=info.type,
        key_bytes=info.key_size,
        value_bytes=info.value_size,
        entries=info.max_entries,
        flags=info.map_flags,
        key_type=info.btf_key_type_id,
        value_type=info.btf_value_type_id,
    )


def _btf(btf_ids: set[int]) -> bytes:
    """Return the BTF that the maps refer to, which is one for all; empty if no map has types."""
    for btf_id in btf_ids:
        fd = lib.bpf_btf_get_fd_by_id(btf_id)
        if fd < 0:
            raise DpukvError(f"cannot read the types of a BPF map: {os.strerror(-fd)}")
        try:
            size = info_of("struct bpf_btf_info", fd).btf_size
            data = ffi.new("uint8_t[]", size)
            info_of("struct bpf_btf_info", fd, btf=int(ffi.cast("uintptr_t", data)), btf_size=size)
            return bytes(ffi.buffer(data))
        finally:
            os.close(fd)
    return b""


def info_of(kind: str, fd: int, **asked: int) -> Any:
    """Return the kernel's information on a map or BTF object.

    `asked` presets fields of the structure, such as the buffer for further data.
    """
    info = ffi.new(f"{kind} *", asked)
    status = lib.bpf_obj_get_info_by_fd(fd, info, ffi.new("__u32 *", ffi.sizeof(kind)))
    if status < 0:
        raise DpukvError(f"cannot ask for a BPF object's properties: {os.strerror(-status)}")
    return info


def patched(instructions: bytes, number_of: Callable[[int], int]) -> bytes:
    """Return the instructions with each map reference replaced by `number_of` it."""
    found = bytearray(instructions)
    for at in range(0, len(found), _INSTRUCTION.size):
        code, registers, offset, number = _INSTRUCTION.unpack_from(found, at)
        if code == _LOAD_WORD and registers >> 4 == _MAP_FD:
            _INSTRUCTION.pack_into(found, at, code, registers, offset, number_of(number))
    return bytes(found)


def filled_in(instructions: bytes, settings: Mapping[str, int]) -> bytes:
    """Return the instructions with the values of SETTINGS_AT_LOAD filled in, each below 2^64.

    Raises DpukvError for a value of OPERAND_END or more that KV_WITH_SETTING uses.
    """
    found = bytearray(instructions)
    for at in range(0, len(found) - _WIDE_LOAD.size + 1, _INSTRUCTION.size):
        code, registers, _, number, rest, marker = _WIDE_LOAD.unpack_from(found, at)
        if code == _LOAD_WORD and registers >> 4 == _NUMBER and marker == _SETTING_MARKER:
            value = settings[SETTINGS_AT_LOAD[number]]
            upper, lower = divmod(value, 1 << 32)
            _WIDE_LOAD.pack_into(found, at, code, registers, 0, lower, rest, upper)
        elif code & 0xF == _ALU64_WITH_NUMBER and number & ~0xFF == _OPERAND_MARKER:
            name = SETTINGS_AT_LOAD[number - _OPERAND_MARKER]
            if settings[name] >= OPERAND_END:
                raise DpukvError(f"{name}={settings[name]} is no operand: it must be below 2^31")
            _INSTRUCTION.pack_into(found, at, code, registers, 0, settings[name])
    return bytes(found)


def _options(settings: Mapping[str, int]) -> Iterator[str]:
    """Yield the -D options of settings; one that is filled in has its index instead of a value."""
    for name, value in settings.items():
        if name in SETTINGS_AT_LOAD:
            index = SETTINGS_AT_LOAD.index(name)
            yield from (f"-D{name}=KV_AT_LOAD({index})", f"-DKV_NUMBER_OF_{name}={index}")
        else:
            yield f"-D{name}={value}"


# ---- The cache


def _key(source: Path, defines: Sequence[str]) -> str:
    """Return a digest of everything that the result depends on: our sources, the settings, bcc, the
    architecture and the release of the kernel headers.

    Neither the running kernel nor the checkout's path is part of it. An object compiled on one
    machine loads on another one with the same headers, as in the guests of tools/test --kernels.
    """
    digest = hashlib.sha256()
    headers = kernel_headers.headers_release()
    machine = os.uname().machine
    facts = [_KEEPS, _bcc_version(), headers, machine, *_WARNINGS, *defines]
    for fact in (*facts, *_texts(source)):
        digest.update(fact.encode() + b"\0")
    return digest.hexdigest()


def _texts(source: Path) -> Iterator[str]:
    """Yield the text of the source and of all our headers that it includes."""
    waiting, seen = [source], set[Path]()
    while waiting:
        path = waiting.pop()
        if path in seen:
            continue
        seen.add(path)
        text = path.read_text()
        yield text
        for name in re.findall(r'^\s*#\s*include\s+"([^"]+)"', text, re.MULTILINE):
            places = [folder / name for folder in (path.parent, source.parent, BPF_DIR)]
            waiting += [place for place in places if place.is_file()][:1]


def _bcc_version() -> str:
    """Return the text of bcc's version file, without importing bcc, which would load LLVM."""
    spec = importlib.util.find_spec("bcc")
    if spec is None or spec.origin is None:
        return "none"
    return Path(spec.origin).with_name("version.py").read_text()


def _kept(key: str) -> CompiledObject | None:
    """Return a cached object; None if there is none, or if other users could have written it,
    because it would run in the kernel.
    """
    for cache in kernel_headers.CACHE_DIRS:
        path = cache / "programs" / key
        try:
            with path.open("rb") as file:
                status = os.fstat(file.fileno())
                if status.st_uid not in (0, os.geteuid()) or status.st_mode & (
                    stat.S_IWGRP | stat.S_IWOTH
                ):
                    continue
                return msgspec.msgpack.decode(file.read(), type=CompiledObject)
        except (OSError, msgspec.DecodeError):
            continue
    return None


@contextmanager
def _alone(key: str) -> Iterator[None]:
    """Keep other processes from compiling the same meanwhile, if a cache directory is writable.

    They lock a byte of one file that the key chooses; the kernel unlocks it if this process dies.
    """
    with ExitStack() as cleanup:
        with suppress(DpukvError, OSError):
            path = kernel_headers.writable_cache() / LOCK_NAME
            lock = cleanup.enter_context(path.open("a"))
            fcntl.lockf(lock, fcntl.LOCK_EX, 1, int(key[:8], 16))
        yield


def _keep(key: str, compiled: CompiledObject) -> None:
    """Add an object to the cache; do nothing if no cache directory is writable."""
    with suppress(DpukvError, OSError):
        directory = kernel_headers.writable_cache() / "programs"
        directory.mkdir(mode=0o755, exist_ok=True)
        with replacing(directory / key) as fresh:
            fresh.write_bytes(msgspec.msgpack.encode(compiled))
        kept = sorted(directory.iterdir(), key=lambda path: path.stat().st_mtime, reverse=True)
        for path in kept[KEPT_OBJECTS_MAX:]:
            path.unlink(missing_ok=True)
