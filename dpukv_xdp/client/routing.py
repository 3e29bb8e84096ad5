# SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
"""Where a request goes: the owner of its key's partition, or any engine that may answer a read."""

import itertools
import random
from collections.abc import Iterator
from dataclasses import dataclass, field

from dpukv_xdp.base.errors import UsageError
from dpukv_xdp.discovery.directory import ServerRecord
from dpukv_xdp.wire import abi
from dpukv_xdp.wire.codec import Request

Address = tuple[str, int]
"""Host and UDP port."""

READS = abi.operations(abi.KV_OPS_THAT_READ)


@dataclass(slots=True, eq=False)
class Server:
    """The endpoints of one server, and the owners of its partitions."""

    owners: tuple[int, ...]
    """The engine of each partition."""
    endpoints: tuple[Address, ...]
    """The endpoint of each engine."""
    concurrent_read: bool = False
    """Whether every endpoint answers reads."""
    readers: Iterator[Address] = field(init=False)
    """Endless sequence of endpoints for reads if all answer them. Each endpoint occurs as often as
    it owns partitions, because these are dealt out by what the engines can do. The order is random,
    so that clients do not move in step.
    """

    def __post_init__(self) -> None:
        owning = [self.endpoints[engine] for engine in self.owners]
        self.readers = itertools.cycle(random.sample(owning, len(owning)))

    @classmethod
    def of(cls, record: ServerRecord) -> "Server":
        """Return the server that a directory's record describes."""
        return cls(record.owners, record.addresses, record.concurrent_read)

    def owner_of(self, key_hash: int) -> Address:
        """Return the endpoint that owns a key: as in MICA2, the hash's top 16 bits choose the
        partition.
        """
        return self.endpoints[self.owners[(key_hash >> 48) % len(self.owners)]]

    def lets_all_answer(self, request: Request) -> bool:
        """Return whether any engine may answer the request: reads of a key only.

        Writes go to the owner even where all may write (CRCW): a client repeats unanswered
        requests, and a SET that is stuck at one engine could overwrite a newer one that went
        through another.
        """
        return self.concurrent_read and request.operation in READS and bool(request.key)


def address_text(endpoint: Address) -> str:
    """Return an address as HOST:PORT."""
    host, port = endpoint
    return f"{host}:{port}"


def parse_address(text: str) -> tuple[str, int]:
    """Return host and port of HOST:PORT. Raises UsageError."""
    host, colon, port = text.rpartition(":")
    if not colon or not host or not port.isdigit() or int(port) > 0xFFFF:
        raise UsageError(f"{text!r} is not HOST:PORT")
    return host, int(port)
