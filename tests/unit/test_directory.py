# SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
"""Exact and malformed records, the directory of files, and the publisher's thread.

Tests with a real etcd are in tests/net.
"""

import json
import os
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dpukv_xdp.base.errors import DirectoryError, RecordError, UsageError
from dpukv_xdp.base.patience import patient
from dpukv_xdp.discovery import watch
from dpukv_xdp.discovery.directory import (
    ENDPOINTS_MAX,
    TTL_SECONDS,
    Directory,
    FileDirectory,
    Listing,
    Publisher,
    ServerRecord,
    server_name,
)
from dpukv_xdp.discovery.opening import open_directory
from dpukv_xdp.discovery.watch import Watch

MAC = "02:00:00:00:00:01"
MICA2_LINE = (
    '{"concurrent_read":false, "concurrent_write":false, "partitions":[[0,0],[1,1]], '
    '"endpoints":[[0,0,"02:00:00:00:00:01","10.0.0.1",0],[1,1,"02:00:00:00:00:01","10.0.0.1",1]]}'
)
"""The line that public MICA2's server registers."""
RECORD = ServerRecord(False, False, (0, 1), ((MAC, "10.0.0.1", 0), (MAC, "10.0.0.1", 1)))
OTHER = ServerRecord(True, True, (0,), ((MAC, "10.0.0.2", 9800),))
SOON_SECONDS = patient(5.0)
"""Time-out for a thread's work, on a busy machine, too."""


def wait_until(what: Callable[[], bool]) -> None:
    deadline = time.monotonic() + SOON_SECONDS
    while not what():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.005)


# ---- Records


def test_a_record_is_mica2_s_line() -> None:
    assert RECORD.to_json() == MICA2_LINE
    assert ServerRecord.from_json(MICA2_LINE) == RECORD
    assert '"concurrent_read":true, "concurrent_write":true' in OTHER.to_json()


@st.composite
def records(draw: st.DrawFn) -> ServerRecord:
    port = st.integers(0, 0xFFFF)
    endpoint = st.tuples(
        st.binary(min_size=6, max_size=6).map(lambda raw: raw.hex(":")),
        st.ip_addresses(v=4).map(str),
        port,
    )
    endpoints = draw(st.lists(endpoint, min_size=1, max_size=ENDPOINTS_MAX))
    owners = draw(st.lists(st.integers(0, len(endpoints) - 1), min_size=1, max_size=256))
    return ServerRecord(draw(st.booleans()), draw(st.booleans()), tuple(owners), tuple(endpoints))


@given(records())
def test_a_record_survives_its_json(record: ServerRecord) -> None:
    text = record.to_json()
    assert ServerRecord.from_json(text) == record
    assert "\n" not in text
    assert list(json.loads(text)) == [
        "concurrent_read",
        "concurrent_write",
        "partitions",
        "endpoints",
    ]


def test_lcores_with_other_numbers_are_understood() -> None:
    """A MICA2 server may have several endpoints on an lcore; clients use the first."""
    text = json.dumps(
        {
            "concurrent_read": False,
            "concurrent_write": False,
            "partitions": [[0, 7], [1, 4], [2, 7]],
            "endpoints": [
                [0, 4, MAC, "10.0.0.1", 0],
                [1, 7, MAC, "10.0.0.1", 1],
                [2, 7, MAC, "10.0.0.1", 2],
            ],
            "version": 3,
        }
    )
    assert ServerRecord.from_json(text).owners == (1, 0, 1)


