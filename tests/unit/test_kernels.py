# SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
"""tools/test --kernels with fakes of qemu, mmdebstrap and others on PATH: each failure is one
sentence, and nothing is left behind. Only tools/test --kernels --quick boots a guest.
"""

import io
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click
import pytest

from dpukv_xdp.base.errors import DpukvError, MissingError, UsageError
from dpukv_xdp.base.processes import start_ticks
from kernels import __main__ as command
from kernels import guests, hosts, images, matrix, processes, results
from kernels.images import KERNELS, Image, Kernel

ROOT = Path(__file__).parents[2]
SILENT = "exec sleep 600\n"
LONG_SECONDS = 60.0
"""Time-out for steps that are immediate, on a machine that other programs use, too."""
Fake = Callable[..., Path]


def say(sentence: str) -> None:
    """Ignore a sentence."""


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Fake:
    """Return a function that puts a shell script first on PATH."""
    place = tmp_path / "fakes"
    place.mkdir()
    monkeypatch.setenv("PATH", f"{place}:{os.environ['PATH']}")

    def make(name: str, script: str) -> Path:
        path = place / name
        path.write_text(f"#!/bin/sh\n{script}")
        path.chmod(0o755)
        return path

    return make


@pytest.fixture
def packages(fake: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fake an mmdebstrap, mkfs and isolation that succeed at once and make very small files."""
    monkeypatch.setattr(hosts, "pip_settings", list)  # running pip is slow
    fake("apt-get", "echo http://mirror.example bookworm main\n")
    fake("apt-config", "exit 0\n")
    fake("unshare", 'while [ "$1" != -- ]; do shift; done; shift; exec "$@"\n')
    fake(
        "mmdebstrap",
        'for word; do case "$word" in */tree) tree=$word ;; esac; done\n'
        'mkdir -p "$tree/boot" "$tree/etc" "$tree/usr/src/linux-headers-6.1.0-9-amd64"\n'
        'echo k >"$tree/boot/vmlinuz-6.1.0-9-amd64"\n'
        'echo i >"$tree/boot/initrd.img-6.1.0-9-amd64"\n',
    )
    fake("mkfs.ext4", 'for word; do case "$word" in */root.img) echo disk >"$word" ;; esac; done\n')


@pytest.fixture
def image(tmp_path: Path) -> Image:
    """Return an image of empty files, for a fake qemu."""
    for name in ("root.img", "vmlinuz", "initrd"):
        (tmp_path / name).write_text("not one")
    return Image(tmp_path, "6.1.0-9-amd64")


@pytest.fixture
def payload() -> Iterator[io.BufferedRandom]:
    with tempfile.TemporaryFile() as file:
        yield file


# ---- The command line


def test_unknown_kernels_are_named() -> None:
    with pytest.raises(UsageError, match=r"knows 6\.1, 6\.12, not '5\.4'"):
        images.kernel_named("5.4")


@pytest.mark.parametrize("kernels", ["5.4", "6.1,", "6.1,5.4", "6"])
def test_the_command_refuses_unknown_kernels(
    kernels: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["kernels", kernels, "--quick"])
    assert command.main() == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "--kernels knows 6.1, 6.12" in said


@pytest.mark.parametrize(
    ("words", "kernels", "arguments"),
    [
        ([], "", ()),
        (["6.1,6.12"], "6.1,6.12", ()),
        (["6.1", "-k", "wire"], "6.1", ("-k", "wire")),
        (["-k", "wire"], "", ("-k", "wire")),
    ],
)
def test_other_arguments_are_pytest_s(
    words: list[str], kernels: str, arguments: tuple[str, ...]
) -> None:
    context = command.run.make_context("kernels", list(words))
    assert isinstance(context, click.Context)
    found = command.split(context.params["words"])
    assert found == (kernels, arguments)


# ---- Images


def build(kind: images.Kind, guests_dir: Path, kernel: Kernel = KERNELS["6.1"]) -> Path:
    with images.image(kernel, kind, say, guests_dir) as found:
        return found.path


@pytest.mark.parametrize("kind", ["bare", "prepared"])
@pytest.mark.usefixtures("packages")
def test_an_image_is_built_once(kind: images.Kind, tmp_path: Path, fake: Fake) -> None:
    place = tmp_path / "guests"
    first = build(kind, place)
    fake("mmdebstrap", "exit 1\n")
    assert build(kind, place) == first
    assert sorted(path.name for path in first.iterdir() if path.name != "headers") == [
        "initrd",
        "release",
        "root.img",
        "sources.list",
        "vmlinuz",
    ]


@pytest.mark.usefixtures("packages")
def test_another_recipe_replaces_the_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = tmp_path / "guests"
    first = build("bare", place)
    monkeypatch.setattr(images, "RECIPE", "another")
    assert build("bare", place) != first
    assert not first.exists()


@pytest.mark.usefixtures("packages")
def test_a_suite_with_another_kernel_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DpukvError, match=r"has kernel 6\.1\.0-9-amd64, not 6\.12"):
        build("bare", tmp_path, KERNELS["6.12"])
    assert leftovers(tmp_path) == []


@pytest.mark.parametrize(
    ("script", "sentence"),
    [
        (
            "echo 'W: careful'; echo 'E: no such mirror'; exit 1\n",
            "could not be built: no such mirror",
        ),
        ("exit 7\n", "could not be built: exit status 7"),
    ],
)
@pytest.mark.usefixtures("packages")
def test_a_mirror_that_fails_is_told(
    script: str, sentence: str, tmp_path: Path, fake: Fake
) -> None:
    fake("mmdebstrap", script)
    with pytest.raises(DpukvError, match=sentence):
        build("bare", tmp_path)
    assert leftovers(tmp_path) == []


@pytest.mark.usefixtures("packages")
def test_a_mirror_that_hangs_has_a_limit(
    tmp_path: Path, fake: Fake, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake("mmdebstrap", f"echo waiting for the mirror; {SILENT}")
    monkeypatch.setattr(images, "BUILD_SECONDS", 0.5)
    with pytest.raises(DpukvError, match=r"image of 6\.1 took longer .* waiting for the mirror"):
        build("bare", tmp_path)
    assert leftovers(tmp_path) == []


def test_mmdebstrap_that_is_missing_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    missing = lambda program: None if program == "mmdebstrap" else f"/bin/{program}"  # noqa: E731
    monkeypatch.setattr(processes.shutil, "which", missing)
    monkeypatch.setattr(hosts, "_has", lambda program: False)
    with pytest.raises(MissingError, match=r"needs mmdebstrap: run sudo tools/setup --with-guests"):
        build("bare", tmp_path)


@pytest.mark.parametrize(("free", "fits"), [(1 << 30, True), ((1 << 30) - 1, False)])
def test_room_is_looked_at_first(
    free: int, fits: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    there = os.statvfs_result((1, 1, 0, 0, free, 0, 0, 0, 0, 255))
    monkeypatch.setattr(images.os, "statvfs", lambda path: there)
    if fits:
        images.check_room(tmp_path, 1 << 30)
    else:
        with pytest.raises(DpukvError, match=r"needs 1\.0 GiB in .* make room there"):
            images.check_room(tmp_path, 1 << 30)


def test_what_a_dead_process_left_goes_and_a_living_one_s_stays(tmp_path: Path) -> None:
    ours = tmp_path / f".new-{os.getpid()}-{start_ticks(os.getpid())}"
    dead = tmp_path / f".new-{os.getpid()}-1"  # another process had this number before
    for path in (ours, dead):
        path.mkdir()
    images._remove_unfinished(tmp_path)
    assert leftovers(tmp_path) == [ours.name]


def leftovers(place: Path) -> list[str]:
    """Return the files that a failed build might leave."""
    return [path.name for path in place.glob(".new-*")] + [path.name for path in place.glob("6*")]


# ---- Guests


def boot(image: Image, payload: io.BufferedRandom) -> None:
    with guests.booted("6.1", image, payload, say):
        pass


def test_a_guest_that_hangs_has_a_limit(
    fake: Fake, image: Image, payload: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pid_file = tmp_path / "pid"
    fake("qemu-system-x86_64", f"echo $$ >{pid_file}; echo Loading Linux; {SILENT}")
    monkeypatch.setattr(guests, "BOOT_SECONDS", 0.3)
    monkeypatch.setattr(guests, "EMULATION", 1.0)
    with pytest.raises(DpukvError, match=r"did not boot within .* said last: Loading Linux"):
        boot(image, payload)
    assert start_ticks(int(pid_file.read_text())) is None


def test_qemu_that_ends_is_told(fake: Fake, image: Image, payload: Any) -> None:
    fake("qemu-system-x86_64", "echo 'qemu: no such machine' >&2; exit 1\n")
    with pytest.raises(DpukvError, match=r"ended before guest 6\.1 was up: qemu: no such machine"):
        boot(image, payload)


def test_qemu_that_is_missing_is_named(
    image: Image, payload: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processes.shutil, "which", lambda program: None)
    with pytest.raises(MissingError, match=r"a guest needs qemu-system-x86_64, ssh"):
        boot(image, payload)


def test_a_port_that_is_taken_is_replaced_three_times(
    fake: Fake, image: Image, payload: Any, tmp_path: Path
) -> None:
    tries = tmp_path / "tries"
    fake(
        "qemu-system-x86_64",
        f"echo x >>{tries}; echo 'Could not set up host forwarding rule' >&2; exit 1\n",
    )
    with pytest.raises(DpukvError, match="host forwarding"):
        boot(image, payload)
    assert tries.read_text().count("x") == guests.PORT_TRIES


def test_too_little_memory_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guests, "MEMORY_BYTES_MIN", 1 << 60)
    with pytest.raises(DpukvError, match="end other programs"):
        guests.guest_memory_bytes()


def test_a_guest_that_stops_answering_is_told(fake: Fake) -> None:
    fake("ssh", "echo 'Connection reset by peer' >&2; exit 255\n")
    with tempfile.TemporaryFile() as console:
        console.write(b"Kernel panic - not syncing\r\n")
        console.flush()
        guest = guests.Guest("6.1", 1, "/key", console)
        with pytest.raises(
            DpukvError, match=r"6\.1: step: the connection broke \(Connection reset.*Kernel panic"
        ):
            guest.run("true", what="step", limit_seconds=LONG_SECONDS)


def test_a_step_that_hangs_is_named(fake: Fake) -> None:
    fake("ssh", f"echo begun; {SILENT}")
    with tempfile.TemporaryFile() as console:
        guest = guests.Guest("6.1", 1, "/key", console)
        with pytest.raises(DpukvError, match=r"guest 6\.1: load took longer than .* begun"):
            guest.run("true", what="load", limit_seconds=0.3)


def test_only_sshd_greets() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = int(server.getsockname()[1])
        assert not guests._greets(port)  # as qemu, before the guest is up
    assert not guests._greets(port)


# ---- Ended from outside


def run_and_end(script: str, number: signal.Signals, begun: Path) -> int:
    """Run a Python script, signal it once it has written `begun`, and return its exit status."""
    environment = {**os.environ, "PYTHONPATH": f"{ROOT / 'tools'}"}
    with subprocess.Popen([sys.executable, "-P", "-c", script], env=environment) as process:
        try:
            wait_for(lambda: begun.exists() and begun.read_text().strip())
            process.send_signal(number)
            return process.wait(LONG_SECONDS)
        finally:
            process.kill()


def wait_for(what: Callable[[], Any]) -> None:
    deadline = time.monotonic() + LONG_SECONDS
    while not what():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)


BUILDING = """
from kernels import __main__ as command, images
def run(**options):
    with images.image(images.KERNELS["6.1"], "bare", print, images.Path({place!r})):
        pass
"""
BOOTING = """
import tempfile
from kernels import __main__ as command, guests, images
def run(**options):
    with tempfile.TemporaryFile() as payload:
        image = images.Image(images.Path({place!r}), "6.1.0-9-amd64")
        with guests.booted("6.1", image, payload, print):
            pass
"""
RUN = "command.run.main = run\nraise SystemExit(command.main())\n"


@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGKILL, -9)]
)
@pytest.mark.parametrize("script", [BUILDING, BOOTING], ids=["building", "booting"])
@pytest.mark.usefixtures("packages", "image")
def test_an_end_from_outside_leaves_nothing(
    script: str, number: signal.Signals, status: int, tmp_path: Path, fake: Fake
) -> None:
    begun = tmp_path / "begun"
    for program in ("mmdebstrap", "qemu-system-x86_64"):
        fake(program, f"echo $$ >{begun}.new; mv {begun}.new {begun}; {SILENT}")
    assert run_and_end(script.format(place=str(tmp_path)) + RUN, number, begun) == status
    pid = int(begun.read_text())
    wait_for(lambda: start_ticks(pid) is None)
    if number == signal.SIGKILL:  # the next run removes what it left
        images._remove_unfinished(tmp_path)
    assert leftovers(tmp_path) == []


# ---- What a guest takes over


def test_proxies_and_mirrors_of_the_host_reach_the_guest(
    fake: Fake, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", "http://proxy.example:3128")
    monkeypatch.setattr(hosts, "_codename", lambda: "trixie")
    fake(
        "apt-get", "printf '%s\\n' 'http://a trixie main' 'http://a trixie-updates main' 'x y main'"
    )
    fake("apt-config", "echo 'Acquire::http::Proxy \"http://p\";'; echo 'Dir \"/\";'")
    assert hosts.apt_sources("bookworm", "bookworm-backports") == [
        "deb http://a bookworm main",
        "deb http://a bookworm-updates main",
        "deb http://a bookworm-backports main",
    ]
    assert hosts.apt_settings() == ['Acquire::http::Proxy "http://p"']
    assert "http_proxy=http://proxy.example:3128\n" in hosts.guest_files()["etc/environment"]


def test_pip_s_places_on_this_host_stay_here(monkeypatch: pytest.MonkeyPatch) -> None:
    listing = (
        ":env:.find-links='/opt/wheels'\n"
        "global.index-url='https://pypi.example/simple'\n"
        "global.extra-index-url='file:///srv/simple https://more.example/simple'\n"
    )
    monkeypatch.setattr(hosts, "_output", lambda *argv: listing)
    assert hosts.pip_settings() == [
        "index-url = https://pypi.example/simple\n",
        "extra-index-url = https://more.example/simple\n",
    ]


def test_the_package_list_is_setup_s() -> None:
    listed = subprocess.check_output([ROOT / "tools" / "setup", "--packages"], text=True).split()
    assert "python3-bpfcc" in listed
    wanted = images._packages(KERNELS["6.12"], "prepared")
    assert set(listed) < set(wanted)
    assert "linux-headers-amd64/bookworm-backports" in wanted
    assert not set(listed) & set(images._packages(KERNELS["6.12"], "bare"))


def test_the_checkout_is_what_git_knows() -> None:
    files = matrix._checkout()
    assert str(ROOT / "tools" / "setup") in files
    assert not [name for name in files if "/.venv/" in name or "/.git/" in name]


# ---- Results

JUNIT = """<testsuites><testsuite>
<testcase classname="tests.bpf.test_wire" name="one"/>
<testcase classname="tests.net.test_wire" name="two"><failure message="no&#10;more"/></testcase>
<testcase classname="tests.net.test_wire" name="three"><skipped message="too old"/></testcase>
<testcase classname="tests.net.test_wire" name="four"><error message="setup"/></testcase>
</testsuite></testsuites>"""


def test_suites_are_counted_with_reasons() -> None:
    suites = results.read_junit(JUNIT)
    assert suites["bpf"].passed == 1
    wire = suites["net/test_wire"]
    assert (wire.passed, wire.failed, wire.skipped) == (0, 2, {"too old": 1})
    assert wire.failures == ["net/test_wire: two: no", "net/test_wire: four: setup"]


def test_every_kind_of_failure_is_told_and_written(tmp_path: Path) -> None:
    good = {"corrupt": 0, "lost": 0, "refused": 0, "hits": 9}
    result = results.KernelResult("6.1", "6.1.0-9-amd64", emulated=True, slowness=9.5)
    table = {"a": {"kv_a": 10}}
    for line in (
        {"build": {"name": "a", "instructions": {"kv_a": 11}}},
        {"build": {"name": "b", "refused": "R3 min value"}},
        {"bench": {"design": "lat", **good}},
        {"bench": {"design": "sav", **good, "lost": 1}},
        {"bench": {"design": "dual", "failed": "no room"}},
        {"lab": {"design": "lat", "failed": "get: gone"}},
    ):
        result.add(line, table)
    result.suites = results.read_junit(JUNIT)
    result.commands = {"sudo tools/test": "exit status 1: 3 failed"}
    told = result.failures()
    assert len(told) == 8
    assert not [sentence for sentence in told if "--design lat" in sentence]
    results.write([result], tmp_path)
    text = (tmp_path / "kernels.md").read_text()
    assert all(sentence in text for sentence in told)
    assert "| builds loaded | 1 of 2 |" in text
    assert "| tests/net/test_wire | 0 / 2 / 1 |" in text
    assert "| a | kv_a | 11 |" in text


def test_a_new_budget_judges_what_the_old_one_refused() -> None:
    result = results.KernelResult("6.1")
    result.add({"build": {"name": "new", "instructions": {"kv_a": 100}}}, {"old": {"kv_a": 1}})
    assert result.failures() == ["6.1: new: kv_a has no row in budget.toml"]
    result.judge({"new": {"kv_a": 100}})
    assert result.failures() == []
    result.judge({"new": {"kv_a": 99}})
    assert len(result.failures()) == 1
