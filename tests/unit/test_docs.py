# SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
"""The documents are true where a program can tell: files, functions, names, pictures."""

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

import draw_rooms

ROOT = Path(__file__).parents[2]
DOCUMENTS = [
    *(ROOT / name for name in ("README.md", "bpf/README.md")),
    *sorted((ROOT / "docs").glob("*.md")),
]
ARCHITECTURE = (ROOT / "docs" / "ARCHITECTURE.md").read_text()
CONTRIBUTING = (ROOT / "docs" / "CONTRIBUTING.md").read_text()
TREES = ("bpf", "docs", "dpukv_xdp", "tests", "tools")
SOURCES = (".c", ".h", ".py")
FILES = (*SOURCES, ".md", ".toml")
MADE = ("_native.c", "_bench.c", "_layouts.py")
"""Written by the build."""
IN_BACKTICKS = re.compile(r"`([^`\n]+)`")
CODE_BLOCK = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)
PATH = re.compile(r"[\w.-]+(?:/[\w.-]+)*/?")
FUNCTION = re.compile(r"([A-Za-z_][\w.]*)\(\)")
NAME = re.compile(r"(?:struct |enum )?([A-Za-z_]\w*)")
FILE_THEN_FUNCTIONS = re.compile(
    r"`([\w./-]+\.(?:c|h|py))` (`[A-Za-z_][\w.]*\(\)`(?:(?:,| and) `[A-Za-z_][\w.]*\(\)`)*)"
)
FUNCTION_IN_FILE = re.compile(r"(`[A-Za-z_][\w.]*\(\)`) in\s`([\w./-]+\.(?:c|h|py))`")
STEP = re.compile(r"^\|[^|]*\| (?:`([\w./-]+)` )?\| ((?:`\w+\(\)`(?:, )?)+) \|", re.MULTILINE)
ROOM = re.compile(r"\| \*\*`([\w./]+)/`\*\* \| \*\*\S.*\*\* \|")
FILE_ROW = re.compile(r"\| (`[\w., `]+`) \| \S.* \|")
C_FUNCTION = re.compile(r"^[A-Za-z_][^;{}()#]*?\b(\w+)\([^;{}]*\)\s*\{", re.MULTILINE)
COMMENT = re.compile(r"/\*.*?\*/|//[^\n]*", re.DOTALL)


# ---- What there is


def files(tree: str, suffixes: tuple[str, ...] = FILES) -> Iterator[Path]:
    """Yield the files of a tree that are ours, without this one, which names what is not there."""
    for path in sorted((ROOT / tree).rglob("*")):
        if path.suffix in suffixes and path.name not in (*MADE, Path(__file__).name):
            yield path


@cache
def file_names() -> frozenset[str]:
    """Return the names of all files, without their folders."""
    top = (path.name for path in ROOT.iterdir())
    return frozenset(top) | {path.name for tree in TREES for path in files(tree)}


@cache
def functions_of(path: Path) -> frozenset[str]:
    """Return the functions that a file defines; of Python methods as NAME and CLASS.NAME."""
    text = path.read_text()
    if path.suffix != ".py":
        return frozenset(C_FUNCTION.findall(COMMENT.sub("", text)))
    tree = ast.parse(text)
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    found = {node.name for node in ast.walk(tree) if isinstance(node, kinds)}
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef):
            found |= {f"{node.name}.{each.name}" for each in node.body if isinstance(each, kinds)}
    return frozenset(found)


@cache
def all_functions() -> frozenset[str]:
    """Return the functions of all source files."""
    return frozenset().union(
        *(functions_of(path) for tree in TREES for path in files(tree, SOURCES))
    )


@cache
def all_words() -> frozenset[str]:
    """Return every word of the source files and settings."""
    paths = [path for tree in ("bpf", "dpukv_xdp", "tests", "tools") for path in files(tree)]
    scripts = [ROOT / "pyproject.toml", ROOT / "tools" / "test", ROOT / "tools" / "setup"]
    return frozenset().union(*(re.findall(r"\w+", path.read_text()) for path in paths + scripts))


