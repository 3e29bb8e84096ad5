# SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
"""A server that is killed while clients write: the next one has every write that was answered."""

import contextlib
import json
import os
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from net.commands import dpukv, wait_for
from net.serving import CPUS, client_of, programs_on, registered_on, serving_child

from dpukv_xdp.base.errors import NoResponseError, ResultError
from dpukv_xdp.base.patience import patient
from dpukv_xdp.base.processes import children, start_ticks
from dpukv_xdp.lab.lab import Lab
from dpukv_xdp.server.service import call_service, services
from dpukv_xdp.server.supervisor import LIVES_MAX

AGAIN_SECONDS = patient(20.0)
"""Time-out for the next server's start; a healthy one takes a second."""
KILLS = 3
WAYS = {
    "lat": (),
    "lat, AF_XDP": ("--transport", "af_xdp"),
    "lat, lossless": ("--store", "lossless"),
    "lat, inline": ("--store", "inline"),
    "cpu-only": ("--design", "cpu-only"),
    "cpu-only, UDP": ("--design", "cpu-only", "--frames", "udp"),
    "sav, shared": ("--design", "sav", "--engines", "2", "--access", "crcw"),
    "dpu-only": ("--design", "dpu-only"),
    "dpu-only, inline": ("--design", "dpu-only", "--store", "inline"),
    "dual": ("--design", "dual"),
    "shrd": ("--design", "shrd"),
}
"""Servers whose stores are in each kind of region, reached in each way."""


@contextmanager
def restarting(lab: Lab, *options: str) -> Iterator[subprocess.Popen[str]]:
    """Run a server with a supervisor, which is the child; end both, whatever has become of them."""
    with serving_child(lab, "--restart", *options) as supervisor:
        try:
            yield supervisor
        finally:
            lives = servers_of(supervisor)
            supervisor.kill()
            for pid in lives:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            for pid in lives:
                wait_for(lambda: start_ticks(pid) is None, AGAIN_SECONDS)  # noqa: B023 - runs now


def servers_of(supervisor: subprocess.Popen[str]) -> tuple[int, ...]:
    return children(supervisor.pid)


def kill_server(supervisor: subprocess.Popen[str]) -> None:
    """Kill the server and wait until there is another one."""
    (pid,) = wait_for(lambda: servers_of(supervisor), AGAIN_SECONDS)
    os.kill(pid, signal.SIGKILL)
    wait_for(lambda: servers_of(supervisor) not in ((pid,), ()), AGAIN_SECONDS)


class Writer:
    """A client that never stops writing numbered values, and knows which have been answered."""

    KEYS = 200

    def __init__(self, lab: Lab) -> None:
        self.answered: dict[bytes, int] = {}
        self.begun: dict[bytes, int] = {}
        self.longest_gap_seconds = 0.0
        self._lab = lab
        self._stop = threading.Event()
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> "Writer":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        if self._failure is not None:
            raise self._failure

    def writes(self) -> int:
        return sum(self.answered.values())

    def _run(self) -> None:
        try:
            self._write()
        except BaseException as error:  # noqa: BLE001 - raised again by __exit__()
            self._failure = error

    def _write(self) -> None:
        os.sched_setaffinity(0, {CPUS[-1]})
        number, last = 0, time.monotonic()
        with client_of(self._lab, timeout=patient(0.05)) as client:
            while not self._stop.is_set():
                number += 1
                key = b"key %d" % (number % self.KEYS)
                self.begun[key] = number
                with contextlib.suppress(NoResponseError, ResultError):
                    client.set(key, value_of(number))
                    now = time.monotonic()
                    self.longest_gap_seconds = max(self.longest_gap_seconds, now - last)
                    last = now
                    self.answered[key] = number


def value_of(number: int) -> bytes:
    """Return the value of a number: of 8 bytes, or longer and of another length each time."""
    return b"%08d" % number * (1 + number % 3)


