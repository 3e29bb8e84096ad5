# SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
"""Drive the server's BPF programs from a test, without a network.

A `Dpu` is a communication engine: it gets frames by BPF_PROG_RUN, its queue pairs are mapped, and
its private state can be read and set. `PlayedEngine` is a processing engine that the test controls
step by step; `serving` starts real ones.
"""

import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from reference import execute

from dpukv_xdp._core._native import ffi, lib
from dpukv_xdp.base.patience import patient
from dpukv_xdp.kernel import loader
from dpukv_xdp.native.engines import HostCore, ProcessingEngine
from dpukv_xdp.native.stores import Store
from dpukv_xdp.topology.placement import partition_table
from dpukv_xdp.wire import abi, codec
from dpukv_xdp.wire.codec import Endpoint, Reply, Request

CPU = min(os.sched_getaffinity(0))
"""The communication core: tests/bpf/conftest.py pins the tests to it, because BPF_PROG_RUN runs
where its caller does.
"""
OTHER_CPU = min(os.sched_getaffinity(0) - {CPU}, default=CPU)
"""The core of processing engines."""

PORT = 9800
CLIENT = Endpoint("02:00:00:00:00:02", "10.0.0.2", 49152)
SERVER = Endpoint("02:00:00:00:00:01", "10.0.0.1", PORT)

HEADER_BYTES = abi.SIZE("kv_packet_header")
ITEM_BYTES = abi.SIZE("kv_item_header")
FLUSH_FRAME_BYTES = 64
"""Bytes of the sender's frame for kv_flush, whose first word is the queue pair's index."""
RESPONSE_BYTES_MAX = abi.KV_FRAME_MAX - abi.KV_VLAN_BYTES - HEADER_BYTES
"""Most response bytes after the packet header, on a link whose MTU allows KV_FRAME_MAX."""
ANSWER_SECONDS = patient(5.0)
"""Time-out of a real engine, which needs microseconds."""


TAIL_CALLS = ["kv_reject", "kv_wait"]
"""The programs of enum kv_program in bpf/base/maps.h, in its order."""


class Verdict(IntEnum):
    """The verdicts of enum xdp_action in <linux/bpf.h>."""

    ABORTED = 0
    DROP = 1
    PASS = 2
    TX = 3


@dataclass(frozen=True)
class Case:
    """A frame, and the verdict, reply and counters that must result."""

    id: str
    packet: bytes
    verdict: Verdict
    reply: bytes | None = None
    """The reply's frame; None if there is none."""
    counters: Mapping[str, int] | None = None
    """The change of every counter that moves; None if the test does not check them."""


def run_once(program_fd: int, frame: bytes) -> tuple[Verdict, bytes]:
    """Run an XDP program on a frame; return its verdict and the resulting frame.

    Raises OSError if the kernel refuses, for example for fewer than 14 bytes.
    """
    out = ffi.new("uint8_t[]", 2 * abi.KV_FRAME_MAX)
    results = ffi.new("uint32_t[2]")
    status = lib.kv_bpf_run_once(program_fd, frame, len(frame), out, len(out), results, results + 1)
    if status < 0:
        raise OSError(-status, f"BPF_PROG_RUN: {os.strerror(-status)}")
    return Verdict(results[1]), bytes(ffi.buffer(out, results[0]))


# ---- The communication engine --------------------------------------------------------------------


