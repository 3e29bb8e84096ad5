# SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
"""Which kinds of network interfaces a server takes; the kernel need not have their drivers."""

from typing import Any

import pytest

from dpukv_xdp.base.errors import UsageError
from dpukv_xdp.kernel.nic import Interface, check_can_serve

ETHER, LOOPBACK, PPP, NONE, TUNNEL = 1, 772, 512, 65534, 768  # linux/if_arp.h


def interface(name: str, link_type: int, kind: str = "") -> Interface:
    facts: dict[str, Any] = {"index": 7, "mac": "", "mtu": 1500, "address": None, "programs": ()}
    return Interface(name=name, is_up=True, link_type=link_type, kind=kind, **facts)


@pytest.mark.parametrize(
    ("found", "words"),
    [
        (interface("lo", LOOPBACK), "lo is the loopback interface"),
        (interface("tun0", NONE, "tun"), "tun0 carries no Ethernet frames (tun type 65534)"),
        (interface("wg0", NONE, "wireguard"), "wg0 carries no Ethernet frames"),
        (interface("ppp0", PPP), "ppp0 carries no Ethernet frames (link type 512)"),
        (interface("tunl0", TUNNEL, "ipip"), "tunl0 carries no Ethernet frames"),
        (interface("dummy0", ETHER, "dummy"), "dummy0 is an interface of the kind dummy"),
        (interface("ifb0", ETHER, "ifb"), "ifb0 is an interface of the kind ifb"),
    ],
)
def test_an_interface_without_a_client_s_frames_is_refused(found: Interface, words: str) -> None:
    with pytest.raises(UsageError) as refused:
        check_can_serve(found)
    assert str(refused.value).startswith(words)
    assert "serve an Ethernet interface" in str(refused.value)


@pytest.mark.parametrize("kind", ["", "veth", "bridge", "vlan", "macvlan", "bond", "tun"])
def test_an_ethernet_interface_is_taken(kind: str) -> None:
    check_can_serve(interface("eth0", ETHER, kind))
