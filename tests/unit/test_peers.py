# SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
"""Requests to Redis and memcached, their answers however they are cut, and imported results."""

import csv
import io
import json
import os
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dpukv_xdp._core._bench import ffi, lib
from dpukv_xdp.base.errors import MissingError, UsageError
from dpukv_xdp.bench import peers
from dpukv_xdp.bench.compare import (
    OURS,
    Outcome,
    contenders_of,
    loads,
    rounds_of,
    server_of,
    summary,
)
from dpukv_xdp.bench.options import BenchOptions
from dpukv_xdp.bench.peer_stores import PEERS, PeerSize, find_peer
from dpukv_xdp.bench.peer_times import PeerRun, ServerTimes, idle_ns
from dpukv_xdp.bench.peers_import import imported_rows, read_results
from dpukv_xdp.bench.peers_load import PROTOCOLS, PeerPlan, Snapshot, stream_of_requests
from dpukv_xdp.load import draws, workload
from dpukv_xdp.load.workload import WORKLOADS
from dpukv_xdp.report.peers_report import compare_tables, imported_tables, plot_compare
from dpukv_xdp.topology.designs import DESIGNS
from dpukv_xdp.wire import abi

EXAMPLE = Path(__file__).parents[2] / "docs" / "results" / "bluefield_from_paper.json"
PAPER = Path(__file__).parents[2] / "dpukv_xdp" / "model" / "data" / "paper_results.csv"
EPROTO = -71
UDP_HEADER = bytes.fromhex("0000 0000 0001 0000")
RANKS = [3, 258, 5, 7]
IS_GET = [True, False, True, False]


def key_of(rank: int) -> bytes:
    return workload.key_bytes(rank, 8).hex().encode()


def value_of(rank: int) -> bytes:
    return workload.value_bytes(workload.key_bytes(rank, 8), 8)


def plan_of(
    protocol: str, ranks: list[int] = RANKS, gets: list[bool] = IS_GET, **options: int
) -> PeerPlan:
    """Return a plan, of one message by default."""
    options.setdefault("per_message", len(ranks))
    return PeerPlan(PROTOCOLS[protocol], np.array(ranks, np.uint64), np.array(gets), **options)


@dataclass
class Heard:
    """The parser's result for an answer."""

    counts: Any
    left: bytes
    """Bytes that are not parsed yet, or belong to the next answer."""

    def __getattr__(self, name: str) -> int:
        return int(getattr(self.counts, name))


def hear(plan: PeerPlan, pieces: list[bytes]) -> Heard:
    """Parse the answer to the first message, which arrives in pieces."""
    answer = ffi.new("struct kv_peer_answer *")
    left = b""
    for piece in pieces:
        left += piece
        message = ffi.addressof(plan.native.messages[0])
        used = lib.kv_peer_parse(plan.native, message, answer, left, len(left))
        assert used >= 0, left
        left = left[used:]
    return Heard(answer, left)


def status_of(plan: PeerPlan, data: bytes) -> int:
    answer = ffi.new("struct kv_peer_answer *")
    message = ffi.addressof(plan.native.messages[0])
    return int(lib.kv_peer_parse(plan.native, message, answer, data, len(data)))


# ---- Requests


def test_keys_are_hexadecimal_digits() -> None:
    assert key_of(258) == b"0201000000000000"


def test_redis_gets_one_command_for_each_request_gets_first() -> None:
    value = value_of(258)
    assert plan_of("resp").text(0) == b"".join(
        [
            b"*2\r\n$3\r\nGET\r\n$16\r\n" + key_of(3) + b"\r\n",
            b"*2\r\n$3\r\nGET\r\n$16\r\n" + key_of(5) + b"\r\n",
            b"*3\r\n$3\r\nSET\r\n$16\r\n" + key_of(258) + b"\r\n$8\r\n" + value + b"\r\n",
            b"*3\r\n$3\r\nSET\r\n$16\r\n" + key_of(7) + b"\r\n$8\r\n" + value_of(7) + b"\r\n",
        ]
    )


