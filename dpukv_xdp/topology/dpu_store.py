# SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
"""The store inside XDP (bpf/store.h): its sizes as -D settings, and its counters."""

from dataclasses import dataclass
from typing import Any

from dpukv_xdp.base.errors import UsageError
from dpukv_xdp.kernel import loader
from dpukv_xdp.wire import abi

BUCKETS_MAX = 1 << 26
SEGMENTS_MIN = 2  # with one the verifier knows every offset, and follows each: see bpf/store.h
SEGMENTS_MAX = 1 << 15
HIDDEN = (
    "lock", "owner", "round_tail", "wire_bytes", "payload_bytes", "scratch", "place_word",
    "place_way", "place_own",
)  # fmt: skip
"""Fields of struct kv_dpu_store that count nothing."""


@dataclass(frozen=True, slots=True)
class DpuStoreSizes:
    """Of each store: one for all engines in XDP, or one for each."""

    buckets: int
    segments: int
    """64 KiB each; a power of two."""

    @classmethod
    def of(cls, items: int, log_bytes: int) -> "DpuStoreSizes":
        """For about `items` items and a log of at least `log_bytes`, as the host's store has them.

        Raises UsageError for more than BPF maps should hold.
        """
        least = max(-(-log_bytes // abi.KV_SEGMENT_BYTES), SEGMENTS_MIN)
        segments = 1 << (least - 1).bit_length()
        sizes = cls(-(-items // abi.KV_ITEMS_PER_BUCKET), segments)
        if sizes.buckets > BUCKETS_MAX or segments > SEGMENTS_MAX:
            raise UsageError(
                f"a store in XDP cannot be laid out for {items} items and a log of {log_bytes} "
                f"bytes: {BUCKETS_MAX * abi.KV_ITEMS_PER_BUCKET} items and "
                f"{SEGMENTS_MAX * abi.KV_SEGMENT_BYTES} bytes are the most"
            )
        return sizes

    def memory_bytes(self) -> int:
        """Kernel memory that the maps of one store take."""
        segment_bytes = abi.KV_SEGMENT_BYTES + abi.KV_SEGMENT_SLACK
        return 2 * self.buckets * abi.SIZE("kv_line") + self.segments * segment_bytes

    def settings(self, response_bytes_max: int, stores: int) -> dict[str, int]:
        """The -D settings of bpf/store.h and bpf/process.h; `stores` is 1, or the number of engines
        in XDP.
        """
        return {
            "KV_DPU_STORES": stores,
            "KV_DPU_BUCKETS": self.buckets,
            "KV_DPU_SEGMENTS": self.segments,
            "KV_RESPONSE_BYTES_MAX": response_bytes_max,
        }


def stats(programs: loader.LoadedObject, engines: int) -> list[dict[str, Any]]:
    """The counters of the first engines' stores, by their names in struct kv_dpu_store; of a store
    that all engines share, once, under engine 0.
    """
    stores = programs.read_array("kv_dpu_stores", abi.dtype("kv_dpu_store"))[:engines]
    return [
        {"engine": engine, "place": "xdp"}
        | {name: int(store[name]) for name in stores.dtype.names or () if name not in HIDDEN}
        for engine, store in enumerate(stores)
    ]
