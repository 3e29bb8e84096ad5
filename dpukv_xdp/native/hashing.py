# SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
"""CityHash64 of many keys in one call to the native core."""

from typing import Any

import numpy as np
import numpy.typing as npt

from dpukv_xdp._core._native import ffi, lib


def hash_keys(keys: npt.NDArray[Any]) -> npt.NDArray[np.uint64]:
    """Return the hashes of keys of one length, shape [keys].

    `keys` is a uint64 array (8-byte keys) or a uint8 matrix of shape [keys, key_bytes].
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
