# SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
"""A real etcd for tests, in the caller's network namespace."""

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
    """A process of Debian's etcd (3.4), which offers both versions of its interface on one port."""

    def __init__(self, folder: Path, address: str, client_port: int, peer_port: int) -> None:
        self.authority = f"{address}:{client_port}"
        self._address, self.peer_port = address, peer_port
        self._mica2_keys = f"http://{self.authority}/v2/keys/mica/servers"
        self._folder = folder
        self._process: subprocess.Popen[bytes] | None = None

    def url(self, scheme: str) -> str:
        """Return the URL for --directory; `scheme` is etcd2 or etcd3."""
        return f"{scheme}://{self.authority}/mica"

    def start(self) -> None:
        """Start etcd on the data of former runs; return when it answers."""
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
        """Kill etcd, if it runs."""
        if self._process is not None:
            self._process.kill()
            self._process.wait(STOP_SECONDS)
            self._process = None

    def forget(self) -> None:
        """Delete its data; it must not be running."""
        shutil.rmtree(self._folder / "data")

    def pause(self) -> None:
        """Stop the process, so that it accepts connections but does not answer."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Continue after pause()."""
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)

    # Requests of a public MICA2 client, once per second

    def mica2_list(self) -> list[str]:
        """Return the names of the servers."""
        answer = requests.get(f"{self._mica2_keys}/", timeout=patient(5)).json()
        nodes = answer.get("node", {}).get("nodes", [])
        return [node["key"].removeprefix("/mica/servers/") for node in nodes]

    def mica2_value(self, name: str) -> Any:
        """Return a server's record as the client's JSON parser reads it; a failure crashes it."""
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
    """Yield an etcd with an empty store in the caller's network namespace; kill it at the end.

    Skip the test if Debian's etcd-server is not installed, or fail it if the environment has
    DPUKV_NEEDS_ETCD=1.
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