def test_mget_is_one_command() -> None:
    text = plan_of("resp-mget", [3, 5], [True, True]).text(0)
    keys = b"".join(b"$16\r\n" + key_of(rank) + b"\r\n" for rank in (3, 5))
    assert text == b"*3\r\n$4\r\nMGET\r\n" + keys


@pytest.mark.parametrize("protocol", ["memcached", "memcached-udp"])
def test_memcached_gets_a_multi_get_and_sets_with_answers(protocol: str) -> None:
    header = UDP_HEADER if protocol == "memcached-udp" else b""
    assert plan_of(protocol).text(0) == header + b"".join(
        [
            b"get " + key_of(3) + b" " + key_of(5) + b"\r\n",
            b"set " + key_of(258) + b" 0 0 8\r\n" + value_of(258) + b"\r\n",
            b"set " + key_of(7) + b" 0 0 8\r\n" + value_of(7) + b"\r\n",
        ]
    )


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_message_may_have_gets_or_sets_alone(protocol: str) -> None:
    gets = plan_of(protocol, [1, 2], [True, True])
    sets = plan_of(protocol, [1, 2], [False, False])
    assert b"SET" not in gets.text(0).upper()
    assert b"GET" not in sets.text(0).upper()


def test_requests_are_cut_into_messages_in_their_order() -> None:
    ranks = list(range(10))
    plan = plan_of("memcached", ranks, [True] * 10, per_message=4)
    assert [int(message["gets"]) for message in plan.messages] == [4, 4, 2]
    assert plan.text(2) == b"get " + key_of(8) + b" " + key_of(9) + b"\r\n"


def test_the_stream_is_that_of_our_own_generator() -> None:
    ranks, is_get = stream_of_requests("zipf", WORKLOADS["A"], 1000, 5000, seed=7)
    seeds = np.random.SeedSequence(7).spawn(3)
    expected = draws.key_ranks("zipf", 1000, 5000, np.random.default_rng(seeds[0]))
    assert (ranks == expected).all()
    assert 0.45 < is_get.mean() < 0.55


@pytest.mark.parametrize("sizes", [{"per_message": 65}, {"key_size": 126}, {"value_size": 100000}])
def test_what_does_not_make_a_message_is_said(sizes: dict[str, int]) -> None:
    with pytest.raises(UsageError, match="use 1 to"):
        plan_of("resp", list(range(70)), [True] * 70, **{"per_message": 1, **sizes})


# ---- Answers

REDIS_GET = b"$8\r\n%s\r\n"
ANSWERS = {
    "resp": REDIS_GET % value_of(3) + REDIS_GET % value_of(5) + b"+OK\r\n+OK\r\n",
    "resp-mget": b"*2\r\n" + REDIS_GET % value_of(3) + REDIS_GET % value_of(5) + b"+OK\r\n" * 2,
    "memcached": b"VALUE %s 0 8\r\n%s\r\n" % (key_of(3), value_of(3))
    + b"VALUE %s 0 8\r\n%s\r\nEND\r\n" % (key_of(5), value_of(5))
    + b"STORED\r\nSTORED\r\n",
}
ANSWERS["memcached-udp"] = ANSWERS["memcached"]
NEXT = b"$-1\r\nEND"


@settings(max_examples=200, deadline=None)
@given(data=st.data(), protocol=st.sampled_from(sorted(ANSWERS)))
def test_answers_may_be_cut_anywhere_and_run_into_the_next(
    data: st.DataObject, protocol: str
) -> None:
    whole = ANSWERS[protocol] + NEXT
    cuts = sorted(data.draw(st.lists(st.integers(0, len(whole)), max_size=12)))
    pieces = [whole[a:b] for a, b in zip([0, *cuts], [*cuts, len(whole)], strict=True)]
    heard = hear(plan_of(protocol), pieces)
    assert heard.complete == 1
    assert (heard.hits, heard.stored) == (2, 2)
    assert (heard.misses, heard.corrupt, heard.refused) == (0, 0, 0)
    assert heard.left == NEXT


@pytest.mark.parametrize("protocol", sorted(ANSWERS))
def test_an_answer_is_complete_with_its_last_byte_only(protocol: str) -> None:
    for length in range(len(ANSWERS[protocol])):
        assert not hear(plan_of(protocol), [ANSWERS[protocol][:length]]).complete