WHOLE = json.loads(MICA2_LINE)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "null",
        "[]",
        "{}",
        MICA2_LINE[:-1],
        MICA2_LINE + "}",
        MICA2_LINE.encode("utf-16"),
        b'{"concurrent_read":"\xff',
        *(
            json.dumps({each: WHOLE[each] for each in WHOLE if each != missing})
            for missing in WHOLE
        ),
        *(
            json.dumps(WHOLE | changed)
            for changed in (
                {"concurrent_read": 0},
                {"concurrent_write": "false"},
                {"partitions": []},
                {"partitions": {}},
                {"partitions": [[0]]},
                {"partitions": [[0, 0, 0]]},
                {"partitions": [["0", 0]]},
                {"partitions": [[0, 0.5]]},
                {"partitions": [[1, 0], [0, 1]]},
                {"partitions": [[0, 0], [2, 1]]},
                {"partitions": [[0, 0], [0, 1]]},
                {"partitions": [[0, 2]]},
                {"partitions": [[0, -1]]},
                {"partitions": [[index, 0] for index in range(257)]},
                {"endpoints": []},
                {"endpoints": [[0, 0, MAC, "10.0.0.1"]]},
                {"endpoints": [[1, 0, MAC, "10.0.0.1", 0]]},
                {"endpoints": [[0, 0, "02:00", "10.0.0.1", 0]]},
                {"endpoints": [[0, 0, MAC, "10.0.0", 0]]},
                {"endpoints": [[0, 0, MAC, "::1", 0]]},
                {"endpoints": [[0, 0, MAC, "10.0.0.1", 65536]]},
                {"endpoints": [[0, 0, MAC, "10.0.0.1", -1]]},
                {"endpoints": [[0, 0, MAC, "10.0.0.1", "0"]]},
                {"endpoints": [[index, index, MAC, "10.0.0.1", 0] for index in range(33)]},
            )
        ),
    ],
)
def test_malformed_records_are_errors(text: str | bytes) -> None:
    with pytest.raises(RecordError):
        ServerRecord.from_json(text)


@pytest.mark.parametrize(("partitions", "endpoints"), [(1, 1), (256, 32)])
def test_records_up_to_the_limits(partitions: int, endpoints: int) -> None:
    where = tuple((MAC, "10.0.0.1", 9800 + engine) for engine in range(endpoints))
    owners = tuple(partition % endpoints for partition in range(partitions))
    record = ServerRecord(False, False, owners, where)
    assert ServerRecord.from_json(record.to_json()) == record


@pytest.mark.parametrize(
    ("partitions", "endpoints", "telling"),
    [(257, 1, "257"), (0, 1, "0 part"), (1, 33, "33"), (1, 0, "0 end")],
)
def test_records_over_the_limits(partitions: int, endpoints: int, telling: str) -> None:
    where = ((MAC, "10.0.0.1", 9800),) * endpoints
    with pytest.raises(RecordError, match=telling):
        ServerRecord(False, False, (0,) * partitions, where)


def test_a_server_without_an_address_cannot_have_a_record() -> None:
    with pytest.raises(RecordError, match="IPv4"):
        ServerRecord(False, False, (0,), ((MAC, None, 9800),))  # type: ignore[arg-type]


# ---- URLs


@pytest.mark.parametrize(
    ("url", "place"),
    [
        ("file:/run/dpukv/directory", "file:/run/dpukv/directory"),
        ("file:///run/dpukv/directory", "file:/run/dpukv/directory"),
        ("etcd2://10.0.0.9:4001/mica", "etcd2://10.0.0.9:4001/mica"),
        ("etcd2://localhost", "etcd2://localhost:2379/mica"),
        ("etcd3://[::1]:2379/a/b/", "etcd3://[::1]:2379/a/b"),
    ],
)
def test_urls(url: str, place: str) -> None:
    assert str(open_directory(url)) == place


@pytest.mark.parametrize(
    "url",
    [
        "",
        "/run/dpukv",
        "file:",
        "file:relative",
        "file://host/path",
        "file:/run#x",
        "http://localhost:2379/mica",
        "etcd2:",
        "etcd2:///mica",
        "etcd2://user:word@host/mica",
        "etcd2://host/mica?ttl=1",
        "etcd2://host/mi ca",
        "etcd2://host//mica",
        "etcd3://host:port/mica",
        "etcd3://host:99999/mica",
        "etcd3://[::1",
    ],
)
def test_urls_that_name_no_directory(url: str) -> None:
    with pytest.raises(UsageError):
        open_directory(url)


