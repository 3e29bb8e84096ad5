# SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
"""Random draws for a load: which keys are asked for, and when packets leave."""

from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from dpukv_xdp.base.errors import UsageError

U64 = npt.NDArray[np.uint64]

ZIPF_THETA = 0.99
"""Skew of YCSB's Zipf distribution."""

GAP_MEAN_MAX_NS = 1e8
"""Longest mean gap: ten packets per second. An exponential gap forty times as long still fits the
template's 32 bits.
"""

Distribution = Literal["uniform", "zipf"]
DISTRIBUTIONS: tuple[Distribution, ...] = ("uniform", "zipf")
Spacing = Literal["constant", "exponential"]


def key_ranks(distribution: Distribution, keys: int, count: int, rng: np.random.Generator) -> U64:
    """Draw `count` ranks in 0..keys-1. Raises UsageError for an unknown distribution."""
    if distribution == "uniform":
        return rng.integers(0, keys, size=count, dtype=np.uint64)
    if distribution == "zipf":
        return zipf_ranks(keys, count, rng)
    raise UsageError(f"unknown distribution {distribution!r}: use {' or '.join(DISTRIBUTIONS)}")


def zipf_ranks(keys: int, count: int, rng: np.random.Generator, theta: float = ZIPF_THETA) -> U64:
    """Draw `count` ranks with P(rank) proportional to 1 / (rank + 1) ** theta, for any theta above
    0 except 1.

    Rejection-inversion (Hoermann and Derflinger, "Rejection-inversion to generate variates from
    monotone discrete distributions", 1996) is exact, unlike the approximation of Gray et al. that
    YCSB and MICA2 use, which makes the third key a fifth too hot. It needs neither a table nor a
    sum over all keys. About one draw in a thousand is repeated.
    """
    ranks = np.zeros(count, dtype=np.uint64)
    if keys == 1:
        return ranks
    ranks, accepted = _zipf_attempt(keys, count, rng, theta)
    missing = np.flatnonzero(~accepted)
    while len(missing):
        again, accepted = _zipf_attempt(keys, len(missing), rng, theta)
        ranks[missing] = again
        missing = missing[~accepted]
    return ranks


def gaps_ns(
    mean_ns: float, spacing: Spacing, count: int, rng: np.random.Generator
) -> npt.NDArray[np.uint32]:
    """Return gaps between `count` packets in whole ns: constant, or exponential as in a Poisson
    process.

    Rounding errors are carried over, so that the mean stays exact.
    """
    if spacing not in ("constant", "exponential"):
        raise UsageError(f"unknown spacing {spacing!r}: use constant or exponential")
    if not 0 <= mean_ns <= GAP_MEAN_MAX_NS:
        raise UsageError(
            f"a mean gap of {mean_ns:g} ns is out of range: use 0 to {GAP_MEAN_MAX_NS:g} ns"
        )
    gaps = np.full(count, mean_ns) if spacing == "constant" else rng.exponential(mean_ns, count)
    times = np.rint(np.cumsum(gaps))
    return np.diff(times, prepend=0).astype(np.uint32)


def _zipf_attempt(
    keys: int, count: int, rng: np.random.Generator, theta: float
) -> tuple[U64, npt.NDArray[np.bool_]]:
    """Draw candidate ranks, and return them with a mask of the accepted ones.

    Names are those of the paper: H is the integral of h(x) = x ** -theta.
    """
    power = 1.0 - theta

    def integral(x: Any) -> Any:
        return np.expm1(power * np.log(x)) / power

    def integral_inverse(y: Any) -> Any:
        return np.exp(np.log1p(power * y) / power)

    low = integral(1.5) - 1.0
    high = integral(keys + 0.5)
    squeeze = 2.0 - integral_inverse(integral(2.5) - 2.0**-theta)
    drawn = high + rng.random(count) * (low - high)
    x = integral_inverse(drawn)
    k = np.clip(np.rint(x), 1, keys)
    accepted = k - x <= squeeze
    unsure = np.flatnonzero(~accepted)
    accepted[unsure] = drawn[unsure] >= integral(k[unsure] + 0.5) - k[unsure] ** -theta
    return k.astype(np.uint64) - np.uint64(1), accepted
