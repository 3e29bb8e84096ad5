# SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
"""Build the native core: compile the C sources and let cffi read bpf/kv_abi.h.

cffi (API mode) compiles a C probe of every structure, so a layout that differs from what the header
says cannot be imported. Nothing generated is kept in the repository.
"""

import os
import re
import subprocess
from pathlib import Path

from cffi import FFI

HERE = Path(__file__).resolve().parent
BPF_DIR = HERE.parent.parent / "bpf"

WARNINGS = ["-Wall", "-Wextra", "-Werror", "-Wno-unused-function"]
OUTSIDE = ("dpdk.c",)  # see dpukv_xdp/dpdk.py
SOURCES = sorted(
    path.name
    for path in HERE.glob("*.c")
    if not path.name.startswith("_") and path.name not in OUTSIDE
)

# As <linux/types.h> has them: __u64 is "unsigned long long" and not uint64_t.
CDEF_TYPES = (
    "typedef unsigned char __u8; typedef unsigned short __u16;"
    "typedef unsigned int __u32; typedef unsigned long long __u64;\n"
)


def declarations(header: Path) -> str:
    """The declarations of a C header as cffi's parser takes them: preprocessed, without includes
    and assertions.
    """
    command = [os.environ.get("CC", "cc"), "-E", "-P", "-DKV_ABI_CDEF", f"-I{BPF_DIR}", str(header)]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def numeric_macros(header: Path) -> str:
    """`#define NAME ...` for each macro that is a plain number: cffi asks the compiler for its
    value.
    """
    found = re.findall(
        r"^#define (KV_\w+) (?:0x[0-9a-f]+ULL|\d+)\b", header.read_text(), re.MULTILINE
    )
    return "".join(f"#define {name} ...\n" for name in found)


def make_ffi() -> FFI:
    """The builder that setuptools calls (`cffi_modules` in pyproject's setup hook)."""
    builder = FFI()
    builder.cdef(
        CDEF_TYPES + declarations(HERE / "kv_core.h") + numeric_macros(BPF_DIR / "kv_abi.h")
    )
    flags = os.environ.get("DPUKV_CORE_CFLAGS", "").split()
    builder.set_source(
        "dpukv_xdp._core._native",
        '#include "kv_abi.h"\n#include "kv_core.h"\n',
        sources=[os.path.relpath(HERE / name, HERE.parent.parent) for name in SOURCES],
        include_dirs=[str(HERE), str(BPF_DIR)],
        libraries=["xdp", "bpf"],  # socket.c
        depends=[str(path) for path in [*HERE.glob("*.h"), *BPF_DIR.glob("*.h")]],
        # no-strict-aliasing: the communication engine's headers read frames as words, as BPF does
        extra_compile_args=["-std=gnu11", "-O3", "-g", "-fno-strict-aliasing", *WARNINGS, *flags],
    )
    return builder


ffibuilder = make_ffi()
