# SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
"""The command line without privileges: help, bad input, exit statuses. No lab is ever built."""

import io
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import click
import pytest
from rich.console import Console

from dpukv_xdp.base import errors, register
from dpukv_xdp.base.patience import patient
from dpukv_xdp.bench import bench
from dpukv_xdp.bench.options import BenchOptions
from dpukv_xdp.cli import labs, main
from dpukv_xdp.cli.output import PLAIN_COLUMNS
from dpukv_xdp.cli.settings import server_config
from dpukv_xdp.cli.signals import SIGNALS
from dpukv_xdp.lab import lab
from dpukv_xdp.ops.demo import story
from dpukv_xdp.report.tables import results_table
from dpukv_xdp.server import server, service
from dpukv_xdp.topology import profiles, schema, sizing
from dpukv_xdp.wire import abi

COMMANDS = {
    *("add", "delete", "get", "increment", "set"),
    *(
        "bench",
        "compare",
        "demo",
        "designs",
        "doctor",
        "lab",
        "model",
        "qp-bench",
        "rebalance",
        "recommend",
        "reproduce",
        "serve",
        "stats",
    ),
}
LAB_COMMANDS = {"down", "status", "up"}


@dataclass(frozen=True)
class Outcome:
    """The result of one run of the command line."""

    status: int
    output: str
    errors: str


Run = Callable[..., Outcome]


@pytest.fixture
def run() -> Iterator[Run]:
    """Yield a function that runs main() in this process; restore the signal handlers afterwards."""
    handlers = {number: signal.getsignal(number) for number in SIGNALS}

    def run_main(*arguments: str) -> Outcome:
        output, errors = io.StringIO(), io.StringIO()
        argv, sys.argv = sys.argv, ["dpukv", *arguments]
        status = 0
        try:
            with redirect_stdout(output), redirect_stderr(errors):
                main.main()
        except SystemExit as leaving:
            status = int(leaving.code or 0)
        finally:
            sys.argv = argv
        return Outcome(status, output.getvalue(), errors.getvalue())

    yield run_main
    for number, handler in handlers.items():
        signal.signal(number, handler)


