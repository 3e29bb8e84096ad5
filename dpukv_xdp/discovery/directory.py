# SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
"""The directory: where servers say who they are, and clients look it up.

A server's record is MICA2's JSON, to the byte. It lies in a place that a URL names:

    file:/run/dpukv/directory    files of this machine, NAME.json each
    etcd2://host:2379/mica       etcd's version 2, which public MICA2 reads: /mica/servers/NAME
    etcd3://host:2379/mica       etcd's version 3: the same keys under a lease

Whoever publishes repeats it every REFRESH_SECONDS; what nobody repeats is gone after TTL_SECONDS.
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
"""How long a record outlives its server. A client of MICA2 crashes over a record that goes between
its two looks, so this is many REFRESH_SECONDS.
"""
REFRESH_SECONDS = 1.0
ENDPOINTS_MAX = 32
"""Endpoints of a server: as many as MICA2's clients have room for, unchecked."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,199}")
_MAC = re.compile(r"[0-9A-Fa-f]{2}(:[0-9A-Fa-f]{2}){5}")
_SUFFIX = ".json"
_UNFINISHED = ".new"  # the end of a file's name while it is written

Endpoint = tuple[str, str, int]
"""MAC with colons, dotted IPv4 address, UDP port."""


@dataclass(frozen=True, slots=True)
class ServerRecord:
    """What clients need to know of a server. RecordError for what none of them could use."""

    concurrent_read: bool
    """Whether any engine answers a GET or TEST (CREW, CRCW), not only the partition's owner."""
    concurrent_write: bool
    """The same of everything else (CRCW)."""
    owners: tuple[int, ...]
    """The engine of each partition; of one that is being moved, the engine that will have it."""
    endpoints: tuple[Endpoint, ...]
    """Where each engine listens."""

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
        """IPv4 address and UDP port of each engine."""
        return tuple((address, port) for _, address, port in self.endpoints)

    def to_json(self) -> str:
        """One line as MICA2's servers write it: engine e is endpoint e on lcore e."""
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
        """The record in a line of JSON, also of a server that numbers its lcores in another way:
        the first endpoint of an lcore takes what the lcore owns. RecordError says what is wrong.
        """
        try:
            wire = msgspec.json.decode(text, type=_Wire)
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            raise RecordError(str(error)) from error
        for members, name in ((wire.partitions, "partition"), (wire.endpoints, "endpoint")):
            for index, member in enumerate(members):
                if member[0] != index:
                    raise RecordError(f"{name} {member[0]} stands where {index} belongs")
        lcores = [lcore for _, lcore, *_ in wire.endpoints]
        try:
            owners = tuple(lcores.index(lcore) for _, lcore in wire.partitions)
        except ValueError:
            lost = next(lcore for _, lcore in wire.partitions if lcore not in lcores)
            raise RecordError(f"no endpoint belongs to owner {lost}") from None
        endpoints = tuple((mac, ip, port) for _, _, mac, ip, port in wire.endpoints)
        return cls(wire.concurrent_read, wire.concurrent_write, owners, endpoints)


class Directory(Protocol):
    """A place for records. Every method raises DirectoryError if the place cannot be reached."""

    def publish(self, name: str, record: ServerRecord) -> None:
        """Put a record there, or repeat it before it expires; readers see it whole."""

    def withdraw(self, name: str) -> None:
        """Take a record away; harmless if there is none."""

    def servers(self) -> "Listing":
        """All that have not expired, sorted by name."""


Listing = dict[str, ServerRecord | RecordError]
"""Names of servers with their records, or with what is wrong with those: one that is malformed
takes nothing from the others.
"""


def usable(listing: Listing) -> dict[str, ServerRecord]:
    """The records that are not malformed."""
    return {name: each for name, each in listing.items() if isinstance(each, ServerRecord)}


def malformed(listing: Listing) -> list[RecordError]:
    """What is wrong with the others."""
    return [each for each in listing.values() if isinstance(each, RecordError)]


