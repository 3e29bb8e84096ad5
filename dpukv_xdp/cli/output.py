# SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
"""Output of the commands: progress, tables, JSON and notes; and checks that it can be written."""

import contextlib
import json
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from dpukv_xdp.base.errors import MissingError, UsageError

if TYPE_CHECKING:  # importing rich takes longer than `dpukv get`
    from rich.console import Console

PLAIN_COLUMNS = 80
"""Width of output that is not a terminal."""
PICTURE_SUFFIXES = (".png", ".pdf", ".svg")
PROGRESS_PER_SECOND = 4
SPEED_PERIOD_SECONDS = 600
"""Period over which the speed behind the time left is averaged."""


def require_root(what: str) -> None:
    """Raise MissingError unless this process is root."""
    if os.geteuid() != 0:
        raise MissingError(f"`dpukv {what}`", "root: run it with sudo")


def check_json(path: str | None) -> None:
    """Raise UsageError if the result cannot be written to --json's file later."""
    if path not in (None, "-"):
        _check_writable(Path(path), "--json")


def check_picture(path: Path | None) -> None:
    """Raise UsageError if the picture cannot be written to --output's file later."""
    if path is None:
        return
    if path.suffix not in PICTURE_SUFFIXES:
        raise UsageError(
            f"{path} does not end in {', '.join(PICTURE_SUFFIXES)}: choose another --output"
        )
    _check_writable(path, "--output")


def emit_json(path: str | None, result: Any) -> bool:
    """Write the result if --json asks for it; return whether standard output is taken by it."""
    if path is None:
        return False
    text = json.dumps(result, indent=2)
    if path == "-":
        click.echo(text)
        return True
    try:
        Path(path).write_text(f"{text}\n", encoding="utf-8")
    except OSError as error:
        raise UsageError(f"cannot write {path}: {error.strerror}") from error
    return False


@contextlib.contextmanager
def progress_bar(*, with_time_left: bool = False) -> Iterator[Callable[[str, float], None]]:
    """Show a progress bar on stderr if it is a terminal; yield a function that moves it."""
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    description = TextColumn("{task.description}")
    columns: tuple[Any, ...] = (description, BarColumn(), TimeElapsedColumn())
    if with_time_left:
        columns = (
            *(BarColumn(bar_width=20), TimeElapsedColumn(), TextColumn("left:")),
            *(TimeRemainingColumn(), description),
        )
    console = Console(stderr=True)
    with Progress(
        *columns,
        console=console,
        transient=True,
        refresh_per_second=PROGRESS_PER_SECOND,
        speed_estimate_period=SPEED_PERIOD_SECONDS,
        disable=not console.is_terminal,
    ) as bar:
        task = bar.add_task("starting", total=1.0)
        yield lambda what, fraction: bar.update(task, description=what, completed=fraction)


def terminal(columns: int = PLAIN_COLUMNS) -> "Console":
    """Return standard output for tables, `columns` wide if it is not a terminal."""
    from rich.console import Console

    return Console(highlight=False, width=None if sys.stdout.isatty() else columns)


def note(sentence: str) -> None:
    """Print a note on stderr."""
    click.echo(f"note: {sentence}", err=True)


def print_notes(console: "Console", runs: list[dict[str, Any]]) -> None:
    """Print the notes of all runs, each once."""
    for sentence in dict.fromkeys(sentence for run in runs for sentence in run["notes"]):
        console.print(f"note: {sentence}")


def machine_line(result: dict[str, Any]) -> str:
    """Return the machine of a result in a line."""
    machine = result["machine"]
    return f"{machine['cores']} cores of {machine['cpu']}, Linux {machine['kernel']}"


def _check_writable(path: Path, option: str) -> None:
    there = path if path.exists() else path.parent
    if path.is_dir() or not os.access(there, os.W_OK):
        raise UsageError(f"cannot write {path}: choose another {option}")
