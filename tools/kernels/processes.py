# SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
"""Start programs that end with this process, however it ends, and wait for them with a time-out."""

import ctypes
import os
import select
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import IO, Any

from dpukv_xdp.base.errors import DpukvError, MissingError

PR_SET_PDEATHSIG = 1
KILL_SECONDS = 10.0
LAST_LINES = 8
"""Lines of a program's output that an error quotes."""
READ_BYTES = 1 << 16


class LimitError(DpukvError):
    """A step exceeded its time-out."""


def require(programs: Sequence[str], feature: str) -> None:
    """Raise MissingError if one of the programs is not on PATH."""
    missing = [program for program in programs if shutil.which(program) is None]
    if missing:
        needs = f"{', '.join(missing)}: run sudo tools/setup --with-guests"
        raise MissingError(feature, needs)


@contextmanager
def started(argv: Sequence[str], **options: Any) -> Iterator[subprocess.Popen[bytes]]:
    """Run a program in its own process group within the block; `options` are Popen's.

    It is killed at the end of the block, or by the kernel when this process dies.
    """
    libc = ctypes.CDLL(None)
    parent = os.getpid()

    def die_with_parent() -> None:
        """Run in the child before exec: system calls only."""
        libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != parent:  # the parent died before prctl()
            os._exit(1)

    process = subprocess.Popen(argv, preexec_fn=die_with_parent, process_group=0, **options)
    try:
        yield process
    finally:
        process.kill()
        process.wait(KILL_SECONDS)
        for stream in (process.stdin, process.stdout, process.stderr):
            if stream is not None:
                stream.close()


def run(
    argv: Sequence[str],
    *,
    what: str,
    limit_seconds: float,
    on_line: Callable[[str], None] = lambda line: None,
    **options: Any,
) -> tuple[int, list[str]]:
    """Run a program to its end; return its exit status and the lines of its stdout and stderr.

    `options` are Popen's and may redirect stderr; `on_line` is called with each line as it arrives.
    Raises LimitError, which names `what`, after `limit_seconds`.
    """
    lines: list[str] = []
    options = {"stdin": subprocess.DEVNULL, "stderr": subprocess.STDOUT, **options}
    with started(argv, stdout=subprocess.PIPE, **options) as process:
        assert process.stdout is not None
        for line in _lines(process.stdout, time.monotonic() + limit_seconds):
            if line is None:
                raise LimitError(f"{what} took longer than {limit_seconds:.0f} s{_quoted(lines)}")
            lines.append(line)
            on_line(line)
        return process.wait(), lines


def environment(**more: str) -> Mapping[str, str]:
    """Return this process's environment with variables added or replaced."""
    return {**os.environ, **more}


def _quoted(lines: Sequence[str]) -> str:
    return "; its last words: " + " / ".join(lines[-LAST_LINES:]) if lines else ""


def _lines(stream: IO[bytes], deadline: float) -> Iterator[str | None]:
    """Yield each line of a pipe without its newline; yield None when the deadline has passed."""
    rest = b""
    while True:
        readable, _, _ = select.select([stream], [], [], max(deadline - time.monotonic(), 0))
        if not readable:
            yield None
            return
        chunk = os.read(stream.fileno(), READ_BYTES)
        *complete, rest = (rest + chunk).split(b"\n")
        if not chunk and rest:
            complete, rest = [rest], b""
        yield from (line.decode(errors="replace").rstrip("\r") for line in complete)
        if not chunk:
            return
