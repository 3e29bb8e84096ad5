# SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
"""`dpukv doctor` on machines that lack something."""

import errno
import json
import os
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from click.testing import CliRunner

from dpukv_xdp.base.errors import DpukvError, LoadError, MissingError
from dpukv_xdp.cli import main
from dpukv_xdp.kernel import kernel_headers, loader
from dpukv_xdp.kernel.features import FEATURES, TRIED_KERNELS
from dpukv_xdp.native import probes
from dpukv_xdp.ops import doctor
from dpukv_xdp.ops.doctor import Check


@pytest.fixture(autouse=True)
def _as_root(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    probes.lack_of.cache_clear()
    yield
    probes.lack_of.cache_clear()


def refuse(number: int) -> Any:
    def probe() -> None:
        raise OSError(number, os.strerror(number))

    return probe


# ---- Kernel and features


@pytest.mark.parametrize(
    ("release", "is_tried"),
    [
        *((f"{version}.0-9-amd64", True) for version in TRIED_KERNELS),
        ("5.15.0", False),
        ("6.10.1", False),
        ("6.180.2", False),
        ("strange", False),
    ],
)
def test_the_kernel_is_one_of_those_that_were_tried_or_not(
    monkeypatch: pytest.MonkeyPatch, release: str, is_tried: bool
) -> None:
    monkeypatch.setattr(os, "uname", lambda: SimpleNamespace(release=release))
    (check,) = doctor._kernel()
    assert (check.ok, check.is_required and not check.ok) == (is_tried, False)
    assert release in check.found
    assert all(version in check.found for version in TRIED_KERNELS)
    assert check.details["is_tried"] is is_tried


@pytest.mark.parametrize("name", FEATURES)
def test_a_feature_is_there(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setitem(probes.PROBES, name, lambda: None)
    (check,) = doctor._feature(name)
    assert (check.ok, check.is_tried, check.remedy) == (True, True, "")


@pytest.mark.parametrize("name", FEATURES)
def test_a_feature_is_missing(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setitem(probes.PROBES, name, refuse(errno.EINVAL))
    (check,) = doctor._feature(name)
    feature = FEATURES[name]
    assert (check.ok, check.is_tried, check.is_required) == (False, True, feature.is_required)
    for part in (os.strerror(errno.EINVAL), feature.since, feature.lost):
        assert part in check.found
    assert check.remedy == feature.instead


@pytest.mark.parametrize("name", FEATURES)
def test_a_feature_that_may_not_be_tried(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setitem(probes.PROBES, name, refuse(errno.EPERM))
    (check,) = doctor._feature(name)
    assert (check.ok, check.is_tried) == (False, False)
    assert "sudo" in check.remedy


def test_without_root_it_says_what_it_could_not_try(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    untried = [check for check in doctor.checks() if not check.is_tried]
    wanted = ["network namespaces, veth", *FEATURES, "programs"]
    assert [check.name for check in untried] == wanted
    for check in untried:
        assert not check.ok
        assert "this needs root" in check.found
        assert check.remedy == "run it with sudo"


@pytest.mark.parametrize(
    "error", [OSError(errno.EROFS, os.strerror(errno.EROFS)), DpukvError("a sentence")]
)
def test_a_check_that_fails_is_a_finding(error: Exception) -> None:
    def look() -> list[Check]:
        raise error

    (check,) = doctor._guarded("something", look)
    assert (check.name, check.ok, check.is_tried) == ("something", False, False)
    assert check.found == str(error)


# ---- Programs


class FakeBuild:
    """A build that loads or fails to."""

    source = "kv_fake.c"

    def __init__(self, name: str, error: Exception | None = None) -> None:
        self.name, self.error, self.closed = name, error, 0

    def load(self) -> Any:
        if self.error:
            raise self.error
        return SimpleNamespace(programs={"kv_fake": 7}, close=self.close)

    def close(self) -> None:
        self.closed += 1


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loader, "verified_instructions", lambda fd: 1000 * fd)


def program_checks(monkeypatch: pytest.MonkeyPatch, *builds: FakeBuild) -> list[Check]:
    monkeypatch.setattr(doctor, "usual_builds", lambda: builds)
    told: list[tuple[str, float]] = []
    found = list(doctor._program_checks(lambda what, fraction: told.append((what, fraction))))
    assert len(told) == len(builds) + 1
    assert [fraction for _, fraction in told] == sorted(fraction for _, fraction in told)
    return found


@pytest.mark.usefixtures("counted")
def test_a_program_that_loads_is_told_with_its_instructions(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    build = FakeBuild("lat")
    (check,) = program_checks(monkeypatch, build)
    assert (check.name, check.ok, check.remedy) == ("programs of lat", True, "")
    assert "kv_fake 7,000" in check.found
    assert check.details["verified"] == {"kv_fake": 7000}
    assert build.closed == 1


def test_a_kernel_that_does_not_count_still_loads(monkeypatch: pytest.MonkeyPatch) -> None:
    def count(_fd: int) -> int:
        raise MissingError("counting", "a later kernel")

    monkeypatch.setattr(loader, "verified_instructions", count)
    build = FakeBuild("lat")
    (check,) = program_checks(monkeypatch, build)
    assert (check.ok, check.found, build.closed) == (True, "kv_fake.c loads", 1)


@pytest.mark.usefixtures("counted")
def test_a_refused_program_is_told_with_its_line_and_what_loads(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    refused = LoadError("kv_fake.c was refused by the kernel's verifier: R3 min value is …", "log")
    first, second = program_checks(monkeypatch, FakeBuild("lat", refused), FakeBuild("sav"))
    assert (first.ok, first.is_tried, first.is_required) == (False, True, True)
    assert str(refused) in first.found
    assert "(sav)" in first.remedy
    assert first.details["refused"] == str(refused)
    assert second.ok


@pytest.mark.parametrize("error", [MissingError("bcc", "a package"), OSError(28, "disk full")])
def test_a_program_that_cannot_be_compiled_is_not_the_kernel_s_fault(
    monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    (check,) = program_checks(monkeypatch, FakeBuild("lat", error))
    assert (check.ok, check.is_tried) == (False, False)
    assert str(error) in check.found


# ---- The command


OK = Check("good", True, "there")
REQUIRED = Check("needed", False, "not there", "get it", details={"since": "5.18"})
OPTIONAL = Check("useful", False, "not there", "get it", is_required=False)
UNTRIED = Check("hidden", False, "not tried", "run it with sudo", is_tried=False)


@pytest.mark.parametrize(
    ("found", "status", "marks"),
    [
        ([OK, OPTIONAL], 0, ["ok      good: there", "note    useful: not there; get it"]),
        ([OK, REQUIRED], 1, ["ok      good: there", "MISSING needed: not there; get it"]),
        ([UNTRIED], 1, ["?       hidden: not tried; run it with sudo"]),
    ],
)
def test_the_command_s_lines_and_status(
    monkeypatch: pytest.MonkeyPatch, found: list[Check], status: int, marks: list[str]
) -> None:
    monkeypatch.setattr(doctor, "checks", lambda _progress: found)
    run = CliRunner().invoke(main.cli, ["doctor"])
    assert (run.exit_code, run.stdout.splitlines()) == (status, marks)


def test_the_json_has_everything(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "checks", lambda _progress: [REQUIRED])
    run = CliRunner().invoke(main.cli, ["doctor", "--json", "-"])
    assert json.loads(run.stdout) == [
        {
            "name": "needed",
            "ok": False,
            "found": "not there",
            "remedy": "get it",
            "required": True,
            "tried": True,
            "since": "5.18",
        }
    ]


@pytest.mark.parametrize("number", [errno.EROFS, errno.EACCES, errno.ENOTDIR, errno.ENOSPC])
def test_a_cache_that_cannot_be_made_is_one_sentence(
    monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def mkdir(*_arguments: object, **_settings: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(Path, "mkdir", mkdir)
    with pytest.raises(DpukvError, match="is writable: make one writable"):
        kernel_headers.writable_cache()
