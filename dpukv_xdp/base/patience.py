# SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
"""Time-outs for start-up, readiness and commands on machines of any speed.

The constants were chosen on a server's cores. An emulated guest runs everything 8 to 20 times
slower, so every such time-out is multiplied by this machine's slowness factor. Constants of the
data path and times that the user sets are not scaled.
"""

import math
import os
import time
from functools import cache

from dpukv_xdp.base.errors import UsageError

VARIABLE = "DPUKV_SLOWNESS"
"""Environment variable that states the slowness factor and so replaces the measurement."""
STATED_MAX = 100.0
"""Largest slowness factor that the environment may state."""
MEASURED_MAX = 40.0
"""Upper limit of the measured factor: every wait must end, however busy the machine is."""
REFERENCE_SECONDS = 0.002
"""CPU time of _work() on the machines for which the time-outs were chosen, rounded up."""
TRIES = 3
TURNS = 40_000


def patient(seconds: float) -> float:
    """Return a time-out in seconds, scaled by this machine's slowness.

    Raises UsageError as slowness() does.
    """
    return seconds * slowness()


def slowness() -> float:
    """Return the factor by which this machine is slower than the reference machines; at least 1.

    It is measured once per process, which takes 5 ms on a usual machine, unless DPUKV_SLOWNESS
    states it. Raises UsageError if DPUKV_SLOWNESS is not a number from 1 to 100.
    """
    stated = os.environ.get(VARIABLE)
    return _measured() if stated is None else _stated(stated)


def check_stated() -> None:
    """Raise UsageError if DPUKV_SLOWNESS is set to a wrong value; call it before starting work."""
    stated = os.environ.get(VARIABLE)
    if stated is not None:
        _stated(stated)


def _stated(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 1 <= value <= STATED_MAX:  # a comparison with nan is false
        raise UsageError(
            f"the environment variable {VARIABLE} is {text!r}, not 1 to {STATED_MAX:g}: "
            "change or unset it"
        )
    return value


@cache
def _measured() -> float:
    """Measure the factor by CPU time, so that other programs on this core do not count."""
    best = math.inf
    for _ in range(TRIES):
        start = time.thread_time()
        _work()
        best = min(best, time.thread_time() - start)
    return min(max(best / REFERENCE_SECONDS, 1.0), MEASURED_MAX)


def _work() -> int:
    total = 0
    for number in range(TURNS):
        total = total * 31 + number & 0xFFFF
    return total
