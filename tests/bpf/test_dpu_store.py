# SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
"""The store inside XDP (bpf/service, bpf/store): parse, process and reply in one run.

It must answer like the native engine: the same batches go through both, and the records are
compared byte for byte. The losses of a small log or a full bucket are checked against a dict.
"""

import os
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from bpf.harness import (
    CPU,
    OTHER_CPU,
    PORT,
    RESPONSE_BYTES_MAX,
    SERVER,
    Answer,
    Verdict,
    answer_at,
    batch_at,
    queue_pairs_view,
    reply_frame,
    request_frame,
    run_once,
    wait_until,
)
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dpukv_xdp._core._native import ffi, lib
from dpukv_xdp.kernel import loader
from dpukv_xdp.native.engines import HostCore, ProcessingEngine
from dpukv_xdp.native.stores import Store
from dpukv_xdp.topology.dpu_store import DpuStoreSizes
from dpukv_xdp.topology.placement import partition_table
from dpukv_xdp.wire import abi, codec
from dpukv_xdp.wire.codec import Endpoint, Request
from dpukv_xdp.wire.hashing import hash_key

pytestmark = pytest.mark.shares_cores

TAG_TURNS = 3
"""KV_TAG_TURNS of bpf/store/dpu_store.h: live items of one tag that a bucket may hold."""
BATCH_BYTES = RESPONSE_BYTES_MAX
"""Most bytes of the requests in one frame."""
LAST_VALUE_BYTES = abi.KV_VALUE_MAX
"""Bytes of the longest value, which fits into a frame with a short key only."""


CPUS = max(CPU, OTHER_CPU) + 1
SHORT_LINES = 64
"""Lines of the usual inline store, 192 places: enough for the keys of a test."""
SMALL_SEGMENTS = 2
"""Segments of the smallest log: 128 KiB."""


class XdpStore:
    """kv_receive with its store in maps."""

    def __init__(
        self,
        *,
        engines: int = 1,
        stores: int | None = None,
        buckets: int = 1 << 10,
        segments: int = 64,
        short_lines: int = 0,
        response_bytes_max: int = RESPONSE_BYTES_MAX,
    ) -> None:
        """`stores` is the number of stores; None is one per engine. Without `short_lines` they are
        caches.
        """
        self.engines = engines
        self.has_lines = short_lines > 0
        self.stores = engines if stores is None else stores
        names = {
            "KV_ENGINES": engines,
            "KV_DPU_ENGINES": engines,
            "KV_PROCESS_HERE": 1,
            "KV_TRANSPORT": abi.KV_TRANSPORT_RING,
            "KV_HOST_FRAMES": abi.KV_TRANSPORT_RING,
            "KV_CPUS": CPUS,
            "KV_PORT": PORT,
            "KV_MAC": 0,
            "KV_BROADCAST": 0,
            "KV_ADDRESS": 0,
            "KV_DEPTH_MIN": 0,
            "KV_DEPTH_MAX": 0,
            "KV_SENDER_ONLY": 0,
            "KV_TRANSFER_PER_REQUEST": 0,
            "KV_PREPARE_OVERLAPS": 1,
            "KV_SLOWER_PERCENT": 0,
            "KV_SILENT_NS": 0,
            "KV_WHEN_SILENT": abi.KV_SILENT_REJECT,
            **DpuStoreSizes(buckets, segments, short_lines).settings(
                response_bytes_max, self.stores
            ),
        }
        self._loaded = loader.load("kv_receive.c", ["kv_receive"], names)
        self.lines = self._mapped("kv_dpu_lines", "kv_line", self.stores * 2 * buckets)
        self.short_lines = self._mapped(
            "kv_dpu_short_lines", "kv_short_line", self.stores * max(short_lines, 1)
        )
        self.partitions = self._mapped("kv_partitions", "kv_partition_table", 1)[0]
        self.memory = loader.map_memory(
            self._loaded.map_fd("kv_queue_pairs"), "struct kv_queue_pair", engines * CPUS
        )
        self.pairs = queue_pairs_view(self.memory, engines * CPUS)

    def close(self) -> None:
        """Unload the programs and maps."""
        self._loaded.close()

    def reset(self) -> None:
        """Restore the state after loading."""
        for lines in (self.lines, self.short_lines):
            lines.view(np.uint64)[:] = 0
        self.set_access()
        for engine in range(self.stores):
            self.write_store(np.zeros(1, abi.dtype("kv_dpu_store"))[0], engine)
        for index in range(self.engines * CPUS):
            self._loaded.write_entry("kv_dpu_queues", index, bytes(abi.SIZE("kv_dpu_queue")))

    def set_access(
        self, *, read: bool = True, write: bool = True, reset_allowed: bool = True
    ) -> None:
        """Set whether all engines may read or write all partitions, and may execute RESET."""
        self.partitions["concurrent_read"] = read
        self.partitions["concurrent_write"] = write
        self.partitions["reset_allowed"] = reset_allowed

    def run(self, requests: Sequence[Request], engine: int = 0) -> tuple[Verdict, bytes]:
        """Send one frame of requests; return the verdict and the resulting frame."""
        server = Endpoint(SERVER.mac, SERVER.ip, PORT + engine)
        frame = request_frame(requests, server=server)
        assert len(frame) <= abi.KV_FRAME_MAX
        return run_once(self._loaded.programs["kv_receive"], frame)

    def receive(self, frame: bytes) -> tuple[Verdict, bytes]:
        """Send any frame; return the verdict and the resulting frame."""
        return run_once(self._loaded.programs["kv_receive"], frame)

    def replies(self, requests: Sequence[Request], engine: int = 0) -> list[codec.Reply]:
        """Return the replies to a frame of requests, which must be answered."""
        verdict, out = self.run(requests, engine)
        assert verdict == Verdict.TX
        return list(codec.decode_replies(codec.decode_frame(out).payload))

    def set(self, key: bytes, value: bytes, key_hash: int | None = None) -> None:
        """Store one value, which must succeed."""
        (reply,) = self.replies([request(abi.Operation.SET, key, value, key_hash)])
        assert reply.result == abi.Result.SUCCESS

    def get(self, key: bytes, key_hash: int | None = None) -> bytes | None:
        """Return one value; None if the key is absent."""
        (reply,) = self.replies([request(abi.Operation.GET, key, b"", key_hash)])
        if reply.result == abi.Result.NOT_FOUND:
            assert not reply.value
            return None
        assert reply.result == abi.Result.SUCCESS
        return bytes(reply.value)

    def one(
        self, operation: int, key: bytes, value: bytes = b"", key_hash: int | None = None
    ) -> tuple[int, bytes]:
        """Return the result and the value of one request."""
        (reply,) = self.replies([request(operation, key, value, key_hash)])
        assert reply.operation == operation
        return reply.result, bytes(reply.value)

    def counted(self, *names: str, engine: int = 0) -> list[int]:
        """Counters of a store, by default the first one."""
        store = self.store(engine)
        counts = abi.fields("kv_operation_counts")
        return [int(store["counts"][name] if name in counts else store[name]) for name in names]

    def store(self, engine: int = 0) -> Any:
        """Return a copy of an engine's struct kv_dpu_store."""
        raw = self._loaded.read_entry("kv_dpu_stores", engine)
        return np.frombuffer(raw, abi.dtype("kv_dpu_store"))[0].copy()

    def write_store(self, store: Any, engine: int = 0) -> None:
        """Overwrite an engine's struct kv_dpu_store."""
        self._loaded.write_entry("kv_dpu_stores", engine, store.tobytes())

    def counters(self) -> dict[str, int]:
        """Return the counters that are not 0."""
        queues = self._loaded.read_array("kv_dpu_queues", abi.dtype("kv_dpu_queue"))
        totals = queues["counters"].sum(axis=0)
        return {abi.Counter(i).name: int(total) for i, total in enumerate(totals) if total}

    def pair(self, engine: int = 0) -> Any:
        """Return this core's queue pair with an engine, at whose start the latest batch is."""
        return self.pairs[engine * CPUS + CPU]

    def _mapped(self, name: str, struct_name: str, count: int) -> Any:
        return loader.map_array(self._loaded.map_fd(name), abi.dtype(struct_name), count)


@pytest.fixture(scope="module")
def load_store() -> Iterator[Callable[..., XdpStore]]:
    """Yield a constructor of XdpStore; equal settings return the same object, reset."""
    loaded: dict[tuple[Any, ...], XdpStore] = {}

    def load(**names: Any) -> XdpStore:
        key = tuple(sorted(names.items()))
        if key not in loaded:
            loaded[key] = XdpStore(**names)
        loaded[key].reset()
        return loaded[key]

    yield load
    for store in loaded.values():
        store.close()


