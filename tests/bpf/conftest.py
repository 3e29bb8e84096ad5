# SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
"""Fixtures: communication engines for this suite, compiled once per choice of settings."""

import os
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from bpf.harness import CPU, Dpu


@pytest.fixture(scope="module", autouse=True)
def _on_the_communication_core() -> Iterator[None]:
    """Pin the tests to a core: BPF_PROG_RUN runs on its caller's, which has its own queue pairs."""
    allowed = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {CPU})
    yield
    os.sched_setaffinity(0, allowed)


@pytest.fixture(scope="session")
def load() -> Iterator[Callable[..., Dpu]]:
    """Yield a constructor of Dpu; equal settings return the same object, reset."""
    loaded: dict[tuple[Any, ...], Dpu] = {}

    def load(**settings: Any) -> Dpu:
        key = tuple({**Dpu.__init__.__kwdefaults__, **settings}.items())
        if key not in loaded:
            loaded[key] = Dpu(**settings)
        loaded[key].reset()
        return loaded[key]

    yield load
    for dpu in loaded.values():
        dpu.close()
