# SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
"""The verifier budget, bpf/budget.toml: the instructions allowed per program of each build.

The kernel's own limit is a million. The budget reports a program that grows towards it on any
kernel of the matrix, long before that kernel refuses the program.
"""

import math
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path

from dpukv_xdp.ops.builds import every_build

BUDGET = Path(__file__).parents[2] / "bpf" / "budget.toml"
MARGIN = 0.05
"""Margin of a row over the largest count of any kernel when the row was written, as a fraction."""
STEP = 50
"""Rows are rounded up to a multiple of this."""
Programs = Mapping[str, int]
"""Verified instructions by program."""

_HEAD = f"""\
# SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
# Instructions that the verifier may walk for each program of each build
# (dpukv_xdp/ops/builds.py): the most that any kernel of the matrix took, {MARGIN:.0%} more,
# rounded up to a multiple of {STEP}. The kernel's limit is 1,000,000. Written by
# `sudo tools/test --kernels --quick --write-budget` from the kernels that were tried together.

"""


def read(path: Path = BUDGET) -> dict[str, dict[str, int]]:
    """Return the table: instructions by build and program."""
    return tomllib.loads(path.read_text())


def write(measured: Iterable[Mapping[str, Programs]], path: Path = BUDGET) -> None:
    """Write the table from measurements: for each kernel, the instructions by build and program."""
    most: dict[str, dict[str, int]] = {}
    for kernel in measured:
        for build, programs in kernel.items():
            row = most.setdefault(build, {})
            for program, instructions in programs.items():
                row[program] = max(row.get(program, 0), instructions)
    rows = (f'"{build}" = {{ {_cells(row)} }}\n' for build, row in most.items())
    path.write_text(_HEAD + "".join(rows))


def allowed(instructions: int) -> int:
    """Return the budget of a program whose largest count is `instructions`."""
    return STEP * math.ceil(instructions * (1 + MARGIN) / STEP)


def overruns(build: str, measured: Programs, table: Mapping[str, Programs]) -> list[str]:
    """Return a sentence for each program of a build that exceeds its budget or has none."""
    row = table.get(build, {})
    sentences = []
    for program, instructions in measured.items():
        if program not in row:
            sentences.append(f"{build}: {program} has no row in {BUDGET.name}")
        elif instructions > row[program]:
            sentences.append(
                f"{build}: {program} took {instructions:,} instructions, and may take "
                f"{row[program]:,}"
            )
    sentences += [f"{build}: there is no {program}" for program in row if program not in measured]
    return sentences


def rows_without_build(table: Mapping[str, Programs]) -> list[str]:
    """Return the names of rows without a build and of builds without a row."""
    names = {build.name for build in every_build()}
    return sorted(names ^ set(table))


def _cells(row: Programs) -> str:
    return ", ".join(f"{program} = {allowed(count)}" for program, count in row.items())
