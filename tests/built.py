# SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
"""Build the tests' C programs, cached by content in build/tests."""

import fcntl
import hashlib
import re
import subprocess
from collections.abc import Iterable, Iterator, Sequence
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
CORE = ROOT / "dpukv_xdp" / "_core"
BPF = ROOT / "bpf"
BUILT_DIR = ROOT / "build" / "tests"
INCLUDE_DIRS = (CORE, BPF)
INCLUDE = re.compile(rb'^[ \t]*#[ \t]*include[ \t]+"([^"]+)"', re.MULTILINE)


class RefusedError(Exception):
    """A compiler's message about a source that it refuses."""


def built(compiler: str, flags: Sequence[str], sources: Sequence[Path]) -> Path:
    """Return the program that `compiler` builds from `sources`, which may include our headers.

    A source is compiled again when the compiler, a flag, the source or a header of ours that it
    includes has changed; programs that have it and the flags in common share the object. Raises
    RefusedError if the compiler refuses a source.
    """
    objects = [_compiled(compiler, flags, source) for source in sources]
    return _made(compiler, [*flags, *map(str, objects)], sources[0].stem, ())


def _compiled(compiler: str, flags: Sequence[str], source: Path) -> Path:
    """Return the object of one source."""
    includes = [f"-I{place}" for place in INCLUDE_DIRS]
    command = [*flags, *includes, "-c", str(source)]
    return _made(compiler, command, f"{source.stem}.o", _with_headers(source))


def _made(compiler: str, arguments: Sequence[str], name: str, inputs: Iterable[Path]) -> Path:
    """Return what the compiler makes, unless it is there for the same arguments and inputs."""
    digest = hashlib.sha256()
    for fact in (_version_of(compiler), *arguments):
        digest.update(fact.encode() + b"\0")
    for path in inputs:
        digest.update(path.read_bytes() + b"\0")
    BUILT_DIR.mkdir(parents=True, exist_ok=True)
    target = BUILT_DIR / f"{name}-{digest.hexdigest()[:32]}"
    with target.with_name(f"{target.name}.lock").open("w") as lock:  # several workers may make it
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not target.exists():
            unfinished = target.with_name(f"{target.name}.new")
            command = [compiler, *arguments, "-o", str(unfinished)]
            finished = subprocess.run(command, capture_output=True, text=True, check=False)
            if finished.returncode:
                raise RefusedError(finished.stderr)
            unfinished.rename(target)
    return target


@cache
def _version_of(compiler: str) -> str:
    asked = subprocess.run([compiler, "--version"], capture_output=True, text=True, check=True)
    return asked.stdout


def _with_headers(source: Path) -> list[Path]:
    """Return a source and every header of ours that it includes, also through other headers."""
    found = [source]
    for path in found:  # grows within the loop
        found += [header for header in _included_by(path) if header not in found]
    return found


def _included_by(path: Path) -> Iterator[Path]:
    for name in INCLUDE.findall(path.read_bytes()):
        places = (path.parent, *INCLUDE_DIRS)
        headers = (place / name.decode() for place in places)
        header = next((header for header in headers if header.exists()), None)
        if header is not None:  # not one for another side, which is excluded here
            yield header.resolve()
