# SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
"""The Python client against a stand-in server: loss, duplicates, late answers, garbage, errors.

The stand-in is a thread on loopback that uses the codec and a dict. Tests of the real server with
this client are in tests/net.
"""

import errno
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from dpukv_xdp.base.errors import (
    DirectoryError,
    KeyValueError,
    NoResponseError,
    RefusedError,
    ResultError,
    UsageError,
)
from dpukv_xdp.base.patience import patient
from dpukv_xdp.client.client import Client
from dpukv_xdp.discovery.directory import FileDirectory, ServerRecord
from dpukv_xdp.wire import abi, codec
from dpukv_xdp.wire.codec import Reply, Request
from dpukv_xdp.wire.hashing import hash_key

Fault = Callable[["StandIn", int, bytes], list[bytes]]
"""Maps (server, number of the datagram, right answer) to the datagrams that are sent instead."""

PATIENT = patient(2.0)
"""Time-out in seconds with which a stall of a busy machine does not look like a loss."""
WITH_VALUE = (abi.Operation.GET, abi.Operation.INCREMENT)
READS = (abi.Operation.GET, abi.Operation.TEST, abi.Operation.NOOP_READ)
TIMEOUT = 0.25
"""Time-out in seconds of tests about losses."""


class StandIn:
    """Replaces the real server: one socket and one dict per engine."""

    def __init__(self, engines: int = 1, response_max: int = codec.payload_max()) -> None:
        self.response_max = response_max
        self.owners = tuple(range(engines))
        """The owning engine of each partition."""
        self.concurrent_read = False
        self.store: list[dict[bytes, bytes]] = [{} for _ in range(engines)]
        self.received: list[list[Request]] = []
        self.received_by: list[int] = []
        """The engines that received the requests, in order."""
        self.results: dict[bytes, int] = {}
        """Results by key that are returned instead of serving the request."""
        self.fault: Fault = lambda _server, _number, answer: [answer]
        self.sockets = adjacent_sockets(engines)
        self.address = self.sockets[0].getsockname()
        self.threads = [
            threading.Thread(target=self.serve, args=(engine,)) for engine in range(engines)
        ]
        for thread in self.threads:
            thread.start()

    def serve(self, engine: int) -> None:
        while True:
            payload, client = self.sockets[engine].recvfrom(65535)
            if payload == b"stop":
                return
            requests = codec.decode_requests(payload)
            self.received.append(requests)
            self.received_by.append(engine)
            answer = codec.encode_batch(self.reply_all(engine, requests), strict=False)
            for each in self.fault(self, len(self.received), answer):
                self.sockets[engine].sendto(each, client)

    def reply_all(self, engine: int, requests: Sequence[Request]) -> list[Reply]:
        replies = []
        room = self.response_max - codec.BATCH_HEADER_BYTES - 24 * len(requests)
        for request in requests:
            result, value = self.reply(engine, request)
            if codec.roundup8(len(value)) > room:
                result, value = abi.Result.INSUFFICIENT_SPACE, b""
            room -= codec.roundup8(len(value))
            replies.append(
                Reply(request.operation, result, value, request.opaque, request.key_hash)
            )
        return replies

    def reply(self, engine: int, request: Request) -> tuple[int, bytes]:
        if request == Request.probe(request.opaque):
            return abi.Result.SUCCESS, b""
        owner = self.owners[(request.key_hash >> 48) % len(self.owners)]
        if owner != engine and not (self.concurrent_read and request.operation in READS):
            return abi.Result.REJECTED, b""
        if request.key in self.results:
            return self.results[request.key], b""
        if request.operation == abi.Operation.NOOP_READ:
            return abi.Result.SUCCESS, b""
        return self.serve_owned(self.store[owner], request)

    def serve_owned(self, store: dict[bytes, bytes], request: Request) -> tuple[int, bytes]:
        """Execute a request as the owner of the key; return the result and the value."""
        value = store.get(request.key)
        if request.operation == abi.Operation.ADD and value is not None:
            return abi.Result.EXISTS, b""
        if request.operation in (abi.Operation.SET, abi.Operation.ADD):
            store[request.key] = request.value
            return abi.Result.SUCCESS, b""
        if value is None:
            return abi.Result.NOT_FOUND, b""
        if request.operation == abi.Operation.DELETE:
            del store[request.key]
        elif request.operation == abi.Operation.INCREMENT:
            if len(value) != codec.COUNTER_BYTES:
                return abi.Result.ERROR, b""
            total = sum(int.from_bytes(each, "little") for each in (value, request.value))
            store[request.key] = value = (total % (1 << 64)).to_bytes(8, "little")
        return abi.Result.SUCCESS, value * (request.operation in WITH_VALUE)

    def record(self, owners: tuple[int, ...] | None = None) -> ServerRecord:
        """Return its record for a directory."""
        addresses = [each.getsockname() for each in self.sockets]
        endpoints = tuple(("02:00:00:00:00:01", host, port) for host, port in addresses)
        owners = self.owners if owners is None else owners
        return ServerRecord(self.concurrent_read, self.concurrent_read, owners, endpoints)

    def close(self) -> None:
        while self.sockets:
            self.close_last()

    def close_last(self) -> None:
        """Close the last engine's socket."""
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as waker:
            waker.sendto(b"stop", self.sockets[-1].getsockname())
        self.threads.pop().join()
        self.sockets.pop().close()


