# SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
"""The directory: servers publish their records in it, and clients look them up.

A server's record is MICA2's JSON, byte for byte. Its place is named by a URL:

    file:/run/dpukv/directory    files of this machine, NAME.json each
    etcd2://host:2379/mica       etcd's version 2, which public MICA2 reads: /mica/servers/NAME
    etcd3://host:2379/mica       etcd's version 3: the same keys under a lease

A publisher repeats its record every REFRESH_SECONDS. A record that is not repeated expires after
TTL_SECONDS.
"""

import re
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from ipaddress import AddressValueError, IPv4Address
from pathlib import Path
from signal import SIG_BLOCK, pthread_sigmask, valid_signals
from typing import Protocol, Self

import msgspec

from dpukv_xdp.base.errors import DirectoryError, RecordError, UsageError
from dpukv_xdp.base.processes import start_ticks
from dpukv_xdp.base.scratch import replacing
from dpukv_xdp.wire import abi

TTL_SECONDS = 10
"""Lifetime of a record beyond its server. A MICA2 client crashes if a record expires between its
two reads, so this is many times REFRESH_SECONDS.
"""
REFRESH_SECONDS = 1.0
ENDPOINTS_MAX = 32
"""Most endpoints of a server: MICA2's clients have room for no more, and do not check."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,199}")
_MAC = re.compile(r"[0-9A-Fa-f]{2}(:[0-9A-Fa-f]{2}){5}")
_SUFFIX = ".json"
_UNFINISHED = ".new"  # suffix of a file's name while it is being written

Endpoint = tuple[str, str, int]
"""MAC with colons, dotted IPv4 address, UDP port."""


@dataclass(frozen=True, slots=True)
class ServerRecord:
    """The description of a server that clients need. Raises RecordError if it is unusable."""

    concurrent_read: bool
    """Whether any engine serves GET and TEST (CREW, CRCW), not only the partition's owner."""
    concurrent_write: bool
    """Whether any engine serves all other operations, too (CRCW)."""
    owners: tuple[int, ...]
    """The owning engine of each partition; for one that is being moved, the new owner."""
    endpoints: tuple[Endpoint, ...]
    """The endpoint of each engine."""

    def __post_init__(self) -> None:
        if not 1 <= len(self.owners) <= abi.KV_PARTITIONS_MAX:
            raise RecordError(f"{len(self.owners)} partitions are not 1 to {abi.KV_PARTITIONS_MAX}")
        if not 1 <= len(self.endpoints) <= ENDPOINTS_MAX:
            raise RecordError(f"{len(self.endpoints)} endpoints are not 1 to {ENDPOINTS_MAX}")
        strangers = set(self.owners) - set(range(len(self.endpoints)))
        if strangers:
            raise RecordError(f"no endpoint belongs to owner {min(strangers)}")
        for endpoint in self.endpoints:
            _check_endpoint(*endpoint)

    @property
    def addresses(self) -> tuple[tuple[str, int], ...]:
        """The IPv4 address and UDP port of each engine."""
        return tuple((address, port) for _, address, port in self.endpoints)

    def to_json(self) -> str:
        """Return the line that MICA2's servers write: engine e is endpoint e on lcore e."""
        partitions = list(enumerate(self.owners))
        endpoints = [(index, index, *where) for index, where in enumerate(self.endpoints)]
        members = {
            "concurrent_read": self.concurrent_read,
            "concurrent_write": self.concurrent_write,
            "partitions": partitions,
            "endpoints": endpoints,
        }
        return "{" + ", ".join(f'"{name}":{_compact(each)}' for name, each in members.items()) + "}"

    @classmethod
    def from_json(cls, text: str | bytes) -> Self:
        """Return the record that a line of JSON holds.

        Servers may number their lcores differently: the first endpoint of an lcore gets the lcore's
        partitions. Raises RecordError, which says what is wrong.
        """
        try:
            wire = msgspec.json.decode(text, type=_Wire)
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            raise RecordError(str(error)) from error
        for members, name in ((wire.partitions, "partition"), (wire.endpoints, "endpoint")):
            for index, member in enumerate(members):
                if member[0] != index:
                    raise RecordError(f"{name} {member[0]} is at the place of {name} {index}")
        lcores = [lcore for _, lcore, *_ in wire.endpoints]
        try:
            owners = tuple(lcores.index(lcore) for _, lcore in wire.partitions)
        except ValueError:
            lost = next(lcore for _, lcore in wire.partitions if lcore not in lcores)
            raise RecordError(f"no endpoint belongs to owner {lost}") from None
        endpoints = tuple((mac, ip, port) for _, _, mac, ip, port in wire.endpoints)
        return cls(wire.concurrent_read, wire.concurrent_write, owners, endpoints)


