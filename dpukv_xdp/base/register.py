# SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
"""The register: a JSON file in /run/dpukv for each resource that outlives a killed process.

The file is written before the resource is created. A later command reads it and removes resources
whose owner is dead.
"""

import fcntl
from pathlib import Path
from typing import TypeVar

import msgspec

from dpukv_xdp.base.errors import DpukvError

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
    fresh = path.with_name(path.name + UNFINISHED)
    try:
        fresh.write_bytes(msgspec.json.format(msgspec.json.encode(record)))
        fresh.chmod(0o644)
        fresh.replace(path)
    finally:
        fresh.unlink(missing_ok=True)  # exists only if the write was interrupted


def remove_unfinished() -> None:
    """Remove files that killed processes left half written."""
    with Locked():
        for unfinished in REGISTER_DIR.glob(f"*{UNFINISHED}"):
            unfinished.unlink()


class Locked:
    """Lock the register against all other processes within the block.

    This is not a generator. One that is interrupted at its `yield` stays open as long as the
    exception lives; the register would stay locked, and the cleanup would deadlock.
    """

    def __enter__(self) -> None:
        REGISTER_DIR.mkdir(mode=0o755, parents=True, exist_ok=True)
        self._lock = (REGISTER_DIR / "lock").open("w")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX)
        except BaseException:  # an interrupt, too: the cleanup takes the lock
            self._lock.close()
            raise

    def __exit__(self, *_: object) -> None:
        self._lock.close()
