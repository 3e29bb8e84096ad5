# SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
"""Results of the matrix of kernels, written as JSON and as tables."""

import json
import xml.etree.ElementTree as ElementTree
from collections import Counter
from pathlib import Path
from typing import Any

import msgspec
from rich.console import Console
from rich.table import Table

from kernels import budget


class Suite(msgspec.Struct):
    """The results of the tests of one file or folder."""

    passed: int = 0
    failed: int = 0
    skipped: dict[str, int] = {}
    """Number of skipped tests by reason."""
    failures: list[str] = []
    """One line per failed test."""


class KernelResult(msgspec.Struct):
    """The results of one kernel."""

    name: str
    """A row of images.KERNELS, or "here"."""
    release: str = ""
    emulated: bool = False
    slowness: float = 1.0
    instructions: dict[str, dict[str, int]] = {}
    """Verified instructions by build and program."""
    refused: dict[str, str] = {}
    """Builds that did not load, with the reason."""
    over_budget: list[str] = []
    """A sentence for each program beyond its budget."""
    broken: list[str] = []
    """A sentence for each step that could not be run at all."""
    benches: dict[str, dict[str, Any]] = {}
    """Results of the benches by design."""
    labs: dict[str, dict[str, Any]] = {}
    """Results of `lab`, `set` and `get` by design."""
    commands: dict[str, str] = {}
    """The README's commands: "ok", or the failure."""
    suites: dict[str, Suite] = {}
    seconds: dict[str, float] = {}
    """Duration of each phase."""

    def add(self, line: dict[str, Any], table: dict[str, dict[str, int]]) -> None:
        """Add the result in a line of inside.py; `table` is the budget."""
        if "build" in line:
            build = line["build"]
            if "refused" in build:
                self.refused[build["name"]] = build["refused"]
            else:
                self.instructions[build["name"]] = build["instructions"]
                self.over_budget += budget.overruns(build["name"], build["instructions"], table)
        for kind, place in (("bench", self.benches), ("lab", self.labs)):
            if kind in line:
                place[line[kind].pop("design")] = line[kind]

    def judge(self, table: dict[str, dict[str, int]]) -> None:
        """Compare the instructions of all builds with another budget."""
        self.over_budget = [
            sentence
            for build, instructions in self.instructions.items()
            for sentence in budget.overruns(build, instructions, table)
        ]

    def failures(self) -> list[str]:
        """Return a sentence for each failure."""
        found = [*self.broken, *(f"{build}: {why}" for build, why in self.refused.items())]
        found += self.over_budget
        for design, bench in self.benches.items():
            if "failed" in bench:
                found.append(f"bench --design {design}: {bench['failed']}")
            elif bench["corrupt"] or bench["lost"] or bench["refused"] or not bench["hits"]:
                found.append(f"bench --design {design}: not all answers were right: {bench}")
        found += [f"lab {d}: {lab['failed']}" for d, lab in self.labs.items() if "failed" in lab]
        found += [f"{name}: {said}" for name, said in self.commands.items() if said != "ok"]
        for suite in self.suites.values():
            found += suite.failures
        return [f"{self.name}: {sentence}" for sentence in found]


def read_junit(text: str) -> dict[str, Suite]:
    """Return the suites in pytest's XML, by folder of tests/, or by file for tests/net."""
    suites: dict[str, Suite] = {}
    for case in ElementTree.fromstring(text).iter("testcase"):
        parts = case.get("classname", "").removeprefix("tests.").split(".")
        name = "/".join(parts[:2]) if parts[0] == "net" else parts[0]
        suite = suites.setdefault(name, Suite(skipped={}, failures=[]))
        bad = next((child for child in case if child.tag in ("failure", "error")), None)
        skipped = case.find("skipped")
        if bad is not None:
            suite.failed += 1
            reason = (bad.get("message") or "").strip().splitlines() or ["?"]
            suite.failures.append(f"{name}: {case.get('name')}: {reason[0]}")
        elif skipped is not None:
            why = skipped.get("message") or "?"
            suite.skipped[why] = suite.skipped.get(why, 0) + 1
        else:
            suite.passed += 1
    return suites