def adjacent_sockets(count: int) -> list[socket.socket]:
    """Return UDP sockets on loopback with consecutive ports."""
    for _ in range(100):
        sockets = [socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in range(count)]
        try:
            sockets[0].bind(("127.0.0.1", 0))
            base = sockets[0].getsockname()[1]
            for index in range(1, count):
                sockets[index].bind(("127.0.0.1", base + index))
        except (OSError, OverflowError):
            for each in sockets:
                each.close()
            continue
        return sockets
    raise RuntimeError(f"found no {count} consecutive free UDP ports")


@pytest.fixture
def server() -> Iterator[StandIn]:
    stand_in = StandIn()
    yield stand_in
    stand_in.close()


@pytest.fixture
def client(server: StandIn) -> Iterator[Client]:
    with Client(server.address, timeout=PATIENT, retries=3) as made:
        yield made


@pytest.fixture
def impatient(server: StandIn) -> Iterator[Client]:
    with Client(server.address, timeout=TIMEOUT, retries=3) as made:
        yield made


# ---- Verbs


@pytest.mark.parametrize("key_bytes", [1, 5, 12, 255])
@pytest.mark.parametrize("value_bytes", [0, 1, 7, 9, 100, 1184])
def test_values_come_back_exact(client: Client, key_bytes: int, value_bytes: int) -> None:
    key, value = b"k" * key_bytes, bytes(range(256)) * 5
    assert client.set(key, value[:value_bytes]) is True
    assert client.get(key) == value[:value_bytes]


def test_a_missing_key_gives_the_default(client: Client) -> None:
    assert client.get("nothing") is None
    assert client.get("nothing", b"else") == b"else"


def test_text_is_utf_8(client: Client, server: StandIn) -> None:
    assert client.set("schlüssel", "grüße")
    assert server.store[0] == {"schlüssel".encode(): "grüße".encode()}
    assert client.get("schlüssel".encode()) == "grüße".encode()


def test_many_travel_together_and_only_hits_come_back(client: Client, server: StandIn) -> None:
    items = {f"key-{index}": f"value-{index}" for index in range(300)}
    assert client.set_many(items) == []
    assert len(server.received) < 12
    assert all(len(batch) <= abi.KV_BATCH_MAX for batch in server.received)
    found = client.get_many([*items, "missing", "key-0"])
    assert found == {key: value.encode() for key, value in items.items()}


def test_no_keys_need_no_packet(client: Client, server: StandIn) -> None:
    assert client.get_many([]) == {}
    assert client.set_many({}) == []
    assert server.received == []


def test_values_that_crowd_a_response_are_asked_for_alone(client: Client, server: StandIn) -> None:
    items = {f"key-{index}": bytes([index]) * 1000 for index in range(10)}
    assert client.set_many(items) == []
    server.received.clear()
    assert client.get_many(items) == items
    assert [len(batch) for batch in server.received] == [10] + [1] * 9


def test_keys_that_the_store_refuses_are_listed(client: Client, server: StandIn) -> None:
    server.results[b"b"] = abi.Result.INSUFFICIENT_SPACE
    assert client.set_many({"a": "1", "b": "2", "c": "3"}) == ["b"]
    assert client.set("b", "2") is False


def test_add_does_not_overwrite(client: Client, server: StandIn) -> None:
    assert client.add("key", "first") is True
    assert client.add("key", "second") is False
    assert client.get("key") == b"first"
    server.results[b"full"] = abi.Result.INSUFFICIENT_SPACE
    with pytest.raises(ResultError, match="no room"):
        client.add("full", "value")


@pytest.mark.parametrize("kind", [bytearray, memoryview])
def test_keys_may_be_any_bytes(client: Client, kind: Callable[[bytes], bytes]) -> None:
    key = kind(b"key")
    assert client.set(key, kind(b"value"))
    assert client.get(key) == b"value"
    assert client.get(kind(b"none"), b"else") == b"else"
    assert client.get_many([key, b"key", kind(b"none")]) == {b"key": b"value"}
    assert client.delete(key)


def test_test_and_delete_say_whether_the_key_was_there(client: Client) -> None:
    assert client.test("key") is False
    assert client.delete("key") is False
    client.set("key", "value")
    assert client.test("key") is True
    assert client.delete("key") is True
    assert client.get("key") is None