class Dpu:
    """kv_receive and kv_flush with their maps; all engines are on the host, with the DPU's door."""

    def __init__(
        self,
        *,
        engines: int = 1,
        cpus: int = CPU + 1,
        port: int = PORT,
        address: str = "0.0.0.0",
        mac: str = "",
        broadcast: str = "0.0.0.0",
        depth: tuple[int, int] = (abi.KV_PIPELINE_MAX, abi.KV_PIPELINE_MAX),
        silent_ns: int = 0,
        when_silent: int = abi.KV_SILENT_REJECT,
        source: str = "kv_receive.c",
    ) -> None:
        """`depth` is (KV_DEPTH_MIN, KV_DEPTH_MAX); `source` a file in bpf/ or an absolute path."""
        settings = {
            "KV_ENGINES": engines,
            "KV_DPU_ENGINES": engines,
            "KV_CPUS": cpus,
            "KV_PORT": port,
            "KV_MAC": codec.mac_word(mac),
            "KV_BROADCAST": codec.network_order_word(broadcast),
            "KV_ADDRESS": int.from_bytes(codec.ip_to_bytes(address), "little"),
            "KV_DEPTH_MIN": depth[0],
            "KV_DEPTH_MAX": depth[1],
            "KV_PROCESS_HERE": 0,
            "KV_TRANSPORT": abi.KV_TRANSPORT_RING,
            "KV_HOST_FRAMES": abi.KV_TRANSPORT_RING,
            "KV_SENDER_ONLY": 0,
            "KV_TRANSFER_PER_REQUEST": 0,
            "KV_PREPARE_OVERLAPS": 1,
            "KV_SLOWER_PERCENT": 0,
            "KV_SILENT_NS": silent_ns,
            "KV_WHEN_SILENT": when_silent,
        }
        self.engines, self.cpus, self.port = engines, cpus, port
        self._loaded = loader.load(source, ["kv_receive", "kv_flush"], settings, TAIL_CALLS)
        self.receive_fd = self._loaded.programs["kv_receive"]
        self.flush_fd = self._loaded.programs["kv_flush"]
        count = engines * cpus
        element = "struct kv_queue_pair"
        self.memory = loader.map_memory(self._loaded.map_fd("kv_queue_pairs"), element, count)
        self.pairs = queue_pairs_view(self.memory, count)
        self.heartbeats = loader.map_memory(
            self._loaded.map_fd("kv_heartbeats"), "struct kv_heartbeat", engines
        )
        """A sign of life of each engine, which is read and written in place."""
        self.partitions = loader.map_memory(
            self._loaded.map_fd("kv_partitions"), "struct kv_partition_table", 1
        )

    def close(self) -> None:
        """Unload the programs and maps."""
        self._loaded.close()

    def reset(self, start: int = 0, engine_cpu: int = CPU + 1, alive: bool = True) -> None:
        """Restore the state after loading, with engines on `engine_cpu` and all batch counters at
        `start`; each engine owns one partition.
        """
        self.pairs.view(np.uint8)[:] = 0
        blank = np.zeros(1, abi.dtype("kv_dpu_queue"))[0]
        blank["finished"] = start % 2**32
        self._loaded.write_entry("kv_parked", self.index(), bytes(abi.SIZE("kv_parked")))
        for field in ("published", "answered"):
            blank[field] = start % 2**32
            self.pairs["request_control"][field] = start % 2**32
        self.pairs["response_control"]["published"] = start % 2**32
        for engine in range(self.engines):
            self.heartbeats[engine].beat_ns = int(alive)
        self.pairs["response_control"]["engine_cpu"] = engine_cpu
        for index in range(self.engines * self.cpus):
            self._write(index, blank)
        table = partition_table(
            tuple(range(self.engines)), concurrent_read=False, concurrent_write=False
        )
        ffi.memmove(self.partitions, table.tobytes(), table.nbytes)

    def set_beat(self, beat_ns: int, engine: int = 0) -> None:
        """Set an engine's heartbeat, and let XDP look at it with the next frame."""
        self.heartbeats[engine].beat_ns = beat_ns
        self.set_queue(engine, looked_at_tick=0)

    def receive(self, frame: bytes) -> tuple[Verdict, bytes]:
        """Run kv_receive on a frame; return the verdict and the resulting frame."""
        return run_once(self.receive_fd, frame)

    def flush(self, engine: int = 0) -> tuple[Verdict, bytes]:
        """Run kv_flush for the queue pair of this core and an engine, as the sender does."""
        return self.flush_index(self.index(engine))

    def flush_index(self, index: int) -> tuple[Verdict, bytes]:
        """Run kv_flush for any index of a queue pair, valid or not."""
        return run_once(self.flush_fd, index.to_bytes(4, "little").ljust(FLUSH_FRAME_BYTES, b"\0"))

    def index(self, engine: int = 0) -> int:
        """Return the index of this core's queue pair with an engine."""
        return engine * self.cpus + CPU

    def pair(self, engine: int = 0) -> Any:
        """Return the mapped queue pair, which is read and written in place."""
        return self.pairs[self.index(engine)]

    def queue(self, engine: int = 0) -> Any:
        """Return a copy of the queue pair's private side."""
        raw = self._loaded.read_entry("kv_dpu_queues", self.index(engine))
        return np.frombuffer(raw, abi.dtype("kv_dpu_queue"))[0]

    def set_queue(self, engine: int = 0, **fields: Any) -> None:
        """Change fields of the queue pair's private side."""
        queue = self.queue(engine).copy()
        for name, value in fields.items():
            queue[name] = value
        self._write(self.index(engine), queue)

    def in_flight(self, engine: int = 0) -> int:
        """Return the number of batches that are published and not yet answered."""
        queue = self.queue(engine)
        return (int(queue["published"]) - int(queue["answered"])) % 2**32

    def counters(self) -> dict[str, int]:
        """Return the counters that are not 0, over all queue pairs, by the names of abi.Counter."""
        queues = self._loaded.read_array("kv_dpu_queues", abi.dtype("kv_dpu_queue"))
        totals = queues["counters"].sum(axis=0)
        return {abi.Counter(i).name: int(total) for i, total in enumerate(totals) if total}

    def exchange(self, frame: bytes, engine: int = 0) -> tuple[Verdict, bytes]:
        """Send a frame to a real engine; return its response, from the same frame or flushed."""
        verdict, out = self.receive(frame)
        deadline = time.monotonic() + ANSWER_SECONDS
        while verdict == Verdict.DROP and self.in_flight(engine):
            assert time.monotonic() < deadline, "the engine does not answer"
            verdict, out = self.flush(engine)
        return verdict, out

    def _write(self, index: int, queue: Any) -> None:
        self._loaded.write_entry("kv_dpu_queues", index, queue.tobytes())