@pytest.fixture
def as_root(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the checks see root; starting to build anything fails the test."""

    def refuse(*_arguments: object, **_settings: object) -> None:
        pytest.fail("something is being built")

    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(bench.Bench, "__enter__", refuse)
    monkeypatch.setattr(server.Server, "__init__", refuse)
    monkeypatch.setattr(lab.Lab, "up", refuse)
    monkeypatch.setattr(lab, "remove_stale", refuse)


def assert_one_sentence(outcome: Outcome) -> None:
    assert outcome.output == ""
    assert outcome.errors.startswith("dpukv: ")
    assert outcome.errors.count("\n") == 1
    assert "Traceback" not in outcome.errors


# ---- Help


def test_help_names_every_command(run: Run) -> None:
    for arguments, names in ((["--help"], COMMANDS), (["lab", "-h"], LAB_COMMANDS)):
        outcome = run(*arguments)
        assert outcome.status == 0
        listed = outcome.output.partition("Commands:")[2].split("\n")
        assert {line.split()[0] for line in listed if line.strip()} == names
        assert not any(line.endswith("...") for line in listed), "a sentence is cut off"


def commands() -> Iterator[tuple[str, ...]]:
    """Yield the path of every command, including hidden ones."""
    for name, command in main.cli.commands.items():
        yield (name,)
        if isinstance(command, click.Group):
            yield from ((name, inner) for inner in command.commands)


@pytest.mark.parametrize("path", list(commands()), ids=" ".join)
def test_every_command_explains_itself(run: Run, path: tuple[str, ...]) -> None:
    outcome = run(*path, "--help")
    assert outcome.status == 0
    assert outcome.output.startswith(f"Usage: dpukv {' '.join(path)}")
    command = main.cli
    for name in path:
        command = command.commands[name]
    for parameter in command.params:
        if isinstance(parameter, click.Option):
            assert parameter.help, f"{parameter.name} has no help"


def test_the_version_is_ours(run: Run) -> None:
    assert run("--version").output.startswith("dpukv, version 0.")


# ---- Bad input: one sentence, exit status 2, and nothing built

BENCH = ["bench", "--keys", "1000"]
LAB_UP = ["lab", "up"]
GET = ["get", "key", "--server", "127.0.0.1:9"]

BAD_INPUT = [
    (["nonsense"], "nonsense"),
    (["--nonsense"], "--nonsense"),
    (["lab", "nonsense"], "nonsense"),
    ([*BENCH, "--nonsense"], "--nonsense"),
    ([*BENCH, "--design", "fast"], "design 'fast'"),
    ([*BENCH, "--workload", "Z"], "workload 'Z'"),
    ([*BENCH, "--dist", "normal"], "distribution 'normal'"),
    ([*BENCH, "--respond", "never"], "never"),
    ([*BENCH, "--keys", "0"], "--keys 0"),
    ([*BENCH, "--keys", "-1"], "--keys -1"),
    ([*BENCH, "--keys", "1e6"], "1e6"),
    ([*BENCH, "--keys", "1000000000000000"], "keys"),
    ([*BENCH, "--key-size", "0"], "--key-size 0"),
    ([*BENCH, "--key-size", "256"], "256"),
    ([*BENCH, "--key-size", "1"], "told apart"),
    ([*BENCH, "--value-size", "-1"], "--value-size -1"),
    ([*BENCH, "--value-size", "5000"], "--value-size 5000"),
    ([*BENCH, "--requests-per-packet", "-1"], "--requests-per-packet -1"),
    ([*BENCH, "--requests-per-packet", "46"], "1 to 45"),
    ([*BENCH, "--requests-per-packet", "1000"], "0 to 64"),
    ([*BENCH, "--window", "0"], "--window 0"),
    ([*BENCH, "--window", "4097"], "--window 4097"),
    ([*BENCH, "--window", "1000000000"], "window"),
    ([*BENCH, "--stall", "-0.1"], "--stall -0.1 is not 0 to 19 milliseconds"),
    ([*BENCH, "--stall", "19.1"], "--stall 19.1"),
    ([*BENCH, "--seconds", "0"], "--seconds 0"),
    ([*BENCH, "--seconds", "-1"], "--seconds -1"),
    ([*BENCH, "--seconds", "1e9"], "--seconds 1000000000"),
    ([*BENCH, "--seconds", "nan"], "--seconds nan"),
    ([*BENCH, "--rate", "-1"], "--rate -1"),
    ([*BENCH, "--rate", "0.001"], "too slow"),
    ([*BENCH, "--rate", "1e12"], "--rate 1000000000000"),
    ([*BENCH, "--seed", "-1"], "seed"),
    ([*BENCH, "--engines", "0"], "--engines 0"),
    ([*BENCH, "--engines", "99"], "--engines 99"),
    ([*BENCH, "--engine-cpus", "a"], "list of cores"),
    ([*BENCH, "--engine-cpus", "999"], "--engine-cpus"),
    ([*BENCH, "--port", "70000"], "--port 70000"),
    ([*BENCH, "--port", "-1"], "--port -1"),
    ([*BENCH, "--depth", "99"], "--depth 99"),
    ([*BENCH, "--depth", "-1"], "--depth -1"),
    ([*BENCH, "--flush-after-us", "nan"], "nan"),
    ([*BENCH, "--log-bytes", "-1"], "--log-bytes -1"),
    ([*BENCH, "--mtu", "10"], "--mtu 10"),
    ([*BENCH, "--mtu", "100000"], "--mtu 100000"),
    ([*BENCH, "--json", "/nonexistent/x"], "/nonexistent/x"),
    ([*BENCH, "--json", "/"], "cannot write /"),
    ([*BENCH, "--config", "/nonexistent/x"], "/nonexistent/x"),
    ([*BENCH, "--skip-load"], "--target"),
    ([*BENCH, "--target", "somewhere"], "HOST:PORT"),
    (["demo", "--output", "/nonexistent/x.png"], "/nonexistent/x.png"),
    (["demo", "--output", "plot.xyz"], "plot.xyz"),
    (["demo", "--output", "plot"], "plot"),
    (["demo", "--seconds", "0"], "--seconds 0"),
    (["serve"], "--iface"),
    (["serve", "--iface", "lo", "--items", "0"], "--items 0"),
    ([*LAB_UP, "--mtu", "9000"], "--mtu 9000"),
    ([*LAB_UP, "--name", ""], "--name"),
    ([*LAB_UP, "--port", "0"], "--port 0"),
    ([*LAB_UP, "--design", "fast"], "design 'fast'"),
    (["stats", "--server", "nobody.1"], "no server 'nobody.1' runs on this machine"),
    (["stats", "nonsense"], "nonsense"),
    (["get"], "KEY"),
    (["set", "key"], "VALUE"),
    (["get", "key", "--server", "here"], "HOST:PORT"),
    (["get", "key", "--server", "127.0.0.1:99999"], "HOST:PORT"),
    (["get", "key", "--lab", "../x"], "names no lab"),
    ([*GET, "--engines", "0"], "--engines 0"),
    ([*GET, "--timeout", "nan"], "nan"),
    ([*GET, "--timeout", "-1"], "-1"),
]


@pytest.mark.usefixtures("as_root")
@pytest.mark.parametrize(("arguments", "word"), BAD_INPUT, ids=lambda part: str(part)[:50])
def test_bad_input_is_one_sentence(run: Run, arguments: list[str], word: str) -> None:
    outcome = run(*arguments)
    assert outcome.status == 2
    assert_one_sentence(outcome)
    assert word in outcome.errors


@pytest.mark.usefixtures("as_root")
@pytest.mark.parametrize(
    ("text", "word"),
    [("enginess = 2", "enginess"), ('engines = "two"', "$.engines"), ("engines = = 2", "TOML")],
)
def test_a_bad_settings_file_is_named(run: Run, tmp_path: Path, text: str, word: str) -> None:
    file = tmp_path / "settings.toml"
    file.write_text(text)
    outcome = run(*BENCH, "--config", str(file))
    assert outcome.status == 2
    assert_one_sentence(outcome)
    assert word in outcome.errors
    assert str(file) in outcome.errors


@pytest.mark.usefixtures("as_root")
@pytest.mark.parametrize("command", ["stats", "rebalance"])
@pytest.mark.parametrize(
    ("names", "words"),
    [([], "no servers run here"), (["a.1", "b.2"], "2 servers run here: name one with --server")],
)
def test_without_a_name_there_must_be_one_server(
    run: Run, monkeypatch: pytest.MonkeyPatch, command: str, names: list[str], words: str
) -> None:
    monkeypatch.setattr(service, "services", lambda: names)
    outcome = run(command)
    assert outcome.status == 2
    assert_one_sentence(outcome)
    assert words in outcome.errors
    assert all(name in outcome.errors for name in names)


@pytest.mark.usefixtures("as_root")
def test_more_memory_than_there_is_is_asked_for_before_anything_is_built(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sizing, "free_memory_bytes", lambda: 1 << 30)
    for arguments in (
        ["bench", "--keys", "100000000"],
        ["bench", "--keys", "1000", "--log-bytes", str(1 << 31)],
        ["lab", "up", "--items", "100000000"],
        ["serve", "--iface", "lo", "--items", "100000000"],
    ):
        outcome = run(*arguments)
        assert outcome.status == 1
        assert_one_sentence(outcome)
        assert "1.0 GiB are free" in outcome.errors


@pytest.mark.parametrize("kind", schema.STORE_KINDS)
@pytest.mark.parametrize(
    ("design", "engines", "partitions"), [("lat", 2, 2), ("cpu-only", 3, 3), ("dual", 2, 64)]
)
def test_store_bytes_are_what_the_stores_take(
    design: str, engines: int, partitions: int, kind: schema.StoreKind
) -> None:
    from dpukv_xdp._core._native import ffi, lib

    settings = schema.ServerConfig(
        design=design, items=100_000, log_bytes=3_000_000, engines=engines, store=kind
    )
    stats = ffi.new("struct kv_store_stats *")
    taken = 0
    assert settings.partition_count() == partitions
    for _ in range(partitions):
        store = lib.kv_store_create(sizing.partition_options(settings))
        lib.kv_store_get_stats(store, stats)
        taken += stats.index_bytes + stats.log_bytes
        lib.kv_store_destroy(store)
    shared_bytes = 0 if design != "dual" else partitions * 600 * 4
    assert sizing.store_bytes(settings) == pytest.approx(taken + shared_bytes, rel=0.02)


@pytest.mark.parametrize(
    ("design", "pairs"), [("lat", 2 * 8), ("cpu-only", 2 * (8 + 2)), ("dual", 4 * (8 + 2))]
)
def test_memory_bytes_have_a_queue_pair_for_every_core_and_engine(
    design: str, pairs: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sizing, "possible_cpus", lambda: 8)
    monkeypatch.setattr(schema, "default_host_cpus", lambda: tuple(range(7)))
    settings = schema.ServerConfig(design=design, items=1000, engines=2)
    parts = ("kv_queue_pair", "kv_dpu_queue", "kv_parked")
    each = sum(map(abi.SIZE, parts))
    assert sizing.memory_bytes(settings) - sizing.store_bytes(settings) == pairs * each


# ---- compare


@pytest.mark.usefixtures("as_root")
@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["--ours", ""], "--ours ''"),
        (["--ours", "all,lat"], "names with commas between"),
        (["--ours", "foo"], "cpu-only ring"),
        (["--peers", ","], "redis-mget"),
        (["--peers", "mysql"], "redis, redis-mget, memcached"),
        (["--ours", "none", "--peers", "none"], "nothing to measure"),
        (["--keys", "0"], "--keys 0 is not 1"),
        (["--seed", "-1"], "seed"),
        (["--dist", "normal"], "uniform, zipf"),
        (["--workload", "Z"], "A, B, C"),
        (["--repeats", "0"], "1 to 100"),
        (["--server-cores", "0"], "--server-cores 0 is not 1"),
        (["--server-cores", str(len(os.sched_getaffinity(0)))], "the load generator needs one"),
        (["--import", "/nonexistent"], "cannot read"),
        (["--import", __file__], "is not JSON"),
        (["--import-only"], "needs --import FILE"),
    ],
)
def test_what_cannot_be_compared_is_said(run: Run, arguments: list[str], word: str) -> None:
    outcome = run("compare", *arguments)
    assert outcome.status == 2
    assert_one_sentence(outcome)
    assert word in outcome.errors


@pytest.mark.usefixtures("as_root")
def test_more_keys_than_memory_are_not_compared(
    run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(sizing, "free_memory_bytes", lambda: 1 << 30)
    picture = str(tmp_path / "compare.png")
    outcome = run("compare", "--keys", "100000000", "--output", picture)
    assert outcome.status == 1
    assert "1.0 GiB are free" in outcome.errors


def test_imports_need_no_measuring(run: Run, tmp_path: Path) -> None:
    example = str(Path(__file__).parents[2] / "docs" / "results" / "bluefield_from_paper.json")
    picture = tmp_path / "compare.png"
    outcome = run("compare", "--import-only", "--import", example, "--output", str(picture))
    assert outcome.status == 0
    assert "DPU-KV-lat" in outcome.output
    assert picture.stat().st_size > 10_000


@pytest.mark.parametrize("command", ["false", "sleep"])
def test_a_lab_s_server_that_ends_or_hangs_is_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    """The command gives up even if another server answers at its address."""
    monkeypatch.setattr(labs, "LAB_READY_SECONDS", 0.2 if command == "sleep" else 60)
    log = tmp_path / "log"
    log.write_text("note: it runs\ndpukv: it broke\n")
    with subprocess.Popen([command, "60"]) as process, log.open("rb") as said:
        with pytest.raises(errors.DpukvError, match="server did not start: it broke"):
            labs._await_lab_server(process, said.fileno(), lambda: False)
        process.kill()


def test_a_lab_s_server_that_gets_further_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It waits longer than LAB_READY_SECONDS in total, because each line of the log counts."""
    monkeypatch.setattr(labs, "LAB_READY_SECONDS", 0.2)
    log = tmp_path / "log"
    log.write_text("")
    end = time.monotonic() + patient(1.0)

    def answers() -> bool:
        with log.open("a") as saying:
            saying.write("note: still preparing\n")
        return time.monotonic() > end

    with subprocess.Popen(["sleep", "60"]) as process, log.open("rb") as said:
        labs._await_lab_server(process, said.fileno(), answers)
        process.kill()


def test_a_wrong_slowness_is_refused_before_anything_starts(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DPUKV_SLOWNESS", "inf")
    outcome = run("designs")
    assert outcome.status == 2
    assert outcome.errors.startswith("dpukv: the environment variable DPUKV_SLOWNESS is 'inf'")


def test_every_setting_is_an_option_of_serve() -> None:
    """`lab up` passes all settings on as options."""
    settings = {
        "engine_cpus": tuple(os.sched_getaffinity(0)),
        "dpu_cpus": tuple(os.sched_getaffinity(0)),
        "huge_pages": False,
        "design": "dual",
        "depth": 3,
    }
    place = SimpleNamespace(server=SimpleNamespace(interface="lo"))
    wanted = schema.ServerConfig(**settings)
    arguments = labs._serve_arguments(place, wanted)
    command = main.cli.commands["serve"]
    given = command.make_context("serve", arguments[1:]).params
    assert given.pop("iface") == "lo"
    assert given.pop("json_path") is None
    assert server_config(given) == wanted


@pytest.mark.parametrize(
    "arguments", [["bench"], ["demo"], ["serve", "--iface", "lo"], ["lab", "up"], ["lab", "down"]]
)
def test_not_root_is_one_sentence(
    run: Run, monkeypatch: pytest.MonkeyPatch, arguments: list[str]
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    outcome = run(*arguments)
    assert outcome.status == 1
    assert_one_sentence(outcome)
    assert "sudo" in outcome.errors


def test_a_full_disk_is_one_sentence() -> None:
    command = [sys.executable, "-P", "-m", "dpukv_xdp", "--help"]
    with Path("/dev/full").open("w") as full:
        result = subprocess.run(
            command, stdout=full, stderr=subprocess.PIPE, text=True, check=False
        )
    assert result.returncode == 1
    assert_one_sentence(Outcome(1, "", result.stderr))


def test_a_reader_that_goes_away_is_no_error() -> None:
    command = [sys.executable, "-P", "-m", "dpukv_xdp", "--help"]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as child:
        assert child.stdout is not None
        assert child.stderr is not None
        child.stdout.close()
        assert child.stderr.read() == ""


# ---- What people read


def a_result(**changes: object) -> dict[str, object]:
    """Return a result with the largest numbers that occur."""
    return {
        "design": "lat",
        "target": None,
        "workload": "A",
        "distribution": "uniform",
        "keys": 1 << 20,
        "key_size": 255,
        "value_size": 1400,
        "requests_per_packet": 45,
        "window": 4096,
        "rate": None,
        "throughput_mops": 123.45,
        "latency_us": {"p50": 4030.5, "p99": 12345.6, "p999": 54321.0},
        "emulation": None,
        "roles": {name: {"cpu_ns_per_op": 1234.5} for name in ("client", "dpu", "host")},
        "qp_bytes_per_op": {"request": 1432.1, "response": 1432.1},
        "corrupt": 0,
        "misses": 0,
        "lost": 1000,
        **changes,
    }


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"roles": {"client": {"cpu_ns_per_op": 9.0}, "dpu": None, "host": None}},
        {"emulation": profiles.find_profile("bf2").label()},
        {"qp_bytes_per_op": None, "design": None, "target": "10.77.0.1:9800", "rate": 1e6},
    ],
)
def test_the_table_fits_and_cuts_nothing(changes: dict[str, object]) -> None:
    output = io.StringIO()
    Console(file=output, width=PLAIN_COLUMNS).print(results_table([a_result(**changes)] * 3))
    text = output.getvalue()
    assert "…" not in text
    assert text.count("123.45") == 3


def test_the_story_says_which_core_does_what() -> None:
    told = story(schema.ServerConfig(), BenchOptions(keys=1234, seconds=1.5))
    assert "1,234 keys" in told
    assert f"core {min(os.sched_getaffinity(0))}" in told
    assert max(len(line) for line in told.splitlines()) <= PLAIN_COLUMNS


def test_lab_status_without_a_lab_is_an_empty_list(
    run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(register, "REGISTER_DIR", tmp_path)
    assert json.loads(run("lab", "status", "--json", "-").output) == []
    assert run("lab", "status").output == "no lab is up\n"
    assert run("get", "key").status == 2
