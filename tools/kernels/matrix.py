# SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
"""The tests that run on each kernel, and the guests in which they run."""

import os
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import msgspec

from dpukv_xdp.base import patience
from dpukv_xdp.base.errors import DpukvError
from dpukv_xdp.kernel import kernel_headers
from kernels import budget, guests, images, processes, results
from kernels.guests import Guest
from kernels.images import ROOT, Image, Kernel, Say
from kernels.results import KernelResult

INSIDE = "tools/kernels/inside.py"
PYTHON = ".venv/bin/python"
PROGRAMS_DIR = Path("/var/cache/dpukv_xdp/programs")
NOT_QUICK = (
    *("mypy", "mypyc", "*__mypyc*", "ruff*", "clang_format*", "librt", "ast_serialize"),
    *("matplotlib", "mpl_toolkits", "fontTools", "PIL", "pillow.libs", "contourpy", "kiwisolver"),
    *("pip", "setuptools", "hypothesis", "_pytest", "scapy", "simpy", "tzdata"),
)
"""Parts of the environment that a quick guest does not need: checkers, plots, tests."""
COMPILE_SECONDS = 900.0
COPY_SECONDS = 30.0
LOAD_SECONDS = 60.0
TALK_SECONDS = 120.0
SETUP_SECONDS = 300.0
DEMO_SECONDS = 600.0
SUITES_SECONDS = 1200.0
SUITES = (
    "tests/bpf",
    *(
        f"tests/net/test_{name}.py"
        for name in (
            "designs",
            "wire",
            "operations",
            "life",
            "transports",
            "features",
            "segmentation",
        )
    ),
)
"""Suites that depend on the kernel, without those for performance."""
JUNIT = "build/kernels/junit.xml"


def try_here(result: KernelResult, say: Say) -> None:
    """Load every build on the running kernel."""
    with _phase(result, "load"):
        say("here: compiling builds that are not cached, and loading every build")
        _inside_here(["load"], result)


def try_quickly(kernel: Kernel, result: KernelResult, say: Say) -> None:
    """Load every build and run each design in a prepared guest with this environment."""
    started = time.monotonic()
    with images.image(kernel, "prepared", say) as image, tempfile.TemporaryFile() as payload:
        result.seconds["image"] = round(time.monotonic() - started, 1)
        result.release = image.release
        with _phase(result, "compile"):
            _compile_for(image, say)
        brings_environment = _has_same_environment()
        _pack(payload, _checkout() + (_environment() if brings_environment else []))
        with _booted(kernel, image, payload, result, say) as guest:
            if not brings_environment:
                with _phase(result, "setup"):
                    say(f"{kernel.name}: tools/setup")
                    _succeed(guest, "tools/setup", SETUP_SECONDS)
            for job, limit_seconds in (("load", LOAD_SECONDS), ("talk", TALK_SECONDS)):
                with _phase(result, job):
                    say(f"{kernel.name}: {job}")
                    _inside_guest(guest, job, limit_seconds, result)


def try_suites_here(arguments: Sequence[str], result: KernelResult, say: Say) -> None:
    """Run the functional suites on the running kernel."""
    with _phase(result, "suites"):
        say("here: functional suites")
        junit = ROOT / JUNIT
        junit.unlink(missing_ok=True)
        command = [PYTHON, "-m", "pytest", *SUITES, *arguments, f"--junitxml={JUNIT}"]
        status, lines = processes.run(
            command,
            what="the functional suites",
            limit_seconds=SUITES_SECONDS * patience.slowness(),
            cwd=ROOT,
            on_line=say,
        )
        if not junit.exists():
            raise DpukvError(f"pytest ended with exit status {status}: {' / '.join(lines[-2:])}")
        result.suites = results.read_junit(junit.read_text())


def try_fresh_box(kernel: Kernel, arguments: Sequence[str], result: KernelResult, say: Say) -> None:
    """Run the README's commands as written in a bare guest; its test command runs the functional
    suites.

    The first command runs in an unprepared guest. Before the second, the programs compiled here are
    copied into the guest, because compiling them there takes an hour.
    """
    with images.image(kernel, "bare", say) as image, tempfile.TemporaryFile() as payload:
        _pack(payload, [*_checkout(), str(PROGRAMS_DIR)])
        with _booted(kernel, image, payload, result, say, f"--exclude={PROGRAMS_DIR}") as guest:
            _try_command(guest, "sudo tools/dpukv demo", "", DEMO_SECONDS, result, say)
            _succeed(guest, f"tar -xPf /dev/vdb {PROGRAMS_DIR}", COPY_SECONDS, cwd="/")
            suites = guests.quoted(*SUITES, *arguments, f"--junitxml={JUNIT}")
            _try_command(guest, "sudo tools/test", suites, SUITES_SECONDS, result, say)
            junit = guests.quoted(str(ROOT / JUNIT))
            status, lines = guest.run(f"cat {junit}", what="results", limit_seconds=COPY_SECONDS)
            if status == 0:  # otherwise the command's failure is in the results
                result.suites = results.read_junit("\n".join(lines))