@pytest.fixture(params=[0, SHORT_LINES], ids=["cache", "inline"])
def xdp(load_store: Callable[..., XdpStore], request: pytest.FixtureRequest) -> XdpStore:
    return load_store(short_lines=request.param)


def request(
    operation: int, key: bytes, value: bytes = b"", key_hash: int | None = None, opaque: int = 0
) -> Request:
    return Request(operation, key, value, opaque, hash_key(key) if key_hash is None else key_hash)


# ---- Against a dict ------------------------------------------------------------------------------

KEYS = st.one_of(
    st.binary(min_size=8, max_size=8),
    st.sampled_from([b"a", b"12345678", b"123456789", b"x" * 16, b"y" * 17, b"k" * 255]),
    st.binary(min_size=1, max_size=255),
)
VALUES = st.one_of(
    st.binary(min_size=8, max_size=8),
    st.binary(max_size=20),
    st.integers(0, 1000).map(lambda size: bytes(i % 251 for i in range(size))),
)
NUMBERS = st.binary(min_size=8, max_size=8)
OPS = abi.Operation
WITH_VALUE = (OPS.SET, OPS.ADD, OPS.INCREMENT)
UNKNOWN_OPERATIONS = (9, 37, 69, 255)
OPERATIONS = st.sampled_from(
    [OPS.GET] * 6
    + [OPS.SET] * 6
    + [OPS.ADD, OPS.TEST, OPS.DELETE, OPS.INCREMENT] * 2
    + [OPS.NOOP_READ, OPS.NOOP_WRITE, OPS.RESET]
    + list(UNKNOWN_OPERATIONS[:2])
)


def model_reply(model: dict[bytes, bytes], asked: Request) -> codec.Reply:
    """Return the reply of a server that loses nothing; update `model`."""
    result, value = abi.Result.SUCCESS, b""
    key, found = asked.key, asked.key in model
    if asked.operation == OPS.RESET:
        model.clear()
    elif asked.operation in (OPS.NOOP_READ, OPS.NOOP_WRITE):
        pass
    elif asked.operation > OPS.INCREMENT:
        result = abi.Result.NOT_SUPPORTED
    elif not key or (asked.operation == OPS.INCREMENT and len(asked.value) != 8):
        result = abi.Result.ERROR
    elif asked.operation == OPS.ADD and found:
        result = abi.Result.EXISTS
    elif asked.operation in (OPS.SET, OPS.ADD):
        model[key] = asked.value
    elif not found:
        result = abi.Result.NOT_FOUND
    elif asked.operation == OPS.GET:
        value = model[key]
    elif asked.operation == OPS.DELETE:
        del model[key]
    elif asked.operation == OPS.INCREMENT and len(model[key]) != 8:
        result = abi.Result.ERROR
    elif asked.operation == OPS.INCREMENT:
        value = model[key] = added(model[key], asked.value)
    return codec.Reply(asked.operation, result, value, asked.opaque, asked.key_hash)


def added(number: bytes, increment: bytes) -> bytes:
    """Return the sum modulo 2^64."""
    total = int.from_bytes(number, "little") + int.from_bytes(increment, "little")
    return (total % 2**64).to_bytes(8, "little")


@st.composite
def batches(draw: Any, keys: Any = KEYS) -> list[list[Request]]:
    """Draw batches that fit into frames, over few keys, so that keys recur."""
    pool = draw(st.lists(keys, min_size=1, max_size=6, unique=True))
    found: list[list[Request]] = []
    for _ in range(draw(st.integers(1, 6))):
        batch: list[Request] = []
        free_bytes = BATCH_BYTES
        for _ in range(draw(st.integers(1, abi.KV_BATCH_MAX))):
            operation = draw(OPERATIONS)
            key = draw(st.sampled_from(pool)) if draw(st.integers(0, 20)) else b""
            value = draw(VALUES) if operation in WITH_VALUE else b""
            if operation == OPS.INCREMENT and draw(st.integers(0, 3)):
                value = draw(NUMBERS)
            bytes_now = codec.item_bytes(len(key), len(value))
            if bytes_now > free_bytes:
                break
            free_bytes -= bytes_now
            batch.append(request(operation, key, value, opaque=len(batch)))
        if batch:
            found.append(batch)
    return found


def fits(replies: Sequence[codec.Reply]) -> bool:
    """Return whether all responses fit, so that none is refused for lack of room."""
    longest = max(codec.item_bytes(0, max(len(reply.value), 8)) for reply in replies)
    return longest * len(replies) <= RESPONSE_BYTES_MAX


@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(batches())
def test_it_is_a_dict(xdp: XdpStore, found: list[list[Request]]) -> None:
    xdp.reset()
    model: dict[bytes, bytes] = {}
    for batch in found:
        expected = [model_reply(model, asked) for asked in batch]
        verdict, out = xdp.run(batch)
        assert verdict == Verdict.TX
        if fits(expected):
            assert out == reply_frame(expected)
    for key, value in model.items():
        assert xdp.get(key) == value


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_thousands_of_operations(xdp: XdpStore, seed: int) -> None:
    """Long runs over keys of 1 to 255 bytes and values of 0 to 1400 bytes, in frames of mixed
    requests; the log holds all items.
    """
    random = np.random.default_rng(seed)
    sizes = [1, 8, 8, 8, 9, 16, *random.integers(1, 256, size=6)]
    keys = list({random.bytes(int(random.choice(sizes))) for _ in range(120)})
    operations = [OPS.SET, OPS.GET, OPS.ADD, OPS.TEST, OPS.DELETE, OPS.INCREMENT]
    model: dict[bytes, bytes] = {}
    done = 0
    while done < 3000:
        batch: list[Request] = []
        free_bytes = BATCH_BYTES
        for opaque in range(int(random.integers(1, 20))):
            operation = int(random.choice(operations, p=[0.2, 0.25, 0.15, 0.1, 0.15, 0.15]))
            if random.integers(0, 800) == 0:
                operation = OPS.RESET
            size = int(random.choice([0, 8, 8, 8, 20, random.integers(0, 1400)]))
            size = 8 if operation == OPS.INCREMENT and random.integers(0, 5) else size
            value = random.bytes(size) if operation in WITH_VALUE else b""
            key = keys[int(random.integers(0, len(keys)))]
            free_bytes -= codec.item_bytes(len(key), len(value))
            if free_bytes < 0:
                break
            batch.append(request(operation, key, value, opaque=opaque))
        forked = dict(model)
        expected = [model_reply(forked, asked) for asked in batch]
        if not batch or not fits(expected):
            continue
        model = forked
        assert xdp.replies(batch) == expected
        done += len(batch)
    for key in keys:
        assert xdp.get(key) == model.get(key)
    assert xdp.counted("set_evicted") == [0]


# ---- Each operation ------------------------------------------------------------------------------

SHAPES = [
    (key_bytes, value_bytes) for key_bytes in (1, 8, 9, 255) for value_bytes in (0, 8, 9, 900)
]


@pytest.mark.parametrize(("key_bytes", "value_bytes"), SHAPES)
def test_add(xdp: XdpStore, key_bytes: int, value_bytes: int) -> None:
    key, value = bytes(range(key_bytes)), b"v" * value_bytes
    assert xdp.one(OPS.ADD, key, value) == (abi.Result.SUCCESS, b"")
    assert xdp.one(OPS.ADD, key, b"another") == (abi.Result.EXISTS, b"")
    assert xdp.get(key) == value
    assert xdp.counted("sets", "set_new", "set_nooverwrite", "set_inplace") == [2, 1, 1, 0]


@pytest.mark.parametrize(("key_bytes", "value_bytes"), SHAPES)
def test_test(xdp: XdpStore, key_bytes: int, value_bytes: int) -> None:
    key = bytes(range(key_bytes))
    assert xdp.one(OPS.TEST, key) == (abi.Result.NOT_FOUND, b"")
    xdp.set(key, b"v" * value_bytes)
    assert xdp.one(OPS.TEST, key) == (abi.Result.SUCCESS, b"")
    assert xdp.counted("test_found", "test_notfound", "gets") == [1, 1, 0]


@pytest.mark.parametrize(("key_bytes", "value_bytes"), SHAPES)
def test_delete(xdp: XdpStore, key_bytes: int, value_bytes: int) -> None:
    key = bytes(range(key_bytes))
    assert xdp.one(OPS.DELETE, key) == (abi.Result.NOT_FOUND, b"")
    xdp.set(key, b"v" * value_bytes)
    assert xdp.one(OPS.DELETE, key) == (abi.Result.SUCCESS, b"")
    assert xdp.get(key) is None
    assert not xdp.lines["words"].any()
    assert xdp.counted("delete_found", "delete_notfound") == [1, 1]
    assert xdp.one(OPS.ADD, key, b"again") == (abi.Result.SUCCESS, b"")
    assert xdp.get(key) == b"again"


