# SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
"""The table of other stores: how to start each, and what it speaks."""

import os
import re
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass

from dpukv_xdp.base.errors import MissingError, UsageError
from dpukv_xdp.bench.peers_load import PROTOCOLS, Transport


@dataclass(frozen=True, slots=True)
class Peer:
    """A store that is not ours, and how to talk to it."""

    name: str
    summary: str
    program: str
    package: str
    """Debian's."""
    protocol: str
    """A row of peers_load.PROTOCOLS."""
    load_protocol: str
    """How keys are stored before a run: over TCP, where nothing is lost."""
    port: int
    arguments: Callable[["PeerSize"], list[str]]
    probe: bytes
    """Sent to see whether it is up."""
    reply: bytes
    """How its answer to that begins."""

    @property
    def transport(self) -> Transport:
        """What the measured messages travel by."""
        return PROTOCOLS[self.protocol].transport

    def find(self) -> str:
        """The program's path. Raises MissingError with the package to install."""
        path = shutil.which(self.program, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/bin")
        if path is None:
            raise MissingError(
                f"comparing with {self.name}",
                f"the program {self.program}: install the package {self.package}, or run "
                f"tools/setup --with-peers",
            )
        return path

    def version(self) -> str:
        """Its version as it says itself."""
        said = subprocess.run(
            [self.find(), "--version"], capture_output=True, text=True, check=False
        )
        found = re.search(r"\d+(\.\d+)+", said.stdout)
        return found[0] if found else "unknown"


@dataclass(frozen=True, slots=True)
class PeerSize:
    """What a server has to be laid out for."""

    address: str
    port: int
    keys: int
    item_bytes: int
    """Of a key's text and a value."""
    connections: int
    threads: int
    """As many as the server has cores."""


def _redis(size: PeerSize) -> list[str]:
    """One thread for the commands, others beside it for the sockets, and nothing on disk."""
    return [
        *("--bind", size.address, "--port", str(size.port), "--protected-mode", "no"),
        *("--save", "", "--appendonly", "no", "--daemonize", "no"),
        *("--io-threads", str(size.threads), "--io-threads-do-reads", "yes"),
        *("--maxclients", str(size.connections + 32), "--dir", "/"),
    ]


def _memcached(size: PeerSize) -> list[str]:
    """Worker threads, room for every key, and an index that need not grow during a run."""
    megabytes = 64 + size.keys * (size.item_bytes + 128) // (1 << 20) * 5 // 4
    return [
        *("-u", "nobody", "-l", size.address, "-p", str(size.port), "-U", str(size.port)),
        *("-t", str(size.threads), "-c", str(size.connections + 32), "-m", str(megabytes)),
        *("-o", f"hashpower={max(16, size.keys.bit_length())}"),
    ]


PEERS = {
    peer.name: peer
    for peer in (
        Peer(
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
        ),
        Peer(
            name="redis-mget",
            summary="redis-server over TCP, the GETs of a message as one MGET",
            program="redis-server",
            package="redis-server",
            protocol="resp-mget",
            load_protocol="resp",
            port=6379,
            arguments=_redis,
            probe=b"PING\r\n",
            reply=b"+PONG\r\n",
        ),
        Peer(
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
        ),
        Peer(
            name="memcached-udp",
            summary="memcached over UDP, a message one datagram, an answer one for each value",
            program="memcached",
            package="memcached",
            protocol="memcached-udp",
            load_protocol="memcached",
            port=11211,
            arguments=_memcached,
            probe=b"version\r\n",
            reply=b"VERSION ",
        ),
    )
}


def find_peer(name: str) -> Peer:
    """The row of that name. Raises UsageError."""
    if name not in PEERS:
        raise UsageError(f"there is no peer {name!r}: choose among {', '.join(PEERS)}")
    return PEERS[name]
