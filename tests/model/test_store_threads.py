"""Threads on one store at the same time: see store_threads.c for what they check.

The builds that leave out one of the three checks of the shared mode prove that the test would see
it.
"""

import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parents[2]
CORE = ROOT / "dpukv_xdp" / "_core"
SECONDS = 0.5
BROKEN_SECONDS = 30  # at most: a broken build is found out in a fraction of one, mostly

SOURCES = [
    ROOT / "tests/model/store_threads.c",
    *(CORE / f"{name}.c" for name in ("hash", "memory", "store")),
]
# gcc warns that ThreadSanitizer ignores fences: all that they order is atomic, so it needs none.
FLAGS = ["-std=gnu11", "-g", "-O2", "-pthread", "-Wall", "-Wextra", "-Werror", "-Wno-tsan"]
INCLUDES = [f"-I{CORE}", f"-I{ROOT / 'bpf'}"]

# Values of KV_STORE_UNCHECKED in store.c.
CHECK_VERSION, CHECK_OVERTAKEN, CHECK_WRITERS = 1, 2, 4


class Load(NamedTuple):
    """What the threads share; `lossy` if the log has no room for all keys."""

    threads: int
    keys: int
    item_count: int
    log_bytes: int
    lossy: int


ONE_BUCKET = Load(4, 12, 1, 1 << 20, 0)
MANY_BUCKETS = Load(4, 48, 256, 1 << 20, 0)
SHORT_LOG = Load(4, 48, 64, 1 << 12, 1)
SHORTER_LOG = Load(4, 48, 64, 1 << 10, 1)  # a reader is overtaken more often
ONE_ITEM_LOG = Load(3, 48, 64, 1 << 8, 1)

Build = Callable[..., Path]


@pytest.fixture(scope="module")
def build(tmp_path_factory: pytest.TempPathFactory) -> Build:
    directory = tmp_path_factory.mktemp("store_threads")

    def build(unchecked: int = 0, sanitize: bool = True) -> Path:
        target = directory / f"store_threads_{unchecked}_{sanitize}"
        if target.exists():
            return target
        flags = [*FLAGS, f"-DKV_STORE_UNCHECKED={unchecked}"]
        if sanitize and has_thread_sanitizer(directory):
            flags.append("-fsanitize=thread")
        command = ["gcc", *flags, *INCLUDES, *map(str, SOURCES), "-o", str(target)]
        built = subprocess.run(command, capture_output=True, text=True, check=False)
        assert built.returncode == 0, built.stderr
        return target

    return build


def has_thread_sanitizer(directory: Path) -> bool:
    """Whether gcc has its library here, and the kernel's address layout suits it."""
    probe = directory / "probe"
    command = ["gcc", "-fsanitize=thread", "-x", "c", "-", "-o", str(probe)]
    built = subprocess.run(
        command, input="int main(void) { return 0; }", text=True, capture_output=True, check=False
    )
    if built.returncode:
        return False
    return subprocess.run([str(probe)], capture_output=True, check=False).returncode == 0


def run(program: Path, load: Load, seconds: float) -> subprocess.CompletedProcess[str]:
    command = [str(program), str(seconds), *map(str, load)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.parametrize("sanitize", [True, False], ids=["sanitized", "fast"])
@pytest.mark.parametrize(
    "load",
    [ONE_BUCKET, MANY_BUCKETS, SHORT_LOG, ONE_ITEM_LOG],
    ids=["one bucket", "many buckets", "short log", "log of one item"],
)
def test_no_thread_sees_a_wrong_value(build: Build, load: Load, sanitize: bool) -> None:
    finished = run(build(sanitize=sanitize), load, SECONDS)
    assert finished.returncode == 0, finished.stderr[-4000:]
    assert finished.stderr == ""
    gets, misses, sets, laps = map(int, finished.stdout.split())
    assert min(gets - misses, sets) > 1000
    assert laps > 100 if load.lossy else laps == 0


@pytest.mark.parametrize(
    ("unchecked", "load"),
    [
        (CHECK_VERSION, ONE_BUCKET),
        (CHECK_VERSION, MANY_BUCKETS),
        (CHECK_OVERTAKEN, SHORTER_LOG),
        (CHECK_WRITERS, SHORT_LOG),
    ],
    ids=["version, one bucket", "version, many buckets", "overtaken", "writers"],
)
def test_a_store_without_one_of_its_checks_is_found_out(
    build: Build, unchecked: int, load: Load
) -> None:
    finished = run(build(unchecked, sanitize=False), load, BROKEN_SECONDS)
    assert finished.returncode == 1
    assert finished.stderr.startswith("store_threads: key ")
