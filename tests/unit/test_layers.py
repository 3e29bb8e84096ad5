# SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
"""A room of the package imports only from its own and lower rooms; any other import fails."""

import ast
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CHECK = [Path(sys.executable).with_name("lint-imports"), "--no-cache", "--no-logo"]
LAYERS, CLIENT = "from its own and from lower rooms", "needs no native code"
ROOMS_OF_THE_CLIENT = ("base", "client", "discovery", "wire")


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """Return a copy of the package and of its import contracts."""
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    for source in (ROOT / "dpukv_xdp").rglob("*.py"):
        copy = tmp_path / source.relative_to(ROOT)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(source, copy)
    return tmp_path


def test_the_package_keeps_its_layers(tree: Path) -> None:
    status, said = check(tree)
    assert status == 0, said


@pytest.mark.parametrize(
    ("room", "crossing", "broken"),
    [
        ("base", "from dpukv_xdp.wire import abi", LAYERS),
        ("server", "import dpukv_xdp.lab.lab", LAYERS),
        ("server", "def late() -> None:\n    from dpukv_xdp.bench import bench", LAYERS),
        ("client", "from dpukv_xdp.native import sockets", CLIENT),
        ("discovery", "import pyroute2", CLIENT),
        ("wire", "import bcc", CLIENT),
        ("wire", "import dpukv_xdp._core.build", CLIENT),
    ],
)
def test_a_crossing_fails(tree: Path, room: str, crossing: str, broken: str) -> None:
    (tree / "dpukv_xdp" / room / "crossing.py").write_text(crossing + "\n")
    status, said = check(tree)
    assert status != 0
    assert [line for line in said.splitlines() if line.endswith("BROKEN") and broken in line], said
    assert f"dpukv_xdp.{room}.crossing" in said


def test_a_room_that_is_not_among_the_layers_fails(tree: Path) -> None:
    (tree / "dpukv_xdp" / "attic").mkdir()
    (tree / "dpukv_xdp" / "attic" / "__init__.py").touch()
    status, said = check(tree)
    assert status != 0
    assert "attic" in said


def test_the_client_s_rooms_import_no_native_code() -> None:
    """import-linter does not see compiled modules."""
    importers = {
        path.relative_to(ROOT).as_posix()
        for room in ROOMS_OF_THE_CLIENT
        for path in (ROOT / "dpukv_xdp" / room).rglob("*.py")
        if any(name.startswith("dpukv_xdp._core") for name in imported_modules(path))
    }
    assert importers == set()


def check(tree: Path) -> tuple[int, str]:
    """Run import-linter in a tree; return its exit status and its output."""
    run = subprocess.run(CHECK, cwd=tree, capture_output=True, text=True, check=False)
    return run.returncode, run.stdout + run.stderr


def imported_modules(path: Path) -> set[str]:
    """Return every module that a file imports, at the top or inside a function."""
    modules = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            modules |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            modules |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return modules
