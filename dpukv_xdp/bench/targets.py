# SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
"""The way to a server outside the lab: interface and addresses."""

import socket
from dataclasses import dataclass

from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError

from dpukv_xdp.base.errors import DpukvError, UsageError
from dpukv_xdp.client.client import Client
from dpukv_xdp.client.routing import parse_address
from dpukv_xdp.discovery.directory import malformed, usable
from dpukv_xdp.discovery.opening import open_directory
from dpukv_xdp.kernel import nic
from dpukv_xdp.wire.codec import Endpoint

SOURCE_PORT = 49152


@dataclass(frozen=True, slots=True)
class Target:
    """A server elsewhere and the way to it."""

    interface: str
    source: Endpoint
    destination: Endpoint
    engines: int
    owners: tuple[int, ...]
    """The engine of each partition."""

    def __str__(self) -> str:
        return f"{self.destination.ip}:{self.destination.port}"


def find_target(text: str, engines: int, directory: str | None = None) -> Target:
    """Resolve HOST:PORT to the addresses of frames: the host's address, the route's interface, and
    the next hop's MAC.

    The directory at the URL has the owners of partitions; without one, each of `engines` engines is
    assumed to own one partition. Pings the server first, which also makes the kernel learn its MAC.
    Raises UsageError for a host without address or route, or a server that is not in the directory;
    NoResponseError if it does not answer; DpukvError if the MAC stays unknown.
    """
    name, port = parse_address(text)
    host = _address_of(name)
    owners = tuple(range(engines))
    if directory is not None:
        owners = _published_owners(directory, host, port)
    with Client((host, port)) as client:
        client.ping()
    with IPRoute() as netlink:
        try:
            (route,) = netlink.route("get", dst=host)
        except NetlinkError as error:
            raise UsageError(f"there is no route to {host}: {error}") from error
        index = route.get_attr("RTA_OIF")
        next_hop = route.get_attr("RTA_GATEWAY") or host
        (link,) = netlink.link("get", index=index)
        neighbours = netlink.get_neighbours(ifindex=index)
        mac = next(
            (
                entry.get_attr("NDA_LLADDR")
                for entry in neighbours
                if entry.get_attr("NDA_DST") == next_hop
            ),
            None,
        )
    interface = nic.find(link.get_attr("IFLA_IFNAME"))
    if mac is None or interface.address is None:
        raise DpukvError(f"the kernel does not know the MAC address of {next_hop}: check the link")
    return Target(
        interface=interface.name,
        source=Endpoint(interface.mac, interface.address, SOURCE_PORT),
        destination=Endpoint(mac, host, port),
        engines=max(owners) + 1,
        owners=owners,
    )


def _address_of(host: str) -> str:
    """Return a host's IPv4 address; looked up once, so that all uses agree. Raises UsageError."""
    try:
        return str(socket.getaddrinfo(host, None, socket.AF_INET)[0][4][0])
    except (OSError, UnicodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise UsageError(
            f"{host} has no address: {reason}, give an IPv4 address or a name that has one"
        ) from error


def _published_owners(url: str, host: str, port: int) -> tuple[int, ...]:
    listing = open_directory(url).servers()
    for record in usable(listing).values():
        if record.addresses[0] == (host, port):
            return record.owners
    raise UsageError(
        "; ".join(
            [
                f"the directory {url} has no server at {host}:{port}: is it published there?",
                *map(str, malformed(listing)),
            ]
        )
    )
