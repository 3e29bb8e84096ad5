# SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
"""What `dpukv serve` adds to a server: an entry in the directory, a socket to steer it by, and a
rebalancer.

Both ends of the socket are here; rpc.py has the calls.
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
_UNFINISHED = ".new"  # the end of a socket's name until it listens
LINE_BYTES_MAX = 1 << 16
CALL_TIMEOUT_SECONDS = 30.0
"""Beside the time that a call is told to take."""
IDLE_SECONDS = 5.0
"""Who says nothing for so long must not hold the exit up."""
PROBE_SECONDS = 1.0
"""A server that takes longer to accept a connection counts as stopped, not as gone."""
LOOK_SECONDS = 1.0
"""For how long a rebalancing that nobody has prepared counts requests."""


class Service:
    """A server that others find and steer; a context manager around a running one."""

    def __init__(self, server: Server, say: Callable[[str], None]) -> None:
        """`say` is told, in a sentence, what happens to the directory and to partitions."""
        self.name = server_name(os.getpid())
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
        """What clients need to know."""
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
        """Each partition with its owner, its requests so far, and who else could own it."""
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

    def move(self, partition: int, engine: int) -> list[int]:
        """Move one partition; the owners then. Clients learn of it at once."""
        with self._moving:
            self._server.move_partition(partition, engine)
            if self._publisher is not None:
                self._publisher.update(self.record())
        return list(self._server.owners)

    def rebalance(self, look_seconds: float = LOOK_SECONDS) -> list[dict[str, int]]:
        """Even out what the engines will have to do in `look_seconds`, or if that is 0 had since
        the server's start; the moves that it took.
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

    Raises UsageError without such a server on this machine, and the method's own error.
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
                f"no server {name!r} runs on this machine: see the names in `dpukv rebalance`"
            ) from error
        except (TimeoutError, BlockingIOError) as error:  # the latter: too many wait already
            raise DpukvError(f"server {name!r} does not answer: is it stopped?") from error
        except OSError as error:
            raise UsageError(f"{name!r} is no server on this machine: {error}") from error
    if not reply:
        raise DpukvError(f"server {name!r} ended in the middle of the call: run it again")
    return rpc.result_of(reply)


def services() -> list[str]:
    """The names of the servers on this machine that can be steered."""
    return sorted(path.stem for path in CONTROL_DIR.glob("*.sock") if _listens(path))


CALLS = frozenset({"partitions", "move", "rebalance"})


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
        with contextlib.suppress(BrokenPipeError):  # who asked has gone
            self.wfile.write(answer)


def _understood(service: Service, line: bytes) -> dict[str, Any] | None:
    """A call with the arguments that its method takes; None if it is none."""
    try:
        request = msgspec.json.decode(line, type=_Call)
        if request.call not in CALLS:
            return None
        signature = inspect.signature(getattr(service, request.call))
        arguments = signature.bind(**request.arguments).arguments
        for name, value in arguments.items():
            msgspec.convert(value, signature.parameters[name].annotation)
    except (msgspec.DecodeError, TypeError):  # a ValidationError is one of the former
        return None
    return {"call": request.call, "arguments": arguments}


@contextlib.contextmanager
def _listening(service: Service) -> Any:
    """Under its name the socket is there complete: whoever connects to it finds a listener."""
    CONTROL_DIR.mkdir(mode=0o755, parents=True, exist_ok=True)
    path = CONTROL_DIR / f"{service.name}.sock"
    fresh = CONTROL_DIR / f".{service.name}{_UNFINISHED}"
    _remove_dead()
    fresh.unlink(missing_ok=True)  # of a process that had our number
    with socketserver.ThreadingUnixStreamServer(str(fresh), _Handler) as listener:
        fresh.chmod(0o600)
        fresh.replace(path)
        listener.daemon_threads = False  # server_close() waits for calls that are being answered
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
    """Sockets of servers that were killed, finished or not."""
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
        except (TimeoutError, BlockingIOError):  # stopped; the latter: too many wait already
            return True
    return True
