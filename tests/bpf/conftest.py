# SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
"""Communication engines for the tests of this suite: compiled once for each choice of settings."""

import os
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from bpf.harness import CPU, Dpu


@pytest.fixture(scope="module", autouse=True)
def _on_the_communication_core() -> Iterator[None]:
    """BPF_PROG_RUN runs where its caller does; a queue pair belongs to one core."""
    allowed = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {CPU})
    yield
    os.sched_setaffinity(0, allowed)


@pytest.fixture(scope="session")
def load() -> Iterator[Callable[..., Dpu]]:
    """Dpu's constructor; the same settings give the same object again, reset."""
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