def test_increment_counts_in_8_bytes_and_wraps_around(client: Client) -> None:
    assert client.increment("counter") is None
    client.set("counter", (41).to_bytes(8, "little"))
    assert client.increment("counter") == 42
    assert client.increment("counter", 0) == 42
    assert client.increment("counter", 2**64 - 1) == 41
    assert client.get("counter") == (41).to_bytes(8, "little")


@pytest.mark.parametrize("by", [-1, 2**64])
def test_an_increment_out_of_range_is_refused(client: Client, server: StandIn, by: int) -> None:
    with pytest.raises(UsageError, match=r"2\^64"):
        client.increment("counter", by)
    assert server.received == []


def test_incrementing_what_is_no_counter_is_an_error(client: Client) -> None:
    client.set("key", "text")
    with pytest.raises(ResultError, match="no counter of 8 bytes"):
        client.increment("key")


def test_noop_reaches_the_key_s_owner(client: Client, server: StandIn) -> None:
    client.noop("key")
    assert [(each.operation, each.key) for each in server.received[0]] == [(1, b"key")]
    server.results[b"key"] = abi.Result.NOT_SUPPORTED
    with pytest.raises(ResultError, match="KV_NOT_SUPPORTED"):
        client.noop("key")


def test_ping_measures_the_way_there_and_back(client: Client, server: StandIn) -> None:
    assert 0 < client.ping() < 5
    assert server.received == [[Request.probe(server.received[0][0].opaque)]]
    with pytest.raises(UsageError, match="engine 1"):
        client.ping(1)


def test_each_key_goes_to_the_engine_that_owns_it() -> None:
    server = StandIn(engines=3)
    try:
        items = {f"key-{index}": f"value-{index}" for index in range(100)}
        with Client(server.address, timeout=PATIENT, ports=3) as client:
            assert client.set_many(items) == []
            assert client.get_many(items) == {key: text.encode() for key, text in items.items()}
            assert client.ping(2) > 0
        assert all(len(store) > 10 for store in server.store)
        assert sum(len(store) for store in server.store) == 100
        with (
            Client(server.address, timeout=PATIENT) as single,
            pytest.raises(ResultError, match="ports=1"),
        ):
            single.get_many(items)
    finally:
        server.close()


@pytest.mark.parametrize("owners", [(2, 1, 0), (0, 0, 0, 1, 2, 0, 2, 0), (1,) * 256])
def test_each_partition_s_keys_go_to_its_owner(owners: tuple[int, ...]) -> None:
    server = StandIn(engines=3)
    server.owners = owners
    try:
        items = {f"key-{index}": f"value-{index}" for index in range(100)}
        with Client(server.address, timeout=PATIENT, ports=3, owners=owners) as client:
            assert client.set_many(items) == []
            assert client.get_many(items) == {key: text.encode() for key, text in items.items()}
        assert {engine for engine in range(3) if server.store[engine]} == set(owners)
    finally:
        server.close()


@pytest.mark.parametrize("owners", [(), (3,), (0, 1, 2, 3), (-1, 0)])
def test_owners_that_are_no_engines_are_refused(owners: tuple[int, ...]) -> None:
    with pytest.raises(UsageError, match=r"owners=.* are not engines: use 0 to 2"):
        Client(("127.0.0.1", 9800), ports=3, owners=owners)


# ---- A bad network


def test_lost_packets_are_sent_again(impatient: Client, server: StandIn) -> None:
    server.fault = lambda _server, number, answer: [answer] if number % 2 == 0 else []
    assert impatient.set("key", "value")
    assert impatient.get("key") == b"value"
    assert len(server.received) == 4


def test_only_what_is_unanswered_is_sent_again(impatient: Client, server: StandIn) -> None:
    def half(_server: StandIn, number: int, answer: bytes) -> list[bytes]:
        return [codec.encode_batch(codec.decode_replies(answer)[: 2 if number == 1 else None])]

    server.fault = half
    assert impatient.set_many({"a": "1", "b": "2", "c": "3"}) == []
    assert [[each.key for each in batch] for batch in server.received] == [
        [b"a", b"b", b"c"],
        [b"c"],
    ]


def test_duplicates_are_ignored(client: Client, server: StandIn) -> None:
    server.fault = lambda _server, _number, answer: [answer, answer, answer]
    for index in range(20):
        assert client.set(f"key-{index}", f"value-{index}")
        assert client.get(f"key-{index}") == f"value-{index}".encode()
    assert len(server.received) == 40


