# SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
"""The error for a refused AF_XDP socket names the cause, for each step and errno."""

import errno
import os
from collections.abc import Callable
from typing import Any

import pytest

from dpukv_xdp._core._native import ffi, lib
from dpukv_xdp.base.errors import SocketError
from dpukv_xdp.native import sockets
from dpukv_xdp.native.sockets import CAUSES, INSTEAD, MAP_STEP, STEPS, ReceiveSocket, socket_needs

WORDS = [
    (lib.KV_SOCKET_ALLOCATE, errno.ENOMEM, "memory"),
    (lib.KV_SOCKET_CREATE, errno.EAFNOSUPPORT, "CONFIG_XDP_SOCKETS"),
    (lib.KV_SOCKET_CREATE, errno.EPERM, "sudo"),
    (lib.KV_SOCKET_CREATE, errno.EMFILE, "ulimit -n"),
    (lib.KV_SOCKET_CREATE, errno.ENFILE, "fs.file-max"),
    (lib.KV_SOCKET_CREATE, errno.ENOMEM, "memory"),
    (lib.KV_SOCKET_CREATE, errno.ENOBUFS, "memory"),
    (lib.KV_SOCKET_REGISTER, errno.ENOBUFS, "CAP_IPC_LOCK"),
    (lib.KV_SOCKET_REGISTER, errno.EPERM, "ulimit -l"),
    (lib.KV_SOCKET_REGISTER, errno.EMFILE, "ulimit -n"),
    (lib.KV_SOCKET_REGISTER, errno.ENOMEM, "--rx-descriptors"),
    (lib.KV_SOCKET_REGISTER, errno.EINVAL, "power of two"),
    (lib.KV_SOCKET_BIND, errno.ENODEV, "interface that exists"),
    (lib.KV_SOCKET_BIND, errno.ENETDOWN, "ip link set"),
    (lib.KV_SOCKET_BIND, errno.EBUSY, "stop the program"),
    (lib.KV_SOCKET_BIND, errno.EOPNOTSUPP, "zero-copy"),
    (lib.KV_SOCKET_BIND, errno.EINVAL, "ethtool -l"),
    (lib.KV_SOCKET_BIND, errno.ENOMEM, "memory"),
    (lib.KV_SOCKET_BIND, errno.ENOBUFS, "memory"),
    (MAP_STEP, errno.E2BIG, "ethtool -L"),
    (MAP_STEP, errno.EPERM, "CAP_BPF"),
    (MAP_STEP, errno.ENOMEM, "memory"),
]


@pytest.mark.parametrize(("step", "number", "word"), WORDS)
def test_a_known_refusal_says_what_to_do(step: int, number: int, word: str) -> None:
    needs = socket_needs(step, number)
    assert word in needs
    assert os.strerror(number) not in needs, "the cause, not the errno"


def test_the_table_above_has_them_all() -> None:
    assert {(step, number) for step, number, _ in WORDS} == set(CAUSES)
    assert set(STEPS) == set(range(lib.KV_SOCKET_STEPS + 1))


@pytest.mark.parametrize("step", STEPS)
def test_an_unknown_one_names_the_step_and_the_kernel_s_reason(step: int) -> None:
    needs = socket_needs(step, errno.EIO)
    assert needs == f"{STEPS[step]}, which the kernel refuses: {os.strerror(errno.EIO)}"


def refuse(**errors: tuple[int, int]) -> Callable[..., Any]:
    """Return a kv_socket_open() that fails with the step and errno of each mode."""

    def kv_socket_open(_name: bytes, _queue: int, _count: int, zero_copy: int, step: Any) -> Any:
        step[0], ffi.errno = errors["zero_copy" if zero_copy else "copy"]
        return ffi.NULL

    return kv_socket_open


class Core:
    """The native core with one function replaced."""

    def __init__(self, kv_socket_open: Callable[..., Any]) -> None:
        self.kv_socket_open = kv_socket_open

    def __getattr__(self, name: str) -> Any:
        return getattr(lib, name)


LOCKED = (lib.KV_SOCKET_REGISTER, errno.ENOBUFS)
NO_ZERO_COPY = (lib.KV_SOCKET_BIND, errno.EOPNOTSUPP)
BUSY = (lib.KV_SOCKET_BIND, errno.EBUSY)


def test_the_same_cause_in_both_modes_is_said_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sockets, "lib", Core(refuse(zero_copy=LOCKED, copy=LOCKED)))
    with pytest.raises(SocketError) as raised:
        ReceiveSocket("eth7", 3, 64, "auto")
    assert str(raised.value) == (
        f"AF_XDP on queue 3 of eth7 needs {CAUSES[LOCKED]}; or use {INSTEAD} instead"
    )


def test_different_causes_are_said_by_mode(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sockets, "lib", Core(refuse(zero_copy=NO_ZERO_COPY, copy=BUSY)))
    with pytest.raises(SocketError) as raised:
        ReceiveSocket("eth7", 0, 64, "auto")
    assert f"in zero-copy mode {CAUSES[NO_ZERO_COPY]}; in copy mode {CAUSES[BUSY]}" in str(
        raised.value
    )