def show(results: list[KernelResult], console: Console) -> int:
    """Print the table and the failures; return the exit status."""
    table = Table(title="Kernels", title_justify="left")
    table.add_column("")
    for result in results:
        table.add_column(heading(result), justify="right")
    for name, cells in rows(results):
        table.add_row(name, *cells)
    console.print(table)
    failures = [sentence for result in results for sentence in result.failures()]
    for sentence in failures:
        console.print(f"failed on {sentence}", markup=False)
    return int(bool(failures))


def heading(result: KernelResult) -> str:
    """Return the heading of a kernel's column."""
    how = f", emulated ({result.slowness:g} times slower)" if result.emulated else ""
    return f"{result.name}: {result.release}{how}"


def rows(results: list[KernelResult]) -> list[tuple[str, list[str]]]:
    """Return the table without the instructions: the name of each row and a cell per kernel."""
    found: list[tuple[str, list[str]]] = [
        ("builds loaded", [_loaded(result) for result in results]),
        ("most instructions", [_most(result) for result in results]),
    ]
    for title, kind in (("bench", "benches"), ("lab up, set, get, down", "labs")):
        if any(getattr(result, kind) for result in results):
            found.append((title, [_designs(getattr(result, kind)) for result in results]))
    for name in dict.fromkeys(name for result in results for name in result.commands):
        found.append((name, [result.commands.get(name, "–") for result in results]))
    for name in dict.fromkeys(name for result in results for name in result.suites):
        found.append((f"tests/{name}", [_suite(result.suites.get(name)) for result in results]))
    return found


def write(results: list[KernelResult], directory: Path) -> None:
    """Write kernels.json and kernels.md."""
    directory.mkdir(parents=True, exist_ok=True)
    text = json.dumps([msgspec.to_builtins(result) for result in results], indent=1)
    (directory / "kernels.json").write_text(text + "\n")
    (directory / "kernels.md").write_text(_markdown(results))


def _markdown(results: list[KernelResult]) -> str:
    headings = [heading(result) for result in results]
    lines = [
        "# Kernels",
        "",
        "Written by `sudo tools/test --kernels --write`. Suites: passed / failed / skipped.",
        "",
        *_markdown_table(["", *headings], [[name, *cells] for name, cells in rows(results)]),
        "",
    ]
    skipped = Counter(
        (result.name, f"tests/{name}", why)
        for result in results
        for name, suite in result.suites.items()
        for why, count in suite.skipped.items()
        for _ in range(count)
    )
    if skipped:
        lines += ["## Skipped", ""]
        lines += [f"- {k}, {suite}: {n} × {why}" for (k, suite, why), n in skipped.items()]
        lines.append("")
    failures = [sentence for result in results for sentence in result.failures()]
    if failures:
        lines += ["## Failed", "", *(f"- {sentence}" for sentence in failures), ""]
    lines += ["## Instructions verified", "", *_instructions(results), ""]
    return "\n".join(lines)


def _instructions(results: list[KernelResult]) -> list[str]:
    pairs = dict.fromkeys(
        (build, program)
        for result in results
        for build, programs in result.instructions.items()
        for program in programs
    )
    cells = [
        [build, program]
        + [_count(result.instructions.get(build, {}).get(program)) for result in results]
        for build, program in pairs
    ]
    return _markdown_table(["build", "program", *(result.name for result in results)], cells)


def _markdown_table(headings: list[str], cells: list[list[str]]) -> list[str]:
    lines = [headings, ["---"] * len(headings), *cells]
    return ["| " + " | ".join(line) + " |" for line in lines]


def _count(instructions: int | None) -> str:
    return "–" if instructions is None else f"{instructions:,}"


def _loaded(result: KernelResult) -> str:
    total = len(result.instructions) + len(result.refused)
    return f"{len(result.instructions)} of {total}" if total else "–"


def _most(result: KernelResult) -> str:
    counts = [count for build in result.instructions.values() for count in build.values()]
    return _count(max(counts, default=None))


def _designs(by_design: dict[str, dict[str, Any]]) -> str:
    good = sum("failed" not in found for found in by_design.values())
    return f"{good} of {len(by_design)} designs" if by_design else "–"


def _suite(suite: Suite | None) -> str:
    if suite is None:
        return "–"
    return f"{suite.passed} / {suite.failed} / {sum(suite.skipped.values())}"
