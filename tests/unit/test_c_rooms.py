# SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
"""The folders of bpf/ and _core/ are layers: a file includes from its own or a lower one."""

import re
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
BPF, CORE = "bpf", "dpukv_xdp/_core"
LINES_MAX = 800
INCLUDE = re.compile(r'^\s*#\s*include\s+"([^"]+)"', re.MULTILINE)
GUARD = re.compile(r"^#ifndef (\w+)\n#define \1$", re.MULTILINE)

ENTRY = ""
"""The top folder, which has the entry points."""
BPF_MAY_INCLUDE = {
    "abi": set(),
    "base": {"abi"},
    "net": {"abi", "base"},
    "protocol": {"abi", "base", "net"},
    "queue": {"abi", "base"},
    "store": {"abi", "base"},
    "service": {"abi", "base", "net", "queue", "store"},
    "door": {"abi", "base", "net", "protocol", "queue"},
    ENTRY: {"abi", "base", "net", "protocol", "queue", "store", "service", "door"},
}
"""Folders that each folder of bpf/ may include from, besides itself."""
CORE_MAY_INCLUDE = {
    "base": set(),
    "queue": {"base"},
    "port": {"base"},
    "store": {"base"},
    "service": {"base", "queue", "store"},
    "door": {"base", "port", "queue"},
    ENTRY: {"base", "port", "queue", "store", "service", "door"},
    "load": {"base", "port", "queue"},
}
"""The same for _core."""
SHARED = {
    "door": {"door", "protocol", "net", "queue", "base"},
    "service": {"service"},
}
"""Folders of bpf/ that the host compiles too; all of _core reads bpf/abi."""


def sources(root: Path) -> list[Path]:
    """Return the C files of both trees."""
    found = [path for tree in (BPF, CORE) for path in sorted((root / tree).rglob("*.[ch]"))]
    return [path for path in found if not path.name.startswith("_")]  # cffi generates those


def crossings(root: Path) -> list[str]:
    """Return every #include that crosses a layer, or names a folder or file that does not exist."""
    found = []
    for path in sources(root):
        tree = BPF if path.is_relative_to(root / BPF) else CORE
        room = path.parent.relative_to(root / tree).as_posix().removeprefix(".")
        for name in INCLUDE.findall(path.read_text()):
            if not may_include(root, tree, room, name):
                found.append(f"{path.relative_to(root).as_posix()} includes {name}")
    return found


def may_include(root: Path, tree: str, room: str, name: str) -> bool:
    """Return whether a file in this folder may include the header of this name."""
    target = Path(name).parent.as_posix().removeprefix(".")
    if tree == BPF:
        return (root / BPF / name).is_file() and target in BPF_MAY_INCLUDE[room] | {room}
    if (root / CORE / name).is_file():
        return target in CORE_MAY_INCLUDE[room] | {room}
    return (root / BPF / name).is_file() and target in SHARED.get(room, set()) | {"abi"}


def test_no_include_crosses_a_layer() -> None:
    assert sources(ROOT)
    assert crossings(ROOT) == []


def test_no_layer_includes_one_that_includes_it() -> None:
    for table in (BPF_MAY_INCLUDE, CORE_MAY_INCLUDE):
        for room, lower in table.items():
            assert room not in lower
            assert [other for other in lower if room in table[other]] == []
            assert [other for other in lower if not table[other] <= lower] == []


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("bpf/abi/up.h", '#include "base/side.h"'),
        ("bpf/queue/up.h", '#include "door/receive.h"'),
        ("bpf/store/sideways.h", '#include "queue/dpu_end.h"'),
        ("bpf/net/without_folder.h", '#include "headers.h"'),
        ("dpukv_xdp/_core/store/up.c", '#include "service/engine.h"'),
        ("dpukv_xdp/_core/service/sideways.c", '#include "door/communicate.h"'),
        ("dpukv_xdp/_core/host_too.c", '#include "load/peer.h"'),
        ("dpukv_xdp/_core/store/other_tree.c", '# include "net/headers.h"'),
    ],
)
def test_a_crossing_is_noticed(path: str, text: str, tmp_path: Path) -> None:
    for original in sources(ROOT):
        copy = tmp_path / original.relative_to(ROOT)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(original.read_bytes())
    (tmp_path / path).write_text(text + "\n")
    assert crossings(tmp_path) == [f"{path} includes {INCLUDE.findall(text)[0]}"]


def test_each_name_exists_once() -> None:
    paths = sources(ROOT)
    names = Counter(path.name for path in paths)
    guards = Counter(guard for path in paths for guard in GUARD.findall(path.read_text()))
    assert [name for name, count in names.items() if count > 1] == []
    assert [guard for guard, count in guards.items() if count > 1] == []
    headers = [path for path in paths if path.suffix == ".h"]
    assert [path for path in headers if not GUARD.search(path.read_text())] == []


def test_c_files_are_not_too_long() -> None:
    lengths = {path.name: len(path.read_text().splitlines()) for path in sources(ROOT)}
    assert {name: lines for name, lines in lengths.items() if lines > LINES_MAX} == {}
