"""Threads on one store at the same time: store_threads.c describes the checks.

Builds that leave out one check of the shared mode prove that the test detects its absence.
"""

import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
from built import CORE, ROOT, built

from dpukv_xdp._core._native import lib
from dpukv_xdp.base.patience import patient

SECONDS = 0.25
BROKEN_SECONDS = 30.0
"""At most, and less than PATIENCE_SECONDS in store_threads.c. Threads that yield find a fault
within a second or two, on a slow machine too.
"""

SOURCES = [
    ROOT / "tests/model/store_threads.c",
    *(CORE / "store").glob("*.c"),
    *(CORE / "base" / f"{name}.c" for name in ("hash", "memory")),
]
YIELDS = ROOT / "tests/model/store_threads_yield.c"
# gcc warns that ThreadSanitizer ignores fences: they order atomic accesses only, so it needs none.
FLAGS = ["-std=gnu11", "-g1", "-O2", "-pthread", "-Wall", "-Wextra", "-Werror", "-Wno-tsan"]

# Values of KV_STORE_UNCHECKED in keep_apart.h and lossless.c.
CHECK_VERSION, CHECK_OVERTAKEN, CHECK_WRITERS, CHECK_LOCK, CHECK_TAKEN = 1, 2, 4, 8, 16


class Load(NamedTuple):
    """The resource that the threads share, as in store_threads.c; `lossy` if items may get lost."""

    threads: int = 4
    writers: int = 4
    keys: int = 48
    items: int = 256
    log: int = 1 << 26
    kind: int = lib.KV_STORE_CACHE
    move: int = 65536
    lossy: int = 0
    resets: int = 0
    deletes: int = 1
    words: int = 0


LOSSLESS, INLINE = lib.KV_STORE_LOSSLESS, lib.KV_STORE_INLINE
ONE_BUCKET = Load(items=1, keys=6)
MANY_BUCKETS = Load()
SHORT_LOG = Load(items=64, log=1 << 12, lossy=1)
ODD_LOG = Load(items=64, log=1088, lossy=1)
ONE_ITEM_LOG = Load(threads=3, writers=3, items=64, log=1 << 8, lossy=1)
MOVING = Load(items=64, log=6208, lossy=1, move=20000)
RESETTING = Load(lossy=1, move=0, resets=1)
ONE_WRITER = Load(writers=1, move=16)
HEAP = Load(kind=LOSSLESS, log=1 << 20)
HEAP_CHAIN = Load(kind=LOSSLESS, log=1 << 20, items=1, keys=100)
HEAP_ONE_WRITER = Load(kind=LOSSLESS, log=1 << 20, items=1, keys=100, writers=1)
HEAP_RESETTING = Load(kind=LOSSLESS, log=1 << 20, lossy=1, resets=1)
LINES = Load(kind=INLINE)
ONE_GROUP = Load(kind=INLINE, items=1, keys=18)
FULL_GROUP = Load(kind=INLINE, items=1, keys=64, log=1 << 12, lossy=1)
GROUP_OF_WORDS = Load(kind=INLINE, items=1, keys=18, words=1)
FULL_GROUP_OF_WORDS = Load(kind=INLINE, items=1, keys=64, log=1 << 12, lossy=1, words=1)
LINES_ONE_WRITER = Load(kind=INLINE, items=1, keys=18, writers=1)
LINES_SHORT_LOG = Load(kind=INLINE, items=64, log=1 << 12, lossy=1, move=20000)
LINES_RESETTING = Load(kind=INLINE, lossy=1, resets=1)
LOADS = {
    "one bucket": ONE_BUCKET,
    "many buckets": MANY_BUCKETS,
    "short log": SHORT_LOG,
    "odd log": ODD_LOG,
    "log of one item": ONE_ITEM_LOG,
    "move to head": MOVING,
    "resets": RESETTING,
    "one writer": ONE_WRITER,
    "lossless": HEAP,
    "lossless, one chain": HEAP_CHAIN,
    "lossless, one writer": HEAP_ONE_WRITER,
    "lossless, resets": HEAP_RESETTING,
    "inline": LINES,
    "inline, one group": ONE_GROUP,
    "inline, full group": FULL_GROUP,
    "inline, words": GROUP_OF_WORDS,
    "inline, too many words": FULL_GROUP_OF_WORDS,
    "inline, one writer": LINES_ONE_WRITER,
    "inline, short log": LINES_SHORT_LOG,
    "inline, resets": LINES_RESETTING,
}

# The load that exercises one of the checks most often.
ONE_BUCKET_IN_PLACE = ONE_BUCKET._replace(deletes=0)
MANY_BUCKETS_IN_PLACE = MANY_BUCKETS._replace(deletes=0)
SHORT_LOG_IN_PLACE = SHORT_LOG._replace(deletes=0)
SHORTER_LOG = Load(items=64, log=1 << 10, lossy=1, keys=24, deletes=0)
SHORTER_ODD_LOG = SHORTER_LOG._replace(log=1088)

