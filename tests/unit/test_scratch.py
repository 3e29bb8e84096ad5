# SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
"""Files that are written beside their place: complete or not at all, and nothing is left over."""

import errno
import os
from pathlib import Path
from typing import Any

import pytest

from dpukv_xdp.base import register
from dpukv_xdp.base.errors import DirectoryError
from dpukv_xdp.base.processes import this_process
from dpukv_xdp.base.scratch import replacing
from dpukv_xdp.discovery.directory import FileDirectory, ServerRecord
from dpukv_xdp.kernel import compiler, kernel_headers


@pytest.fixture
def full_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """A file gets its name and half of its bytes, then the disk is full."""
    write = Path.write_bytes

    def write_half(path: Path, data: bytes) -> int:
        write(path, data[: len(data) // 2])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    monkeypatch.setattr(Path, "write_bytes", write_half)
    monkeypatch.setattr(Path, "write_text", lambda path, text, **_: write_half(path, text.encode()))


def test_a_file_takes_its_place_when_it_is_complete(tmp_path: Path) -> None:
    target = tmp_path / "file"
    target.write_text("old")
    with replacing(target, mode=0o640) as fresh:
        fresh.write_text("new")
        assert target.read_text() == "old"
    assert target.read_text() == "new"
    assert target.stat().st_mode & 0o777 == 0o640
    assert list(tmp_path.iterdir()) == [target]


def test_a_block_that_fails_leaves_the_old_file_alone(tmp_path: Path) -> None:
    target = tmp_path / "file"
    target.write_text("old")

    def fail() -> None:
        with replacing(target) as fresh:
            fresh.write_text("half")
            raise OSError(errno.ENOSPC, "full")

    with pytest.raises(OSError, match="full"):
        fail()
    assert target.read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]


@pytest.mark.usefixtures("full_disk")
def test_kept_programs_leave_no_file_on_a_full_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is kept, nothing is said, and each run left a temporary file once."""
    monkeypatch.setattr(kernel_headers, "CACHE_DIRS", (tmp_path,))
    compiler._keep("key", compiler.CompiledObject(maps=(), programs={"p": b"x" * 64}, btf=b""))
    assert list((tmp_path / "programs").iterdir()) == []


@pytest.mark.usefixtures("full_disk")
def test_the_register_leaves_no_file_on_a_full_disk(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="No space left"):
        register.write(tmp_path / "lab-x.json", this_process())
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("full_disk")
def test_a_directory_leaves_no_file_on_a_full_disk(tmp_path: Path) -> None:
    record: Any = ServerRecord(False, False, (0,), (("02:00:00:00:00:01", "10.0.0.1", 9),))
    with pytest.raises(DirectoryError, match="No space left"):
        FileDirectory(tmp_path).publish("one.1", record)
    assert list(tmp_path.iterdir()) == []


# ---- Kernel headers


def test_an_empty_build_directory_is_no_headers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a container has it that is given its host's /lib/modules."""
    monkeypatch.delenv(kernel_headers.VARIABLE, raising=False)
    monkeypatch.setattr(kernel_headers, "MODULES_DIR", tmp_path / "modules")
    monkeypatch.setattr(kernel_headers, "SOURCES_DIR", tmp_path / "src")
    own = kernel_headers.own_tree()
    own.mkdir(parents=True)
    tree = tmp_path / "src" / "linux-headers-6.1"
    for path in kernel_headers.NEEDED:
        (tree / path).parent.mkdir(parents=True, exist_ok=True)
        (tree / path).write_text("")
    (tree / "Makefile").write_text("")
    monkeypatch.setattr(kernel_headers._installed_trees, "__defaults__", (tmp_path / "src",))
    assert kernel_headers.kernel_source() == tree
    (own / "include/generated").mkdir(parents=True)
    (own / kernel_headers.NEEDED[0]).write_text("")
    assert kernel_headers.kernel_source() is None
