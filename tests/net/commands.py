# SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
"""Run commands as users type them: to their end, or started and watched."""

import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from dpukv_xdp.base.patience import patient
from dpukv_xdp.lab import lab as labs
from dpukv_xdp.lab.lab import LabRecord

DPUKV = [sys.executable, "-P", "-m", "dpukv_xdp"]
SMALL = ["--keys", "20000", "--seconds", "0.1"]
"""Options of a small load, which is stored and measured quickly."""
TIMEOUT_SECONDS = patient(180.0)  # for a machine that other programs use, too


def dpukv(
    *arguments: str, status: int = 0, timeout_seconds: float = TIMEOUT_SECONDS
) -> subprocess.CompletedProcess[str]:
    """Run a command and return it; its exit status must be `status`."""
    result = subprocess.run(
        [*DPUKV, *arguments],
        capture_output=True,
        text=True,
        timeout=timeout_seconds,
        check=False,
    )
    assert result.returncode == status, result.stderr
    return result


@contextmanager
def started(*arguments: str) -> Iterator[subprocess.Popen[str]]:
    """Start a command in a process group of its own, like a shell's foreground job."""
    with subprocess.Popen(
        [*DPUKV, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        process_group=0,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def wait_for(what: Callable[[], Any], timeout_seconds: float = TIMEOUT_SECONDS) -> Any:
    """Poll `what` and return its first true value."""
    deadline = time.monotonic() + timeout_seconds
    while not (found := what()):
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.01)
    return found


def lab_of(process: subprocess.Popen[str]) -> LabRecord | None:
    """Return the lab that a running command has built; None if it has none yet."""
    return next((lab for lab in labs.list_labs() if lab.owner.pid == process.pid), None)
