# SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
"""A client on an ordinary UDP socket: no privilege, verbs as in pymemcache.

with Client(("10.0.0.1", 9800)) as client:
    client.set("hello", b"world")
    client.get("hello")

with Client.from_directory("etcd2://etcd.example:2379/mica") as client:
    client.increment("visitors")
"""

import errno
import itertools
import os
import random
import selectors
import socket
import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, NamedTuple, Self, TypeVar

from dpukv_xdp.base.errors import (
    KeyValueError,
    NoResponseError,
    ProtocolError,
    RefusedError,
    ResultError,
    UsageError,
)
from dpukv_xdp.discovery.directory import REFRESH_SECONDS, ServerRecord
from dpukv_xdp.discovery.watch import Watch
from dpukv_xdp.wire import abi
from dpukv_xdp.wire.codec import (
    BATCH_HEADER_BYTES,
    COUNTER_BYTES,
    ETHERNET_MTU,
    Reply,
    Request,
    check_item,
    decode_replies,
    encode_batch,
    item_bytes,
    payload_max,
)

PACKETS_OUTSTANDING_MAX = abi.KV_PIPELINE_MAX
"""Datagrams on their way at once: well below KV_SLOTS, so that this client alone cannot fill a
queue pair.
"""

REJECTED_PAUSE_SECONDS = 0.01
"""Before a rejected request goes out again, to whom the directory then names."""

_RECEIVE_BYTES = 65535
_OPAQUE_MASK = 0xFFFFFFFF
_READS = frozenset({abi.Operation.GET, abi.Operation.TEST, abi.Operation.NOOP_READ})
_MAY_PASS = frozenset(
    {
        errno.ECONNREFUSED,
        errno.EHOSTDOWN,
        errno.EHOSTUNREACH,
        errno.ENETDOWN,
        errno.ENETUNREACH,
        errno.ENOBUFS,
        errno.ENONET,
        errno.ENOPROTOOPT,
        errno.EOPNOTSUPP,
        errno.EPROTO,
    }
)
"""What ICMP errors become in a UDP socket, and what a network that is down for a moment does."""

Key = TypeVar("Key", bound=str | bytes)
Answer = TypeVar("Answer")
Address = tuple[str, int]
"""Host and UDP port."""


@dataclass(slots=True, eq=False)
class _Server:
    """Where the keys of one server go."""

    owners: tuple[int, ...]
    """The engine of each partition."""
    endpoints: tuple[Address, ...]
    """The endpoint of each engine."""
    concurrent_read: bool = False
    """Whether every endpoint answers reads."""
    readers: Iterator[Address] = field(init=False)
    """Endpoints for reads then, for ever: each as often as it owns partitions, which are dealt out
    by what the engines can do; in an order of this client's own.
    """

    def __post_init__(self) -> None:
        owning = [self.endpoints[engine] for engine in self.owners]
        self.readers = itertools.cycle(random.sample(owning, len(owning)))

    @classmethod
    def of(cls, record: ServerRecord) -> "_Server":
        """What a client on an ordinary socket makes of a record."""
        return cls(record.owners, record.addresses, record.concurrent_read)

    def owner_of(self, key_hash: int) -> Address:
        """MICA2's partition is in the top 16 bits."""
        return self.endpoints[self.owners[(key_hash >> 48) % len(self.owners)]]

    def lets_all_answer(self, request: Request) -> bool:
        """Only reads, also where all may write (CRCW): we repeat what stays unanswered, and a SET
        that is stuck at one engine could overwrite a newer one that went through another.
        """
        return self.concurrent_read and request.operation in _READS and bool(request.key)


@dataclass(slots=True)
class _Packet:
    """A datagram whose answer is awaited."""

    endpoint: Address
    requests: dict[int, Request]
    """Those that have no reply yet, by opaque."""
    attempts_max: int
    sent: int = 0
    """How often it went out."""
    first_sent_at: float = 0.0
    """In time.monotonic()'s seconds, as all times here."""
    deadline: float = 0.0
    """When to send it again."""
    rejected: dict[int, Request] = field(default_factory=dict)
    """Those that the endpoint does not serve, to be asked elsewhere or later."""
    is_held: bool = False
    """Rejected, and not yet sent again."""
    report: int = 0
    """The error number of what the network has said of the endpoint since it last answered."""


class _Answer(NamedTuple):
    """A reply, and who gave it."""

    reply: Reply
    endpoint: Address


