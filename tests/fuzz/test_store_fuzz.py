"""A bounded run of the store's fuzz target, with address and undefined-behaviour sanitizers.

With clang the target runs under libFuzzer, else with gcc on reproducible random inputs.
"""

import shutil
import subprocess
from pathlib import Path

import pytest

from dpukv_xdp.base.patience import patient

ROOT = Path(__file__).resolve().parents[2]
CORE = ROOT / "dpukv_xdp" / "_core"
SECONDS = 10

SOURCES = [
    ROOT / "tests/fuzz/store_fuzz.c",
    *(CORE / "store").glob("*.c"),
    CORE / "base" / "hash.c",
]
FLAGS = ["-std=gnu11", "-g", "-O1", "-Wall", "-Wextra", "-Werror", "-fno-sanitize-recover=all"]
INCLUDES = [f"-I{CORE}", f"-I{ROOT / 'bpf'}"]


@pytest.fixture(scope="module")
def run_command(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The built target, with the arguments that bound its run."""
    directory = tmp_path_factory.mktemp("store_fuzz")
    target = directory / "store_fuzz"
    clang = next(filter(None, map(shutil.which, ("clang-14", "clang"))), None)
    if clang and build(clang, ["-fsanitize=fuzzer,address,undefined"], target).returncode == 0:
        (directory / "corpus").mkdir()
        return [
            str(target),
            f"-max_total_time={SECONDS}",
            "-max_len=2048",
            str(directory / "corpus"),
        ]
    built = build("gcc", ["-DKV_FUZZ_STANDALONE", "-fsanitize=address,undefined"], target)
    assert built.returncode == 0, built.stderr
    return [str(target), str(SECONDS)]


def build(compiler: str, flags: list[str], target: Path) -> subprocess.CompletedProcess[str]:
    command = [compiler, *FLAGS, *flags, *INCLUDES, *map(str, SOURCES), "-o", str(target)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_no_input_makes_store_and_model_differ(run_command: list[str], tmp_path: Path) -> None:
    finished = subprocess.run(
        run_command,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=patient(SECONDS * 6),
        check=False,
    )
    assert finished.returncode == 0, finished.stdout[-2000:] + finished.stderr[-4000:]
