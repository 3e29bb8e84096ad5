# SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
"""A server on an interface of the namespace that the shell is in: every option serves a client, and
interfaces that cannot work are refused before anything is attached.
"""

import errno
import secrets
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from typing import Any

import pytest
from net.serving import CPUS, ENGINE_CPU, OTHER_CPU, TIMEOUT_SECONDS, pinned
from pyroute2 import IPRoute, netns
from pyroute2.netlink.exceptions import NetlinkError

from dpukv_xdp.base.errors import MissingError
from dpukv_xdp.client.client import Client
from dpukv_xdp.kernel import live_frames, nic
from dpukv_xdp.kernel.attachments import attach_napi_program
from dpukv_xdp.kernel.namespaces import in_namespace, make_namespace
from dpukv_xdp.native import dpdk
from dpukv_xdp.server.server import Server
from dpukv_xdp.topology import validation
from dpukv_xdp.topology.schema import load_config

PREFIX_BITS = 30


@dataclass(frozen=True)
class Link:
    """A veth pair: one end in the test's own namespace, the other in a client's."""

    interface: str
    address: str
    namespace: str
    peer: str


@contextmanager
def link() -> Iterator[Link]:
    """A pair as `ip link add` makes it, with default offloads and no XDP program; removed at the
    end whatever happens.
    """
    name = secrets.token_hex(3)
    network = f"10.{secrets.randbelow(64) + 128}.{secrets.randbelow(256)}"
    pair = Link(f"kvo-{name}", f"{network}.1", f"kvo-{name}", f"kvp-{name}")
    try:
        make_namespace(pair.namespace)
        with IPRoute() as netlink:
            peer = {"ifname": pair.peer, "net_ns_fd": pair.namespace}
            netlink.link("add", kind="veth", ifname=pair.interface, peer=peer)
        with in_namespace(pair.namespace):
            bring_up(pair.peer, f"{network}.2")
        bring_up(pair.interface, pair.address)
        yield pair
    finally:
        with IPRoute() as netlink:
            for index in netlink.link_lookup(ifname=pair.interface):
                netlink.link("del", index=index)
        with suppress(FileNotFoundError):
            netns.remove(pair.namespace)


def bring_up(interface: str, address: str | None = None) -> None:
    with IPRoute() as netlink:
        (index,) = netlink.link_lookup(ifname=interface)
        if address is not None:
            netlink.addr("add", index=index, address=address, prefixlen=PREFIX_BITS)
        netlink.link("set", index=index, state="up")


@pytest.fixture(scope="module")
def plain() -> Iterator[Link]:
    """The client's end is as a container has it."""
    with link() as pair:
        yield pair


@pytest.fixture(scope="module")
def prepared() -> Iterator[Link]:
    """The client's end runs an XDP program, so that the server's end can have native XDP."""
    with link() as pair:
        nic.set_offloads(pair.interface, gro=True)
        with in_namespace(pair.namespace):
            nic.set_offloads(pair.peer, gro=True, tx_checksum=False)
            attach_napi_program(pair.peer)
        yield pair


@contextmanager
def serving(pair: Link, **settings: Any) -> Iterator[Server]:
    defaults = {"engine_cpus": (ENGINE_CPU,), "items": 1 << 16}
    if settings.get("design") == "dpu-only":
        del defaults["engine_cpus"]
    config = load_config(None, defaults | settings)
    validation.check(config)
    with pinned(*CPUS):
        server = Server(config, pair.interface)
        server.start()
    try:
        with pinned(OTHER_CPU):
            yield server
    finally:
        server.stop()


def assert_served(pair: Link, server: Server) -> None:
    """A SET and a GET of short and of long values, by a client at the other end."""
    with in_namespace(pair.namespace):
        where = server.endpoint()
        client = Client(
            (pair.address, where["port"]),
            ports=where["engines"],
            owners=where["owners"],
            timeout=TIMEOUT_SECONDS,
            retries=0,
        )
    with client:
        for number, size in enumerate((0, 8, 100, 1300)):
            key, value = b"key %d" % number, bytes([number]) * size
            assert client.set(key, value), server.notes
            assert client.get(key) == value
        assert client.get(b"missing") is None


