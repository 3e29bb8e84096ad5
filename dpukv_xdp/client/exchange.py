# SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
"""Send requests over UDP until each is answered, through time-outs and moves of partitions."""

import errno
import os
import selectors
import socket
import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from dpukv_xdp.base.errors import NoResponseError, ProtocolError, RefusedError, UsageError
from dpukv_xdp.client.routing import Address, Server, address_text
from dpukv_xdp.discovery.watch import Watch
from dpukv_xdp.wire import abi
from dpukv_xdp.wire.codec import (
    BATCH_HEADER_BYTES,
    Reply,
    Request,
    check_item,
    decode_replies,
    encode_batch,
    item_bytes,
    payload_max,
)

PACKETS_OUTSTANDING_MAX = abi.KV_PIPELINE_MAX
"""Most datagrams in flight, so few that a socket's receive buffer holds their answers."""

REJECTED_PAUSE_SECONDS = 0.01
"""Pause before a rejected request is sent again, to the owner that the directory then names."""

TIMEOUT_SECONDS = 0.2
"""Default time to wait for the answer to one attempt."""
RETRIES = 4
"""Default number of further attempts."""

_RECEIVE_BYTES = 65535
_OPAQUE_MASK = 0xFFFFFFFF
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
"""Socket errors that may pass: those that ICMP messages cause, or a network that is down."""


@dataclass(slots=True)
class Packet:
    """A datagram whose answer is awaited."""

    endpoint: Address
    requests: dict[int, Request]
    """Requests without a reply, by opaque."""
    attempts_max: int
    sent: int = 0
    """Attempts made."""
    first_sent_at: float = 0.0
    """Time of the first attempt, in seconds of time.monotonic() like all times here."""
    deadline: float = 0.0
    """Time of the next attempt."""
    rejected: dict[int, Request] = field(default_factory=dict)
    """Requests that the endpoint does not serve, to be sent elsewhere or later, by opaque."""
    is_held: bool = False
    """Whether its requests were rejected and wait to be sent again."""
    report: int = 0
    """Error number that the network reported for the endpoint since its last answer; 0 for none."""


class Answer(NamedTuple):
    """A reply, and the endpoint that sent it."""

    reply: Reply
    endpoint: Address


