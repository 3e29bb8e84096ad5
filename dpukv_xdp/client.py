# SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
"""A client on an ordinary UDP socket: no privilege, verbs as in pymemcache.

with Client(("10.0.0.1", 9800)) as client:
    client.set("hello", b"world")
    client.get("hello")
"""

import errno
import secrets
import selectors
import socket
import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self, TypeVar

from dpukv_xdp import abi
from dpukv_xdp.codec import (
    BATCH_HEADER_BYTES,
    ETHERNET_MTU,
    Reply,
    Request,
    check_item,
    decode_replies,
    encode_batch,
    item_bytes,
    payload_max,
)
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

_RECEIVE_BYTES = 65535
_OPAQUE_MASK = 0xFFFFFFFF

Key = TypeVar("Key", bound=str | bytes)


@dataclass(slots=True)
class _Packet:
    """A datagram whose answer is awaited."""

    engine: int
    requests: dict[int, Request]
    """Those that have no reply yet, by opaque."""
    sent: int = 0
    """How often it went out."""
    deadline: float = 0.0
    """When to send it again, in time.monotonic()'s seconds."""


class Client:
    """Talks to one server; not for use by several threads at once."""

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
        if timeout <= 0 or retries < 0:
            raise UsageError("timeout must be above 0 seconds and retries at least 0")
        if owners is not None and not (owners and set(owners) <= set(range(ports))):
            raise UsageError(f"owners={list(owners)} are not engines: use 0 to {ports - 1}")
        self._owners = tuple(range(ports)) if owners is None else tuple(owners)
        self._host, self._port, self._mtu = host, port, mtu
        self._timeout, self._retries = timeout, retries
        self._opaque = secrets.randbits(32)
        self._refused = False
        self._selector = selectors.DefaultSelector()
        self._sockets: list[socket.socket] = []
        try:
            for engine in range(ports):
                self._sockets.append(_connect(host, port + engine))
                self._selector.register(self._sockets[-1], selectors.EVENT_READ, engine)
        except BaseException:
            self.close()
            raise

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

    def ping(self, engine: int = 0) -> float:
        """Seconds that a probe of one engine takes there and back; whatever it answers shows that
        it lives.
        """
        self._check_open()
        if not 0 <= engine < len(self._sockets):
            raise UsageError(f"engine {engine} is out of range: use 0 to {len(self._sockets) - 1}")
        packet = _Packet(engine, {self._next_opaque(): Request.probe()})
        start = time.monotonic()
        self._run(deque([packet]), {})
        return time.monotonic() - start

    def close(self) -> None:
        """Close the sockets; harmless when repeated."""
        self._selector.close()
        for each in self._sockets:
            each.close()
        self._sockets = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _exchange(
        self, requests: Sequence[Request], batch_max: int = abi.KV_BATCH_MAX
    ) -> list[Reply]:
        """The replies in the order of the requests, of which a packet takes at most `batch_max`."""
        for request in requests:
            check_item(request, self._mtu)
        self._check_open()
        opaques = [self._next_opaque() for _ in requests]
        queue: deque[_Packet] = deque()
        for engine in range(len(self._sockets)):
            mine = {
                opaque: request
                for opaque, request in zip(opaques, requests, strict=True)
                if self._engine_of(request) == engine
            }
            queue.extend(_Packet(engine, part) for part in self._pack(mine, batch_max))
        replies: dict[int, Reply] = {}
        self._run(queue, replies)
        return [replies[opaque] for opaque in opaques]

    def _check_open(self) -> None:
        if not self._sockets:
            raise UsageError("the client is closed: make a new one")

    def _engine_of(self, request: Request) -> int:
        """MICA2's partition, and with one partition for each engine the engine too: from the hash's
        top 16 bits.
        """
        return self._owners[(request.key_hash >> 48) % len(self._owners)]

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
                self._receive(int(key.data), outstanding, replies)
            outstanding = [packet for packet in outstanding if packet.requests]
            now = time.monotonic()
            for packet in outstanding:
                if packet.deadline <= now:
                    self._send(packet)

    def _send(self, packet: _Packet) -> None:
        """Send what is unanswered in a packet; NoResponseError once the attempts are used up."""
        if packet.sent > self._retries:
            failure = RefusedError if self._refused else NoResponseError
            raise failure(self._endpoint(packet.engine), self._timeout * packet.sent)
        batch = [
            Request(each.operation, each.key, each.value, opaque, each.key_hash)
            for opaque, each in packet.requests.items()
        ]
        packet.sent += 1
        packet.deadline = time.monotonic() + self._timeout
        try:
            self._sockets[packet.engine].send(encode_batch(batch, self._mtu))
        except OSError as error:
            # One that an earlier packet earned: the retry repeats this one.
            if not self._is_icmp_report(error):
                raise UsageError(
                    f"cannot send to {self._endpoint(packet.engine)}: {error.strerror}, "
                    f"check address and route"
                ) from error

    def _receive(self, engine: int, outstanding: list[_Packet], replies: dict[int, Reply]) -> None:
        """Take one datagram. Duplicates, late answers and garbage find no request that waits for
        them, and are dropped here.
        """
        try:
            answer = decode_replies(self._sockets[engine].recv(_RECEIVE_BYTES, socket.MSG_DONTWAIT))
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
                if request is not None and packet.engine == engine and _answers(reply, request):
                    replies[reply.opaque] = reply
                    del packet.requests[reply.opaque]

    def _is_icmp_report(self, error: OSError) -> bool:
        """Whether an error only says what became of an earlier packet; notes a refusal."""
        self._refused |= error.errno == errno.ECONNREFUSED
        return error.errno in (errno.ECONNREFUSED, errno.EHOSTUNREACH)

    def _next_opaque(self) -> int:
        self._opaque = (self._opaque + 1) & _OPAQUE_MASK
        return self._opaque

    def _endpoint(self, engine: int) -> str:
        return f"{self._host}:{self._port + engine}"

    def _result_error(self, request: Request, reply: Reply) -> ResultError:
        endpoint = self._endpoint(self._engine_of(request))
        result = f"KV_{reply.result.name}" if isinstance(reply.result, abi.Result) else reply.result
        advice = {
            abi.Result.REJECTED: "it does not own the key's partition, "
            f"is ports={len(self._sockets)} right?",
            abi.Result.NOT_SUPPORTED: "this server does not know the operation",
            abi.Result.INSUFFICIENT_SPACE: "the value does not fit into a response packet",
        }.get(reply.result, "the request breaks a limit of this server")
        return ResultError(endpoint, str(result), advice)


def _connect(host: str, port: int) -> socket.socket:
    """A socket that talks to this address only: the kernel drops what others send, and reports ICMP
    errors.
    """
    connected = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    try:
        connected.connect((host, port))
    except OSError as error:
        connected.close()
        raise UsageError(
            f"cannot reach {host}:{port}: {error.strerror}, "
            f"give an IPv4 address or a name that has one"
        ) from error
    return connected


def _answers(reply: Reply, request: Request) -> bool:
    return reply.operation == request.operation and reply.key_hash == request.key_hash


def _to_bytes(content: str | bytes) -> bytes:
    if isinstance(content, str):
        return content.encode()
    if not isinstance(content, bytes | bytearray | memoryview):
        raise KeyValueError(f"keys and values are bytes or str: {content!r:.80} is neither")
    return bytes(content)
