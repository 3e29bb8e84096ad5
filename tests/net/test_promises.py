# SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
"""Every promise of docs/RELIABILITY.md has tests, and a mutation that makes each of them fail."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

from dpukv_xdp.base.patience import patient

ROOT = Path(__file__).parents[2]
DOCUMENT = ROOT / "docs" / "RELIABILITY.md"
PROMISE = re.compile(r"^### (\d+)\. (.+?)$(.*?)(?=^##)", re.MULTILINE | re.DOTALL)
TEST = re.compile(r"^- Test: `(tests/[\w/]+\.py)(?:::(\w+))?`$", re.MULTILINE)
MUTATION = re.compile(r"^- Mutation: `([\w/.]+)`: `([^`]+)` → `([^`]+)`$", re.MULTILINE)
LABELS = re.compile(r"^- (?:Test|Mutation):", re.MULTILINE)
MUTANT_SECONDS = patient(300.0)


class Promise(NamedTuple):
    """One promise, as the document states it."""

    number: int
    title: str
    tests: list[tuple[str, str]]
    """Files, and functions in them; an empty name for all of them."""
    file: str
    """The source that the mutation changes."""
    right: str
    wrong: str


def promises() -> list[Promise]:
    """Return the document's promises; each line of a promise that names something is understood."""
    found = []
    for number, title, text in PROMISE.findall(DOCUMENT.read_text()):
        tests, mutations = TEST.findall(text), MUTATION.findall(text)
        assert len(tests) + len(mutations) == len(LABELS.findall(text)), title
        assert tests, title
        (mutation,) = mutations
        found.append(Promise(int(number), title, tests, *mutation))
    return found


PROMISES = promises()


def test_promises_are_numbered() -> None:
    numbers = [promise.number for promise in PROMISES]
    assert numbers == list(range(1, len(numbers) + 1))
    assert len(numbers) == DOCUMENT.read_text().count("\n### ")


@pytest.mark.parametrize("promise", PROMISES, ids=lambda promise: promise.title)
def test_what_a_promise_names_is_there(promise: Promise) -> None:
    for file, function in promise.tests:
        assert not function or f"def {function}(" in (ROOT / file).read_text()
    assert (ROOT / promise.file).read_text().count(promise.right) == 1
    assert promise.right != promise.wrong


@pytest.mark.long
@pytest.mark.parametrize("promise", PROMISES, ids=lambda promise: promise.title)
def test_a_mutation_breaks_each_test_of_a_promise(promise: Promise, tmp_path: Path) -> None:
    copy = tmp_path / "checkout"
    ignored = shutil.ignore_patterns(".git", ".venv", "build", "__pycache__")
    shutil.copytree(ROOT, copy, ignore=ignored)
    assert_status(copy, promise, pytest.ExitCode.OK)
    source = copy / promise.file
    source.write_text(source.read_text().replace(promise.right, promise.wrong))
    assert_status(copy, promise, pytest.ExitCode.TESTS_FAILED)


def assert_status(checkout: Path, promise: Promise, wanted: pytest.ExitCode) -> None:
    """Run each of the promise's tests in a checkout; each must end with this status."""
    for file, function in promise.tests:
        argv = [sys.executable, "-m", "pytest", "-q", "-x", "--no-header", "-p", "no:cacheprovider"]
        argv.append(f"{file}::{function}" if function else file)
        environment = os.environ | {"PYTHONPATH": str(checkout)}
        run = subprocess.run(
            argv,
            cwd=checkout,
            env=environment,
            capture_output=True,
            text=True,
            timeout=MUTANT_SECONDS,
            check=False,
        )
        assert run.returncode == wanted, f"{file}::{function}\n{run.stdout[-3000:]}"
