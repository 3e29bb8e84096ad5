# SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
"""Build the native core: compile the C sources and let cffi read the headers of bpf/abi.

It is two extensions: `_native`, the product, and `_bench`, what only measurements load. cffi (API
mode) compiles a C probe of every structure, so a layout that differs from what the headers say
cannot be imported. Nothing generated is kept in the repository.
"""

import os
from pathlib import Path
from typing import Any

from cffi import FFI

from dpukv_xdp.wire.headers import CDEF_TYPES, declarations, numeric_macros

HERE = Path(__file__).resolve().parent
BPF_DIR = HERE.parent.parent / "bpf"
INCLUDE_DIRS = [HERE, BPF_DIR]

WARNINGS = ["-Wall", "-Wextra", "-Werror", "-Wno-unused-function"]
BENCH_ROOM = "load"
OUTSIDE = ("port/dpdk.c",)
"""Sources built only where DPDK is installed: see dpukv_xdp/native/dpdk.py."""
SHARED = ("base/bpf_run.c", "base/memory.c", "port/socket.c")
"""Sources of the product that the benchmarks use, too; each extension has its own copy."""

NATIVE_INCLUDES = ("<bpf/bpf.h>", "<bpf/libbpf.h>", '"kv_core.h"')
BENCH_INCLUDES = (*NATIVE_INCLUDES, '"load/kv_bench.h"')

# Of libbpf and the kernel; the C compiler fills in "...".
CDEF_LIBBPF = """
enum { BPF_MAP_TYPE_ARRAY = ..., BPF_MAP_TYPE_PERCPU_ARRAY = ..., BPF_MAP_TYPE_ARRAY_OF_MAPS = ...,
	BPF_MAP_TYPE_RINGBUF = ..., BPF_F_MMAPABLE = ... };
enum { BPF_XDP = ... };
enum { BPF_PROG_TYPE_XDP = ..., BPF_OBJ_NAME_LEN = ..., BPF_STATS_RUN_TIME = ... };
struct bpf_map_info { __u32 type, key_size, value_size, max_entries, map_flags, btf_id,
	btf_key_type_id, btf_value_type_id; ...; };
struct bpf_btf_info { __u64 btf; __u32 btf_size; ...; };
struct bpf_prog_info { __u32 id; char name[...]; __u64 run_time_ns, run_cnt; ...; };
struct bpf_map_create_opts { size_t sz; __u32 btf_fd, btf_key_type_id, btf_value_type_id,
	inner_map_fd, map_flags; ...; };
struct bpf_prog_load_opts { size_t sz; __u32 log_level, log_size; char *log_buf; ...; };
struct bpf_link_create_opts { size_t sz; __u32 flags; ...; };
struct bpf_xdp_query_opts { size_t sz; __u32 drv_prog_id, hw_prog_id, skb_prog_id; ...; };
int bpf_map_create(int type, const char *name, __u32 key_size, __u32 value_size,
	__u32 max_entries, const struct bpf_map_create_opts *options);
int bpf_prog_load(int type, const char *name, const char *license, const void *instructions,
	size_t count, const struct bpf_prog_load_opts *options);
int bpf_btf_load(const void *data, size_t size, const void *options);
int bpf_btf_get_fd_by_id(__u32 id);
int bpf_prog_get_fd_by_id(__u32 id);
int bpf_obj_get_info_by_fd(int fd, void *info, __u32 *info_size);
int bpf_map_lookup_elem(int fd, const void *key, void *value);
int bpf_map_update_elem(int fd, const void *key, const void *value, __u64 flags);
int bpf_link_create(int prog_fd, int target_fd, int attach_type,
	const struct bpf_link_create_opts *options);
int bpf_enable_stats(int type);
int bpf_xdp_query(int ifindex, int flags, struct bpf_xdp_query_opts *options);
int libbpf_num_possible_cpus(void);
"""


def sources(*rooms: str) -> list[str]:
    """Return the C sources in these folders of _core ("": its own), by their paths there."""
    found = [path for room in rooms for path in sorted((HERE / room).glob("*.c"))]
    names = [path.relative_to(HERE).as_posix() for path in found if not path.name.startswith("_")]
    return [name for name in names if name not in OUTSIDE]


def product_rooms() -> list[str]:
    """Return the folders of _core whose sources a server needs."""
    folders = sorted({path.parent for path in HERE.rglob("*.c")})
    rooms = ["" if folder == HERE else folder.relative_to(HERE).as_posix() for folder in folders]
    return [room for room in rooms if room != BENCH_ROOM]


def make_native() -> FFI:
    """Return the builder of `_native`."""
    builder = FFI()
    builder.cdef(
        CDEF_TYPES
        + declarations(HERE / "kv_core.h", INCLUDE_DIRS)
        + numeric_macros(sorted(BPF_DIR.glob("abi/*.h")), value="...")
        + CDEF_LIBBPF
    )
    _set_source(builder, "_native", NATIVE_INCLUDES, sources(*product_rooms()), ["xdp", "bpf"])
    return builder


def make_bench(native: FFI) -> FFI:
    """Return the builder of `_bench`, which shares the types of `native`."""
    builder = FFI()
    builder.include(native)
    header = HERE / BENCH_ROOM / "kv_bench.h"
    builder.cdef(declarations(header, INCLUDE_DIRS, after=HERE / "kv_core.h"))
    _set_source(builder, "_bench", BENCH_INCLUDES, [*sources(BENCH_ROOM), *SHARED], ["xdp"])
    return builder


def _set_source(
    builder: Any, name: str, includes: tuple[str, ...], names: list[str], libraries: list[str]
) -> None:
    flags = os.environ.get("DPUKV_CORE_CFLAGS", "").split()
    builder.set_source(
        f"dpukv_xdp._core.{name}",
        "".join(f"#include {include}\n" for include in includes),
        sources=[os.path.relpath(HERE / source, HERE.parent.parent) for source in names],
        include_dirs=[str(folder) for folder in INCLUDE_DIRS],
        libraries=libraries,
        depends=[str(path) for path in [*HERE.rglob("*.h"), *BPF_DIR.rglob("*.h")]],
        # no-strict-aliasing: the communication engine's headers read frames as words, as BPF does
        extra_compile_args=["-std=gnu11", "-O3", "-g", "-fno-strict-aliasing", *WARNINGS, *flags],
    )


native_builder = make_native()
bench_builder = make_bench(native_builder)
