# SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
"""Kernel features that are used beyond XDP itself: the first Linux with each, what fails without
it, and what to use instead.

Probes (probes.py) find out whether a kernel has a feature, never its version: distributions add
features to old kernels, and builds leave them out of new ones.
"""

from dataclasses import dataclass

from dpukv_xdp.base.errors import MissingError

TRIED_KERNELS = ("6.1", "6.12", "6.18")
"""Kernels on which our programs and tests have run, as major and minor version."""
UPGRADE = "use a later kernel"


@dataclass(frozen=True)
class Feature:
    """One row of FEATURES."""

    since: str
    """The first Linux that has it."""
    lost: str
    """Options and commands that fail without it."""
    instead: str
    """The alternative without it, or the way to get it."""
    is_required: bool = False
    """Whether dpukv_xdp as a whole depends on it."""


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
        "5.16", "doctor's count of them", "whether a program loads is reported all the same"
    ),
}
"""Features by name; `@needs("…")` in the tests uses the same names."""


def missing(name: str, wanted: str, reason: str) -> MissingError:
    """Return the error for a feature that this kernel lacks.

    `wanted` names the request that needs it; `reason` is the kernel's answer to the probe.
    """
    feature = FEATURES[name]
    return MissingError(
        wanted,
        f"{name}, which Linux has since {feature.since} and this kernel refuses ({reason}): "
        f"{feature.instead}",
    )