class Batch(NamedTuple):
    """Views of one batch of requests in a queue pair."""

    entry: Any
    """Its struct kv_batch_entry."""
    records: Any
    """Its struct kv_request, shape [count]."""
    body: npt.NDArray[np.uint8]
    """The bytes behind them, where the packet's body lies if it has one."""


class Answer(NamedTuple):
    """Views of the responses to one batch in a queue pair."""

    entry: Any
    """Its struct kv_answer_entry."""
    records: Any
    """Its struct kv_response, shape [count]."""
    values: npt.NDArray[np.uint8]
    """The bytes behind them, where long values lie."""


def batch_at(pair: Any, number: int, count: int | None = None) -> Batch:
    """Return the views of batch `number`; `count` is its number of requests if its entry does not
    have it yet.
    """
    entry = pair["batches"][number % abi.KV_BATCHES]
    count = int(entry["count"]) if count is None else count
    first = int(entry["first_record"]) % abi.KV_RECORDS
    return Batch(entry, *_split(pair["requests"], first, count))


def answer_at(pair: Any, number: int, count: int) -> Answer:
    """Return the views of the responses to batch `number`, which has `count` requests."""
    entry = pair["answers"][number % abi.KV_BATCHES]
    first = int(entry["first_record"]) % abi.KV_RECORDS
    return Answer(entry, *_split(pair["responses"], first, count))


def _split(ring: Any, first: int, count: int) -> tuple[Any, npt.NDArray[np.uint8]]:
    """Return `count` records of a ring, and the bytes behind them."""
    behind = ring[first + count :][: abi.KV_BATCH_RECORDS_MAX]
    return ring[first : first + count], behind.view(np.uint8)


def queue_pairs_view(memory: Any, count: int) -> npt.NDArray[Any]:
    """Return a C array of struct kv_queue_pair as a numpy array of the same memory."""
    buffer = ffi.buffer(memory, count * abi.SIZE("kv_queue_pair"))
    return np.frombuffer(buffer, abi.dtype("kv_queue_pair"))


# ---- Processing engines --------------------------------------------------------------------------