@pytest.mark.parametrize("way", WAYS)
def test_every_answered_write_outlives_the_server(lab: Lab, way: str) -> None:
    with restarting(lab, *WAYS[way]) as supervisor:
        with Writer(lab) as writer:
            for _ in range(KILLS):
                before = writer.writes()
                wait_for(lambda: writer.writes() > before, AGAIN_SECONDS)  # noqa: B023 - runs now
                time.sleep(0.05)
                kill_server(supervisor)
            before = writer.writes()
            wait_for(lambda: writer.writes() > before, AGAIN_SECONDS)
        with client_of(lab) as client:
            for key, number in writer.answered.items():
                found = client.get(key)
                newer = range(number, writer.begun[key] + 1)
                assert found in [value_of(n) for n in newer], (key, number, found)
        assert len(writer.answered) > 100
        print(f"{way}: longest gap {writer.longest_gap_seconds:.2f} s")  # noqa: T201 - for -s
    wait_for(lambda: programs_on(lab.server) == [])  # it goes with the last thread


def test_a_server_ends_as_it_is_asked_to_with_a_supervisor(lab: Lab) -> None:
    with restarting(lab) as supervisor:
        supervisor.terminate()
        assert supervisor.wait(AGAIN_SECONDS) == 0
        assert servers_of(supervisor) == ()
    assert programs_on(lab.server) == registered_on(lab.server) == []


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV, signal.SIGABRT])
def test_the_next_server_has_the_same_name_and_says_what_it_took_over(
    lab: Lab, number: signal.Signals
) -> None:
    with restarting(lab) as supervisor, client_of(lab, retries=50, timeout=0.1) as client:
        client.set_many({b"key %d" % i: b"value" for i in range(500)})
        (pid,) = servers_of(supervisor)
        os.kill(pid, number)
        assert supervisor.stderr is not None
        said = [supervisor.stderr.readline() for _ in range(2)]
        assert said[0].startswith(f"note: the server was killed by {number.name}")
        while "serving" not in said[-1]:
            said.append(supervisor.stderr.readline())
        assert any("the store goes on with 500 items" in line for line in said), said
        assert client.get(b"key 499") == b"value"
        name = wait_for(lambda: [n for n in services() if n.endswith(f".{supervisor.pid}")])[0]
        assert call_service(name, "stats")["stores"]["count"] == 500


def test_a_server_that_is_killed_before_it_serves_is_given_up(lab: Lab) -> None:
    with restarting(lab) as supervisor:
        for _ in range(LIVES_MAX):
            (pid,) = wait_for(lambda: servers_of(supervisor), AGAIN_SECONDS)
            os.kill(pid, signal.SIGKILL)
            wait_for(lambda: pid not in servers_of(supervisor), AGAIN_SECONDS)  # noqa: B023
        assert supervisor.wait(AGAIN_SECONDS) == 1
        assert supervisor.stderr is not None
        assert f"{LIVES_MAX} servers in a row ended before they served" in supervisor.stderr.read()


def test_a_server_goes_on_without_its_supervisor_until_the_lab_is_removed(lab: Lab) -> None:
    with restarting(lab) as supervisor, client_of(lab) as client:
        client.set(b"key", b"value")
        (pid,) = servers_of(supervisor)
        supervisor.kill()
        supervisor.wait()
        assert supervisor.stderr is not None
        assert "the supervisor has ended" in supervisor.stderr.readline()
        assert client.get(b"key") == b"value"
        lab.down()
        wait_for(lambda: start_ticks(pid) is None, AGAIN_SECONDS)


def test_restart_needs_programs_that_go_with_their_server() -> None:
    arguments = ("serve", "--iface", "lo", "--restart", "--when-killed", "keep")
    assert "leave out --when-killed keep" in dpukv(*arguments, status=2).stderr


def test_a_lab_s_server_is_started_again() -> None:
    name = f"again-{os.getpid()}"
    dpukv("lab", "up", "--name", name, "--items", "1000", "--restart")
    try:
        dpukv("set", "--lab", name, "hello", "world")
        record = json.loads(dpukv("lab", "status", "--json", "-").stdout)
        (lab_facts,) = (one for one in record if one["lab_id"] == name)
        (pid,) = children(lab_facts["processes"][0]["pid"])
        os.kill(pid, signal.SIGKILL)
        assert dpukv("get", "--lab", name, "hello").stdout.strip() == "world"
    finally:
        dpukv("lab", "down", name)
