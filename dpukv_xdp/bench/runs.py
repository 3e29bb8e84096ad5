# SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
"""Common parts of every measured run, of our own stores and of others: session, pace and result."""

import contextlib
import math
import os
import time
from collections.abc import Callable, Iterator
from typing import Protocol

import numpy as np
import numpy.typing as npt

from dpukv_xdp.base.machine import machine_facts
from dpukv_xdp.bench.limits import Result
from dpukv_xdp.bench.options import BenchOptions, Progress
from dpukv_xdp.load.loadgen import latency_summary

WARM_UP_SECONDS_MAX = 0.3
LOAD_WINDOW = 16
"""Packets outstanding while the keys are stored."""
PROGRESS_SECONDS = 0.25
"""Time between two reports of a run's progress."""
ANSWER_COUNTERS = ("hits", "misses", "stored", "corrupt", "refused", "late")
"""Counters of answers that are in the result as they are."""


class Session(Protocol):
    """A server and a load generator that are up: Bench and PeerSession."""

    def load_keys(self, options: BenchOptions) -> dict[str, float]:
        """Store every key through the network; return counts and times."""

    def measure(self, options: BenchOptions, progress: Progress) -> Result:
        """Measure one run and return its result."""


@contextlib.contextmanager
def same_cpus() -> Iterator[set[int]]:
    """Restore this process's CPU affinity after the block: the next run's processes inherit it."""
    cpus = os.sched_getaffinity(0)
    try:
        yield cpus
    finally:
        os.sched_setaffinity(0, cpus)


def warm_up_seconds(run_seconds: float) -> float:
    """Return the time between the first packet and the first snapshot of the counters: no longer
    than the run itself, so that a short trial is short.
    """
    return min(WARM_UP_SECONDS_MAX, run_seconds)


def relative(value: float, base: float) -> float:
    """Return `value` relative to `base`; NaN to a base of 0, a run that had no answer."""
    return value / base if base else math.nan


def await_end(
    end_ns: int, seconds: float, progress: Progress, is_running: Callable[[], bool] = lambda: True
) -> None:
    """Report progress until `end_ns` (CLOCK_MONOTONIC), or until the generator stops running."""
    while (left_seconds := (end_ns - time.monotonic_ns()) / 1e9) > 0 and is_running():
        progress("measuring", 1 - left_seconds / seconds)
        time.sleep(min(left_seconds, PROGRESS_SECONDS))


def run_result(
    options: BenchOptions,
    count: Callable[[str], int],
    latency: npt.NDArray[np.uint64],
    *,
    requests_per_packet: int,
    window: int,
    seconds: float,
    packets: int,
    lost: int,
) -> Result:
    """Return the part of a result that all stores have in common.

    `count` returns the growth of a counter of answers, `latency` is the histogram of requests.
    """
    responses = count("responses")
    return {
        "workload": options.workload,
        "distribution": options.distribution,
        "keys": options.keys,
        "key_size": options.key_size,
        "value_size": options.value_size,
        "requests_per_packet": requests_per_packet,
        "window": window,
        "rate": options.rate or None,
        "seconds": round(seconds, 3),
        "throughput_mops": responses / seconds / 1e6,
        "packets_mpps": packets / seconds / 1e6,
        "latency_us": {
            "mean": count("latency_sum_ns") / max(responses, 1) / 1e3,
            **latency_summary(latency),
        },
        **{name: count(name) for name in ANSWER_COUNTERS},
        "lost": lost,
        "machine": machine_facts(),
    }
