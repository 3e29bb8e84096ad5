# SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
"""The directory in a real etcd, as our clients and public MICA2 clients see it."""

import json
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Any

import pytest
import requests
from net.etcd import Etcd, running_etcd

from dpukv_xdp.base.errors import DirectoryError, RecordError
from dpukv_xdp.base.patience import patient
from dpukv_xdp.discovery.directory import Publisher, ServerRecord
from dpukv_xdp.discovery.etcd import TIMEOUT_SECONDS
from dpukv_xdp.discovery.opening import open_directory
from dpukv_xdp.discovery.watch import Watch

pytestmark = pytest.mark.shares_cores

SCHEMES = ("etcd2", "etcd3")
MAC = "02:00:00:00:00:01"
RECORD = ServerRecord(
    False, False, (0, 1, 1, 0), tuple((MAC, "10.0.0.1", 9800 + engine) for engine in range(2))
)
MOVED = ServerRecord(False, False, (1, 1, 1, 1), RECORD.endpoints)
OTHER = ServerRecord(False, False, (0,), ((MAC, "10.0.0.2", 9800),))
SOON_SECONDS = patient(15.0)
"""Time-out for steps that take a second, on a busy machine, too."""
TTL_SECONDS, REFRESH_SECONDS = 4, 0.5
"""Times of a record that is to expire soon: etcd's shortest TTL is 2 s."""
EXPIRY_SECONDS = patient(10.0)


@pytest.fixture(scope="module")
def shared() -> Iterator[Etcd]:
    with running_etcd() as etcd:
        yield etcd


@pytest.fixture
def etcd() -> Iterator[Etcd]:
    """Yield an etcd for one test, which may kill it."""
    with running_etcd() as own:
        yield own


def wait_until(what: Callable[[], Any], timeout_seconds: float = SOON_SECONDS) -> float:
    """Poll `what`; return the seconds until it was true."""
    start = time.monotonic()
    while not what():
        assert time.monotonic() < start + timeout_seconds, "waited in vain"
        time.sleep(0.05)
    return time.monotonic() - start


# ---- As MICA2's clients read it: two GETs


def test_a_mica2_client_finds_the_server(shared: Etcd) -> None:
    with Publisher(open_directory(shared.url("etcd2")), "host.1", RECORD, print):
        assert shared.mica2_list() == ["host.1"]
        assert shared.mica2_value("host.1") == {
            "concurrent_read": False,
            "concurrent_write": False,
            "partitions": [[0, 0], [1, 1], [2, 1], [3, 0]],
            "endpoints": [[0, 0, MAC, "10.0.0.1", 9800], [1, 1, MAC, "10.0.0.1", 9801]],
        }
    assert shared.mica2_list() == []


def test_a_mica2_client_never_reads_half_a_record(shared: Etcd) -> None:
    """Read a record that is rewritten as fast as possible."""
    ends = tuple((MAC, "10.0.0.1", 9800 + engine) for engine in range(32))
    choices = [ServerRecord(False, False, (engine,) * 256, ends) for engine in (0, 31)]
    whole = [json.loads(each.to_json()) for each in choices]
    stop = threading.Event()

    def write() -> None:
        writer_s_own = open_directory(shared.url("etcd2"))
        while not stop.is_set():
            for each in choices:
                writer_s_own.publish("host.2", each)

    writer = threading.Thread(target=write)
    writer.start()
    try:
        wait_until(lambda: "host.2" in shared.mica2_list())
        for _ in range(100):
            assert shared.mica2_value("host.2") in whole
    finally:
        stop.set()
        writer.join()
        open_directory(shared.url("etcd2")).withdraw("host.2")


def test_a_record_is_repeated_long_before_it_expires(shared: Etcd) -> None:
    where = f"http://{shared.authority}/v2/keys/mica/servers/host.3"
    left = []
    with Publisher(open_directory(shared.url("etcd2")), "host.3", RECORD, print):
        end = time.monotonic() + 3.5
        while time.monotonic() < end:
            left.append(requests.get(where, timeout=patient(5)).json()["node"]["ttl"])
            time.sleep(0.1)
    assert min(left) >= 7
    assert max(left) <= 10


