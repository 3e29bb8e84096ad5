# SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
"""A real etcd for tests: on loopback, or wherever the caller's network namespace is."""

import json
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import requests

from dpukv_xdp.base.patience import patient

START_SECONDS = patient(30.0)
STOP_SECONDS = patient(10.0)


class Etcd:
    """One etcd of Debian's (3.4), both versions of its interface on one port."""

    def __init__(self, folder: Path, address: str, client_port: int, peer_port: int) -> None:
        self.authority = f"{address}:{client_port}"
        self._address, self.peer_port = address, peer_port
        self._mica2_keys = f"http://{self.authority}/v2/keys/mica/servers"
        self._folder = folder
        self._process: subprocess.Popen[bytes] | None = None

    def url(self, scheme: str) -> str:
        """As --directory takes it: `scheme` is etcd2 or etcd3."""
        return f"{scheme}://{self.authority}/mica"

    def start(self) -> None:
        """Serve, on what a former start has left; returns when it answers."""
        client, peer = f"http://{self.authority}", f"http://{self._address}:{self.peer_port}"
        with (self._folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [
                    "etcd",
                    "--enable-v2=true",
                    *("--data-dir", str(self._folder / "data")),
                    *("--listen-client-urls", client, "--advertise-client-urls", client),
                    *("--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer),
                    *("--initial-cluster", f"default={peer}"),
                    "--unsafe-no-fsync",
                ],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        deadline = time.monotonic() + START_SECONDS
        while not self._is_healthy():
            said = (self._folder / "log").read_text(errors="replace")[-2000:]
            assert self._process.poll() is None, f"etcd has ended: {said}"
            assert time.monotonic() < deadline, f"etcd does not answer: {said}"
            time.sleep(0.05)

    def kill(self) -> None:
        """End it at once; harmless to repeat."""
        if self._process is not None:
            self._process.kill()
            self._process.wait(STOP_SECONDS)
            self._process = None

    def forget(self) -> None:
        """Lose all that it has stored; only while it does not run."""
        shutil.rmtree(self._folder / "data")

    def pause(self) -> None:
        """Have it take connections and answer none."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        """End the pause."""
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)

    # What a client of public MICA2 asks for, once a second

    def mica2_list(self) -> list[str]:
        """The names of the servers."""
        answer = requests.get(f"{self._mica2_keys}/", timeout=patient(5)).json()
        nodes = answer.get("node", {}).get("nodes", [])
        return [node["key"].removeprefix("/mica/servers/") for node in nodes]

    def mica2_value(self, name: str) -> Any:
        """What that client's JSON parser gets of a server: it crashes where this fails."""
        answer = requests.get(f"{self._mica2_keys}/{name}", timeout=patient(5))
        assert answer.status_code == 200
        value = answer.json()["node"]["value"]
        assert isinstance(value, str)
        return json.loads(value)

    def _is_healthy(self) -> bool:
        try:
            answer = requests.get(f"http://{self.authority}/health", timeout=patient(1))
        except requests.RequestException:
            return False
        return answer.ok and answer.json() == {"health": "true"}


@contextmanager
def running_etcd(address: str = "127.0.0.1") -> Iterator[Etcd]:
    """An etcd with an empty store in the caller's network namespace; killed at the end.

    Skips the test where Debian's etcd-server is not installed, unless this machine was prepared for
    it: DPUKV_NEEDS_ETCD=1 makes that a failure.
    """
    if shutil.which("etcd") is None:
        lack = "needs etcd, which this machine lacks: run sudo tools/setup --with-etcd"
        if os.environ.get("DPUKV_NEEDS_ETCD"):
            pytest.fail(lack)
        pytest.skip(lack)
    with tempfile.TemporaryDirectory(prefix="dpukv-etcd-") as folder:
        etcd = Etcd(Path(folder), address, *_free_ports(address, 2))
        try:
            etcd.start()
            yield etcd
        finally:
            etcd.kill()


def _free_ports(address: str, count: int) -> list[int]:
    sockets = [socket.create_server((address, 0)) for _ in range(count)]
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports
