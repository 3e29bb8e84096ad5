# SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
"""Commands as users type them: results as JSON, and nothing left behind however they end."""

import json
import math
import os
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from net.commands import DPUKV, SMALL, TIMEOUT_SECONDS, dpukv, lab_of, started, wait_for

from dpukv_xdp.base.processes import is_alive
from dpukv_xdp.base.register import REGISTER_DIR
from dpukv_xdp.discovery.directory import server_name
from dpukv_xdp.discovery.opening import open_directory
from dpukv_xdp.kernel import nic
from dpukv_xdp.kernel.attachments import AttachmentRecord, list_attachments
from dpukv_xdp.kernel.namespaces import NAMESPACE_DIR, in_namespace
from dpukv_xdp.lab import lab as labs
from dpukv_xdp.lab.lab import Lab, LabRecord
from dpukv_xdp.server.service import services
from dpukv_xdp.topology.schema import DEFAULT_DIRECTORY

BENCH_FIELDS = {
    "design": str,
    "workload": str,
    "distribution": str,
    "keys": int,
    "key_size": int,
    "value_size": int,
    "requests_per_packet": int,
    "window": int,
    "seconds": float,
    "throughput_mops": float,
    "packets_mpps": float,
    "latency_us": dict.fromkeys(("mean", "p50", "p90", "p99", "p999", "max"), float),
    "hits": int,
    "misses": int,
    "corrupt": int,
    "lost": int,
    "roles": {role: {"cores": float, "cpu_ns_per_op": float} for role in ("client", "dpu", "host")},
    "qp_bytes_per_op": {"request": float, "response": float},
    "wire_bytes_per_op": {"request": float, "response": float},
    "machine": {"cpu": str, "cores": int, "kernel": str},
}


# ---- Traces


def attachments_of(record: LabRecord) -> list[AttachmentRecord]:
    """Return the XDP programs that a lab's processes have attached to its interfaces."""
    pids = {process.pid for process in labs.Lab.load(record.lab_id).record.processes}
    return [each for each in list_attachments() if each.owner.pid in pids]


def measuring(process: subprocess.Popen[str]) -> LabRecord | None:
    """Return the lab once both of its XDP programs are attached."""
    record = lab_of(process)
    return record if record and len(attachments_of(record)) == 2 else None


def assert_nothing_left(record: LabRecord, programs: list[int]) -> None:
    """Assert that a lab's namespaces, links, processes and register entries are gone, and that its
    programs are unloaded soon after.
    """
    places = (NAMESPACE_DIR, REGISTER_DIR)
    assert [str(path) for place in places for path in place.glob(f"*{record.lab_id}*")] == []
    assert [each for each in record.processes if is_alive(each)] == []
    assert [each for each in list_attachments() if each.program_id in programs] == []
    wait_for(lambda: not any(map(nic.program_name, programs)))


# ---- bench


def assert_fields(result: dict[str, Any], wanted: dict[str, Any]) -> None:
    for name, kind in wanted.items():
        if isinstance(kind, dict):
            assert_fields(result[name], kind)
            continue
        assert isinstance(result[name], kind), name
        if kind is not str:
            assert math.isfinite(result[name])
            assert result[name] >= 0, name


