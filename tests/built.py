# SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
"""Build the tests' C programs, cached by content in build/tests."""

import fcntl
import hashlib
import subprocess
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
CORE = ROOT / "dpukv_xdp" / "_core"
BPF = ROOT / "bpf"
BUILT_DIR = ROOT / "build" / "tests"
INCLUDES = [f"-I{CORE}", f"-I{BPF}"]


class RefusedError(Exception):
    """A compiler's message about a source that it refuses."""


def built(compiler: str, flags: Sequence[str], sources: Sequence[Path]) -> Path:
    """Return the program that `compiler` builds from `sources`, which may include our headers.

    It is rebuilt when the compiler, a flag, a source or any header of ours has changed. Raises
    RefusedError if the compiler refuses a source.
    """
    command = [compiler, *flags, *INCLUDES, *map(str, sources)]
    BUILT_DIR.mkdir(parents=True, exist_ok=True)
    target = BUILT_DIR / f"{sources[0].stem}-{_digest(command, sources)}"
    with target.with_suffix(".lock").open("w") as lock:  # several workers may build the same one
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not target.exists():
            unfinished = target.with_suffix(".new")
            command += ["-o", str(unfinished)]
            compiled = subprocess.run(command, capture_output=True, text=True, check=False)
            if compiled.returncode:
                raise RefusedError(compiled.stderr)
            unfinished.rename(target)
    return target


def _digest(command: Sequence[str], sources: Sequence[Path]) -> str:
    version = subprocess.run([command[0], "--version"], capture_output=True, text=True, check=True)
    digest = hashlib.sha256()
    for fact in (version.stdout, *command):
        digest.update(fact.encode() + b"\0")
    headers = sorted(path for place in (CORE, BPF) for path in place.rglob("*.h"))
    helpers = sorted(
        path for place in {source.parent for source in sources} for path in place.glob("*.h")
    )
    for path in (*sources, *headers, *helpers):
        digest.update(path.read_bytes() + b"\0")
    return digest.hexdigest()[:32]
