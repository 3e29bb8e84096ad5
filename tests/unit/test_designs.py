# SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
"""A design is a row of the table: no code branches on its name."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from dpukv_xdp.base.errors import UsageError
from dpukv_xdp.base.places import BPF_DIR
from dpukv_xdp.cli.measuring import ALL_DESIGNS
from dpukv_xdp.topology.designs import DESIGNS, Design, find_design
from dpukv_xdp.topology.schema import ServerConfig

PACKAGE = Path(__file__).parents[2] / "dpukv_xdp"
THE_TABLE = "topology/designs.py"
DEFAULTS = {("topology/schema.py", "ServerConfig", "design")}
"""Settings whose default is a design's name: module, class and field."""

NO_ROW = {("cli/measuring.py", "given['design'] == ALL_DESIGNS")}
"""Allowed comparisons of --design: with the word for all designs, which is no design's name."""
STRING_TESTS = ("startswith", "endswith", "find", "index", "count")

COMMENTS = re.compile(r"/\*.*?\*/|//[^\n]*", re.DOTALL)
IDENTIFIER = re.compile(r"[A-Za-z_]\w*")


def modules() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def c_sources() -> list[Path]:
    return sorted(p for d in (BPF_DIR, PACKAGE / "_core") for p in d.rglob("*.[ch]"))


# ---- The table


def test_names_are_the_rows_own() -> None:
    assert {name: row.name for name, row in DESIGNS.items()} == {name: name for name in DESIGNS}


def test_the_paper_compares_six() -> None:
    compared = [name for name, row in DESIGNS.items() if row.is_compared]
    assert compared == ["cpu-only", "dpu-only", "lat", "sav", "dual", "shrd"]


def test_no_two_rows_are_alike() -> None:
    columns = [(row.communication, row.processing, row.pairing) for row in DESIGNS.values()]
    assert len(set(columns)) == len(columns)


def test_an_unknown_design_is_named_beside_the_known() -> None:
    with pytest.raises(UsageError) as refused:
        find_design("fast")
    assert str(refused.value).endswith(", ".join(DESIGNS))


# ---- Nothing knows a name


@pytest.mark.parametrize("path", modules(), ids=lambda path: path.name)
def test_no_module_knows_a_design_s_name(path: Path) -> None:
    assert branches_on_names(path.relative_to(PACKAGE).as_posix(), path.read_text()) == []


@pytest.mark.parametrize("path", c_sources(), ids=lambda path: path.name)
def test_no_c_source_knows_a_design_s_name(path: Path) -> None:
    assert names_in_c(path.read_text()) == []


def test_the_defaults_are_where_they_are_said_to_be() -> None:
    for module, class_name, field in DEFAULTS:
        tree = ast.parse((PACKAGE / module).read_text())
        assert [node.value for node in default_nodes(tree, class_name, field)] != []
    assert find_design(ServerConfig().design)


def test_the_word_for_all_designs_names_none() -> None:
    for module, expression in NO_ROW:
        assert expression in (PACKAGE / module).read_text().replace('"', "'")
    assert ALL_DESIGNS not in DESIGNS


@pytest.mark.parametrize(
    "line",
    [
        "if design.name == 'sav': pass",
        "if name in ('lat', 'sav'): pass",
        "wanted = {'dual': 2}[name]",
        "match name:\n    case 'shrd': pass",
        "if config.design != other: pass",
        "if row().design.name == chosen: pass",
        "match config.design:\n    case _: pass",
        "table = {}; table[config.design]",
        "config.design.startswith('l')",
        "design.name.endswith(text)",
        "def serve(design='lat'): pass",
        "NAME = 'inverse'",
        "class ServerConfig:\n    design: str = 'lat'\n    other: str = 'lat'",
    ],
)
def test_a_branch_on_a_name_would_be_seen(line: str) -> None:
    assert len(branches_on_names("topology/schema.py", line)) >= 1


@pytest.mark.parametrize(
    "line",
    [
        "if KV_DESIGN_LAT:",
        "int kv_serve_sav(void);",
        "#if KV_DPU_ONLY",
        'strcmp(name, "dual")',
        'strcmp(name, "cpu-only")',
        "shrd = 1;",
    ],
)
def test_a_name_in_c_would_be_seen(line: str) -> None:
    assert len(names_in_c(line)) == 1