class Publisher:
    """Keeps one record in a directory as long as its block lasts, by a thread of its own."""

    def __init__(
        self,
        directory: Directory,
        name: str,
        record: ServerRecord,
        say: Callable[[str], None],
        refresh_seconds: float = REFRESH_SECONDS,
    ) -> None:
        """`say` gets a sentence, from that thread, when the place is lost and when it is back."""
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
        """Publish another record at once; does not wait for it."""
        self._record = record
        self._wake.set()

    def __enter__(self) -> Self:
        """Published on return, or DirectoryError if the place cannot be reached."""
        self._supersede()
        try:
            self._directory.publish(self.name, self._record)
            self._thread.start()
        except BaseException:  # an interrupt too: it may be listed already
            self._withdraw()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._withdraw()

    def _withdraw(self) -> None:
        self._is_stopping = True
        self._wake.set()
        if self._thread.ident is not None:  # else it was never started
            self._thread.join()
        try:
            self._directory.withdraw(self.name)
        except DirectoryError as failure:
            tell(self._say, f"{failure}; the record of this server goes within {TTL_SECONDS} s")

    def _supersede(self) -> None:
        """Remove what killed servers of this host have left, wherever they were: clients would send
        them a share of their keys until it expires. What other hosts have left does expire.
        """
        for name, found in self._directory.servers().items():
            if name == self.name:
                continue
            if is_dead(name):
                self._directory.withdraw(name)
            elif isinstance(found, RecordError):
                tell(self._say, f"{found}; until then clients do without that server")

    def _run(self) -> None:
        pthread_sigmask(SIG_BLOCK, valid_signals())  # the main thread waits for them
        while True:
            self._wake.wait(self._refresh_seconds)
            self._wake.clear()
            if self._is_stopping:
                return
            try:
                self._directory.publish(self.name, self._record)
            except Exception as failure:  # noqa: BLE001 whatever it is, the record must not expire
                self._lose(failure)
                continue
            if self._is_lost:
                tell(self._say, "the directory is back, and this server in it")
            self._is_lost = False

    def _lose(self, failure: Exception) -> None:
        reason = str(failure)
        if not isinstance(failure, DirectoryError):
            reason = f"cannot publish in {self._directory}: {failure!r}"
        if not self._is_lost:
            tell(self._say, f"{reason}; clients keep what they know, and we keep trying")
        self._is_lost = True


def tell(say: Callable[[str], None], sentence: str) -> None:
    """Say it, unless nobody listens any more: who has more to do than to talk goes on."""
    with suppress(OSError, ValueError):
        say(sentence)


class FileDirectory:
    """A folder of NAME.json files. The time of a file's last change says whether its server lives.

    One machine's servers and clients see it, whatever their network namespaces.
    """

    def __init__(self, folder: Path, ttl_seconds: int = TTL_SECONDS) -> None:
        self._folder = folder
        self._ttl_seconds = ttl_seconds

    def publish(self, name: str, record: ServerRecord) -> None:
        """As in Directory; removes what expired."""
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
        """As in Directory. A folder that is not there yet has no servers."""
        records: Listing = {}
        try:
            for path in sorted(self._folder.glob("[!.]*" + _SUFFIX)):
                with suppress(FileNotFoundError):  # gone since
                    if not self._has_expired(path):
                        name = path.name.removesuffix(_SUFFIX)
                        records[name] = read_record(str(self), name, path.read_bytes())
        except OSError as error:
            raise self._failure("be read", error) from error
        return dict(sorted(records.items()))

    def __str__(self) -> str:
        return f"file:{self._folder}"

    def _has_expired(self, path: Path) -> bool:
        """A clock that was set back must not let the dead live on, hence abs()."""
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
    """Whether a file is one that publish() has written, or left half written: all others in the
    folder are somebody else's.
    """
    if path.name.endswith(_UNFINISHED):
        return bool(_NAME.fullmatch(path.name.removeprefix(".").removesuffix(_UNFINISHED)))
    try:
        ServerRecord.from_json(path.read_bytes())
    except (RecordError, OSError):
        return False
    return True


def server_name(process_id: int) -> str:
    """What MICA2 calls a server: its host and process."""
    host = re.sub(r"[^A-Za-z0-9._-]", "-", socket.gethostname()).lstrip("._-")
    return f"{host or 'localhost'}.{process_id}"


def host_of(name: str) -> str:
    """The part of a server's name that outlives the server."""
    return name.rpartition(".")[0] or name


def is_dead(name: str) -> bool:
    """Whether that server was a process of this host, which has ended."""
    process = name.rpartition(".")[2]
    is_ours = process.isdecimal() and name == server_name(int(process))
    return is_ours and start_ticks(int(process)) is None


def check_name(name: str) -> None:
    """UsageError for a server name that no file and no key of etcd can have."""
    if not _NAME.fullmatch(name):
        raise UsageError(f"{name!r} is no server name: use up to 200 letters, digits, '.-_'")


def read_record(place: str, name: str, text: str | bytes) -> ServerRecord | RecordError:
    """from_json() for listings: an error that names the culprit instead of a record."""
    try:
        return ServerRecord.from_json(text)
    except RecordError as error:
        return RecordError(
            f"the record of server {name} in {place} is malformed ({error}): have it removed"
        )


class _Wire(msgspec.Struct):
    """The JSON's shape; members that we do not know are left alone, as MICA2 does."""

    concurrent_read: bool
    concurrent_write: bool
    partitions: list[tuple[int, int]]
    endpoints: list[tuple[int, int, str, str, int]]


def _compact(value: object) -> str:
    return msgspec.json.encode(value).decode()


def _check_endpoint(mac: str, address: str, port: int) -> None:
    if not _MAC.fullmatch(mac):
        raise RecordError(f"{mac!r} is no MAC address")
    try:
        IPv4Address(address)
    except AddressValueError as error:
        raise RecordError(f"{address!r} is no IPv4 address") from error
    if not 0 <= port <= 0xFFFF:
        raise RecordError(f"{port} is no UDP port")
