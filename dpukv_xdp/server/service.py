# SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
"""The service around a server that `dpukv serve` starts: a directory entry, a control socket and a
rebalancer.

Both ends of the socket are here; rpc.py encodes the calls.
"""

import contextlib
import inspect
import os
import socket
import socketserver
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from dpukv_xdp.base import rpc
from dpukv_xdp.base.errors import DpukvError, UsageError
from dpukv_xdp.base.patience import patient
from dpukv_xdp.discovery.directory import Publisher, ServerRecord, is_dead, server_name, tell
from dpukv_xdp.discovery.opening import open_directory
from dpukv_xdp.server.rebalance import plan_moves
from dpukv_xdp.server.server import Server

CONTROL_DIR = Path("/run/dpukv/control")
_UNFINISHED = ".new"  # suffix of a socket's name until it listens
LINE_BYTES_MAX = 1 << 16
CALL_TIMEOUT_SECONDS = 30.0
"""Time-out of a call's answer, in addition to the time that the call itself asks for."""
IDLE_SECONDS = 5.0
"""A connection without a call is closed after this time, because it would delay the exit."""
PROBE_SECONDS = 1.0
"""A server that takes longer to accept a connection counts as stopped, not as gone."""
LOOK_SECONDS = 1.0
"""Default time for which a rebalancing counts requests before it chooses moves."""


class Service:
    """A running server that clients find and operators control; a context manager around it."""

    def __init__(
        self, server: Server, say: Callable[[str], None], process_id: int | None = None
    ) -> None:
        """`say` is called with a sentence for each event of the directory and of partitions. The
        server is named after `process_id`, that of its supervisor, or else after this process.
        """
        self.name = server_name(process_id or os.getpid())
        self._server = server
        self._say = say
        self._moving = threading.RLock()
        self._stopping = threading.Event()
        self._cleanup = contextlib.ExitStack()
        self._publisher: Publisher | None = None

    def __enter__(self) -> "Service":
        with contextlib.ExitStack() as cleanup:
            config = self._server.config
            if config.directory and self._server.endpoint()["address"] is None:
                tell(self._say, "not in the directory: the interface has no IPv4 address")
            elif config.directory:
                directory = open_directory(config.directory)
                publisher = Publisher(directory, self.name, self.record(), self._say)
                self._publisher = cleanup.enter_context(publisher)
            cleanup.enter_context(_listening(self))
            cleanup.callback(self._stopping.set)
            if config.rebalance_s:
                rebalancer = threading.Thread(target=self._rebalance_for_ever, daemon=True)
                rebalancer.start()
                cleanup.callback(rebalancer.join)
                cleanup.callback(self._stopping.set)
            self._cleanup = cleanup.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._cleanup.close()

    def record(self) -> ServerRecord:
        """Return the server's record for the directory."""
        endpoint = self._server.endpoint()
        ports = range(endpoint["port"], endpoint["port"] + endpoint["engines"])
        return ServerRecord(
            concurrent_read=endpoint["access"] != "erew",
            concurrent_write=endpoint["access"] == "crcw",
            owners=tuple(endpoint["owners"]),
            endpoints=tuple((endpoint["mac"], endpoint["address"], port) for port in ports),
        )

    # ---- Calls from outside

    def partitions(self) -> list[dict[str, Any]]:
        """Return each partition with its owner, its requests so far, and its possible owners."""
        requests = self._server.partition_requests()
        return [
            {
                "partition": partition,
                "engine": engine,
                "requests": int(requests[partition]),
                "movable_to": list(self._server.movable_to(partition)),
            }
            for partition, engine in enumerate(self._server.owners)
        ]

    def stats(self) -> dict[str, Any]:
        """Return Server.stats(), at any time while it serves."""
        return self._server.stats()

    def move(self, partition: int, engine: int) -> list[int]:
        """Move one partition and publish it at once; return the new owners of all partitions."""
        with self._moving:
            self._server.move_partition(partition, engine)
            if self._publisher is not None:
                self._publisher.update(self.record())
        return list(self._server.owners)

    def rebalance(self, look_seconds: float = LOOK_SECONDS) -> list[dict[str, int]]:
        """Even out the engines' loads, counted for `look_seconds`; return the moves made.

        With 0 the loads are those since the server's start.
        """
        before = self._server.partition_requests()
        if not look_seconds:
            before = np.zeros_like(before)
        self._stopping.wait(look_seconds)
        return self._even_out(self._server.partition_requests() - before)

    def _even_out(self, requests: npt.NDArray[np.uint64]) -> list[dict[str, int]]:
        with self._moving:
            partitions = range(len(self._server.owners))
            movable_to = [self._server.movable_to(partition) for partition in partitions]
            loads = requests.astype(np.int64).tolist()
            moves = plan_moves(self._server.owners, loads, movable_to)
            for move in moves:
                self.move(move.partition, move.engine)
        return [{"partition": move.partition, "engine": move.engine} for move in moves]

    def _rebalance_for_ever(self) -> None:
        before = self._server.partition_requests()
        while not self._stopping.wait(self._server.config.rebalance_s):
            counted = self._server.partition_requests()
            try:
                moves = self._even_out(counted - before)
            except DpukvError as error:
                tell(self._say, f"not rebalanced: {error}")
            else:
                if moves:
                    tell(self._say, f"moved {len(moves)} of {len(self._server.owners)} partitions")
            before = counted