def test_delete_is_seen_in_its_own_batch(xdp: XdpStore) -> None:
    """Short items are looked up before the batch is executed."""
    key = b"12345678"
    xdp.set(key, b"87654321")
    asked = [OPS.GET, OPS.DELETE, OPS.GET, OPS.TEST, OPS.ADD, OPS.GET, OPS.RESET, OPS.GET]
    batch = [request(op, key, b"abcdefgh" if op == OPS.ADD else b"") for op in asked]
    model = {key: b"87654321"}
    assert xdp.replies(batch) == [model_reply(model, one) for one in batch]
    xdp.set(key, b"87654321")
    model = {key: b"87654321"}
    batch = [request(OPS.DELETE, key), request(OPS.SET, key, b"abcdefgh"), request(OPS.GET, key)]
    assert xdp.replies(batch) == [model_reply(model, one) for one in batch]


@pytest.mark.parametrize("ways", [1, 2, 7, 8, 9, 14, 15])
def test_a_delete_fills_the_hole(load_store: Callable[..., XdpStore], ways: int) -> None:
    """Words in use remain a prefix of their bucket, and all other items are still found."""
    for deleted in range(ways):
        xdp = load_store(buckets=16, segments=SMALL_SEGMENTS)
        keys = [b"%08d" % i for i in range(ways)]
        for i, key in enumerate(keys):
            xdp.set(key, b"v%d" % i, key_hash=i + 1)  # one bucket, different tags
        assert xdp.one(OPS.DELETE, keys[deleted], b"", deleted + 1)[0] == abi.Result.SUCCESS
        for i, key in enumerate(keys):
            assert xdp.get(key, key_hash=i + 1) == (None if i == deleted else b"v%d" % i)
        halves = xdp.lines["words"].reshape(2, 16, abi.KV_LINE_WORDS)
        used = np.concatenate([halves[0], halves[1]], axis=1)[0] != 0
        assert used.tolist() == [True] * (ways - 1) + [False] * (17 - ways)


def test_deletes_and_the_cleanup(load_store: Callable[..., XdpStore]) -> None:
    """DELETE clears some words, the cleanup others, and some are cleared twice."""
    xdp = load_store(buckets=16, segments=SMALL_SEGMENTS)
    random = np.random.default_rng(11)
    model: dict[bytes, bytes] = {}
    for turn in range(4000):
        key, victim, other = (b"%d" % i for i in random.integers(0, 150, size=3))
        value = b"v%d" % turn * int(random.integers(1, 150))
        xdp.set(key, value)
        model[key] = value
        if turn % 5 == 0:
            result, _ = xdp.one(OPS.DELETE, victim)
            assert result == abi.Result.NOT_FOUND or victim in model
            model.pop(victim, None)
        for asked in (key, victim, other):
            assert xdp.get(asked) in (None, model.get(asked))
        assert xdp.get(key) == model.get(key)
    assert all(count > 100 for count in xdp.counted("delete_found", "delete_notfound", "cleanup"))
    halves = xdp.lines["words"].reshape(2, 16, abi.KV_LINE_WORDS)
    used = np.concatenate([halves[0], halves[1]], axis=1) != 0
    assert used.any()
    assert not (used[:, 1:] & ~used[:, :-1]).any()


@pytest.mark.parametrize("key_bytes", [1, 8, 9, 255])
def test_increment(xdp: XdpStore, key_bytes: int) -> None:
    key = bytes(range(key_bytes))
    number = (2**64 - 2).to_bytes(8, "little")
    three = (3).to_bytes(8, "little")
    assert xdp.one(OPS.INCREMENT, key, three) == (abi.Result.NOT_FOUND, b"")
    xdp.set(key, number)
    assert xdp.one(OPS.INCREMENT, key, three) == (abi.Result.SUCCESS, (1).to_bytes(8, "little"))
    assert xdp.get(key) == (1).to_bytes(8, "little")
    batch = [request(OPS.INCREMENT, key, three) for _ in range(10)]
    last = xdp.replies(batch)[-1]
    assert (last.result, last.value) == (abi.Result.SUCCESS, (31).to_bytes(8, "little"))
    counted = {"increment_found": 11, "increment_notfound": 1, "errors": 0, "set_new": 1}
    counted |= {"set_moved": 0, "appended": 0 if xdp.has_lines and key_bytes <= 8 else 1}
    assert dict(zip(counted, xdp.counted(*counted), strict=True)) == counted


@pytest.mark.parametrize("key_bytes", [1, 8, 9, 255])
@pytest.mark.parametrize("wrong_bytes", [0, 1, 7, 9, 16, 100])
def test_increment_of_other_lengths(xdp: XdpStore, key_bytes: int, wrong_bytes: int) -> None:
    key = bytes(range(key_bytes))
    xdp.set(key, b"eight ok")
    assert xdp.one(OPS.INCREMENT, key, b"n" * wrong_bytes) == (abi.Result.ERROR, b"")
    assert xdp.get(key) == b"eight ok"
    xdp.set(key, b"n" * wrong_bytes)
    assert xdp.one(OPS.INCREMENT, key, b"\1" + bytes(7)) == (abi.Result.ERROR, b"")
    assert xdp.get(key) == b"n" * wrong_bytes
    assert xdp.counted("errors", "increment_found") == [1, 1]


def test_increment_needs_room(load_store: Callable[..., XdpStore]) -> None:
    """INCREMENT adds nothing if there is no room for its response."""
    xdp = load_store(response_bytes_max=300)
    xdp.set(b"k", bytes(8))
    asked = [request(OPS.INCREMENT, b"k", b"\1" + bytes(7)) for _ in range(10)]
    results = [reply.result for reply in xdp.replies(asked)]
    done = results.count(abi.Result.SUCCESS)
    assert done == 7
    assert results.count(abi.Result.INSUFFICIENT_SPACE) == 3
    assert xdp.get(b"k") == bytes([done]) + bytes(7)


def test_reset(xdp: XdpStore) -> None:
    for i in range(200):
        xdp.set(b"%d" % i * (i % 20 + 1), b"v" * i)
    assert xdp.one(OPS.RESET, b"") == (abi.Result.SUCCESS, b"")
    assert all(xdp.get(b"%d" % i * (i % 20 + 1)) is None for i in range(200))
    for i in range(200):
        xdp.set(b"%d" % i * (i % 20 + 1), b"w" * i)
        assert xdp.one(OPS.TEST, b"%d" % (i + 500))[0] == abi.Result.NOT_FOUND
    assert all(xdp.get(b"%d" % i * (i % 20 + 1)) == b"w" * i for i in range(200))
    assert xdp.counted("resets", "set_evicted") == [1, 0]


@pytest.mark.parametrize("key", [b"", b"k", b"long" * 20])
def test_reset_refused(xdp: XdpStore, key: bytes) -> None:
    xdp.set_access(reset_allowed=False)
    xdp.set(b"k", b"v")
    assert xdp.one(OPS.RESET, key) == (abi.Result.NOT_SUPPORTED, b"")
    assert xdp.get(b"k") == b"v"
    assert xdp.counted("resets", "not_supported") == [0, 1]


