# SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
"""Build the native core: compile the C sources and let cffi read the headers of bpf/abi.

cffi (API mode) compiles a C probe of every structure, so a layout that differs from what the header
says cannot be imported. Nothing generated is kept in the repository.
"""

import os
from pathlib import Path

from cffi import FFI

from dpukv_xdp.wire.headers import CDEF_TYPES, declarations, numeric_macros

HERE = Path(__file__).resolve().parent
BPF_DIR = HERE.parent.parent / "bpf"

WARNINGS = ["-Wall", "-Wextra", "-Werror", "-Wno-unused-function"]
OUTSIDE = ("dpdk.c",)  # see dpukv_xdp/native/dpdk.py
SOURCES = sorted(
    path.name
    for path in HERE.glob("*.c")
    if not path.name.startswith("_") and path.name not in OUTSIDE
)

INCLUDES = ("<bpf/bpf.h>", "<bpf/libbpf.h>", '"abi/all.h"', '"kv_core.h"')

# Of libbpf and the kernel; the C compiler fills in "...".
CDEF_LIBBPF = """
enum { BPF_MAP_TYPE_ARRAY = ..., BPF_MAP_TYPE_PERCPU_ARRAY = ..., BPF_MAP_TYPE_ARRAY_OF_MAPS = ...,
	BPF_MAP_TYPE_RINGBUF = ..., BPF_F_MMAPABLE = ... };
enum { BPF_PROG_TYPE_XDP = ..., BPF_OBJ_NAME_LEN = ..., BPF_STATS_RUN_TIME = ... };
struct bpf_map_info { __u32 type, key_size, value_size, max_entries, map_flags, btf_id,
	btf_key_type_id, btf_value_type_id; ...; };
struct bpf_btf_info { __u64 btf; __u32 btf_size; ...; };
struct bpf_prog_info { __u32 id; char name[...]; __u64 run_time_ns, run_cnt; ...; };
struct bpf_map_create_opts { size_t sz; __u32 btf_fd, btf_key_type_id, btf_value_type_id,
	inner_map_fd, map_flags; ...; };
struct bpf_prog_load_opts { size_t sz; __u32 log_level, log_size; char *log_buf; ...; };
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
int bpf_enable_stats(int type);
int libbpf_num_possible_cpus(void);
"""


def make_ffi() -> FFI:
    """The builder that setuptools calls (`cffi_modules` in pyproject's setup hook)."""
    builder = FFI()
    builder.cdef(
        CDEF_TYPES
        + declarations(HERE / "kv_core.h", [BPF_DIR])
        + numeric_macros(sorted(BPF_DIR.glob("abi/*.h")), value="...")
        + CDEF_LIBBPF
    )
    flags = os.environ.get("DPUKV_CORE_CFLAGS", "").split()
    builder.set_source(
        "dpukv_xdp._core._native",
        "".join(f"#include {name}\n" for name in INCLUDES),
        sources=[os.path.relpath(HERE / name, HERE.parent.parent) for name in SOURCES],
        include_dirs=[str(HERE), str(BPF_DIR)],
        libraries=["xdp", "bpf"],
        depends=[str(path) for path in [*HERE.glob("*.h"), *BPF_DIR.rglob("*.h")]],
        # no-strict-aliasing: the communication engine's headers read frames as words, as BPF does
        extra_compile_args=["-std=gnu11", "-O3", "-g", "-fno-strict-aliasing", *WARNINGS, *flags],
    )
    return builder


ffibuilder = make_ffi()