class Client:
    """Talks to one server, or to all in a directory; not for use by several threads at once.

    Requests are repeated until they are answered, so each is carried out at least once: if only the
    reply was lost, `add` may report False for a key that it has itself added, `delete` False for
    one that it has deleted, and `increment` may count twice.
    """

    def __init__(
        self,
        server: tuple[str, int],
        *,
        timeout: float = 0.2,
        retries: int = 4,
        ports: int = 1,
        mtu: int = ETHERNET_MTU,
        owners: Sequence[int] | None = None,
    ) -> None:
        """`server` is the host and the UDP port of engine 0; engine i of `ports` listens i ports
        further. `owners` is the engine of each partition; by default each has one.

        An attempt that stays unanswered for `timeout` seconds is repeated up to `retries` times.
        UsageError for a host that has no IPv4 address, or an argument out of range.
        """
        host, port = server
        if not 1 <= ports <= abi.KV_ENGINES_MAX:
            raise UsageError(f"ports={ports} is out of range: use 1 to {abi.KV_ENGINES_MAX}")
        if not 0 < port <= 65536 - ports:
            raise UsageError(f"UDP port {port} is out of range: use 1 to {65536 - ports}")
        if owners is not None and not (owners and set(owners) <= set(range(ports))):
            raise UsageError(f"owners={list(owners)} are not engines: use 0 to {ports - 1}")
        endpoints = tuple((host, port + engine) for engine in range(ports))
        by_partition = tuple(range(ports)) if owners is None else tuple(owners)
        self._begin((_Server(by_partition, endpoints),), timeout, retries, mtu)
        try:
            for endpoint in endpoints:
                self._socket(endpoint)
        except BaseException:
            self.close()
            raise

    @classmethod
    def from_directory(
        cls,
        url: str,
        *,
        server: str | None = None,
        timeout: float = 0.2,
        retries: int = 4,
        refresh: float = REFRESH_SECONDS,
        mtu: int = ETHERNET_MTU,
    ) -> Self:
        """A client of all servers in the directory at `url` (see directory.py), among which each
        key has its own, as with MICA2's clients; or of the one that `server` names, or of all on
        the host that it names. Reads go to any engine of a server that lets all read, writes to the
        owner always.

        While in use it looks into the directory every `refresh` seconds, and at once when a server
        rejects a request or does not answer. It goes on with what it knows while the directory is
        out of reach or empty. When servers come or go, keys change their server; one that is not
        listed any more keeps its keys for TTL_SECONDS, unless another has come in its place. A
        request that is rejected, because its partition is on the move, goes out again for as long
        as `timeout` and `retries` allow. Use the client in the network namespace that it was made
        in.

        DirectoryError if the directory cannot be read, or lists no such server; UsageError for an
        argument out of range.
        """
        _check_patience(timeout, retries)
        if refresh <= 0:
            raise UsageError(f"refresh={refresh:g} is out of range: use more than 0 seconds")
        client = cls.__new__(cls)
        watch = Watch(url, server, refresh)
        servers = tuple(_Server.of(record) for record in watch.servers)
        client._begin(servers, timeout, retries, mtu, watch)
        return client

    def _begin(
        self,
        servers: tuple[_Server, ...],
        timeout: float,
        retries: int,
        mtu: int,
        watch: Watch | None = None,
    ) -> None:
        _check_patience(timeout, retries)
        self._serve_by(servers)
        self._timeout, self._retries, self._mtu = timeout, retries, mtu
        self._opaque = int.from_bytes(os.urandom(4))
        self._is_open = True
        self._selector = selectors.DefaultSelector()
        self._sockets: dict[Address, socket.socket] = {}
        self._watch = watch
        if watch is not None:
            self._adopted = watch.servers
            self._selector.register(watch.fd, selectors.EVENT_READ, None)

    def get(self, key: str | bytes, default: Any = None) -> Any:
        """The value of `key` as bytes, or `default` if the store has none."""
        return self.get_many([_hashable(key)]).get(_hashable(key), default)

    def set(self, key: str | bytes, value: str | bytes) -> bool:
        """Store `value` under `key`; False if the store had no room for it."""
        return not self.set_many({_hashable(key): value})

    def get_many(self, keys: Iterable[Key]) -> dict[Key, bytes]:
        """The values of those keys that the store has."""
        wanted = list(dict.fromkeys(_hashable(key) for key in keys))
        requests = [Request.get(_to_bytes(key)) for key in wanted]
        answers = self._exchange(requests)
        crowded = [
            index
            for index, answer in enumerate(answers)
            if answer.reply.result == abi.Result.INSUFFICIENT_SPACE
        ]
        # The response packet was full: each such value gets one of its own.
        alone = self._exchange([requests[index] for index in crowded], batch_max=1)
        for index, answer in zip(crowded, alone, strict=True):
            answers[index] = answer
        found = {}
        for key, request, answer in zip(wanted, requests, answers, strict=True):
            if answer.reply.result == abi.Result.SUCCESS:
                found[key] = answer.reply.value
            elif answer.reply.result != abi.Result.NOT_FOUND:
                raise self._result_error(request, answer)
        return found

    def set_many(self, items: Mapping[Key, str | bytes]) -> list[Key]:
        """Store all; returns the keys that the store had no room for."""
        requests = [Request.set(_to_bytes(key), _to_bytes(value)) for key, value in items.items()]
        failed = []
        for key, request, answer in zip(items, requests, self._exchange(requests), strict=True):
            if answer.reply.result == abi.Result.INSUFFICIENT_SPACE:
                failed.append(key)
            elif answer.reply.result != abi.Result.SUCCESS:
                raise self._result_error(request, answer)
        return failed

    def add(self, key: str | bytes, value: str | bytes) -> bool:
        """Store `value` under `key`; False if the key was there: nothing has changed then."""
        request = Request.add(_to_bytes(key), _to_bytes(value))
        return self._ask(request, {abi.Result.SUCCESS: True, abi.Result.EXISTS: False})

    def test(self, key: str | bytes) -> bool:
        """Whether the store has `key`."""
        request = Request.test(_to_bytes(key))
        return self._ask(request, {abi.Result.SUCCESS: True, abi.Result.NOT_FOUND: False})

    def delete(self, key: str | bytes) -> bool:
        """Remove `key`; False if the store had none."""
        request = Request.delete(_to_bytes(key))
        return self._ask(request, {abi.Result.SUCCESS: True, abi.Result.NOT_FOUND: False})

    def increment(self, key: str | bytes, by: int = 1) -> int | None:
        """What the counter under `key` is after adding `by`, modulo 2^64; None if the store has no
        such key.

        A counter is a value of 8 bytes, little endian. ResultError if the value under `key` is
        none, UsageError unless `by` is 0 to 2^64 - 1.
        """
        request = Request.increment(_to_bytes(key), by)
        (answer,) = self._exchange([request])
        reply = answer.reply
        if reply.result == abi.Result.NOT_FOUND:
            return None
        if reply.result != abi.Result.SUCCESS or len(reply.value) != COUNTER_BYTES:
            raise self._result_error(request, answer)
        return int.from_bytes(reply.value, "little")

    def noop(self, key: str | bytes) -> None:
        """Have a server that may read `key` do nothing: shows that a GET of it would arrive."""
        self._ask(Request.noop(_to_bytes(key)), {abi.Result.SUCCESS: None})

    def ping(self, engine: int = 0) -> float:
        """Seconds that a probe of one engine takes there and back; whatever it answers shows that
        it lives. The engines of several servers are counted through, by host and then address.
        """
        self._check_open()
        self._follow()
        endpoints = [endpoint for server in self._servers for endpoint in server.endpoints]
        if not 0 <= engine < len(endpoints):
            raise UsageError(f"engine {engine} is out of range: use 0 to {len(endpoints) - 1}")
        probe = {self._next_opaque(): Request.probe()}
        packet = _Packet(endpoints[engine], probe, self._retries + 1)
        start = time.monotonic()
        self._run(deque([packet]), {})
        return time.monotonic() - start

    def close(self) -> None:
        """Close the sockets; harmless when repeated."""
        self._is_open = False
        self._selector.close()
        for each in self._sockets.values():
            each.close()
        self._sockets = {}
        if self._watch is not None:
            self._watch.close()
            self._watch = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _ask(self, request: Request, answers: Mapping[int, Answer]) -> Answer:
        """What the result of a single request means; ResultError if it means nothing."""
        (answer,) = self._exchange([request])
        if answer.reply.result not in answers:
            raise self._result_error(request, answer)
        return answers[answer.reply.result]

    def _exchange(
        self, requests: Sequence[Request], batch_max: int = abi.KV_BATCH_MAX
    ) -> list[_Answer]:
        """The answers in the order of the requests, of which a packet takes at most `batch_max`."""
        for request in requests:
            check_item(request, self._mtu)
        self._check_open()
        self._follow()
        by_opaque = {self._next_opaque(): request for request in requests}
        queue = deque(
            _Packet(endpoint, part, self._retries + 1)
            for endpoint, part in self._route(by_opaque, batch_max)
        )
        answers: dict[int, _Answer] = {}
        self._run(queue, answers)
        return [answers[opaque] for opaque in by_opaque]

    def _check_open(self) -> None:
        if not self._is_open:
            raise UsageError("the client is closed: make a new one")

    def _route(
        self, requests: dict[int, Request], batch_max: int = abi.KV_BATCH_MAX
    ) -> Iterator[tuple[Address, dict[int, Request]]]:
        """Datagrams, and where they go: to the keys' owners, or each to the next who may read."""
        owned: dict[Address, dict[int, Request]] = {}
        shared: dict[_Server, dict[int, Request]] = {}
        for opaque, request in requests.items():
            server = self._server_of(request)
            if server.lets_all_answer(request):
                shared.setdefault(server, {})[opaque] = request
            else:
                owned.setdefault(server.owner_of(request.key_hash), {})[opaque] = request
        for endpoint, mine in owned.items():
            for part in self._pack(mine, batch_max):
                yield endpoint, part
        for server, reads in shared.items():
            for part in self._pack(reads, batch_max):
                yield next(server.readers), part

    def _server_of(self, request: Request) -> _Server:
        """Of several servers MICA2's clients choose by the bits below the partition's."""
        return self._servers[(request.key_hash >> 32 & 0xFFFF) % len(self._servers)]

    def _pack(self, requests: dict[int, Request], batch_max: int) -> Iterator[dict[int, Request]]:
        """Cut into datagrams that hold as much as count and MTU allow.

        How long the values of GETs are is unknown, so a response may turn out too long: the server
        then says which values it left out.
        """
        part: dict[int, Request] = {}
        part_bytes = BATCH_HEADER_BYTES
        for opaque, request in requests.items():
            request_bytes = item_bytes(len(request.key), len(request.value))
            full = part_bytes + request_bytes > payload_max(self._mtu)
            if part and (full or len(part) == batch_max):
                yield part
                part, part_bytes = {}, BATCH_HEADER_BYTES
            part[opaque] = request
            part_bytes += request_bytes
        if part:
            yield part

    def _run(self, queue: deque[_Packet], answers: dict[int, _Answer]) -> None:
        """Send all packets and collect every reply into `answers`, by opaque."""
        outstanding: list[_Packet] = []
        while queue or outstanding:
            while queue and len(outstanding) < PACKETS_OUTSTANDING_MAX:
                outstanding.append(queue.popleft())
                self._send(outstanding[-1])
            wait = min(packet.deadline for packet in outstanding) - time.monotonic()
            for key, _ in self._selector.select(max(wait, 0)):
                if key.data is not None:
                    self._receive(key.data, outstanding, answers)
                elif self._watch is not None:
                    self._watch.hear()
            outstanding = self._reroute(outstanding, queue)

    def _send(self, packet: _Packet) -> None:
        """Send what is unanswered in a packet; NoResponseError once the attempts are used up."""
        now = time.monotonic()
        if packet.sent >= packet.attempts_max:
            raise self._no_response(packet, now - packet.first_sent_at)
        batch = [
            Request(each.operation, each.key, each.value, opaque, each.key_hash)
            for opaque, each in packet.requests.items()
        ]
        if packet.sent == 0:
            packet.first_sent_at = now
        elif self._watch is not None:
            self._watch.ask()
        packet.sent += 1
        packet.deadline = now + self._timeout
        try:
            self._socket(packet.endpoint).send(encode_batch(batch, self._mtu))
        except OSError as error:  # maybe one that an earlier packet earned
            self._note_report(packet.endpoint, error, [packet])

    def _receive(
        self, endpoint: Address, outstanding: list[_Packet], answers: dict[int, _Answer]
    ) -> None:
        """Take one datagram. Duplicates, late answers and garbage find no request that waits for
        them, and are dropped here.
        """
        concerned = [packet for packet in outstanding if packet.endpoint == endpoint]
        try:
            replies = decode_replies(
                self._sockets[endpoint].recv(_RECEIVE_BYTES, socket.MSG_DONTWAIT)
            )
        except (ProtocolError, BlockingIOError):  # the latter: a datagram whose checksum is wrong
            return
        except OSError as error:
            self._note_report(endpoint, error, concerned)
            return
        for packet in concerned:
            packet.report = 0
            for reply in replies:
                request = packet.requests.get(reply.opaque)
                if request is None or not _answers(reply, request):
                    continue
                if not self._is_worth_repeating(packet, request, reply):
                    answers[reply.opaque] = _Answer(reply, endpoint)
                    del packet.requests[reply.opaque]
                elif not packet.is_held:  # else a duplicate of what made us hold it
                    packet.rejected[reply.opaque] = packet.requests.pop(reply.opaque)

    def _is_worth_repeating(self, packet: _Packet, request: Request, reply: Reply) -> bool:
        """Whether a request, which was not carried out, may find its owner yet."""
        return (
            self._watch is not None
            and reply.result == abi.Result.REJECTED
            and bool(request.key)
            and self._has_time(packet, time.monotonic())
        )

    def _has_time(self, packet: _Packet, now: float) -> bool:
        """Whether a rejection, or another endpoint, is worth another attempt."""
        return now < packet.first_sent_at + self._timeout * (1 + self._retries)

    def _note_report(self, endpoint: Address, error: OSError, concerned: Sequence[_Packet]) -> None:
        """An error that the time-out may outlast: the next attempt repeats what was lost. Others
        are UsageErrors.
        """
        if error.errno not in _MAY_PASS:
            raise UsageError(
                f"cannot talk to {_name(endpoint)}: {error.strerror}, check address, route and MTU"
            ) from error
        for packet in concerned:
            packet.report = error.errno
        if self._watch is not None:
            self._watch.ask()

    def _reroute(self, outstanding: list[_Packet], queue: deque[_Packet]) -> list[_Packet]:
        """Hold what was rejected; put in front of the queue what has waited for long enough, or
        waits in vain by what the directory says now. What stays outstanding: whatever else is under
        way may have been carried out already, and would be once more.
        """
        now = time.monotonic()
        for packet in list(outstanding):
            if packet.rejected:
                outstanding.append(_held(packet, now + REJECTED_PAUSE_SECONDS))
                if self._watch is not None:
                    self._watch.ask()
        has_changed = self._adopt()
        if has_changed:
            waiting = [part for packet in queue for part in self._split(packet, now)]
            queue.clear()
            queue.extend(waiting)
        due: list[_Packet] = []
        staying = []
        for packet in outstanding:
            is_in_vain = packet.is_held or packet.endpoint not in self._endpoints
            if packet.deadline <= now or (has_changed and is_in_vain):
                due += self._split(packet, now)
            elif packet.requests:
                staying.append(packet)
        queue.extendleft(reversed(due))
        return staying

    def _split(self, packet: _Packet, now: float) -> Iterator[_Packet]:
        """A packet's requests by their endpoints of now, each with at least one attempt unless all
        time is used up. A probe goes where it was to go.
        """
        parts: Iterable[tuple[Address, dict[int, Request]]] = self._route(packet.requests)
        if any(not request.key for request in packet.requests.values()):
            parts = [(packet.endpoint, packet.requests)]
        attempts_max = packet.attempts_max
        if self._has_time(packet, now):
            attempts_max = max(attempts_max, packet.sent + 1)
        for endpoint, requests in parts:
            report = packet.report if endpoint == packet.endpoint else 0
            yield _Packet(
                endpoint, requests, attempts_max, packet.sent, packet.first_sent_at, report=report
            )

    # ---- With a directory

    def _follow(self) -> None:
        """Go by what the directory says now; sockets to servers that have gone are closed."""
        self._adopt()
        for endpoint in self._sockets.keys() - self._endpoints:
            self._selector.unregister(self._sockets[endpoint])
            self._sockets.pop(endpoint).close()

    def _adopt(self) -> bool:
        """Whether the directory, if there is one, says something new."""
        if self._watch is None:
            return False
        self._watch.use()
        records = self._watch.servers
        if records is self._adopted:
            return False
        self._adopted = records
        self._serve_by(tuple(_Server.of(record) for record in records))
        return True

    def _serve_by(self, servers: tuple[_Server, ...]) -> None:
        self._servers = servers
        self._endpoints = {endpoint for server in servers for endpoint in server.endpoints}

    # ---- Helpers

    def _socket(self, endpoint: Address) -> socket.socket:
        if endpoint not in self._sockets:
            self._sockets[endpoint] = _connect(*endpoint)
            self._selector.register(self._sockets[endpoint], selectors.EVENT_READ, endpoint)
        return self._sockets[endpoint]

    def _next_opaque(self) -> int:
        self._opaque = (self._opaque + 1) & _OPAQUE_MASK
        return self._opaque

    def _no_response(self, packet: _Packet, waited_seconds: float) -> NoResponseError:
        is_refused = packet.report == errno.ECONNREFUSED
        said = ""
        if packet.report and not is_refused:
            said = f"; the network says: {os.strerror(packet.report)}"
        failure = RefusedError if is_refused else NoResponseError
        return failure(_name(packet.endpoint), waited_seconds, said + self._doubt())

    def _doubt(self) -> str:
        """What keeps us from knowing all servers, to be appended to what went wrong."""
        failure = None if self._watch is None else self._watch.failure
        return "" if failure is None else f"; {failure}"

    def _result_error(self, request: Request, answer: _Answer) -> ResultError:
        reply, endpoint = answer
        result = f"KV_{reply.result.name}" if isinstance(reply.result, abi.Result) else reply.result
        return ResultError(_name(endpoint), str(result), self._advice(request, reply))

    def _advice(self, request: Request, reply: Reply) -> str:
        if reply.result == abi.Result.REJECTED:
            if self._watch is not None:
                return (
                    "the key's partition has been on the move for too long, try again later"
                    + self._doubt()
                )
            ports = sum(len(server.endpoints) for server in self._servers)
            return f"it does not own the key's partition, is ports={ports} right?"
        if reply.result == abi.Result.NOT_SUPPORTED:
            return "this server does not know the operation"
        if reply.result == abi.Result.INSUFFICIENT_SPACE:
            if request.operation == abi.Operation.GET:
                return "the value does not fit into a response packet"
            return "the store has no room for the item"
        if request.operation == abi.Operation.INCREMENT:
            return f"the key's value is no counter of {COUNTER_BYTES} bytes"
        return "the request breaks a limit of this server"


