# SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
"""Make and enter network namespaces, and start processes inside them."""

import ctypes
import os
import subprocess
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pyroute2 import netns

from dpukv_xdp.base.errors import UsageError
from dpukv_xdp.base.processes import die_with

NAMESPACE_DIR = Path("/run/netns")
OWN_NAMESPACE = "/proc/thread-self/ns/net"


def enter(namespace: str) -> None:
    """Move the calling thread into a network namespace; threads that it starts later inherit it.

    Raises UsageError if there is no such namespace.
    """
    try:
        netns.setns(namespace, flags=0)
    except FileNotFoundError as error:
        raise _no_such_namespace(namespace) from error


@contextmanager
def in_namespace(namespace: str) -> Iterator[None]:
    """Run the block inside a network namespace; sockets that it opens stay there."""
    with _returning():
        enter(namespace)
        yield


@contextmanager
def in_namespace_fd(namespace_fd: int) -> Iterator[None]:
    """Run the block inside the network namespace that a descriptor refers to."""
    with _returning():
        netns.setns(namespace_fd)
        yield


@contextmanager
def in_unnamed_namespace() -> Iterator[None]:
    """Run the block inside a new network namespace, which the kernel removes when the block or the
    process ends.
    """
    with _returning():
        if ctypes.CDLL(None, use_errno=True).unshare(netns.CLONE_NEWNET) != 0:
            raise OSError(ctypes.get_errno(), "cannot make a network namespace")
        yield


def make_namespace(name: str) -> None:
    """Make a network namespace that stays until it is removed by name.

    The calling thread does the work: a helper thread or a child could complete it after an
    interrupt has begun the cleanup.
    """
    with in_unnamed_namespace():
        netns.attach(name, threading.get_native_id())


def namespace_inode(path: str | Path = OWN_NAMESPACE) -> int:
    """Return the inode that identifies a network namespace, by default the calling thread's."""
    return Path(path).stat().st_ino


def open_own_namespace() -> int:
    """Return a descriptor of the calling thread's network namespace."""
    return os.open(OWN_NAMESPACE, os.O_RDONLY | os.O_CLOEXEC)


def spawn(
    namespace: str, argv: Sequence[str], *, die_with_parent: bool = True, **options: Any
) -> subprocess.Popen[Any]:
    """Start a process inside a network namespace; `options` are subprocess.Popen's.

    With `die_with_parent` the kernel kills the process when the calling thread ends for any reason,
    so the calling thread has to live as long as the process. Raises UsageError if there is no such
    namespace.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    parent_pid = os.getpid()
    try:
        namespace_fd = os.open(NAMESPACE_DIR / namespace, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError as error:
        raise _no_such_namespace(namespace) from error

    def prepare() -> None:
        """Run in the child before exec: system calls only."""
        if libc.setns(namespace_fd, netns.CLONE_NEWNET) != 0:
            raise OSError(ctypes.get_errno(), f"cannot enter {namespace}")
        if die_with_parent:
            die_with(parent_pid, libc)

    try:
        return subprocess.Popen(argv, preexec_fn=prepare, **options)
    finally:
        os.close(namespace_fd)


@contextmanager
def _returning() -> Iterator[None]:
    """Return the calling thread to its network namespace at the end of the block."""
    home = open_own_namespace()
    try:
        try:
            yield
        finally:
            netns.setns(home)
    finally:
        os.close(home)


def _no_such_namespace(namespace: str) -> UsageError:
    return UsageError(f"there is no network namespace {namespace!r}")
