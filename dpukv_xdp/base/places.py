# SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
"""Folders of the files that are not Python: beside the package in a checkout, inside it in a wheel.

setup.py maps the former to the latter.
"""

from pathlib import Path

PACKAGE_DIR = Path(__file__).resolve().parents[1]
IS_INSTALLED = (PACKAGE_DIR / "bpf").is_dir()


def _folder(in_checkout: str, in_wheel: str) -> Path:
    return PACKAGE_DIR / in_wheel if IS_INSTALLED else PACKAGE_DIR.parent / in_checkout


BPF_DIR = _folder("bpf", "bpf")
"""BPF programs, and the headers that BPF C, the native core and Python share."""

RESULTS_DIR = _folder("docs/results", "results")
"""Measured results that the model and its validation read."""

PLANS_DIR = _folder("tools/experiments", "experiments")
"""Plans of `dpukv reproduce`."""

BUILD_DIR = _folder("build", "build")
"""Build directory of the DPDK port, which exists only where it was built."""
