# SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
"""Build steps that pyproject.toml cannot express: files from outside the package, a module that is
generated from the C headers, and the optional native core.

The environment variable DPUKV_NATIVE selects: 1 builds the native core or fails; 0 leaves it out,
which makes a client only. By default it is built if there is a C compiler with the headers of
libxdp, libbpf and Python.
"""

import logging
import os
import shlex
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent
sys.path.insert(0, str(ROOT))  # isolated builds do not have it on the path

from dpukv_xdp.wire.headers import make_layouts  # noqa: E402 - needs the line above

OUTSIDE = {
    "dpukv_xdp.bpf": "bpf",
    "dpukv_xdp.results": "docs/results",
    "dpukv_xdp.experiments": "tools/experiments",
}
"""Folders of the checkout that a wheel has inside the package: see dpukv_xdp/base/places.py."""

BUILD = "dpukv_xdp/_core/build.py"
"""The script with cffi's builders of the native core."""

PROBE = """
#include <Python.h>
#include <bpf/libbpf.h>
#include <xdp/xsk.h>
int main(void) { return Py_IsInitialized() + xsk_umem__fd(0) + libbpf_num_possible_cpus(); }
"""


def main() -> None:
    """Run the setuptools command on the command line."""
    native = has_native()
    setup(
        packages=[*find_packages(include=["dpukv_xdp*"]), *OUTSIDE],
        package_dir=OUTSIDE,
        package_data={
            "dpukv_xdp": ["py.typed"],
            "dpukv_xdp._core": ["**/*.[ch]"],  # dpdk.c is compiled where it is installed
            "dpukv_xdp.bpf": ["**/*.[ch]"],
            "dpukv_xdp.experiments": ["*.toml"],
            "dpukv_xdp.model": ["data/*.csv"],
            "dpukv_xdp.results": ["model_*.json"],
        },
        include_package_data=False,  # MANIFEST.in lists more than a wheel needs
        cmdclass={"build_py": BuildPy},
        cffi_modules=[f"{BUILD}:native_builder", f"{BUILD}:bench_builder"] if native else [],
        options={"bdist_wheel": {"py_limited_api": "cp311"}} if native and has_stable_abi() else {},
    )


class BuildPy(build_py):
    """Build command that also writes the layouts beside wire/abi.py: in the build directory, or in
    the checkout for an editable install.
    """

    def run(self) -> None:
        super().run()
        top = ROOT if self.editable_mode else Path(self.build_lib)
        layouts = top / "dpukv_xdp" / "wire" / "_layouts.py"
        make_layouts(ROOT / "bpf").emit_python_code(str(layouts))


def has_native() -> bool:
    """Return whether the native core is part of this build. Exits for a wrong DPUKV_NATIVE."""
    wanted = os.environ.get("DPUKV_NATIVE", "")
    if wanted not in ("", "0", "1"):
        sys.exit(f"the environment variable DPUKV_NATIVE is {wanted!r}: use 0 or 1, or unset it")
    if wanted:
        return wanted == "1"
    if can_compile():
        return True
    logging.warning(
        "building a client only, without the native core: a C compiler or the headers of libxdp, "
        "libbpf or Python are missing"
    )
    return False


def can_compile() -> bool:
    """Return whether a program that uses our libraries can be compiled and linked."""
    compiler = shlex.split(os.environ.get("CC") or sysconfig.get_config_var("CC") or "cc")
    includes = sysconfig.get_path("include")
    with tempfile.TemporaryDirectory() as folder:
        source, library = Path(folder) / "probe.c", Path(folder) / "probe.so"
        source.write_text(PROBE)
        command = [*compiler, "-shared", "-fPIC", f"-I{includes}", source, "-o", library]
        try:
            probe = subprocess.run([*command, "-lxdp", "-lbpf"], capture_output=True, check=False)
        except FileNotFoundError:
            return False
    return probe.returncode == 0


def has_stable_abi() -> bool:
    """Return whether cffi compiles for this Python's stable ABI; free-threaded builds and those
    with reference debugging have none.
    """
    return not sysconfig.get_config_var("Py_GIL_DISABLED") and not hasattr(sys, "gettotalrefcount")


main()
