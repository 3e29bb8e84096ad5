"""The allocator's bookkeeping, and sizes beyond any test machine's memory: see store_memory.c."""

import subprocess
from pathlib import Path

import pytest
from built import CORE, ROOT, built

from dpukv_xdp.base.patience import patient

SOURCES = [
    ROOT / "tests/model/store_memory.c",
    *(CORE / "store").glob("*.c"),
    CORE / "base" / "hash.c",
]
FLAGS = ["-std=gnu11", "-g1", "-O1", "-Wall", "-Wextra", "-Werror", "-fno-sanitize-recover=all"]


@pytest.fixture(scope="module")
def sanitized() -> Path:
    return built("gcc", [*FLAGS, "-fsanitize=address,undefined"], SOURCES)


@pytest.fixture(scope="module")
def plain() -> Path:
    """Return a build without the address sanitizer, which would touch a shadow of all memory."""
    return built("gcc", [*FLAGS, "-fsanitize=undefined"], SOURCES)


@pytest.mark.parametrize("seed", [1, 2])
def test_the_allocator_keeps_blocks_apart_and_has_all_of_them_back(
    sanitized: Path, seed: int
) -> None:
    command = [str(sanitized), "allocator", str(seed)]
    finished = subprocess.run(
        command, capture_output=True, text=True, timeout=patient(60), check=False
    )
    assert finished.returncode == 0, finished.stderr[-4000:]


@pytest.mark.parametrize("kind", [0, 1, 2], ids=["cache", "lossless", "inline"])
def test_a_store_of_192_mi_items_is_created_without_touching_its_memory(
    plain: Path, kind: int
) -> None:
    command = [str(plain), "large", str(kind)]
    finished = subprocess.run(
        command, capture_output=True, text=True, timeout=patient(60), check=False
    )
    assert finished.returncode == 0, finished.stderr[-4000:]
