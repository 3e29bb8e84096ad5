# SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
"""Probes on this kernel, and the refusals on a kernel that lacks live frames."""

import errno
import gc
import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from net.serving import client_of, generating, native_threads, programs_on, serving

from dpukv_xdp.base.errors import MissingError
from dpukv_xdp.kernel.attachments import NAPI_PROGRAM
from dpukv_xdp.kernel.features import FEATURES
from dpukv_xdp.lab import lab as labs
from dpukv_xdp.lab.lab import Lab
from dpukv_xdp.native import probes

pytestmark = pytest.mark.shares_cores


@pytest.fixture
def no_live_frames(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Make the probe fail as on a kernel before Linux 5.18."""

    def refuse() -> None:
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))

    monkeypatch.setitem(probes.PROBES, "live frames", refuse)
    probes.lack_of.cache_clear()
    yield
    probes.lack_of.cache_clear()


@pytest.mark.parametrize("name", FEATURES)
def test_a_probe_leaves_nothing(name: str) -> None:
    probes.PROBES[name]()  # so that descriptors opened once per process exist already
    gc.collect()  # an earlier test's garbage may close a descriptor whose number is then reused
    before = descriptors(), own_labs()
    probes.PROBES[name]()
    after = descriptors(), own_labs()
    assert after[0] <= before[0]
    assert after[1] == before[1]


def own_labs() -> list[str]:
    """Return the labs of this process: other tests build some at the same time."""
    return [lab.lab_id for lab in labs.list_labs() if lab.owner.pid == os.getpid()]


def descriptors() -> set[tuple[str, str]]:
    """Return each open descriptor of this process with the object that it refers to."""
    found = set()
    for path in Path("/proc/self/fd").iterdir():
        with suppress(FileNotFoundError):  # the descriptor of the listing itself
            found.add((path.name, str(path.readlink())))
    return found


@pytest.mark.usefixtures("no_live_frames")
def test_the_sender_alone_is_refused_before_anything_is_attached(lab: Lab) -> None:
    threads = native_threads()
    with (
        pytest.raises(MissingError, match=r"^--respond sender needs live frames.* since 5\.18"),
        serving(lab, respond="sender"),
    ):
        pass
    assert native_threads() == threads
    assert programs_on(lab.server) == []


@pytest.mark.usefixtures("no_live_frames")
def test_the_load_generator_is_refused(lab: Lab) -> None:
    with (
        pytest.raises(MissingError, match=r"^the load generator needs live frames"),
        generating(lab),
    ):
        pass
    assert programs_on(lab.client) == [NAPI_PROGRAM]


@pytest.mark.usefixtures("no_live_frames")
def test_sockets_serve_untried(lab: Lab) -> None:
    with serving(lab, design="cpu-only") as server, client_of(lab) as client:
        assert client.set(b"key", b"value")
        assert server.stats()["sockets"][0]["received"] == 1, "no probe"
