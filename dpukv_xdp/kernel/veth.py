# SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
"""Veth pairs between network namespaces, set up for XDP at both ends."""

import errno
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NoReturn

import msgspec
from pyroute2 import IPRoute, netns
from pyroute2.netlink.exceptions import NetlinkError
from pyroute2.netlink.rtnl import RTMGRP_LINK

from dpukv_xdp.base.errors import DpukvError, MissingError, UsageError
from dpukv_xdp.base.patience import patient
from dpukv_xdp.kernel import nic
from dpukv_xdp.kernel.attachments import forget_attachments
from dpukv_xdp.kernel.namespaces import (
    NAMESPACE_DIR,
    in_namespace,
    in_unnamed_namespace,
    namespace_inode,
)

PREFIX_BITS = 24
LINK_TIMEOUT_SECONDS = 10.0
SCRATCH_ENDS = ("veth-scratch", "veth-other")


class End(msgspec.Struct, frozen=True):
    """One end of a veth pair, in a network namespace of its own."""

    namespace: str
    interface: str
    mac: str
    address: str
    """IPv4 address without prefix length."""


def make_pair(one: End, other: End, *, queues: int, mtu: int) -> None:
    """Make a pair between two existing namespaces, ready for traffic.

    Raises UsageError for sizes that the kernel refuses, MissingError without the veth driver,
    DpukvError if an end does not come up.
    """
    sizes = {"num_rx_queues": queues, "num_tx_queues": queues, "mtu": mtu}
    with in_namespace(one.namespace):
        # Made in one step, each end in its namespace, so that neither ever appears outside.
        peer = {"ifname": other.interface, "address": other.mac, "net_ns_fd": other.namespace}
        _add_pair(sizes, ifname=one.interface, address=one.mac, peer=peer | sizes)
    for end, peer_end in ((one, other), (other, one)):
        with in_namespace(end.namespace):
            _configure_end(end, peer_end, mtu)
    for end in (one, other):
        with in_namespace(end.namespace):
            _wait_until_up(end.interface)


@contextmanager
def scratch_pair() -> Iterator[str]:
    """Run the block in a new network namespace with a veth pair that is up; yield the name of one
    end. The kernel removes both when the block or the process ends.

    Raises MissingError without the veth driver.
    """
    with in_unnamed_namespace():
        interface, other = SCRATCH_ENDS
        _add_pair({}, ifname=interface, peer={"ifname": other})
        for name in SCRATCH_ENDS:
            _start_end(name)
        yield interface


def remove_end(end: End) -> None:
    """Remove an end and its namespace, if they exist.

    The link is removed at once; the kernel keeps the namespace until its last user has left.
    """
    path = NAMESPACE_DIR / end.namespace
    try:
        inode = namespace_inode(path)
    except FileNotFoundError:
        return
    try:
        with in_namespace(end.namespace), IPRoute() as netlink:
            for index in netlink.link_lookup(ifname=end.interface):
                with suppress(NetlinkError):  # the other end was removed meanwhile
                    netlink.link("del", index=index)
    except OSError as error:
        if error.errno != errno.EINVAL:  # EINVAL: killed before the namespace got its name
            raise
    with suppress(FileNotFoundError):
        netns.remove(end.namespace)
    forget_attachments(inode)


def _add_pair(sizes: dict[str, int], **attributes: Any) -> None:
    with IPRoute(ext_ack=True) as netlink:
        try:
            netlink.link("add", kind="veth", **attributes, **sizes)
        except NetlinkError as error:
            _explain_refusal(sizes, error)


def _explain_refusal(sizes: dict[str, int], error: NetlinkError) -> NoReturn:
    if error.code == errno.EOPNOTSUPP:
        raise MissingError("a veth pair", "the kernel's veth driver: modprobe veth") from error
    if sizes and error.code in (errno.EINVAL, errno.ERANGE):
        raise UsageError(
            f"the kernel refuses a veth pair with {sizes['num_rx_queues']} queues and an MTU of "
            f"{sizes['mtu']} bytes: {error.args[1]}"
        ) from error
    raise error


def _configure_end(end: End, peer: End, mtu: int) -> None:
    """Set up one end; the calling thread is in its namespace."""
    _disable_ipv6()
    index = _start_end(end.interface, mtu=mtu)
    with IPRoute() as netlink:
        netlink.link("set", index=netlink.link_lookup(ifname="lo")[0], state="up")
        netlink.addr("add", index=index, address=end.address, prefixlen=PREFIX_BITS)
        netlink.neigh("add", dst=peer.address, lladdr=peer.mac, ifindex=index, state="permanent")


def _start_end(interface: str, **attributes: Any) -> int:
    """Set the offloads that XDP needs and bring an end up; return its index."""
    nic.set_offloads(interface, tx_checksum=False, gro=True)
    index = nic.index_of(interface)
    with IPRoute() as netlink:
        netlink.link("set", index=index, state="up", **attributes)
    return index


def _disable_ipv6() -> None:
    """Prevent neighbour discovery from sending frames on the link."""
    for scope in ("all", "default"):
        setting = Path("/proc/sys/net/ipv6/conf") / scope / "disable_ipv6"
        if setting.exists():
            setting.write_text("1")


def _wait_until_up(interface: str) -> None:
    """Wait until the kernel transmits on the link: before that, it drops frames silently.

    Raises DpukvError if that takes too long.
    """
    timeout_seconds = patient(LINK_TIMEOUT_SECONDS)
    deadline = time.monotonic() + timeout_seconds
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0) as events, IPRoute() as netlink:
        events.bind((0, RTMGRP_LINK))
        while netlink.link("get", ifname=interface)[0].get_attr("IFLA_OPERSTATE") != "UP":
            events.settimeout(max(0.0, deadline - time.monotonic()) or 1e-3)
            try:
                events.recv(1 << 16)
            except TimeoutError as error:
                raise DpukvError(
                    f"{interface} did not come up within {timeout_seconds:g} s: "
                    "look at the kernel's log"
                ) from error
