# SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
"""Server and load generator as child processes in the lab's namespaces, called over their standard
streams (rpc.py)."""

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from types import FrameType
from typing import Any, Literal

import msgspec
import numpy as np

from dpukv_xdp.base import rpc
from dpukv_xdp.base.errors import DpukvError
from dpukv_xdp.base.machine import resident_bytes
from dpukv_xdp.base.patience import patient
from dpukv_xdp.base.processes import end_in_words
from dpukv_xdp.kernel.veth import End
from dpukv_xdp.lab import lab
from dpukv_xdp.load import workload
from dpukv_xdp.load.loadgen import LoadGenerator, Loop, Snapshot
from dpukv_xdp.load.workload import Plan, Prepared
from dpukv_xdp.server.server import Server
from dpukv_xdp.topology.schema import ServerConfig

STOP_TIMEOUT_SECONDS = 10.0


class Role:
    """The parent's end: a child process with one role. A context manager that ends it."""

    def __init__(self, kind: str, start: Callable[..., subprocess.Popen[Any]]) -> None:
        """Start the child by `start`, which gets an argument vector and Popen's options."""
        self.kind = kind
        self.process = start(
            [sys.executable, "-P", "-m", __name__, kind],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            process_group=0,  # Ctrl-C is the parent's to handle
        )

    def call(self, name: str, **arguments: Any) -> Any:
        """Return what the child's method returns, as plain data. Raises the child's error."""
        try:
            self.process.stdin.write(rpc.call_line(name, arguments))  # type: ignore[union-attr]
            self.process.stdin.flush()  # type: ignore[union-attr]
        except BrokenPipeError as error:
            raise self._died() from error
        answer = self.process.stdout.readline()  # type: ignore[union-attr]
        if not answer:
            raise self._died()
        return rpc.result_of(answer)

    def finish(self) -> None:
        """Make the child clean up and end, without waiting for it."""
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.close()  # type: ignore[union-attr]

    def close(self) -> None:
        """Make the child clean up, and wait until it has ended."""
        self.finish()
        try:
            self.process.wait(patient(STOP_TIMEOUT_SECONDS))
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.process.stdout.close()  # type: ignore[union-attr]

    def __enter__(self) -> "Role":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _died(self) -> DpukvError:
        how = end_in_words(self.process.wait())
        return DpukvError(f"the {self.kind} process ended by {how}: run again")


class ServerRole:
    """The child's end: one server."""

    def __init__(self) -> None:
        self._server: Server | None = None

    def start(self, config: dict[str, Any], interface: str) -> dict[str, Any]:
        """Start serving; return the endpoint, the attachment and the notes."""
        server = Server(msgspec.convert(config, ServerConfig), interface)
        server.start()
        self._server = server
        server.config.placement().leave_host_cpus()
        assert server.attachment is not None
        return {
            "endpoint": server.endpoint(),
            "attachment": msgspec.to_builtins(server.attachment),
            "notes": server.notes,
        }

    def stats(self) -> dict[str, Any]:
        """Return Server.stats()."""
        assert self._server is not None
        return self._server.stats()

    def set_host_share(self, host_share: float) -> list[int]:
        """Call Server.set_host_share() and return the new owners."""
        assert self._server is not None
        self._server.set_host_share(host_share)
        return list(self._server.owners)

    def give_all_to_door(self, door: Literal["dpu", "host"]) -> list[int]:
        """Call Server.give_all_to_door() and return the new owners."""
        assert self._server is not None
        self._server.give_all_to_door(door)
        return list(self._server.owners)

    def set_stall(self, stall_ms: float) -> None:
        """Call Server.set_stall()."""
        assert self._server is not None
        self._server.set_stall(stall_ms)

    def memory_bytes(self) -> int:
        """Return the resident memory of this process, in bytes."""
        return resident_bytes()

    def close(self) -> None:
        """Stop serving."""
        if self._server is not None:
            self._server.stop()


class LoadRole:
    """The child's end: one load generator."""

    def __init__(self) -> None:
        self._cleanup = contextlib.ExitStack()
        self._plan: Plan | None = None
        self._prepared: Prepared

    def open(self, interface: str, port: int, engines: int, cpu: int, frame_bytes_max: int) -> None:
        """Load the programs and attach them; pin this process to `cpu`."""
        os.sched_setaffinity(0, {cpu})
        generator = LoadGenerator(
            interface, port=port, engines=engines, cpu=cpu, frame_bytes_max=frame_bytes_max
        )
        self._generator = self._cleanup.enter_context(generator)

    def load(self, plan: dict[str, Any], window: int) -> dict[str, float]:
        """Call LoadGenerator.load()."""
        self._plan = None  # its frames take the place of the prepared ones
        return self._generator.load(msgspec.convert(plan, Plan), window)

    def prepare(self, plan: dict[str, Any]) -> dict[str, int]:
        """Prepare frames for a plan, unless they are those of the run before: a sweep over windows
        sends the same ones.
        """
        wanted = msgspec.convert(plan, Plan)
        if wanted != self._plan:
            self._plan = None  # as long as the frames are incomplete
            packets = workload.stream_packets(wanted.keys, wanted.requests_per_packet)
            self._prepared = workload.build_templates(wanted, self._generator.templates[:packets])
            self._plan = wanted
        return dict(msgspec.to_builtins(self._prepared))

    def begin(self, loop: dict[str, Any]) -> None:
        """Start sending the prepared frames."""
        assert self._plan is not None
        self._generator.begin(self._plan, msgspec.convert(loop, Loop), self._prepared.templates)

    def snapshot(self) -> dict[str, Any]:
        """Return LoadGenerator.snapshot()."""
        return dict(msgspec.to_builtins(self._generator.snapshot(), enc_hook=rpc.plain))

    def end(self) -> int:
        """Call LoadGenerator.end()."""
        return self._generator.end()

    def close(self) -> None:
        """Detach."""
        self._cleanup.close()


ROLES: dict[str, Callable[[], Any]] = {"server": ServerRole, "load": LoadRole}


def run_role(kind: str) -> None:
    """Run a child: answer calls until the input ends or SIGTERM arrives, then clean up."""
    signal.signal(signal.SIGTERM, _raise_exit)
    # Accidental output must not get between the lines of the protocol.
    replies = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)
    role = ROLES[kind]()
    try:
        for line in sys.stdin.buffer:
            replies.write(rpc.answer_line(role, msgspec.json.decode(line)))
    except BrokenPipeError:
        pass  # the parent is gone: end, too
    finally:
        role.close()


def snapshot_of(fields: dict[str, Any]) -> Snapshot:
    """Return the snapshot that these fields, from the stream, describe."""
    latency = np.array(fields.pop("latency"), dtype=np.uint64)
    return Snapshot(latency=latency, **fields)


def start_in(place: lab.Lab, end: End) -> Callable[..., subprocess.Popen[Any]]:
    """Return a function that starts a role in one end of a lab."""
    return lambda argv, **options: place.spawn(end, argv, **options)


def _raise_exit(number: int, frame: FrameType | None) -> None:
    raise SystemExit(128 + number)


if __name__ == "__main__":
    run_role(sys.argv[1])
    os._exit(0)  # without the interpreter's own end, which takes 0.1 to 0.3 s and frees only memory
