# SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
"""The load generator for stores that speak other protocols: the same keys, values and order of
requests as our own (workload.py), over kernel sockets.

Keys are the bytes of our keys as hexadecimal digits, because memcached's text protocol takes
neither spaces nor control characters; Redis gets the same keys. Python prepares, starts, watches
and stops; peer_load.c sends, polls and checks.
"""

import errno
import os
import socket
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from dpukv_xdp._core._bench import ffi, lib
from dpukv_xdp.base.errors import DpukvError, UsageError
from dpukv_xdp.base.patience import patient
from dpukv_xdp.load import draws, workload
from dpukv_xdp.load.draws import Distribution
from dpukv_xdp.load.workload import Workload
from dpukv_xdp.native.threads import NativeThread
from dpukv_xdp.wire import abi

Transport = Literal["tcp", "udp"]

KEY_SIZE_MAX = 125
"""Longest key in bytes: memcached takes keys of up to 250 characters."""
DATAGRAM_TIMEOUT_NS = 1_000_000_000
"""Time after which an unanswered message is lost; a server on a busy core may wait nearly as long.
"""
STREAM_TIMEOUT_NS = 3_000_000_000
"""Time without an answer after which a TCP connection is broken."""
RECEIVE_BUFFER_BYTES = 4 << 20
COMMAND_BYTES_MAX = 96
"""Upper bound of the bytes that a protocol puts around a key and a value."""
POLL_SECONDS = 0.002


@dataclass(frozen=True, slots=True)
class Protocol:
    """A way to write requests on the wire."""

    code: int
    """enum kv_peer_protocol."""
    transport: Transport
    summary: str