@pytest.mark.parametrize(
    ("protocol", "answer", "counts"),
    [
        ("resp", b"$-1\r\n" + REDIS_GET % value_of(5) + b"+OK\r\n" * 2, (1, 1, 2, 0, 0)),
        (
            "resp",
            REDIS_GET % value_of(4) + REDIS_GET % value_of(5) + b"+OK\r\n" * 2,
            (1, 0, 2, 1, 0),
        ),
        ("resp", b"$3\r\nabc\r\n" + b"$-1\r\n" + b"+OK\r\n" * 2, (0, 1, 2, 1, 0)),
        ("resp", b"-ERR no\r\n" * 4, (0, 0, 0, 0, 4)),
        ("resp-mget", b"-ERR no\r\n" + b"+OK\r\n-OOM\r\n", (0, 0, 1, 0, 3)),
        ("memcached", b"END\r\nSTORED\r\nSTORED\r\n", (0, 2, 2, 0, 0)),
        (
            "memcached",
            b"VALUE %s 0 8\r\n%s\r\nEND\r\nSTORED\r\nNOT_STORED\r\n" % (key_of(5), value_of(5)),
            (1, 1, 1, 0, 1),
        ),
        (
            "memcached",
            b"VALUE %s 0 8\r\n%s\r\nEND\r\nSTORED\r\nSTORED\r\n" % (key_of(9), value_of(9)),
            (0, 2, 2, 1, 0),
        ),
        ("memcached", b"SERVER_ERROR out of memory\r\n" * 3, (0, 0, 0, 0, 4)),
    ],
    ids=[
        "no such key",
        "another key's value",
        "another length",
        "errors",
        "mget error",
        "no hits",
        "the first one missing",
        "a key that nobody asked for",
        "memcached errors",
    ],
)
def test_what_an_answer_counts_as(
    protocol: str, answer: bytes, counts: tuple[int, int, int, int, int]
) -> None:
    heard = hear(plan_of(protocol), [answer])
    assert heard.complete
    assert (heard.hits, heard.misses, heard.stored, heard.corrupt, heard.refused) == counts


@pytest.mark.parametrize(
    ("protocol", "answer"),
    [
        ("resp", b"hello\r\n"),
        ("resp", b"+OK\r\n"),  # a GET has a value
        ("resp", b"$8\r\n12345678xx"),
        ("resp", b"$-2\r\n"),
        ("resp", b"$99999999\r\n"),
        ("resp", b"$9999999\r\n"),  # longer than the buffer
        ("resp", b"$\r\n"),
        ("resp", b"\n"),
        ("resp", b"$8\n"),
        ("resp", b"x" * 512),
        ("resp-mget", b"*3\r\n"),
        ("resp-mget", REDIS_GET % value_of(3)),
        ("memcached", b"STORED\r\n"),
        ("memcached", b"VALUE\r\n"),
        ("memcached", b"VALUE x 0 8\r\n"),
        ("memcached", b"VALUE %s 0 x\r\n" % key_of(3)),
        ("memcached", b"END\r\nEND\r\n"),
    ],
)
def test_what_no_server_says_is_refused(protocol: str, answer: bytes) -> None:
    assert status_of(plan_of(protocol), answer) == EPROTO


@settings(max_examples=300, deadline=None)
@given(answer=st.binary(max_size=700), protocol=st.sampled_from(sorted(ANSWERS)))
def test_any_bytes_are_counted_or_refused(answer: bytes, protocol: str) -> None:
    used = status_of(plan_of(protocol), answer)
    assert used == EPROTO or 0 <= used <= len(answer)


# ---- The table of peers, and what comes of runs


def test_a_missing_program_is_named_with_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda *a, **k: None)
    for peer in PEERS.values():
        with pytest.raises(MissingError, match=f"{peer.package}.*--with-peers"):
            peer.find()


def test_peers_are_found_by_name() -> None:
    assert [find_peer(name).name for name in PEERS] == list(PEERS)
    with pytest.raises(UsageError, match="redis, redis-mget, memcached"):
        find_peer("mysql")


