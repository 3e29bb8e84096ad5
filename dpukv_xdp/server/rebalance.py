# SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
"""Choose partitions to move so that engines are equally busy.

MICA2 reassigns all partitions, the busiest first to the least loaded core (processor/partitions).
Here as few as possible are moved, because each move rejects some requests.
"""

from collections.abc import Sequence
from dataclasses import dataclass

IMBALANCE = 1.1
"""Ratio of the busiest engine's load to the mean below which no partition is moved."""


@dataclass(frozen=True, slots=True)
class Move:
    """A partition and its new owner."""

    partition: int
    engine: int


def plan_moves(
    owners: Sequence[int], loads: Sequence[int], movable_to: Sequence[Sequence[int]]
) -> list[Move]:
    """Return the moves that even out the engines' loads.

    `owners`, `loads` (requests in one interval) and `movable_to` (engines that may own it) have one
    element per partition. Each step chooses the move that most lowers the load of the busier of the
    two engines, until the busiest engine is within IMBALANCE of the mean or no move helps. A
    partition moves at most once.
    """
    now = list(owners)
    load_of = dict.fromkeys({engine for engines in movable_to for engine in engines} | set(now), 0)
    for partition, engine in enumerate(now):
        load_of[engine] += loads[partition]
    mean = sum(load_of.values()) / len(load_of)
    moves: list[Move] = []
    left = set(range(len(now)))
    while max(load_of.values()) > IMBALANCE * mean:
        move = _best_move(now, loads, movable_to, load_of, left)
        if move is None:
            break
        load_of[now[move.partition]] -= loads[move.partition]
        load_of[move.engine] += loads[move.partition]
        now[move.partition] = move.engine
        left.discard(move.partition)
        moves.append(move)
    return moves


def _best_move(
    owners: Sequence[int],
    loads: Sequence[int],
    movable_to: Sequence[Sequence[int]],
    load_of: dict[int, int],
    left: set[int],
) -> Move | None:
    """Return the best move off the busiest overloaded engine that has one; None if none has."""
    enough = IMBALANCE * sum(load_of.values()) / len(load_of)
    for busy in sorted(load_of, key=lambda engine: -load_of[engine]):
        if load_of[busy] <= enough:
            break
        own = [partition for partition in sorted(left) if owners[partition] == busy]
        move = _best_move_of(own, loads, movable_to, load_of, busy)
        if move is not None:
            return move
    return None


def _best_move_of(
    partitions: Sequence[int],
    loads: Sequence[int],
    movable_to: Sequence[Sequence[int]],
    load_of: dict[int, int],
    busy: int,
) -> Move | None:
    """Return the move off an engine after which the busier of both engines has the least load.

    None if no move lowers that load.
    """
    best: tuple[tuple[int, int], Move] | None = None
    for partition in partitions:
        for engine in movable_to[partition]:
            busier = max(load_of[busy] - loads[partition], load_of[engine] + loads[partition])
            merit = (busier, loads[partition])  # on a tie, move the smaller partition
            if busier < load_of[busy] and (best is None or merit < best[0]):
                best = (merit, Move(partition, engine))
    return best[1] if best else None
