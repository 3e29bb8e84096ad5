# SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
"""Read the C headers at build time, without a C compiler: what cffi's parser takes of them.

setup.py writes `_layouts.py` beside this file from it: structures, enumerations and constants as a
Python module of cffi's ABI mode. The native core declares the same text to cffi, and there the C
compiler computes every layout again.
"""

import io
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from cffi import FFI
from pcpp import Preprocessor

CDEF_TYPES = (
    "typedef unsigned char __u8; typedef unsigned short __u16;"
    "typedef unsigned int __u32; typedef unsigned long long __u64;\n"
)
"""The types of <linux/types.h>: __u64 is "unsigned long long" and not uint64_t."""

CDEF_DEFINE = "KV_ABI_CDEF"
"""Macro under which a header hides what cffi's parser does not know: includes of the system,
assertions, inline functions.
"""


def make_layouts(bpf_dir: Path) -> FFI:
    """Return the builder of the module dpukv_xdp.wire._layouts."""
    headers = sorted(bpf_dir.glob("abi/*.h"))
    builder = FFI()
    builder.cdef(
        CDEF_TYPES + declarations(bpf_dir / "abi" / "all.h", [bpf_dir]) + numeric_macros(headers)
    )
    builder.set_source("dpukv_xdp.wire._layouts", None)
    return builder


def declarations(header: Path, include_dirs: Sequence[Path]) -> str:
    """Return the declarations of a C header as cffi's parser takes them: preprocessed with
    CDEF_DEFINE. Raises ValueError for a header that cannot be preprocessed.
    """
    preprocessor = Preprocessor()
    preprocessor.line_directive = None
    preprocessor.define(f"{CDEF_DEFINE} 1")
    for folder in include_dirs:
        preprocessor.add_path(str(folder))
    preprocessor.parse(header.read_text(), str(header))
    output = io.StringIO()
    preprocessor.write(output)
    if preprocessor.return_code:
        raise ValueError(f"{header} could not be preprocessed: see above")
    return output.getvalue()


def numeric_macros(headers: Iterable[Path], value: str | None = None) -> str:
    """Return `#define NAME VALUE` for each macro that is a plain number. With `value` "..." the C
    compiler is asked instead of the header's text.
    """
    found = [
        match
        for header in headers
        for match in re.findall(
            r"^#define (KV_\w+) (0x[0-9a-f]+ULL|\d+)\b", header.read_text(), re.MULTILINE
        )
    ]
    return "".join(f"#define {name} {value or number}\n" for name, number in found)
