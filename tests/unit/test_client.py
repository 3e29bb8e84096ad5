# SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
"""The Python client against a stand-in server: loss, duplicates, late answers, garbage, errors.

The stand-in is a thread on loopback that uses the codec and a dict. It stands in for the real
server, whose tests with this same client are in tests/net.
"""

import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence

import pytest

from dpukv_xdp import abi, codec
from dpukv_xdp.client import Client
from dpukv_xdp.codec import Reply, Request
from dpukv_xdp.errors import (
    KeyValueError,
    NoResponseError,
    RefusedError,
    ResultError,
    UsageError,
)

Fault = Callable[["StandIn", int, bytes], list[bytes]]
"""(server, number of the datagram, right answer) to the datagrams that go back instead."""

PATIENT = 2.0
"""Seconds: no stall of a busy machine must look like a loss."""
TIMEOUT = 0.25
"""Where losses are the subject."""


class StandIn:
    """Stands in for the real server: one socket and one dict for each engine."""

    def __init__(self, engines: int = 1, response_max: int = codec.payload_max()) -> None:
        self.response_max = response_max
        self.owners = tuple(range(engines))
        """The engine of each partition."""
        self.store: list[dict[bytes, bytes]] = [{} for _ in range(engines)]
        self.received: list[list[Request]] = []
        self.results: dict[bytes, int] = {}
        """Keys that get this result instead of service."""
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
        if request.operation == abi.Operation.NOOP_READ:
            return abi.Result.SUCCESS, b""
        if self.owners[(request.key_hash >> 48) % len(self.owners)] != engine:
            return abi.Result.REJECTED, b""
        if request.key in self.results:
            return self.results[request.key], b""
        if request.operation == abi.Operation.SET:
            self.store[engine][request.key] = request.value
            return abi.Result.SUCCESS, b""
        value = self.store[engine].get(request.key)
        return (abi.Result.NOT_FOUND, b"") if value is None else (abi.Result.SUCCESS, value)

    def close(self) -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as waker:
            for each in self.sockets:
                waker.sendto(b"stop", each.getsockname())
        for thread, each in zip(self.threads, self.sockets, strict=True):
            thread.join()
            each.close()


def adjacent_sockets(count: int) -> list[socket.socket]:
    """UDP sockets on loopback with consecutive ports."""
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
    assert 0.15 <= time.monotonic() - start < 5


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