# ---- What a document says


def terms(text: str) -> list[str]:
    """Return what a document has in backticks, code blocks aside."""
    return IN_BACKTICKS.findall(CODE_BLOCK.sub("", text))


def missing_files(text: str) -> list[str]:
    """Return the paths in a document that lead nowhere."""
    named = [term.split()[0] for term in terms(text) if PATH.fullmatch(term.split()[0])]
    inside = [name for name in named if "/" in name and name.split("/")[0] in TREES]
    alone = [name for name in named if "/" not in name and Path(name).suffix in FILES]
    return [name for name in inside if not (ROOT / name).exists()] + [
        name for name in alone if name not in file_names()
    ]


def missing_functions(text: str) -> list[str]:
    """Return the functions in a document that no file defines, or not the file that it names."""
    named = [found[1] for term in terms(text) if (found := FUNCTION.fullmatch(term))]
    wrong = [f"{name}()" for name in named if name not in all_functions()]
    pairs = list(FILE_THEN_FUNCTIONS.findall(text))
    pairs += [(path, listed) for listed, path in FUNCTION_IN_FILE.findall(text)]
    last = ""
    for path, listed in STEP.findall(text):
        last = path or last
        pairs.append((last, listed))
    for path, listed in pairs:
        if "/" in path and (ROOT / path).is_file():
            defined = functions_of(ROOT / path)
            wrong += [
                f"{name}() in {path}" for name in FUNCTION.findall(listed) if name not in defined
            ]
    return wrong


def missing_names(text: str) -> list[str]:
    """Return single words in backticks that no source file has."""
    named = [found[1] for term in terms(text) if (found := NAME.fullmatch(term))]
    return [name for name in named if name not in all_words()]


def rooms_of(text: str) -> dict[str, list[str]]:
    """Return the rooms of the tables, in their order, with the files listed under each."""
    rooms: dict[str, list[str]] = {}
    room = None
    for line in text.splitlines():
        if heading := ROOM.fullmatch(line):
            room = heading[1]
            rooms[room] = []
        elif not line.startswith("|"):
            room = None
        elif room and (row := FILE_ROW.fullmatch(line)):
            rooms[room] += IN_BACKTICKS.findall(row[1])
    return rooms


def real_rooms() -> dict[str, list[str]]:
    """Return every folder with sources of the product, and the sources in it."""
    rooms: dict[str, list[str]] = {}
    for tree in ("bpf", "dpukv_xdp"):
        for path in files(tree, SOURCES):
            folder = path.parent.relative_to(ROOT).as_posix()
            if folder != "dpukv_xdp" and path.name != "__init__.py":
                rooms.setdefault(folder, []).append(path.name)
    return rooms


def differences(text: str) -> list[str]:
    """Return what the tables of rooms lack, and what they have that is not there."""
    told, real = rooms_of(text), real_rooms()
    found = []
    for room in sorted(told.keys() | real.keys()):
        here, there = sorted(told.get(room, [])), sorted(real.get(room, []))
        found += [f"{room}/{name} is not in the tables" for name in there if name not in here]
        found += [f"{room}/{name} does not exist" for name in here if name not in there]
        found += [f"{room}/{name} stands there twice" for name in here if here.count(name) > 1]
    return found


# ---- The tests


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_documents_name_files_that_exist(path: Path) -> None:
    text = path.read_text()
    assert terms(text)
    assert missing_files(text) == []


@pytest.mark.parametrize("text", [ARCHITECTURE, CONTRIBUTING], ids=["architecture", "contributing"])
def test_guides_name_functions_and_words_of_the_sources(text: str) -> None:
    assert FUNCTION_IN_FILE.search(text)
    assert missing_functions(text) == []
    assert missing_names(text) == []


def test_the_pictures_are_what_the_code_gives() -> None:
    assert draw_rooms.PICTURE.findall(ARCHITECTURE)
    assert draw_rooms.redrawn(ARCHITECTURE, ROOT) == ARCHITECTURE, "run tools/draw_rooms.py"


def test_the_tables_have_every_file() -> None:
    assert differences(ARCHITECTURE) == []