@pytest.mark.parametrize(
    "options",
    [
        [
            "--design",
            "lat",
            "--workload",
            "A",
            "--dist",
            "zipf",
            "--value-size",
            "100",
            "--window",
            "4",
        ],
        ["--workload", "C", "--requests-per-packet", "1", "--window", "1", "--key-size", "12"],
        ["--rate", "20000", "--requests-per-packet", "1", "--seconds", "0.5"],
        ["--requests-per-packet", "1", "--stall", "4"],
    ],
    ids=["zipf", "single", "open loop", "stalled"],
)
@pytest.mark.needs("live frames", "BPF run-time statistics")
def test_bench_prints_what_it_measured_and_nothing_else(options: list[str]) -> None:
    run = dpukv("bench", *SMALL, *options, "--json", "-")
    assert run.stderr == ""
    result = json.loads(run.stdout)
    assert_fields(result, BENCH_FIELDS)
    given = dict(zip(options[::2], options[1::2], strict=True))
    assert result["workload"] == given.get("--workload", "B")
    assert result["distribution"] == given.get("--dist", "uniform")
    assert result["keys"] == 20000
    assert result["corrupt"] == result["misses"] == 0
    assert result["load"]["stored"] == 20000
    assert result["throughput_mops"] > 0
    latency = result["latency_us"]
    assert latency["p50"] <= latency["p90"] <= latency["p99"] <= latency["p999"] <= latency["max"]
    if "--value-size" not in given and "--key-size" not in given:
        assert result["qp_bytes_per_op"]["request"] == pytest.approx(32, abs=1.1)
        assert result["qp_bytes_per_op"]["response"] == pytest.approx(16, abs=1.1)
    stall_ms = float(given.get("--stall", 0))
    assert result["stall_ms"] == stall_ms
    assert latency["max"] >= stall_ms * 1e3, "a request waits until the pause ends"
    if "--rate" in given:
        assert result["throughput_mops"] < 1.3 * 0.02  # less if other programs use the cores


@pytest.mark.needs("live frames", "BPF run-time statistics")
def test_bench_loses_nothing() -> None:
    """One of three runs must be without loss: another program that takes a core costs packets."""
    lost = []
    while 0 not in lost and len(lost) < 3:
        result = json.loads(dpukv("bench", *SMALL, "--json", "-").stdout)
        assert_fields(result, BENCH_FIELDS)
        assert result["corrupt"] == result["misses"] == 0
        lost.append(result["lost"])
    assert 0 in lost


@pytest.mark.needs("live frames", "BPF run-time statistics")
@pytest.mark.parametrize("design", ["lat", "shrd"])
def test_bench_of_a_server_elsewhere(lab: Lab, design: str, tmp_path: Path) -> None:
    """With two doors, only the directory knows the owners of keys."""
    directory = ["--directory", f"file:{tmp_path}"]
    with lab.spawn(
        lab.server,
        [*DPUKV, "serve", "--iface", lab.server.interface, "--design", design, *directory],
        stderr=subprocess.PIPE,
        text=True,
    ) as server:
        while "serving on" not in (said := server.stderr.readline()):
            assert said.startswith("note: ")
        target = f"{lab.server.address}:9800"
        bench = [*DPUKV, "bench", *SMALL, "--target", target, *directory, "--json", "-"]
        wait_for(lambda: server_name(server.pid) in services())
        with lab.spawn(lab.client, bench, stdout=subprocess.PIPE, text=True) as client:
            result = json.loads(client.communicate(timeout=TIMEOUT_SECONDS)[0])
        server.send_signal(signal.SIGINT)
        server.communicate(timeout=TIMEOUT_SECONDS)
        assert server.returncode == 0
    assert result["target"] == "10.77.0.1:9800"
    assert (result["design"], result["roles"]["dpu"]) == (None, None)
    assert (result["corrupt"], result["misses"], result["refused"]) == (0, 0, 0)
    assert result["throughput_mops"] > 0
    for end in (lab.server, lab.client):
        with in_namespace(end.namespace):
            names = [program.name for program in nic.find(end.interface).programs]
            assert not {"kv_receive", "kv_collect"} & set(names)


# ---- demo


@pytest.mark.needs("live frames", "BPF run-time statistics")
def test_demo_draws_a_picture_and_explains_its_table(tmp_path: Path) -> None:
    picture = tmp_path / "plot.png"
    run = dpukv("demo", "--seconds", "0.1", "--keys", "10000", "--output", str(picture))
    assert run.stderr == ""
    assert picture.read_bytes().startswith(b"\x89PNG")
    for part in ("communication engine", "processing engine", "YCSB", "native XDP", str(picture)):
        assert part in run.stdout.replace("\n", " "), part
    assert "…" not in run.stdout


# ---- lab, set, get


