# SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
"""Numbers, ranges and spreads as text."""

import math

from dpukv_xdp.paper.points import Spread


def text_of(value: float) -> str:
    """Return a number with three significant digits."""
    if value == 0:
        return "0"
    digits = max(2 - math.floor(math.log10(abs(value))), 0)
    return f"{value:,.{digits}f}"


def text_of_range(ends: tuple[float, float]) -> str:
    """Return a range, or one value if both ends read the same."""
    low, high = text_of(ends[0]), text_of(ends[1])
    return low if low == high else f"{low} to {high}"


def text_of_spread(spread: Spread | None) -> str:
    """Return the median, with the range of the repeats if they differ."""
    if spread is None:
        return "-"
    if spread.low == spread.high:
        return text_of(spread.median)
    return f"{text_of(spread.median)} ({text_of(spread.low)}–{text_of(spread.high)})"