# ---- The socket


def call_service(name: str, call: str, **arguments: Any) -> Any:
    """Call a method of another process's Service; return its result as plain data.

    Raises UsageError if this machine runs no server of that name, and the method's own error.
    """
    path = CONTROL_DIR / f"{name}.sock"
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(patient(CALL_TIMEOUT_SECONDS) + arguments.get("look_seconds", 0.0))
        try:
            connection.connect(str(path))
            connection.sendall(rpc.call_line(call, arguments))
            with connection.makefile("rb") as stream:
                reply = stream.readline()
        except (FileNotFoundError, ConnectionError) as error:
            raise UsageError(
                f"no server {name!r} runs on this machine: see the names in `dpukv stats`"
            ) from error
        except (TimeoutError, BlockingIOError) as error:  # the latter: the backlog is full
            raise DpukvError(f"server {name!r} does not answer: is it stopped?") from error
        except OSError as error:
            raise UsageError(f"{name!r} is not a server on this machine: {error}") from error
    if not reply:
        raise DpukvError(f"server {name!r} ended in the middle of the call: run it again")
    return rpc.result_of(reply)


def services() -> list[str]:
    """Return the names of this machine's servers that listen on their control socket."""
    return sorted(path.stem for path in CONTROL_DIR.glob("*.sock") if _listens(path))


CALLS = frozenset({"partitions", "stats", "move", "rebalance"})


class _Call(msgspec.Struct):
    call: str
    arguments: dict[str, int | float]


class _Handler(socketserver.StreamRequestHandler):
    def setup(self) -> None:
        super().setup()
        self.connection.settimeout(patient(IDLE_SECONDS))

    def handle(self) -> None:
        try:
            line = self.rfile.readline(LINE_BYTES_MAX)
        except TimeoutError:
            return
        if not line:
            return
        service: Service = self.server.service  # type: ignore[attr-defined]
        request = _understood(service, line)
        if request is None:
            refusal = UsageError(f"calls are {', '.join(sorted(CALLS))}, with their arguments")
            answer = rpc.error_line(refusal)
        else:
            answer = rpc.answer_line(service, request)
        with contextlib.suppress(BrokenPipeError):  # the caller has gone
            self.wfile.write(answer)


def _understood(service: Service, line: bytes) -> dict[str, Any] | None:
    """Return a decoded call with the arguments that its method takes; None if it is invalid."""
    try:
        request = msgspec.json.decode(line, type=_Call)
        if request.call not in CALLS:
            return None
        signature = inspect.signature(getattr(service, request.call))
        arguments = signature.bind(**request.arguments).arguments
        for name, value in arguments.items():
            msgspec.convert(value, signature.parameters[name].annotation)
    except (msgspec.DecodeError, TypeError):  # a ValidationError is a DecodeError
        return None
    return {"call": request.call, "arguments": arguments}


@contextlib.contextmanager
def _listening(service: Service) -> Any:
    """Serve the control socket. It gets its name once it listens, so that no connect fails."""
    CONTROL_DIR.mkdir(mode=0o755, parents=True, exist_ok=True)
    path = CONTROL_DIR / f"{service.name}.sock"
    fresh = CONTROL_DIR / f".{service.name}{_UNFINISHED}"
    _remove_dead()
    fresh.unlink(missing_ok=True)  # left by a process that had our number
    with socketserver.ThreadingUnixStreamServer(str(fresh), _Handler) as listener:
        fresh.chmod(0o600)
        fresh.replace(path)
        listener.daemon_threads = False  # so that server_close() waits for calls in progress
        listener.service = service  # type: ignore[attr-defined]
        thread = threading.Thread(target=listener.serve_forever, daemon=True)
        thread.start()
        try:
            yield
        finally:
            listener.shutdown()
            thread.join()
            path.unlink(missing_ok=True)


def _remove_dead() -> None:
    """Remove the sockets of killed servers, half made ones included."""
    for path in CONTROL_DIR.glob("[!.]*.sock"):
        if not _listens(path):
            path.unlink(missing_ok=True)
    for path in CONTROL_DIR.glob(f".*{_UNFINISHED}"):
        if is_dead(path.name.removeprefix(".").removesuffix(_UNFINISHED)):
            path.unlink(missing_ok=True)


def _listens(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as probe:
        probe.settimeout(patient(PROBE_SECONDS))
        try:
            probe.connect(str(path))
        except (ConnectionError, FileNotFoundError):
            return False
        except (TimeoutError, BlockingIOError):  # stopped; the latter: the backlog is full
            return True
    return True
