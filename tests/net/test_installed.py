# SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
"""The installed package works outside the checkout; without a compiler, the client alone works.

Both wheels are built from a source distribution, so that nothing comes from the checkout. Tests
download nothing: the packages that dpukv_xdp requires are those of the tests' own environment.
"""

import importlib.metadata
import json
import os
import re
import secrets
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from email import message_from_string
from pathlib import Path
from typing import Any

import pytest
from net.commands import TIMEOUT_SECONDS
from packaging.requirements import Requirement

from dpukv_xdp.lab import lab as labs

pytestmark = pytest.mark.shares_cores

ROOT = Path(__file__).resolve().parents[2]
MADE_IN_CHECKOUT = ("*.so", "*.egg-info", "__pycache__", "_layouts.py", ".*", "build")
NOT_FOR_CLIENTS = {"numpy", "bcc", "pyroute2", "dpukv_xdp._core", "click", "requests", "scapy"}

TALK = """
import json, sys, time
start = time.perf_counter()
import dpukv_xdp.client
import_ms = (time.perf_counter() - start) * 1000
with dpukv_xdp.client.Client((sys.argv[1], int(sys.argv[2]))) as client:
    stored = client.set("from", "afar") and client.set("x" * 200, "long")
    found = client.get_many(["from", "x" * 200, "nowhere"])
print(json.dumps({
    "import_ms": import_ms,
    "file": dpukv_xdp.client.__file__,
    "modules": sorted(sys.modules),
    "stored": stored,
    "found": {key: value.decode() for key, value in found.items()},
}))
"""


@dataclass(frozen=True)
class Environment:
    """A virtual environment with a wheel of ours in it."""

    folder: Path
    variables: dict[str, str]
    """Environment variables of the programs that run in it."""

    def run(self, *command: str, status: int = 0) -> subprocess.CompletedProcess[str]:
        """Run a program of the environment outside the checkout."""
        program, *arguments = command
        result = subprocess.run(
            [str(self.folder / "bin" / program), *arguments],
            cwd=self.folder,
            env=self.variables,
            capture_output=True,
            text=True,
            timeout=TIMEOUT_SECONDS,
            check=False,
        )
        assert result.returncode == status, result.stderr
        return result

    def site(self) -> Path:
        """Return the folder of its packages."""
        return next(self.folder.glob("lib/python3*/site-packages"))


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return an unpacked source distribution."""
    work = tmp_path_factory.mktemp("source")
    checkout = work / "checkout"
    shutil.copytree(ROOT, checkout, ignore=shutil.ignore_patterns(*MADE_IN_CHECKOUT))
    build = "from setuptools.build_meta import build_sdist; build_sdist('..')"
    python(["-c", build], checkout, {})
    (archive,) = work.glob("*.tar.gz")
    shutil.unpack_archive(archive, work)
    return work / archive.name.removesuffix(".tar.gz")


@pytest.fixture(scope="module")
def full_wheel(source: Path) -> Path:
    """Return a wheel with the native core, not optimised, which builds faster."""
    return wheel(source, "full", {"DPUKV_NATIVE": "1", "DPUKV_CORE_CFLAGS": "-O0"})


@pytest.fixture(scope="module")
def client_wheel(source: Path) -> Path:
    """Return a wheel as built on a machine without a C compiler."""
    return wheel(source, "client", {"PATH": "/nonexistent"})


@pytest.fixture(scope="module")
def full(full_wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Environment:
    """Return an environment with every extra, and with the distribution's bcc."""
    environment = made(tmp_path_factory.mktemp("full"), "--system-site-packages")
    others = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}
    (environment.site() / "extras.pth").write_text("\n".join(others))
    install(environment, full_wheel)
    return environment


