# SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
"""Host cores, and the processing and communication engines that their native loops run."""

import os
from typing import Any

import numpy as np
import numpy.typing as npt

from dpukv_xdp._core._native import ffi, lib
from dpukv_xdp.base.errors import MissingError
from dpukv_xdp.native.stores import Store, fields_of
from dpukv_xdp.native.threads import NativeThread, raise_priority
from dpukv_xdp.wire import abi


class ProcessingEngine:
    """One native engine: its stores, and the queue pairs that it serves."""

    def __init__(
        self,
        *,
        engine_id: int,
        cpu: int,
        stores: list[Store],
        partitions: Any,
        takes_all: bool,
        response_bytes_max: int,
        flush_after_us: float = 30.0,
        transfer_per_request: bool = False,
        bus_latency_us: float = 0.0,
        bus_gbytes_per_s: float = 0.0,
        ring: Any = ffi.NULL,
        heartbeat: Any = ffi.NULL,
    ) -> None:
        """Set up the engine's C structure.

        `stores` has this engine's handle on each partition's store. `partitions` is a struct
        kv_partition_table whose owners may change; `takes_all` says to ignore the owners. `ring` is
        a struct kv_ringbuf that delivers requests instead of queue pairs, or NULL. `heartbeat` is
        the struct kv_heartbeat that XDP reads, or NULL.
        """
        ticks_per_us = lib.kv_ticks_per_second() / 1e6
        engine = ffi.new("struct kv_engine *")
        engine.partitions = partitions
        engine.partition_count = len(stores)
        engine.takes_all = takes_all
        for partition, store in enumerate(stores):
            engine.stores[partition] = store.handle
        engine.ring, engine.heartbeat = ring, heartbeat
        engine.id, engine.cpu = engine_id, cpu
        engine.response_bytes_max = response_bytes_max
        engine.flush_after_ticks = int(flush_after_us * ticks_per_us)
        engine.transfer_per_request = transfer_per_request
        engine.bus.latency_ticks = int(bus_latency_us * ticks_per_us)
        if bus_gbytes_per_s:
            engine.bus.ticks_per_mib = int(
                ticks_per_us * 1e6 * (1 << 20) / (bus_gbytes_per_s * 1e9)
            )
        self.native = engine
        self.engine_id = engine_id
        self.cpu = cpu
        self.stores = stores
        self._parts = [partitions, heartbeat]  # only C refers to them: cffi would free them

    def add_pairs(self, pairs: Any, count: int, senders: Any = ffi.NULL) -> None:
        """Serve `count` queue pairs of a C array.

        `senders` is an array of the same length, or NULL if the other end polls.
        """
        self._parts += [pairs, senders]
        first = self.native.pair_count
        for index in range(count):
            state = self.native.pairs[first + index]
            state.pair = pairs + index
            if self.native.bus.latency_ticks or self.native.bus.ticks_per_mib:
                for name in ("arrives_ticks", "leaves_ticks"):
                    times = ffi.new("uint64_t[]", abi.KV_BATCHES)
                    self._parts.append(times)
                    setattr(state, name, times)
            if senders != ffi.NULL:
                state.sender = senders + index
        self.native.pair_count = first + count

    def stats(self) -> dict[str, Any]:
        """Return the engine's counters."""
        bus = self.native.bus
        return {
            **fields_of(self.native.stats),
            "engine": self.engine_id,
            "cpu": self.cpu,
            "bus_transfers": list(bus.transfers),
            "bus_bytes": list(bus.bytes),
        }

    def partition_requests(self) -> npt.NDArray[np.uint64]:
        """Return the requests per partition so far, shape [partitions]; not counted if there is
        only one partition.
        """
        count = self.native.partition_count
        return np.array(list(self.native.partition_requests[0:count]), dtype=np.uint64)


class Communicator:
    """A communication engine on the host: one source of frames, and a queue pair to each
    processing engine.
    """

    def __init__(
        self,
        *,
        engines: int,
        port: int,
        address: int,
        send_after_parse: bool,
        mac: int = 0,
        broadcast: int = 0,
        noted: bool = False,
    ) -> None:
        """Allocate the queue pairs. `address` and `mac` are words as in the frame, 0 for any;
        `broadcast` is the subnet's, 0 for none.

        Raises MissingError without memory.
        """
        self.native = lib.kv_communicator_create(engines)
        if self.native == ffi.NULL:
            raise MissingError("a host communication engine", os.strerror(ffi.errno))
        self.native.first_port, self.native.address = port, address
        self.native.mac, self.native.broadcast = mac, broadcast
        self.native.send_after_parse = send_after_parse
        self.native.noted = noted

    def pair_of(self, engine: int) -> Any:
        """Return the queue pair to an engine, as a C pointer."""
        return self.native.pairs + engine

    def own_queues(self) -> npt.NDArray[np.void]:
        """Return a copy of the private sides of its queue pairs, shape [engines]."""
        count = self.native.engines
        buffer = ffi.buffer(self.native.queues, count * abi.SIZE("kv_dpu_queue"))
        return np.frombuffer(bytes(buffer), abi.dtype("kv_dpu_queue"))

    def close(self) -> None:
        """Free the queue pairs."""
        lib.kv_communicator_destroy(self.native)


class HostCore:
    """A host core and the engines that it runs, in one polling loop."""

    def __init__(self, cpu: int) -> None:
        self.cpu = cpu
        self.native = ffi.new("struct kv_host *")
        self.native.cpu = cpu
        self._parts: list[Any] = []  # only C refers to them, see ProcessingEngine
        self.thread = NativeThread(
            f"host core {cpu}",
            cpu,
            lambda: int(lib.kv_host_run(self.native)),
            lambda: setattr(self.native, "stop", 1),
        )

    def add_engine(self, engine: ProcessingEngine) -> None:
        """Add a processing engine to the loop, before start()."""
        self._parts.append(engine)
        self.native.engines[self.native.engine_count] = engine.native
        self.native.engine_count += 1

    def add_communicator(self, communicator: Communicator) -> None:
        """Add a communication engine to the loop, before start()."""
        self._parts.append(communicator)
        self.native.communicators[self.native.communicator_count] = communicator.native
        self.native.communicator_count += 1

    def set_stall(self, stall_ms: float) -> None:
        """Make the loop leave its core for so long in each KV_STALL_PERIOD_MS; 0 for never. Works
        while it runs.
        """
        self.native.stall_ns = round(stall_ms * 1e6)

    def start(self) -> None:
        """Start the polling loop."""
        self.thread.start(raise_priority)

    def stop(self) -> None:
        """End the loop; the stores stay readable."""
        self.thread.stop()

    def stats(self) -> dict[str, Any]:
        """Return the loop's counters and CPU time."""
        return {
            "cpu": self.cpu,
            "cpu_ns": self.thread.cpu_ns(),
            "rounds": int(self.native.rounds),
            "total_ticks": int(self.native.total_ticks),
        }
