# SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
"""Combine repeated runs into one result."""

from collections.abc import Callable, Hashable, Iterable, Sequence
from statistics import median
from typing import Any

Result = dict[str, Any]


def merged(results: Iterable[Result], point_of: Callable[[Result], Hashable]) -> list[Result]:
    """Return one result per point, in order of first appearance: see median_result()."""
    points: dict[Hashable, list[Result]] = {}
    for result in results:
        points.setdefault(point_of(result), []).append(result)
    return [median_result(repeats) for repeats in points.values()]


def median_result(repeats: Sequence[Result]) -> Result:
    """Return the median of each number over the repeats, and all else from the first.

    The result's `repeats` is the number of runs.
    """
    runs = sum(result.get("repeats", 1) for result in repeats)
    return {**_median_of(repeats), "repeats": runs}


def _median_of(values: Sequence[Any]) -> Any:
    first = values[0]
    if isinstance(first, dict):
        known = [value for value in values if isinstance(value, dict)]
        return {
            name: _median_of([value[name] for value in known if name in value]) for name in first
        }
    numbers = [value for value in values if _is_number(value)]
    return median(numbers) if _is_number(first) else first


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
