# SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
"""matplotlib for pictures in files, imported on first use because the import is slow."""

from pathlib import Path
from typing import Any

from dpukv_xdp.base.errors import UsageError

DOTS_PER_INCH = 120


def pyplot() -> Any:
    """Return matplotlib.pyplot with a backend that needs no display."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    return plt


def save_figure(figure: Any, path: Path) -> None:
    """Write a figure in the format of the path's suffix, and close it.

    Raises UsageError if the file cannot be written.
    """
    try:
        figure.savefig(path, dpi=DOTS_PER_INCH)
    except OSError as error:
        raise UsageError(f"{path} cannot be written: {error.strerror}") from error
    finally:
        pyplot().close(figure)
