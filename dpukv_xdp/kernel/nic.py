# SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
"""Network interfaces: their properties, offloads and XDP programs.

Every function works in the network namespace of the calling thread. A program that is attached by
a BPF link goes when its process ends, however that happens. One that is attached by netlink stays;
attachments.py registers it for the cleanup.
"""

import errno
import os
import socket
from contextlib import closing, suppress
from dataclasses import dataclass
from ipaddress import IPv4Interface

from pyroute2 import IPRoute
from pyroute2.ethtool.ioctl import IoctlEthtool, NoSuchDevice, NotSupportedError
from pyroute2.netlink.exceptions import NetlinkError
from pyroute2.netlink.rtnl.ifinfmsg import (
    IFF_UP,
    XDP_FLAGS_DRV_MODE,
    XDP_FLAGS_REPLACE,
    XDP_FLAGS_SKB_MODE,
    XDP_FLAGS_UPDATE_IF_NOEXIST,
)

from dpukv_xdp._core._native import ffi, lib
from dpukv_xdp.base.errors import BusyError, DpukvError, MissingError, UsageError

DEFAULT_MODES = ("native", "generic")
XDP_MODE_FLAGS = {"native": XDP_FLAGS_DRV_MODE, "generic": XDP_FLAGS_SKB_MODE}
NO_PROGRAM_FD = -1
ARPHRD_ETHER, ARPHRD_LOOPBACK = 1, 772  # linux/if_arp.h
DEAF_KINDS = ("dummy", "ifb")
"""Drivers whose interfaces look like Ethernet and deliver nothing that comes from outside."""
LONGEST_WITH_BROADCAST = 30
"""Longest prefix of an IPv4 subnet that has a broadcast address: RFC 3021."""
GRO_FEATURE = "rx-gro"
"""The name of generic receive offload among a driver's features."""


@dataclass(frozen=True)
class XdpProgram:
    """An XDP program that an interface runs."""

    program_id: int
    """The kernel's number for the program."""
    mode: str
    """`native`, `generic` or `offload`."""
    name: str
    """The program's name, at most 15 characters; empty if the kernel does not tell it."""


@dataclass(frozen=True)
class Interface:
    """A snapshot of a network interface's properties."""

    name: str
    index: int
    mac: str
    mtu: int
    """Bytes of the largest IP packet."""
    is_up: bool
    address: str | None
    """The first IPv4 address, without prefix length."""
    programs: tuple[XdpProgram, ...]
    """The XDP programs on it: none, or one for each mode."""
    link_type: int = ARPHRD_ETHER
    """ARPHRD number of its hardware type, from linux/if_arp.h."""
    broadcast: str | None = None
    """Broadcast address of the subnet of `address`; None if it has none."""
    kind: str = ""
    """The kernel's name of a virtual interface's driver, such as veth; empty for others."""


@dataclass(frozen=True)
class VethPeer:
    """The other end of a veth pair."""

    index: int
    namespace_id: int | None
    """Id of its network namespace within the interface's; None if both are in the same one."""


@dataclass(frozen=True)
class Attachment:
    """Our program on an interface."""

    interface: str
    index: int
    program_id: int
    mode: str
    """`native` or `generic`."""
    native_refused: str | None = None
    """Why the driver refused native mode, as one sentence; None if it did not or was not asked."""
    link_fd: int | None = None
    """Descriptor of the BPF link that attaches it; None if netlink has attached it."""


class LinkCounters:
    """Counts the frames that an interface has lost since this object was made. Usable from any
    network namespace.

    A veth end counts as `tx_dropped` what the ring of its peer had no room for, 256 frames, also
    frames that XDP sent.
    """

    _COLUMNS = ("rx_errors", "rx_dropped", "tx_errors", "tx_dropped")
    _PLACES = (2, 3, 10, 11)
    """Their positions among the numbers of a line of /proc/net/dev: see proc_pid_net(5)."""

    def __init__(self, interface: str) -> None:
        self._interface = interface
        # The file shows the namespace of the thread that opened it, whoever reads it later.
        self._fd = os.open("/proc/thread-self/net/dev", os.O_RDONLY | os.O_CLOEXEC)
        self._before = self._read()

    def growth(self) -> dict[str, int]:
        """Return the frames lost so far, by cause; nothing for an interface that is gone."""
        return {name: count - self._before.get(name, 0) for name, count in self._read().items()}

    def close(self) -> None:
        """Close the kernel's file."""
        os.close(self._fd)

    def _read(self) -> dict[str, int]:
        for line in os.pread(self._fd, 1 << 20, 0).decode().splitlines():
            name, _, numbers = line.partition(":")
            if name.strip() == self._interface:
                counts = numbers.split()
                return {
                    column: int(counts[place])
                    for column, place in zip(self._COLUMNS, self._PLACES, strict=True)
                }
        return {}


