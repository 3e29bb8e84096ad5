# SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
"""The headers of bpf/abi for Python: constants, enumerations and numpy dtypes, computed through
cffi.

Every `KV_...` enumerator and numeric macro of the headers is an attribute of this module
(`abi.KV_KEY_MAX`). Nothing here repeats a number, an offset or a name from the headers.
"""

from enum import IntEnum
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from dpukv_xdp._core._native import ffi, lib

BPF_DIR = Path(__file__).resolve().parents[2] / "bpf"
HEADER_DIR = BPF_DIR / "abi"


def __getattr__(name: str) -> int:
    """Return a constant of bpf/abi by its C name; AttributeError if no header has it."""
    if not name.startswith("KV_"):
        raise AttributeError(f"module 'dpukv_xdp.wire.abi' has no attribute {name!r}")
    return int(getattr(lib, name))


def _enumeration(python_name: str, c_name: str, prefix: str) -> Any:
    """An IntEnum of a C enumeration; members lose the prefix that C needs."""
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


@cache
def dtype(struct_name: str) -> np.dtype[np.void]:
    """The numpy dtype of a structure, field by field at the compiler's offsets; KeyError for an
    unknown name.
    """
    return dtype_of(ffi.typeof(f"struct {struct_name}"))


def dtype_of(c_type: Any) -> np.dtype[Any]:
    """Return the numpy dtype of a type that cffi knows."""
    if c_type.kind == "primitive":
        return np.dtype(f"{'i' if c_type.cname.startswith('int') else 'u'}{ffi.sizeof(c_type)}")
    if c_type.kind == "array":
        return np.dtype((dtype_of(c_type.item), (c_type.length,)))
    # Without a flexible member at the end, which takes no bytes of the structure.
    fields = [(name, field) for name, field in c_type.fields if not _is_flexible(field.type)]
    return np.dtype(
        {
            "names": [name for name, _ in fields],
            "formats": [dtype_of(field.type) for _, field in fields],
            "offsets": [field.offset for _, field in fields],
            "itemsize": ffi.sizeof(c_type),
        }
    )


def SIZE(struct_name: str) -> int:  # noqa: N802 - reads as the C macro that it stands for
    """Bytes in a structure."""
    return int(ffi.sizeof(f"struct {struct_name}"))


def offset(struct_name: str, field_name: str) -> int:
    """Bytes before a field."""
    return int(ffi.offsetof(f"struct {struct_name}", field_name))


def hash_key(key: bytes) -> int:
    """CityHash64 of a key: what MICA2 clients put into `key_hash`."""
    return int(lib.kv_hash(key, len(key)))


def hash_keys(keys: npt.NDArray[Any]) -> npt.NDArray[np.uint64]:
    """CityHash64 of many keys of one length: a uint64 array (8-byte keys) or a uint8 matrix [keys,
    key_bytes].
    """
    rows = np.ascontiguousarray(keys)
    key_bytes = rows.itemsize if rows.ndim == 1 else rows.shape[1] * rows.itemsize
    hashes = np.empty(rows.shape[0], dtype=np.uint64)
    lib.kv_hash_many(
        ffi.cast("uint8_t *", ffi.from_buffer(rows)),
        key_bytes,
        key_bytes,
        rows.shape[0],
        ffi.cast("uint64_t *", ffi.from_buffer(hashes)),
    )
    return hashes


def _is_flexible(c_type: Any) -> bool:
    return bool(c_type.kind == "array" and c_type.length is None)
