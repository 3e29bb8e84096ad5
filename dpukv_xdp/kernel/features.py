# SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
"""What we want of a kernel beyond XDP itself: since when it exists, what fails without it, and what
works instead.

Whether a kernel has it is found out by trying (probes.py), never by its version: distributions add
features to old kernels, and builds leave them out of new ones.
"""

from dataclasses import dataclass

from dpukv_xdp.base.errors import MissingError

TRIED_KERNELS = ("6.1", "6.12", "6.18")
"""Kernels that our programs and tests have run on, major and minor version."""
UPGRADE = "use a later kernel"


@dataclass(frozen=True)
class Feature:
    """One row of FEATURES."""

    since: str
    """The first Linux that has it."""
    lost: str
    """What does not work without it."""
    instead: str
    """What works all the same, or how to get it."""
    is_required: bool = False
    """Whether nothing works without it."""


FEATURES = {
    "frame access by helpers": Feature(
        "5.18", "every design, and the load generator", UPGRADE, is_required=True
    ),
    "mapped array maps": Feature(
        "5.5", "every design, and the load generator", UPGRADE, is_required=True
    ),
    "native XDP on veth": Feature(
        "4.19",
        "labs, demo and bench in native mode",
        "serve another interface, or in generic mode, which serve chooses by itself",
        is_required=True,
    ),
    "live frames": Feature(
        "5.18",
        "the load generator (demo, bench, compare, reproduce), qp-bench over AF_XDP, and "
        "--respond sender",
        "serve with another --respond, and send requests with a client",
        is_required=True,
    ),
    "BPF ring buffer": Feature("5.8", "--transport ringbuf", "use --transport ring"),
    "AF_XDP": Feature(
        "4.18",
        "--frames af_xdp and --transport af_xdp",
        "use --frames ring and --transport ring, as serve does by itself",
    ),
    "AF_XDP need_wakeup": Feature(
        "5.4",
        "--frames af_xdp and --transport af_xdp",
        "use --frames ring and --transport ring, as serve does by itself",
    ),
    "threaded NAPI": Feature(
        "5.12", "--dpu-cpus, and qp-bench over AF_XDP", "leave out --dpu-cpus"
    ),
    "BPF run-time statistics": Feature(
        "5.8", "bench, which measures XDP's CPU time by them", "serve, and measure with perf"
    ),
    "verified instruction counts": Feature(
        "5.16", "doctor's count of them", "whether a program loads is told all the same"
    ),
}
"""By name; the names are those of `@needs("…")` in the tests, too."""


def missing(name: str, wanted: str, reason: str) -> MissingError:
    """Return the error for a feature that this kernel lacks.

    `wanted` is what was asked for, `reason` what the kernel said when the feature was tried.
    """
    feature = FEATURES[name]
    return MissingError(
        wanted,
        f"{name}, which Linux has since {feature.since} and this kernel refuses ({reason}): "
        f"{feature.instead}",
    )
