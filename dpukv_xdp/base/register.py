# SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
"""The register: a JSON file in /run/dpukv for each resource that outlives a killed process.

The file is written before the resource is created. A later command reads it and removes resources
whose owner is dead.
"""

import fcntl
from pathlib import Path
from threading import get_ident
from typing import IO, TypeVar

import msgspec

from dpukv_xdp.base.errors import DpukvError
from dpukv_xdp.base.scratch import replacing

REGISTER_DIR = Path("/run/dpukv")
UNFINISHED = ".new"  # suffix of a file's name while it is being written

Record = TypeVar("Record", bound=msgspec.Struct)


def read(path: Path, kind: type[Record]) -> Record | None:
    """Return the record in a file; None if there is no such file.

    Raises DpukvError if the file holds no valid record.
    """
    try:
        return msgspec.json.decode(path.read_bytes(), type=kind)
    except FileNotFoundError:
        return None
    except msgspec.MsgspecError as error:
        raise DpukvError(f"{path} is not a valid record ({error}): delete it") from error


def read_all(pattern: str, kind: type[Record]) -> list[Record]:
    """Return the records in the register's files that match a pattern, sorted by file name."""
    records = (read(path, kind) for path in sorted(REGISTER_DIR.glob(pattern)))
    return [record for record in records if record is not None]


def write(path: Path, record: msgspec.Struct) -> None:
    """Write a record atomically: neither a reader nor a kill sees half of it.

    The caller holds the lock.
    """
    with replacing(path, path.with_name(path.name + UNFINISHED)) as fresh:
        fresh.write_bytes(msgspec.json.format(msgspec.json.encode(record)))


def remove_unfinished() -> None:
    """Remove files that killed processes left half written."""
    with Locked():
        for unfinished in REGISTER_DIR.glob(f"*{UNFINISHED}"):
            unfinished.unlink()


_lock_files: dict[int, IO[str]] = {}
"""The open lock file of each thread, by the thread's identifier."""


class Locked:
    """Lock the register against all other processes within the block. Blocks do not nest.

    An interrupt may leave a block without closing the lock file: it can arrive before the first
    and after the last statement that a `try` protects, and the exception keeps everything alive.
    The clean-up that follows needs the lock, too, so a thread closes the file that it left open
    before it opens another. For the same reason this is not a generator: one that is interrupted at
    its `yield` stays open as long as the exception lives.
    """

    def __enter__(self) -> None:
        REGISTER_DIR.mkdir(mode=0o755, parents=True, exist_ok=True)
        _close_lock_file()
        lock_file = (REGISTER_DIR / "lock").open("w")
        _lock_files[get_ident()] = lock_file
        try:
            fcntl.flock(lock_file, fcntl.LOCK_EX)
        except BaseException:  # an interrupt, too: others would wait for a lock that no thread uses
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
