# SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
"""What `dpukv doctor` says about a machine that lacks something."""

import errno
import os
import socket

import pytest

from dpukv_xdp import doctor


@pytest.mark.parametrize(
    ("reason", "remedy"),
    [
        (errno.EPERM, "sudo"),
        (errno.EAFNOSUPPORT, "CONFIG_XDP_SOCKETS"),
        (errno.ENOMEM, "socket(2)"),
    ],
)
def test_af_xdp_is_missing(monkeypatch: pytest.MonkeyPatch, reason: int, remedy: str) -> None:
    def refuse(family: int, kind: int) -> None:
        assert (family, kind) == (doctor.AF_XDP, socket.SOCK_RAW)
        raise OSError(reason, os.strerror(reason))

    monkeypatch.setattr(socket, "socket", refuse)
    check = doctor._af_xdp()
    assert (check.name, check.ok, check.found) == ("AF_XDP", False, os.strerror(reason))
    assert remedy in check.remedy
    assert not check.is_required, "mapped rings do without"


def test_af_xdp_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    closed = []

    class Opened:
        def __init__(self, _family: int, _kind: int) -> None:
            pass

        def close(self) -> None:
            closed.append(self)

    monkeypatch.setattr(socket, "socket", Opened)
    check = doctor._af_xdp()
    assert (check.ok, check.remedy, len(closed)) == (True, "", 1)