def test_late_answers_do_not_reach_the_next_question(client: Client, server: StandIn) -> None:
    held: list[bytes] = []

    def one_behind(_server: StandIn, _number: int, answer: bytes) -> list[bytes]:
        held.append(answer)
        return [held[-2], answer] if len(held) > 1 else [answer]

    server.fault = one_behind
    client.set_many({"a": "1", "b": "2"})
    assert client.get("a") == b"1"
    assert client.get("b") == b"2"
    assert client.get("c") is None


def test_garbage_is_ignored(client: Client, server: StandIn) -> None:
    def noisy(_server: StandIn, _number: int, answer: bytes) -> list[bytes]:
        wrong_hash = bytearray(answer)
        wrong_hash[6 + abi.offset("kv_item_header", "key_hash")] ^= 1
        return [b"", b"garbage", answer[:20], b"\x78" + answer[1:], bytes(wrong_hash), answer]

    server.fault = noisy
    assert client.set("key", "value")
    assert client.get("key") == b"value"
    assert len(server.received) == 2


def test_a_slow_answer_to_an_earlier_attempt_counts(impatient: Client, server: StandIn) -> None:
    def slow(_server: StandIn, number: int, answer: bytes) -> list[bytes]:
        if number == 1:
            time.sleep(1.5 * TIMEOUT)
        return [answer] if number == 1 else []

    server.fault = slow
    assert impatient.set("key", "value")


def test_silence_ends_in_an_error_that_names_host_and_port(server: StandIn) -> None:
    server.fault = lambda _server, _number, _answer: []
    host, port = server.address
    start = time.monotonic()
    with (
        Client(server.address, timeout=0.05, retries=2) as client,
        pytest.raises(NoResponseError, match=f"{host}:{port}") as raised,
    ):
        client.get("key")
    assert not isinstance(raised.value, RefusedError)
    assert len(server.received) == 3
    assert 0.15 <= time.monotonic() - start < patient(5)


def test_a_closed_port_ends_in_an_error_that_says_so() -> None:
    (reserved,) = adjacent_sockets(1)
    host, port = reserved.getsockname()
    reserved.close()
    with (
        Client((host, port), timeout=0.02, retries=2) as client,
        pytest.raises(RefusedError, match=f"{host}:{port} refused"),
    ):
        client.get("key")


def test_a_server_that_comes_back_in_time_is_found() -> None:
    (reserved,) = adjacent_sockets(1)
    address = reserved.getsockname()
    reserved.close()

    def come_back() -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as late:
            late.bind(address)
            payload, client = late.recvfrom(65535)
            (request,) = codec.decode_requests(payload)
            reply = Reply(request.operation, 0, b"here", request.opaque, request.key_hash)
            late.sendto(codec.encode_batch([reply]), client)

    timer = threading.Timer(0.1, come_back)
    timer.start()
    with Client(address, timeout=TIMEOUT, retries=30) as client:
        assert client.get("key") == b"here"
    timer.join()


class Troubled:
    """A socket whose first sends, or receives, fail with these errors."""

    def __init__(self, real: socket.socket, *, send: list[int], recv: list[int]) -> None:
        self.real, self.errors = real, {"send": send, "recv": recv}

    def send(self, datagram: bytes) -> int:
        self.fail("send")
        return self.real.send(datagram)

    def recv(self, count: int, flags: int) -> bytes:
        self.fail("recv")
        return self.real.recv(count, flags)

    def fail(self, call: str) -> None:
        if self.errors[call]:
            number = self.errors[call].pop(0)
            raise OSError(number, os.strerror(number))

    def close(self) -> None:
        self.real.close()


def trouble(client: Client, server: StandIn, **errors: list[int]) -> None:
    sockets: dict[tuple[str, int], Any] = client._exchange.sockets
    errors = {"send": [], "recv": []} | errors
    sockets[server.address] = Troubled(sockets[server.address], **errors)


@pytest.mark.parametrize("call", ["send", "recv"])
@pytest.mark.parametrize(
    "number",
    [errno.ENETUNREACH, errno.EHOSTUNREACH, errno.ENOPROTOOPT, errno.EHOSTDOWN, errno.ECONNREFUSED],
)
def test_what_the_network_reports_is_outlasted(
    impatient: Client, server: StandIn, call: str, number: int
) -> None:
    trouble(impatient, server, **{call: [number]})
    assert impatient.set("key", "value")


def test_what_the_network_reports_for_too_long_is_in_the_error(server: StandIn) -> None:
    with Client(server.address, timeout=0.02, retries=2) as client:
        trouble(client, server, send=[errno.ENETUNREACH] * 9)
        with pytest.raises(NoResponseError, match="the network says: Network is unreachable"):
            client.get("key")


@pytest.mark.parametrize("call", ["send", "recv"])
def test_an_error_that_does_not_pass_is_one_of_usage(
    client: Client, server: StandIn, call: str
) -> None:
    trouble(client, server, **{call: [errno.EMSGSIZE]})
    with pytest.raises(UsageError, match="Message too long, check address, route and MTU"):
        client.get("key")


