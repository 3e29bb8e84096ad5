# SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
"""Hooks of all suites: the requirements of tests.

A skip must not hide a bug: a test is skipped only for a missing privilege or a kernel feature that
its probe did not find, and the skip names it. A missing package of tools/setup is a failure.
"""

import os
from pathlib import Path

import pytest

from dpukv_xdp.kernel.features import FEATURES
from dpukv_xdp.native import probes

PRIVILEGED_SUITES = {"bpf", "net", "perf"}
SHARES_CORES = "shares_cores"
LONGEST_FILES = (
    *("bpf/test_budget.py", "bpf/test_dpu_store.py", "unit/test_recommend.py"),
    *("net/test_installed.py", "bpf/test_compiler.py", "unit/test_model.py"),
    *("model/test_store.py", "net/test_directory.py", "model/test_store_threads.py"),
    *("net/test_doctor.py", "fuzz/test_store_fuzz.py", "model/test_host_queues.py"),
    *("unit/test_reproduce.py", "net/test_socket.py", "unit/test_kernels.py"),
    *("unit/test_peers.py", "unit/test_workload.py", "model/test_store_memory.py"),
)
"""Files whose tests take 10 s or more in parallel on two cores, the longest first."""
TESTS_DIR = Path(__file__).parent


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the option for the length of the random conversation with each design."""
    parser.addoption(
        "--conversation",
        type=int,
        default=300,
        metavar="PACKETS",
        help="packets of random requests to each design, 3.2 each on average: 320000 are a million "
        "operations, and take a minute for each design",
    )

    parser.addoption(
        "--long",
        action="store_true",
        help="run also the tests that take minutes, such as the mutations of docs/RELIABILITY.md",
    )


def pytest_configure(config: pytest.Config) -> None:
    """Register the markers."""
    config.addinivalue_line(
        "markers",
        "needs('live frames'): skipped where the probe of that name in "
        "dpukv_xdp/native/probes.py fails, and must pass where it succeeds",
    )
    config.addinivalue_line("markers", "long: runs with --long only")
    config.addinivalue_line(
        "markers",
        f"{SHARES_CORES}: neither polls on a core nor measures, so that tools/test runs it in "
        "parallel with others; every test of the suites that need no root has it",
    )


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Mark the tests of the suites that need no root; leave out long ones unless they are wanted;
    start the longest files first in parallel.

    One that begins last would run on while the other processes have nothing left to do.
    """
    if not config.getoption("--long"):
        items[:] = [item for item in items if item.get_closest_marker("long") is None]
    for item in items:
        if suite_of(item) not in PRIVILEGED_SUITES:
            item.add_marker(SHARES_CORES)
    if "PYTEST_XDIST_WORKER" in os.environ:
        files = [(TESTS_DIR / name).resolve(strict=True) for name in LONGEST_FILES]
        ranks = {file: rank for rank, file in enumerate(files)}
        items.sort(key=lambda item: ranks.get(item.path, len(ranks)))


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip a test that this machine cannot run, with the reason."""
    suite = suite_of(item)
    if suite in PRIVILEGED_SUITES and os.geteuid() != 0:
        pytest.skip(f"tests/{suite} needs root: run it with sudo tools/test")
    for mark in item.iter_markers("needs"):
        for name in mark.args:
            reason = probes.lack_of(name)
            if reason is not None:
                pytest.skip(f"needs {name} (Linux {FEATURES[name].since}), refused here: {reason}")


def suite_of(item: pytest.Item) -> str:
    """Return the name of the test's folder in tests/."""
    return item.path.relative_to(TESTS_DIR).parts[0]


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Repeat at the end the failures that tools/test found before these tests."""
    failed = os.environ.get("DPUKV_FAILED_BEFORE")
    if failed:
        terminalreporter.write_line(f"failed before these tests: {failed}", red=True)