def test_what_is_allowed_is_not_seen() -> None:
    fine = "class ServerConfig:\n    design: str = 'lat'\n    'A row; lat unless given.'"
    assert branches_on_names("topology/schema.py", fine) == []
    assert len(branches_on_names("server.py", fine)) == 1
    assert branches_on_names(THE_TABLE, "NAME = 'lat'") == []
    assert names_in_c("/* lat */ late = latency; // sav\n") == []


def branches_on_names(module: str, text: str) -> list[str]:
    """Return the places at which a module has a design's name as a string, or branches on the name
    of a given design.
    """
    tree = ast.parse(text)
    allowed = {
        id(node)
        for where, class_name, field in DEFAULTS
        if where == module
        for node in default_nodes(tree, class_name, field)
    }
    found = []
    for node in ast.walk(tree):
        is_name = isinstance(node, ast.Constant) and node.value in DESIGNS
        if is_name and module != THE_TABLE and id(node) not in allowed:
            found.append(f"{module}:{node.lineno}: {ast.unparse(node)} is a design's name")
        found += [
            f"{module}:{node.lineno}: {ast.unparse(node)} depends on a design's name"
            for operand in deciding_operands(node)
            if is_design_name(operand) and (module, ast.unparse(node)) not in NO_ROW
        ]
    return found


def default_nodes(tree: ast.AST, class_name: str, field: str) -> Iterator[ast.Constant]:
    """Yield the constants that are a class field's default."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef) and node.name == class_name:
            for line in node.body:
                is_field = isinstance(line, ast.AnnAssign) and ast.unparse(line.target) == field
                if is_field and isinstance(line.value, ast.Constant):
                    yield line.value


def deciding_operands(node: ast.AST) -> list[ast.expr]:
    """Return the operands that decide a node's outcome, if it is a comparison, a match, a look-up,
    or a call of a string's test.
    """
    if isinstance(node, ast.Compare):
        return [node.left, *node.comparators]
    if isinstance(node, ast.Match):
        return [node.subject]
    if isinstance(node, ast.Subscript) and isinstance(node.ctx, ast.Load):
        return [node.slice]
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
        return [node.func.value] if node.func.attr in STRING_TESTS else []
    return []


def is_design_name(node: ast.expr) -> bool:
    """Return whether a node is `X.design`, `X["design"]`, `design.name`, `row().name` or a name."""
    if isinstance(node, ast.Constant):
        return isinstance(node.value, str) and node.value in DESIGNS
    if isinstance(node, ast.Tuple | ast.List | ast.Set):
        return any(is_design_name(element) for element in node.elts)
    if isinstance(node, ast.Subscript):
        return isinstance(node.slice, ast.Constant) and node.slice.value == "design"
    if not isinstance(node, ast.Attribute):
        return False
    if node.attr == "design":
        return True
    of = ast.unparse(node.value)
    return node.attr == "name" and re.search(r"(\bdesign|\brow\(\))$", of) is not None


def names_in_c(text: str) -> list[str]:
    """Return the design names in C code: quoted, or as an identifier or words of one."""
    code = COMMENTS.sub(" ", text)
    identifiers = [f"_{word.lower()}_" for word in IDENTIFIER.findall(code)]
    return [
        name
        for name in DESIGNS
        if f'"{name}"' in code or any(f"_{name.replace('-', '_')}_" in word for word in identifiers)
    ]


def test_columns_are_places() -> None:
    for row in DESIGNS.values():
        assert_row_makes_sense(row)


def assert_row_makes_sense(row: Design) -> None:
    """Assert that doors and processing are distinct places, and each door leads to an engine."""
    for places in (row.communication, row.processing):
        assert places
        assert len(set(places)) == len(places)
        assert set(places) <= {"dpu", "host"}
    for door in row.communication:
        assert row.processing_of(door) in row.processing
    if row.pairing == "fused":
        assert row.communication == row.processing