class Directory(Protocol):
    """A store of records. Every method raises DirectoryError if it cannot be reached."""

    def publish(self, name: str, record: ServerRecord) -> None:
        """Write a record, or repeat it before it expires; readers never see half of it."""

    def withdraw(self, name: str) -> None:
        """Remove a record, if it exists."""

    def servers(self) -> "Listing":
        """Return all records that have not expired, sorted by name."""


Listing = dict[str, ServerRecord | RecordError]
"""The record of each server by name, or the error of a malformed one: it does not hide the others.
"""


def usable(listing: Listing) -> dict[str, ServerRecord]:
    """Return the records that are not malformed."""
    return {name: each for name, each in listing.items() if isinstance(each, ServerRecord)}


def malformed(listing: Listing) -> list[RecordError]:
    """Return the errors of the malformed records."""
    return [each for each in listing.values() if isinstance(each, RecordError)]


class Publisher:
    """A thread that keeps one record in a directory; a context manager."""

    def __init__(
        self,
        directory: Directory,
        name: str,
        record: ServerRecord,
        say: Callable[[str], None],
        refresh_seconds: float = REFRESH_SECONDS,
    ) -> None:
        """`say` is called from that thread when the directory is lost and when it is back."""
        check_name(name)
        self.name = name
        self._directory = directory
        self._record = record
        self._say = say
        self._refresh_seconds = refresh_seconds
        self._is_lost = False
        self._is_stopping = False
        self._wake = threading.Event()
        self._thread = threading.Thread(target=self._run, name="directory", daemon=True)

    def update(self, record: ServerRecord) -> None:
        """Publish another record at once, without waiting for the directory."""
        self._record = record
        self._wake.set()

    def __enter__(self) -> Self:
        """Publish the record. Raises DirectoryError if the directory cannot be reached."""
        self._supersede()
        try:
            self._directory.publish(self.name, self._record)
            self._thread.start()
        except BaseException:  # an interrupt, too: the record may be listed already
            self._withdraw()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._withdraw()

    def _withdraw(self) -> None:
        self._is_stopping = True
        self._wake.set()
        if self._thread.ident is not None:  # None: the thread was never started
            self._thread.join()
        try:
            self._directory.withdraw(self.name)
        except DirectoryError as failure:
            tell(self._say, f"{failure}; this server's record expires within {TTL_SECONDS} s")

    def _supersede(self) -> None:
        """Remove the records of killed servers of this host: until these records expire, clients
        would send requests to dead servers. Records of other hosts are left to expire.
        """
        for name, found in self._directory.servers().items():
            if name == self.name:
                continue
            if is_dead(name):
                self._directory.withdraw(name)
            elif isinstance(found, RecordError):
                tell(self._say, f"{found}; until then clients do not use that server")

    def _run(self) -> None:
        pthread_sigmask(SIG_BLOCK, valid_signals())  # the main thread handles signals
        while True:
            self._wake.wait(self._refresh_seconds)
            self._wake.clear()
            if self._is_stopping:
                return
            try:
                self._directory.publish(self.name, self._record)
            except Exception as failure:  # noqa: BLE001 keep publishing: the record must not expire
                self._lose(failure)
                continue
            if self._is_lost:
                tell(self._say, "the directory is back, and this server is published in it again")
            self._is_lost = False

    def _lose(self, failure: Exception) -> None:
        reason = str(failure)
        if not isinstance(failure, DirectoryError):
            reason = f"cannot publish in {self._directory}: {failure!r}"
        if not self._is_lost:
            tell(self._say, f"{reason}; clients keep the last record, and publishing is retried")
        self._is_lost = True


def tell(say: Callable[[str], None], sentence: str) -> None:
    """Call `say` with a sentence; ignore a closed output stream."""
    with suppress(OSError, ValueError):
        say(sentence)