def find(name: str) -> Interface:
    """Return the interface of that name. Raises UsageError if there is none."""
    with IPRoute() as netlink:
        try:
            (link,) = netlink.link("get", ifname=name)
        except NetlinkError as error:
            if error.code in (errno.ENODEV, errno.ERANGE, errno.EINVAL):
                raise _no_interface(name) from error
            raise
        index = link["index"]
        addresses = netlink.get_addr(family=socket.AF_INET, index=index)
        first = next(
            (
                IPv4Interface((message.get_attr("IFA_LOCAL"), message["prefixlen"]))
                for message in addresses
            ),
            None,
        )
    return Interface(
        name=link.get_attr("IFLA_IFNAME"),
        index=index,
        mac=link.get_attr("IFLA_ADDRESS") or "",
        mtu=link.get_attr("IFLA_MTU"),
        is_up=bool(link["flags"] & IFF_UP),
        address=str(first.ip) if first else None,
        broadcast=_broadcast_of(first) if first else None,
        programs=programs(index),
        link_type=link["ifi_type"],
        kind=_kind_of(link),
    )


def _broadcast_of(address: IPv4Interface) -> str | None:
    network = address.network
    return str(network.broadcast_address) if network.prefixlen <= LONGEST_WITH_BROADCAST else None


def index_of(name: str) -> int:
    """Return the index of the interface of that name. Raises UsageError if there is none."""
    try:
        return socket.if_nametoindex(name)
    except (OSError, ValueError) as error:  # ValueError: the name has a null character
        raise _no_interface(name) from error


def _no_interface(name: str) -> UsageError:
    known = ", ".join(sorted(known for _, known in socket.if_nameindex()))
    return UsageError(f"there is no interface {name!r}: choose one of {known}")


def check_can_serve(found: Interface) -> None:
    """Raise UsageError for an interface on which no Ethernet frame of a client can arrive."""
    if found.link_type == ARPHRD_LOOPBACK:
        raise UsageError(
            f"{found.name} is the loopback interface, on which XDP's answers get lost: serve an "
            f"Ethernet interface, or try a server with `dpukv lab up`"
        )
    if found.link_type != ARPHRD_ETHER:
        raise UsageError(
            f"{found.name} carries no Ethernet frames ({found.kind or 'link'} type "
            f"{found.link_type}): serve an Ethernet interface, such as the one that a tunnel's "
            f"packets arrive on"
        )
    if found.kind in DEAF_KINDS:
        raise UsageError(
            f"{found.name} is an interface of the kind {found.kind}, which receives no frame from "
            f"elsewhere: serve an Ethernet interface, or try a server with `dpukv lab up`"
        )


def programs(index: int) -> tuple[XdpProgram, ...]:
    """Return the XDP programs on the interface of that index; none if the interface is gone."""
    found = ffi.new("struct bpf_xdp_query_opts *", {"sz": ffi.sizeof("struct bpf_xdp_query_opts")})
    checked(lib.bpf_xdp_query(index, 0, found))
    ids = {
        "native": found.drv_prog_id,
        "generic": found.skb_prog_id,
        "offload": found.hw_prog_id,
    }
    return tuple(XdpProgram(id_, mode, program_name(id_)) for mode, id_ in ids.items() if id_)


# ---- Attach and detach


def attach_xdp(
    interface: str,
    program_fd: int,
    *,
    modes: tuple[str, ...] = DEFAULT_MODES,
    instead_of: int | None = None,
    goes_with_process: bool = False,
) -> Attachment:
    """Attach our program in the first of `modes` that the interface accepts, and verify it.

    It may replace the program with the id `instead_of`. With `goes_with_process` a BPF link holds
    it, which the kernel removes when the process ends and which nobody else can take off: close
    `link_fd` to detach. Raises BusyError, with nothing changed, if
    another program is attached; UsageError if there is no such interface; MissingError without the
    privilege; DpukvError if the interface accepts no mode.
    """
    index = index_of(interface)
    program_id = program_info(program_fd)[0]
    refusals: list[str] = []
    for mode in modes:
        native_refused = "; ".join(refusals) or None
        if goes_with_process:
            link_fd = _try_link(interface, index, program_fd, mode)
            if link_fd is not None:
                return Attachment(interface, index, program_id, mode, native_refused, link_fd)
        refusal = _try_attach(interface, index, program_fd, mode, instead_of)
        if refusal is None:
            _verify_attached(interface, index, program_id, mode)
            return Attachment(interface, index, program_id, mode, native_refused)
        refusals.append(f"{interface} refused {mode} XDP: {refusal}")
    raise DpukvError("; ".join(refusals))


