# SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
"""Datagrams that a client sends in one call (UDP_SEGMENT): each is answered, in generic mode, too.
If they arrive as one packet, only the counter for that moves.
"""

import contextlib
import socket
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from net.serving import DROPS, PORT, TIMEOUT_SECONDS, gained, serving
from pyroute2 import IPRoute
from pyroute2.ethtool.ioctl import IoctlEthtool

from dpukv_xdp.kernel import nic, segmentation
from dpukv_xdp.kernel.namespaces import in_namespace
from dpukv_xdp.kernel.segmentation import RECEIVE_FEATURES, SEND_FEATURE
from dpukv_xdp.kernel.veth import End
from dpukv_xdp.lab.lab import Lab
from dpukv_xdp.wire import codec
from dpukv_xdp.wire.codec import Request

UDP_SEGMENT = 103  # linux/udp.h
SIZES = [(1, 1), (2, 1), (4, 3), (10, 45), (40, 45)]
"""Datagrams per call, and requests in each: together shorter than a frame, and longer."""
DESIGNS = [
    {"design": "lat"},
    {"design": "dpu-only"},
    {"design": "cpu-only"},
    {"design": "cpu-only", "frames": "ring"},
]


@pytest.fixture
def plain(lab: Lab) -> Lab:
    """Return a veth pair like a container's: no XDP program at the client, default offloads."""
    with in_namespace(lab.client.namespace):
        client = nic.find(lab.client.interface)
        assert nic.detach_xdp(client.index, client.programs[0].program_id)
        nic.set_offloads(client.name, tx_checksum=True)
    assert has_feature(lab.client, SEND_FEATURE)
    return lab


def has_feature(end: End, feature: str) -> bool:
    with in_namespace(end.namespace), closing(IoctlEthtool(end.interface)) as ethtool:
        return bool(ethtool.get_features()[feature])


def send(lab: Lab, datagrams: int, requests: int) -> socket.socket:
    """Send batches in one call of the kernel's UDP; return the socket that receives the answers."""
    with in_namespace(lab.client.namespace):
        asking = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    batch = codec.encode_batch([Request.get(b"key%d" % number) for number in range(requests)])
    asking.settimeout(TIMEOUT_SECONDS)
    asking.connect((lab.server.address, PORT))
    asking.setsockopt(socket.IPPROTO_UDP, UDP_SEGMENT, len(batch))
    asking.send(batch * datagrams)
    return asking


@pytest.mark.parametrize("settings", DESIGNS, ids=lambda settings: "-".join(settings.values()))
def test_each_datagram_is_answered_in_generic_mode(plain: Lab, settings: dict[str, str]) -> None:
    with serving(plain, **settings) as server:
        assert server.attachment is not None
        assert server.attachment.mode == "generic"
        assert not any("UDP_SEGMENT" in note for note in server.notes)
        assert not has_feature(plain.client, SEND_FEATURE)
        for datagrams, requests in SIZES:
            with send(plain, datagrams, requests) as asking:
                for _ in range(datagrams):
                    assert len(codec.decode_replies(asking.recv(4096))) == requests
        assert "drop_super_packet" not in {n for n, count in server.counters().items() if count}
    assert has_feature(plain.client, SEND_FEATURE), "as it was"


@pytest.mark.parametrize("settings", DESIGNS, ids=lambda settings: "-".join(settings.values()))
def test_one_packet_of_them_has_a_counter_of_its_own(
    plain: Lab, settings: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the other end is out of reach; then the note says what to do there."""
    monkeypatch.setattr(segmentation, "peer_namespace_fd", lambda _number: None)
    with serving(plain, **settings) as server:
        (note,) = (note for note in server.notes if "UDP_SEGMENT" in note)
        assert f"ethtool -K DEVICE {SEND_FEATURE} off" in note
        assert "drop_super_packet" in note
        for datagrams, requests in SIZES[1:]:
            before = server.counters()
            with send(plain, datagrams, requests):
                wait_for_drop(server, before)
            moved = gained(server, before)
            dropped = {name: moved[name] for name in DROPS & set(moved)}
            assert dropped == {"drop_super_packet": 1}, (datagrams, requests)
            assert {"frames_received", "frames_sent"} & set(moved) == set()


def wait_for_drop(server: object, before: dict[str, int]) -> None:
    deadline = time.monotonic() + TIMEOUT_SECONDS
    while not {name for name in gained(server, before) if name.startswith("drop_")}:
        assert time.monotonic() < deadline
        time.sleep(0.001)


def test_native_mode_leaves_it_to_the_kernel(lab: Lab) -> None:
    """The kernel makes the peer of a veth end with native XDP segment."""
    with in_namespace(lab.client.namespace):
        nic.set_offloads(lab.client.interface, tx_checksum=True)
    with serving(lab) as server, send(lab, 4, 3) as asking:
        assert server.attachment is not None
        assert server.attachment.mode == "native"
        for _ in range(4):
            assert len(codec.decode_replies(asking.recv(4096))) == 3


@pytest.mark.parametrize("feature", RECEIVE_FEATURES)
def test_what_our_own_kernel_merges_is_turned_off_meanwhile(plain: Lab, feature: str) -> None:
    with in_namespace(plain.server.namespace):
        nic.turn_on(plain.server.interface, feature)
    assert has_feature(plain.server, feature)
    with serving(plain):
        assert not has_feature(plain.server, feature)
    assert has_feature(plain.server, feature)


def test_an_end_that_is_gone_when_the_server_stops(plain: Lab) -> None:
    with serving(plain):
        pass  # what a process loads once stays
    before = descriptors()
    with serving(plain), in_namespace(plain.client.namespace), IPRoute() as netlink:
        netlink.link("del", ifname=plain.client.interface)
    assert descriptors() == before


def descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


@pytest.fixture
def same_namespace(plain: Lab) -> Iterator[Lab]:
    """Yield a lab with both ends in the server's namespace, as on a host with a bridge."""
    with in_namespace(plain.client.namespace), IPRoute() as netlink:
        index = nic.find(plain.client.interface).index
        netlink.link("set", index=index, net_ns_fd=plain.server.namespace)
    return plain


def test_the_other_end_may_be_in_the_same_namespace(same_namespace: Lab) -> None:
    end = same_namespace.server
    with in_namespace(end.namespace):
        cleanup = contextlib.ExitStack()
        with cleanup:
            assert segmentation.keep_datagrams_apart(end.interface, cleanup) is None
            with closing(IoctlEthtool(same_namespace.client.interface)) as ethtool:
                assert not ethtool.get_features()[SEND_FEATURE]
        with closing(IoctlEthtool(same_namespace.client.interface)) as ethtool:
            assert ethtool.get_features().is_requested(SEND_FEATURE)