def test_who_is_silent_has_not_refused() -> None:
    """Another endpoint has refused in the same call."""
    server = StandIn(engines=2)
    server.fault = lambda _server, _number, _answer: []
    server.close_last()
    try:
        with (
            Client(server.address, timeout=0.1, retries=1, ports=2) as client,
            pytest.raises(NoResponseError, match="no answer from") as raised,
        ):
            client.get_many(sorted(ITEMS, key=lambda key: hash_key(key.encode()) >> 48 & 1))
        assert not isinstance(raised.value, RefusedError)
    finally:
        server.close()


# ---- With a directory

SELDOM = 60.0
"""Refresh time in seconds, so long that no refresh happens within a test."""
ITEMS = {f"key-{index}": f"value-{index}" for index in range(100)}
VALUES = {key: text.encode() for key, text in ITEMS.items()}


@contextmanager
def stand_ins(*engines: int) -> Iterator[list[StandIn]]:
    """Yield servers, each with the given number of engines."""
    made = [StandIn(each) for each in engines]
    try:
        yield made
    finally:
        for each in made:
            each.close()


@pytest.fixture
def directory(tmp_path: Path) -> FileDirectory:
    return FileDirectory(tmp_path)


def test_the_directory_names_the_owners(directory: FileDirectory) -> None:
    with stand_ins(3) as (server,):
        server.owners = (2, 1, 0, 2, 2)
        directory.publish("one.1", server.record())
        with Client.from_directory(str(directory), timeout=PATIENT) as client:
            assert client.set_many(ITEMS) == []
            assert client.get_many(ITEMS) == VALUES
            assert client.ping(2) > 0
            with pytest.raises(UsageError, match="engine 3"):
                client.ping(3)
        assert all(server.store)
        assert sum(len(batch) for batch in server.received) == 2 * len(ITEMS) + 1


def test_keys_choose_their_server_as_with_mica2(directory: FileDirectory) -> None:
    with stand_ins(1, 2, 1) as servers:
        for name, server in zip(("c.3", "a.1", "b.2"), servers, strict=True):
            directory.publish(name, server.record())
        by_name = [servers[1], servers[2], servers[0]]
        with Client.from_directory(str(directory), timeout=PATIENT) as client:
            assert client.set_many(ITEMS) == []
            assert client.get_many(ITEMS) == VALUES
            assert client.ping(3) > 0
        for key in ITEMS:
            chosen = (hash_key(key.encode()) >> 32 & 0xFFFF) % 3
            holders = [
                index
                for index, each in enumerate(by_name)
                if any(key.encode() in part for part in each.store)
            ]
            assert holders == [chosen]


@pytest.mark.parametrize("server_name", ["b.2", "b"])
def test_one_of_several_servers_can_be_named(directory: FileDirectory, server_name: str) -> None:
    with stand_ins(1, 1) as servers:
        for name, server in zip(("a.1", "b.2"), servers, strict=True):
            directory.publish(name, server.record())
        with Client.from_directory(str(directory), server=server_name, timeout=PATIENT) as client:
            client.set_many(ITEMS)
        assert [len(each.store[0]) for each in servers] == [0, len(ITEMS)]


def test_a_client_with_an_old_view_looks_again_when_it_is_rejected(
    directory: FileDirectory,
) -> None:
    with stand_ins(3) as (server,):
        directory.publish("one.1", server.record())
        with Client.from_directory(str(directory), timeout=PATIENT, refresh=SELDOM) as client:
            client.set_many(ITEMS)
            server.owners = (1, 2, 0, 0, 2)
            server.store = [{key.encode(): value for key, value in VALUES.items()}] * 3
            directory.publish("one.1", server.record())
            assert client.get_many(ITEMS) == VALUES


def test_a_partition_on_the_move_is_waited_for(directory: FileDirectory) -> None:
    with stand_ins(2) as (server,):
        server.owners = (0,) * 8
        directory.publish("one.1", server.record())
        with Client.from_directory(str(directory), timeout=PATIENT, refresh=SELDOM) as client:
            client.noop("key")
            server.owners = (9,) * 8  # no engine's
            directory.publish("one.1", server.record((1,) * 8))

            def arrive() -> None:
                server.owners = (1,) * 8

            timer = threading.Timer(0.15, arrive)
            timer.start()
            start = time.monotonic()
            assert client.set_many(ITEMS) == []
            assert 0.1 < time.monotonic() - start < PATIENT
            timer.join()
        assert [len(store) for store in server.store] == [0, len(ITEMS)]


