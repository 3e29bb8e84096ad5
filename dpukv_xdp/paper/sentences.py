# SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
"""Sentences of the report on what no claim covers: the two clocks, and the model's validation."""

from collections.abc import Iterable, Mapping
from statistics import mean, median
from typing import Any

from dpukv_xdp.paper.metrics import cpu_ns, stage_sum_ns
from dpukv_xdp.paper.points import Point
from dpukv_xdp.paper.words import text_of, text_of_range

ERROR_MAX = 0.15
"""Largest relative error of the model that counts as agreement."""


def clock_sentences(shown: Iterable[Point]) -> list[str]:
    """Return how far the two clocks of a request's time differ, for XDP and for the host."""
    found: dict[str, list[float]] = {"dpu": [], "host": []}
    for point in shown:
        for side, differences in found.items():
            by_stages = median([stage_sum_ns(result, side) for result in point.results])
            by_cpu = median([cpu_ns(result, side) for result in point.results])
            if by_stages and by_cpu:
                differences.append(by_stages / by_cpu - 1)
    names = {
        "dpu": "XDP, stage clocks against BPF run-time statistics",
        "host": "host, stage clocks against the thread's CPU time",
    }
    why = {
        "dpu": "both count the program's run; the clock readings between stages are in one only",
        "host": "a host that waits for requests polls, which no stage clock sees; a stage that "
        "other programs interrupt counts their time, which the CPU clock does not",
    }
    return [
        f"{names[side]}: {min(values):+.0%} to {max(values):+.0%} over {len(values)} loads, median "
        f"{median(values):+.0%} ({why[side]})."
        for side, values in found.items()
        if values
    ]


def validation_sentences(found: Mapping[str, Any]) -> tuple[list[str], list[str]]:
    """Return two lists of sentences: values that agree with the model, and values that are off by
    more than ERROR_MAX, with what is known about the reason.
    """
    agreeing, differing = [], []
    names = {"paper": "the paper's", "measured": "this machine's"}
    for source, part in found.items():
        checks = part["checks"]
        good = [check for check in checks if abs(check["error"]) <= ERROR_MAX]
        errors = [abs(check["error"]) for check in checks if check["standing"] == "held out"]
        held_out = (
            f"; the {len(errors)} held-out ones have a mean error of {mean(errors):.1%}"
            if errors
            else ""
        )
        agreeing.append(
            f"{len(good)} of {names[source]} {len(checks)} values are within {ERROR_MAX:.0%}"
            f"{held_out}."
        )
        for check in checks:
            if abs(check["error"]) > ERROR_MAX:
                why = f": {check['why']}" if check["why"] else ""
                differing.append(
                    f"{check['name']} ({check['where']}): {text_of(check['model'])} instead of "
                    f"{text_of_range((check['low'], check['high']))} {check['unit']}{why}."
                )
    return agreeing, differing