@pytest.fixture(scope="module")
def client_only(client_wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Environment:
    """Return an environment with the wheel's requirements, no extras and no compiler."""
    environment = made(tmp_path_factory.mktemp("client"))
    environment.variables["PATH"] = str(environment.folder / "bin")
    for distribution in requirements_of(client_wheel):
        for file in distribution.files or ():
            if ".." not in file.parts:
                target = environment.site() / file
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(file.locate(), target)
    install(environment, client_wheel)
    return environment


@pytest.fixture(scope="module")
def lab_name(full: Environment) -> Iterator[str]:
    """Yield the name of a lab with a server from the full environment."""
    name = f"wheel{secrets.token_hex(3)}"
    full.run("dpukv", "lab", "up", "--name", name, "--items", "1000")
    try:
        yield name
    finally:
        full.run("dpukv", "lab", "down", name)


# ---- The tests -----------------------------------------------------------------------------------


def test_the_source_distribution_has_every_file_of_the_checkout(source: Path) -> None:
    tracked = subprocess.run(
        ["git", "-C", ROOT, "ls-files", "bpf", "dpukv_xdp", "docs", "tests", "tools"],
        capture_output=True,
        text=True,
        check=False,
    )
    if tracked.returncode:
        pytest.skip("needs git and its repository, to know which files are ours")
    missing = [name for name in tracked.stdout.split() if not (source / name).exists()]
    assert missing == []
    assert not (source / "dpukv_xdp" / "wire" / "_layouts.py").exists()


def test_the_wheels_say_what_they_are(full_wheel: Path, client_wheel: Path) -> None:
    assert re.search(r"-cp311-abi3-linux_\w+\.whl$", full_wheel.name)
    assert client_wheel.name.endswith("-py3-none-any.whl")
    names = set(zipfile.ZipFile(full_wheel).namelist())
    ours = {"py.typed", "wire/_layouts.py", "results/model_points.json", "experiments/sizes.toml"}
    ours |= {f"bpf/{path.relative_to(ROOT / 'bpf')}" for path in (ROOT / "bpf").rglob("*.[ch]")}
    assert {f"dpukv_xdp/{name}" for name in ours} <= names
    assert not [name for name in names if name.startswith(("tests/", "bpf/", "docs/", "build/"))]
    about = metadata(client_wheel)
    assert "# dpukv_xdp" in about.get_payload()
    assert {Requirement(line).name for line in base_requirements(about)} == {"cffi", "msgspec"}


def test_all_of_it_works_elsewhere(full: Environment, lab_name: str) -> None:
    where = full.run("python", "-c", "from dpukv_xdp.wire import abi; print(abi.BPF_DIR)").stdout
    assert Path(where.strip()) == full.site() / "dpukv_xdp" / "bpf"
    checks = json.loads(full.run("dpukv", "doctor", "--json", "-").stdout)
    assert all(check["ok"] for check in checks if check["name"].startswith("programs of"))
    full.run("dpukv", "set", "hello", "world", "--lab", lab_name)
    assert full.run("dpukv", "get", "hello", "--lab", lab_name).stdout == "world\n"
    full.run("dpukv", "recommend")


def test_the_client_alone_talks_to_a_server(client_only: Environment, lab_name: str) -> None:
    (lab,) = (each for each in labs.list_labs() if each.lab_id == lab_name)
    with labs.in_namespace(lab.client.namespace):
        run = client_only.run("python", "-c", TALK, lab.server.address, str(lab.details["port"]))
    talk = json.loads(run.stdout)
    assert talk["stored"] is True
    assert talk["found"] == {"from": "afar", "x" * 200: "long"}
    assert Path(talk["file"]).is_relative_to(client_only.folder)
    assert NOT_FOR_CLIENTS & set(talk["modules"]) == set()
    sys.stdout.write(f"import of the client: {talk['import_ms']:.0f} ms\n")


ETCD = "from dpukv_xdp.client import Client; Client.from_directory('etcd3://127.0.0.1:1/mica')"


@pytest.mark.parametrize(
    ("command", "sentence"),
    [
        (["dpukv", "doctor"], r"^dpukv: this command needs the Python package \w+: .*\[all\]"),
        (["python", "-m", "dpukv_xdp", "--help"], "needs the Python package"),
        (["python", "-c", ETCD], r"Error: the directory etcd3://\S+ needs .* requests: .*\[etcd\]"),
        (["python", "-c", "import dpukv_xdp._core"], "MissingError: .* needs the native core"),
    ],
)
def test_the_client_alone_says_what_the_rest_needs(
    client_only: Environment, command: list[str], sentence: str
) -> None:
    said = client_only.run(*command, status=1).stderr.rstrip().split("\n")
    assert re.search(sentence, said[-1])
    if "-c" not in command:
        assert len(said) == 1


def test_a_wrong_wish_for_the_native_core_is_told(source: Path) -> None:
    result = subprocess.run(
        [sys.executable, "setup.py", "--name"],
        cwd=source,
        env=os.environ | {"DPUKV_NATIVE": "yes"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 1
    assert "DPUKV_NATIVE is 'yes': use 0 or 1" in result.stderr


# ---- Building and installing ---------------------------------------------------------------------


def python(arguments: list[str], folder: Path, variables: dict[str, str]) -> None:
    """Run the tests' Python in a folder, with additional environment variables."""
    result = subprocess.run(
        [sys.executable, *arguments],
        cwd=folder,
        env=os.environ | variables,
        capture_output=True,
        text=True,
        timeout=TIMEOUT_SECONDS,
        check=False,
    )
    assert result.returncode == 0, result.stdout + result.stderr


def wheel(source: Path, kind: str, variables: dict[str, str]) -> Path:
    """Build a wheel from a copy of `source` with the packages of the tests' environment."""
    work = source.parent / kind
    shutil.copytree(source, work)
    arguments = ["-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--no-index"]
    python([*arguments, "--wheel-dir", "wheels", "."], work, variables)
    (built,) = (work / "wheels").iterdir()
    return built


def made(folder: Path, *options: str) -> Environment:
    """Return a new virtual environment without pip."""
    python(["-m", "venv", "--without-pip", *options, str(folder)], folder, {})
    kept = {
        name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "PIP_"))
    }
    return Environment(folder, kept)


def install(environment: Environment, built: Path) -> None:
    interpreter = str(environment.folder / "bin" / "python")
    arguments = ["-m", "pip", "--python", interpreter, "install", "--no-deps", "--no-index"]
    python([*arguments, str(built)], environment.folder, {})


def metadata(built: Path) -> Any:
    with zipfile.ZipFile(built) as packed:
        (name,) = (each for each in packed.namelist() if each.endswith(".dist-info/METADATA"))
        return message_from_string(packed.read(name).decode())


def base_requirements(about: Any) -> list[str]:
    """Return the requirements of a package on this machine, without extras."""
    lines = about.get_all("Requires-Dist") or []
    markers = {line: Requirement(line).marker for line in lines}
    return [
        line for line, marker in markers.items() if not marker or marker.evaluate({"extra": ""})
    ]


def requirements_of(built: Path) -> list[importlib.metadata.Distribution]:
    """Return the packages that a wheel requires, directly and indirectly."""
    wanted, found = base_requirements(metadata(built)), {}
    while wanted:
        name = Requirement(wanted.pop()).name
        if name not in found:
            found[name] = importlib.metadata.distribution(name)
            wanted += base_requirements(found[name].metadata)
    return list(found.values())