@pytest.mark.parametrize("name", ["", ".", "../one", "a/b", "a b", ".hidden", "x" * 201, "ü.1"])
def test_names_that_no_server_has(tmp_path: Path, name: str) -> None:
    for url in (f"file:{tmp_path}/below", "etcd2://127.0.0.1:1", "etcd3://127.0.0.1:1"):
        place = open_directory(url)
        with pytest.raises(UsageError, match="not a server name"):
            place.publish(name, RECORD)
        with pytest.raises(UsageError, match="not a server name"):
            place.withdraw(name)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("kind", ["etcd2", "etcd3"])
def test_an_etcd_that_is_not_there(kind: str) -> None:
    place = open_directory(f"{kind}://127.0.0.1:1/mica")
    for call in (place.servers, lambda: place.publish("a.1", RECORD), lambda: place.withdraw("a")):
        with pytest.raises(DirectoryError, match=rf"{kind}://127\.0\.0\.1:1/mica cannot be reach"):
            call()


# ---- Files


@pytest.fixture
def files(tmp_path: Path) -> FileDirectory:
    return FileDirectory(tmp_path / "made" / "on demand")


def folder_of(files: FileDirectory) -> Path:
    return Path(str(files).removeprefix("file:"))


def test_records_come_back_sorted_by_name(files: FileDirectory) -> None:
    assert files.servers() == {}
    files.publish("two.9", RECORD)
    files.publish("one.10", OTHER)
    files.publish("one.1", OTHER)
    assert list(files.servers().items()) == [
        ("one.1", OTHER),
        ("one.10", OTHER),
        ("two.9", RECORD),
    ]
    assert (folder_of(files) / "two.9.json").read_text() == MICA2_LINE + "\n"
    files.withdraw("one.1")
    files.withdraw("one.1")
    assert list(files.servers()) == ["one.10", "two.9"]


def test_the_dead_are_not_listed_and_soon_removed(files: FileDirectory) -> None:
    folder = folder_of(files)
    files.publish("dead.1", RECORD)
    files.publish("from-the-future.2", RECORD)
    (folder / ".dead.1.new").write_text("{")
    now = time.time()
    for path, age_seconds in (
        (folder / "dead.1.json", 11),
        (folder / ".dead.1.new", 11),
        (folder / "from-the-future.2.json", -3600),
    ):
        os.utime(path, (now - age_seconds, now - age_seconds))
    assert files.servers() == {}
    files.publish("alive.3", RECORD)
    assert [path.name for path in folder.iterdir()] == ["alive.3.json"]


def test_publishing_again_keeps_a_record_alive(files: FileDirectory) -> None:
    path = folder_of(files) / "one.1.json"
    files.publish("one.1", RECORD)
    os.utime(path, (time.time() - 9, time.time() - 9))
    assert list(files.servers()) == ["one.1"]
    files.publish("one.1", RECORD)
    assert time.time() - path.stat().st_mtime < SOON_SECONDS


def test_a_reader_never_sees_half_a_record(files: FileDirectory) -> None:
    ends = tuple((MAC, "10.0.0.1", 9800 + engine) for engine in range(32))
    choices = [ServerRecord(False, False, (engine,) * 256, ends) for engine in (0, 31)]
    files.publish("one.1", choices[0])
    stop = threading.Event()

    def write() -> None:
        while not stop.is_set():
            for each in choices:
                files.publish("one.1", each)

    writer = threading.Thread(target=write)
    writer.start()
    try:
        for _ in range(300):
            assert files.servers()["one.1"] in choices
    finally:
        stop.set()
        writer.join()


def test_other_files_are_left_alone(files: FileDirectory) -> None:
    files.publish("one.1", RECORD)
    for name in ("README", ".one.2.new", ".hidden.json"):
        (folder_of(files) / name).write_text("not a record")
    assert list(files.servers()) == ["one.1"]