PROTOCOLS = {
    "resp": Protocol(lib.KV_PEER_RESP, "tcp", "Redis, every request a command, pipelined"),
    "resp-mget": Protocol(lib.KV_PEER_RESP_MGET, "tcp", "Redis, the GETs of a message one MGET"),
    "memcached": Protocol(
        lib.KV_PEER_MEMCACHED, "tcp", "memcached's text, the GETs of a message one multi-get"
    ),
    "memcached-udp": Protocol(
        lib.KV_PEER_MEMCACHED_UDP, "udp", "memcached's text, a message one datagram"
    ),
}


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The counters at one moment; differences of two are a measurement."""

    at_ns: int
    """Time by CLOCK_MONOTONIC."""
    counts: npt.NDArray[np.void]
    """struct kv_peer_results."""
    cpu_ns: int
    """CPU time of the generating thread."""


class PeerPlan:
    """Prepared messages; keeps the memory that the native generator reads."""

    def __init__(
        self,
        protocol: Protocol,
        ranks: npt.NDArray[np.uint64],
        is_get: npt.NDArray[np.bool_],
        *,
        per_message: int,
        key_size: int = 8,
        value_size: int = 8,
    ) -> None:
        """Prepare messages of `per_message` requests in the order given, with a message's GETs
        first.

        Raises UsageError for keys or values that the protocols do not take.
        """
        if not 1 <= key_size <= KEY_SIZE_MAX:
            raise UsageError(
                f"keys of {key_size} bytes are {2 * key_size} hexadecimal digits, and memcached "
                f"takes {2 * KEY_SIZE_MAX} characters: use 1 to {KEY_SIZE_MAX}"
            )
        count = len(ranks)
        words = workload.key_words(ranks, key_size)
        hashes = workload.hash_words(words, key_size)
        keys = np.ascontiguousarray(words.view(np.uint8)[:, :key_size])
        gets = np.ascontiguousarray(is_get, dtype=np.uint8)
        room = count * (COMMAND_BYTES_MAX + 2 * key_size + value_size)
        self.bytes = np.empty(room, np.uint8)
        self.messages = np.zeros(-(-count // per_message), _dtype("kv_peer_message"))
        self.requests = np.zeros(count, _dtype("kv_peer_request"))
        self.native = ffi.new("struct kv_peer_plan *")
        self.native.bytes = _pointer("uint8_t *", self.bytes)
        self.native.messages = _pointer("struct kv_peer_message *", self.messages)
        self.native.requests = _pointer("struct kv_peer_request *", self.requests)
        self.native.bytes_room = room
        self.native.protocol = protocol.code
        self.native.key_size = key_size
        self.native.value_bytes = value_size
        written = lib.kv_peer_encode(
            self.native,
            _pointer("uint8_t *", keys),
            _pointer("uint64_t *", hashes),
            _pointer("uint8_t *", gets),
            count,
            per_message,
        )
        if written < 0:
            raise UsageError(
                f"{per_message} requests of keys of {key_size} and values of {value_size} bytes "
                f"do not make a message: use 1 to {abi.KV_BATCH_MAX} requests, and values of up to "
                f"{abi.KV_VALUE_MAX} bytes"
            )
        self.bytes = self.bytes[: int(written)]

    def text(self, index: int) -> bytes:
        """Return the bytes of one message."""
        at, length = int(self.messages[index]["at"]), int(self.messages[index]["bytes"])
        return self.bytes[at : at + length].tobytes()

    def bytes_max(self) -> int:
        """Return the bytes of the longest message."""
        return int(self.messages["bytes"].max())


def stream_of_requests(
    distribution: Distribution, mix: Workload, keys: int, count: int, seed: int
) -> tuple[npt.NDArray[np.uint64], npt.NDArray[np.bool_]]:
    """Return ranks, and which of them are GETs, as workload.build_templates() draws them."""
    key_seed, operation_seed, _ = np.random.SeedSequence(seed).spawn(3)
    ranks = draws.key_ranks(distribution, keys, count, np.random.default_rng(key_seed))
    is_get = np.random.default_rng(operation_seed).random(count) < mix.get_fraction
    return ranks, is_get


class PeerLoad:
    """Connected sockets and the thread that keeps them busy; a context manager that closes them."""

    def __init__(
        self, address: tuple[str, int], transport: Transport, *, window: int, cpu: int
    ) -> None:
        """Connect for `window` messages outstanding: over TCP a connection for each, over UDP one
        socket.

        Connects in the calling thread's network namespace. Raises UsageError for a window that the
        protocol cannot keep, DpukvError if no server answers.
        """
        if transport == "udp" and not 1 <= window <= abi.KV_BATCH_MAX:
            raise UsageError(f"{window} messages over UDP are not 1 to {abi.KV_BATCH_MAX}")
        if not 1 <= window <= abi.KV_WINDOW_MAX:
            raise UsageError(f"a window of {window} messages is not 1 to {abi.KV_WINDOW_MAX}")
        self.cpu = cpu
        self._thread: NativeThread | None = None
        self._status = 0
        self._plan: PeerPlan | None = None
        self._native = ffi.NULL
        self._sockets: list[socket.socket] = []
        try:
            for _ in range(window if transport == "tcp" else 1):
                self._sockets.append(connect(address, transport))
            descriptors = ffi.new("int32_t[]", [each.fileno() for each in self._sockets])
            is_datagram = transport == "udp"
            self._native = lib.kv_peer_load_create(
                descriptors, len(self._sockets), window if is_datagram else 1, is_datagram
            )
            if self._native == ffi.NULL:
                raise DpukvError(f"the load generator cannot begin: {os.strerror(ffi.errno)}")
        except BaseException:
            self.close()
            raise
        self._native.timeout_ns = DATAGRAM_TIMEOUT_NS if is_datagram else STREAM_TIMEOUT_NS

    def __enter__(self) -> "PeerLoad":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def begin(self, plan: PeerPlan, messages: int = 0) -> None:
        """Start sending the plan's messages over and over, or `messages` in all."""
        if self._thread is not None:
            raise DpukvError("the generator runs already: end it first")
        native = self._native
        native.plan = plan.native[0]
        native.messages_limit = messages
        native.state = lib.KV_PEER_RUNNING
        self._plan = plan
        self._status = 0
        thread = NativeThread("load generator", self.cpu, self._run, lambda: None)
        thread.start(lambda: None)
        self._thread = thread

    def end(self) -> None:
        """Stop sending and wait for the outstanding answers. Raises DpukvError on failure."""
        self._stop(lib.KV_PEER_DRAINING)
        self._check()

    def send_all(self, plan: PeerPlan) -> None:
        """Send every message of the plan once, and wait for the answers. Raises DpukvError."""
        self.begin(plan, messages=len(plan.messages))
        while self.is_running():
            time.sleep(POLL_SECONDS)
        self.end()

    def is_running(self) -> bool:
        """Return whether the generator still sends or waits; False after an error."""
        return self._thread is not None and self._thread.is_alive()

    def snapshot(self) -> Snapshot:
        """Return the present counters."""
        counts = np.frombuffer(
            ffi.buffer(ffi.addressof(self._native, "results")),
            _dtype("kv_peer_results"),
        )
        return Snapshot(  # read close together: this thread may be interrupted between them
            at_ns=time.monotonic_ns(),
            counts=counts[0].copy(),
            cpu_ns=self._thread.cpu_ns() if self._thread else 0,
        )

    def close(self) -> None:
        """Stop at once, without waiting for answers."""
        if self._native != ffi.NULL:
            self._stop(lib.KV_PEER_STOPPED)
            lib.kv_peer_load_destroy(self._native)
            self._native = ffi.NULL
        while self._sockets:
            self._sockets.pop().close()

    def _run(self) -> int:
        self._status = lib.kv_peer_load_run(self._native)
        return 0

    def _stop(self, state: int) -> None:
        thread, self._thread = self._thread, None
        if thread is not None:
            self._native.state = state
            thread.stop()

    def _check(self) -> None:
        if self._status == -errno.EPROTO:
            said = bytes(self._native.offending).rstrip(b"\0")
            raise DpukvError(f"the server's answer cannot be understood; it goes on with {said!r}")
        if self._status == -errno.EPIPE:
            raise DpukvError("the server hung up in the middle of a run")
        if self._status < 0:
            raise DpukvError(f"the load generator failed: {os.strerror(-self._status)}")


def connect(address: tuple[str, int], transport: Transport) -> socket.socket:
    """Return a connected non-blocking socket. Raises DpukvError if no server listens."""
    kind = socket.SOCK_STREAM if transport == "tcp" else socket.SOCK_DGRAM
    connected = socket.socket(socket.AF_INET, kind)
    try:
        connected.settimeout(patient(STREAM_TIMEOUT_NS / 1e9))
        connected.connect(address)
        if transport == "tcp":
            connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        else:
            connected.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, RECEIVE_BUFFER_BYTES)
        connected.setblocking(False)
    except BaseException as error:
        connected.close()
        if isinstance(error, OSError):
            raise DpukvError(
                f"no server answers at {address[0]}:{address[1]}: {error.strerror or error}"
            ) from error
        raise
    return connected


SO_RCVBUFFORCE = 33  # the socket module does not name it


def _dtype(struct_name: str) -> "np.dtype[np.void]":
    """Return the numpy dtype of a structure of the native core."""
    return abi.dtype_of(ffi.typeof(f"struct {struct_name}"))


def _pointer(kind: str, array: npt.NDArray[Any]) -> Any:
    return ffi.cast(kind, ffi.from_buffer(array))


def total(counts: Sequence[npt.NDArray[np.void]], name: str) -> int:
    """Return the growth of a field between the first and the last of these counts."""
    return int(counts[-1][name]) - int(counts[0][name])
