# SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
"""The mapping of designs to engines, doors and cores, and of keys to engines."""

import os
from collections import Counter
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from dpukv_xdp.topology.designs import DESIGNS
from dpukv_xdp.topology.placement import (
    SHARED_PARTITIONS,
    Placement,
    default_host_cpus,
    owners_of_hashes,
    partition_owners,
    partition_table,
    place_engines,
)
from dpukv_xdp.wire import abi

CORES = (10, 11, 12)
HASHES = st.lists(st.integers(0, 2**64 - 1), min_size=1, max_size=50)

# Two engines per door: door, processing, and the core with one, two and three host cores.
PLACED: dict[str, list[tuple[str, str, tuple[Any, Any, Any]]]] = {
    "cpu-only": [("host", "host", (10, 10, 10)), ("host", "host", (10, 11, 11))],
    "dpu-only": [("dpu", "dpu", (None, None, None))] * 2,
    "lat": [("dpu", "host", (10, 10, 10)), ("dpu", "host", (10, 11, 11))],
    "sav": [("dpu", "host", (10, 10, 10))] * 2,
    "dual": [
        ("dpu", "host", (10, 10, 10)),
        ("dpu", "host", (10, 10, 10)),
        ("host", "host", (10, 11, 11)),
        ("host", "host", (10, 10, 12)),
    ],
    "shrd": [
        ("dpu", "dpu", (None, None, None)),
        ("dpu", "dpu", (None, None, None)),
        ("host", "host", (10, 10, 10)),
        ("host", "host", (10, 11, 11)),
    ],
    "inverse": [("host", "dpu", (10, 10, 10)), ("host", "dpu", (10, 11, 11))],
}
CORES_WANTED = {
    "cpu-only": 2, "dpu-only": 0, "lat": 2, "sav": 1, "dual": 3, "shrd": 2, "inverse": 2,
}  # fmt: skip


def test_every_row_is_tested() -> None:
    assert set(PLACED) == set(CORES_WANTED) == set(DESIGNS)


# ---- Engines to cores


@pytest.mark.parametrize("cores", [1, 2, 3])
@pytest.mark.parametrize("name", DESIGNS)
def test_two_engines_behind_each_door(name: str, cores: int) -> None:
    placement = place_engines(DESIGNS[name], 2, CORES[:cores])
    placed = [(place.door, place.processing, place.cpu) for place in placement.engines]
    expected = [(door, processing, cpus[cores - 1]) for door, processing, cpus in PLACED[name]]
    assert placed == expected
    assert [place.engine for place in placement.engines] == list(range(len(expected)))
    used = {cpu for _, _, cpu in expected} - {None}
    assert sorted(placement.host_cpus) == sorted(used)
    assert len(placement.notes) == (CORES_WANTED[name] > cores)
    for note in placement.notes:
        assert f"{CORES_WANTED[name]} engines" in note
        assert f"share {cores}: " + ", ".join(map(str, CORES[:cores])) in note


@pytest.mark.parametrize("name", DESIGNS)
def test_doors_part_the_engines(name: str) -> None:
    placement = place_engines(DESIGNS[name], 3, CORES)
    behind = [placement.behind(door) for door in DESIGNS[name].communication]
    assert [len(places) for places in behind] == [3] * len(behind)
    assert sum(behind, ()) == placement.engines
    assert placement.native() == tuple(p for p in placement.engines if p.cpu is not None)


@pytest.mark.parametrize("name", DESIGNS)
def test_one_engine_behind_each_door_of_one_core(name: str) -> None:
    """The smallest machine runs every design; engines share a core only for lack of spare ones."""
    placement = place_engines(DESIGNS[name], 1, CORES[:1])
    assert {place.cpu for place in placement.engines} <= {None, CORES[0]}
    assert bool(placement.notes) == (CORES_WANTED[name] == 3)


def test_the_last_core_is_left_to_the_nic(monkeypatch: pytest.MonkeyPatch) -> None:
    for allowed, wanted in (({3}, (3,)), ({1, 3}, (1,)), ({0, 2, 5, 7}, (0, 2, 5))):
        monkeypatch.setattr(os, "sched_getaffinity", lambda _, cpus=allowed: cpus)
        assert default_host_cpus() == wanted


# ---- Keys to engines


def placement_of(name: str, engines: int) -> Placement:
    return place_engines(DESIGNS[name], engines, CORES)