def test_a_malformed_record_is_named_and_takes_nothing_from_the_others(
    files: FileDirectory,
) -> None:
    files.publish("one.1", RECORD)
    (folder_of(files) / "bad.2.json").write_text(MICA2_LINE[:50])
    listing = files.servers()
    failure = listing.pop("bad.2")
    assert isinstance(failure, RecordError)
    assert f"server bad.2 in {files} is malformed" in str(failure)
    assert listing == {"one.1": RECORD}


def test_a_place_that_is_no_folder_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    files = FileDirectory(tmp_path / "file" / "below")
    with pytest.raises(DirectoryError, match=f"file:{tmp_path}/file/below cannot be written"):
        files.publish("one.1", RECORD)


# ---- Publishing


class Memory:
    """A directory that records its calls, and fails on demand."""

    def __init__(self) -> None:
        self.records: dict[str, ServerRecord] = {}
        self.published: list[ServerRecord] = []
        self.is_lost = False

    def publish(self, name: str, record: ServerRecord) -> None:
        self.fail_if_lost()
        self.published.append(record)
        self.records[name] = record

    def withdraw(self, name: str) -> None:
        self.fail_if_lost()
        self.records.pop(name, None)

    def servers(self) -> Listing:
        self.fail_if_lost()
        return dict(self.records)

    def fail_if_lost(self) -> None:
        if self.is_lost:
            raise DirectoryError("the directory is lost")


@pytest.fixture
def memory() -> Memory:
    return Memory()


def test_a_publisher_publishes_repeats_and_withdraws(memory: Memory) -> None:
    said: list[str] = []
    place: Directory = memory
    with Publisher(place, "one.1", RECORD, said.append, refresh_seconds=0.01):
        assert memory.records == {"one.1": RECORD}
        wait_until(lambda: len(memory.published) > 5)
    assert memory.records == {}
    count = len(memory.published)
    time.sleep(0.05)
    assert len(memory.published) == count
    assert said == []


def test_an_update_does_not_wait_for_the_next_turn(memory: Memory) -> None:
    with Publisher(memory, "one.1", RECORD, print, refresh_seconds=60) as publisher:
        publisher.update(OTHER)
        wait_until(lambda: memory.records == {"one.1": OTHER})


def test_an_outage_is_said_once_and_outlived(memory: Memory) -> None:
    said: list[str] = []
    with Publisher(memory, "one.1", RECORD, said.append, refresh_seconds=0.01) as publisher:
        for _ in range(2):
            memory.is_lost = True
            wait_until(lambda: bool(said))
            memory.records = {}
            publisher.update(OTHER)
            time.sleep(0.05)
            assert len(said) == 1
            assert "the directory is lost; " in said[0]
            memory.is_lost = False
            wait_until(lambda: len(said) == 2)
            assert "is back" in said[1]
            assert memory.records == {"one.1": OTHER}
            said.clear()


def test_a_place_that_is_lost_at_the_end_is_no_failure(memory: Memory) -> None:
    said: list[str] = []
    with Publisher(memory, "one.1", RECORD, said.append, refresh_seconds=60):
        memory.is_lost = True
    assert said == ["the directory is lost; this server's record expires within 10 s"]


def test_a_place_that_is_lost_at_the_start_is_an_error(memory: Memory) -> None:
    memory.is_lost = True
    with pytest.raises(DirectoryError), Publisher(memory, "one.1", RECORD, print):
        raise AssertionError("published")
    assert "directory" not in [each.name for each in threading.enumerate()]


class Interrupted(BaseException):
    """An interrupt like that of the command line."""


@pytest.mark.parametrize("is_lost", [False, True])
def test_an_interrupt_while_publishing_for_the_first_time_leaves_no_record(
    memory: Memory, monkeypatch: pytest.MonkeyPatch, is_lost: bool
) -> None:
    said: list[str] = []
    publish = memory.publish

    def interrupted(name: str, record: ServerRecord) -> None:
        publish(name, record)
        memory.is_lost = is_lost
        raise Interrupted

    monkeypatch.setattr(memory, "publish", interrupted)
    with pytest.raises(Interrupted), Publisher(memory, "one.1", RECORD, said.append):
        raise AssertionError("published")
    assert list(memory.records) == ["one.1"] * is_lost
    assert len(said) == is_lost


