# SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
"""The host's end of its queues while the other end misbehaves: see host_queues.c."""

import subprocess
from pathlib import Path

import pytest
from built import CORE, ROOT, built

from dpukv_xdp.base.patience import patient

NAMES = (
    "base/bpf_run",
    "base/hash",
    "base/memory",
    "door/communicate",
    "queue/ringbuf",
    "queue/sender",
    "service/engine",
    "store/allocator",
    "store/lossless",
    "store/short_items",
    "store/operations",
    "store/store",
)
SOURCES = [ROOT / "tests/model/host_queues.c", *(CORE / f"{name}.c" for name in NAMES)]
FLAGS = [
    *("-std=gnu11", "-g", "-O2", "-Wall", "-Wextra", "-Werror", "-pthread", "-fno-strict-aliasing"),
    *("-fsanitize=address,undefined", "-fno-sanitize=alignment", "-fno-sanitize-recover=all"),
]
"""-O2, at which a compiler may read a record twice. Fields of frames are not aligned."""


@pytest.fixture(scope="module")
def program() -> Path:
    return built("gcc", FLAGS, SOURCES)


@pytest.mark.parametrize(
    "name",
    [
        *("counter", "rounds", "samples", "wrap", "no-room", "no-room-samples", "hostile"),
        *("restart", "fair-rings", "broken-rings", "frames", "changes"),
    ],
)
def test_the_other_end_errs(program: Path, name: str) -> None:
    finished = subprocess.run(
        [str(program), name], capture_output=True, text=True, timeout=patient(60), check=False
    )
    assert finished.returncode == 0, finished.stderr[-4000:]