Build = Callable[..., Path]


@pytest.fixture(scope="module")
def build(tmp_path_factory: pytest.TempPathFactory) -> Build:
    probe = tmp_path_factory.mktemp("store_threads") / "probe"
    sanitizer = ["-fsanitize=thread"] if has_thread_sanitizer(probe) else []

    def build(
        unchecked: int = 0,
        sanitize: bool = True,
        yields: bool = False,
        more: tuple[str, ...] = (),
    ) -> Path:
        checks = f"-DKV_STORE_UNCHECKED={unchecked}"
        flags = [*FLAGS, checks, *more, *(sanitizer if sanitize else [])]
        if not yields:
            return built("gcc", flags, SOURCES)
        return built("gcc", [*flags, "-finstrument-functions"], [*SOURCES, YIELDS])

    return build


def has_thread_sanitizer(probe: Path) -> bool:
    """Return whether gcc has ThreadSanitizer, and the kernel's address layout suits it."""
    command = ["gcc", "-fsanitize=thread", "-x", "c", "-", "-o", str(probe)]
    built = subprocess.run(
        command, input="int main(void) { return 0; }", text=True, capture_output=True, check=False
    )
    if built.returncode:
        return False
    return subprocess.run([str(probe)], capture_output=True, check=False).returncode == 0


def run(program: Path, load: Load, seconds: float) -> subprocess.CompletedProcess[str]:
    loads = [f"{name}={number}" for name, number in load._asdict().items()]
    command = [str(program), f"seconds={seconds}", *loads]
    return subprocess.run(command, capture_output=True, text=True, timeout=patient(60), check=False)


@pytest.mark.parametrize("sanitize", [True, False], ids=["sanitized", "fast"])
@pytest.mark.parametrize("load", LOADS.values(), ids=LOADS.keys())
def test_no_thread_sees_a_wrong_value(build: Build, load: Load, sanitize: bool) -> None:
    finished = run(build(sanitize=sanitize), load, SECONDS)
    assert finished.returncode == 0, finished.stderr[-4000:]
    assert finished.stderr == ""
    gets, misses, sets, laps, moved = map(int, finished.stdout.split())
    assert min(gets - misses, sets) > 100  # the number depends on the machine's load
    log_comes_round = load.lossy and not load.words
    assert load.resets or (laps > 10 if log_comes_round else laps == 0)
    assert (moved > 0) == (load.move < 65536)


@pytest.mark.parametrize(
    ("unchecked", "load"),
    [
        (CHECK_VERSION, ONE_BUCKET_IN_PLACE),
        (CHECK_VERSION, MANY_BUCKETS_IN_PLACE),
        (CHECK_VERSION, HEAP),
        (CHECK_VERSION, HEAP_CHAIN),
        (CHECK_VERSION, ONE_GROUP),
        (CHECK_OVERTAKEN, SHORTER_LOG),
        (CHECK_OVERTAKEN, SHORTER_ODD_LOG),
        (CHECK_WRITERS, SHORT_LOG_IN_PLACE),
    ],
    ids=[
        "version, one bucket",
        "version, many buckets",
        "version, lossless",
        "version, one chain",
        "version, inline",
        "overtaken",
        "overtaken, odd log",
        "writers",
    ],
)
def test_a_store_without_one_of_its_checks_is_found_out(
    build: Build, unchecked: int, load: Load
) -> None:
    finished = run(build(unchecked, sanitize=False, yields=True), load, BROKEN_SECONDS)
    assert finished.returncode == 1
    assert finished.stderr.startswith("store_threads: key ")


@pytest.mark.parametrize(
    ("unchecked", "load"),
    [
        (CHECK_TAKEN, ONE_BUCKET_IN_PLACE),
        (CHECK_TAKEN, MANY_BUCKETS_IN_PLACE),
        (CHECK_TAKEN, HEAP_CHAIN),
        (CHECK_TAKEN, ONE_GROUP),
        (CHECK_LOCK, HEAP),  # MICA2's own bug
    ],
    ids=["buckets", "many buckets", "lossless buckets", "groups", "allocator"],
)
def test_a_store_without_one_of_its_locks_is_found_out(
    build: Build, unchecked: int, load: Load
) -> None:
    """The consequence may be a wrong answer, a crash, or an endless loop that the program's alarm
    ends.
    """
    assert run(build(unchecked, sanitize=False), load, BROKEN_SECONDS).returncode != 0


def test_a_lookup_that_does_not_compare_the_distance_is_found_out(build: Build) -> None:
    """It takes an item of another home for its own, which changes under that home's version.

    It shows only if an item is replaced between the reads of its key and of its lengths. That takes
    half a minute to happen; if threads yield there, less than a second.
    """
    program = build(sanitize=False, yields=True, more=("-DKV_SHORT_COMPARED=0xfu",))
    finished = run(program, FULL_GROUP_OF_WORDS._replace(keys=32), BROKEN_SECONDS)
    assert finished.returncode == 1
    assert finished.stderr.startswith("store_threads: key ")
