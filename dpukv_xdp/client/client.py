# SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
"""A client on an ordinary UDP socket: no privilege, verbs as in pymemcache.

with Client(("10.0.0.1", 9800)) as client:
    client.set("hello", b"world")
    client.get("hello")

with Client.from_directory("etcd2://etcd.example:2379/mica") as client:
    client.increment("visitors")
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Self, TypeVar

from dpukv_xdp.base.errors import KeyValueError, ResultError, UsageError
from dpukv_xdp.client.exchange import (
    RETRIES,
    TIMEOUT_SECONDS,
    Answer,
    Exchange,
    check_patience,
)
from dpukv_xdp.client.routing import Server, address_text
from dpukv_xdp.discovery.directory import REFRESH_SECONDS
from dpukv_xdp.discovery.watch import Watch
from dpukv_xdp.wire import abi
from dpukv_xdp.wire.codec import COUNTER_BYTES, ETHERNET_MTU, Reply, Request

Key = TypeVar("Key", bound=str | bytes)
Meaning = TypeVar("Meaning")


class Client:
    """A client of one server, or of all servers in a directory; not for use by several threads at
    once.

    Requests are repeated until they are answered, so each is carried out at least once: if only the
    reply was lost, `add` may report False for a key that it has itself added, `delete` False for
    a key that it has deleted, and `increment` may count twice.
    """

    def __init__(
        self,
        server: tuple[str, int],
        *,
        timeout: float = TIMEOUT_SECONDS,
        retries: int = RETRIES,
        ports: int = 1,
        mtu: int = ETHERNET_MTU,
        owners: Sequence[int] | None = None,
    ) -> None:
        """Make a client of one server.

        `server` is the host and the UDP port of engine 0; engine i of `ports` listens on that port
        plus i. `owners` lists the engine of each partition; by default each engine has one
        partition. An attempt that stays unanswered for `timeout` seconds is repeated up to
        `retries` times. Raises UsageError for a host that has no IPv4 address, or an argument out
        of range.
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
        self._exchange = Exchange((Server(by_partition, endpoints),), timeout, retries, mtu)
        self._exchange.connect()

    @classmethod
    def from_directory(
        cls,
        url: str,
        *,
        server: str | None = None,
        timeout: float = TIMEOUT_SECONDS,
        retries: int = RETRIES,
        refresh: float = REFRESH_SECONDS,
        mtu: int = ETHERNET_MTU,
    ) -> Self:
        """Make a client of the servers in the directory at `url` (see directory.py).

        `server` selects one server by its name, or all servers of a host; by default the client
        talks to all. Among several servers each key has its own, as with MICA2's clients. Reads go
        to any engine of a server that lets all engines read, writes always to the owner.

        While in use, the client reads the directory every `refresh` seconds, and at once when a
        server rejects a request or does not answer. While the directory is out of reach or empty it
        goes on with the servers that it knows. When servers come or go, keys change their server; a
        server that is no longer listed keeps its keys for TTL_SECONDS, unless another has come in
        its place. A request that is rejected because its partition is being moved goes out again
        for as long as `timeout` and `retries` allow. Use the client in the network namespace in
        which it was made.

        Raises DirectoryError if the directory cannot be read, or lists no such server; UsageError
        for an argument out of range.
        """
        check_patience(timeout, retries)
        if refresh <= 0:
            raise UsageError(f"refresh={refresh:g} is out of range: use more than 0 seconds")
        client = cls.__new__(cls)
        watch = Watch(url, server, refresh)
        servers = tuple(Server.of(record) for record in watch.servers)
        client._exchange = Exchange(servers, timeout, retries, mtu, watch)
        return client

    def get(self, key: str | bytes, default: Any = None) -> Any:
        """Return the value of `key` as bytes, or `default` if the store does not have the key."""
        return self.get_many([_hashable(key)]).get(_hashable(key), default)

    def set(self, key: str | bytes, value: str | bytes) -> bool:
        """Store `value` under `key`; False if the store had no room for it."""
        return not self.set_many({_hashable(key): value})

    def get_many(self, keys: Iterable[Key]) -> dict[Key, bytes]:
        """Return the values of the keys that the store has."""
        wanted = list(dict.fromkeys(_hashable(key) for key in keys))
        requests = [Request.get(_to_bytes(key)) for key in wanted]
        answers = self._exchange.ask(requests)
        crowded = [
            index
            for index, answer in enumerate(answers)
            if answer.reply.result == abi.Result.INSUFFICIENT_SPACE
        ]
        # The response packet was full: ask for each of these values in a packet of its own.
        alone = self._exchange.ask([requests[index] for index in crowded], batch_max=1)
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
        """Store all items; return the keys that the store had no room for."""
        requests = [Request.set(_to_bytes(key), _to_bytes(value)) for key, value in items.items()]
        failed = []
        for key, request, answer in zip(items, requests, self._exchange.ask(requests), strict=True):
            if answer.reply.result == abi.Result.INSUFFICIENT_SPACE:
                failed.append(key)
            elif answer.reply.result != abi.Result.SUCCESS:
                raise self._result_error(request, answer)
        return failed

    def add(self, key: str | bytes, value: str | bytes) -> bool:
        """Store `value` under a new `key`; False, with nothing changed, if the key exists."""
        request = Request.add(_to_bytes(key), _to_bytes(value))
        return self._ask(request, {abi.Result.SUCCESS: True, abi.Result.EXISTS: False})

    def test(self, key: str | bytes) -> bool:
        """Return whether the store has `key`."""
        request = Request.test(_to_bytes(key))
        return self._ask(request, {abi.Result.SUCCESS: True, abi.Result.NOT_FOUND: False})

    def delete(self, key: str | bytes) -> bool:
        """Remove `key`; False if the store did not have it."""
        request = Request.delete(_to_bytes(key))
        return self._ask(request, {abi.Result.SUCCESS: True, abi.Result.NOT_FOUND: False})

    def increment(self, key: str | bytes, by: int = 1) -> int | None:
        """Add `by` to the counter under `key` and return the sum modulo 2^64; None if the store
        does not have the key.

        A counter is a value of 8 bytes, little endian. Raises ResultError if the value under `key`
        is no counter, UsageError unless `by` is 0 to 2^64 - 1.
        """
        request = Request.increment(_to_bytes(key), by)
        (answer,) = self._exchange.ask([request])
        reply = answer.reply
        if reply.result == abi.Result.NOT_FOUND:
            return None
        if reply.result != abi.Result.SUCCESS or len(reply.value) != COUNTER_BYTES:
            raise self._result_error(request, answer)
        return int.from_bytes(reply.value, "little")

    def noop(self, key: str | bytes) -> None:
        """Send a no-op to a server that may read `key`: shows that a GET of it would arrive."""
        self._ask(Request.noop(_to_bytes(key)), {abi.Result.SUCCESS: None})

    def ping(self, engine: int = 0) -> float:
        """Return the round trip of a probe of one engine, in seconds; any answer shows that the
        engine lives. The engines of several servers are numbered by host and then address.
        """
        return self._exchange.probe(engine)

    def close(self) -> None:
        """Close the sockets; harmless when repeated."""
        self._exchange.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _ask(self, request: Request, meanings: Mapping[int, Meaning]) -> Meaning:
        """Return the meaning of a single request's result. Raises ResultError if it has none."""
        (answer,) = self._exchange.ask([request])
        if answer.reply.result not in meanings:
            raise self._result_error(request, answer)
        return meanings[answer.reply.result]

    def _result_error(self, request: Request, answer: Answer) -> ResultError:
        reply, endpoint = answer
        result = f"KV_{reply.result.name}" if isinstance(reply.result, abi.Result) else reply.result
        return ResultError(address_text(endpoint), str(result), self._advice(request, reply))

    def _advice(self, request: Request, reply: Reply) -> str:
        if reply.result == abi.Result.REJECTED:
            if self._exchange.has_directory:
                return (
                    "the key's partition has been on the move for too long, try again later"
                    + self._exchange.doubt()
                )
            ports = self._exchange.endpoint_count
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


def _hashable(key: Key) -> Key:
    """Return a hashable form of the key: bytes for a bytearray or memoryview."""
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