def test_only_what_is_rejected_goes_out_again(directory: FileDirectory) -> None:
    with stand_ins(2) as (server,):
        server.owners = (0, 1, 0, 1)
        directory.publish("one.1", server.record((0,) * 4))
        with Client.from_directory(str(directory), timeout=PATIENT, refresh=SELDOM) as client:
            timer = threading.Timer(0.05, directory.publish, ("one.1", server.record()))
            timer.start()
            assert client.set_many(ITEMS) == []
            timer.join()
        sizes = [len(store) for store in server.store]
        assert min(sizes) > 10
        assert sum(sizes) == len(ITEMS)
        attempts = [request.key for batch in server.received for request in batch]
        assert {attempts.count(key) for key in server.store[0]} == {1}


def test_what_is_under_way_when_the_directory_changes_is_not_sent_again(
    directory: FileDirectory,
) -> None:
    """It may have been executed: an INCREMENT would count twice."""
    with stand_ins(2) as (server,):
        server.owners = (0, 1)
        directory.publish("one.1", server.record())
        first, second = owned_by(server, 0), owned_by(server, 1)
        server.owners = (0, 0)
        reply_all = server.reply_all

        def slow(engine: int, requests: Sequence[Request]) -> list[Reply]:
            replies = reply_all(engine, requests)
            if requests[0].key == first:
                server.owners = (1, 0)
                directory.publish("one.1", server.record())
                time.sleep(0.3)  # a rejection meanwhile makes the client read the directory
            return replies

        server.reply_all = slow  # type: ignore[method-assign]
        with Client.from_directory(str(directory), timeout=PATIENT, refresh=SELDOM) as client:
            assert client.set_many({first: b"1", second: b"2"}) == []
        attempts = [request.key for batch in server.received for request in batch]
        assert attempts.count(first) == 1
        assert attempts.count(second) > 1


def owned_by(server: StandIn, engine: int) -> bytes:
    """Return a key that an engine of the server owns."""
    keys = (key.encode() for key in ITEMS)
    owners = server.owners
    return next(key for key in keys if owners[(hash_key(key) >> 48) % len(owners)] == engine)


def test_what_is_not_answered_in_time_goes_to_the_new_owner(directory: FileDirectory) -> None:
    with stand_ins(2) as (server,):
        server.owners = (0,)
        directory.publish("one.1", server.record())

        def silent(_server: StandIn, number: int, answer: bytes) -> list[bytes]:
            if number == 1:
                server.owners = (1,)
                directory.publish("one.1", server.record())
            return [answer] if number > 2 else []

        server.fault = silent
        with Client.from_directory(str(directory), timeout=TIMEOUT, refresh=SELDOM) as client:
            assert client.set("key", "value")
        assert server.received_by == [0, 0, 1]  # it reads the directory before the second attempt


def test_reads_go_to_all_who_may_answer_by_their_share(directory: FileDirectory) -> None:
    with stand_ins(2) as (server,):
        server.owners, server.concurrent_read = (0, 0, 0, 1), True
        directory.publish("one.1", server.record())
        with Client.from_directory(str(directory), timeout=PATIENT, refresh=SELDOM) as client:
            assert client.set("key", "value")
            for read in (client.get, client.test, client.noop):
                server.received_by.clear()
                for _ in range(8):
                    read("key")
                assert sorted(server.received_by) == [0] * 6 + [1] * 2


def test_writes_go_to_the_owner_whoever_may_write(directory: FileDirectory) -> None:
    with stand_ins(2) as (server,):
        server.owners, server.concurrent_read = (0, 1), True
        directory.publish("one.1", server.record())
        key = owned_by(server, 1)
        with Client.from_directory(str(directory), timeout=PATIENT, refresh=SELDOM) as client:
            for _ in range(4):
                client.set(key, (0).to_bytes(8, "little"))
                client.add(key, "value")
                client.increment(key)
                client.delete(key)
        assert server.received_by == [1] * 16


def test_a_read_that_is_not_answered_is_sent_to_another_reader(directory: FileDirectory) -> None:
    with stand_ins(2) as (server,):
        server.owners, server.concurrent_read = (0, 1), True
        server.store = [{key.encode(): value for key, value in VALUES.items()}] * 2
        server.fault = lambda _server, number, answer: [answer] if number > 1 else []
        directory.publish("one.1", server.record())
        with Client.from_directory(str(directory), timeout=TIMEOUT, refresh=SELDOM) as client:
            assert client.get("key-1") == VALUES["key-1"]
        assert sorted(server.received_by) == [0, 1]


def test_an_error_names_whoever_answered(directory: FileDirectory) -> None:
    """With concurrent reads, the answering engine need not be the owner."""
    with stand_ins(2) as (server,):
        server.owners, server.concurrent_read = (0, 1), True
        server.results[b"key"] = abi.Result.NOT_SUPPORTED
        directory.publish("one.1", server.record())
        named = set()
        with Client.from_directory(str(directory), timeout=PATIENT, refresh=SELDOM) as client:
            for _ in range(2):
                with pytest.raises(ResultError) as raised:
                    client.get("key")
                named.add(raised.value.endpoint)
        assert len(named) == 2


