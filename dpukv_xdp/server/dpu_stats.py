# SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
"""The counters of the stores inside XDP, read from their maps."""

from typing import Any

from dpukv_xdp.kernel import loader
from dpukv_xdp.wire import abi

HIDDEN = (
    "lock", "owner", "round_tail", "wire_bytes", "values_bytes", "scratch", "place_word",
    "place_way", "place_own", "epoch", "short_number", "short_way", "had_long", "short_home",
    "short_marks", "number", "counts",
)  # fmt: skip
"""Fields of struct kv_dpu_store that are not one counter each."""


def dpu_store_stats(programs: loader.LoadedObject, engines: int) -> list[dict[str, Any]]:
    """Return the counters of the stores of the first `engines` engines, by their names in struct
    kv_dpu_store.

    A store that all engines share appears once, as engine 0's.
    """
    stores = programs.read_array("kv_dpu_stores", abi.dtype("kv_dpu_store"))[:engines]
    return [
        {"engine": engine, "place": "xdp"}
        | {name: int(store[name]) for name in stores.dtype.names or () if name not in HIDDEN}
        | {name: int(store["counts"][name]) for name in abi.fields("kv_operation_counts")}
        for engine, store in enumerate(stores)
    ]