def _held(packet: _Packet, until: float) -> _Packet:
    """Takes the rejected requests out of a packet. An attempt that was answered is not one lost."""
    rejected, packet.rejected = packet.rejected, {}
    return _Packet(
        packet.endpoint,
        rejected,
        packet.attempts_max + 1,
        packet.sent,
        packet.first_sent_at,
        deadline=until,
        is_held=True,
    )


def _check_patience(timeout: float, retries: int) -> None:
    if timeout <= 0 or retries < 0:
        raise UsageError("timeout must be above 0 seconds and retries at least 0")


def _name(endpoint: Address) -> str:
    host, port = endpoint
    return f"{host}:{port}"


def _connect(host: str, port: int) -> socket.socket:
    """A socket that talks to this address only: the kernel drops what others send, and reports ICMP
    errors.
    """
    if port == 0:
        raise UsageError(f"no UDP socket can talk to {host}, port 0: give the server another port")
    connected = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    try:
        connected.connect((host, port))
    except (OSError, TypeError, UnicodeError) as error:  # the last two: no name at all
        connected.close()
        reason = error.strerror if isinstance(error, OSError) else error
        raise UsageError(
            f"cannot reach {host}:{port}: {reason}, give an IPv4 address or a name that has one"
        ) from error
    return connected


def _answers(reply: Reply, request: Request) -> bool:
    return reply.operation == request.operation and reply.key_hash == request.key_hash


def _hashable(key: Key) -> Key:
    """A key that a dict takes: a bytearray or memoryview as bytes."""
    return bytes(key) if isinstance(key, bytearray | memoryview) else key


def _to_bytes(content: str | bytes) -> bytes:
    if isinstance(content, str):
        try:
            return content.encode(errors="surrogateescape")
        except UnicodeEncodeError as error:
            raise KeyValueError(f"{content!r:.80} cannot be encoded: {error.reason}") from error
    if not isinstance(content, bytes | bytearray | memoryview):
        raise KeyValueError(f"keys and values are bytes or str: {content!r:.80} is neither")
    return bytes(content)