def test_a_lab_stays_until_it_is_taken_down() -> None:
    name = f"cli-{os.getpid()}"
    up = json.loads(dpukv("lab", "up", "--name", name, "--items", "1000", "--json", "-").stdout)
    try:
        assert up["lab_id"] == name
        assert up["serving"] is True
        assert name in dpukv("lab", "status").stdout
        dpukv("set", "hello", "world", "--lab", name)
        assert dpukv("get", "hello", "--lab", name).stdout == "world\n"
        found = json.loads(dpukv("get", "hello", "--lab", name, "--json", "-").stdout)
        assert found == {"key": "hello", "found": True, "value": "world"}
        assert "no key 'nothing'" in dpukv("get", "nothing", "--lab", name, status=1).stderr
        assert "is up already" in dpukv("lab", "up", "--name", name, status=2).stderr
        record = Lab.load(name).record
        programs = [each.program_id for each in attachments_of(record)]
        assert len(programs) == 1
        own = Path("/run/dpukv/labs", name)
        assert up["details"]["directory"] == f"file:{own}"
        assert [path.stem for path in own.iterdir()] == [up["details"]["name"]]
        assert up["details"]["name"] not in open_directory(DEFAULT_DIRECTORY).servers()
    finally:
        dpukv("lab", "down", name)
    assert not own.exists()
    assert_nothing_left(record, programs)
    assert "no lab" in dpukv("lab", "down", name, status=2).stderr


def test_a_lab_whose_server_cannot_start_is_not_left_half_built() -> None:
    name = f"bad-{os.getpid()}"
    dpukv("lab", "up", "--name", name, "--queues", "60000", status=2)
    assert [path.name for path in NAMESPACE_DIR.glob(f"*{name}*")] == []
    assert not REGISTER_DIR.joinpath(f"lab-{name}.json").exists()


# ---- Ctrl-C, SIGTERM, kill -9

LONG = ["bench", "--keys", "20000", "--seconds", "60"]


@pytest.mark.parametrize(
    ("number", "moment"),
    [(signal.SIGTERM, lab_of), (signal.SIGINT, measuring)],
    ids=["SIGTERM building", "SIGINT measuring"],
)
@pytest.mark.needs("live frames", "BPF run-time statistics")
def test_an_interrupted_bench_leaves_nothing(
    number: signal.Signals, moment: Callable[[subprocess.Popen[str]], LabRecord | None]
) -> None:
    with started(*LONG) as process:
        record = wait_for(lambda: moment(process))
        programs = [each.program_id for each in attachments_of(record)]
        os.killpg(process.pid, number)  # as a terminal does
        os.killpg(process.pid, number)  # and again, as an impatient user does
        output, errors = process.communicate(timeout=TIMEOUT_SECONDS)
    assert process.returncode == 128 + number
    assert output == ""
    assert errors == "dpukv: interrupted; everything has been taken down\n"
    assert_nothing_left(record, programs)


@pytest.mark.parametrize("moment", ["lab", "server"])
def test_an_interrupted_lab_up_leaves_nothing(moment: str) -> None:
    with started("lab", "up", "--items", "1000") as process:
        record = wait_for(lambda: lab_of(process))
        while moment == "server" and not record.processes:
            record = wait_for(lambda: lab_of(process))
        os.killpg(process.pid, signal.SIGINT)
        errors = process.communicate(timeout=TIMEOUT_SECONDS)[1]
    assert process.returncode == 128 + signal.SIGINT
    assert errors == "dpukv: interrupted; everything has been taken down\n"
    assert_nothing_left(record, [])


@pytest.mark.parametrize("victim", ["bench", "server", "load"])
def test_after_a_kill_lab_down_leaves_nothing(victim: str) -> None:
    with started(*LONG) as process:
        record = Lab.load(wait_for(lambda: measuring(process)).lab_id).record
        programs = [each.program_id for each in attachments_of(record)]
        pids = {"bench": process.pid}
        for each in record.processes:
            command = Path(f"/proc/{each.pid}/cmdline").read_text().split("\0")
            pids[command[command.index("dpukv_xdp.bench.roles") + 1]] = each.pid
        os.kill(pids[victim], signal.SIGKILL)
        errors = process.communicate(timeout=TIMEOUT_SECONDS)[1]
    if victim == "bench":
        assert process.returncode == -signal.SIGKILL
        dpukv("lab", "down", "none-such", status=2)  # removes stale labs first
    else:
        assert process.returncode == 1
        assert f"the {victim} process ended by SIGKILL" in errors
    assert_nothing_left(record, programs)
