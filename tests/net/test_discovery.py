# SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
"""A client that knows only the directory finds a server and follows it through restarts."""

import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from net.commands import TIMEOUT_SECONDS, wait_for
from net.etcd import Etcd, running_etcd
from net.serving import ENGINE_CPU, PORT, serving_child

from dpukv_xdp.base.patience import patient
from dpukv_xdp.client.client import Client
from dpukv_xdp.discovery.directory import server_name
from dpukv_xdp.discovery.opening import open_directory
from dpukv_xdp.kernel.namespaces import in_namespace
from dpukv_xdp.lab import lab as labs
from dpukv_xdp.lab.lab import Lab
from dpukv_xdp.server.service import call_service, services
from dpukv_xdp.wire.hashing import hash_key

ENGINES, PARTITIONS = 2, 8
ITEMS = {b"key %d" % number: b"value %d" % number for number in range(200)}


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    labs.remove_stale()
    with Lab.up() as place:
        yield place


@pytest.fixture
def etcd(lab: Lab, tmp_path: Path) -> Iterator[Etcd]:
    """Yield an etcd in the client's namespace."""
    with (
        in_namespace(lab.client.namespace),
        running_etcd(address=lab.client.address) as running,
    ):
        yield running


@pytest.mark.parametrize("api", ["etcd2", "etcd3"])
def test_a_client_that_knows_only_etcd(lab: Lab, etcd: Etcd, api: str) -> None:
    """It finds the server, follows moved partitions, and survives a kill and restart of the server,
    on other ports, and of etcd.
    """
    url = etcd.url(api)
    with serving(lab, url, PORT) as first, connected(lab, url) as client:
        assert client.set_many(ITEMS) == []
        assert client.get_many(ITEMS) == ITEMS
        name = server_name(first.pid)
        for partition in range(PARTITIONS):
            call_service(name, "move", partition=partition, engine=(partition + 1) % ENGINES)
            assert client.get_many(ITEMS) == ITEMS
        etcd.kill()
        assert client.get_many(ITEMS) == ITEMS
        etcd.forget()
        etcd.start()
        wait_for(lambda: name in open_directory(url).servers())
        assert client.get_many(ITEMS) == ITEMS

        first.send_signal(signal.SIGKILL)
        first.wait()
        with serving(lab, url, PORT + 100) as second:
            assert client.get_many(ITEMS) == {}
            assert client.set_many(ITEMS) == []
            assert client.get_many(ITEMS) == ITEMS
            second.terminate()
            assert second.wait(TIMEOUT_SECONDS) == 0
        assert open_directory(url).servers() == {}


def test_what_mica2s_client_reads(lab: Lab, etcd: Etcd) -> None:
    """Its two GETs return the list, and the value, which is never incomplete."""
    with serving(lab, etcd.url("etcd2"), PORT) as server:
        name = server_name(server.pid)
        wait_for(lambda: name in etcd.mica2_list(), timeout_seconds=patient(30))
        value = etcd.mica2_value(name)
    assert value["partitions"] == [[index, index % ENGINES] for index in range(PARTITIONS)]
    assert (value["concurrent_read"], value["concurrent_write"]) == (False, False)
    assert value["endpoints"] == [
        [engine, engine, lab.server.mac, lab.server.address, PORT + engine]
        for engine in range(ENGINES)
    ]


def test_the_default_is_a_file_and_a_lab_is_found_in_it(lab: Lab) -> None:
    with serving_child(lab) as server:
        name = server_name(server.pid)
        found = wait_for(lambda: open_directory("file:/run/dpukv/directory").servers().get(name))
        assert found.endpoints == ((lab.server.mac, lab.server.address, PORT),)


def connected(lab: Lab, url: str) -> Client:
    with in_namespace(lab.client.namespace):
        return Client.from_directory(url, timeout=0.5, retries=40)


@contextmanager
def serving(lab: Lab, url: str, port: int) -> Iterator[subprocess.Popen[str]]:
    """Run `dpukv serve` in the lab until it is published; the test may kill it."""
    options = {
        "--engines": ENGINES,
        "--engine-cpus": ENGINE_CPU,
        "--partitions": PARTITIONS,
        "--directory": url,
        "--port": port,
    }
    arguments = [str(word) for option in options.items() for word in option]
    with serving_child(lab, *arguments) as child:
        name = server_name(child.pid)
        wait_for(lambda: name in services(), timeout_seconds=patient(30))
        yield child


def test_keys_and_partitions_agree() -> None:
    """The keys cover all partitions: the test above would not notice if they did not."""
    assert len({(hash_key(key) >> 48) % PARTITIONS for key in ITEMS}) == PARTITIONS