def _try_command(
    guest: Guest, command: str, more: str, limit_seconds: float, result: KernelResult, say: Say
) -> None:
    """Run a command of the README with additional arguments, in the checkout."""
    with _phase(result, command):
        say(f"{guest.name}: {command}")
        status, lines = guest.run(
            f"cd {guests.quoted(str(ROOT))} && mkdir -p {Path(JUNIT).parent} && {command} {more}",
            what=command,
            limit_seconds=limit_seconds,
            on_line=say,
        )
    last = (lines or ["it said nothing"])[-1]
    result.commands[command] = "ok" if status == 0 else f"exit status {status}: {last}"


# ---- Guests


@contextmanager
def _booted(
    kernel: Kernel, image: Image, payload: IO[bytes], result: KernelResult, say: Say, *options: str
) -> Iterator[Guest]:
    """Yield a booted guest with its payload unpacked; `options` are tar's."""
    started = time.monotonic()
    with guests.booted(kernel.name, image, payload, say) as guest:
        result.seconds["boot"] = round(time.monotonic() - started, 1)
        result.emulated, result.slowness = not guests.has_kvm(), guest.slowness
        result.release = image.release
        say(f"{kernel.name} is up: its time-outs are {guest.slowness:g} times longer")
        with _phase(result, "copy"):
            _succeed(guest, f"tar -xPf /dev/vdb {guests.quoted(*options)}", COPY_SECONDS, "/")
        yield guest


def _succeed(guest: Guest, command: str, limit_seconds: float, cwd: str = str(ROOT)) -> None:
    status, lines = guest.run(
        f"cd {guests.quoted(cwd)} && {command}", what=command, limit_seconds=limit_seconds
    )
    if status:
        raise DpukvError(f"guest {guest.name}: {command} failed: {' / '.join(lines[-3:])}")


def _inside_guest(guest: Guest, job: str, limit_seconds: float, result: KernelResult) -> None:
    table = budget.read()
    status, lines = guest.run(
        f"cd {guests.quoted(str(ROOT))} && {PYTHON} -P {INSIDE} {job}",
        what=f"inside.py {job}",
        limit_seconds=limit_seconds,
    )
    _take(lines, result, table)
    if status:
        raise DpukvError(f"guest {guest.name}: inside.py {job} failed: {' / '.join(lines[-3:])}")


def _inside_here(jobs: Sequence[str], result: KernelResult, **environment: str) -> None:
    status, lines = processes.run(
        [PYTHON, "-P", INSIDE, *jobs],
        what=f"inside.py {' '.join(jobs)}",
        limit_seconds=COMPILE_SECONDS,
        cwd=ROOT,
        env=processes.environment(**environment),
    )
    _take(lines, result, budget.read())
    if status:
        raise DpukvError(f"inside.py {' '.join(jobs)} failed: {' / '.join(lines[-3:])}")


def _take(lines: Sequence[str], result: KernelResult, table: dict[str, dict[str, int]]) -> None:
    for line in lines:
        if line.startswith("{"):
            result.add(msgspec.json.decode(line), table)


# ---- The payload of a guest


def _compile_for(image: Image, say: Say) -> None:
    """Compile every build with the guest's headers here, which takes seconds instead of minutes."""
    source = kernel_headers.source_in(image.headers)
    if kernel_headers.headers_release() != image.release:
        say(f"compiling every build with the headers of {image.release}")
    _inside_here(["compile"], KernelResult("here"), BCC_KERNEL_SOURCE=str(source))


def _has_same_environment() -> bool:
    """Return whether .venv works in a guest: this host must have the guest's Debian release."""
    text = Path("/etc/os-release").read_text()
    return f"VERSION_CODENAME={images.RELEASE}" in text and (ROOT / PYTHON).exists()


def _checkout() -> list[str]:
    """Return the files of the checkout, including changed and untracked ones."""
    return _files("--cached", "--others", "--exclude-standard")


def _environment() -> list[str]:
    """Return the files that tools/setup makes in the checkout, and the compiled programs."""
    built = _files("--others", "--ignored", "--exclude-standard", "dpukv_xdp")
    return [*built, str(ROOT / ".venv"), str(PROGRAMS_DIR)]


def _files(*asked: str) -> list[str]:
    """Return the absolute paths of the existing files that `git ls-files` lists."""
    command = ["git", "-c", f"safe.directory={ROOT}", "ls-files", "-z", *asked]
    listing = subprocess.run(command, cwd=ROOT, capture_output=True, check=False)
    if listing.returncode:
        said = listing.stderr.decode(errors="replace").strip()
        raise DpukvError(f"git cannot list the files of {ROOT}: {said}")
    names = dict.fromkeys(listing.stdout.decode().split("\0")[:-1])
    return [str(ROOT / name) for name in names if os.path.lexists(ROOT / name)]


def _pack(payload: IO[bytes], paths: Sequence[str]) -> None:
    """Write files into an archive, with their absolute paths."""
    excluded = [f"--exclude=site-packages/{pattern}" for pattern in NOT_QUICK]
    command = ["tar", "--create", "--absolute-names", *excluded, "--null", "--files-from=-"]
    with processes.started(command, stdin=subprocess.PIPE, stdout=payload) as tar:
        tar.communicate("\0".join(paths).encode())
        if tar.returncode:
            raise DpukvError("tar could not pack the checkout, see above")


@contextmanager
def _phase(result: KernelResult, name: str) -> Iterator[None]:
    started = time.monotonic()
    try:
        yield
    finally:
        result.seconds[name] = round(time.monotonic() - started, 1)