def times_of(cpu_ms: int, idle_ms: int, **threads_ms: int) -> "ServerTimes":
    """Return the times of a server after 100 ms."""
    by_thread_ns = {name: ms * 1_000_000 for name, ms in threads_ms.items()}
    return ServerTimes(100_000_000, cpu_ms * 1_000_000, by_thread_ns, idle_ms * 1_000_000)


def server_role(after: "ServerTimes", cores: int) -> dict[str, float]:
    counts = np.zeros(1, abi.dtype_of(ffi.typeof("struct kv_peer_results")))[0]
    start = ServerTimes(0, 0, {}, 0)
    ends = Snapshot(0, counts, 0), Snapshot(100_000_000, counts, 90_000_000)
    roles = PeerRun(*ends, start, after, cores).roles()
    assert roles["client"]["stolen_fraction"] == pytest.approx(0.1)
    return dict(roles["host"])


def test_threads_that_wait_for_each_other_are_no_other_programs() -> None:
    """Four threads on one core: each waits most of the time, but the server uses the whole core."""
    role = server_role(times_of(98, 2, a=60, b=20, c=10, d=8), 1)
    assert (role["busy_fraction"], role["stolen_fraction"]) == (0.98, 0.0)


def test_what_is_neither_the_server_s_nor_idle_is_other_programs() -> None:
    assert server_role(times_of(50, 20, a=50), 1)["stolen_fraction"] == pytest.approx(0.3)
    assert server_role(times_of(100, 40, a=50, b=50), 2)["stolen_fraction"] == pytest.approx(0.3)


def test_a_server_s_busiest_thread_counts() -> None:
    """redis executes commands on one thread, however many cores there are."""
    assert server_role(times_of(130, 70, main=99, io=31), 2)["busy_fraction"] == 0.99


def test_idle_time_is_that_of_the_cores_in_question(tmp_path: Path) -> None:
    statistics = tmp_path / "stat"
    statistics.write_text("cpu 1 1 1 900 9 1\ncpu0 1 1 1 100 3 1\ncpu1 1 1 1 700 4 1\nintr 5\n")
    ticks = os.sysconf("SC_CLK_TCK")
    assert idle_ns([0], statistics) == 103 * 10**9 // ticks
    assert idle_ns([0, 1], statistics) == 807 * 10**9 // ticks


@pytest.mark.parametrize("name", PEERS)
def test_peers_have_as_many_threads_as_cores(name: str) -> None:
    size = PeerSize("10.0.0.1", 1, keys=1000, item_bytes=24, connections=64, threads=3)
    said = " ".join(PEERS[name].arguments(size))
    expected = "-t 3" if PEERS[name].program == "memcached" else "--io-threads 3"
    assert expected in said


def test_server_and_generator_have_cores_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {2, 3, 4, 5})
    assert peers.cores() == ((2,), 3)
    assert peers.cores(3) == ((2, 3, 4), 5)
    config = server_of(3)
    assert config.placement().host_cpus == peers.cores(3)[0]
    assert (config.engines, config.placement().notes) == (3, ())
    for wrong in (0, 4):
        with pytest.raises(UsageError, match=rf"--server-cores {wrong} is not 1 to 3.* 4 cores"):
            server_of(wrong)


def test_full_packets_come_first_and_fit() -> None:
    assert [load.requests_per_packet for load in loads(BenchOptions())] == [45, 1]
    large = BenchOptions(value_size=100)
    assert [load.requests_per_packet for load in loads(large)] == [
        large.requests_per_packet_max(),
        1,
    ]
    assert [load.requests_per_packet for load in loads(BenchOptions(requests_per_packet=1))] == [1]


def run_of(label: str, mops: float, requests: int, **more: Any) -> dict[str, Any]:
    role = {"cores": 1.0, "cpu_ns_per_op": 100.0 / mops, "busy_fraction": 0.5}
    busy = {**role, "busy_fraction": more.pop("server_busy", 0.5)}
    return {
        "design": label if label in DESIGNS else None,
        "rate": None,
        "label": label,
        "target": None,
        "workload": "B",
        "distribution": "uniform",
        "requests_per_packet": requests,
        "window": 64,
        "throughput_mops": mops,
        "packets_mpps": mops / requests,
        "latency_us": {"p50": 10.0, "p99": 20.0, "p999": 30.0, "mean": 11.0},
        "roles": {"client": role, "dpu": None, "host": busy},
        "misses": 0,
        "corrupt": 0,
        "refused": 0,
        "lost": 1,
        **more,
    }