class PlayedEngine:
    """The host's end of a queue pair, controlled step by step."""

    def __init__(self, pair: Any) -> None:
        self.pair = pair
        self._processed = int(pair["response_control"]["published"])
        self.records_taken = 0
        """Number of the next response record."""

    def answer(self, replies: Sequence[Reply], wire_bytes: int | None = None) -> None:
        """Write and publish the responses of the next batch."""
        self.write(replies, wire_bytes)
        self.publish()

    def write(
        self, replies: Sequence[Reply], wire_bytes: int | None = None, count: int | None = None
    ) -> Answer:
        """Write the next batch's responses without publishing them; return their views.

        `wire_bytes` replaces the right number of bytes, `count` the number of responses.
        """
        count = len(replies) if count is None else count
        self.pair["answers"][self._processed % abi.KV_BATCHES]["first_record"] = self.records_taken
        answer = answer_at(self.pair, self._processed, count)
        values_bytes = 0
        for record, reply in zip(answer.records, replies, strict=False):
            record["header"] = header_word(reply.operation, reply.result, 0, len(reply.value))
            padded = reply.value.ljust(codec.roundup8(len(reply.value)), b"\0")
            if len(reply.value) <= abi.KV_INLINE_MAX:
                record["value"] = int.from_bytes(padded, "little")
                continue
            record["value"] = values_bytes
            answer.values[values_bytes : values_bytes + len(padded)] = list(padded)
            values_bytes += len(padded)
        right = sum(codec.item_bytes(0, len(reply.value)) for reply in replies)
        answer.entry["wire_bytes"] = right if wire_bytes is None else wire_bytes
        answer.entry["records"] = count + -(-values_bytes // abi.SIZE("kv_response"))
        self.records_taken += int(answer.entry["records"])
        return answer

    def publish(self, batches: int = 1) -> None:
        """Publish the responses that were written."""
        self._processed = (self._processed + batches) % 2**32
        self.pair["response_control"]["published"] = self._processed


def header_word(operation: int, result: int, key_bytes: int, value_bytes: int) -> int:
    """Return KV_HEADER of bpf/abi/wire_mica2.h."""
    item = np.zeros(1, abi.dtype("kv_item_header"))
    item["operation"], item["result"] = operation, result
    item["kv_length"] = key_bytes << codec.KEY_LENGTH_SHIFT | value_bytes
    return int(item.view(np.uint64)[0])


class NoSenders:
    """Replaces `Senders` for an engine that wakes no sender."""

    array = ffi.NULL


@contextmanager
def serving(
    dpu: Dpu,
    senders: Any = NoSenders,
    response_bytes_max: int = RESPONSE_BYTES_MAX,
    flush_after_us: float = 30.0,
) -> Iterator[list[ProcessingEngine]]:
    """Run small real processing engines on all queue pairs of the communication engine."""
    with ExitStack() as cleanup:
        host = HostCore(OTHER_CPU)
        engines = []
        for engine_id in range(dpu.engines):
            engine = small_engine(
                cleanup,
                engine_id=engine_id,
                partitions=dpu.partitions,
                response_bytes_max=response_bytes_max,
                flush_after_us=flush_after_us,
                heartbeat=dpu.heartbeats + engine_id,
            )
            engine.add_pairs(dpu.memory + engine_id * dpu.cpus, dpu.cpus, senders.array)
            host.add_engine(engine)
            engines.append(engine)
        cleanup.callback(host.stop)
        host.start()
        wait_until(lambda: dpu.pairs["response_control"]["alive"].all(), "the engines start")
        yield engines


def small_engine(cleanup: ExitStack, **settings: Any) -> ProcessingEngine:
    """Return a processing engine with a store of its own, which `cleanup` frees."""
    options = ffi.new("struct kv_store_options *")
    options.item_count, options.log_bytes = 1 << 12, 1 << 20
    store = Store(options)
    cleanup.callback(store.close)
    partitions = settings.pop("partitions", None) or sole_partition(settings["engine_id"])
    return ProcessingEngine(
        cpu=OTHER_CPU,
        stores=[store] * partitions[0].partitions,
        partitions=partitions,
        takes_all=False,
        **settings,
    )


def sole_partition(engine: int) -> Any:
    """Return a partition table in which one engine owns everything."""
    table = ffi.new("struct kv_partition_table *")
    table.partitions, table.owner[0] = 1, engine
    return table


def wait_until(condition: Any, what: str) -> None:
    """Poll until the condition is true; fail after ANSWER_SECONDS."""
    deadline = time.monotonic() + ANSWER_SECONDS
    while not condition():
        assert time.monotonic() < deadline, f"waited in vain until {what}"


def expected_replies(store: dict[bytes, bytes], requests: Sequence[Request]) -> list[Reply]:
    """Return the replies of a server whose engine owns all keys; update `store`."""
    replies = []
    for request in requests:
        result, value = execute(store, request)
        replies.append(Reply(request.operation, result, value, request.opaque, request.key_hash))
    return replies


# ---- Frames --------------------------------------------------------------------------------------


def request_frame(
    requests: Sequence[Request],
    client: Endpoint = CLIENT,
    server: Endpoint = SERVER,
    vlan_tag: int | None = None,
    stray: bytes = b"",
) -> bytes:
    """Return a client's frame; `stray` bytes follow the last request."""
    payload = codec.encode_batch(requests, strict=False) + stray
    return codec.encode_frame(client, server, payload, vlan_tag)


def reply_frame(
    replies: Sequence[Reply],
    client: Endpoint = CLIENT,
    server: Endpoint = SERVER,
    vlan_tag: int | None = None,
) -> bytes:
    """Return the server's frame, byte for byte."""
    return codec.encode_frame(server, client, codec.encode_batch(replies, strict=False), vlan_tag)


def records_of(requests: Sequence[Request]) -> int:
    """Return the records that a batch takes in the queue pair."""
    body_bytes = sum(codec.item_bytes(len(r.key), len(r.value)) for r in requests)
    has_body = any(max(len(r.key), len(r.value)) > abi.KV_INLINE_MAX for r in requests)
    return len(requests) + has_body * -(-body_bytes // abi.SIZE("kv_request"))


def patched(frame: bytes, vlan: bool = False, **fields: int | bytes) -> bytes:
    """Return the frame with other values in fields of struct kv_packet_header; integers are written
    in network order.
    """
    changed = bytearray(frame)
    for name, value in fields.items():
        size = abi.dtype("kv_packet_header")[name].itemsize
        start = abi.offset("kv_packet_header", name)
        if vlan and start >= abi.offset("kv_packet_header", "eth_type"):
            start += abi.KV_VLAN_BYTES
        content = value if isinstance(value, bytes) else value.to_bytes(size, "big")
        assert len(content) == size
        changed[start : start + size] = content
    return bytes(changed)


def with_lengths_of(frame: bytes, vlan: bool = False) -> bytes:
    """Return a cut or extended frame with matching IP and UDP lengths, if it contains them."""
    ip_bytes = max(len(frame) - abi.KV_ETH_BYTES - vlan * abi.KV_VLAN_BYTES, 0)
    whole = frame.ljust(HEADER_BYTES + abi.KV_VLAN_BYTES, b"\0")
    lengths = {"ip_total_length": ip_bytes, "udp_length": max(ip_bytes - abi.KV_IP_BYTES, 0)}
    return patched(whole, vlan, **lengths)[: len(frame)]


def with_dirty_padding(frame: bytes, requests: Sequence[Request], vlan: bool = False) -> bytes:
    """Return the frame of these requests with 0xEE in the padding of each key and value."""
    changed = bytearray(frame)
    end = HEADER_BYTES + vlan * abi.KV_VLAN_BYTES
    for request in requests:
        end += ITEM_BYTES
        for content in (request.key, request.value):
            padding = codec.roundup8(len(content)) - len(content)
            end += len(content) + padding
            changed[end - padding : end] = b"\xee" * padding
    assert len(changed) == len(frame)
    assert changed != frame
    return bytes(changed)


def traffic_counters(frame: bytes, reply: bytes) -> dict[str, int]:
    """Return the counters that every served frame moves, however its response is sent."""
    requests = codec.decode_requests(codec.decode_frame(frame).payload)
    replies = codec.decode_replies(codec.decode_frame(reply).payload)
    record, response = abi.SIZE("kv_request"), abi.SIZE("kv_response")
    body_bytes = len(codec.decode_frame(frame).payload) - codec.BATCH_HEADER_BYTES
    has_payload = any(max(len(r.key), len(r.value)) > abi.KV_INLINE_MAX for r in requests)
    long_values = [len(r.value) for r in replies if len(r.value) > abi.KV_INLINE_MAX]
    return {
        "FRAMES_RECEIVED": 1,
        "REQUESTS_RECEIVED": len(requests),
        "BYTES_RECEIVED": len(frame),
        "FRAMES_SENT": 1,
        "RESPONSES_SENT": len(replies),
        "BYTES_SENT": len(reply),
        "QP_REQUEST_BYTES": len(requests) * record + 1 + has_payload * body_bytes,
        "QP_RESPONSE_BYTES": len(replies) * response + 1 + sum(map(codec.roundup8, long_values)),
    }


WAYS_OUT = tuple(f"RESPONSES_{way}" for way in ("WAITED", "CARRIED", "FLUSHED", "REJECTED"))


def without_ways_out(counters: Mapping[str, int]) -> dict[str, int]:
    """Return the counters except those that depend on a real engine's speed; each frame must have
    been sent in exactly one way.
    """
    assert sum(counters.get(way, 0) for way in WAYS_OUT) == counters.get("FRAMES_SENT", 0)
    timing = {*WAYS_OUT, "WAIT_TIMEOUTS"}
    return {name: value for name, value in counters.items() if name not in timing}
