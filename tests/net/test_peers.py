# SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
"""redis-server and memcached in a lab: every value is right, every cost is accounted for, and
nothing is left behind.
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

from dpukv_xdp.base.errors import DpukvError
from dpukv_xdp.bench.limits import LIMITS
from dpukv_xdp.bench.options import BenchOptions
from dpukv_xdp.bench.peer_stores import PEERS
from dpukv_xdp.bench.peers import PeerSession
from dpukv_xdp.lab import lab as labs
from dpukv_xdp.load.draws import Distribution

OPTIONS = BenchOptions(keys=20_000, seconds=0.2, window=16)
FAST = ["--keys", "20000", "--seconds", "0.1", "--repeats", "1"]
OURS = ("lat",)
EXAMPLE = Path(__file__).parents[2] / "docs" / "results" / "bluefield_from_paper.json"


def nothing(what: str, fraction: float) -> None:
    """Ignore progress."""


LOADS: list[tuple[str, Distribution]] = [("B", "uniform"), ("A", "zipf")]


@pytest.mark.parametrize("name", PEERS)
def test_every_answer_is_right(name: str) -> None:
    """All kinds of requests to one server."""
    with PeerSession(PEERS[name], OPTIONS) as session:
        load = session.load_keys(OPTIONS)
        assert (load["stored"], load["lost"], load["refused"]) == (OPTIONS.keys, 0, 0)
        for workload, distribution in LOADS:
            for requests in (45, 1):
                wanted = replace(
                    OPTIONS,
                    workload=workload,
                    distribution=distribution,
                    requests_per_packet=requests,
                )
                assert_healthy(session.measure(wanted, nothing), requests)


def assert_healthy(run: dict[str, Any], requests: int) -> None:
    """Assert that all answers were right, and that times and costs are plausible."""
    assert (run["corrupt"], run["misses"], run["lost"], run["refused"]) == (0, 0, 0, 0), run
    assert run["requests_per_packet"] == requests
    assert run["hits"] + run["stored"] > 0
    assert run["stored"] > 0
    assert run["throughput_mops"] > 0
    assert 0 < run["latency_us"]["p50"] <= run["latency_us"]["p99"] <= run["latency_us"]["max"]
    assert run["packets_mpps"] * requests == pytest.approx(run["throughput_mops"], rel=0.05)
    assert 0 <= run["client_busy"] <= 1
    assert 0 < run["roles"]["host"]["busy_fraction"] <= 1
    assert run["limit"] in ("client", "server", "window", "others")
    for role in ("client", "host"):
        assert 0 <= run["roles"][role]["stolen_fraction"] <= 1
        assert run["roles"][role]["cores"] > 0
        assert run["roles"][role]["cpu_ns_per_op"] > 0
    assert run["roles"]["dpu"] is None
    assert run["cpu_method"]
    assert run["machine"]["cores"] == os.cpu_count()


def test_misses_are_counted_and_a_generator_that_waits_is_idle() -> None:
    options = replace(OPTIONS, workload="C", requests_per_packet=1, window=1)
    with PeerSession(PEERS["memcached"], options) as session:
        session.load_keys(replace(options, keys=10_000))
        run = session.measure(options, nothing)
    assert run["corrupt"] == 0
    assert 0.4 < run["misses"] / (run["misses"] + run["hits"]) < 0.6
    assert run["client_busy"] < 1


def own_labs() -> list[str]:
    return [lab.lab_id for lab in labs.list_labs() if lab.owner.pid == os.getpid()]


def test_a_server_that_dies_is_said_and_all_is_taken_down() -> None:
    before = own_labs()
    with PeerSession(PEERS["redis"], OPTIONS) as session:
        session.load_keys(OPTIONS)
        pid = session._process.pid
        with pytest.raises(DpukvError, match=r"^redis-server ended in the .*: SIGKILL$"):
            session.measure(OPTIONS, lambda what, fraction: os.kill(pid, signal.SIGKILL))
    assert own_labs() == before


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
        assert row["label"] in said
        assert row["limit"] in LIMITS
        if row["limit"] == "others":  # other programs may use the cores during a whole short run
            continue
        assert row["ratio"] > 0
        assert 0 < row["server_busy"] <= 1
    assert len(result["runs"]) == len(result["rows"])
    assert {row["machine"] for row in result["imported"]} >= {"paper BF-3"}
    assert "measured elsewhere" in said
    assert picture.stat().st_size > 10_000


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
    """Return the lab of a comparison once it has been up for a moment."""
    found = lab_of(process)
    if found is None:
        return None
    time.sleep(1.0)
    return found.lab_id


def servers() -> list[str]:
    """Return the processes of peers that listen on a lab's address."""
    said = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True).stdout
    return [line for line in said.splitlines() if "redis-server 10.77" in line]
