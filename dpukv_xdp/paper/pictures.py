# SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
"""Pictures and tables of the report: axes side by side, one legend, PNG."""

import io
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dpukv_xdp.base.errors import UsageError
from dpukv_xdp.base.plotting import pyplot
from dpukv_xdp.paper.plans import Panel, Plan
from dpukv_xdp.paper.points import Spread

DPI = 100
TITLE_LETTERS_AN_INCH = 12
PANEL_WIDTH, PANEL_HEIGHT = 4.6, 3.9
"""Inches of one set of axes."""
LONG_ROWS = 14
"""A table with more rows is collapsed in the HTML report."""


@dataclass(frozen=True, slots=True)
class Table:
    """A table whose cells are text."""

    title: str
    headings: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    may_fold: bool = True

    @property
    def is_long(self) -> bool:
        """Return whether the HTML report collapses the table."""
        return self.may_fold and len(self.rows) > LONG_ROWS


@dataclass(frozen=True, slots=True)
class Picture:
    """A finished picture."""

    name: str
    """The file's name without its suffix."""
    title: str
    png: bytes = field(repr=False)


Item = Table | Picture


def side_by_side(count: int, *, width: float = PANEL_WIDTH, height: float = PANEL_HEIGHT) -> Any:
    """Return a figure and a list of its axes, which are side by side."""
    figure, grid = grid_of_axes(1, count, width=width, height=height)
    return figure, list(grid[0])


def grid_of_axes(
    rows: int, columns: int, *, width: float = PANEL_WIDTH, height: float = PANEL_HEIGHT
) -> Any:
    """Return a figure and its axes by row; rows longer than COLUMNS_MAX are wrapped."""
    plt = pyplot()
    plt.rcParams["axes.titlesize"] = "medium"
    if rows == 1 and columns > COLUMNS_MAX:
        across = next(n for n in (COLUMNS_MAX, 2) if columns % n == 0 or n == 2)
        figure, grid = grid_of_axes(-(-columns // across), across, width=width, height=height)
        every = [axes for row in grid for axes in row]
        for axes in every[columns:]:
            axes.remove()
        return figure, [every[:columns]]
    return plt.subplots(
        rows,
        columns,
        figsize=(max(width * columns, 6.0), height * rows),
        squeeze=False,
        layout="constrained",
    )


COLUMNS_MAX = 3
"""Most axes side by side."""


def log_scale(axis: Any) -> None:
    """Make an axis logarithmic, with tick labels that are written out and do not overlap."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    set_scale = axis.axes.set_xscale if axis.axis_name == "x" else axis.axes.set_yscale
    set_scale("log")
    low, high = axis.get_view_interval()
    axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if high < 200 * low else (1.0,)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_locator(NullLocator())  # laying out their labels takes most of the drawing time


def finish(
    plan: Plan, panel: Panel, figure: Any, all_axes: Sequence[Any], note: str = ""
) -> Picture:
    """Return the figure as a picture with a title and one legend for all axes."""
    handles: dict[str, Any] = {}
    for axes in all_axes:
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            handles.setdefault(label, handle)
    figure.legend(
        handles.values(),
        handles.keys(),
        loc="outside lower center",
        ncols=min(len(handles), int(figure.get_figwidth() / 1.7)),
        fontsize="small",
    )
    title = f"{panel.title} ({note})" if note else panel.title
    width = int(figure.get_figwidth() * TITLE_LETTERS_AN_INCH)
    figure.suptitle("\n".join(textwrap.wrap(title, width)), fontsize="medium")
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=DPI)
    pyplot().close(figure)
    name = f"{plan.id}-{panel.name.replace(' ', '-')}"
    return Picture(name, f"{plan.title}. {panel.title}", buffer.getvalue())


def save(picture: Picture, directory: Path) -> Path:
    """Write the picture into a directory and return its path. Raises UsageError."""
    path = directory / f"{picture.name}.png"
    try:
        path.write_bytes(picture.png)
    except OSError as error:
        raise UsageError(f"{path} cannot be written: {error.strerror}") from error
    return path


def palette() -> list[str]:
    """Return matplotlib's ten default colours."""
    return [f"C{number}" for number in range(10)]


def error_bars(spreads: Sequence[Spread]) -> list[list[float]]:
    """Return the distances from the medians down to the least and up to the greatest values."""
    return [
        [max(spread.median - spread.low, 0.0) for spread in spreads],
        [max(spread.high - spread.median, 0.0) for spread in spreads],
    ]
