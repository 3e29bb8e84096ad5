# SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
"""Options that were given and do nothing, or are out of range, are refused in one sentence; options
at their default, and those that have an effect on one of several designs, never are.
"""

import itertools
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner, Result

from dpukv_xdp.base.errors import DpukvError, OptionError
from dpukv_xdp.cli import main
from dpukv_xdp.cli.options import Number
from dpukv_xdp.topology import applies, ranges, validation
from dpukv_xdp.topology.designs import DESIGNS
from dpukv_xdp.topology.schema import ServerConfig


class BuildingError(DpukvError):
    """A command has checked its options and goes on."""


@pytest.fixture(autouse=True)
def as_root(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Commands believe that root runs them, and stop where they would begin to build."""

    def refuse(*_arguments: object, **_settings: object) -> None:
        raise BuildingError("begins")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("os.geteuid", lambda: 0)
    monkeypatch.setattr("dpukv_xdp.cli.signals.signals.catch", refuse)
    monkeypatch.setattr("dpukv_xdp.server.server.Server.__init__", refuse)
    monkeypatch.setattr("dpukv_xdp.cli.measuring.progress_bar", refuse)
    monkeypatch.setattr("dpukv_xdp.client.client.Client.__init__", refuse)
    monkeypatch.setattr("dpukv_xdp.client.client.Client.from_directory", refuse)
    monkeypatch.setattr("dpukv_xdp.server.service.services", refuse)
    monkeypatch.setattr("dpukv_xdp.bench.targets.find_target", refuse)
    monkeypatch.setattr("dpukv_xdp.topology.sizing.free_memory_bytes", lambda: 1 << 50)


def run(*arguments: str) -> Result:
    return CliRunner().invoke(main.cli, arguments)


def assert_refused(arguments: list[str], flag: str) -> None:
    result = run(*arguments)
    assert isinstance(result.exception, OptionError), (arguments, result.exception, result.output)
    sentence = str(result.exception)
    assert flag in sentence
    assert "\n" not in sentence
    assert result.exception.exit_status == 2


def assert_accepted(arguments: list[str]) -> None:
    """Nothing is said of the options: the command begins to build, or does all that it has to."""
    result = run(*arguments)
    fine = result.exception is None or isinstance(result.exception, BuildingError)
    assert fine, (arguments, result.exception, result.output)


SERVERS = (["serve", "--iface", "lo"], ["lab", "up"], ["bench"], ["demo"])
LAT, DPU_ONLY, CPU_ONLY = ["--design", "lat"], ["--design", "dpu-only"], ["--design", "cpu-only"]

IDLE_SETTINGS = [
    [*LAT, "--host-share", "0.3"],
    [*LAT, "--frames", "dpdk"],
    [*LAT, "--frames", "ring"],
    [*LAT, "--send", "before-parse"],
    [*LAT, "--rx-descriptors", "128"],
    [*LAT, "--socket-mode", "copy"],
    [*LAT, "--dpdk-device", "0000:03:00.0"],
    [*LAT, "--store", "lossless", "--move-to-head", "0.9"],
    [*LAT, "--respond", "wait", "--depth", "3"],
    [*LAT, "--respond", "sender", "--depth", "3"],
    [*LAT, "--transport", "af_xdp", "--flush-after-us", "100"],
    [*DPU_ONLY, "--transport", "ringbuf"],
    [*DPU_ONLY, "--transfer", "request"],
    [*DPU_ONLY, "--prepare", "serial"],
    [*DPU_ONLY, "--respond", "wait"],
    [*DPU_ONLY, "--depth", "3"],
    [*DPU_ONLY, "--flush-after-us", "100"],
    [*DPU_ONLY, "--engine-cpus", "0"],
    [*DPU_ONLY, "--no-huge-pages"],
    [*DPU_ONLY, "--move-to-head", "0.9"],
    [*CPU_ONLY, "--transport", "ringbuf"],
    [*CPU_ONLY, "--respond", "wait"],
    [*CPU_ONLY, "--frames", "ring", "--rx-descriptors", "128"],
    [*CPU_ONLY, "--frames", "udp", "--socket-mode", "copy"],
    [*CPU_ONLY, "--frames", "udp", "--dpdk-device", "0000:03:00.0"],
    [*CPU_ONLY, "--frames", "dpdk", "--dpdk-device", "0000:03:00.0", "--dpu-cpus", "0"],
]
"""Settings of a server of which the last option has no effect."""

IDLE_OPTIONS = [
    (["bench", "--queues", "2", "--target", "10.0.0.1:9800"], "--queues 2"),
    (["bench", "--stall", "4", "--target", "10.0.0.1:9800"], "--stall 4"),
    (["bench", "--stall", "4", "--design", "dpu-only"], "--stall 4"),
    (["bench", "--design", "sav", "--target", "10.0.0.1:9800"], "--design sav"),
    (["bench", "--store", "lossless", "--target", "10.0.0.1:9800"], "--store lossless"),
    (["bench", "--engines", "2", "--target", "h:1", "--directory", "file:/x"], "--engines 2"),
    (["bench", "--skip-load"], "--skip-load"),
    (["bench", "--directory", "file:/x"], "--directory file:/x"),
    (["bench", "--output", "x.png"], "--output x.png"),
    (["bench", "--ablate", "--output", "x.png"], "--output x.png"),
    (["bench", "--key-counts", "1000,2000", "--keys", "1000"], "--keys 1000"),
    (["bench", "--key-counts", "1000,2000", "--no-huge-pages"], "--no-huge-pages"),
    (["bench", "--floor", "--window", "8"], "--window 8"),
    (["bench", "--floor", "--design", "sav"], "--design sav"),
    (["bench", "--floor", "--no-huge-pages"], "--no-huge-pages"),
    (["bench", "--floor", "--key-counts", "1000,2000", "--output", "x.png"], "--output x.png"),
    (["bench", "--design", "all", "--dpdk-device", "0000:03:00.0"], "--dpdk-device"),
    (["bench", "--design", "all", "--socket-mode", "copy", "--frames", "ring"], "--socket-mode"),
    (["compare", "--import-only", "--import", "x.json", "--keys", "1000"], "--keys 1000"),
    (["compare", "--import-only", "--import", "x.json", "--repeats", "5"], "--repeats 5"),
    (["compare", "--import-only", "--import", "x.json", "--ours", "lat"], "--ours lat"),
    (["model", "--sweep", "load", "--figure12"], "--sweep load"),
    (["model", "--figure12", "--design", "sav"], "--design sav"),
    (["model", "--figure12", "--workload", "A"], "--workload A"),
    (["model", "--figure12", "--dpu-cores", "4"], "--dpu-cores 4"),
    (["model", "--figure12", "--write-costs", "x.toml"], "--write-costs x.toml"),
    (["model", "--figure12", "--fits"], "--figure12"),
    (["model", "--figure12", "--validate"], "--figure12"),
    (["model", "--fits", "--validate"], "--validate"),
    (["model", "--fits", "--seed", "2"], "--seed 2"),
    (["model", "--fits", "--output", "x.png"], "--output x.png"),
    (["model", "--validate", "--dpu", "bf3"], "--dpu bf3"),
    (["model", "--validate", "--rate", "1e6"], "--rate 1000000"),
    (["model", "--design", "dpu-only", "--host-cores", "2"], "--host-cores 2"),
    (["model", "--design", "cpu-only", "--dpu-cores", "2"], "--dpu-cores 2"),
    (["model", "--design", "cpu-only", "--sweep", "dpu-cores"], "--sweep dpu-cores"),
    (["model", "--design", "dpu-only", "--sweep", "host-cores"], "--sweep host-cores"),
    (["model", "--costs", "x.toml", "--workload", "A"], "--workload A"),
    (["recommend", "--costs", "x.toml", "--workload", "A"], "--workload A"),
    (["reproduce", "--smoke", "--paper"], "--smoke"),
    (["reproduce", "--paper", "--smoke"], "--smoke"),
    (["reproduce", "--list", "--resume"], "--resume"),
    (["reproduce", "--list", "--output", "x"], "--output x"),
    (["get", "key", "--lab", "x", "--engines", "2"], "--engines 2"),
    (["set", "key", "value", "--directory", "file:/x", "--engines", "2"], "--engines 2"),
    (["rebalance", "--move", "1:1", "--look", "2"], "--look 2"),
]
"""Commands with an option that has no effect there."""

FINE_SETTINGS = [
    [],
    [*LAT, "--host-share", "0"],
    [*LAT, "--frames", "af_xdp"],
    [*LAT, "--transport", "af_xdp", "--rx-descriptors", "128"],
    [*LAT, "--transport", "af_xdp", "--socket-mode", "copy"],
    [*LAT, "--transport", "af_xdp", "--send", "before-parse"],
    [*LAT, "--transport", "ringbuf", "--prepare", "serial", "--depth", "3"],
    [*LAT, "--respond", "wait", "--depth", "24", "--flush-after-us", "100"],
    [*LAT, "--log-bytes", "0", "--partitions", "0"],
    [*LAT, "--store", "lossless", "--move-to-head", "0.5", "--huge-pages"],
    [*LAT, "--store", "inline", "--move-to-head", "0.3"],
    [*DPU_ONLY, "--transport", "ring", "--frames", "af_xdp", "--respond", "adaptive"],
    [*CPU_ONLY, "--frames", "udp", "--rx-descriptors", "128"],
    [*CPU_ONLY, "--frames", "ring", "--depth", "3", "--respond", "pipeline"],
    [*CPU_ONLY, "--frames", "dpdk", "--dpdk-device", "0000:03:00.0"],
    ["--design", "dual", "--host-share", "0.3", "--transport", "ringbuf", "--send", "before-parse"],
    ["--design", "shrd", "--host-share", "0.3", "--frames", "ring", "--depth", "3"],
]
"""Settings of a server that have an effect or are at their defaults."""

FINE_OPTIONS = [
    ["bench", "--design", "all", "--host-share", "0.3", "--transport", "ringbuf", "--depth", "3"],
    ["bench", "--design", "all", "--output", "x.png", "--frames", "ring"],
    ["bench", "--output", "dpukv-designs.png"],
    ["bench", "--key-counts", "1000,2000", "--keys", str(1 << 20), "--output", "x.png"],
    ["bench", "--floor", "--keys", "1000", "--value-size", "100", "--store", "lossless"],
    ["bench", "--floor", "--key-counts", "1000,2000", "--engine-cpus", "0"],
    ["bench", "--engines", "2", "--mtu", "1000", "--target", "10.0.0.1:9800", "--skip-load"],
    ["bench", "--target", "10.0.0.1:9800", "--directory", "file:/x", "--queues", "1"],
    ["bench", "--requests-per-packet", "0", "--queues", "64"],
    ["bench", "--design", "all", "--stall", "4"],
    ["bench", "--design", "dpu-only", "--stall", "0"],
    ["reproduce", "--list", "--smoke"],
    ["reproduce", "--list", "--paper"],
    ["get", "key", "--server", "127.0.0.1:9", "--engines", "2"],
    ["get", "key", "--directory", "file:/x", "--engines", "1"],
    ["model", "--fits", "--seed", "1", "--json", "-"],
]


@pytest.mark.parametrize(
    ("command", "settings"),
    list(itertools.product(SERVERS, IDLE_SETTINGS)),
    ids=lambda part: " ".join(part),
)
def test_a_setting_without_an_effect_is_refused(command: list[str], settings: list[str]) -> None:
    flag = next(text for text in reversed(settings) if text.startswith("--"))
    assert_refused([*command, *settings], f"{flag} ".strip())


@pytest.mark.parametrize(("arguments", "flag"), IDLE_OPTIONS, ids=lambda part: str(part))
def test_an_option_without_an_effect_is_refused(arguments: list[str], flag: str) -> None:
    assert_refused(arguments, flag)
    assert "has no effect" in str(run(*arguments).exception)


@pytest.mark.parametrize(
    ("command", "settings"),
    list(itertools.product(SERVERS, FINE_SETTINGS)),
    ids=lambda part: " ".join(part),
)
def test_a_setting_with_an_effect_or_at_its_default_is_not_refused(
    command: list[str], settings: list[str]
) -> None:
    assert_accepted([*command, *settings])


@pytest.mark.parametrize("arguments", FINE_OPTIONS, ids=" ".join)
def test_an_option_with_an_effect_or_at_its_default_is_not_refused(arguments: list[str]) -> None:
    assert_accepted(arguments)


def test_the_sentence_names_the_design_and_those_that_would_do() -> None:
    result = run("bench", "--design", "lat", "--host-share", "0.3")
    assert str(result.exception) == (
        "--host-share 0.3 has no effect with design lat: it divides the keys between two doors; "
        "leave it out, or use design dual or shrd"
    )


# ---- Settings in a file


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ('design = "lat"\nhost_share = 0.3', "--host-share 0.3 has no effect with design lat"),
        ('design = "dpu-only"\ntransport = "ringbuf"', "--transport ringbuf has no effect"),
        ("items = 1000", "--items 1000 has no effect"),
        ("rebalance_s = 5.0\nengines = 2\npartitions = 64", "--rebalance-s 5.0 has no effect"),
        ("port = 0", "--port 0 is not 1 to 65535"),
        ("log_bytes = 1", "--log-bytes 1 is not 4096 to"),
        ("move_to_head = nan", "--move-to-head nan is not 0 to 1"),
        ("flush_after_us = inf", "--flush-after-us inf is not 1 to 1000000 microseconds"),
    ],
)
def test_a_file_s_settings_are_checked_and_the_file_is_named(
    tmp_path: Path, text: str, word: str
) -> None:
    file = tmp_path / "server.toml"
    file.write_text(text)
    result = run("bench", "--config", str(file))
    assert isinstance(result.exception, OptionError)
    assert str(result.exception).startswith(f"{file}: {word}")


def test_an_option_s_own_fault_is_not_the_file_s(tmp_path: Path) -> None:
    file = tmp_path / "server.toml"
    file.write_text('design = "lat"\nhost_share = 0.0')
    result = run("bench", "--config", str(file), "--host-share", "0.3")
    assert str(result.exception).startswith("--host-share 0.3")


def test_one_file_is_for_serve_and_bench_alike(tmp_path: Path) -> None:
    """Where a server publishes does not concern a bench; its own store's size would."""
    file = tmp_path / "server.toml"
    file.write_text('design = "dual"\nhost_share = 0.3\ndirectory = "etcd2://10.0.0.9:2379/mica"')
    for command in SERVERS:
        assert_accepted([*command, "--config", str(file)])


# ---- The table


def test_every_row_names_options_that_exist() -> None:
    by_command = {
        str(command.name): {str(parameter.name) for parameter in command.params}
        for command in commands()
    }
    settings = set(ServerConfig.__struct_fields__)
    for rule in applies.RULES:
        for command in rule.commands or ("serve",):
            known = by_command[command.partition(" ")[0]] | (
                settings if "config_path" in by_command[command.partition(" ")[0]] else set()
            )
            assert set(rule.options) <= known, rule


def test_defaults_are_never_refused() -> None:
    for design in DESIGNS:
        config = ServerConfig(design=design)
        applies.check_settings("serve", config, {}, {})


# ---- Ranges


def commands(group: click.Group = main.cli) -> Iterator[click.Command]:
    for command in group.commands.values():
        if isinstance(command, click.Group):
            yield from commands(command)
        else:
            yield command


def numbers() -> Iterator[tuple[list[str], click.Option, Number]]:
    """Every option that takes a number, with the words that name its command."""
    for path, command in paths(main.cli, []):
        for parameter in command.params:
            if isinstance(parameter, click.Option) and isinstance(parameter.type, Number):
                yield path, parameter, parameter.type


def paths(group: click.Group, path: list[str]) -> Iterator[tuple[list[str], click.Command]]:
    for name, command in group.commands.items():
        if isinstance(command, click.Group):
            yield from paths(command, [*path, name])
        else:
            yield [*path, name], command


def test_every_number_of_every_command_has_a_range() -> None:
    for path, command in paths(main.cli, []):
        for parameter in command.params:
            if isinstance(parameter, click.Option):
                is_bare = isinstance(parameter.type, click.types.IntParamType | click.FloatRange)
                is_bare |= isinstance(parameter.type, click.types.FloatParamType)
                assert not is_bare or parameter.count, (path, parameter.name)


REQUIRED = {"serve": ["--iface", "lo"], "get": ["key"], "add": ["key", "value"]}
REQUIRED |= {"set": ["key", "value"], "delete": ["key"], "increment": ["key"]}


@pytest.mark.parametrize(
    ("path", "option", "kind"),
    [pytest.param(*each, id=f"{' '.join(each[0])} {each[1].opts[0]}") for each in numbers()],
)
def test_no_option_takes_a_number_out_of_its_range(
    path: list[str], option: click.Option, kind: Number
) -> None:
    for value in (*outside(kind.range), "nan", "inf", "-inf", "1e300", "h", "²", "None"):
        result = run(*path, *REQUIRED.get(path[-1], []), option.opts[0], str(value))
        assert isinstance(result.exception, DpukvError | SystemExit), (value, result.exception)
        assert not isinstance(result.exception, BuildingError), (path, option.opts, value)
        if isinstance(result.exception, OptionError):
            assert option.opts[0] in str(result.exception)
        else:
            assert option.opts[0] in result.output


def step(found: ranges.Range) -> float:
    return 1 if found.is_whole else 1e-3


def outside(found: ranges.Range) -> list[float]:
    low = found.least if found.is_open else found.least - step(found)
    high = found.most if found.is_below else found.most + step(found)
    allowed = () if found.default is None else (found.default[0],)
    return [value for value in (low, high) if value not in allowed]


@pytest.mark.parametrize("name", ranges.RANGES)
def test_a_range_ends_at_its_limits(name: str) -> None:
    """One below, at, and one above each limit."""
    found = ranges.RANGES[name]
    small = step(found)
    low = found.least + small * found.is_open
    high = found.most - small * found.is_below
    for value in (low, low + small, high - small, high):
        ranges.check(name, value)
    for value in (*outside(found), math.nan, math.inf, -math.inf):
        with pytest.raises(OptionError, match=f"--{name.replace('_', '-')} .* is not .*: "):
            ranges.check(name, value)


@pytest.mark.parametrize("name", ranges.SETTINGS)
def test_a_file_has_the_same_ranges(name: str) -> None:
    found = ranges.SETTINGS[name]
    wrong: list[Any] = [kind_of(found)(value) for value in outside(found)]
    if not found.is_whole:
        wrong += [math.nan, math.inf]
    for value in wrong:
        with pytest.raises(OptionError, match=f"--{name.replace('_', '-')} "):
            validation.check(ServerConfig(**{name: value}))


def kind_of(found: ranges.Range) -> type[int] | type[float]:
    return int if found.is_whole else float


@pytest.mark.parametrize(
    ("arguments", "flag"),
    [
        (["bench", "--port", "0"], "--port 0"),
        (["serve", "--iface", "lo", "--port", "0"], "--port 0"),
        (["bench", "--queues", "500"], "--queues 500"),
        (["lab", "up", "--queues", "500"], "--queues 500"),
        (["bench", "--log-bytes", "1"], "--log-bytes 1"),
        (["bench", "--rate", "0"], "--rate 0"),
        (["model", "--rate", "0"], "--rate 0"),
        (["model", "--window", "0"], "--window 0"),
        (["recommend", "--share", "200"], "--share 200"),
        (["recommend", "--share", "100.5"], "--share 100.5"),
        (["recommend", "--share", "0"], "--share 0"),
        (["bench", "--key-counts", "0,10"], "--key-counts 0"),
        (["bench", "--key-counts", "a"], "--key-counts 'a'"),
        (["qp-bench", "--sizes", "0"], "--sizes 0"),
        (["qp-bench", "--sizes", "8193"], "--sizes 8193"),
        (["qp-bench", "--operations", "0"], "--operations 0"),
    ],
    ids=lambda part: str(part),
)
def test_absurd_numbers_are_refused(arguments: list[str], flag: str) -> None:
    assert_refused(arguments, flag)