def test_time_is_counted_and_not_attempts_that_were_rejected(directory: FileDirectory) -> None:
    with stand_ins(2) as (server,):
        server.owners = (9, 9)
        server.fault = lambda _server, number, answer: [answer] if number < 10 else []
        directory.publish("one.1", server.record((0, 1)))
        start = time.monotonic()
        with (
            Client.from_directory(str(directory), timeout=0.5, retries=1) as client,
            pytest.raises(NoResponseError) as raised,
        ):
            client.get("key")
        assert raised.value.waited_seconds <= time.monotonic() - start


def test_what_is_wrong_with_the_directory_is_told_with_what_came_of_it(
    directory: FileDirectory, tmp_path: Path
) -> None:
    with stand_ins(1) as (server,):
        directory.publish("one.1", server.record())
        (tmp_path / "bad.2.json").write_text("{")
        with Client.from_directory(str(directory), timeout=0.4, retries=1) as client:
            assert client.set("key", "value")
            server.owners = (9,)
            with pytest.raises(ResultError, match=r"record of server bad\.2 .* is malformed"):
                client.get("key")
            server.fault = lambda _server, _number, _answer: []
            with pytest.raises(NoResponseError, match=r"record of server bad\.2 .* is malformed"):
                client.get("key")


def test_sockets_to_servers_that_have_gone_are_closed(directory: FileDirectory) -> None:
    """Also if the client learns of it in the middle of a call."""
    with stand_ins(1, 1) as (old, new):
        old.owners = (9,)
        directory.publish("one.1", old.record((0,)))
        with Client.from_directory(str(directory), timeout=PATIENT, refresh=SELDOM) as client:
            timer = threading.Timer(0.1, directory.publish, ("one.1", new.record()))
            timer.start()
            assert client.set("key", "value")
            timer.join()
            (gone,) = (
                each for where, each in client._exchange.sockets.items() if where == old.address
            )
            assert client.set("key", "value")
            assert gone.fileno() == -1
            assert list(client._exchange.sockets) == [new.address]


def test_a_rejection_that_lasts_is_an_error(directory: FileDirectory) -> None:
    with stand_ins(2) as (server,):
        server.owners = (9, 9)
        directory.publish("one.1", server.record((0, 1)))
        start = time.monotonic()
        with (
            Client.from_directory(str(directory), timeout=0.4, retries=1) as client,
            pytest.raises(ResultError, match="on the move"),
        ):
            client.get("key")
        assert 0.8 <= time.monotonic() - start < patient(5)
        assert len(server.received) < 200, "it pauses between attempts"


def test_a_server_that_starts_again_elsewhere_gets_what_was_under_way(
    directory: FileDirectory,
) -> None:
    with stand_ins(1, 2) as (old, new):
        old.fault = lambda _server, _number, _answer: []
        directory.publish("one.1", old.record())
        with Client.from_directory(str(directory), timeout=0.1, retries=50) as client:

            def start_again() -> None:
                directory.withdraw("one.1")
                time.sleep(0.1)
                directory.publish("one.2", new.record())

            starter = threading.Timer(0.15, start_again)
            starter.start()
            assert client.set_many(ITEMS) == []
            starter.join()
            assert client.get_many(ITEMS) == VALUES
        assert sum(len(store) for store in new.store) == len(ITEMS)


def test_a_refused_server_is_looked_for_before_the_time_out(directory: FileDirectory) -> None:
    with stand_ins(1) as (server,):
        (reserved,) = adjacent_sockets(1)
        host, port = reserved.getsockname()
        reserved.close()
        gone = ServerRecord(False, False, (0,), (("02:00:00:00:00:01", host, port),))
        directory.publish("one.1", gone)
        with Client.from_directory(str(directory), timeout=PATIENT, refresh=SELDOM) as client:
            directory.publish("one.1", server.record())
            start = time.monotonic()
            assert client.set("key", "value")
            assert time.monotonic() - start < PATIENT


def test_a_client_in_use_looks_every_so_often(directory: FileDirectory) -> None:
    with stand_ins(1, 1) as (old, new):
        directory.publish("one.1", old.record())
        with Client.from_directory(str(directory), timeout=PATIENT, refresh=0.1) as client:
            client.set("key", "value")
            directory.publish("one.1", new.record())
            deadline = time.monotonic() + patient(5)
            while not new.received:
                client.set("key", "value")
                assert time.monotonic() < deadline
        assert len(old.received) > 1


