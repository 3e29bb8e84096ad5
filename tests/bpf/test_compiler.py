# SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
"""Compiled objects are cached, and compiled again when anything they depend on has changed."""

import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bpf.harness import run_once

from dpukv_xdp.base.errors import DpukvError, LoadError
from dpukv_xdp.kernel import compiler, kernel_headers, loader
from dpukv_xdp.wire import abi

pytestmark = pytest.mark.shares_cores

SOURCE = """
#include "{header}"
BPF_ARRAY(kv_numbers, __u64, 2);
int kv_tell(struct xdp_md *ctx)
{
	__u32 index = 1;
	__u64 *number = kv_numbers.lookup(&index);

	if (number)
		*number = KV_NUMBER + KV_MORE;
	return XDP_DROP;
}
"""


SIZED = compiler.ENTRIES_AT_LOAD


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a new source file; an empty cache precedes the machine's."""
    cache = tmp_path / "cache"
    cache.mkdir()
    monkeypatch.setattr(kernel_headers, "CACHE_DIRS", (cache, *kernel_headers.CACHE_DIRS))
    path = tmp_path / "source.c"
    path.write_text(SOURCE.replace("{header}", str(tmp_path / "number.h")))
    (tmp_path / "number.h").write_text("#define KV_NUMBER 40")
    return path


@pytest.fixture
def compilations(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Return a list that grows with every compilation."""
    seen: list[Path] = []
    really = compiler._compile

    def count(source: Path, *rest: Any) -> compiler.CompiledObject:
        seen.append(source)
        return really(source, *rest)

    monkeypatch.setattr(compiler, "_compile", count)
    return seen


def told(source: Path, more: int = 2, **settings: int) -> int:
    """Return the number that the program returns when it runs."""
    loaded = loader.load(str(source), ["kv_tell"], {"KV_MORE": more, **settings})
    try:
        run_once(loaded.programs["kv_tell"], bytes(64))
        return int(loaded.read_array("kv_numbers", np.dtype(np.uint64))[1])
    finally:
        loaded.close()


def kept(source: Path) -> list[Path]:
    return sorted((source.parent / "cache" / "programs").iterdir())


def test_the_second_time_nothing_is_compiled(source: Path, compilations: list[Path]) -> None:
    assert [told(source) for _ in range(3)] == [42, 42, 42]
    assert len(compilations) == len(kept(source)) == 1


def change_header(source: Path) -> None:
    (source.parent / "number.h").write_text("#define KV_NUMBER 41")


def change_source(source: Path) -> None:
    source.write_text(source.read_text().replace("KV_NUMBER +", "1 + KV_NUMBER +"))


@pytest.mark.parametrize("change", [change_header, change_source])
def test_a_changed_text_is_compiled(
    source: Path, compilations: list[Path], change: Callable[[Path], None]
) -> None:
    assert told(source) == 42
    change(source)
    assert told(source) == 43
    assert len(compilations) == 2


def test_each_setting_is_compiled(source: Path, compilations: list[Path]) -> None:
    assert [told(source, more) for more in (2, 3, 2, 3)] == [42, 43, 42, 43]
    assert len(compilations) == 2


def test_settings_that_are_filled_in_are_not_compiled(
    source: Path, compilations: list[Path]
) -> None:
    """Each setting has a weight of its own, so that none can take another one's place."""
    weights = {name: 2 * at + 1 for at, name in enumerate(compiler.SETTINGS_AT_LOAD)}
    header = source.parent / "number.h"
    (side,) = abi.BPF_DIR.rglob("side.h")
    terms = " + ".join(f"{weight} * {name}" for name, weight in weights.items())
    header.write_text(f'#include "{side}"\n#define KV_NUMBER ({terms})')
    for first in (0, 9800, 2**31, 2**32 - len(weights)):
        values = {name: first + at for at, name in enumerate(weights)}
        expected = sum(weights[name] * value for name, value in values.items())
        assert told(source, **values) == expected + 2
    assert len(compilations) == 1


@pytest.mark.parametrize(
    ("operation", "result"),
    [
        ("+=", lambda number, value: number + value),
        ("*=", lambda number, value: number * value),
        ("/=", lambda number, value: number // value),
        ("&=", lambda number, value: number & value),
    ],
)
def test_a_setting_can_be_an_operand(
    source: Path, compilations: list[Path], operation: str, result: Callable[[int, int], int]
) -> None:
    number = 0x7FFF_FFFF_FFFF
    header = source.parent / "number.h"
    (side,) = abi.BPF_DIR.rglob("side.h")
    used = f'KV_WITH_SETTING({number}ULL, "{operation}", KV_CPUS)'
    header.write_text(f'#include "{side}"\n#define KV_NUMBER {used}')
    for value in (1, 3, 2**16, 2**31 - 1):
        assert told(source, KV_CPUS=value) == (result(number, value) + 2) % 2**64
    assert len(compilations) == 1


def test_an_operand_beyond_its_limit_is_refused(source: Path) -> None:
    header = source.parent / "number.h"
    (side,) = abi.BPF_DIR.rglob("side.h")
    used = 'KV_WITH_SETTING(1, "*=", KV_CPUS)'
    header.write_text(f'#include "{side}"\n#define KV_NUMBER {used}')
    with pytest.raises(DpukvError, match=f"KV_CPUS={2**31}"):
        told(source, KV_CPUS=2**31)


def test_maps_get_the_entries_that_their_settings_ask_for(
    source: Path, compilations: list[Path]
) -> None:
    (side,) = abi.BPF_DIR.rglob("side.h")
    maps = "".join(f"BPF_ARRAY({name}, __u64, KV_ENTRIES_AT_LOAD);\n" for name in SIZED)
    source.write_text(f'#include "{side}"\n{maps}int kv_tell(struct xdp_md *ctx) {{ return 2; }}')
    factors = {factor for of_map in SIZED.values() for factor in of_map}
    for more in (0, 1, 5):
        settings = {name: at + more + 1 for at, name in enumerate(sorted(factors))}
        loaded = loader.load(str(source), ["kv_tell"], settings)
        try:
            for name, of_map in SIZED.items():
                entries = loaded.read_array(name, np.dtype(np.uint64))
                assert len(entries) == math.prod(settings[factor] for factor in of_map), name
        finally:
            loaded.close()
    assert len(compilations) == 1


def test_two_processes_compile_once(source: Path, compilations: list[Path]) -> None:
    """The later one waits for the other one's object."""
    children = []
    for _ in range(2):
        child = os.fork()
        if child == 0:
            status = 99
            try:
                assert told(source) == 42
                status = len(compilations)
            finally:
                os._exit(status)
        children.append(child)
    counts = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    assert sorted(counts) == [0, 1]


def test_another_bcc_compiles_anew(
    source: Path, compilations: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    told(source)
    monkeypatch.setattr(compiler, "_bcc_version", lambda: "another")
    told(source)
    assert len(compilations) == 2


TOO_MUCH_STACK = """
int kv_tell(struct xdp_md *ctx)
{
	volatile long long words[80];

	words[ctx->data_end - ctx->data & 63] = 1;
	return words[7];
}
"""


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("int kv_tell(struct xdp_md *ctx) { return nothing; }", "undeclared identifier 'nothing'"),
        (TOO_MUCH_STACK, "BPF stack limit of 512 bytes is exceeded"),
    ],
    ids=["clang", "LLVM's end"],
)
def test_what_the_compiler_refuses_is_said(source: Path, text: str, says: str) -> None:
    source.write_text(text)
    with pytest.raises(LoadError, match=says):
        told(source)
    assert not (source.parent / "cache" / "programs").exists()


def test_a_program_that_is_not_in_the_source_is_named(source: Path) -> None:
    source.write_text("int kv_other(struct xdp_md *ctx) { return 2; }")
    with pytest.raises(LoadError, match=r"source\.c has no program kv_tell"):
        told(source)


def damage(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-9])


