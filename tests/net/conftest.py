# SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
"""Fixtures of the end-to-end tests: labs and the programs of servers are reused."""

from collections.abc import Iterator

import pytest
from pool import Labs, Programs

from dpukv_xdp.lab.lab import Lab, remove_stale


@pytest.fixture(scope="session", autouse=True)
def programs() -> Iterator[Programs]:
    """Load all programs through a pool."""
    with Programs() as programs, programs.in_use():
        yield programs


@pytest.fixture
def fresh_programs(programs: Programs) -> Iterator[None]:
    """Load and unload programs without the pool: for tests that look at what a server leaves."""
    with programs.bypassed():
        yield


@pytest.fixture(scope="session")
def labs() -> Iterator[Labs]:
    """Yield the pool of labs."""
    with Labs() as labs:
        yield labs


@pytest.fixture
def lab(labs: Labs, request: pytest.FixtureRequest) -> Iterator[Lab]:
    """Yield a lab for one test; parametrise it indirectly with Lab.up's settings."""
    remove_stale()
    with labs.lent(**getattr(request, "param", {})) as lab:
        yield lab
