#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
"""Draw the pictures of docs/ARCHITECTURE.md from the layers contract and from the code's imports.

`tools/draw_rooms.py` writes them into the document; tests/unit/test_docs.py fails when they are
not what the code gives.
"""

import ast
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
DOCUMENT = "docs/ARCHITECTURE.md"
PACKAGE, BPF, CORE = "dpukv_xdp", "bpf", "dpukv_xdp/_core"
INCLUDE = re.compile(r'^\s*#\s*include\s+"([^"]+)"', re.MULTILINE)
PICTURE = re.compile(r"(<!-- picture: (\w+) -->\n```mermaid\n).*?(```\n)", re.DOTALL)
APPLICATION = "fill:#d5e8d4,stroke:#82b366,color:#000000"
"""Style of the rooms that an application imports."""
INDENT = " " * 4

Graph = dict[str, set[str]]
"""The rooms that each room imports or includes."""


def main() -> None:
    """Write the pictures into the document."""
    path = ROOT / DOCUMENT
    path.write_text(redrawn(path.read_text(), ROOT))


def redrawn(text: str, root: Path) -> str:
    """Return the document's text with its pictures drawn from the tree at `root`."""
    drawings = {"python": python_picture, "c": c_picture}
    return PICTURE.sub(lambda found: found[1] + drawings[found[2]](root) + found[3], text)


# ---- The Python rooms


def contracts(root: Path) -> list[dict[str, list[str]]]:
    """Return the contracts of import-linter in pyproject.toml."""
    tools = tomllib.loads((root / "pyproject.toml").read_text())["tool"]
    found: list[dict[str, list[str]]] = tools["importlinter"]["contracts"]
    return found


def layers(root: Path) -> list[str]:
    """Return the Python rooms in the order of the layers contract, highest first."""
    return next(contract["layers"] for contract in contracts(root) if "layers" in contract)


def application_rooms(root: Path) -> list[str]:
    """Return the rooms that need no native code, as the contract that forbids it names them."""
    modules = next(each["source_modules"] for each in contracts(root) if "source_modules" in each)
    return [module.removeprefix(f"{PACKAGE}.") for module in modules]


def python_picture(root: Path) -> str:
    """Return the Mermaid text of the rooms, their imports, and which of them call the native
    core.
    """
    rooms = layers(root)
    graph = {room: imported_rooms(root, room) for room in rooms}
    callers = [room for room in rooms if "_core" in graph[room]]
    below = reduction({room: graph[room] & set(rooms) for room in rooms})
    lines = [
        "flowchart TD",
        *(
            line
            for room in rooms
            for line in arrow_line(room, sorted(below[room], key=rooms.index))
        ),
        f'{INDENT}{" & ".join(callers)} -.-> core["_core"]',
        f"{INDENT}classDef application {APPLICATION}",
        f"{INDENT}class {','.join(application_rooms(root))} application",
    ]
    return "\n".join(lines) + "\n"


def imported_rooms(root: Path, room: str) -> set[str]:
    """Return the folders of the package that the modules of a room import, without its own."""
    names = {
        name
        for path in (root / PACKAGE / room).rglob("*.py")
        for name in imported_modules(path)
        if name.startswith(f"{PACKAGE}.")
    }
    return {name.split(".")[1] for name in names} - {room}


def imported_modules(path: Path) -> Iterator[str]:
    """Yield each module that a file imports, at the top or inside a function."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


# ---- The folders of C


def c_picture(root: Path) -> str:
    """Return the Mermaid text of the C folders of both trees and their includes."""
    graph = reduction(included_rooms(root))
    lines = ["flowchart TD"]
    for tree, folder in (("core", CORE), ("bpf", BPF)):
        rooms = sorted(room for room in graph if room.startswith(tree))
        lines.append(f'{INDENT}subgraph {tree}["{folder}"]')
        for room in rooms:
            node = f'{room}["{label(room, tree, folder)}"]'
            lines += [
                INDENT + line
                for line in arrow_line(node, sorted(graph[room] & set(rooms))) or [INDENT + node]
            ]
        lines.append(f"{INDENT}end")
    for room in sorted(graph):
        other_tree = {each for each in graph[room] if each.split("_")[0] != room.split("_")[0]}
        lines += arrow_line(room, sorted(other_tree))
    return "\n".join(lines) + "\n"


def label(room: str, tree: str, folder: str) -> str:
    """Return the name of a folder in the picture."""
    name = room.removeprefix(f"{tree}_")
    return f"{folder}/*.c" if name == "top" else f"{name}/"


def included_rooms(root: Path) -> Graph:
    """Return the folders of both trees, each with those whose headers its files include."""
    graph: Graph = {}
    for tree, folder in (("core", root / CORE), ("bpf", root / BPF)):
        for path in sorted(folder.rglob("*.[ch]")):
            if path.name.startswith("_"):  # cffi's are generated
                continue
            room = room_name(tree, path.relative_to(folder))
            targets = {
                included_room(root, tree, name) for name in INCLUDE.findall(path.read_text())
            }
            graph.setdefault(room, set()).update(targets - {room})
    return graph


def included_room(root: Path, tree: str, name: str) -> str:
    """Return the folder of a header, which _core includes from its own tree or from bpf/."""
    is_core = tree == "core" and (root / CORE / name).is_file()
    return room_name("core" if is_core else "bpf", Path(name))


def room_name(tree: str, path: Path) -> str:
    """Return the name of a file's folder in the graph."""
    return f"{tree}_{path.parent.as_posix()}".replace(f"{tree}_.", f"{tree}_top")


# ---- Arrows


def reduction(graph: Graph) -> Graph:
    """Return the graph without the arrows that a longer way covers."""
    return {
        room: {
            below
            for below in targets
            if not any(below in reached(graph, other) for other in targets - {below})
        }
        for room, targets in graph.items()
    }


def reached(graph: Graph, start: str) -> set[str]:
    """Return all that arrows lead to from `start`, directly or through others."""
    found: set[str] = set()
    waiting = [start]
    while waiting:
        new = graph.get(waiting.pop(), set()) - found
        found |= new
        waiting += new
    return found


def arrow_line(room: str, targets: list[str]) -> list[str]:
    """Return the line of a room's arrows; none for a room without them."""
    return [f"{INDENT}{room} --> {' & '.join(targets)}"] if targets else []


if __name__ == "__main__":
    main()
