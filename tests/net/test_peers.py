# SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
"""Real redis-server and memcached in a lab: every value right, every cost accounted for, nothing
left behind.
"""

import json
import os
import signal
import subprocess
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from net.commands import TIMEOUT_SECONDS, dpukv, lab_of, started, wait_for

from dpukv_xdp import lab as labs
from dpukv_xdp.bench import BenchOptions
from dpukv_xdp.errors import DpukvError
from dpukv_xdp.peers import PEERS, PeerSession

OPTIONS = BenchOptions(keys=20_000, seconds=0.3, window=16)
FAST = ["--keys", "20000", "--seconds", "0.3", "--repeats", "1"]
OURS = ("lat", "cpu-only ring")
EXAMPLE = Path(__file__).parents[2] / "docs" / "results" / "bluefield_from_paper.json"


def nothing(what: str, fraction: float) -> None:
    """Progress that nobody watches."""


@pytest.mark.parametrize("name", PEERS)
@pytest.mark.parametrize(
    ("workload", "distribution"), [("B", "uniform"), ("A", "zipf")], ids=["B uniform", "A zipf"]
)
def test_every_answer_is_right(name: str, workload: str, distribution: Any) -> None:
    options = replace(OPTIONS, workload=workload, distribution=distribution)
    with PeerSession(PEERS[name], options) as session:
        load = session.load_keys(options)
        assert (load["stored"], load["lost"], load["refused"]) == (options.keys, 0, 0)
        for requests in (45, 1):
            wanted = replace(options, requests_per_packet=requests)
            assert_healthy(session.measure(wanted, nothing), requests)


def assert_healthy(run: dict[str, Any], requests: int) -> None:
    """Answered and right, with times and costs that can be."""
    assert (run["corrupt"], run["misses"], run["lost"], run["refused"]) == (0, 0, 0, 0), run
    assert run["requests_per_packet"] == requests
    assert run["hits"] + run["stored"] > 0
    assert run["stored"] > 0
    assert run["throughput_mops"] > 0
    assert 0 < run["latency_us"]["p50"] <= run["latency_us"]["p99"] <= run["latency_us"]["max"]
    assert run["packets_mpps"] * requests == pytest.approx(run["throughput_mops"], rel=0.05)
    assert 0 < run["client_busy"] <= 1
    assert 0 < run["server_busy"] <= 1
    assert run["limit"] in ("client", "server", "window", "others")
    for role in ("client", "host"):
        assert run["roles"][role]["cores"] > 0
        assert run["roles"][role]["cpu_ns_per_op"] > 0
    assert run["roles"]["dpu"] is None
    assert run["cpu_method"]
    assert run["machine"]["cores"] == os.cpu_count()


def test_the_generator_is_mostly_idle_where_one_message_is_out() -> None:
    options = replace(OPTIONS, window=64, requests_per_packet=1)
    with PeerSession(PEERS["redis"], options) as session:
        session.load_keys(options)
        alone = session.measure(replace(options, window=1), nothing)
        full = session.measure(options, nothing)
    assert alone["client_busy"] < 0.9
    assert alone["throughput_mops"] < full["throughput_mops"]


def test_keys_that_are_not_there_are_misses() -> None:
    with PeerSession(PEERS["memcached"], OPTIONS) as session:
        session.load_keys(replace(OPTIONS, keys=10_000))
        run = session.measure(replace(OPTIONS, workload="C"), nothing)
    assert run["corrupt"] == 0
    assert 0.4 < run["misses"] / (run["misses"] + run["hits"]) < 0.6


def test_a_server_that_dies_is_said_and_all_is_taken_down() -> None:
    with PeerSession(PEERS["redis"], OPTIONS) as session:
        session.load_keys(OPTIONS)
        pid = session._process.pid
        with pytest.raises(DpukvError, match=r"hung up|ended"):
            session.measure(OPTIONS, lambda what, fraction: os.kill(pid, signal.SIGKILL))
    assert not [lab for lab in labs.list_labs() if lab.owner.pid == os.getpid()]


def test_compare_measures_ours_and_peers_in_one_table(tmp_path: Path) -> None:
    picture, results = tmp_path / "compare.png", tmp_path / "compare.json"
    paths = ["--output", str(picture), "--json", str(results), "--import", str(EXAMPLE)]
    chosen = ["--ours", ",".join(OURS), "--peers", "redis,memcached-udp"]
    said = dpukv("compare", *FAST, *chosen, *paths).stdout
    result = json.loads(results.read_text())
    labels = [*OURS, "redis", "memcached-udp"]
    assert [(row["label"], row["requests_per_packet"]) for row in result["rows"]] == [
        (label, requests) for requests in (45, 1) for label in labels
    ]
    assert result["missing"] == {}
    for row in result["rows"]:
        assert (row["corrupt"], row["misses"]) == (0, 0), row
        assert row["ratio"] > 0
        assert row["label"] in said
    assert len(result["runs"]) == len(result["rows"])
    assert {row["machine"] for row in result["imported"]} >= {"paper BF-3"}
    assert "measured elsewhere" in said
    assert picture.stat().st_size > 10_000


def test_imports_need_no_measuring(tmp_path: Path) -> None:
    picture = str(tmp_path / "compare.png")
    said = dpukv("compare", "--import-only", "--import", str(EXAMPLE), "--output", picture).stdout
    assert "DPU-KV-lat" in said
    dpukv("compare", "--import-only", status=2)
    dpukv("compare", "--peers", "mysql", status=2)
    dpukv("compare", "--dist", "normal", status=2)


def test_ctrl_c_takes_everything_down(tmp_path: Path) -> None:
    picture = str(tmp_path / "compare.png")
    slow = ["--keys", "20000", "--seconds", "60", "--output", picture]
    with started("compare", "--ours", "none", "--peers", "redis", *slow) as process:
        name = wait_for(lambda: server_lab(process))
        os.killpg(process.pid, signal.SIGINT)
        _, said = process.communicate(timeout=TIMEOUT_SECONDS)
    assert process.returncode == 128 + signal.SIGINT, said
    assert "everything has been taken down" in said
    assert name not in {lab.lab_id for lab in labs.list_labs()}
    assert not servers()


def server_lab(process: subprocess.Popen[str]) -> str | None:
    """The lab of a comparison, once it has been up for a moment."""
    found = lab_of(process)
    if found is None:
        return None
    time.sleep(1.0)
    return found.lab_id


def servers() -> list[str]:
    """Processes of peers that listen on a lab's address."""
    said = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True).stdout
    return [line for line in said.splitlines() if "redis-server 10.77" in line]
