# SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
"""Kernel features are probed, and the error for a missing one says what to use instead."""

import errno
import os
from collections.abc import Iterator

import pytest

from dpukv_xdp.base.errors import MissingError
from dpukv_xdp.kernel import features
from dpukv_xdp.kernel.features import FEATURES
from dpukv_xdp.native import probes


@pytest.fixture(autouse=True)
def _tries_anew() -> Iterator[None]:
    probes.lack_of.cache_clear()
    yield
    probes.lack_of.cache_clear()


def refusing(number: int) -> object:
    def probe() -> None:
        raise OSError(number, os.strerror(number))

    return probe


def test_each_feature_has_a_probe() -> None:
    assert list(probes.PROBES) == list(FEATURES)


@pytest.mark.parametrize("name", FEATURES)
def test_a_lack_is_one_sentence_that_helps(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setitem(probes.PROBES, name, refusing(errno.EINVAL))
    with pytest.raises(MissingError) as raised:
        probes.require(name, "--some-option")
    said = str(raised.value)
    assert said.startswith(f"--some-option needs {name}, which Linux has since ")
    for part in (FEATURES[name].since, os.strerror(errno.EINVAL), FEATURES[name].instead):
        assert part in said
    assert "\n" not in said


@pytest.mark.parametrize("name", FEATURES)
@pytest.mark.parametrize("number", [errno.EPERM, errno.EACCES])
def test_without_the_privilege_nothing_is_said_of_the_kernel(
    monkeypatch: pytest.MonkeyPatch, name: str, number: int
) -> None:
    monkeypatch.setitem(probes.PROBES, name, refusing(number))
    with pytest.raises(MissingError, match=rf"probing whether this kernel has {name} needs root"):
        probes.require(name, "--some-option")


def test_what_is_there_is_tried_once(monkeypatch: pytest.MonkeyPatch) -> None:
    tries = []
    monkeypatch.setitem(probes.PROBES, "live frames", lambda: tries.append(1))
    for _ in range(3):
        probes.require("live frames", "--some-option")
    assert tries == [1]


@pytest.mark.parametrize(("since", "name"), [(f.since, name) for name, f in FEATURES.items()])
def test_versions_are_versions(since: str, name: str) -> None:
    assert all(part.isdecimal() for part in since.split("."))
    error = features.missing(name, "it", "reason")
    assert error.feature == "it"
