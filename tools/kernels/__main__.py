# SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
"""Command line of `tools/test --kernels`: test this checkout on other kernels."""

import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from types import FrameType
from typing import NoReturn

import click
from rich.console import Console

from dpukv_xdp.base.errors import DpukvError, MissingError, UsageError
from kernels import budget, guests, images, matrix, processes, results
from kernels.results import KernelResult

RESULTS = images.ROOT / "docs" / "results"
BUILD = images.ROOT / "build" / "kernels"
console = Console(highlight=False, soft_wrap=True)


def main() -> int:
    """Run the command line; return the exit status. Expected failures print one sentence."""
    # A shell starts background jobs with SIGINT ignored, but `kill -INT` must still end them.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _end)
    try:
        return int(run.main(standalone_mode=False, prog_name="tools/test --kernels"))
    except DpukvError as error:
        return _fail(str(error), error.exit_status)
    except click.ClickException as error:
        return _fail(error.format_message(), UsageError.exit_status)
    except (KeyboardInterrupt, click.Abort):
        return _fail("interrupted; no guest and no unfinished image is left", 128 + signal.SIGINT)


@click.command(context_settings={"ignore_unknown_options": True, "help_option_names": ["--help"]})
@click.argument("words", nargs=-1, type=click.UNPROCESSED, metavar="[KERNELS] [PYTEST ARGUMENTS]")
@click.option(
    "--quick",
    is_flag=True,
    help="Only load every build, and measure each design briefly: takes minutes, for CI.",
)
@click.option("--write", is_flag=True, help="Also write docs/results/kernels.md and kernels.json.")
@click.option(
    "--write-budget",
    is_flag=True,
    help="Write bpf/budget.toml from these kernels and the running one.",
)
def run(words: tuple[str, ...], quick: bool, write: bool, write_budget: bool) -> int:
    """Test this checkout on KERNELS, such as 6.1,6.12, in guests made of Debian packages; by
    default on all known ones. Other arguments are passed to pytest.

    On each kernel this runs the README's two commands as written, in an unprepared guest; the
    functional suites; every program, counting the instructions that the verifier processes; and a
    short bench, a `set` and a `get` in each design. Results are written to build/kernels. The exit
    status is 1 if anything failed.
    """
    kernels, arguments = split(words)
    names = kernels.split(",") if kernels else list(images.KERNELS)
    chosen = [images.kernel_named(name) for name in names]
    if os.geteuid() != 0:
        raise MissingError("tools/test --kernels", "root: run it with sudo")
    processes.require([*images.PROGRAMS, *guests.PROGRAMS], "tools/test --kernels")
    found: list[KernelResult] = []

    def attempt(result: KernelResult, step: Callable[[], None]) -> None:
        """Run a step and record its failure, so that later steps still run."""
        try:
            step()
        except DpukvError as error:
            result.broken.append(str(error))
        results.write(found, BUILD)

    if write_budget or not quick:
        found.append(KernelResult("here", os.uname().release))
        attempt(found[0], lambda: matrix.try_here(found[0], say))
    for kernel in chosen:
        found.append(KernelResult(kernel.name))
        attempt(found[-1], partial(matrix.try_quickly, kernel, found[-1], say))
    if not quick:
        attempt(found[0], lambda: matrix.try_suites_here(arguments, found[0], say))
        for kernel, result in zip(chosen, found[1:], strict=True):
            attempt(result, partial(matrix.try_fresh_box, kernel, arguments, result, say))
    if write_budget:
        budget.write([result.instructions for result in found])
        for result in found:
            result.judge(budget.read())
    if write:
        results.write(found, RESULTS)
    return results.show(found, console)


def split(words: Sequence[str]) -> tuple[str, tuple[str, ...]]:
    """Return the list of kernels, empty if none is given, and pytest's arguments."""
    if words and not words[0].startswith("-"):
        return words[0], tuple(words[1:])
    return "", tuple(words)


def say(sentence: str) -> None:
    """Print a sentence with the time of day."""
    console.print(f"{time.strftime('%H:%M:%S')} {sentence}", markup=False)


def _end(number: int, frame: FrameType | None) -> NoReturn:
    raise SystemExit(128 + number)


def _fail(sentence: str, status: int) -> int:
    print(sentence, file=sys.stderr)  # noqa: T201 - a command's error
    return status


if __name__ == "__main__":
    sys.exit(main())