def rows_of_two() -> list[dict[str, Any]]:
    runs = [run_of("lat", mops, 45) for mops in (38.0, 40.0, 44.0)]
    runs += [run_of("redis", 1.0, 45, client_busy=0.2, server_busy=0.95)]
    runs += [run_of("redis", 0.2, 1), run_of("lat", 3.0, 1)]
    return summary(runs, "lat")


def test_rows_are_medians_with_ratios_at_the_same_load() -> None:
    rows = rows_of_two()
    named = {(row["label"], row["requests_per_packet"]): row for row in rows}
    assert [row["requests_per_packet"] for row in rows] == [45, 45, 1, 1]
    assert named["lat", 45]["throughput_mops"] == 40.0
    assert named["lat", 45]["throughput_spread_mops"] == [38.0, 44.0]
    assert named["lat", 45]["lost"] == 3
    assert named["lat", 45]["ratio"] == 1.0
    assert named["redis", 45]["ratio"] == 40.0
    assert named["redis", 1]["ratio"] == pytest.approx(15.0)
    assert named["redis", 45]["limit"] == "server"
    assert named["lat", 45]["limit"] == "client"
    assert named["lat", 45]["cpu_ns_per_op"]["dpu"] is None
    assert named["lat", 45]["disturbed_rounds"] == 0


def test_rounds_that_others_disturbed_are_counted() -> None:
    shared = {"cores": 0.5, "cpu_ns_per_op": 1.0, "busy_fraction": 0.5, "stolen_fraction": 0.5}
    runs = [
        run_of("lat", 20.0, 45, roles={"client": shared, "dpu": None, "host": shared}),
        run_of("lat", 40.0, 45),
        run_of("redis", 1.0, 45),
    ]
    assert [row["disturbed_rounds"] for row in summary(runs, "lat")] == [1, 0]


def test_each_round_has_an_order_of_its_own_and_the_table_the_one_asked_for() -> None:
    labels = ["lat", "cpu-only", "sav", "dual", "shrd"]
    order = list(rounds_of(contenders_of(labels, []), 3))
    rounds = [[c.label for number, c in order if number == each] for each in range(3)]
    assert all(sorted(each) == sorted(labels) for each in rounds)
    assert len({tuple(each) for each in rounds}) == 3
    assert [c.label for _, c in rounds_of(contenders_of(labels, []), 1)] == rounds[0]
    runs = [run_of(label, 1.0, count) for label in rounds[0] for count in (45, 1)]
    rows = Outcome(runs=runs, labels=labels).rows()
    assert [row["label"] for row in rows] == labels * 2


def test_our_rows_are_designs_that_exist() -> None:
    assert "lat" in OURS
    assert {"cpu-only", "cpu-only ring"} <= set(OURS)


# ---- Results from elsewhere


def example() -> dict[str, Any]:
    return dict(json.loads(EXAMPLE.read_text()))


def test_the_paper_s_results_can_be_imported() -> None:
    document = read_results(EXAMPLE)
    assert "paper" in document.source
    rows = imported_rows(document)
    assert {row["machine"] for row in rows} == {"paper BF-2", "paper BF-3", "paper host"}
    named = {(row["label"], row["workload"]): row for row in rows}
    assert named["DPU-KV-lat", "C"]["throughput_mops"] == 41.03
    assert named["DPU-KV-lat", "C"]["latency_us"]["unspecified"] == 51.8
    assert named["DPU-KV-lat", "C"]["ratio"] == pytest.approx(38 / 41.03)
    assert named["MICA", None]["ratio"] == pytest.approx(0.22 / 28)


