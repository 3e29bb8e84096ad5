# SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
"""Files that are written beside their final place and renamed when they are complete."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def replacing(target: Path, unfinished: Path | None = None, mode: int = 0o644) -> Iterator[Path]:
    """Yield a path for the block to write; then rename that file to `target`, in one step.

    Readers see the old file or the complete new one. If the block raises an error, as on a full
    disk, the unfinished file is removed and `target` stays as it is. `unfinished` must be in
    `target`'s file system; by default it is a hidden file beside it, named after this process.
    """
    fresh = unfinished or target.with_name(f".{target.name}.{os.getpid()}")
    try:
        yield fresh
        fresh.chmod(mode)
        fresh.replace(target)
    finally:
        fresh.unlink(missing_ok=True)  # there only if the block or the rename failed
