# SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
"""Whether live frames, which BPF_PROG_RUN makes and sends, leave an interface.

They go by the driver's ndo_xdp_xmit(). A veth end has one that drops all frames, without a word,
unless the other end polls (NAPI): because it runs an XDP program, or because its GRO is on. Other
drivers set up the queues for it together with native XDP.
"""

import contextlib
import os
import socket

from pyroute2.ethtool.ioctl import NoSuchDevice

from dpukv_xdp.base.errors import MissingError
from dpukv_xdp.kernel import nic
from dpukv_xdp.kernel.namespaces import in_namespace_fd
from dpukv_xdp.kernel.segmentation import peer_namespace_fd


def open_way(attachment: nic.Attachment, wanted: str, cleanup: contextlib.ExitStack) -> None:
    """Make live frames leave an interface on which our program is attached: turn on GRO at the
    other end of a veth pair that needs it; `cleanup` turns it off again.

    Raises MissingError, for the option `wanted`, where they would be lost.
    """
    if attachment.mode == "native":
        return
    interface = attachment.interface
    peer = nic.veth_peer(interface)
    if peer is None:
        raise MissingError(
            f"{wanted} on {interface}",
            f"native XDP there, and it has generic XDP ({attachment.native_refused}): leave out "
            f"{wanted}",
        )
    namespace_fd = peer_namespace_fd(peer.namespace_id)
    if namespace_fd is None:
        raise MissingError(
            f"{wanted} on {interface}",
            f"an XDP program at the other end of the veth pair, whose network namespace is out of "
            f"reach here: attach one there, or leave out {wanted}",
        )
    cleanup.callback(os.close, namespace_fd)
    with in_namespace_fd(namespace_fd):
        name = socket.if_indextoname(peer.index)
        if not nic.is_on(name, nic.GRO_FEATURE):
            nic.turn_on(name, nic.GRO_FEATURE)
            cleanup.callback(_turn_off_in, namespace_fd, name)


def _turn_off_in(namespace_fd: int, interface: str) -> None:
    with in_namespace_fd(namespace_fd), contextlib.suppress(NoSuchDevice):
        nic.turn_off(interface, nic.GRO_FEATURE)
