# SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
"""Everything is in pyproject.toml but this hook: cffi can be named to setuptools only from here."""

from setuptools import setup

BUILD = "dpukv_xdp/_core/build.py"

setup(cffi_modules=[f"{BUILD}:native_builder", f"{BUILD}:bench_builder"])
