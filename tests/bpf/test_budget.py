# SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
"""Every program of every build stays within its budget in bpf/budget.toml on this kernel."""

from pathlib import Path

import pytest

from dpukv_xdp.kernel.loader import Build, verified_instructions
from dpukv_xdp.ops.builds import every_build
from kernels import budget

pytestmark = pytest.mark.shares_cores

TABLE = budget.read()


@pytest.mark.parametrize("build", every_build(), ids=lambda build: build.name)
def test_a_build_keeps_to_its_row(build: Build) -> None:
    loaded = build.load()
    try:
        measured = {name: verified_instructions(fd) for name, fd in loaded.programs.items()}
    finally:
        loaded.close()
    assert budget.overruns(build.name, measured, TABLE) == []


def test_every_build_has_a_row_and_every_row_a_build() -> None:
    assert budget.rows_without_build(TABLE) == []


@pytest.mark.parametrize(
    ("measured", "expected"),
    [
        ({"kv_a": 100}, []),
        ({"kv_a": 99}, []),
        ({"kv_a": 101}, ["b: kv_a took 101 instructions, and may take 100"]),
        ({"kv_a": 100, "kv_b": 1}, ["b: kv_b has no row in budget.toml"]),
        ({}, ["b: there is no kv_a"]),
    ],
)
def test_overruns(measured: dict[str, int], expected: list[str]) -> None:
    assert budget.overruns("b", measured, {"b": {"kv_a": 100}}) == expected


def test_a_build_without_a_row_is_named() -> None:
    assert budget.overruns("c", {"kv_a": 1}, {}) == ["c: kv_a has no row in budget.toml"]


def test_builds_that_are_missing_or_too_many_are_named() -> None:
    table = {**TABLE, "of nobody": {"kv_a": 1}}
    del table["lat"]
    assert budget.rows_without_build(table) == ["lat", "of nobody"]


def test_rows_are_the_most_of_all_kernels_and_a_margin(tmp_path: Path) -> None:
    path = tmp_path / "budget.toml"
    budget.write([{"b": {"kv_a": 1000}}, {"b": {"kv_a": 2000, "kv_b": 10}}], path)
    assert budget.read(path) == {"b": {"kv_a": 2100, "kv_b": 50}}
