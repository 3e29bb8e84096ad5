# SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
"""The host's end of its queues while the other end misbehaves: see host_queues*.c."""

import subprocess

import pytest
from built import CORE, ROOT, built

from dpukv_xdp.base.patience import patient

HERE = ROOT / "tests" / "model"
ENGINE = (
    "base/bpf_run",
    "base/hash",
    "base/memory",
    "queue/ringbuf",
    "queue/sender",
    "service/engine",
    "store/allocator",
    "store/lossless",
    "store/short_items",
    "store/operations",
    "store/repair",
    "store/store",
)
PROGRAMS = {
    "host_queues": ENGINE,
    "host_queues_hostile": ENGINE,
    "host_queues_frames": (*ENGINE, "door/communicate"),
}
"""The core's sources that each one is built from."""
TESTS = {
    "host_queues": (
        *("counter", "rounds", "shares", "samples", "wrap", "no-room", "no-room-samples"),
        *("drain", "restart"),
    ),
    "host_queues_hostile": ("hostile", "changes"),
    "host_queues_frames": ("fair-rings", "fair-rings-idle", "broken-rings", "frames", "wake"),
}
FLAGS = [
    *("-std=gnu11", "-g1", "-O2", "-Wall", "-Wextra", "-Werror"),
    *("-pthread", "-fno-strict-aliasing"),
    *("-fsanitize=address,undefined", "-fno-sanitize=alignment", "-fno-sanitize-recover=all"),
]
"""-O2, at which a compiler may read a record twice. Fields of frames are not aligned."""


@pytest.mark.parametrize(
    ("program", "name"), [(program, name) for program, names in TESTS.items() for name in names]
)
def test_the_other_end_errs(program: str, name: str) -> None:
    sources = [HERE / f"{program}.c", *(CORE / f"{source}.c" for source in PROGRAMS[program])]
    finished = subprocess.run(
        [str(built("gcc", FLAGS, sources)), name],
        capture_output=True,
        text=True,
        timeout=patient(60),
        check=False,
    )
    assert finished.returncode == 0, finished.stderr[-4000:]