def detach_xdp(index: int, program_id: int, *, successor_fd: int = NO_PROGRAM_FD) -> bool:
    """Detach the program if the interface runs it, or replace it with a successor; return whether
    that was done. A program that a BPF link holds stays: it goes with the link's process.

    The kernel compares and removes in one step, so another owner's program is never removed.
    """
    mode = next((p.mode for p in programs(index) if p.program_id == program_id), None)
    if mode is None:
        return False
    try:
        expected_fd = _program_fd(program_id)
    except FileNotFoundError:
        return False
    flags = XDP_MODE_FLAGS[mode] | XDP_FLAGS_REPLACE
    try:
        _set_xdp(index, successor_fd, flags, expected_fd)
    except NetlinkError as error:
        if error.code in (errno.ENODEV, errno.EEXIST, errno.ENOENT):  # went, or was replaced
            return False
        if error.code == errno.EBUSY:  # a link holds it
            return False
        raise
    finally:
        os.close(expected_fd)
    return True


def veth_peer(interface: str) -> VethPeer | None:
    """Return the other end of a veth pair; None if the interface is not a veth's end."""
    with IPRoute() as netlink:
        return _veth_peer(netlink, interface)


def deaf_veth_peer(interface: str) -> str | None:
    """Return a sentence if frames that native XDP transmits on the interface would not be received
    by its veth peer; else None.

    The kernel wakes a veth peer for such frames only if the peer runs a native XDP program itself
    (veth_xdp_flush()); GRO suffices for redirected frames only. A peer in a namespace that we may
    not inspect is assumed to be woken.
    """
    with IPRoute() as netlink:
        found = _veth_peer(netlink, interface)
        if found is None:
            return None
        where = {} if found.namespace_id is None else {"if_netnsid": found.namespace_id}
        try:
            (peer,) = netlink.link("get", index=found.index, **where)
        except NetlinkError as error:
            if error.code in (errno.EPERM, errno.EACCES):
                return None
            raise
    xdp = peer.get_attr("IFLA_XDP")
    if xdp is not None and xdp.get_attr("IFLA_XDP_DRV_PROG_ID"):
        return None
    return (
        f"{interface} is one end of a veth pair whose other end runs no XDP program, and the "
        "kernel would not deliver native answers to it: attach one there for native mode"
    )


def _veth_peer(netlink: IPRoute, interface: str) -> VethPeer | None:
    (link,) = netlink.link("get", ifname=interface)
    if _kind_of(link) != "veth":
        return None
    return VethPeer(link.get_attr("IFLA_LINK"), link.get_attr("IFLA_LINK_NETNSID"))


def _try_link(interface: str, index: int, program_fd: int, mode: str) -> int | None:
    """Attach a program by a BPF link and return the link's descriptor; None if the kernel refuses,
    which tells the driver's reason by netlink only.
    """
    options = ffi.new("struct bpf_link_create_opts *")
    options.sz, options.flags = ffi.sizeof("struct bpf_link_create_opts"), XDP_MODE_FLAGS[mode]
    link_fd = lib.bpf_link_create(program_fd, index, lib.BPF_XDP, options)
    if link_fd >= 0:
        return int(link_fd)
    if link_fd in (-errno.EBUSY, -errno.EEXIST):
        for other in programs(index):
            raise BusyError(interface, other.program_id, other.name)
    return None


def _try_attach(
    interface: str, index: int, program_fd: int, mode: str, instead_of: int | None
) -> str | None:
    """Attach a program; return None on success, else the driver's reason to refuse the mode."""
    if instead_of is not None and detach_xdp(index, instead_of, successor_fd=program_fd):
        return None
    try:
        _set_xdp(index, program_fd, XDP_MODE_FLAGS[mode] | XDP_FLAGS_UPDATE_IF_NOEXIST)
    except NetlinkError as error:
        if error.code == errno.EPERM:
            raise MissingError("attaching XDP", "CAP_NET_ADMIN: run it with sudo") from error
        if error.code in (errno.EBUSY, errno.EEXIST):
            for other in programs(index):
                raise BusyError(interface, other.program_id, other.name) from error
        return str(error.args[1])
    return None


def _verify_attached(interface: str, index: int, program_id: int, mode: str) -> None:
    found = [(p.program_id, p.mode) for p in programs(index)]
    if (program_id, mode) not in found:
        raise DpukvError(
            f"{interface} accepted XDP program {program_id} ({mode}) but runs {found or 'none'}: "
            "another process manages this interface, stop it first"
        )