class Exchange:
    """The sockets to some servers, and the requests that wait for answers from them.

    With a `watch` the servers follow a directory.
    """

    def __init__(
        self,
        servers: tuple[Server, ...],
        timeout: float,
        retries: int,
        mtu: int,
        watch: Watch | None = None,
    ) -> None:
        check_patience(timeout, retries)
        self._serve_by(servers)
        self._timeout, self._retries, self._mtu = timeout, retries, mtu
        self._opaque = int.from_bytes(os.urandom(4))
        self._is_open = True
        self._selector = selectors.DefaultSelector()
        self.sockets: dict[Address, socket.socket] = {}
        self._watch = watch
        if watch is not None:
            self._adopted = watch.servers
            self._selector.register(watch.fd, selectors.EVENT_READ, None)

    @property
    def has_directory(self) -> bool:
        """Return whether the servers follow a directory."""
        return self._watch is not None

    @property
    def endpoint_count(self) -> int:
        """Return the number of engines of all servers together."""
        return sum(len(server.endpoints) for server in self._servers)

    def connect(self) -> None:
        """Open a socket to every endpoint now; close everything if one has no address."""
        try:
            for server in self._servers:
                for endpoint in server.endpoints:
                    self._socket(endpoint)
        except BaseException:
            self.close()
            raise

    def ask(self, requests: Sequence[Request], batch_max: int = abi.KV_BATCH_MAX) -> list[Answer]:
        """Return the answers in the order of the requests; a packet holds at most `batch_max`.

        Raises NoResponseError if a request stays unanswered, UsageError if the client is closed.
        """
        for request in requests:
            check_item(request, self._mtu)
        self._check_open()
        self._follow()
        by_opaque = {self._next_opaque(): request for request in requests}
        queue = deque(
            Packet(endpoint, part, self._retries + 1)
            for endpoint, part in self._route(by_opaque, batch_max)
        )
        answers: dict[int, Answer] = {}
        self._run(queue, answers)
        return [answers[opaque] for opaque in by_opaque]

    def probe(self, engine: int) -> float:
        """Return the round trip of a probe of one engine, in seconds."""
        self._check_open()
        self._follow()
        endpoints = [endpoint for server in self._servers for endpoint in server.endpoints]
        if not 0 <= engine < len(endpoints):
            raise UsageError(f"engine {engine} is out of range: use 0 to {len(endpoints) - 1}")
        probe = {self._next_opaque(): Request.probe()}
        packet = Packet(endpoints[engine], probe, self._retries + 1)
        start = time.monotonic()
        self._run(deque([packet]), {})
        return time.monotonic() - start

    def close(self) -> None:
        """Close the sockets; harmless when repeated."""
        self._is_open = False
        self._selector.close()
        for each in self.sockets.values():
            each.close()
        self.sockets = {}
        if self._watch is not None:
            self._watch.close()
            self._watch = None

    def _check_open(self) -> None:
        if not self._is_open:
            raise UsageError("the client is closed: make a new one")

    def _route(
        self, requests: dict[int, Request], batch_max: int = abi.KV_BATCH_MAX
    ) -> Iterator[tuple[Address, dict[int, Request]]]:
        """Yield datagrams and their endpoints: the keys' owners, or the next reader in turn."""
        owned: dict[Address, dict[int, Request]] = {}
        shared: dict[Server, dict[int, Request]] = {}
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

    def _server_of(self, request: Request) -> Server:
        """Return a key's server: as in MICA2's clients, by the hash bits below the partition's."""
        return self._servers[(request.key_hash >> 32 & 0xFFFF) % len(self._servers)]

    def _pack(self, requests: dict[int, Request], batch_max: int) -> Iterator[dict[int, Request]]:
        """Yield requests in parts that fit a datagram by count and MTU.

        The lengths of the values that GETs return are unknown, so a response may turn out too long:
        the server then says which values it left out.
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

    def _run(self, queue: deque[Packet], answers: dict[int, Answer]) -> None:
        """Send all packets and collect every reply into `answers`, by opaque."""
        outstanding: list[Packet] = []
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

    def _send(self, packet: Packet) -> None:
        """Send a packet's unanswered requests; raise NoResponseError if no attempt is left."""
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
        except OSError as error:  # possibly an ICMP error that an earlier packet caused
            self._note_report(packet.endpoint, error, [packet])

    def _receive(
        self, endpoint: Address, outstanding: list[Packet], answers: dict[int, Answer]
    ) -> None:
        """Receive one datagram; drop duplicates, late answers and garbage, for which no request
        waits.
        """
        concerned = [packet for packet in outstanding if packet.endpoint == endpoint]
        try:
            replies = decode_replies(
                self.sockets[endpoint].recv(_RECEIVE_BYTES, socket.MSG_DONTWAIT)
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
                    answers[reply.opaque] = Answer(reply, endpoint)
                    del packet.requests[reply.opaque]
                elif not packet.is_held:  # otherwise a duplicate of the rejection that held it
                    packet.rejected[reply.opaque] = packet.requests.pop(reply.opaque)

    def _is_worth_repeating(self, packet: Packet, request: Request, reply: Reply) -> bool:
        """Return whether a rejected request may still find its owner."""
        return (
            self._watch is not None
            and reply.result == abi.Result.REJECTED
            and bool(request.key)
            and self._has_time(packet, time.monotonic())
        )

    def _has_time(self, packet: Packet, now: float) -> bool:
        """Return whether the packet's time allows an attempt after a rejection or elsewhere."""
        return now < packet.first_sent_at + self._timeout * (1 + self._retries)

    def _note_report(self, endpoint: Address, error: OSError, concerned: Sequence[Packet]) -> None:
        """Note an error that may pass: the next attempt repeats what was lost. Raise UsageError
        for any other.
        """
        if error.errno not in _MAY_PASS:
            raise UsageError(
                f"cannot talk to {address_text(endpoint)}: {error.strerror}, check address, route "
                f"and MTU"
            ) from error
        for packet in concerned:
            packet.report = error.errno
        if self._watch is not None:
            self._watch.ask()

    def _reroute(self, outstanding: list[Packet], queue: deque[Packet]) -> list[Packet]:
        """Return the packets that stay outstanding; put the others in front of the queue.

        Rejected requests are held for a pause. A packet is sent again when its time is up, or when
        the directory shows that it waits in vain. No other packet is repeated early: the server may
        have carried it out already and would do so twice.
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
        due: list[Packet] = []
        staying = []
        for packet in outstanding:
            is_in_vain = packet.is_held or packet.endpoint not in self._endpoints
            if packet.deadline <= now or (has_changed and is_in_vain):
                due += self._split(packet, now)
            elif packet.requests:
                staying.append(packet)
        queue.extendleft(reversed(due))
        return staying

    def _split(self, packet: Packet, now: float) -> Iterator[Packet]:
        """Yield a packet's requests by their present endpoints, each with at least one attempt
        unless all time is used up. A probe keeps its endpoint.
        """
        parts: Iterable[tuple[Address, dict[int, Request]]] = self._route(packet.requests)
        if any(not request.key for request in packet.requests.values()):
            parts = [(packet.endpoint, packet.requests)]
        attempts_max = packet.attempts_max
        if self._has_time(packet, now):
            attempts_max = max(attempts_max, packet.sent + 1)
        for endpoint, requests in parts:
            report = packet.report if endpoint == packet.endpoint else 0
            yield Packet(
                endpoint, requests, attempts_max, packet.sent, packet.first_sent_at, report=report
            )

    def _follow(self) -> None:
        """Adopt the directory's present servers and close the sockets to those that are gone."""
        self._adopt()
        for endpoint in self.sockets.keys() - self._endpoints:
            self._selector.unregister(self.sockets[endpoint])
            self.sockets.pop(endpoint).close()

    def _adopt(self) -> bool:
        """Adopt the directory's servers; return whether they have changed."""
        if self._watch is None:
            return False
        self._watch.use()
        records = self._watch.servers
        if records is self._adopted:
            return False
        self._adopted = records
        self._serve_by(tuple(Server.of(record) for record in records))
        return True

    def _serve_by(self, servers: tuple[Server, ...]) -> None:
        self._servers = servers
        self._endpoints = {endpoint for server in servers for endpoint in server.endpoints}

    def _socket(self, endpoint: Address) -> socket.socket:
        if endpoint not in self.sockets:
            self.sockets[endpoint] = _connect(*endpoint)
            self._selector.register(self.sockets[endpoint], selectors.EVENT_READ, endpoint)
        return self.sockets[endpoint]

    def _next_opaque(self) -> int:
        self._opaque = (self._opaque + 1) & _OPAQUE_MASK
        return self._opaque

    def _no_response(self, packet: Packet, waited_seconds: float) -> NoResponseError:
        is_refused = packet.report == errno.ECONNREFUSED
        said = ""
        if packet.report and not is_refused:
            said = f"; the network says: {os.strerror(packet.report)}"
        failure = RefusedError if is_refused else NoResponseError
        return failure(address_text(packet.endpoint), waited_seconds, said + self.doubt())

    def doubt(self) -> str:
        """Return why some servers may be unknown, to be appended to an error; empty if none are."""
        failure = None if self._watch is None else self._watch.failure
        return "" if failure is None else f"; {failure}"


def _held(packet: Packet, until: float) -> Packet:
    """Move a packet's rejected requests to a held packet.

    It has one more attempt: the one that was answered does not count as lost.
    """
    rejected, packet.rejected = packet.rejected, {}
    return Packet(
        packet.endpoint,
        rejected,
        packet.attempts_max + 1,
        packet.sent,
        packet.first_sent_at,
        deadline=until,
        is_held=True,
    )


def check_patience(timeout: float, retries: int) -> None:
    """Raise UsageError for a time-out or a number of retries out of range."""
    if timeout <= 0 or retries < 0:
        raise UsageError("timeout must be above 0 seconds and retries at least 0")


def _connect(host: str, port: int) -> socket.socket:
    """Return a UDP socket connected to this address, so that the kernel drops datagrams from others
    and reports ICMP errors.
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