def test_resets_without_end(load_store: Callable[..., XdpStore]) -> None:
    """The tail must not wrap around to a dead word: RESETs wait for the cleanup once they have
    moved the tail by 2^46 bytes in one round. A small log needs too many RESETs for that, so the
    test starts there.
    """
    xdp = load_store(buckets=256, segments=SMALL_SEGMENTS)
    xdp.set(b"k", b"v")
    now = xdp.store()
    now["tail"] = now["round_tail"] + 2**46
    xdp.write_store(now)
    reset = [request(OPS.RESET, b"")]
    assert [xdp.replies(reset)[0].result for _ in range(2)] == [
        abi.Result.SUCCESS,
        abi.Result.NOT_PROCESSED,
    ]
    results = [xdp.replies(reset)[0].result for _ in range(256 // 8)]  # a round of the cleanup
    assert results[0] == abi.Result.NOT_PROCESSED
    assert results[-1] == abi.Result.SUCCESS
    assert xdp.store()["round_tail"] > 2**46
    for _ in range(256 // 8):
        xdp.replies(reset)
    assert not xdp.lines["words"].any()
    xdp.set(b"k", b"w")
    assert xdp.get(b"k") == b"w"


@pytest.mark.parametrize("operation", UNKNOWN_OPERATIONS)
def test_unknown_operations(xdp: XdpStore, operation: int) -> None:
    assert xdp.one(operation, b"k", b"v") == (abi.Result.NOT_SUPPORTED, b"")
    assert xdp.counted("not_supported") == [1]


@pytest.mark.parametrize(
    "operation", [OPS.ADD, OPS.SET, OPS.GET, OPS.TEST, OPS.DELETE, OPS.INCREMENT]
)
def test_an_empty_key(xdp: XdpStore, operation: int) -> None:
    assert xdp.one(operation, b"", b"12345678") == (abi.Result.ERROR, b"")
    assert xdp.counted("errors") == [1]


# ---- Lengths -------------------------------------------------------------------------------------


@pytest.mark.parametrize("key_bytes", [1, 7, 8, 9, 15, 16, 17, 63, 64, 254, 255])
@pytest.mark.parametrize("value_bytes", [0, 1, 7, 8, 9, 16, 100, 1000])
def test_lengths(xdp: XdpStore, key_bytes: int, value_bytes: int) -> None:
    key, other = bytes(range(1, key_bytes + 1)), bytes(range(1, key_bytes)) + b"\0"
    value = bytes(i % 255 + 1 for i in range(value_bytes))
    xdp.set(key, value)
    assert xdp.get(key) == value
    assert xdp.get(other) is None
    xdp.set(key, value[:1])
    assert xdp.get(key) == value[:1]
    xdp.set(key, value + b"more")
    assert xdp.get(key) == value + b"more"


def test_the_longest_value(xdp: XdpStore) -> None:
    value = bytes(i % 251 for i in range(LAST_VALUE_BYTES))
    xdp.set(b"k", value)
    assert xdp.get(b"k") == value
    (reply,) = xdp.replies([request(abi.Operation.SET, b"k", value[:-8] + b"ends now")])
    assert reply.result == abi.Result.SUCCESS
    assert xdp.get(b"k") == value[:-8] + b"ends now"


@pytest.mark.parametrize("differs_at", [8, 9, 15, 16, 100, 248, 253, 254])
def test_long_keys_of_one_hash_are_told_apart(xdp: XdpStore, differs_at: int) -> None:
    """Only the one stored last is kept, and it is never returned for the other."""
    first = bytes(255)
    second = first[:differs_at] + b"\1" + first[differs_at + 1 :]
    xdp.set(first, b"first", key_hash=0x1234567)
    assert xdp.get(second, key_hash=0x1234567) is None
    xdp.set(second, b"second", key_hash=0x1234567)
    assert xdp.get(second, key_hash=0x1234567) == b"second"
    assert xdp.get(first, key_hash=0x1234567) is None
    assert int(xdp.store()["set_evicted"]) == 1


def test_keys_of_one_tag(load_store: Callable[..., XdpStore]) -> None:
    """A bucket keeps TAG_TURNS of them, including the one stored last, and no stale value."""
    xdp = load_store()
    keys = [bytes([65 + i]) * 8 for i in range(6)]
    hashes = [i << 50 for i in range(6)]  # one bucket, one tag (0, which counts as 1)
    for turn in range(3):
        for key, key_hash in zip(keys, hashes, strict=True):
            xdp.set(key, b"%d" % turn, key_hash)
            assert xdp.get(key, key_hash) == b"%d" % turn
            values = [xdp.get(k, h) for k, h in zip(keys, hashes, strict=True)]
            assert sum(value is not None for value in values) <= TAG_TURNS
            assert all(value in (None, b"%d" % turn, b"%d" % (turn - 1)) for value in values)


# ---- The lines of an inline store ----------------------------------------------------------------

PLACES = abi.KV_SHORT_GROUP * abi.KV_SHORT_ITEMS
"""Items that a group can hold."""


@pytest.fixture
def inline(load_store: Callable[..., XdpStore]) -> XdpStore:
    return load_store(short_lines=SHORT_LINES)


def hash_at_home(home: int, lines: int = SHORT_LINES) -> int:
    """Return a hash whose home is this line, with a tag of 0."""
    return -(-(home << 32) // lines) << 16


def short_items(xdp: XdpStore) -> dict[bytes, tuple[int, int]]:
    """Return the short items' keys with their lines and homes, as the lengths state them."""
    lines, epoch = xdp.short_lines, xdp.store()["epoch"]
    return {
        int(line["items"][way]["key"]).to_bytes(8, "little")[: length & 15]: (
            number,
            number ^ (length >> 8),
        )
        for number, line in enumerate(lines)
        for way, length in enumerate(map(int, line["lengths"]))
        if length and line["version"] == epoch
    }


@pytest.mark.parametrize("home", [0, 1, 5, 7, 8, SHORT_LINES - 1])
@pytest.mark.parametrize("count", [1, 3, 4, PLACES - 1, PLACES, PLACES + 1, PLACES + 7])
def test_a_group_is_filled_and_then_evicts(inline: XdpStore, home: int, count: int) -> None:
    """Nearest lines first; in a full group a new item replaces one of its own home line."""
    others = {b"other%d" % i: hash_at_home(i) for i in range(SHORT_LINES) if i // 8 != home // 8}
    for key, key_hash in others.items():
        inline.set(key, key, key_hash)
    keys = [b"%07d" % i for i in range(count)]
    for key in keys:
        inline.set(key, key[::-1], hash_at_home(home))
        assert inline.get(key, hash_at_home(home)) == key[::-1]
    held = {key: inline.get(key, hash_at_home(home)) for key in keys}
    kept = {key: value for key, value in held.items() if value is not None}
    assert all(value == key[::-1] for key, value in kept.items())
    assert len(kept) == min(count, PLACES)
    evicted = max(count - PLACES, 0)
    assert inline.counted("set_evicted", "set_new") == [evicted, count + len(others) - evicted]
    assert all(inline.get(key, key_hash) == key for key, key_hash in others.items())
    placed = short_items(inline)
    assert {placed[key][1] for key in kept} == {home}
    lines = sorted({placed[key][0] ^ home for key in kept})
    assert lines == list(range(min(-(-count // abi.KV_SHORT_ITEMS), abi.KV_SHORT_GROUP)))
    marks = sum(1 << distance for distance in lines if distance)
    assert int(inline.short_lines["other_lines"][home]) == marks


def test_a_mark_goes_with_the_last_item_of_its_home(inline: XdpStore) -> None:
    key_hash = hash_at_home(3)
    keys = [b"%d" % i for i in range(2 * abi.KV_SHORT_ITEMS)]
    for key in keys:
        inline.set(key, b"v", key_hash)
    for left, key in reversed(list(enumerate(keys))):
        assert inline.one(OPS.DELETE, key, key_hash=key_hash) == (abi.Result.SUCCESS, b"")
        has_mark = left > abi.KV_SHORT_ITEMS
        assert int(inline.short_lines["other_lines"][3]) == (1 << 1 if has_mark else 0)
        assert inline.get(key, key_hash) is None
    assert not short_items(inline)


def test_an_evicted_item_s_home_loses_its_mark(inline: XdpStore) -> None:
    """The victim lies in the new item's home line, and has another home."""
    for i in range(abi.KV_SHORT_ITEMS + 1):  # the last one goes into line 1
        inline.set(b"a%d" % i, b"v", hash_at_home(0))
    for i in range(PLACES):
        inline.set(b"b%d" % i, b"w", hash_at_home(1))
    found = [inline.get(b"a%d" % i, hash_at_home(0)) for i in range(abi.KV_SHORT_ITEMS + 1)]
    away = [key for key, (number, home) in short_items(inline).items() if home == 0 and number]
    assert found.count(b"v") == abi.KV_SHORT_ITEMS + len(away)
    assert bool(inline.short_lines["other_lines"][0]) == bool(away)


@pytest.mark.parametrize("key_bytes", [1, 7, 8])
@pytest.mark.parametrize("short", [0, 1, 7, 8])
@pytest.mark.parametrize("long", [9, 16, 900])
def test_an_item_moves_between_line_and_log(
    inline: XdpStore, key_bytes: int, short: int, long: int
) -> None:
    """It is in one of them only, whatever its value's length was before."""
    key = bytes(range(1, key_bytes + 1))
    inline.set(key, b"s" * short)
    for turn in range(3):
        inline.set(key, b"l" * long)
        assert key not in short_items(inline)
        assert inline.get(key) == b"l" * long
        assert inline.one(OPS.ADD, key, b"no") == (abi.Result.EXISTS, b"")
        inline.set(key, bytes([turn]) * short)
        assert key in short_items(inline)
        assert not inline.lines["words"].any()
        assert inline.get(key) == bytes([turn]) * short
        assert inline.one(OPS.ADD, key, b"n" * long) == (abi.Result.EXISTS, b"")
    assert inline.counted("set_new", "set_moved", "set_nooverwrite") == [1, 6, 6]
    assert inline.one(OPS.DELETE, key) == (abi.Result.SUCCESS, b"")
    assert inline.get(key) is None
    assert inline.one(OPS.DELETE, key) == (abi.Result.NOT_FOUND, b"")


@pytest.mark.parametrize("lines", [8, 16, SHORT_LINES])
def test_every_line_is_visited_before_the_epoch_returns(
    load_store: Callable[..., XdpStore], lines: int
) -> None:
    """RESET only raises the epoch; each batch with one also renews some lines."""
    xdp = load_store(short_lines=lines)
    store = xdp.store()
    store["epoch"] = 2**32 - 2
    xdp.write_store(store)
    for i in range(lines * 2):
        xdp.set(b"%d" % i, b"old")
    assert short_items(xdp)
    for turn in range(lines // abi.KV_SHORT_GROUP):
        assert xdp.one(OPS.RESET, b"") == (abi.Result.SUCCESS, b"")
        assert all(xdp.get(b"%d" % i) is None for i in range(lines * 2))
        xdp.set(b"new", b"%d" % turn)
        assert xdp.get(b"new") == b"%d" % turn
    assert set(short_items(xdp)) == {b"new"}
    assert 2**32 - 2 not in xdp.short_lines["version"]
    assert int(xdp.store()["epoch"]) == (2**32 - 2 + lines // abi.KV_SHORT_GROUP) % 2**32


def test_stale_lines_are_empty_to_everybody(inline: XdpStore) -> None:
    """A RESET before each operation: no mark, length or note of before has an effect."""
    key_hash = hash_at_home(9)
    for operation in (OPS.GET, OPS.TEST, OPS.DELETE, OPS.INCREMENT, OPS.ADD, OPS.SET):
        for i in range(PLACES + 2):
            inline.set(b"%d" % i, b"eight ok", key_hash)
        inline.set(b"0", b"a long value of before", key_hash)
        assert inline.one(OPS.RESET, b"") == (abi.Result.SUCCESS, b"")
        stores = operation in (OPS.ADD, OPS.SET)
        result = abi.Result.SUCCESS if stores else abi.Result.NOT_FOUND
        for key in (b"0", b"5", b"20"):
            value = b"eight ok" if stores or operation == OPS.INCREMENT else b""
            assert inline.one(operation, key, value, key_hash) == (result, b"")
            assert inline.get(key, key_hash) == (b"eight ok" if stores else None)
        wanted = dict.fromkeys((b"0", b"5", b"20"), (9, 9)) if stores else {}
        assert short_items(inline) == wanted
        assert inline.one(OPS.RESET, b"") == (abi.Result.SUCCESS, b"")


SHARED_TAG = [hash_at_home(home) | 7 for home in range(TAG_TURNS + 1)]
"""Hashes of one bucket (of 16) and one tag, each with a home of its own."""


@pytest.mark.parametrize("last", [b"long value of the second time", b"short"])
def test_no_key_is_hidden_in_the_index(load_store: Callable[..., XdpStore], last: bytes) -> None:
    """The first long value of a home, too, looks for the items of its tag, which must stay few: a
    hidden item would be entered again, and answer after the other had been deleted.
    """
    xdp = load_store(buckets=16, segments=SMALL_SEGMENTS, short_lines=SHORT_LINES)
    keys = [b"key %d" % i for i in range(len(SHARED_TAG))]
    for key, key_hash in zip(keys, SHARED_TAG, strict=True):
        xdp.set(key, b"long value of " + key, key_hash)
    for turn, (key, key_hash) in enumerate(zip(keys, SHARED_TAG, strict=True)):
        others = zip(keys, SHARED_TAG, strict=True)
        xdp.set(key, last, key_hash)
        for other, other_hash in list(others)[turn + 1 :]:
            xdp.one(OPS.DELETE, other, key_hash=other_hash)
        xdp.one(OPS.DELETE, key, key_hash=key_hash)
        assert xdp.get(key, key_hash) is None
    assert not short_items(xdp)


@pytest.mark.parametrize("short_lines", [0, SHORT_LINES])
@pytest.mark.parametrize("value_bytes", [LAST_VALUE_BYTES, LAST_VALUE_BYTES + 1])
def test_an_add_that_is_too_long_is_refused_also_where_the_key_is_there(
    load_store: Callable[..., XdpStore], short_lines: int, value_bytes: int
) -> None:
    room = abi.KV_FRAME_MAX - abi.SIZE("kv_packet_header")
    xdp = load_store(short_lines=short_lines, response_bytes_max=room)
    xdp.set(b"8 bytes.", b"v")
    is_refused = value_bytes > LAST_VALUE_BYTES
    result = abi.Result.INSUFFICIENT_SPACE if is_refused else abi.Result.EXISTS
    assert xdp.one(OPS.ADD, b"8 bytes.", b"x" * value_bytes) == (result, b"")
    assert xdp.counted("set_refused", "set_nooverwrite") == [int(is_refused), int(not is_refused)]
    assert xdp.get(b"8 bytes.") == b"v"


class Lossy:
    """A dict of a cache's values: a miss is allowed and noted, a wrong value never."""

    def __init__(self) -> None:
        self.values: dict[bytes, bytes] = {}

    def check(self, asked: Request, reply: codec.Reply) -> None:
        """Check a reply, and follow what the request has done."""
        known, results = self.values.get(asked.key), abi.Result
        if asked.operation == OPS.RESET:
            assert reply.result == results.SUCCESS
            self.values.clear()
        elif asked.operation == OPS.SET or reply.result in (results.NOT_FOUND, results.SUCCESS):
            self._follow(asked, reply, known)
        elif asked.operation == OPS.ADD:
            assert reply.result == results.EXISTS
            assert known is not None
        else:
            assert reply.result in (results.ERROR, results.INSUFFICIENT_SPACE)

    def _follow(self, asked: Request, reply: codec.Reply, known: bytes | None) -> None:
        if reply.result == abi.Result.NOT_FOUND:
            self.values.pop(asked.key, None)
            return
        assert reply.result == abi.Result.SUCCESS
        if asked.operation in (OPS.SET, OPS.ADD):
            self.values[asked.key] = asked.value
            return
        assert known is not None, "a deleted or lost value has come back"
        if asked.operation == OPS.GET:
            assert reply.value == known
        elif asked.operation == OPS.INCREMENT:
            self.values[asked.key] = added(known, asked.value)
            assert reply.value == self.values[asked.key]
        elif asked.operation == OPS.DELETE:
            del self.values[asked.key]


LENGTHS = (0, 1, 7, 8, 8, 8, 9, 16, 300)
CHOSEN = [OPS.SET] * 9 + [OPS.GET] * 5 + [OPS.ADD, OPS.TEST, OPS.DELETE, OPS.INCREMENT] * 2


def random_batch(
    random: np.random.Generator, pool: Sequence[tuple[bytes, int]], requests_per_reset: int
) -> list[Request]:
    """Return up to 20 requests on keys of the pool; sometimes several in a row on one key."""
    batch: list[Request] = []
    free_bytes = BATCH_BYTES
    for opaque in range(int(random.integers(1, 20))):
        key, key_hash = pool[int(random.integers(0, len(pool)))]
        if batch and random.integers(0, 3) == 0:
            key, key_hash = batch[-1].key, batch[-1].key_hash
        operation = CHOSEN[int(random.integers(0, len(CHOSEN)))]
        operation = operation if random.integers(0, requests_per_reset) else OPS.RESET
        size = 8 if operation == OPS.INCREMENT else LENGTHS[int(random.integers(0, len(LENGTHS)))]
        value = random.bytes(size) if operation in WITH_VALUE else b""
        free_bytes -= codec.item_bytes(len(key), len(value))
        if free_bytes >= 0:
            batch.append(request(operation, key, value, key_hash, opaque))
    return batch


def check_marks(xdp: XdpStore) -> None:
    """Each home's marks name exactly the lines that hold items of it; no item is there twice."""
    marks = [0] * len(xdp.short_lines)
    placed = list(short_items(xdp).values())
    for number, home in placed:
        marks[home] |= (1 << (number ^ home)) & ~1
    epoch = xdp.store()["epoch"]
    for number, line in enumerate(xdp.short_lines):
        assert marks[number] == (int(line["other_lines"]) if line["version"] == epoch else 0)
    used = xdp.short_lines["lengths"][xdp.short_lines["version"] == epoch]
    assert len(placed) == np.count_nonzero(used)


@pytest.mark.parametrize("tags", [1, 2, 1000])
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_nothing_stale_is_answered(
    load_store: Callable[..., XdpStore], seed: int, tags: int
) -> None:
    """A small table, a log that wraps, few tags, RESETs, and an epoch that wraps."""
    lines = 16
    xdp = load_store(buckets=3, segments=SMALL_SEGMENTS, short_lines=lines)
    store = xdp.store()
    store["epoch"] = 2**32 - 3
    xdp.write_store(store)
    random = np.random.default_rng(seed)
    pool = []
    for i in range(60):
        key_hash = hash_at_home(int(random.integers(0, lines)), lines)
        key = b"%d " % i * int(random.integers(1, 6))
        pool.append((key, key_hash | int(random.integers(0, tags))))
    model = Lossy()
    for _ in range(150):
        batch = random_batch(random, pool, requests_per_reset=100)
        for asked, reply in zip(batch, xdp.replies(batch), strict=True):
            model.check(asked, reply)
        check_marks(xdp)


@pytest.mark.parametrize(("lines", "buckets"), [(8, 5), (64, 38)])
def test_lines_are_used_as_the_native_core_s(
    load_store: Callable[..., XdpStore], lines: int, buckets: int
) -> None:
    """Stores of equal sizes give equal bytes and counts, evictions and moves included."""
    xdp = load_store(buckets=buckets, short_lines=lines)
    random = np.random.default_rng(lines)
    items = lines * abi.KV_SHORT_ITEMS_PER_8_LINES // 8
    pool = [
        (b"%07d" % i, hash_at_home(int(random.integers(0, lines)), lines) | i + 1)
        for i in range(6 * items)
    ]
    twin = NativeTwin(RESPONSE_BYTES_MAX, is_inline=True, items=items)
    names = (*COUNTERS, "set_evicted")
    try:
        for _ in range(400):
            batch = random_batch(random, pool, requests_per_reset=3000)
            assert xdp.run(batch)[0] == Verdict.TX
            records, body, answer = latest(xdp, len(batch))
            assert meaningful(answer) == meaningful(twin.process(records, body))
            assert xdp.counted(*names) == twin.counted(*names)
        assert min(xdp.counted("set_evicted", "set_moved")) > 10
    finally:
        twin.close()


# ---- Losing --------------------------------------------------------------------------------------


def test_a_tiny_log_wraps(load_store: Callable[..., XdpStore]) -> None:
    """Every item found is right, and items that the log cannot have overwritten are found."""
    xdp = load_store(buckets=16, segments=SMALL_SEGMENTS)
    model: dict[bytes, bytes] = {}
    order: list[bytes] = []
    generator = np.random.default_rng(7)
    for turn in range(2500):
        key = b"key%d" % generator.integers(0, 150) * int(generator.integers(1, 12))
        value = bytes([turn % 256]) * int(generator.integers(0, 1500))
        xdp.set(key, value)
        model[key] = value
        order = [k for k in order if k != key] + [key]
        assert xdp.get(key) == value
        other = order[int(generator.integers(0, len(order)))]
        assert xdp.get(other) in (None, model[other])
    # The last 20 items occupy less than half of the log.
    assert [xdp.get(key) for key in order[-20:]] == [model[key] for key in order[-20:]]
    store = xdp.store()
    assert int(store["tail"]) > 5 * abi.KV_SEGMENT_BYTES
    assert int(store["cleanup"]) > 0
    assert int(store["log_bytes"]) == SMALL_SEGMENTS * abi.KV_SEGMENT_BYTES
    assert int(store["buckets"]) == 16


def test_a_full_bucket_evicts_its_oldest(load_store: Callable[..., XdpStore]) -> None:
    xdp = load_store(buckets=16, segments=SMALL_SEGMENTS)
    ways = abi.KV_BUCKET_WAYS
    keys = [b"%08d" % i for i in range(ways + 5)]
    for i, key in enumerate(keys):
        xdp.set(key, b"v%d" % i, key_hash=i + 1)  # one bucket, different tags
    values = [xdp.get(key, key_hash=i + 1) for i, key in enumerate(keys)]
    assert values == [None] * 5 + [b"v%d" % i for i in range(5, ways + 5)]
    assert int(xdp.store()["set_evicted"]) == 5
    assert int(xdp.store()["set_new"]) == ways


def test_cleanup_drops_dead_words(load_store: Callable[..., XdpStore]) -> None:
    xdp = load_store(buckets=16, segments=SMALL_SEGMENTS)
    for i in range(30):
        xdp.set(b"old%d" % i, b"v")
    for turn in range(110):  # two laps of the log, and many rounds of the cleanup
        for key in (b"new", b"other"):
            xdp.set(key, b"w" * (1000 + turn * 8))
    assert np.count_nonzero(xdp.lines["words"]) == 2
    assert int(xdp.store()["cleanup"]) == 30
    assert xdp.get(b"new") == xdp.get(b"other") == b"w" * (1000 + 109 * 8)


def test_words_in_use_stay_a_prefix(load_store: Callable[..., XdpStore]) -> None:
    """A lookup stops at a first line that is not full."""
    xdp = load_store(buckets=16, segments=SMALL_SEGMENTS)
    generator = np.random.default_rng(3)
    for i in range(2000):
        xdp.set(b"%d" % i, b"v" * int(generator.integers(0, 600)))
    halves = xdp.lines["words"].reshape(2, 16, abi.KV_LINE_WORDS)
    used = np.concatenate([halves[0], halves[1]], axis=1) != 0
    assert used.any()
    assert not (used[:, 1:] & ~used[:, :-1]).any()
    assert not used[:, abi.KV_BUCKET_WAYS].any()


# ---- Against the native engine -------------------------------------------------------------------


class NativeTwin:
    """A native engine that gets the same batches."""

    def __init__(
        self,
        response_bytes_max: int,
        *,
        owners: tuple[int, ...] = (0,),
        read: bool = True,
        write: bool = True,
        reset_allowed: bool = True,
        is_inline: bool = False,
        items: int = 1 << 12,
    ) -> None:
        """`owners` are the partitions' engines: this one is number 0."""
        self.memory = ffi.new("struct kv_queue_pair[1]")
        self.pair = queue_pairs_view(self.memory, 1)[0]
        options = ffi.new(
            "struct kv_store_options *",
            {
                "item_count": items,
                "log_bytes": 1 << 22,
                "move_to_head": 1 << 16,
                "kind": lib.KV_STORE_INLINE if is_inline else lib.KV_STORE_CACHE,
            },
        )
        self._store = Store(options)
        self._partitions = ffi.new("struct kv_partition_table *")
        table = partition_table(
            owners, concurrent_read=read, concurrent_write=write, reset_allowed=reset_allowed
        )
        ffi.memmove(self._partitions, table.tobytes(), table.nbytes)
        self._engine = ProcessingEngine(
            engine_id=0,
            cpu=OTHER_CPU,
            stores=[self._store] * len(owners),
            partitions=self._partitions,
            takes_all=owners == (0,),
            response_bytes_max=response_bytes_max,
        )
        self._engine.add_pairs(self.memory, 1)
        self._core = HostCore(OTHER_CPU)
        self._core.add_engine(self._engine)
        self._core.start()
        self._published = 0

    def close(self) -> None:
        """Stop the engine."""
        self._core.stop()
        self._store.close()

    def stats(self) -> dict[str, int]:
        """Return its counters and its store's."""
        return self._store.stats() | self._engine.stats()

    def counted(self, *names: str) -> list[int]:
        """Some of them."""
        counters = self.stats()
        return [counters[name] for name in names]

    def process(self, records: Any, body: Any) -> Answer:
        """Return the responses to a batch of these records, with this body behind them."""
        number, count = self._published, len(records)
        entry = self.pair["batches"][number % abi.KV_BATCHES]
        entry["count"], entry["has_body"], entry["body_bytes"] = count, 1, abi.KV_FRAME_MAX
        batch = batch_at(self.pair, number)
        batch.records[:] = records
        batch.body[: abi.KV_FRAME_MAX] = body[: abi.KV_FRAME_MAX]
        self._published += 1
        self.pair["request_control"]["answered"] = number
        self.pair["request_control"]["published"] = self._published
        wait_until(
            lambda: self.pair["response_control"]["published"] == self._published, "it answers"
        )
        return answer_at(self.pair, number, count)


COUNTERS = (
    "gets", "sets", "noops", "errors", "not_supported", "rejected", "set_nooverwrite", "set_new",
    "set_inplace", "set_moved", "set_refused", "get_notfound", "test_found", "test_notfound",
    "delete_found", "delete_notfound", "increment_found", "increment_notfound",
)  # fmt: skip
"""Counters that both engines count alike, as long as nothing is lost. get_found differs: the native
engine looks twice for a long value under a short key.
"""


def meaningful(answer: Answer) -> tuple[int, bytes, bytes]:
    """Return the bytes on the wire of a batch's responses, their records, and their long values."""
    value_bytes = (answer.records["header"] >> np.uint64(32)) & np.uint64(0xFFFFFF)
    values_bytes = sum(codec.roundup8(int(n)) for n in value_bytes if n > abi.KV_INLINE_MAX)
    return (
        int(answer.entry["wire_bytes"]),
        answer.records.tobytes(),
        answer.values[:values_bytes].tobytes(),
    )


def latest(xdp: XdpStore, count: int) -> tuple[Any, Any, Answer]:
    """Return the records, body and responses of the batch of `count` requests processed last.

    In XDP, body and long values are always KV_BATCH_MAX records behind the first one.
    """
    requests, responses = xdp.pair()["requests"], xdp.pair()["responses"]
    behind = slice(abi.KV_BATCH_MAX, abi.KV_BATCH_RECORDS_MAX)
    body, values = requests[behind].view(np.uint8), responses[behind].view(np.uint8)
    answer = Answer(xdp.pair()["answers"][0], responses[:count], values)
    return requests[:count], body, answer


@pytest.mark.parametrize(
    ("short_lines", "response_bytes_max"),
    [(0, RESPONSE_BYTES_MAX), (0, 1452), (0, 300), (SHORT_LINES, RESPONSE_BYTES_MAX)],
)
def test_records_are_the_native_engines(
    load_store: Callable[..., XdpStore], short_lines: int, response_bytes_max: int
) -> None:
    """Both also refuse the same requests for lack of room in the response."""
    xdp = load_store(short_lines=short_lines, response_bytes_max=response_bytes_max)
    compared = []

    @settings(max_examples=120, deadline=None)
    @given(batches())
    def compare(found: list[list[Request]]) -> None:
        xdp.reset()
        twin = NativeTwin(response_bytes_max, is_inline=bool(short_lines))
        try:
            for batch in found:
                xdp.run(batch)
                records, body, answer = latest(xdp, len(batch))
                mine = meaningful(answer)
                assert mine == meaningful(twin.process(records, body))
                compared.append(mine[0])
            assert xdp.counted(*COUNTERS) == twin.counted(*COUNTERS)
        finally:
            twin.close()

    compare()
    assert len(compared) > 100


@dataclass(frozen=True)
class Case:
    """A request on a store that holds HELD, in a batch with others behind it."""

    operation: int
    key: bytes
    value: bytes
    behind: int
    """Requests behind it: the response has to leave room for theirs."""

    @property
    def batch(self) -> list[Request]:
        """The request, and misses behind it."""
        asked = request(self.operation, self.key, self.value)
        return [asked, *(request(OPS.GET, b"absent%02d" % i) for i in range(self.behind))]

    def expected(self) -> int | None:
        """The result that KV_OPERATION_TABLE gives; None where lengths or room decide."""
        bit = 1 << self.operation
        if not bit & abi.KV_OPS_KNOWN:
            return int(abi.KV_NOT_SUPPORTED)
        if not bit & abi.KV_OPS_KEYED:
            return int(abi.KV_SUCCESS)
        if not self.key:
            return int(abi.KV_ERROR)
        is_present = self.key in HELD
        if bit & abi.KV_OPS_THAT_COUNT:
            lengths = {len(self.value), len(HELD.get(self.key, self.value))}
            if lengths != {abi.KV_NUMBER_BYTES}:
                return int(abi.KV_ERROR)
        if self.behind or len(self.value) > ROOM - abi.SIZE("kv_item_header"):
            return None
        name = abi.Operation(self.operation).name
        column = "PRESENT" if is_present else "MISSING"
        return int(getattr(abi, f"KV_{column}_{name}"))


ROOM = 512
"""Response bytes of one packet in these cases."""
HELD = {
    b"12345678": b"8 bytes!",
    b"short": b"",
    b"a key of more than eight bytes": b"number 8",
    b"longish!": b"a value of more than eight bytes" * 3,
}
"""Items of every kind of lengths."""
CASES = [
    Case(operation, key, value, behind)
    for operation in (*abi.Operation, *UNKNOWN_OPERATIONS)
    for key in (b"", b"missing!", b"a missing key of more than eight bytes", *HELD)
    for value in (b"", b"7 bytes", b"8 bytes.", b"9 bytes..", b"v" * 488, b"v" * 489)
    for behind in (0, 11, 13, 14, 15)
]
"""13 requests behind leave room for a value of 72 bytes, 14 for one of 40, 15 for 8."""


def decisions(xdp: XdpStore, twin: NativeTwin, case: Case) -> list[tuple[Any, ...]]:
    """What XDP and the host make of a case: result, lengths, bytes and counters."""
    before = xdp.counted(*COUNTERS), twin.counted(*COUNTERS)
    verdict, _ = xdp.run(case.batch)
    assert verdict == Verdict.TX
    records, body, answer = latest(xdp, len(case.batch))
    native = twin.process(records, body)
    after = xdp.counted(*COUNTERS), twin.counted(*COUNTERS)
    return [
        (*meaningful(found), [now - old for now, old in zip(*counts, strict=True)])
        for found, counts in (
            (answer, (after[0], before[0])),
            (native, (after[1], before[1])),
        )
    ]


def result_of(records: bytes) -> int:
    """The result of the first response."""
    return records[abi.offset("kv_item_header", "result")]


@pytest.mark.parametrize(
    ("short_lines", "reset_allowed"), [(0, True), (0, False), (SHORT_LINES, True)]
)
def test_every_case_is_decided_alike(
    load_store: Callable[..., XdpStore], short_lines: int, reset_allowed: bool
) -> None:
    """The same requests through XDP and through the host's engine, field by field."""
    xdp = load_store(short_lines=short_lines, response_bytes_max=ROOM)
    xdp.set_access(reset_allowed=reset_allowed)
    twin = NativeTwin(ROOM, reset_allowed=reset_allowed, is_inline=bool(short_lines))
    hold = [request(OPS.SET, key, value) for key, value in HELD.items()]
    clear = [request(OPS.DELETE, key) for key in {case.key for case in CASES} - {b""}]
    try:
        for case in CASES:
            for batch in (clear, hold):
                xdp.run(batch)
                twin.process(*latest(xdp, len(batch))[:2])
            mine, native = decisions(xdp, twin, case)
            assert mine == native, case
            expected = case.expected()
            if case.operation == OPS.RESET and not reset_allowed:
                expected = abi.KV_NOT_SUPPORTED
            if expected is not None:
                assert result_of(mine[1]) == expected, case
    finally:
        twin.close()


@pytest.mark.parametrize(("read", "write"), [(False, False), (True, False), (True, True)])
@pytest.mark.parametrize("operation", [*abi.Operation, *UNKNOWN_OPERATIONS])
def test_both_reject_the_same_operations(
    load_store: Callable[..., XdpStore], operation: int, read: bool, write: bool
) -> None:
    """EREW, CREW and CRCW on a partition of another engine: RESET alone needs no permission."""
    xdp = load_store(engines=2, stores=1, response_bytes_max=ROOM)
    xdp.partitions["partitions"] = 1
    xdp.partitions["owner"][0] = 1
    xdp.set_access(read=read, write=write)
    twin = NativeTwin(ROOM, owners=(1,), read=read, write=write)
    try:
        for key in (b"", b"12345678", b"a key of more than eight bytes"):
            mine, native = decisions(xdp, twin, Case(operation, key, b"8 bytes.", 0))
            assert mine == native
            reads = operation in abi.operations(abi.KV_OPS_THAT_READ)
            rejects = operation != OPS.RESET and not (read if reads else write)
            assert (result_of(mine[1]) == abi.KV_REJECTED) == rejects
    finally:
        twin.close()


def test_room_for_short_gets(load_store: Callable[..., XdpStore]) -> None:
    """More responses than the rule allows: as on the host, a short GET does not check for room."""
    xdp = load_store(response_bytes_max=300)
    twin = NativeTwin(300)
    try:
        for batch in (
            [request(abi.Operation.SET, b"%08d" % i, b"%08d" % i) for i in range(8)],
            [request(abi.Operation.GET, b"%08d" % i) for i in range(16)],
            [request(abi.Operation.GET, b"%07d" % i) for i in range(16)],
        ):
            xdp.run(batch)
            records, body, answer = latest(xdp, len(batch))
            assert meaningful(answer) == meaningful(twin.process(records, body))
    finally:
        twin.close()


# ---- Who may ------------------------------------------------------------------------------------


@pytest.mark.parametrize("stores", [1, 2])
@pytest.mark.parametrize(("read", "write"), [(False, False), (True, False), (True, True)])
def test_another_engines_partition_is_rejected(
    load_store: Callable[..., XdpStore], stores: int, read: bool, write: bool
) -> None:
    """EREW, CREW, CRCW; partition 3 has no owner yet."""
    owners = (0, 1, 1, abi.KV_OWNER_NONE)
    xdp = load_store(engines=2, stores=stores)
    xdp.partitions["partitions"] = len(owners)
    xdp.partitions["owner"][: len(owners)] = owners
    reading = (OPS.NOOP_READ, OPS.GET, OPS.TEST)
    asked = [*reading, OPS.NOOP_WRITE, OPS.ADD, OPS.SET, OPS.DELETE, OPS.INCREMENT, 9, 37, 69, 255]
    requests = [
        request(operation, b"%08d" % i, b"12345678" if operation in WITH_VALUE else b"", i << 48)
        for i in range(4)
        for operation in asked
    ]
    requests.append(request(OPS.RESET, b"", key_hash=3 << 48))
    xdp.set_access(read=read, write=write)
    counts = []
    for engine in (0, 1):
        rejected = 0
        for sent, reply in zip(requests, xdp.replies(requests, engine), strict=True):
            may = read if sent.operation in reading else write
            wanted = owners[sent.key_hash >> 48] != engine and not may
            wanted &= sent.operation != OPS.RESET
            assert (reply.result == abi.Result.REJECTED) == wanted
            rejected += wanted
        counts.append(rejected)
    found = [xdp.counted("rejected", engine=index)[0] for index in range(stores)]
    assert found == (counts if stores == 2 else [sum(counts)])


def test_engines_may_share_a_store(load_store: Callable[..., XdpStore]) -> None:
    xdp = load_store(engines=2, stores=1)
    xdp.replies([request(OPS.SET, b"shared", b"zero")], 0)
    assert xdp.replies([request(OPS.GET, b"shared")], 1)[0].value == b"zero"
    xdp.replies([request(OPS.DELETE, b"shared")], 1)
    assert xdp.replies([request(OPS.GET, b"shared")], 0)[0].result == abi.Result.NOT_FOUND
    assert int(xdp.store()["batches"]) == 4


def test_reset_is_of_the_engines_own_store(load_store: Callable[..., XdpStore]) -> None:
    xdp = load_store(engines=2)
    for engine in (0, 1):
        xdp.replies([request(OPS.SET, b"k", b"v")], engine)
    xdp.replies([request(OPS.RESET, b"")], 1)
    results = [xdp.replies([request(OPS.GET, b"k")], engine)[0].result for engine in (0, 1)]
    assert results == [abi.Result.SUCCESS, abi.Result.NOT_FOUND]


def test_engines_have_stores_of_their_own(load_store: Callable[..., XdpStore]) -> None:
    xdp = load_store(engines=2)
    xdp.replies([request(abi.Operation.SET, b"shared", b"zero")], 0)
    xdp.replies([request(abi.Operation.SET, b"shared", b"one")], 1)
    get = [request(abi.Operation.GET, b"shared")]
    assert [xdp.replies(get, engine)[0].value for engine in (0, 1)] == [b"zero", b"one"]


@pytest.mark.parametrize("partitions", [0, abi.KV_PARTITIONS_MAX + 1, 2**32 - 1])
def test_a_broken_partition_table_owns_nothing(
    load_store: Callable[..., XdpStore], partitions: int
) -> None:
    xdp = load_store(engines=2)
    xdp.partitions["partitions"] = partitions
    xdp.partitions["owner"][:] = 0
    xdp.set_access(read=False, write=False)
    (reply,) = xdp.replies([request(abi.Operation.GET, b"k")])
    assert reply.result == abi.Result.REJECTED


def test_a_busy_partition(xdp: XdpStore) -> None:
    """Another core holds the lock: the frame is dropped and counted, and has no effect."""
    xdp.set(b"k", b"before")
    before = xdp.store()
    before["owner"] = 99
    xdp.write_store(before)
    assert xdp.run([request(abi.Operation.SET, b"k", b"after")])[0] == Verdict.DROP
    assert xdp.counters()["DROP_PARTITION_BUSY"] == 1
    now = xdp.store()
    assert now.tobytes() == before.tobytes()
    now["owner"] = 0
    xdp.write_store(now)
    assert xdp.get(b"k") == b"before"
    assert int(xdp.store()["owner"]) == 0


@pytest.mark.skipif(
    OTHER_CPU == CPU,
    reason="this process may use one core, and two have to want the partition at once",
)
def test_two_cores_share_a_partition(xdp: XdpStore) -> None:
    """No update of one core is lost by the other: every answered frame was counted and its items
    were appended.
    """
    frames_each = 3000
    answered = {CPU: 0, OTHER_CPU: 0}

    def hammer(cpu: int) -> None:
        os.sched_setaffinity(0, {cpu})
        for turn in range(frames_each):
            keys = [b"%d %d %d" % (cpu, turn, i) for i in range(8)]
            verdict, _ = xdp.run([request(abi.Operation.SET, key, key) for key in keys])
            answered[cpu] += verdict == Verdict.TX

    threads = [threading.Thread(target=hammer, args=[cpu]) for cpu in answered]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    store = xdp.store()
    frames = sum(answered.values())
    busy = xdp.counters().get("DROP_PARTITION_BUSY", 0)
    assert frames + busy == 2 * frames_each
    assert min(answered.values()) > frames_each // 2
    assert int(store["batches"]) == frames
    assert int(store["requests"]) == int(store["set_new"] + store["set_evicted"]) == 8 * frames
    if not xdp.has_lines:
        assert int(store["appended"]) == 8 * frames
    assert int(store["owner"]) == 0


def test_a_malformed_frame_changes_nothing(xdp: XdpStore) -> None:
    xdp.set(b"k", b"before")
    before = xdp.store().tobytes()
    frame = request_frame([request(abi.Operation.SET, b"k", b"after")] * 2)
    changed = bytearray(frame)
    changed[len(frame) - codec.item_bytes(1, 5) + abi.offset("kv_item_header", "kv_length") + 1] = 1
    assert xdp.receive(bytes(changed))[0] == Verdict.DROP
    assert xdp.counters()["DROP_TRUNCATED"] == 1
    assert xdp.store().tobytes() == before
    assert xdp.get(b"k") == b"before"


# ---- Counting ------------------------------------------------------------------------------------


def test_statistics(xdp: XdpStore) -> None:
    ops = abi.Operation
    xdp.replies(
        [
            request(ops.SET, b"12345678", b"87654321"),
            request(ops.GET, b"12345678"),
            request(ops.GET, b"missing!"),
            request(ops.SET, b"12345678", b"longer than before"),
            request(ops.SET, b"12345678", b"short"),
            request(ops.NOOP_READ, b""),
            request(37, b"12345678"),
            request(ops.GET, b""),
        ]
    )
    xdp.replies([request(ops.GET, b"12345678"), request(ops.SET, b"12345678", b"eight ok")])
    xdp.replies([request(ops.GET, b"12345678"), request(ops.SET, b"12345678", b"still ok")])
    counted = {
        "batches": 3, "requests": 12, "gets": 4, "sets": 5, "noops": 1, "errors": 1,
        "not_supported": 1, "rejected": 0, "get_found": 3, "get_notfound": 1, "set_new": 1,
        "set_inplace": 3, "set_moved": 1, "set_evicted": 0, "set_refused": 0, "appended": 2,
        "owner": 0,
    }  # fmt: skip
    if xdp.has_lines:  # the item goes to the log and comes back
        counted |= {"set_inplace": 2, "set_moved": 2, "appended": 1}
    assert dict(zip(counted, xdp.counted(*counted), strict=True)) == counted


def test_a_value_that_no_response_could_hold(load_store: Callable[..., XdpStore]) -> None:
    xdp = load_store(response_bytes_max=300)
    (reply,) = xdp.replies([request(abi.Operation.SET, b"k", b"v" * 280)])
    assert reply.result == abi.Result.INSUFFICIENT_SPACE
    xdp.set(b"k", b"v" * 272)
    assert xdp.get(b"k") == b"v" * 272
    assert xdp.counted("errors") == [1]


def test_hash_of_the_library_is_used() -> None:
    """Keys of the tests are hashed as clients hash them."""
    assert request(abi.Operation.GET, b"k").key_hash == lib.kv_hash(b"k", 1)
