# SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
"""The machine's floor: the time of a look-up that does nothing but read the cache lines it needs.

An engine cannot be faster with a store of that size on this core and these pages. Two lines, the
second one known from the first, are what MICA's layout needs: the bucket, then the item. One line
is what a bucket with the items in it needs, as in an inline store.
"""

import os
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import msgspec

from dpukv_xdp._core._bench import ffi, lib
from dpukv_xdp._core._native import lib as native
from dpukv_xdp.base.errors import DpukvError, MissingError, UsageError
from dpukv_xdp.base.machine import machine_facts
from dpukv_xdp.bench.options import BenchOptions, Progress, replace_config
from dpukv_xdp.topology import sizing
from dpukv_xdp.topology.schema import ServerConfig
from dpukv_xdp.wire import abi

AHEAD = (4, 8, 12, 16, 24, 32, 48)
"""Requests between the prefetch of a line and its use, of which the best is taken."""
RUNS = 3
REQUESTS = 1 << 20
"""Look-ups of a run, which takes 0.01 to 0.2 s."""
CHAIN_REQUESTS = 1 << 17
PAGES = {"huge pages": True, "small pages": False}
"""Values of ServerConfig.huge_pages that are compared."""
LINE_BYTES = abi.SIZE("kv_line")
BUCKET_BYTES = {"cache": 2 * LINE_BYTES, "lossless": 2 * LINE_BYTES, "inline": LINE_BYTES}
"""Bytes of a bucket by kind of store."""
PAGE_KINDS = {
    lib.KV_PAGES_SMALL: "small",
    lib.KV_PAGES_TRANSPARENT: "transparent huge",
    lib.KV_PAGES_HUGE: "huge",
}


def measure_floor(config: ServerConfig, options: BenchOptions) -> dict[str, Any]:
    """Return the nanoseconds of a look-up in memory as large as the store's, on a host core.

    Raises MissingError without so much memory.
    """
    config = replace_config(config, options)
    floor = ffi.new("struct kv_floor *")
    items_bytes = options.keys * sizing.item_bytes(config, options.key_size, options.value_size)
    floor.bucket_bytes = BUCKET_BYTES[config.store]
    floor.buckets = max(sizing.index_bytes(config) // floor.bucket_bytes, 1)
    item_lines = max(items_bytes // LINE_BYTES, 1)
    floor.item_lines = item_lines
    memory_bytes = int(lib.kv_floor_bytes(floor))
    pages = ffi.new("int *")
    memory = lib.kv_memory_map(memory_bytes, config.huge_pages, pages)
    if memory == ffi.NULL:
        raise MissingError(f"a floor of {memory_bytes} bytes", os.strerror(ffi.errno))
    cpus = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {config.placement().host_cpus[0]})
    try:
        floor.memory = ffi.cast("uint8_t *", memory)
        chain_ns = min(_look_up_ns(floor, 0, CHAIN_REQUESTS) for _ in range(RUNS))
        two_lines = _best(floor)
        floor.item_lines = 0
        one_line = _best(floor)
    finally:
        os.sched_setaffinity(0, cpus)
        lib.kv_memory_unmap(memory, memory_bytes)
    return {
        "store": config.store,
        "keys": options.keys,
        "key_size": options.key_size,
        "value_size": options.value_size,
        "memory_bytes": memory_bytes,
        "pages": PAGE_KINDS[pages[0]],
        "reads": "two_lines" if items_bytes else "one_line",
        "one_line": one_line,
        "two_lines": two_lines,
        "two_lines_chained_ns": chain_ns,
    }


def run_floors(
    config: ServerConfig, options: BenchOptions, counts: Sequence[int], progress: Progress
) -> dict[str, Any]:
    """Return the floor for each number of keys, on huge and on small pages, as --json prints it.

    A store that does not fit into memory is named with the reason. Raises UsageError if none fits.
    """
    runs, refused = for_each_count(config, options, counts)
    floors = []
    for done, (label, (candidate, candidate_options)) in enumerate(runs.items()):
        progress(label, done / len(runs))
        floors.append(measure_floor(candidate, candidate_options))
    return {"floors": floors, "refused": refused, "machine": machine_facts()}


def for_each_count(
    config: ServerConfig, options: BenchOptions, counts: Sequence[int]
) -> tuple[dict[str, tuple[ServerConfig, BenchOptions]], dict[str, str]]:
    """Return a labelled configuration for each number of keys and kind of pages that fits into
    memory, and the reason for each label that does not. Raises UsageError if none fits.
    """
    runs, refused = {}, {}
    for count in counts:
        for pages, huge_pages in PAGES.items():
            label = f"{count:,} keys, {pages}"
            candidate = msgspec.structs.replace(config, huge_pages=huge_pages)
            candidate_options = replace(options, keys=count)
            try:
                candidate_options.check()
                sizing.check_memory(replace_config(candidate, candidate_options))
            except DpukvError as error:
                refused[label] = str(error)
            else:
                runs[label] = (candidate, candidate_options)
    if not runs:
        raise UsageError("; ".join(refused.values()))
    return runs, refused


def _best(floor: Any) -> dict[str, float]:
    """Return the shortest time of a look-up, and the distance of the prefetch that has it."""
    times = {
        ahead: min(_look_up_ns(floor, ahead, REQUESTS) for _ in range(RUNS)) for ahead in AHEAD
    }
    ahead = min(times, key=times.__getitem__)
    return {"ns": times[ahead], "ahead": ahead}


def _look_up_ns(floor: Any, ahead: int, requests: int) -> float:
    floor.ahead, floor.requests = ahead, requests
    lib.kv_floor_run(floor)
    return float(floor.ticks / native.kv_ticks_per_second() * 1e9 / requests)
