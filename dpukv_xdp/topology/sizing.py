# SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
"""The memory that a server's settings ask for: stores, logs and queue pairs in bytes, and whether
they fit into the memory that is free.
"""

import math
from pathlib import Path
from typing import Any

from dpukv_xdp._core._native import ffi, lib
from dpukv_xdp.base.errors import MissingError
from dpukv_xdp.base.machine import possible_cpus
from dpukv_xdp.topology import ranges
from dpukv_xdp.topology.dpu_store import DpuStoreSizes
from dpukv_xdp.topology.schema import ServerConfig
from dpukv_xdp.wire import abi

STORE_KIND_NAMES = {
    "cache": "KV_STORE_CACHE",
    "lossless": "KV_STORE_LOSSLESS",
    "inline": "KV_STORE_INLINE",
}
"""The name in the native core's headers of each kind of store."""
BLOCK_BYTES = 8
"""Bytes in front of each item in the memory of a lossless store's allocator."""
INLINE_LOG_BYTES = 1.5
"""Log bytes for each item of an inline store by default: with its lines that makes 39 bytes."""
INLINE_LOG_BYTES_MIN = 64 << 20
"""Least log bytes of an inline store by default. Only what is written takes memory."""
GIB = 1 << 30
ROOMY_LOG_BYTES = 128 << 20
"""Most bytes by which a log of the default size exceeds the items that it was asked for."""
DENSE_ITEMS = 1 << 26
"""Items from which the index has 4.5 items per bucket instead of 3: 192 Mi items of 8/8 bytes then
take 12 GiB, and one item in some 150,000 finds its bucket full.
"""
DENSITY = abi.KV_ITEMS_PER_BUCKET / 4.5
SIGMAS = 6.0
"""Standard deviations by which the keys of one partition may exceed its even share."""
NEVER_TO_HEAD = 1 << 16
"""Value of kv_store_options.move_to_head for FIFO."""


def check_memory(config: ServerConfig) -> None:
    """Raise MissingError if the server does not fit into the free memory.

    Without this check the kernel would find out while the pages fill, and kill a process.
    """
    needed_bytes = memory_bytes(config)
    free_bytes = free_memory_bytes()
    if needed_bytes > free_bytes:
        raise MissingError(
            f"a store of {config.items} items",
            f"{needed_bytes / GIB:.1f} GiB of memory, and {free_bytes / GIB:.1f} GiB are free: "
            f"ask for fewer items or a smaller log",
        )


def free_memory_bytes() -> int:
    """Return the memory that is available without swapping, plus free reserved huge pages."""
    fields = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())

    def number(name: str) -> int:
        return int(fields.get(name, "0").split()[0])

    huge_kib = number("HugePages_Free") * number("Hugepagesize")
    return (number("MemAvailable") + huge_kib) << 10


def memory_bytes(config: ServerConfig) -> int:
    """Return the bytes of all stores and queue pairs of a server whose stores are full."""
    return store_bytes(config) + queue_pair_bytes(config)


def queue_pair_bytes(config: ServerConfig) -> int:
    """Return the bytes of all queue pairs, with their private parts: each engine has one with every
    core that the kernel may ever use, and one with every endpoint behind a host door.
    """
    placement = config.placement()
    sides = min(possible_cpus(), abi.KV_CPUS_MAX) + len(placement.behind("host"))
    parts = ("kv_queue_pair", "kv_dpu_queue", "kv_parked")
    return len(placement.engines) * sides * sum(map(abi.SIZE, parts))


def store_bytes(config: ServerConfig) -> int:
    """Return the bytes of all stores: indexes and logs."""
    placement = config.placement()
    needed_bytes = 0
    if placement.native():
        options = partition_options(config)
        needed_bytes += config.partition_count() * int(lib.kv_store_memory_bytes(options))
        if config.access_mode() != "erew":
            needed_bytes += config.partition_count() * int(lib.kv_store_version_bytes(options))
    if dpu_store_count(config):
        needed_bytes += dpu_store_count(config) * dpu_store_sizes(config).memory_bytes()
    return needed_bytes


def index_bytes(config: ServerConfig) -> int:
    """Return the bytes of all indexes of stores on the host."""
    options = partition_options(config)
    index = int(lib.kv_store_memory_bytes(options) - options.log_bytes)
    return config.partition_count() * index


def item_bytes(config: ServerConfig, key_bytes: int, value_bytes: int) -> int:
    """Return the bytes of log, or of the allocator's memory, that an item takes."""
    if config.store == "inline" and max(key_bytes, value_bytes) <= abi.KV_INLINE_MAX:
        return 0
    block = BLOCK_BYTES if config.store == "lossless" else 0
    return int(lib.kv_store_entry_bytes(key_bytes, value_bytes)) + block


def log_bytes_total(config: ServerConfig) -> int:
    """Return the log bytes of all stores, before the allowance for uneven shares."""
    items_bytes = config.items * item_bytes(config, 8, 8)
    return config.log_bytes or roomy_log_bytes(config, items_bytes)


def roomy_log_bytes(config: ServerConfig, items_bytes: int) -> int:
    """Return the log bytes with which items of so many bytes have room, over all partitions."""
    least = config.partition_count() * ranges.LOG_BYTES_MIN
    if config.store == "inline":
        least = max(least, int(config.items * INLINE_LOG_BYTES), INLINE_LOG_BYTES_MIN)
    return max(items_bytes + min(items_bytes, ROOMY_LOG_BYTES), least)


def partition_options(config: ServerConfig) -> Any:
    """Return struct kv_store_options for the native store of one partition."""
    options = ffi.new("struct kv_store_options *")
    items, log_bytes = _share(config, config.partition_count())
    is_dense = config.items >= DENSE_ITEMS and config.store != "inline"
    options.item_count = int(items * DENSITY) if is_dense else items
    options.log_bytes = log_bytes
    options.kind = getattr(lib, STORE_KIND_NAMES[config.store])
    options.want_huge = config.huge_pages
    options.move_to_head = round(config.move_to_head * NEVER_TO_HEAD)
    return options


def dpu_store_sizes(config: ServerConfig) -> DpuStoreSizes:
    """Return the sizes of each store in XDP.

    In a design with two doors either door may get nearly all keys. Raises UsageError for more than
    BPF maps hold.
    """
    parts = 1 if dpu_store_count(config) == 1 else config.engines
    return DpuStoreSizes.of(*_share(config, parts), is_inline=config.store == "inline")


def dpu_store_count(config: ServerConfig) -> int:
    """Return the number of stores in XDP: one per engine there, or one that all of them share."""
    placement = config.placement()
    in_xdp = len(placement.engines) - len(placement.native())
    return min(in_xdp, 1) if config.access_mode() != "erew" else in_xdp


def _share(config: ServerConfig, parts: int) -> tuple[int, int]:
    """Return the items and log bytes of one of several parts, with an allowance for hashing, which
    deals keys out unevenly.
    """
    items = -(-config.items // parts)
    spare = math.ceil(SIGMAS * math.sqrt(items)) if parts > 1 else 0
    items_more = min(items + spare, config.items)
    return items_more, math.ceil(log_bytes_total(config) / parts * items_more / items)