def test_the_tables_follow_the_layers() -> None:
    listed = [room for room in rooms_of(ARCHITECTURE) if room.count("/") == 1]
    python = [room.split("/")[1] for room in listed if room.startswith("dpukv_xdp/")]
    assert [room for room in python if room != "_core"] == draw_rooms.layers(ROOT)


@pytest.mark.parametrize(
    ("right", "wrong", "check", "noticed"),
    [
        ("`host.c`, ", "", differences, ["dpukv_xdp/_core/host.c is not in the tables"]),
        ("| `lab.py` |", "| `labour.py` |", differences, [
            "dpukv_xdp/lab/lab.py is not in the tables", "dpukv_xdp/lab/labour.py does not exist",
        ]),
        ("| `drop.h` |", "| `reply.h`, `drop.h` |", differences, [
            "bpf/door/reply.h stands there twice", "bpf/door/reply.h stands there twice",
        ]),
        ("`bpf/budget.toml`", "`bpf/money.toml`", missing_files, ["bpf/money.toml"]),
        ("`builds.py`", "`buildings.py`", missing_files, ["buildings.py"]),
        ("`kv_look_up()`", "`kv_look()`", missing_functions, [
            "kv_look()", "kv_look() in bpf/kv_receive.c",
        ]),
        ("`compare_tables()`", "`kv_receive()`", missing_functions, [
            "kv_receive() in dpukv_xdp/report/peers_report.py",
        ]),
        ("`server_config()` in", "`main()` in", missing_functions, [
            "main() in dpukv_xdp/cli/settings.py",
        ]),
        ("`Service.record()`", "`Service.entry()`", missing_functions, [
            "Service.entry()", "Service.entry() in dpukv_xdp/server/service.py",
        ]),
        ("`struct kv_port`", "`struct kv_harbour`", missing_names, ["kv_harbour"]),
    ],
)  # fmt: skip
def test_a_document_that_is_wrong_is_noticed(
    right: str, wrong: str, check: object, noticed: list[str]
) -> None:
    assert right in ARCHITECTURE
    assert callable(check)
    assert check(ARCHITECTURE.replace(right, wrong, 1)) == noticed


def test_pictures_follow_contract_and_imports(tmp_path: Path) -> None:
    """A small house: `attic` imports both rooms below, and the way to `cellar` leads through
    `hall`.
    """
    (tmp_path / "pyproject.toml").write_text(
        "[[tool.importlinter.contracts]]\n"
        'layers = ["attic", "hall", "cellar"]\n'
        "[[tool.importlinter.contracts]]\n"
        'source_modules = ["dpukv_xdp.cellar"]\n'
    )
    for room, text in {
        "attic": "from dpukv_xdp.hall import door\nimport dpukv_xdp.cellar.wine",
        "hall": "def late():\n    from dpukv_xdp.cellar import wine",
        "cellar": "import dpukv_xdp._core",
    }.items():
        (tmp_path / "dpukv_xdp" / room).mkdir(parents=True)
        (tmp_path / "dpukv_xdp" / room / "one.py").write_text(text)
    for path, text in {
        "bpf/top.c": '#include "door/in.h"\n#include "abi/all.h"',
        "bpf/door/in.h": '#include "abi/all.h"',
        "bpf/abi/all.h": "",
        "dpukv_xdp/_core/door/out.c": '# include "door/in.h"\n#include <stdio.h>',
    }.items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(text)
    python, c = draw_rooms.python_picture(tmp_path), draw_rooms.c_picture(tmp_path)
    assert [line.strip() for line in python.splitlines() if "-->" in line] == [
        "attic --> hall", "hall --> cellar",
    ]  # fmt: skip
    assert '    cellar -.-> core["_core"]\n' in python
    assert "    class cellar application\n" in python
    assert [line.strip() for line in c.splitlines() if "-->" in line] == [
        'bpf_door["door/"] --> bpf_abi',
        'bpf_top["bpf/*.c"] --> bpf_door',
        "core_door --> bpf_door",
    ]  # fmt: skip