def test_a_directory_that_is_lost_does_not_matter(directory: FileDirectory, tmp_path: Path) -> None:
    with stand_ins(1) as (server,):
        directory.publish("one.1", server.record())
        with Client.from_directory(str(directory), timeout=PATIENT, refresh=0.01) as client:
            for spoil in (
                lambda: directory.withdraw("one.1"),
                lambda: (tmp_path / "one.1.json").write_text("{"),
                lambda: (tmp_path / "one.1.json").unlink(),
                lambda: tmp_path.rmdir(),
            ):
                spoil()
                for _ in range(5):
                    assert client.set("key", "value")
                    time.sleep(0.02)


def test_a_directory_without_the_server_is_an_error(directory: FileDirectory) -> None:
    with pytest.raises(DirectoryError, match="lists no server"):
        Client.from_directory(str(directory))
    directory.publish(
        "one.1", ServerRecord(False, False, (0,), (("02:00:00:00:00:01", "10.0.0.1", 9),))
    )
    with pytest.raises(DirectoryError, match="lists no server 'two'"):
        Client.from_directory(str(directory), server="two")


def test_a_port_that_no_socket_reaches_is_named(directory: FileDirectory) -> None:
    """Ports of public MICA2 servers begin at 0."""
    directory.publish(
        "one.1", ServerRecord(False, False, (0,), (("02:00:00:00:00:01", "10.0.0.1", 0),))
    )
    with (
        Client.from_directory(str(directory)) as client,
        pytest.raises(UsageError, match=r"10\.0\.0\.1, port 0"),
    ):
        client.get("key")


@pytest.mark.parametrize("arguments", [{"refresh": 0}, {"timeout": 0}, {"retries": -1}])
def test_arguments_beside_a_directory_are_checked(
    directory: FileDirectory, arguments: dict[str, float]
) -> None:
    with pytest.raises(UsageError):
        Client.from_directory(str(directory), **arguments)  # type: ignore[arg-type]


def test_a_closed_client_of_a_directory_leaves_no_thread(directory: FileDirectory) -> None:
    with stand_ins(1) as (server,):
        directory.publish("one.1", server.record())
        client = Client.from_directory(str(directory))
        client.close()
        client.close()
        with pytest.raises(UsageError, match="closed"):
            client.get("key")
        deadline = time.monotonic() + patient(5)
        while any(each.name == "directory-watch" for each in threading.enumerate()):
            assert time.monotonic() < deadline
            time.sleep(0.01)


# ---- Wrong input


@pytest.mark.parametrize("key", [b"", b"k" * 256, "ü" * 128])
def test_keys_over_the_limits_are_refused_before_sending(
    client: Client, server: StandIn, key: str | bytes
) -> None:
    with pytest.raises(KeyValueError):
        client.get(key)
    with pytest.raises(KeyValueError):
        client.set_many({"good": "1", key: "2"})
    assert server.received == []


def test_values_over_the_limit_are_refused_before_sending(client: Client, server: StandIn) -> None:
    assert client.set("12345678", b"v" * 1432)
    with pytest.raises(KeyValueError, match="1432"):
        client.set("12345678", b"v" * 1433)
    assert len(server.received) == 1


def test_other_types_are_refused(client: Client) -> None:
    with pytest.raises(KeyValueError, match="neither"):
        client.set("key", 5)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("result", "telling"),
    [
        (abi.Result.NOT_SUPPORTED, "KV_NOT_SUPPORTED"),
        (abi.Result.ERROR, "KV_ERROR"),
        (abi.Result.INSUFFICIENT_SPACE, "KV_INSUFFICIENT_SPACE"),
        (99, "99"),
    ],
)
def test_a_failure_of_the_server_is_an_error_with_its_result(
    client: Client, server: StandIn, result: int, telling: str
) -> None:
    server.results[b"key"] = result
    with pytest.raises(ResultError, match=telling) as raised:
        client.get("key")
    assert raised.value.result == telling


@pytest.mark.parametrize(
    "arguments",
    [
        {"server": ("127.0.0.1", 0)},
        {"server": ("127.0.0.1", 65536)},
        {"server": ("127.0.0.1", 65535), "ports": 2},
        {"server": ("127.0.0.1", 9800), "ports": 0},
        {"server": ("127.0.0.1", 9800), "ports": abi.KV_ENGINES_MAX + 1},
        {"server": ("127.0.0.1", 9800), "timeout": 0},
        {"server": ("127.0.0.1", 9800), "retries": -1},
        {"server": ("host.invalid", 9800)},
    ],
)
def test_arguments_out_of_range_are_usage_errors(arguments: dict[str, object]) -> None:
    with pytest.raises(UsageError):
        Client(**arguments)  # type: ignore[arg-type]


def test_a_closed_client_says_so(server: StandIn) -> None:
    client = Client(server.address)
    client.close()
    client.close()
    with pytest.raises(UsageError, match="closed"):
        client.get("key")
    with pytest.raises(UsageError, match="closed"):
        client.ping()
