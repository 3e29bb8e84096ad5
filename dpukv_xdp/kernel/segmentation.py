# SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
"""Prevent kernels from handing several datagrams to generic XDP as one packet.

A sender that uses UDP_SEGMENT (GSO) leaves segmentation to the last device. The peer of a veth end
with native XDP segments before it transmits; for generic XDP the packet arrives unsegmented. GRO in
our own kernel merges datagrams, too. Such packets cannot be answered, because XDP can send only one
frame per received frame: they are counted as KV_COUNTER_DROP_SUPER_PACKET.
"""

import contextlib
import os
import socket
from pathlib import Path

from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError

from dpukv_xdp.kernel import nic
from dpukv_xdp.kernel.namespaces import NAMESPACE_DIR, in_namespace_fd, open_own_namespace

RECEIVE_FEATURES = ("rx-gro-list", "rx-udp-gro-forwarding")
SEND_FEATURE = "tx-udp-segmentation"


def keep_datagrams_apart(interface: str, cleanup: contextlib.ExitStack) -> str | None:
    """Turn off the features that merge datagrams on an interface, and on its veth peer if any.

    `cleanup` turns them on again. Return a sentence with the remedy if the peer is out of reach;
    else None.
    """
    for feature in RECEIVE_FEATURES:
        if nic.turn_off(interface, feature):
            cleanup.callback(nic.turn_on, interface, feature)
    peer = nic.veth_peer(interface)
    if peer is None:
        return None
    namespace_fd = peer_namespace_fd(peer.namespace_id)
    if namespace_fd is None:
        return (
            f"datagrams that a client sends with UDP_SEGMENT arrive at {interface} in one packet "
            f"and are dropped (drop_super_packet): run `ethtool -K DEVICE {SEND_FEATURE} off` for "
            "the other end of the veth pair, in its network namespace"
        )
    cleanup.callback(os.close, namespace_fd)
    with in_namespace_fd(namespace_fd):
        name = socket.if_indextoname(peer.index)
        if nic.turn_off(name, SEND_FEATURE):
            cleanup.callback(_restore_in, namespace_fd, name, SEND_FEATURE)
    return None


def _restore_in(namespace_fd: int, interface: str, feature: str) -> None:
    with in_namespace_fd(namespace_fd):
        nic.turn_on(interface, feature)


def peer_namespace_fd(namespace_id: int | None) -> int | None:
    """A descriptor of the network namespace that the calling thread's one knows by that number, or
    of this one for None; None if no file of it is in reach.
    """
    if namespace_id is None:
        return open_own_namespace()
    seen = set()
    with IPRoute() as netlink:
        for path in (*NAMESPACE_DIR.glob("*"), *Path("/proc").glob("[0-9]*/ns/net")):
            try:
                fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            except OSError:  # the process has ended, or we may not inspect it
                continue
            if (inode := os.fstat(fd).st_ino) not in seen and _number(netlink, fd) == namespace_id:
                return fd
            seen.add(inode)
            os.close(fd)
    return None


def _number(netlink: IPRoute, fd: int) -> int | None:
    """Return the id of another namespace in ours; None if the descriptor is not a namespace's."""
    try:
        return int(netlink.get_netnsid(fd=fd)["nsid"])
    except NetlinkError:
        return None
