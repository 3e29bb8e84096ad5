# SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
"""The sizes of a store inside XDP (bpf/store/dpu_store.h), as settings of its program."""

from dataclasses import dataclass

from dpukv_xdp.base.errors import UsageError
from dpukv_xdp.wire import abi

BUCKETS_MAX = 1 << 26
SHORT_LINES_MAX = 2 * BUCKETS_MAX
"""As many as a cache's index has. bpf/store/dpu_short_items.h says why 2^29 would be too many."""
SEGMENTS_MIN = 2  # with one, the verifier knows every offset and explores each: see bpf/store/
SEGMENTS_MAX = 1 << 15


@dataclass(frozen=True, slots=True)
class DpuStoreSizes:
    """Sizes of each store in XDP: one for all engines there, or one for each."""

    buckets: int
    segments: int
    """64 KiB each; a power of two."""
    short_lines: int = 0
    """Lines of an inline store; 0 for a cache."""

    @classmethod
    def of(cls, items: int, log_bytes: int, *, is_inline: bool = False) -> "DpuStoreSizes":
        """Return the sizes for about `items` items and a log of at least `log_bytes`, as the host's
        store has them. An inline store has lines for the items, and an index for its log's.

        Raises UsageError for more than BPF maps should hold.
        """
        least = max(-(-log_bytes // abi.KV_SEGMENT_BYTES), SEGMENTS_MIN)
        segments = 1 << (least - 1).bit_length()
        indexed, short_lines = items, 0
        if is_inline:
            log_items = segments * abi.KV_SEGMENT_BYTES // abi.KV_SHORT_LOG_BYTES_PER_ITEM
            indexed = min(items, log_items + 1)
            lines = -(-items * 8 // abi.KV_SHORT_ITEMS_PER_8_LINES)
            short_lines = -(-lines // abi.KV_SHORT_GROUP) * abi.KV_SHORT_GROUP
        sizes = cls(-(-indexed // abi.KV_ITEMS_PER_BUCKET), segments, short_lines)
        most = BUCKETS_MAX * abi.KV_ITEMS_PER_BUCKET
        if is_inline:
            most = SHORT_LINES_MAX * abi.KV_SHORT_ITEMS_PER_8_LINES // 8
        if items > most or sizes.buckets > BUCKETS_MAX or segments > SEGMENTS_MAX:
            raise UsageError(
                f"a store in XDP cannot be laid out for {items} items and a log of {log_bytes} "
                f"bytes: {most} items and {SEGMENTS_MAX * abi.KV_SEGMENT_BYTES} bytes are the most"
            )
        return sizes

    def memory_bytes(self) -> int:
        """Return the kernel memory that the maps of one store take."""
        segment_bytes = abi.KV_SEGMENT_BYTES + abi.KV_SEGMENT_SLACK
        lines_bytes = 2 * self.buckets * abi.SIZE("kv_line")
        short_bytes = self.short_lines * abi.SIZE("kv_short_line")
        return lines_bytes + short_bytes + self.segments * segment_bytes

    def settings(self, response_bytes_max: int, stores: int) -> dict[str, int]:
        """Return the settings of bpf/store/dpu_store.h and bpf/service/process.h.

        `stores` is 1, or the number of engines in XDP.
        """
        return {
            "KV_DPU_SHARED": int(stores == 1),
            "KV_DPU_STORES": stores,
            "KV_DPU_BUCKETS": self.buckets,
            "KV_DPU_LINES": 2 * self.buckets,
            "KV_DPU_SEGMENTS": self.segments,
            "KV_DPU_SEGMENT_MASK": self.segments - 1,
            "KV_DPU_LOG_BYTES": self.segments * abi.KV_SEGMENT_BYTES,
            "KV_DPU_SHORT_LINES": self.short_lines,
            "KV_DPU_SHORT_ENTRIES": max(self.short_lines, 1),
            "KV_RESPONSE_BYTES_MAX": response_bytes_max,
        }
