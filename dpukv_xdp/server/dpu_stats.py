# SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
"""The stores inside XDP: their maps, and their counters, read from there."""

from typing import Any

from dpukv_xdp.kernel import loader
from dpukv_xdp.wire import abi

DPU_REGIONS = ("kv_dpu_stores", "kv_dpu_lines", "kv_dpu_segments", "kv_dpu_short_lines")
"""Maps of the stores in XDP, which are regions of their own."""
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
