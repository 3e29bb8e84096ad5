# SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
"""The choice of partitions to move, and moves that fail."""

import errno
import threading
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dpukv_xdp._core._native import ffi, lib
from dpukv_xdp.server.rebalance import IMBALANCE, Move, plan_moves


def loads_after(
    owners: list[int], loads: list[int], moves: list[Move], engines: int
) -> dict[int, int]:
    now = list(owners)
    for move in moves:
        now[move.partition] = move.engine
    sums = Counter(dict.fromkeys(range(engines), 0))
    for partition, engine in enumerate(now):
        sums[engine] += loads[partition]
    return dict(sums)


def test_all_on_one_engine_are_spread() -> None:
    owners, loads = [0] * 8, [100] * 8
    moves = plan_moves(owners, loads, [(0, 1)] * 8)
    assert loads_after(owners, loads, moves, 2) == {0: 400, 1: 400}
    assert len(moves) == 4


@pytest.mark.parametrize("loads", [[0, 0, 0, 0], [5, 5, 5, 5]])
def test_what_is_even_stays(loads: list[int]) -> None:
    assert plan_moves([0, 1, 0, 1], loads, [(0, 1)] * 4) == []


def test_one_hot_partition_keeps_its_engine_and_the_others_leave_it() -> None:
    owners, loads = [0, 0, 0, 1], [1000, 10, 10, 10]
    moves = plan_moves(owners, loads, [(0, 1)] * 4)
    assert {move.partition for move in moves} == {1, 2}


def test_an_engine_that_cannot_be_relieved_does_not_hold_the_others_up() -> None:
    owners, loads = [0, *[1] * 10], [1001, *[100] * 10]
    moves = plan_moves(owners, loads, [(0, 1, 2)] * 11)
    assert {owners[move.partition] for move in moves} == {1}
    assert {move.engine for move in moves} == {2}


def test_partitions_go_only_where_they_can() -> None:
    moves = plan_moves([0, 0, 0, 0], [10, 10, 10, 10], [(0, 2), (0,), (0, 2), (0,)])
    assert {(move.partition, move.engine) for move in moves} <= {(0, 2), (2, 2)}
    assert moves


@given(
    st.integers(1, 6).flatmap(
        lambda engines: st.tuples(
            st.just(engines),
            st.lists(
                st.tuples(st.integers(0, engines - 1), st.integers(0, 10**6)),
                min_size=1,
                max_size=40,
            ),
        )
    )
)
def test_moves_never_make_the_busiest_busier_and_end(
    case: tuple[int, list[tuple[int, int]]],
) -> None:
    engines, partitions = case
    owners = [owner for owner, _ in partitions]
    loads = [load for _, load in partitions]
    moves = plan_moves(owners, loads, [range(engines)] * len(owners))
    assert len({move.partition for move in moves}) == len(moves)
    before = loads_after(owners, loads, [], engines)
    after = loads_after(owners, loads, moves, engines)
    assert max(after.values()) <= max(before.values())
    mean = sum(loads) / engines
    if max(before.values()) <= IMBALANCE * mean:
        assert not moves


def test_who_does_not_let_go_in_time_keeps_the_partition() -> None:
    """The partition is not served meanwhile, so a release after half a second is too late."""
    table = ffi.new("struct kv_partition_table *")
    table.owner[3] = 1
    hosts = [ffi.new("struct kv_host *") for _ in range(2)]
    hosts[0].stop = 1  # a stopped core has released everything

    def go_on() -> None:
        hosts[1].rounds = 2

    timer = threading.Timer(0.5, go_on)
    timer.start()
    status = lib.kv_partition_move(table, 3, 0, hosts, len(hosts))
    timer.join()
    assert status == -errno.ETIMEDOUT
    assert table.owner[3] == 1
