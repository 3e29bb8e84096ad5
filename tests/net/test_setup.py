# SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
"""tools/setup makes a Python environment beside the one that works, and swaps them when it is done.

It runs in a checkout of its own, with a pip that installs a script and needs no network.
"""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

pytestmark = pytest.mark.shares_cores

ROOT = Path(__file__).parents[2]
CORE = "dpukv_xdp/_core"
FAKE_PIP = """\
import os, pathlib, sys
if os.environ.get("PIP_FAILS", "never") in sys.argv:
    sys.exit("no network")
if "--editable" in sys.argv:
    script = pathlib.Path(sys.prefix, "bin", "hello")
    script.write_text(f"#!{sys.prefix}/bin/python\\nimport sys; print(sys.prefix)\\n")
    script.chmod(0o755)
    pathlib.Path(os.environ["CHECKOUT"], "dpukv_xdp/_core/_native.so").write_text(sys.argv[-1])
"""
SYSTEM_PYTHON = "/usr/bin/python3"
PYTHON_WITHOUT_ENSUREPIP = f"""\
#!/bin/sh
if [ "$1 $2" = "-m venv" ]; then shift 2; set -- -m venv --without-pip "$@"; fi
exec {SYSTEM_PYTHON} "$@"
"""
"""ensurepip takes 3 s for each environment, and what it installs is hidden by the pip above."""


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What tools/setup reads of the checkout; each test begins by setting it up."""
    folder = tmp_path_factory.mktemp("setup")
    checkout = folder / "checkout"
    for name in ("pyproject.toml", "setup.py", f"{CORE}/build.py"):
        (checkout / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, checkout / name)
    script = checkout / "tools/setup"
    script.parent.mkdir()
    text = (ROOT / script.relative_to(checkout)).read_text()
    assert text.count(f"python={SYSTEM_PYTHON}") == 1
    script.write_text(text.replace(f"python={SYSTEM_PYTHON}", f"python={folder}/python", 1))
    (folder / "python").write_text(PYTHON_WITHOUT_ENSUREPIP)
    for executable in (script, folder / "python"):
        executable.chmod(0o755)
    for name in ("bpf/abi/x.h", f"{CORE}/x.c", "dpukv_xdp/wire/headers.py"):
        (checkout / name).parent.mkdir(parents=True, exist_ok=True)
        (checkout / name).write_text("")
    fake = folder / "fake" / "pip"
    fake.mkdir(parents=True)
    (fake / "__init__.py").write_text("")
    (fake / "__main__.py").write_text(FAKE_PIP)
    return checkout


def setup(checkout: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [checkout / "tools/setup", "--quiet"],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ
        | {"PYTHONPATH": str(checkout.parent / "fake"), "CHECKOUT": str(checkout)}
        | environment,
    )


def said_by_script(checkout: Path) -> str:
    script = checkout / ".venv/bin/hello"
    return subprocess.run([script], capture_output=True, text=True, check=True).stdout.strip()


def environments(checkout: Path) -> list[str]:
    return sorted(path.name for path in checkout.glob(".venv*"))


def test_an_environment_is_made_and_its_scripts_name_its_place(checkout: Path) -> None:
    result = setup(checkout)
    assert result.returncode == 0, result.stderr
    assert environments(checkout) == [".venv"]
    texts = [
        path.read_text()
        for path in (checkout / ".venv/bin").iterdir()
        if path.is_file() and not path.is_symlink()
    ]
    assert texts
    assert not [text for text in texts if ".venv.new" in text]
    assert ".venv.new" not in (checkout / ".venv/pyvenv.cfg").read_text()
    assert said_by_script(checkout) == str(checkout / ".venv")
    assert subprocess.run([checkout / "tools/setup", "--check"], check=False).returncode == 0


def test_a_working_environment_is_not_lost_while_there_is_no_network(checkout: Path) -> None:
    """Each way that pip can fail, with a changed stamp and with changed sources of the core."""
    assert setup(checkout).returncode == 0
    stamps = [(checkout / ".venv" / f"{name}.stamp").read_text() for name in ("venv", "core")]
    (checkout / "setup.py").write_text("changed once")
    for failing in ("install", "--editable"):
        result = setup(checkout, PIP_FAILS=failing)
        assert result.returncode == 1
        assert "the environment is as it was: check the network" in result.stderr
        assert environments(checkout) == [".venv"]
        assert said_by_script(checkout) == str(checkout / ".venv")
        assert stamps == [
            (checkout / ".venv" / f"{name}.stamp").read_text() for name in ("venv", "core")
        ]
        assert [path.name for path in (checkout / CORE).glob("*.so*")] == ["_native.so"]
    assert setup(checkout).returncode == 0
    assert (checkout / ".venv/venv.stamp").read_text() != stamps[0]


def test_a_core_that_cannot_be_built_leaves_the_old_one(checkout: Path) -> None:
    assert setup(checkout).returncode == 0
    built = (checkout / CORE / "_native.so").read_text()
    (checkout / CORE / "x.c").write_text("changed")
    assert setup(checkout, PIP_FAILS="--no-deps").returncode == 1
    assert (checkout / CORE / "_native.so").read_text() == built
    assert [path.name for path in (checkout / CORE).glob("*.so*")] == ["_native.so"]
    assert said_by_script(checkout) == str(checkout / ".venv")


@pytest.mark.parametrize("left", [[".venv.new"], [".venv.old"]])
def test_what_a_killed_run_left_is_taken_up(checkout: Path, left: list[str]) -> None:
    """Killed while it made the new one, or between the two renames."""
    assert setup(checkout).returncode == 0
    if ".venv.new" in left:
        shutil.copytree(checkout / ".venv", checkout / ".venv.new", symlinks=True)
        (checkout / "setup.py").write_text("changed")
    else:
        (checkout / ".venv").rename(checkout / ".venv.old")
    assert setup(checkout).returncode == 0
    assert environments(checkout) == [".venv"]
    assert said_by_script(checkout) == str(checkout / ".venv")