def test_the_example_has_every_single_value_of_the_paper() -> None:
    """It has exactly the throughputs and latencies that the paper prints as one number."""
    units = {"throughput_peak": 1.0, "throughput_at_50us": 1e-3, "latency_at_peak": 1.0}
    with PAPER.open(newline="") as table:
        printed = [
            (row["design"], row["metric"], float(row["value"]) * units[row["metric"]])
            for row in csv.DictReader(table)
            if row["metric"] in units and row["note"].startswith("exact")
        ]
    document = read_results(EXAMPLE)
    throughput = {(result.label, result.throughput_mops) for result in document.results}
    latency = {
        (result.label, result.latency_us.unspecified)
        for result in document.results
        if result.latency_us
    }
    fixed = {("Redis-7.4.1", 50.0), ("MICA", 50.0)}  # the latency of figure 2
    assert throughput == {(d, value) for d, m, value in printed if m.startswith("throughput")}
    assert latency - fixed == {(d, value) for d, m, value in printed if m.startswith("latency")}


def test_ratios_stay_within_a_machine_and_a_load() -> None:
    for row in imported_rows(read_results(EXAMPLE)):
        if row["label"] == "DPU-KV-dual":
            assert row["ratio"] == 1.0
        if row["machine"] == "paper BF-3" and row["label"] != "DPU-only":
            assert row["ratio"] != 1.0


def spoil_type(document: dict[str, Any]) -> None:
    document["results"][0]["throughput_mops"] = "fast"


def spoil_name(document: dict[str, Any]) -> None:
    document["results"][0]["thruput"] = 1


def spoil_sign(document: dict[str, Any]) -> None:
    document["results"][1]["throughput_mops"] = -1


def spoil_machine(document: dict[str, Any]) -> None:
    document["results"][2]["machine"] = "nowhere"


def spoil_schema(document: dict[str, Any]) -> None:
    document["schema"] = "dpukv-results/9"


def spoil_source(document: dict[str, Any]) -> None:
    del document["source"]


def spoil_latency(document: dict[str, Any]) -> None:
    document["results"][3]["latency_us"] = {}
    del document["results"][3]["throughput_mops"]


def spoil_results(document: dict[str, Any]) -> None:
    document["results"] = []


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (spoil_type, r"`results\[0\].throughput_mops`: expected `float \| null`, got `str`"),
        (spoil_name, r"`results\[0\]`: object contains unknown field `thruput`"),
        (spoil_sign, r"`results\[1\].throughput_mops`: expected `float` > 0"),
        (spoil_machine, r"`results\[2\]` .*nowhere.*paper BF-2"),
        (spoil_schema, r"`schema` must be 'dpukv-results/1'"),
        (spoil_source, r"object missing required field `source`"),
        (spoil_latency, r"`results\[3\]` .*neither"),
        (spoil_results, r"`results` is empty"),
    ],
)
def test_the_first_wrong_field_is_said(tmp_path: Path, spoil: Any, said: str) -> None:
    document = example()
    spoil(document)
    path = tmp_path / "wrong.json"
    path.write_text(json.dumps(document))
    with pytest.raises(UsageError, match=said):
        read_results(path)


def test_what_is_no_json_or_not_there_is_said(tmp_path: Path) -> None:
    path = tmp_path / "text.json"
    with pytest.raises(UsageError, match="cannot read"):
        read_results(path)
    path.write_text("not json")
    with pytest.raises(UsageError, match="is not JSON"):
        read_results(path)
    for other in ("[]", '{"rows": []}'):  # the latter is compare's own --json
        path.write_text(other)
        with pytest.raises(UsageError, match="no file of results to import"):
            read_results(path)


def test_tables_and_the_picture_have_every_row(tmp_path: Path) -> None:
    from rich.console import Console

    imported = imported_rows(read_results(EXAMPLE))
    rows = rows_of_two()
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(*compare_tables(rows, "lat", "YCSB B"), *imported_tables(imported))
    said = console.export_text()
    for row in [*rows, *imported]:
        assert row["label"] in said
    assert "BlueField-3" in said
    assert "40.0" in said
    picture = tmp_path / "compare.png"
    plot_compare(rows, imported, "both", picture)
    assert picture.stat().st_size > 10_000
    plot_compare([], imported, "imported alone", picture)
    plot_compare(rows, [], "here alone", picture)


def test_a_closed_loop_is_asked_for() -> None:
    with pytest.raises(UsageError, match="--rate"):
        peers.PeerSession(PEERS["redis"], replace(BenchOptions(), rate=1e6))