def open_to_all(path: Path) -> None:
    path.chmod(0o666)


def give_away(path: Path) -> None:
    os.chown(path, 12345, 12345)


@pytest.mark.parametrize("harm", [damage, open_to_all, give_away])
def test_what_is_damaged_or_not_ours_alone_is_compiled_again(
    source: Path, compilations: list[Path], harm: Callable[[Path], None]
) -> None:
    told(source)
    harm(kept(source)[0])
    assert [told(source), told(source)] == [42, 42]
    assert len(compilations) == 2


def test_the_oldest_go(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiler, "KEPT_OBJECTS_MAX", 2)
    for more in range(4):
        told(source, more)
        for age, path in enumerate(kept(source)):
            os.utime(path, (more * 10 + age, more * 10 + age))
        assert len(kept(source)) == min(more + 1, 2)


def test_without_a_place_for_it_all_works(
    source: Path, compilations: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kernel_headers, "writable_cache", lambda: source / "no directory")
    assert [told(source), told(source)] == [42, 42]
    assert len(compilations) == 2


def test_what_clang_refuses_is_not_kept(source: Path) -> None:
    source.write_text("int kv_tell(struct xdp_md *ctx) { return nothing; }")
    for _ in range(2):
        with pytest.raises(LoadError, match="nothing"):
            told(source)
    assert not (source.parent / "cache" / "programs").exists()


def test_what_the_verifier_refuses_says_why_each_time(source: Path) -> None:
    source.write_text("int kv_tell(struct xdp_md *ctx) { return *(int *)(long)ctx->data; }")
    for _ in range(2):
        with pytest.raises(LoadError, match="outside of the packet") as refused:
            told(source)
        assert "invalid access to packet" in refused.value.log


def test_a_value_has_the_map_s_length(source: Path) -> None:
    loaded = loader.load(str(source), ["kv_tell"], {"KV_MORE": 0})
    try:
        with pytest.raises(DpukvError, match="values of 8 bytes, not 4"):
            loaded.write_entry("kv_numbers", 0, bytes(4))
        with pytest.raises(DpukvError, match="entry 2 of kv_numbers"):
            loaded.write_entry("kv_numbers", 2, bytes(8))
    finally:
        loaded.close()
        loaded.close()
