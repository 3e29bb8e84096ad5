# SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
"""The repository keeps its own rules."""

import ast
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
SOURCE_DIRS = ("bpf", "dpukv_xdp", "tests", "tools")
MADE = ("_layouts.py",)  # by setup.py
COLUMNS_MAX = {".py": 100, ".c": 120, ".h": 120}
C_TAB_COLUMNS = 8
MODULE_LINES_MAX = 600
FUNCTION_LINES_MAX = 70
LEFTOVERS = re.compile(r"\b(TO" r"DO|FIX" r"ME|X" r"XX)\b")  # in pieces, so as not to find itself


def sources() -> Iterator[Path]:
    """Every source file that is ours."""
    for directory in SOURCE_DIRS:
        found = (ROOT / directory).rglob("*")
        yield from (each for each in found if each.suffix in COLUMNS_MAX and each.name not in MADE)


def test_version_is_the_changelog_s_head() -> None:
    """Or comes next, below what no version has yet."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    headings = re.findall(r"^## (.*)$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    released = headings[headings[0] == "Unreleased" :]
    assert re.fullmatch(re.escape(project["version"]) + r" - \d{4}-\d\d-\d\d", released[0])


def test_lines_fit() -> None:
    too_long = [
        f"{path.relative_to(ROOT)}:{number}"
        for path in sources()
        for number, line in enumerate(path.read_text().splitlines(), start=1)
        if len(line.expandtabs(C_TAB_COLUMNS)) > COLUMNS_MAX[path.suffix]
    ]
    assert too_long == []


def test_modules_and_functions_fit_a_reader() -> None:
    too_long = []
    for path in (ROOT / "dpukv_xdp").rglob("*.py"):
        text, name = path.read_text(), path.relative_to(ROOT)
        if (count := len(text.splitlines())) >= MODULE_LINES_MAX:
            too_long.append(f"{name}: {count} lines")
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                count = (node.end_lineno or node.lineno) - node.lineno + 1
                if count > FUNCTION_LINES_MAX:
                    too_long.append(f"{name}: {node.name}() has {count} lines")
    assert too_long == []


def test_nothing_is_left_to_do() -> None:
    found = [
        f"{path.relative_to(ROOT)}:{number}"
        for path in sources()
        for number, line in enumerate(path.read_text().splitlines(), start=1)
        if LEFTOVERS.search(line)
    ]
    assert found == []


def test_only_the_compiler_imports_bcc() -> None:
    importers = [
        path.relative_to(ROOT).as_posix()
        for path in sources()
        if path.suffix == ".py" and "bcc" in imported_packages(path)
    ]
    assert importers == ["dpukv_xdp/kernel/compiler.py"]


def imported_packages(path: Path) -> set[str]:
    """The first part of every module that a file imports, at the top or inside a function."""
    packages = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            packages |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            packages.add(node.module.partition(".")[0])
    return packages
