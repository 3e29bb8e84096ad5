"""A bounded run of the store's fuzz target, with address and undefined-behaviour sanitizers.

With clang the target runs under libFuzzer, otherwise with gcc on reproducible random inputs.
"""

import shutil
import subprocess
from contextlib import suppress
from pathlib import Path

import pytest
from built import CORE, ROOT, RefusedError, built

from dpukv_xdp.base.patience import patient

SECONDS = 10

SOURCES = [
    ROOT / "tests/fuzz/store_fuzz.c",
    *(CORE / "store").glob("*.c"),
    CORE / "base" / "hash.c",
]
FLAGS = ["-std=gnu11", "-g1", "-O1", "-Wall", "-Wextra", "-Werror", "-fno-sanitize-recover=all"]


@pytest.fixture(scope="module")
def run_command(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Return the built target, with the arguments that bound its run."""
    clang = next(filter(None, map(shutil.which, ("clang-14", "clang"))), None)
    if clang:
        with suppress(RefusedError):  # a clang without libFuzzer
            target = built(clang, [*FLAGS, "-fsanitize=fuzzer,address,undefined"], SOURCES)
            corpus = tmp_path_factory.mktemp("corpus")
            return [str(target), f"-max_total_time={SECONDS}", "-max_len=2048", str(corpus)]
    flags = [*FLAGS, "-DKV_FUZZ_STANDALONE", "-fsanitize=address,undefined"]
    return [str(built("gcc", flags, SOURCES)), str(SECONDS)]


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
