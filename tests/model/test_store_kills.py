"""A store that a killed process has left: store_kills.c visits every point where a kill may come.

Builds that leave out a part of the repair prove that the test detects its absence.
"""

import contextlib
import errno
import mmap
import os
import random
import subprocess
from typing import Any, NamedTuple

import pytest
from built import CORE, ROOT, built

from dpukv_xdp._core._native import ffi, lib
from dpukv_xdp.base.errors import DpukvError
from dpukv_xdp.base.patience import patient
from dpukv_xdp.native.stores import Store, make_region

SOURCES = [
    ROOT / "tests/model/store_kills.c",
    *(CORE / "store").glob("*.c"),
    *(CORE / "base" / f"{name}.c" for name in ("hash", "memory")),
]
FLAGS = ["-std=gnu11", "-g1", "-O2", "-fno-strict-aliasing", "-Wall", "-Wextra", "-Werror"]
CACHE, LOSSLESS, INLINE = lib.KV_STORE_CACHE, lib.KV_STORE_LOSSLESS, lib.KV_STORE_INLINE
CHECK_UNDO, CHECK_DOUBLED = 32, 64
"""Values of KV_STORE_UNCHECKED in region.h."""
POINTS_MIN = 300
"""Points that any of these loads visits at least: so many stores do its operations make."""


class Load(NamedTuple):
    """Operations of the killed process, and its store, as in store_kills.c."""

    kind: int = CACHE
    shared: int = 0
    items: int = 8
    log: int = 1024
    operations: int = 120
    seed: int = 1
    longest: int = 200
    resets: int = 1


LOADS = {
    "cache": Load(),
    "cache, shared": Load(shared=1),
    "cache, one bucket": Load(items=1, log=4096),
    "cache, log of a few items": Load(log=448, seed=2),
    "lossless": Load(LOSSLESS, log=8192),
    "lossless, shared": Load(LOSSLESS, shared=1, log=8192),
    "lossless, one chain": Load(LOSSLESS, items=1, log=8192, seed=2),
    "lossless, one chain, shared": Load(LOSSLESS, shared=1, items=1, log=8192),
    "lossless, full": Load(LOSSLESS, log=1536, seed=3, resets=0),
    "inline": Load(INLINE),
    "inline, shared": Load(INLINE, shared=1),
    "inline, one group": Load(INLINE, items=1, log=4096, longest=40, resets=0),
    "inline, one group, shared": Load(INLINE, shared=1, items=1, log=4096, longest=40),
}


def run(load: Load, unchecked: int = 0) -> subprocess.CompletedProcess[str]:
    program = built("gcc", [*FLAGS, f"-DKV_STORE_UNCHECKED={unchecked}"], SOURCES)
    loads = [f"{name}={number}" for name, number in load._asdict().items()]
    command = [str(program), *loads]
    return subprocess.run(command, capture_output=True, text=True, timeout=patient(60), check=False)


@pytest.mark.parametrize("load", LOADS.values(), ids=LOADS.keys())
def test_a_kill_at_any_point_leaves_a_store_that_goes_on(load: Load) -> None:
    finished = run(load)
    assert finished.returncode == 0, finished.stderr
    points, undone, doubled, _stale, damaged = map(int, finished.stdout.split())
    assert points > POINTS_MIN
    assert undone > 0
    assert doubled > 0
    assert damaged == 0


@pytest.mark.parametrize("kind", [CACHE, LOSSLESS, INLINE], ids=["cache", "lossless", "inline"])
@pytest.mark.parametrize("shared", [0, 1], ids=["exclusive", "shared"])
def test_a_store_without_undo_records_is_found_out(kind: int, shared: int) -> None:
    finished = run(Load(kind, shared, log=8192), CHECK_UNDO)
    assert finished.returncode == 1
    assert "has a wrong value" in finished.stderr