def _set_xdp(index: int, program_fd: int, flags: int, expected_fd: int | None = None) -> None:
    attributes = [("IFLA_XDP_FD", program_fd), ("IFLA_XDP_FLAGS", flags)]
    if expected_fd is not None:
        attributes.append(("IFLA_XDP_EXPECTED_FD", expected_fd))
    with IPRoute(ext_ack=True) as netlink:  # ext_ack: a refusal has the driver's own message
        netlink.link("set", index=index, xdp={"attrs": attributes})


def _kind_of(link: object) -> str:
    """Return the kind of a virtual interface, from a netlink link message; empty for others."""
    info = link.get_attr("IFLA_LINKINFO")  # type: ignore[attr-defined] # pyroute2 has no types
    return "" if info is None else str(info.get_attr("IFLA_INFO_KIND") or "")


# ---- Offloads


def set_offloads(
    interface: str, *, tx_checksum: bool | None = None, gro: bool | None = None
) -> None:
    """Turn offloads on or off; None leaves one unchanged.

    Without transmit checksum offload, UDP checksums are complete before XDP at the far end of a
    veth pair sees them. With GRO a veth end has NAPI, which the far end's XDP_TX needs. Raises
    UsageError if the interface does not support the change.
    """
    wanted = {"tx-checksumming": tx_checksum, "generic-receive-offload": gro}
    with closing(IoctlEthtool(interface)) as ethtool:
        for feature, is_on in wanted.items():
            if is_on is None:
                continue
            with suppress(NotSupportedError):  # the read-back below reports it
                ethtool.set_offload_flag(feature, is_on)
            if ethtool.get_offload_flags().get(feature) != is_on:
                raise UsageError(f"{interface} cannot turn {feature} {'on' if is_on else 'off'}")


def is_on(interface: str, feature: str) -> bool:
    """Return whether a feature is in force, by its name in `ethtool -k`."""
    with closing(IoctlEthtool(interface)) as ethtool:
        features = ethtool.get_features()
        return feature in features and bool(features.is_active(feature))


def turn_off(interface: str, feature: str) -> bool:
    """Turn a feature off, by its name in `ethtool -k`; return whether it was requested before."""
    with closing(IoctlEthtool(interface)) as ethtool:
        features = ethtool.get_features()
        if feature not in features or not features.is_requested(feature):
            return False
        features[feature] = False
        with suppress(NotSupportedError):  # a fixed feature shows in the counters of drops
            ethtool.set_features(features)
    return True


def turn_on(interface: str, feature: str) -> None:
    """Turn on a feature that turn_off() has turned off, unless the interface is gone."""
    with closing(IoctlEthtool(interface)) as ethtool:
        try:
            features = ethtool.get_features()
            features[feature] = True
            ethtool.set_features(features)
        except (NoSuchDevice, NotSupportedError):
            return  # the latter: noted, and in force once what it depends on is on
        except OSError as error:
            if error.errno != errno.ENODEV:
                raise


# ---- BPF programs that need no compiler

PASS_PROGRAM = bytes.fromhex("b700000002000000 9500000000000000")  # r0 = XDP_PASS; exit
DROP_PROGRAM = bytes.fromhex("b700000001000000 9500000000000000")  # r0 = XDP_DROP; exit


def load_pass_program(name: str = "kv_pass") -> int:
    """Return a descriptor of an XDP program that passes every frame. Raises OSError."""
    return load_program(PASS_PROGRAM, name)


def load_program(instructions: bytes, name: str) -> int:
    """Return a descriptor of an XDP program that uses no maps. Raises OSError."""
    count = len(instructions) // 8
    arguments = (name.encode(), b"Dual BSD/GPL", instructions, count, ffi.NULL)
    return checked(lib.bpf_prog_load(lib.BPF_PROG_TYPE_XDP, *arguments))


def program_info(program_fd: int) -> tuple[int, str]:
    """Return the id and the name of a loaded program. Raises OSError for another descriptor."""
    info = ffi.new("struct bpf_prog_info *")
    info_bytes = ffi.new("__u32 *", ffi.sizeof("struct bpf_prog_info"))
    checked(lib.bpf_obj_get_info_by_fd(program_fd, info, info_bytes))
    return info.id, ffi.string(info.name).decode(errors="replace")


def program_name(program_id: int) -> str:
    """Return the name of the program with that id; empty if it is gone, or without privilege."""
    try:
        program_fd = _program_fd(program_id)
    except (FileNotFoundError, PermissionError):
        return ""
    try:
        return program_info(program_fd)[1]
    finally:
        os.close(program_fd)


def _program_fd(program_id: int) -> int:
    return checked(lib.bpf_prog_get_fd_by_id(program_id))


def checked(result: int) -> int:
    """Return the result of a libbpf or core function. Raises OSError if it is a negative errno."""
    if result < 0:
        raise OSError(-result, os.strerror(-result))
    return int(result)