# ---- Both versions


@pytest.mark.parametrize("scheme", SCHEMES)
def test_records_are_published_sorted_and_withdrawn(shared: Etcd, scheme: str) -> None:
    place = open_directory(shared.url(scheme))
    assert place.servers() == {}
    place.withdraw("nobody.1")
    for name, record in (("b.2", RECORD), ("c.3", RECORD), ("a.1", OTHER)):
        place.publish(name, record)
    place.publish("b.2", MOVED)
    expected = [("a.1", OTHER), ("b.2", MOVED), ("c.3", RECORD)]
    assert list(open_directory(shared.url(scheme)).servers().items()) == expected
    for name in ("a.1", "b.2", "c.3"):
        place.withdraw(name)
        place.withdraw(name)
    assert place.servers() == {}


def test_the_versions_do_not_see_one_another(shared: Etcd) -> None:
    with Publisher(open_directory(shared.url("etcd3")), "host.1", RECORD, print):
        assert open_directory(shared.url("etcd2")).servers() == {}


@pytest.mark.parametrize("scheme", SCHEMES)
def test_an_update_is_there_at_once(shared: Etcd, scheme: str) -> None:
    place = open_directory(shared.url(scheme))
    publisher = Publisher(
        open_directory(shared.url(scheme)), "host.4", RECORD, print, refresh_seconds=3600
    )
    with publisher:
        assert place.servers() == {"host.4": RECORD}
        publisher.update(MOVED)
        wait_until(lambda: place.servers() == {"host.4": MOVED})
    assert place.servers() == {}


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_record_that_somebody_removed_comes_back(shared: Etcd, scheme: str) -> None:
    place = open_directory(shared.url(scheme))
    with Publisher(open_directory(shared.url(scheme)), "host.5", RECORD, print):
        place.withdraw("host.5")
        wait_until(place.servers)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_malformed_record_is_named(shared: Etcd, scheme: str) -> None:
    name, place = "elsewhere.1", open_directory(shared.url(scheme))
    place.publish(name, RECORD)
    if scheme == "etcd2":
        where = f"http://{shared.authority}/v2/keys/mica/servers/{name}"
        assert requests.put(where, data={"value": "{"}, timeout=patient(5)).ok
    else:
        key = {"key": "L21pY2Evc2VydmVycy9lbHNld2hlcmUuMQ==", "value": "ew=="}
        assert requests.post(
            f"http://{shared.authority}/v3/kv/put", json=key, timeout=patient(5)
        ).ok
    failure = place.servers()[name]
    assert isinstance(failure, RecordError)
    assert f"{name} in {place} is malformed" in str(failure)
    place.withdraw(name)


PUBLISH_FOR_EVER = """
import sys, time
from dpukv_xdp.discovery.directory import Publisher, ServerRecord
from dpukv_xdp.discovery.opening import open_directory
url, name, text, ttl, refresh = sys.argv[1:]
record = ServerRecord.from_json(text)
place = open_directory(url, int(ttl))
with Publisher(place, name, record, print, refresh_seconds=float(refresh)):
    print("published", flush=True)
    time.sleep(600)
"""


