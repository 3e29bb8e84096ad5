# SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
"""The look of tables on the terminal."""

from collections.abc import Sequence

from rich.box import SIMPLE_HEAD
from rich.console import JustifyMethod
from rich.table import Table


def plain_table(
    title: str,
    headings: Sequence[str] = (),
    *,
    justify: JustifyMethod = "right",
    no_wrap: bool = True,
    gap: int = 1,
) -> Table:
    """Return a table without a frame, `gap` spaces between its columns, headed by `headings`."""
    table = Table(
        title=title,
        title_justify="left",
        box=SIMPLE_HEAD,
        show_edge=False,
        padding=(0, gap, 0, 0),
        pad_edge=False,
    )
    for heading in headings:
        table.add_column(heading, justify=justify, no_wrap=no_wrap)
    return table