class FileDirectory:
    """A folder of NAME.json files. A file's modification time tells whether its server is alive.

    All servers and clients of one machine see it, whatever their network namespaces.
    """

    def __init__(self, folder: Path, ttl_seconds: int = TTL_SECONDS) -> None:
        self._folder = folder
        self._ttl_seconds = ttl_seconds

    def publish(self, name: str, record: ServerRecord) -> None:
        """As in Directory; also removes expired records."""
        check_name(name)
        path = self._folder / (name + _SUFFIX)
        fresh = self._folder / f".{name}{_UNFINISHED}"
        try:
            self._folder.mkdir(mode=0o755, parents=True, exist_ok=True)
            with replacing(path, fresh):
                fresh.write_text(record.to_json() + "\n")
            for old in (*self._folder.glob("*" + _SUFFIX), *self._folder.glob(".*" + _UNFINISHED)):
                if self._has_expired(old) and _is_a_server_s(old):
                    old.unlink(missing_ok=True)
        except OSError as error:
            raise self._failure("be written", error) from error

    def withdraw(self, name: str) -> None:
        """As in Directory."""
        check_name(name)
        try:
            (self._folder / (name + _SUFFIX)).unlink(missing_ok=True)
        except OSError as error:
            raise self._failure("be written", error) from error

    def servers(self) -> Listing:
        """As in Directory. A folder that does not exist yet has no servers."""
        records: Listing = {}
        try:
            for path in sorted(self._folder.glob("[!.]*" + _SUFFIX)):
                with suppress(FileNotFoundError):  # removed meanwhile
                    if not self._has_expired(path):
                        name = path.name.removesuffix(_SUFFIX)
                        records[name] = read_record(str(self), name, path.read_bytes())
        except OSError as error:
            raise self._failure("be read", error) from error
        return dict(sorted(records.items()))

    def __str__(self) -> str:
        return f"file:{self._folder}"

    def _has_expired(self, path: Path) -> bool:
        """Return whether a record has expired. abs(): a clock set back must not keep it alive."""
        try:
            return abs(time.time() - path.stat().st_mtime) > self._ttl_seconds
        except FileNotFoundError:
            return True

    def _failure(self, action: str, error: OSError) -> DirectoryError:
        return DirectoryError(
            f"the directory {self} cannot {action}: {error.strerror or error}, check its path and "
            f"permissions"
        )


def _is_a_server_s(path: Path) -> bool:
    """Return whether publish() has written the file, completely or partly; other files in the
    folder are not touched.
    """
    if path.name.endswith(_UNFINISHED):
        return bool(_NAME.fullmatch(path.name.removeprefix(".").removesuffix(_UNFINISHED)))
    try:
        ServerRecord.from_json(path.read_bytes())
    except (RecordError, OSError):
        return False
    return True


def server_name(process_id: int) -> str:
    """Return MICA2's name for a server: host and process number."""
    host = re.sub(r"[^A-Za-z0-9._-]", "-", socket.gethostname()).lstrip("._-")
    return f"{host or 'localhost'}.{process_id}"


def host_of(name: str) -> str:
    """Return the host in a server's name, which stays the same when the server restarts."""
    return name.rpartition(".")[0] or name


def is_dead(name: str) -> bool:
    """Return whether that server was a process of this host and has ended."""
    process = name.rpartition(".")[2]
    is_ours = process.isdecimal() and name == server_name(int(process))
    return is_ours and start_ticks(int(process)) is None


def check_name(name: str) -> None:
    """Raise UsageError for a server name that is invalid as a file name or an etcd key."""
    if not _NAME.fullmatch(name):
        raise UsageError(f"{name!r} is not a server name: use up to 200 letters, digits, '.-_'")


def read_record(place: str, name: str, text: str | bytes) -> ServerRecord | RecordError:
    """Return the record of a listing, or a RecordError that names the server and its directory."""
    try:
        return ServerRecord.from_json(text)
    except RecordError as error:
        return RecordError(
            f"the record of server {name} in {place} is malformed ({error}): remove it"
        )


class _Wire(msgspec.Struct):
    """The members of the JSON; unknown members are ignored, as MICA2 does."""

    concurrent_read: bool
    concurrent_write: bool
    partitions: list[tuple[int, int]]
    endpoints: list[tuple[int, int, str, str, int]]


def _compact(value: object) -> str:
    return msgspec.json.encode(value).decode()


def _check_endpoint(mac: str, address: str, port: int) -> None:
    if not _MAC.fullmatch(mac):
        raise RecordError(f"{mac!r} is not a MAC address")
    try:
        IPv4Address(address)
    except AddressValueError as error:
        raise RecordError(f"{address!r} is not an IPv4 address") from error
    if not 0 <= port <= 0xFFFF:
        raise RecordError(f"{port} is not a UDP port")
