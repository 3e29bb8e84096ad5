# SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
"""The register: a JSON file in /run/dpukv for each thing that outlives a killed process.

The file is written before the thing is made. A later command reads it and removes what no living
process owns.
"""

import fcntl
from pathlib import Path
from threading import get_ident
from typing import IO, TypeVar

import msgspec

from dpukv_xdp.base.errors import DpukvError

REGISTER_DIR = Path("/run/dpukv")
UNFINISHED = ".new"  # the end of a file's name while it is written

Record = TypeVar("Record", bound=msgspec.Struct)


def read(path: Path, kind: type[Record]) -> Record | None:
    """Return the record in a file; None if there is no such file. Raises DpukvError if the file
    holds anything else.
    """
    try:
        return msgspec.json.decode(path.read_bytes(), type=kind)
    except FileNotFoundError:
        return None
    except msgspec.MsgspecError as error:
        raise DpukvError(f"{path} cannot be understood ({error}): delete it") from error


def read_all(pattern: str, kind: type[Record]) -> list[Record]:
    """Return the records in the files of the register that match a pattern, by name of file."""
    records = (read(path, kind) for path in sorted(REGISTER_DIR.glob(pattern)))
    return [record for record in records if record is not None]


def write(path: Path, record: msgspec.Struct) -> None:
    """Write a record whole or not at all, for readers and for kills at any moment. Call it under
    the lock.
    """
    fresh = path.with_name(path.name + UNFINISHED)
    try:
        fresh.write_bytes(msgspec.json.format(msgspec.json.encode(record)))
        fresh.chmod(0o644)
        fresh.replace(path)
    finally:
        fresh.unlink(missing_ok=True)  # there only if the write was interrupted


def remove_unfinished() -> None:
    """Remove the files that a killed process was writing."""
    with Locked():
        for unfinished in REGISTER_DIR.glob(f"*{UNFINISHED}"):
            unfinished.unlink()


_lock_files: dict[int, IO[str]] = {}
"""By thread: the lock file that it has open."""


class Locked:
    """Keep all other processes from changing the register within the block. Blocks do not nest.

    An interrupt may leave a block without closing the lock file: it can arrive before the first
    and after the last statement that a `try` protects, and the exception keeps everything alive.
    The clean-up that follows wants the lock, too, so that a thread closes the file that it left
    open before it opens another. For the same reason this is not a generator: interrupted at its
    `yield`, it would stay open as long as the exception lives.
    """

    def __enter__(self) -> None:
        REGISTER_DIR.mkdir(mode=0o755, parents=True, exist_ok=True)
        _close_lock_file()
        lock_file = (REGISTER_DIR / "lock").open("w")
        _lock_files[get_ident()] = lock_file
        try:
            fcntl.flock(lock_file, fcntl.LOCK_EX)
        except BaseException:
            _close_lock_file()
            raise

    def __exit__(self, *_: object) -> None:
        _close_lock_file()


def _close_lock_file() -> None:
    """Close this thread's lock file, if it has one open; that ends its lock."""
    lock_file = _lock_files.get(get_ident())
    if lock_file is not None:
        lock_file.close()  # before it is forgotten, so that an interrupt in between does not matter
        _lock_files.pop(get_ident(), None)
