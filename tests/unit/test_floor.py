# SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
"""The machine's floor: every line of every look-up is read, and the figures are whole."""

import io
import json

import numpy as np
import pytest
from rich.console import Console

from dpukv_xdp._core._bench import ffi, lib
from dpukv_xdp.base.errors import UsageError
from dpukv_xdp.bench.floor import AHEAD, BUCKET_BYTES, LINE_BYTES, run_floors
from dpukv_xdp.bench.options import BenchOptions
from dpukv_xdp.cli.output import PLAIN_COLUMNS
from dpukv_xdp.report.tables import floor_table
from dpukv_xdp.topology.schema import ServerConfig, StoreKind
from dpukv_xdp.wire import abi

REQUESTS = 1000
BUCKET_WORD, ITEM_WORD = 5, 7


@pytest.mark.parametrize("ahead", [0, 1, 2, 31, lib.KV_FLOOR_AHEAD_MAX])
@pytest.mark.parametrize(("item_lines", "word"), [(0, BUCKET_WORD), (1, ITEM_WORD)])
@pytest.mark.parametrize("bucket_bytes", [LINE_BYTES, 2 * LINE_BYTES])
def test_each_look_up_reads_its_last_line_once(
    ahead: int, item_lines: int, word: int, bucket_bytes: int
) -> None:
    floor = ffi.new("struct kv_floor *")
    floor.buckets, floor.item_lines = 1, item_lines
    floor.bucket_bytes = bucket_bytes
    floor.ahead, floor.requests = ahead, REQUESTS
    assert lib.kv_floor_bytes(floor) == bucket_bytes + item_lines * LINE_BYTES
    memory = np.zeros(lib.kv_floor_bytes(floor) // 8, np.uint64)
    memory[0] = BUCKET_WORD
    memory[bucket_bytes // 8 :] = ITEM_WORD
    floor.memory = ffi.cast("uint8_t *", ffi.from_buffer(memory))
    lib.kv_floor_run(floor)
    assert floor.sum == REQUESTS * word
    assert floor.ticks > 0


def test_look_ups_are_spread_evenly_over_buckets_and_items() -> None:
    floor = ffi.new("struct kv_floor *")
    floor.buckets = floor.item_lines = 64
    floor.bucket_bytes = LINE_BYTES
    floor.requests, floor.ahead = 64 * REQUESTS, 8
    bucket_words = 64 * LINE_BYTES // 8
    memory = np.zeros(lib.kv_floor_bytes(floor) // 8, np.uint64)
    floor.memory = ffi.cast("uint8_t *", ffi.from_buffer(memory))
    for line in range(64):
        memory[bucket_words:] = 0
        memory[bucket_words + line * LINE_BYTES // 8] = 1
        lib.kv_floor_run(floor)
        assert floor.sum == pytest.approx(REQUESTS, rel=0.25)


@pytest.mark.parametrize("store", ["cache", "inline"])
def test_a_floor_for_each_number_of_keys_and_kind_of_pages(store: StoreKind) -> None:
    config = ServerConfig(store=store)
    result = run_floors(config, BenchOptions(), (1000, 50_000), lambda what, done: None)
    assert result["refused"] == {}
    assert [floor["keys"] for floor in result["floors"]] == [1000, 1000, 50_000, 50_000]
    assert "small" in {floor["pages"] for floor in result["floors"]}
    for floor in result["floors"]:
        assert floor["reads"] == {"cache": "two_lines", "inline": "one_line"}[store]
        items = {"cache": abi.KV_ITEMS_PER_BUCKET, "inline": 2}[store]
        assert floor["memory_bytes"] > floor["keys"] / items * BUCKET_BYTES[store]
        for way in ("one_line", "two_lines"):
            assert floor[way]["ahead"] in AHEAD
            assert floor[way]["ns"] > 0
        assert floor["two_lines_chained_ns"] > 0
    output = io.StringIO()
    Console(file=output, width=PLAIN_COLUMNS).print(floor_table(result["floors"]))
    assert "…" not in output.getvalue()
    assert json.loads(json.dumps(result)) == result


def test_what_does_not_fit_is_refused_with_the_reason() -> None:
    with pytest.raises(UsageError, match="memory"):
        run_floors(ServerConfig(), BenchOptions(), (1 << 33,), lambda what, done: None)