@pytest.mark.parametrize("engines", [1, 2, abi.KV_ENGINES_MAX])
@pytest.mark.parametrize("name", [n for n, row in DESIGNS.items() if len(row.communication) == 1])
def test_behind_one_door_each_engine_owns_one_partition(name: str, engines: int) -> None:
    for host_share in (0.01, 0.5, 0.99):
        assert partition_owners(placement_of(name, engines), engines, host_share) == tuple(
            range(engines)
        )


@pytest.mark.parametrize("engines", [1, 2, 3, abi.KV_ENGINES_MAX // 2])
@pytest.mark.parametrize("host_share", [0.25, 0.3, 0.5, 0.75])
@pytest.mark.parametrize("name", [n for n, row in DESIGNS.items() if len(row.communication) == 2])
def test_two_doors_share_the_keys(name: str, host_share: float, engines: int) -> None:
    owners = partition_owners(placement_of(name, engines), SHARED_PARTITIONS, host_share)
    assert len(owners) == SHARED_PARTITIONS <= abi.KV_PARTITIONS_MAX
    counts = Counter(owners)
    assert set(counts) == set(range(2 * engines))
    shares = [[counts[door * engines + index] for index in range(engines)] for door in (0, 1)]
    assert sum(shares[1]) == round(host_share * SHARED_PARTITIONS)
    for within in shares:
        assert max(within) - min(within) <= 1
    doors = [owner >= engines for owner in owners]
    for first in range(SHARED_PARTITIONS):
        run = [doors[(first + index) % SHARED_PARTITIONS] for index in range(8)]
        assert len(set(run)) == 2, "any run of hashes meets both doors"


@pytest.mark.parametrize("engines", [1, 3, abi.KV_ENGINES_MAX // 2])
@pytest.mark.parametrize(("host_share", "side"), [(1e-9, 1), (1 - 1e-9, 0)])
def test_no_engine_goes_without_keys(host_share: float, side: int, engines: int) -> None:
    owners = partition_owners(placement_of("shrd", engines), SHARED_PARTITIONS, host_share)
    counts = Counter(owners)
    assert [counts[side * engines + index] for index in range(engines)] == [1] * engines
    assert sum(counts.values()) == SHARED_PARTITIONS


@pytest.mark.parametrize("doors", [1, 2])
@pytest.mark.parametrize(("step", "moved"), [(-0.6, -1), (-0.4, 0), (0, 0), (0.4, 0), (0.6, 1)])
def test_a_share_is_rounded_to_whole_partitions(doors: int, step: float, moved: int) -> None:
    owners = partition_owners(
        placement_of("dual", doors), SHARED_PARTITIONS, (20 + step) / SHARED_PARTITIONS
    )
    assert sum(owner >= doors for owner in owners) == 20 + moved


@given(
    hashes=HASHES,
    owners=st.lists(
        st.integers(0, abi.KV_ENGINES_MAX - 1), min_size=1, max_size=abi.KV_PARTITIONS_MAX
    ).map(tuple),
)
@example(hashes=[0, 2**48 - 1, 2**48, 2**63, 2**64 - 1], owners=(0, 1, 2))
@example(hashes=[2**64 - 1], owners=tuple(range(16)) * 16)
def test_owners_of_hashes_are_those_of_the_plain_formula(
    hashes: list[int], owners: tuple[int, ...]
) -> None:
    found = owners_of_hashes(owners, np.array(hashes, np.uint64))
    assert found.tolist() == [owners[(key_hash >> 48) % len(owners)] for key_hash in hashes]


@pytest.mark.parametrize("flags", [(0, 0, 0), (1, 0, 0), (1, 1, 0), (0, 0, 1)])
@pytest.mark.parametrize("partitions", [1, SHARED_PARTITIONS, abi.KV_PARTITIONS_MAX])
def test_the_table_says_the_same(partitions: int, flags: tuple[int, int, int]) -> None:
    owners = tuple(index % 5 for index in range(partitions))
    read, write, reset = map(bool, flags)
    (table,) = partition_table(
        owners, concurrent_read=read, concurrent_write=write, reset_allowed=reset
    )
    assert table["partitions"] == partitions
    names = ("concurrent_read", "concurrent_write", "reset_allowed")
    assert tuple(int(table[name]) for name in names) == flags
    assert tuple(table["owner"][:partitions]) == owners
    assert not table["owner"][partitions:].any()
