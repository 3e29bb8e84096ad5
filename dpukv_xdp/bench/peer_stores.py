# SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
"""The table of other stores: their programs, arguments and protocols."""

import os
import re
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass, replace

from dpukv_xdp.base.errors import MissingError, UsageError
from dpukv_xdp.bench.peers_load import PROTOCOLS, Transport


@dataclass(frozen=True, slots=True)
class Peer:
    """Another store, and the way to talk to it."""

    name: str
    summary: str
    program: str
    package: str
    """Debian's package of the program."""
    protocol: str
    """A row of peers_load.PROTOCOLS."""
    load_protocol: str
    """The protocol by which keys are stored before a run: over TCP, which loses nothing."""
    port: int
    arguments: Callable[["PeerSize"], list[str]]
    probe: bytes
    """Request that shows whether the server is up."""
    reply: bytes
    """Beginning of the answer to the probe."""

    @property
    def transport(self) -> Transport:
        """Return the transport of the measured messages."""
        return PROTOCOLS[self.protocol].transport

    def find(self) -> str:
        """Return the program's path. Raises MissingError with the package to install."""
        path = shutil.which(self.program, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/bin")
        if path is None:
            raise MissingError(
                f"comparing with {self.name}",
                f"the program {self.program}: install the package {self.package}, or run "
                f"tools/setup --with-peers",
            )
        return path

    def version(self) -> str:
        """Return the version that the program prints."""
        said = subprocess.run(
            [self.find(), "--version"], capture_output=True, text=True, check=False
        )
        found = re.search(r"\d+(\.\d+)+", said.stdout)
        return found[0] if found else "unknown"


@dataclass(frozen=True, slots=True)
class PeerSize:
    """The load for which a server is sized."""

    address: str
    port: int
    keys: int
    item_bytes: int
    """Bytes of a key's text and a value."""
    connections: int
    threads: int
    """Threads of the server, one per core."""


def _redis(size: PeerSize) -> list[str]:
    """Return arguments for one command thread, further threads for the sockets, nothing on disk."""
    return [
        *("--bind", size.address, "--port", str(size.port), "--protected-mode", "no"),
        *("--save", "", "--appendonly", "no", "--daemonize", "no"),
        *("--io-threads", str(size.threads), "--io-threads-do-reads", "yes"),
        *("--maxclients", str(size.connections + 32), "--dir", "/"),
    ]


def _memcached(size: PeerSize) -> list[str]:
    """Return arguments for worker threads, room for every key, and an index of its final size."""
    megabytes = 64 + size.keys * (size.item_bytes + 128) // (1 << 20) * 5 // 4
    return [
        *("-u", "nobody", "-l", size.address, "-p", str(size.port), "-U", str(size.port)),
        *("-t", str(size.threads), "-c", str(size.connections + 32), "-m", str(megabytes)),
        *("-o", f"hashpower={max(16, size.keys.bit_length())}"),
    ]


REDIS = Peer(
    name="redis",
    summary="redis-server over TCP, commands pipelined",
    program="redis-server",
    package="redis-server",
    protocol="resp",
    load_protocol="resp",
    port=6379,
    arguments=_redis,
    probe=b"PING\r\n",
    reply=b"+PONG\r\n",
)
MEMCACHED = Peer(
    name="memcached",
    summary="memcached over TCP, the GETs of a message as one multi-get, SETs pipelined",
    program="memcached",
    package="memcached",
    protocol="memcached",
    load_protocol="memcached",
    port=11211,
    arguments=_memcached,
    probe=b"version\r\n",
    reply=b"VERSION ",
)
PEERS = {
    peer.name: peer
    for peer in (
        REDIS,
        replace(
            REDIS,
            name="redis-mget",
            summary="redis-server over TCP, the GETs of a message as one MGET",
            protocol="resp-mget",
        ),
        MEMCACHED,
        replace(
            MEMCACHED,
            name="memcached-udp",
            summary="memcached over UDP, a message one datagram, an answer one for each value",
            protocol="memcached-udp",
        ),
    )
}


def find_peer(name: str) -> Peer:
    """Return the peer of that name. Raises UsageError for an unknown name."""
    if name not in PEERS:
        raise UsageError(f"there is no peer {name!r}: choose among {', '.join(PEERS)}")
    return PEERS[name]