def test_the_record_of_a_killed_server_expires(shared: Etcd) -> None:
    """It must not expire early. Both versions are tested at once, since expiry takes seconds."""
    places = {scheme: open_directory(shared.url(scheme)) for scheme in SCHEMES}
    children = []
    try:
        for scheme in SCHEMES:
            times = [str(TTL_SECONDS), str(REFRESH_SECONDS)]
            arguments = [shared.url(scheme), "killed.1", RECORD.to_json(), *times]
            command = [sys.executable, "-P", "-c", PUBLISH_FOR_EVER, *arguments]
            children.append(subprocess.Popen(command, stdout=subprocess.PIPE))
        for child in children:
            assert child.stdout is not None
            assert child.stdout.readline() == b"published\n"
        time.sleep(TTL_SECONDS)  # without a refresh it would expire soon
    finally:
        for child in children:
            child.send_signal(signal.SIGKILL)
            child.wait()
            if child.stdout is not None:
                child.stdout.close()
    killed_at = time.monotonic()
    assert [list(place.servers()) for place in places.values()] == [["killed.1"]] * 2
    for place in places.values():
        wait_until(lambda place=place: not place.servers(), EXPIRY_SECONDS)  # type: ignore[misc]
        assert time.monotonic() - killed_at > TTL_SECONDS / 2


@pytest.mark.parametrize("scheme", SCHEMES)
def test_an_etcd_that_comes_back_empty_has_the_record_again(etcd: Etcd, scheme: str) -> None:
    said: list[str] = []
    place = open_directory(etcd.url(scheme))
    publisher = Publisher(
        open_directory(etcd.url(scheme)), "host.6", RECORD, said.append, refresh_seconds=0.2
    )
    with publisher:
        etcd.kill()
        wait_until(lambda: said)
        publisher.update(MOVED)
        time.sleep(1)
        assert len(said) == 1
        assert f"{scheme}://{etcd.authority}/mica cannot be reached" in said[0]
        etcd.forget()
        etcd.start()
        wait_until(lambda: place.servers() == {"host.6": MOVED})
        wait_until(lambda: len(said) == 2)
        assert "is back" in said[1]
        etcd.kill()
        etcd.start()  # with its former data
        wait_until(lambda: place.servers() == {"host.6": MOVED})
    assert place.servers() == {}


@pytest.mark.parametrize("scheme", SCHEMES)
def test_an_etcd_that_hangs_holds_up_nobody_who_uses_a_watch(etcd: Etcd, scheme: str) -> None:
    said: list[str] = []
    name, where = "host.8", etcd.url(scheme)
    with (
        Publisher(open_directory(where), name, RECORD, said.append, refresh_seconds=0.1) as own,
        closing(Watch(where, None, refresh_seconds=0.01)) as watch,
    ):
        etcd.pause()
        start = time.monotonic()
        for _ in range(100):
            watch.use()
            watch.ask()
            own.update(MOVED)
            assert watch.servers == (RECORD,)
        assert time.monotonic() - start < patient(1)
        wait_until(lambda: said)
        assert f"does not answer within {patient(TIMEOUT_SECONDS):.3g} s" in said[0]
        etcd.resume()
        wait_until(lambda: watch.ask() or watch.servers == (MOVED,))


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_watch_outlives_etcd_and_follows_it_afterwards(etcd: Etcd, scheme: str) -> None:
    place = open_directory(etcd.url(scheme))
    place.publish("host.7", RECORD)
    watch = Watch(etcd.url(scheme), None, refresh_seconds=0.1)
    try:
        etcd.kill()
        for _ in range(5):
            watch.ask()
            time.sleep(0.1)
            assert watch.servers == (RECORD,)
        etcd.forget()
        etcd.start()
        watch.ask()
        time.sleep(0.5)
        assert watch.servers == (RECORD,)  # an empty list changes nothing
        place.publish("host.7", MOVED)

        def has_followed() -> bool:
            watch.use()
            return watch.servers == (MOVED,)

        wait_until(has_followed)
    finally:
        watch.close()


def test_an_etcd_without_version_2_is_told_from_one_that_is_empty(shared: Etcd) -> None:
    """The peers' port answers 404 to every request, as etcd 3.6 would."""
    peer = open_directory(f"etcd2://127.0.0.1:{shared.peer_port}/mica")
    with pytest.raises(DirectoryError, match="no version 2 interface: start etcd with --enable-v2"):
        peer.servers()