def test_whatever_goes_wrong_is_said_and_publishing_goes_on(
    memory: Memory, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    with Publisher(memory, "one.1", RECORD, said.append, refresh_seconds=0.01):
        with monkeypatch.context() as patched:
            patched.setattr(memory, "fail_if_lost", lambda: 1 / 0)
            wait_until(lambda: bool(said))
        wait_until(lambda: len(said) == 2)
        assert "ZeroDivisionError" in said[0]
        assert "is back" in said[1]


def test_nobody_has_to_listen(memory: Memory) -> None:
    def say(sentence: str) -> None:
        raise OSError("closed")

    with Publisher(memory, "one.1", RECORD, say, refresh_seconds=0.01) as publisher:
        memory.is_lost = True
        wait_until(lambda: publisher._is_lost)
        memory.is_lost = False
        memory.published.clear()
        wait_until(lambda: bool(memory.published))
        memory.is_lost = True


@pytest.fixture
def zombie() -> Iterator[int]:
    """Yield the number of a process that has ended and is not reaped."""
    child = subprocess.Popen(["true"])
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    yield child.pid
    child.wait()


def test_a_server_removes_what_killed_ones_of_its_host_have_left(
    memory: Memory, zombie: int
) -> None:
    """Also those at other addresses. Whether another host's server lives cannot be known here."""
    dead, alive = server_name(zombie), server_name(os.getppid())
    memory.records = {dead: OTHER, alive: RECORD, f"elsewhere.{zombie}": RECORD}
    with Publisher(memory, "one.2", RECORD, print, refresh_seconds=60):
        assert sorted(memory.records) == sorted([alive, f"elsewhere.{zombie}", "one.2"])


def test_somebody_else_s_malformed_record_keeps_nobody_from_publishing(
    files: FileDirectory, zombie: int
) -> None:
    said: list[str] = []
    for name in ("two.1", server_name(zombie)):
        files.publish(name, OTHER)
        (folder_of(files) / f"{name}.json").write_text("{")
    with Publisher(files, "one.1", RECORD, said.append):
        assert sorted(files.servers()) == ["one.1", "two.1"]
    assert sorted(files.servers()) == ["two.1"]
    assert len(said) == 1
    assert "the record of server two.1" in said[0]
    assert "malformed" in said[0]


def test_a_publisher_needs_a_name(memory: Memory) -> None:
    with pytest.raises(UsageError, match="not a server name"):
        Publisher(memory, "a/b", RECORD, print)


# ---- Watching


def at(host: int, *ports: int) -> ServerRecord:
    """Return a server's record."""
    endpoints = tuple((MAC, f"10.0.0.{host}", port) for port in ports)
    return ServerRecord(False, False, (0,), endpoints)


def look(watch: Watch) -> None:
    """Make the watch read the directory, and wait until it has read the current state."""
    for _ in range(2):  # a read may have been under way already
        before = watch._read_at
        watch.ask()
        wait_until(lambda before=before: watch._read_at > before)  # type: ignore[misc]


@pytest.fixture
def three(files: FileDirectory) -> Iterator[Watch]:
    """Yield a watch that knows three servers, two of them on one host."""
    files.publish("a.5", at(1, 1, 2))
    files.publish("a.6", at(1, 3, 4))
    files.publish("b.7", at(2, 1))
    with closing(Watch(str(files), None, refresh_seconds=60)) as watch:
        assert watch.servers == (at(1, 1, 2), at(1, 3, 4), at(2, 1))
        yield watch


def test_a_server_that_starts_again_keeps_its_place(files: FileDirectory, three: Watch) -> None:
    """It keeps its keys, too, whatever its process number is."""
    for old, new, record in (("a.5", "a.10", at(1, 1, 2)), ("b.7", "b.10000", at(2, 1))):
        before = three.servers
        files.withdraw(old)
        look(three)
        assert three.servers == before
        files.publish(new, record)
        look(three)
        assert three.servers == before


def test_a_server_that_starts_again_elsewhere_takes_the_place_of_the_old_one(
    files: FileDirectory, three: Watch
) -> None:
    files.withdraw("b.7")
    files.publish("b.8", at(2, 9))  # another port, same host
    look(three)
    assert three.servers == (at(1, 1, 2), at(1, 3, 4), at(2, 9))
    files.withdraw("b.8")
    files.publish("renamed.8", at(2, 9, 10))  # another host, same address
    look(three)
    assert three.servers == (at(1, 1, 2), at(1, 3, 4), at(2, 9, 10))


def test_a_server_that_is_missing_for_a_moment_keeps_its_place(
    files: FileDirectory, three: Watch
) -> None:
    """After an outage that outlasted all records, servers return one after the other."""
    before = three.servers
    for name in ("a.5", "a.6", "b.7"):
        files.withdraw(name)
    for name, record in (("b.7", at(2, 1)), ("a.5", at(1, 1, 2)), ("a.6", at(1, 3, 4))):
        look(three)
        assert three.servers == before
        files.publish(name, record)
    look(three)
    assert three.servers == before


class Clock:
    """Replaces `time`: advances when told to, and hardly by itself."""

    def __init__(self) -> None:
        self.seconds = time.monotonic()

    def monotonic(self) -> float:
        self.seconds += 1e-3
        return self.seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(watch, "time", made)
    return made


def test_a_server_that_stays_away_loses_its_place(
    files: FileDirectory, three: Watch, clock: Clock
) -> None:
    before = three.servers
    files.withdraw("a.5")
    files.withdraw("b.7")
    look(three)
    clock.seconds += TTL_SECONDS - 1
    look(three)
    assert three.servers == before
    clock.seconds += 1
    look(three)
    assert three.servers == (at(1, 3, 4),)
    files.withdraw("a.6")
    look(three)
    clock.seconds += TTL_SECONDS
    look(three)
    assert three.servers == (at(1, 3, 4),), "the last one has no successor"


def test_looks_that_fail_do_not_count(
    files: FileDirectory, three: Watch, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = three.servers
    files.withdraw("b.7")
    look(three)
    with monkeypatch.context() as patched:
        patched.setattr(three, "_directory", lost := Memory())
        lost.is_lost = True
        look(three)
        assert "lost" in str(three.failure)
        clock.seconds += TTL_SECONDS
    look(three)
    assert three.failure is None
    assert three.servers == before
    clock.seconds += TTL_SECONDS
    look(three)
    assert three.servers == before[:2]


def test_a_malformed_record_blinds_nobody(files: FileDirectory, three: Watch) -> None:
    """A malformed new record is left out; a server that was known keeps its last record."""
    before = three.servers
    assert three.failure is None
    (folder_of(files) / "bad.2.json").write_text("{")
    (folder_of(files) / "b.7.json").write_text("{")
    files.publish("a.6", at(1, 3, 5))
    look(three)
    assert three.servers == (before[0], at(1, 3, 5), before[2])
    assert "the record of server b.7" in str(three.failure)
    (folder_of(files) / "bad.2.json").unlink()
    files.publish("b.7", at(2, 1))
    look(three)
    assert three.failure is None


def test_only_the_records_asked_for_matter(files: FileDirectory) -> None:
    files.publish("a.1", at(1, 1))
    (folder_of(files) / "bad.2.json").write_text("{")
    with closing(Watch(str(files), "a", refresh_seconds=60)) as watch:
        assert watch.failure is None
    with pytest.raises(RecordError, match=r"server bad\.2"):
        Watch(str(files), "bad", refresh_seconds=60)
