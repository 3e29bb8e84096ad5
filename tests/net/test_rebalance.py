# SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
"""Partitions move between serving engines, and no answer is lost or wrong."""

import json
import os
import random
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from net.commands import TIMEOUT_SECONDS, dpukv, wait_for
from net.serving import ENGINE_CPU, client_of, serving, serving_child, sharing_cores

from dpukv_xdp.base.errors import ResultError, UsageError
from dpukv_xdp.base.patience import patient
from dpukv_xdp.client.client import Client
from dpukv_xdp.discovery.directory import server_name
from dpukv_xdp.discovery.opening import open_directory
from dpukv_xdp.kernel.namespaces import in_namespace
from dpukv_xdp.lab import lab as labs
from dpukv_xdp.lab.lab import Lab
from dpukv_xdp.server.service import Service, call_service, services
from dpukv_xdp.wire.hashing import hash_key

PARTITIONS = 16
MOVES = 200
KEYS = 300


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    labs.remove_stale()
    with Lab.up() as place:
        yield place


@pytest.mark.parametrize("access", ["erew", "crew", "crcw"])
@pytest.mark.parametrize("design", ["lat", "cpu-only", "dual"])
def test_moves_under_load_lose_nothing(lab: Lab, tmp_path: Path, design: str, access: str) -> None:
    """A client that follows the directory agrees with a dict while partitions move."""
    doors = 2 if design == "dual" else 1
    settings: dict[str, Any] = {
        "design": design,
        "engines": 2 // doors,
        "partitions": PARTITIONS,
        "access": access,
        "directory": f"file:{tmp_path}",
    }
    with sharing_cores(), serving(lab, **settings) as server, Service(server, lambda said: None):
        stop = threading.Event()
        talking = threading.Thread(target=move_around, args=(server_name(os.getpid()), stop))
        talking.start()
        try:
            done = agree(lab, f"file:{tmp_path}", stop)
        finally:
            stop.set()
            talking.join()
        assert done > KEYS


def move_around(name: str, stop: threading.Event) -> None:
    """Move random partitions to random engines until told to stop."""
    choices = random.Random(5)
    try:
        for _ in range(MOVES):
            partition, engine = choices.randrange(PARTITIONS), choices.randrange(2)
            owners = call_service(name, "move", partition=partition, engine=engine)
            assert owners[partition] == engine
            time.sleep(0.002)
    finally:
        stop.set()


def agree(lab: Lab, url: str, stop: threading.Event) -> int:
    """Run random operations until told to stop; return their number.

    The time-out is long, so that a request is repeated only after a loss. A repetition would show:
    an INCREMENT would count twice, and an ADD would meet its own key.
    """
    choices = random.Random(6)
    held: dict[bytes, bytes] = {}
    keys = [b"key %d" % number for number in range(KEYS)]
    counters = {b"counter %d" % number: number for number in range(KEYS)}
    done = 0
    with (
        in_namespace(lab.client.namespace),
        Client.from_directory(url, timeout=10, retries=1, refresh=0.005) as client,
    ):
        assert client.set_many({key: counter(value) for key, value in counters.items()}) == []
        while not stop.is_set():
            some = choices.sample(keys, 20)
            one, counted = some[0], choices.choice(list(counters))
            if choices.random() < 0.5:
                written = {key: choices.randbytes(choices.randrange(30)) for key in some}
                assert client.set_many(written) == []
                held |= written
                assert client.delete(one) is True
                del held[one]
            else:
                assert client.get_many(some) == {key: held[key] for key in some if key in held}
                assert client.add(one, b"added") is (one not in held)
                held.setdefault(one, b"added")
            counters[counted] += done
            assert client.increment(counted, done) == counters[counted]
            done += len(some)
        assert client.get_many(keys) == held
        wanted = {key: counter(value) for key, value in counters.items()}
        assert client.get_many(counters) == wanted
    return done


def counter(value: int) -> bytes:
    """Return the bytes of an INCREMENT's counter."""
    return value.to_bytes(8, "little")


def test_a_moved_partition_takes_its_items_along(lab: Lab) -> None:
    key = b"somewhere"
    with sharing_cores(), serving(lab, engines=2, partitions=8) as server:
        partition = (hash_key(key) >> 48) % 8
        old = server.owners[partition]
        with client_of(lab, ports=2, owners=server.owners) as client:
            assert client.set(key, b"value")
        server.move_partition(partition, 1 - old)
        assert server.owners[partition] == 1 - old
        with client_of(lab, ports=2, owners=server.owners) as client:
            assert client.get(key) == b"value"
        with client_of(lab, ports=2, owners=[old]) as client, pytest.raises(ResultError):
            client.get(key)
        server.move_partition(partition, old)
        with client_of(lab, ports=2, owners=server.owners) as client:
            assert client.get(key) == b"value"