WAYS: list[dict[str, Any]] = [
    *({"design": name} for name in ("cpu-only", "dpu-only", "lat", "sav", "dual", "shrd")),
    *({"transport": transport} for transport in ("ringbuf", "af_xdp")),
    *({"respond": respond} for respond in ("wait", "pipeline", "sender")),
    *({"design": "cpu-only", "frames": frames} for frames in ("ring", "udp", "dpdk")),
    *({"design": "cpu-only", "socket_mode": mode} for mode in ("copy",)),
    {"design": "dual", "frames": "ring"},
    {"design": "shrd", "frames": "ring", "respond": "sender"},
    {"design": "cpu-only", "frames": "ring", "respond": "sender"},
    *({"profile": profile} for profile in ("bf2", "bf3")),
    *({"store": "lossless"}, {"design": "dual", "store": "lossless"}, {"store": "inline"}),
    *({"access": access, "engines": 2} for access in ("crew", "crcw")),
    *({"dpu_cpus": (OTHER_CPU,)}, {"design": "cpu-only", "dpu_cpus": (OTHER_CPU,)}),
    {"design": "dpu-only", "dpu_cpus": (OTHER_CPU,)},
    {"respond": "sender", "dpu_cpus": (OTHER_CPU,)},
    *({"transfer": "request"}, {"prepare": "serial"}, {"depth": 1}, {"flush_after_us": 100.0}),
    *({"design": "cpu-only", "send": "before-parse"}, {"design": "cpu-only", "rx_descriptors": 64}),
    *({"engines": 2, "partitions": 16}, {"port": 1}, {"port": 65535}, {"huge_pages": False}),
    *({"log_bytes": 4096}, {"items": 1}, {"move_to_head": 0.0}, {"allow_reset": True}),
    {"design": "dual", "host_share": 0.9, "engines": 2},
]


def name_of(settings: dict[str, Any]) -> str:
    return "-".join(f"{name}={value}" for name, value in settings.items())


@pytest.mark.parametrize("settings", WAYS, ids=name_of)
@pytest.mark.parametrize("kind", ["plain", "prepared"])
def test_every_option_serves(
    kind: str, settings: dict[str, Any], request: pytest.FixtureRequest
) -> None:
    if settings.get("frames") == "dpdk" and not dpdk.is_installed():
        pytest.skip("needs DPDK, which this machine lacks: run sudo tools/setup --with-dpdk")
    pair = request.getfixturevalue(kind)
    if kind == "plain" and "dpu_cpus" in settings:
        with pytest.raises(MissingError, match=r"NAPI threads.*leave out --dpu-cpus"):
            serving(pair, **settings).__enter__()
        assert nic.find(pair.interface).programs == ()
        return
    with serving(pair, **settings) as server:
        assert server.attachment is not None
        assert_served(pair, server)
    left = [program.name for program in nic.find(pair.interface).programs]
    assert left == []


def test_the_sender_s_way_is_opened_for_as_long_as_it_serves(plain: Link) -> None:
    """Live frames get through to a veth end without an XDP program if its GRO is on."""
    assert not gro_of_peer(plain)
    with serving(plain, respond="sender"):
        assert gro_of_peer(plain)
    assert not gro_of_peer(plain)


