# SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
"""The control socket and the rebalancer's clock, with a fake server that only counts.

A real one is in tests/net/test_rebalance.py.
"""

import os
import socket
import socketserver
import subprocess
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from dpukv_xdp.base.errors import DpukvError, UsageError
from dpukv_xdp.discovery.directory import server_name
from dpukv_xdp.server import service as service_module
from dpukv_xdp.server.service import Service, call_service, services
from dpukv_xdp.topology.schema import ServerConfig

PARTITIONS = 8


class Counting:
    """Replaces a server with two engines, of which the first owns everything."""

    def __init__(self) -> None:
        self.config = ServerConfig(directory="", rebalance_s=0.0)
        self.owners = (0,) * PARTITIONS
        self.requests = np.zeros(PARTITIONS, np.uint64)

    def stats(self) -> dict[str, object]:
        return {"counters": {"frames_received": np.uint64(2**63)}, "senders": None}

    def partition_requests(self) -> np.ndarray:
        return self.requests.copy()

    def movable_to(self, partition: int) -> tuple[int, ...]:
        return (0, 1)

    def move_partition(self, partition: int, engine: int) -> None:
        if engine == 9:
            raise TypeError("a mistake of ours")
        owners = list(self.owners)
        owners[partition] = engine
        self.owners = tuple(owners)


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Counting:
    monkeypatch.setattr(service_module, "CONTROL_DIR", tmp_path / "control")
    return Counting()


def service_of(server: Counting, say: Callable[[str], None] = print) -> Service:
    return Service(server, say)  # type: ignore[arg-type]


# ---- The socket


def test_a_server_is_steered_by_its_name(server: Counting, tmp_path: Path) -> None:
    with service_of(server) as service:
        assert services() == [service.name]
        (path,) = (tmp_path / "control").iterdir()
        assert path.stat().st_mode & 0o777 == 0o600
        assert call_service(service.name, "move", partition=3, engine=1)[3] == 1
        assert call_service(service.name, "partitions")[3]["engine"] == 1
    assert list((tmp_path / "control").iterdir()) == []


def test_counters_are_plain_numbers(server: Counting) -> None:
    with service_of(server) as service:
        found = call_service(service.name, "stats")
    assert found == {"counters": {"frames_received": 2**63}, "senders": None}


def test_a_server_that_starts_removes_no_other_that_does(
    server: Counting, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not even the socket of one that is bound but does not listen yet."""

    class Interleaved(socketserver.ThreadingUnixStreamServer):
        def server_activate(self) -> None:
            service_module._remove_dead()
            super().server_activate()

    monkeypatch.setattr(socketserver, "ThreadingUnixStreamServer", Interleaved)
    with service_of(server) as service:
        assert services() == [service.name]


def test_what_killed_servers_left_is_removed(server: Counting, tmp_path: Path) -> None:
    control = tmp_path / "control"
    control.mkdir()
    ended = subprocess.Popen(["true"])
    ended.wait()
    living = server_name(os.getppid())
    for name in (f".{server_name(ended.pid)}.new", "killed.1.sock", f".{living}.new"):
        with closing(socket.socket(socket.AF_UNIX)) as left:
            left.bind(str(control / name))
    with service_of(server) as service:
        names = sorted(path.name for path in control.iterdir())
        assert names == sorted([f".{living}.new", f"{service.name}.sock"])


@pytest.mark.parametrize(
    ("call", "arguments"),
    [
        ("close", {}),
        ("move", {"partition": 1}),
        ("move", {"partition": 1, "engine": 1, "more": 1}),
        ("move", {"partition": 1.5, "engine": 1}),
        ("move", {"partition": "1", "engine": 1}),
    ],
)
def test_calls_that_are_none_are_refused(
    server: Counting, call: str, arguments: dict[str, float]
) -> None:
    with (
        service_of(server) as service,
        pytest.raises(UsageError, match="calls are move, partitions, rebalance"),
    ):
        call_service(service.name, call, **arguments)


def test_a_mistake_of_ours_is_not_taken_for_one_of_the_caller_s(
    server: Counting, capfd: pytest.CaptureFixture[str]
) -> None:
    with (
        service_of(server) as service,
        pytest.raises(DpukvError, match="ended in the middle of the call") as raised,
    ):
        call_service(service.name, "move", partition=1, engine=9)
    assert not isinstance(raised.value, UsageError)
    assert "a mistake of ours" in capfd.readouterr().err


# ---- The rebalancer


class Script:
    """Replaces the event that the rebalancer waits for: each wait is one step."""

    def __init__(self, *steps: Callable[[], bool]) -> None:
        self.steps = list(steps)

    def wait(self, seconds: float) -> bool:
        return self.steps.pop(0)()


def test_a_look_by_hand_does_not_take_the_clock_s_count_away(server: Counting) -> None:
    service = service_of(server)

    def busy_then_a_look() -> bool:
        server.requests += np.uint64(100)
        assert service.rebalance(look_seconds=0.1) == []
        return False

    script = Script(busy_then_a_look, lambda: False, lambda: True)
    service._stopping = script  # type: ignore[assignment]
    service._rebalance_for_ever()
    assert script.steps == []
    assert sorted(server.owners) == [0] * 4 + [1] * 4


def test_only_what_is_counted_during_a_look_matters(server: Counting) -> None:
    service = service_of(server)
    server.requests[:4] += np.uint64(10**6)

    def busy() -> bool:
        server.requests[4:] += np.uint64(100)
        return False

    service._stopping = Script(busy)  # type: ignore[assignment]
    moves = service.rebalance(look_seconds=0.1)
    assert {move["partition"] for move in moves} < {4, 5, 6, 7}


def test_without_a_look_all_since_the_start_matters(server: Counting) -> None:
    service = service_of(server)
    server.requests += np.uint64(100)
    assert len(service.rebalance(look_seconds=0)) == 4


def test_the_rebalancer_goes_on_when_nobody_listens(server: Counting) -> None:
    def say(sentence: str) -> None:
        raise OSError("closed")

    def busy() -> bool:
        server.requests += np.uint64(100)
        return False

    def refuse(partition: int, engine: int) -> None:
        raise DpukvError("not now")

    script = Script(busy, busy, lambda: True)
    service = service_of(server, say)
    service._stopping = script  # type: ignore[assignment]
    service._rebalance_for_ever()
    assert script.steps == []
    server.owners = (0,) * PARTITIONS
    server.move_partition = refuse  # type: ignore[method-assign]
    script.steps = [busy, busy, lambda: True]
    service._rebalance_for_ever()
    assert script.steps == []
