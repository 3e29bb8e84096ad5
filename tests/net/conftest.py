# SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
"""Fixtures of the end-to-end tests: the programs of servers are reused."""

from collections.abc import Iterator

import pytest
from pool import Pool, pooled_programs


@pytest.fixture(scope="session", autouse=True)
def pool() -> Iterator[Pool]:
    """Yield the pool that programs are loaded through."""
    with pooled_programs() as pool:
        yield pool


@pytest.fixture
def fresh_programs(pool: Pool) -> Iterator[None]:
    """Load and unload programs without the pool: for tests that look at what a server leaves."""
    with pool.bypassed():
        yield