def test_a_sender_whose_frames_would_be_lost_is_refused(
    plain: Link, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(live_frames, "peer_namespace_fd", lambda _number: None)
    with pytest.raises(MissingError, match=r"--respond sender on .*leave out --respond sender"):
        serving(plain, respond="sender").__enter__()
    assert nic.find(plain.interface).programs == ()


def gro_of_peer(pair: Link) -> bool:
    with in_namespace(pair.namespace):
        return nic.is_on(pair.peer, nic.GRO_FEATURE)


# ---- Interfaces of other kinds


def add(netlink: IPRoute, name: str, kind: str, **attributes: Any) -> None:
    try:
        netlink.link("add", kind=kind, ifname=name, **attributes)
    except NetlinkError as error:
        if error.code != errno.EOPNOTSUPP:
            raise
        pytest.skip(f"needs the kernel's driver {kind}, which is missing here")


@contextmanager
def interface(kind: str, **attributes: Any) -> Iterator[str]:
    """An interface of that kind in this namespace, up."""
    name = f"kvo-{secrets.token_hex(3)}"
    with IPRoute() as netlink:
        add(netlink, name, kind, **attributes)
    try:
        bring_up(name)
        yield name
    finally:
        with IPRoute() as netlink:
            netlink.link("del", index=netlink.link_lookup(ifname=name)[0])


def assert_refused(name: str, *words: str) -> None:
    """In one sentence, by the command, and with nothing attached."""
    command = [sys.executable, "-P", "-m", "dpukv_xdp", "serve", "--iface", name, "--items", "1000"]
    with pinned(*CPUS):
        result = subprocess.run(
            [*command, "--engine-cpus", str(ENGINE_CPU), "--directory", ""],
            capture_output=True,
            text=True,
            check=False,
        )
    assert result.returncode == 2, result.stderr
    assert result.stderr.count("\n") == 1
    for word in (f"dpukv: {name} ", *words):
        assert word in result.stderr
    assert nic.find(name).programs == ()


def test_the_loopback_interface_is_refused() -> None:
    assert_refused("lo", "loopback interface", "dpukv lab up")


def test_a_tun_without_ethernet_headers_is_refused() -> None:
    with interface("tuntap", mode="tun") as name:
        assert_refused(name, "carries no Ethernet frames", "serve an Ethernet interface")


@pytest.mark.parametrize("kind", ["dummy", "ifb"])
def test_an_interface_that_receives_nothing_is_refused(kind: str) -> None:
    with interface(kind) as name:
        assert_refused(name, f"of the kind {kind}", "dpukv lab up")


@pytest.mark.parametrize("kind", ["bridge", "vlan", "macvlan"])
@pytest.mark.parametrize(
    "settings", [{"design": "lat"}, {"design": "dpu-only"}, {"design": "cpu-only"}], ids=name_of
)
def test_an_interface_on_top_of_another_serves(kind: str, settings: dict[str, Any]) -> None:
    with link() as pair, on_top(kind, pair) as upper, serving(upper, **settings) as server:
        assert server.attachment is not None
        assert_served(upper, server)


@contextmanager
def on_top(kind: str, pair: Link) -> Iterator[Link]:
    """An interface over the pair's own end, with an address; the client's end reaches it."""
    name = f"kvu-{secrets.token_hex(3)}"
    with IPRoute() as netlink:
        (lower,) = netlink.link_lookup(ifname=pair.interface)
        netlink.flush_addr(index=lower)
        own = {"vlan": {"link": lower, "vlan_id": 7}, "macvlan": {"link": lower}}
        add(netlink, name, kind, **own.get(kind, {}))
        if kind == "bridge":
            (bridge,) = netlink.link_lookup(ifname=name)
            netlink.link("set", index=lower, master=bridge)
    try:
        bring_up(name, pair.address)
        mac = nic.find(name).mac
        if kind == "macvlan":  # the lower interface answers ARP for the address, too
            with in_namespace(pair.namespace), IPRoute() as netlink:
                (peer,) = netlink.link_lookup(ifname=pair.peer)
                netlink.neigh("add", dst=pair.address, lladdr=mac, ifindex=peer, state="permanent")
        if kind == "vlan":
            with in_namespace(pair.namespace), IPRoute() as netlink:
                (peer,) = netlink.link_lookup(ifname=pair.peer)
                (address,) = netlink.get_addr(index=peer, family=socket.AF_INET)
                netlink.flush_addr(index=peer)
                netlink.link("add", kind="vlan", ifname="kv-vlan", link=peer, vlan_id=7)
                bring_up("kv-vlan", address.get_attr("IFA_LOCAL"))
        yield replace(pair, interface=name)
    finally:
        with IPRoute() as netlink:
            netlink.link("del", index=netlink.link_lookup(ifname=name)[0])