def test_what_cannot_move_is_refused(lab: Lab) -> None:
    with sharing_cores(), serving(lab, design="shrd") as server:
        partition = server.owners.index(0)
        assert server.movable_to(partition) == (0,)
        with pytest.raises(UsageError, match="cannot reach"):
            server.move_partition(partition, 1)
        with pytest.raises(UsageError, match="are not 0 to 63 and 0 to 1"):
            server.move_partition(64, 0)
    with serving(lab, design="dpu-only", engines=2) as server:
        assert server.movable_to(0) == (0,)
    with serving(lab, design="dpu-only", engines=2, access="crcw") as server:
        assert server.movable_to(0) == (0, 1)


def test_requests_of_partitions_are_counted(lab: Lab) -> None:
    with sharing_cores(), serving(lab, engines=2, partitions=4) as server:
        before = server.partition_requests()
        keys = [b"%d" % number for number in range(100)]
        with client_of(lab, ports=2, owners=server.owners) as client:
            client.get_many(keys)
        counted = (server.partition_requests() - before).tolist()
    wanted = [0] * 4
    for key in keys:
        wanted[(hash_key(key) >> 48) % 4] += 1
    assert counted == wanted


def test_rebalancing_evens_the_load_out(lab: Lab, tmp_path: Path) -> None:
    settings = {"engines": 2, "partitions": 8, "directory": f"file:{tmp_path}"}
    with sharing_cores(), serving(lab, **settings) as server:
        for partition in range(8):
            server.move_partition(partition, 0)
        with Service(server, lambda said: None) as service:
            with client_of(lab, ports=2, owners=server.owners) as client:
                client.get_many([b"%d" % number for number in range(2000)])
            moves = service.rebalance(look_seconds=0)
            assert {move["engine"] for move in moves} == {1}
            assert sorted(server.owners) == [0] * 4 + [1] * 4
            wait_for(lambda: owners_in(tmp_path, service.name) == server.owners)


def owners_in(folder: Path, name: str) -> tuple[int, ...]:
    """Return the owners that a server has published."""
    return open_directory(f"file:{folder}").servers()[name].owners


# ---- The command


def test_rebalance_as_a_command(lab: Lab, tmp_path: Path) -> None:
    options = ["--engines", "2", "--engine-cpus", str(ENGINE_CPU), "--partitions", "8"]
    with serving_child(lab, *options, "--directory", f"file:{tmp_path}") as child:
        name = server_name(child.pid)
        wait_for(lambda: name in services(), timeout_seconds=patient(30))
        moved = dpukv("rebalance", "--server", name, "--move", "3:0", "--json", "-")
        result = json.loads(moved.stdout)
        assert result["moves"] == [{"partition": 3, "engine": 0}]
        assert result["partitions"][3]["engine"] == 0
        wait_for(lambda: owners_in(tmp_path, name)[3] == 0)
        said = dpukv("rebalance", "--server", name, "--look", "0.1")
        assert "engine 0: 5 partitions; engine 1: 3 partitions" in said.stdout
        with pytest.raises(UsageError, match="calls are move, partitions, rebalance, stats"):
            call_service(name, "move", nothing=1)
        for wrong, sentence in (
            (["--move", "8:0"], "partition 8 and engine 0 are not 0 to 7 and 0 to 1"),
            (["--move", "x"], "'x' is not PARTITION:ENGINE"),
            (["--server", "nobody.1"], "no server 'nobody.1' runs on this machine"),
            (["--server", "x" * 200], "is not a server on this machine"),
        ):
            arguments = ["--server", name, *wrong] if wrong[0] != "--server" else wrong
            refused = dpukv("rebalance", *arguments, status=2)
            assert sentence in refused.stderr


def test_a_server_moves_partitions_by_itself(lab: Lab, tmp_path: Path) -> None:
    settings = {"engines": 2, "partitions": 8, "rebalance_s": 0.2, "directory": f"file:{tmp_path}"}
    said: list[str] = []
    with sharing_cores(), serving(lab, **settings) as server:
        for partition in range(8):
            server.move_partition(partition, 0)
        with Service(server, said.append):
            deadline = time.monotonic() + TIMEOUT_SECONDS
            with (
                in_namespace(lab.client.namespace),
                Client.from_directory(f"file:{tmp_path}", timeout=0.5, retries=20) as client,
            ):
                while not said:
                    assert time.monotonic() < deadline
                    client.get_many([b"%d" % number for number in range(500)])
        assert "partitions" in said[0]
        assert len(set(server.owners)) == 2


def test_the_owner_is_nobody_only_for_a_moment(lab: Lab) -> None:
    with sharing_cores(), serving(lab, engines=2, partitions=2) as server:
        moments = []
        for engine in (1, 0) * 20:
            start = time.monotonic()
            server.move_partition(0, engine)
            moments.append(time.monotonic() - start)
        assert server.owners == (0, 1)
        assert min(moments) < patient(0.05)
