# SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
"""The constants, enumerations and structures of bpf/abi for Python, without a C compiler.

Every `KV_...` enumerator and numeric macro of the headers is an attribute of this module
(`abi.KV_KEY_MAX`). Nothing here repeats a number, an offset or a name from the headers: `_layouts`
is written from them when the package is built (see headers.py), and cffi computes the offsets as
the C compiler does.
"""

from enum import IntEnum
from functools import cache
from typing import TYPE_CHECKING, Any, NamedTuple

from dpukv_xdp.base.places import BPF_DIR
from dpukv_xdp.wire._layouts import ffi

if TYPE_CHECKING:
    import numpy as np

HEADER_DIR = BPF_DIR / "abi"


class Field(NamedTuple):
    """A field of a structure."""

    offset: int
    """Offset in bytes."""
    size: int
    """Size in bytes."""
    is_array: bool


def __getattr__(name: str) -> int:
    """Return a constant of bpf/abi by its C name, and keep it as an attribute of the module. Raise
    AttributeError if no header has it.
    """
    if not name.startswith("KV_"):
        raise AttributeError(f"module 'dpukv_xdp.wire.abi' has no attribute {name!r}")
    value = int(ffi.integer_const(name))
    globals()[name] = value
    return value


def _enumeration(python_name: str, c_name: str, prefix: str) -> Any:
    """Return an IntEnum of a C enumeration, whose members do not have the C prefix."""
    members = {
        name.removeprefix(prefix): value
        for name, value in ffi.typeof(f"enum {c_name}").relements.items()
        if name.startswith(prefix)
    }
    return IntEnum(python_name, sorted(members.items(), key=lambda item: item[1]))


Operation = _enumeration("Operation", "kv_operation", "KV_OP_")
Result = _enumeration("Result", "kv_result", "KV_")
Counter = _enumeration("Counter", "kv_counter", "KV_COUNTER_")
Stage = _enumeration("Stage", "kv_stage", "KV_STAGE_")


def operations(mask: int) -> frozenset[Any]:
    """Return the operations in one of the masks KV_OPS_..., or in a combination of them."""
    return frozenset(operation for operation in Operation if mask >> operation & 1)


@cache
def dtype(struct_name: str) -> "np.dtype[np.void]":
    """Return the numpy dtype of a structure, field by field at the compiler's offsets."""
    return dtype_of(ffi.typeof(f"struct {struct_name}"))


@cache
def fields(struct_name: str) -> dict[str, Field]:
    """Return the fields of a structure in their order."""
    return {
        name: Field(field.offset, ffi.sizeof(field.type), field.type.kind == "array")
        for name, field in ffi.typeof(f"struct {struct_name}").fields
        if not _is_flexible(field.type)
    }


def SIZE(struct_name: str) -> int:  # noqa: N802 - reads as the C macro that it stands for
    """Return the size of a structure in bytes."""
    return int(ffi.sizeof(f"struct {struct_name}"))


def offset(struct_name: str, field_name: str) -> int:
    """Return the offset of a field in bytes."""
    return int(ffi.offsetof(f"struct {struct_name}", field_name))


def dtype_of(c_type: Any) -> "np.dtype[Any]":
    """Return the numpy dtype of a C type as cffi has it. Needs numpy, which clients do without."""
    import numpy as np

    if c_type.kind == "primitive":
        return np.dtype(f"{'i' if c_type.cname.startswith('int') else 'u'}{ffi.sizeof(c_type)}")
    if c_type.kind == "array":
        return np.dtype((dtype_of(c_type.item), (c_type.length,)))
    # Without a flexible member at the end, which takes no bytes of the structure.
    members = [(name, field) for name, field in c_type.fields if not _is_flexible(field.type)]
    return np.dtype(
        {
            "names": [name for name, _ in members],
            "formats": [dtype_of(field.type) for _, field in members],
            "offsets": [field.offset for _, field in members],
            "itemsize": ffi.sizeof(c_type),
        }
    )


def _is_flexible(c_type: Any) -> bool:
    return bool(c_type.kind == "array" and c_type.length is None)