@pytest.mark.parametrize("kind", [CACHE, LOSSLESS, INLINE], ids=["cache", "lossless", "inline"])
def test_a_repair_that_leaves_doubled_words_is_found_out(kind: int) -> None:
    finished = run(Load(kind, items=1, log=8192), CHECK_DOUBLED)
    assert finished.returncode == 1


# ---- Regions without a store that a process has left


def options_of(kind: int = CACHE, items: int = 64, log_bytes: int = 1 << 14) -> Any:
    options = ffi.new("struct kv_store_options *")
    options.item_count, options.log_bytes, options.kind = items, log_bytes, kind
    options.move_to_head = 65536
    return options


def filled_region(kind: int, keys: int = 40) -> int:
    """Return the descriptor of a region with a store of so many keys of 8 bytes."""
    region_fd = make_region(options_of(kind))
    store = Store(options_of(kind), 0, region_fd)
    assert store.repaired["items"] == 0
    for number in range(keys):
        key = b"key %04d" % number
        value = b"%d" % number * (1 + number % 5)
        assert lib.kv_store_set(store.handle, lib.kv_hash(key, 8), key, 8, value, len(value)) == 0
    store.close()
    return region_fd


@pytest.mark.parametrize("kind", [CACHE, LOSSLESS, INLINE], ids=["cache", "lossless", "inline"])
def test_a_store_is_there_again_in_another_handle(kind: int) -> None:
    region_fd = filled_region(kind)
    store = Store(options_of(kind), 0, region_fd)
    assert store.repaired == {"items": 40, "undone": 0, "doubled": 0, "stale": 0, "damaged": 0}
    assert store.stats()["count"] == 40
    store.close()
    os.close(region_fd)


@pytest.mark.parametrize(
    "other",
    [options_of(LOSSLESS), options_of(items=65), options_of(log_bytes=1 << 15)],
    ids=["kind", "items", "log"],
)
def test_a_region_for_other_options_is_refused(other: Any) -> None:
    region_fd = filled_region(CACHE)
    with pytest.raises(DpukvError, match="other sizes or of another version"):
        Store(other, 3, region_fd)
    os.close(region_fd)


def test_a_region_of_another_layout_is_refused() -> None:
    region_fd = filled_region(CACHE)
    with mmap.mmap(region_fd, mmap.PAGESIZE) as header:
        header[8] += 1  # the layout's version, behind the mark
    with pytest.raises(DpukvError, match=r"region of partition 3 .* another version"):
        Store(options_of(), 3, region_fd)
    os.close(region_fd)


@pytest.mark.parametrize("kind", [CACHE, LOSSLESS, INLINE], ids=["cache", "lossless", "inline"])
@pytest.mark.parametrize("seed", range(20))
def test_a_damaged_region_is_repaired_or_refused(kind: int, seed: int) -> None:
    """Whatever the bytes: no crash, no endless loop, and what is served is an item."""
    chosen = random.Random(seed)
    region_fd = filled_region(kind)
    size = os.fstat(region_fd).st_size
    with mmap.mmap(region_fd, size) as memory:
        data = [at for at in range(1 << 16, size, 8) if memory[at : at + 8] != bytes(8)]
        for at in chosen.sample(data, min(len(data), 1 + 8 * seed)):
            memory[at + chosen.randrange(8)] = chosen.randrange(256)
    with contextlib.suppress(DpukvError):
        store = Store(options_of(kind), 0, region_fd)
        assert store.stats()["count"] == store.repaired["items"]
        lib.kv_store_reset(store.handle)
        assert store.stats()["count"] == 0
        store.close()
    os.close(region_fd)


def test_a_region_cannot_be_made_longer_or_shorter() -> None:
    region_fd = make_region(options_of())
    for size in (0, os.fstat(region_fd).st_size + 4096):
        with pytest.raises(OSError, match=os.strerror(errno.EPERM)):
            os.ftruncate(region_fd, size)
    os.close(region_fd)
