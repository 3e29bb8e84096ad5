# SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
"""A client on an ordinary UDP socket: no privilege, verbs as in pymemcache.

with Client(("10.0.0.1", 9800)) as client:
    client.set("hello", b"world")
    client.get("hello")

with Client.from_directory("etcd2://etcd.example:2379/mica") as client:
    client.increment("visitors")
"""

import errno
import secrets
import selectors
import socket
import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self, TypeVar

from dpukv_xdp import abi
from dpukv_xdp.codec import (
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
from dpukv_xdp.directory import REFRESH_SECONDS, ServerRecord
from dpukv_xdp.directory_watch import Watch
from dpukv_xdp.errors import (
    KeyValueError,
    NoResponseError,
    ProtocolError,
    RefusedError,
    ResultError,
    UsageError,
)

PACKETS_OUTSTANDING_MAX = abi.KV_PIPELINE_MAX
"""Datagrams on their way at once: well below KV_SLOTS, so that this client alone cannot fill a
queue pair.
"""

REJECTED_PAUSE_SECONDS = 0.01
"""Before a rejected request goes out again, to whom the directory then names."""

_RECEIVE_BYTES = 65535
_OPAQUE_MASK = 0xFFFFFFFF

Key = TypeVar("Key", bound=str | bytes)
Answer = TypeVar("Answer")
Address = tuple[str, int]
"""Host and UDP port."""


@dataclass(frozen=True, slots=True)
class _Server:
    """Where the keys of one server go."""

    owners: tuple[int, ...]
    """The engine of each partition."""
    endpoints: tuple[Address, ...]
    """The endpoint of each engine."""

    @classmethod
    def of(cls, record: ServerRecord) -> "_Server":
        """What a client on an ordinary socket makes of a record. It asks the owner even where any
        engine would answer: that is always right.
        """
        return cls(record.owners, tuple((address, port) for _, address, port in record.endpoints))

    def endpoint_of(self, key_hash: int) -> Address:
        """MICA2's partition is in the top 16 bits."""
        return self.endpoints[self.owners[(key_hash >> 48) % len(self.owners)]]


@dataclass(slots=True)
class _Packet:
    """A datagram whose answer is awaited."""

    endpoint: Address
    requests: dict[int, Request]
    """Those that have no reply yet, by opaque."""
    attempts_max: int
    sent: int = 0
    """How often it went out."""
    deadline: float = 0.0
    """When to send it again, in time.monotonic()'s seconds."""
    give_up_at: float = 0.0
    """Until then a rejection, or another endpoint, is worth another attempt."""
    rejected: dict[int, Request] = field(default_factory=dict)
    """Those that the endpoint does not serve, to be asked elsewhere or later."""
    is_held: bool = False
    """Rejected, and not yet sent again."""


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
        the host that it names.

        While in use it looks into the directory every `refresh` seconds, and at once when a server
        rejects a request or does not answer. It goes on with what it knows while the directory is
        out of reach or empty. When servers come or go, keys change their server. A request that is
        rejected, because its partition is on the move, goes out again for as long as `timeout` and
        `retries` allow. Use the client in the network namespace that it was made in.

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
        self._servers = servers
        self._timeout, self._retries, self._mtu = timeout, retries, mtu
        self._opaque = secrets.randbits(32)
        self._refused = False
        self._is_open = True
        self._selector = selectors.DefaultSelector()
        self._sockets: dict[Address, socket.socket] = {}
        self._watch = watch
        if watch is not None:
            self._adopted = watch.servers
            self._selector.register(watch.fd, selectors.EVENT_READ, None)

    def get(self, key: str | bytes, default: Any = None) -> Any:
        """The value of `key` as bytes, or `default` if the store has none."""
        return self.get_many([key]).get(key, default)

    def set(self, key: str | bytes, value: str | bytes) -> bool:
        """Store `value` under `key`; False if the store had no room for it."""
        return not self.set_many({key: value})

    def get_many(self, keys: Iterable[Key]) -> dict[Key, bytes]:
        """The values of those keys that the store has."""
        wanted = list(dict.fromkeys(keys))
        requests = [Request.get(_to_bytes(key)) for key in wanted]
        replies = self._exchange(requests)
        crowded = [
            index
            for index, reply in enumerate(replies)
            if reply.result == abi.Result.INSUFFICIENT_SPACE
        ]
        # The response packet was full: each such value gets one of its own.
        alone = self._exchange([requests[index] for index in crowded], batch_max=1)
        for index, reply in zip(crowded, alone, strict=True):
            replies[index] = reply
        found = {}
        for key, request, reply in zip(wanted, requests, replies, strict=True):
            if reply.result == abi.Result.SUCCESS:
                found[key] = reply.value
            elif reply.result != abi.Result.NOT_FOUND:
                raise self._result_error(request, reply)
        return found

    def set_many(self, items: Mapping[Key, str | bytes]) -> list[Key]:
        """Store all; returns the keys that the store had no room for."""
        requests = [Request.set(_to_bytes(key), _to_bytes(value)) for key, value in items.items()]
        failed = []
        for key, request, reply in zip(items, requests, self._exchange(requests), strict=True):
            if reply.result == abi.Result.INSUFFICIENT_SPACE:
                failed.append(key)
            elif reply.result != abi.Result.SUCCESS:
                raise self._result_error(request, reply)
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
        (reply,) = self._exchange([request])
        if reply.result == abi.Result.NOT_FOUND:
            return None
        if reply.result != abi.Result.SUCCESS or len(reply.value) != COUNTER_BYTES:
            raise self._result_error(request, reply)
        return int.from_bytes(reply.value, "little")

    def noop(self, key: str | bytes) -> None:
        """Have the server that `key` belongs to do nothing: shows that a GET of it would arrive."""
        self._ask(Request.noop(_to_bytes(key)), {abi.Result.SUCCESS: None})

    def ping(self, engine: int = 0) -> float:
        """Seconds that a probe of one engine takes there and back; whatever it answers shows that
        it lives. The engines of several servers are counted through, in the order of their names.
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
        (reply,) = self._exchange([request])
        if reply.result not in answers:
            raise self._result_error(request, reply)
        return answers[reply.result]

    def _exchange(
        self, requests: Sequence[Request], batch_max: int = abi.KV_BATCH_MAX
    ) -> list[Reply]:
        """The replies in the order of the requests, of which a packet takes at most `batch_max`."""
        for request in requests:
            check_item(request, self._mtu)
        self._check_open()
        self._follow()
        opaques = [self._next_opaque() for _ in requests]
        by_endpoint: dict[Address, dict[int, Request]] = {}
        for opaque, request in zip(opaques, requests, strict=True):
            by_endpoint.setdefault(self._endpoint_of(request), {})[opaque] = request
        queue = deque(
            _Packet(endpoint, part, self._retries + 1)
            for endpoint, mine in by_endpoint.items()
            for part in self._pack(mine, batch_max)
        )
        replies: dict[int, Reply] = {}
        self._run(queue, replies)
        return [replies[opaque] for opaque in opaques]

    def _check_open(self) -> None:
        if not self._is_open:
            raise UsageError("the client is closed: make a new one")

    def _endpoint_of(self, request: Request) -> Address:
        """Of several servers MICA2's clients choose by the bits below the partition's."""
        server = self._servers[(request.key_hash >> 32 & 0xFFFF) % len(self._servers)]
        return server.endpoint_of(request.key_hash)

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

    def _run(self, queue: deque[_Packet], replies: dict[int, Reply]) -> None:
        """Send all packets and collect every reply into `replies`, by opaque."""
        self._refused = False
        outstanding: list[_Packet] = []
        while queue or outstanding:
            while queue and len(outstanding) < PACKETS_OUTSTANDING_MAX:
                outstanding.append(queue.popleft())
                self._send(outstanding[-1])
            wait = min(packet.deadline for packet in outstanding) - time.monotonic()
            for key, _ in self._selector.select(max(wait, 0)):
                if key.data is not None:
                    self._receive(key.data, outstanding, replies)
                elif self._watch is not None:
                    self._watch.hear()
            outstanding = [packet for packet in outstanding if packet.requests or packet.rejected]
            now = time.monotonic()
            if self._watch is not None:
                outstanding = self._reroute(outstanding, queue, now)
            for packet in outstanding:
                if packet.deadline <= now and not packet.is_held:
                    self._send(packet)

    def _send(self, packet: _Packet) -> None:
        """Send what is unanswered in a packet; NoResponseError once the attempts are used up."""
        if packet.sent >= packet.attempts_max:
            failure = RefusedError if self._refused else NoResponseError
            raise failure(_name(packet.endpoint), self._timeout * packet.sent)
        batch = [
            Request(each.operation, each.key, each.value, opaque, each.key_hash)
            for opaque, each in packet.requests.items()
        ]
        if packet.sent and self._watch is not None:
            self._watch.ask()
        packet.sent += 1
        packet.deadline = time.monotonic() + self._timeout
        if not packet.give_up_at:
            packet.give_up_at = packet.deadline + self._timeout * self._retries
        try:
            self._socket(packet.endpoint).send(encode_batch(batch, self._mtu))
        except OSError as error:
            # One that an earlier packet earned: the retry repeats this one.
            if not self._is_icmp_report(error):
                raise UsageError(
                    f"cannot send to {_name(packet.endpoint)}: {error.strerror}, "
                    f"check address and route"
                ) from error

    def _receive(
        self, endpoint: Address, outstanding: list[_Packet], replies: dict[int, Reply]
    ) -> None:
        """Take one datagram. Duplicates, late answers and garbage find no request that waits for
        them, and are dropped here.
        """
        try:
            answer = decode_replies(
                self._sockets[endpoint].recv(_RECEIVE_BYTES, socket.MSG_DONTWAIT)
            )
        except ProtocolError:
            return
        except OSError as error:
            # EAGAIN: select() saw a datagram whose checksum proved wrong.
            if self._is_icmp_report(error) or error.errno == errno.EAGAIN:
                return
            raise
        self._refused = False
        for reply in answer:
            for packet in outstanding:
                request = packet.requests.get(reply.opaque)
                if request is None or packet.endpoint != endpoint or not _answers(reply, request):
                    continue
                if not self._is_worth_repeating(packet, request, reply):
                    replies[reply.opaque] = reply
                    del packet.requests[reply.opaque]
                elif not packet.is_held:  # else a duplicate of what made us hold it
                    packet.rejected[reply.opaque] = packet.requests.pop(reply.opaque)

    def _is_worth_repeating(self, packet: _Packet, request: Request, reply: Reply) -> bool:
        """Whether a request, which was not carried out, may find its owner yet."""
        return (
            self._watch is not None
            and reply.result == abi.Result.REJECTED
            and bool(request.key)
            and time.monotonic() < packet.give_up_at
        )

    def _is_icmp_report(self, error: OSError) -> bool:
        """Whether an error only says what became of an earlier packet; notes a refusal."""
        if error.errno == errno.ECONNREFUSED:
            self._refused = True
            if self._watch is not None:
                self._watch.ask()
        return error.errno in (errno.ECONNREFUSED, errno.EHOSTUNREACH)

    # ---- With a directory

    def _follow(self) -> None:
        """Go by what the directory says now; sockets to servers that have gone are closed."""
        if self._watch is None or not self._adopt():
            return
        wanted = {endpoint for server in self._servers for endpoint in server.endpoints}
        for endpoint in self._sockets.keys() - wanted:
            self._selector.unregister(self._sockets[endpoint])
            self._sockets.pop(endpoint).close()

    def _adopt(self) -> bool:
        """Whether the directory says something new."""
        assert self._watch is not None
        self._watch.use()
        records = self._watch.servers
        if records is self._adopted:
            return False
        self._adopted = records
        self._servers = tuple(_Server.of(record) for record in records)
        return True

    def _reroute(
        self, outstanding: list[_Packet], queue: deque[_Packet], now: float
    ) -> list[_Packet]:
        """Hold what was rejected; put in front of the queue what has been held for long enough, or
        has another endpoint now. What stays outstanding.
        """
        assert self._watch is not None
        for packet in list(outstanding):
            if packet.rejected:
                self._watch.ask()
                outstanding.append(_held(packet, now + REJECTED_PAUSE_SECONDS))
        has_changed = self._adopt()
        if has_changed:
            waiting = [part for packet in queue for part in self._split(packet, now)]
            queue.clear()
            queue.extend(waiting)
        staying = []
        for packet in outstanding:
            is_due = packet.is_held and (has_changed or packet.deadline <= now)
            if is_due or (has_changed and self._has_moved(packet)):
                queue.extendleft(self._split(packet, now))
            elif packet.requests:
                staying.append(packet)
        return staying

    def _has_moved(self, packet: _Packet) -> bool:
        return any(
            request.key and self._endpoint_of(request) != packet.endpoint
            for request in packet.requests.values()
        )

    def _split(self, packet: _Packet, now: float) -> Iterator[_Packet]:
        """A packet's requests by their endpoints of now, each with at least one attempt unless all
        time is used up. A probe goes where it was to go.
        """
        by_endpoint: dict[Address, dict[int, Request]] = {}
        for opaque, request in packet.requests.items():
            endpoint = self._endpoint_of(request) if request.key else packet.endpoint
            by_endpoint.setdefault(endpoint, {})[opaque] = request
        attempts_max = packet.attempts_max
        if now < packet.give_up_at:
            attempts_max = max(attempts_max, packet.sent + 1)
        for endpoint, part in by_endpoint.items():
            yield _Packet(endpoint, part, attempts_max, packet.sent, give_up_at=packet.give_up_at)

    # ---- Helpers

    def _socket(self, endpoint: Address) -> socket.socket:
        if endpoint not in self._sockets:
            self._sockets[endpoint] = _connect(*endpoint)
            self._selector.register(self._sockets[endpoint], selectors.EVENT_READ, endpoint)
        return self._sockets[endpoint]

    def _next_opaque(self) -> int:
        self._opaque = (self._opaque + 1) & _OPAQUE_MASK
        return self._opaque

    def _result_error(self, request: Request, reply: Reply) -> ResultError:
        result = f"KV_{reply.result.name}" if isinstance(reply.result, abi.Result) else reply.result
        return ResultError(
            _name(self._endpoint_of(request)), str(result), self._advice(request, reply)
        )

    def _advice(self, request: Request, reply: Reply) -> str:
        if reply.result == abi.Result.REJECTED:
            if self._watch is not None:
                return "the key's partition has been on the move for too long, try again later"
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
        deadline=until,
        give_up_at=packet.give_up_at,
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


def _to_bytes(content: str | bytes) -> bytes:
    if isinstance(content, str):
        try:
            return content.encode(errors="surrogateescape")
        except UnicodeEncodeError as error:
            raise KeyValueError(f"{content!r:.80} cannot be encoded: {error.reason}") from error
    if not isinstance(content, bytes | bytearray | memoryview):
        raise KeyValueError(f"keys and values are bytes or str: {content!r:.80} is neither")
    return bytes(content)
