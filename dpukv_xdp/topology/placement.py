# SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
"""Map a design's columns to this machine: the port, the door and the core of each engine.

Engines are numbered door by door, in the order of the design's `communication`; engine e answers on
the server's port + e. Nothing here knows a design's name.
"""

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

from dpukv_xdp.topology.designs import Design, Place
from dpukv_xdp.wire import abi

if TYPE_CHECKING:  # importing numpy takes longer than `dpukv get`
    import numpy as np
    import numpy.typing as npt

SHARED_PARTITIONS = 64
"""Partitions of designs with two doors: the grain in which their share of the keys can be set."""
SPREAD = 37
"""Stride through the partition table that separates neighbours."""


@dataclass(frozen=True, slots=True)
class EnginePlace:
    """One processing engine, its door and its core."""

    engine: int
    door: Place
    """Place where frames for its port are parsed."""
    processing: Place
    cpu: int | None
    """Core of its native thread; None if it is part of XDP."""


@dataclass(frozen=True, slots=True)
class Placement:
    """The places of all engines of a server."""

    engines: tuple[EnginePlace, ...]
    host_cpus: tuple[int, ...]
    """Cores that run native threads."""
    notes: tuple[str, ...]
    """A sentence for each core that has to be shared."""

    def behind(self, door: Place) -> tuple[EnginePlace, ...]:
        """Return the engines behind a door."""
        return tuple(place for place in self.engines if place.door == door)

    def native(self) -> tuple[EnginePlace, ...]:
        """Return the engines that have a native thread."""
        return tuple(place for place in self.engines if place.cpu is not None)

    def leave_host_cpus(self) -> None:
        """Keep the calling thread, and threads that it starts later, off the engines' cores.

        Engines poll with a higher priority, and the kernel does not move a thread that they starve.
        """
        cpus = os.sched_getaffinity(0)
        os.sched_setaffinity(0, cpus - set(self.host_cpus) or cpus)


def place_engines(design: Design, engines_per_door: int, host_cpus: tuple[int, ...]) -> Placement:
    """Assign the engines of a design to `host_cpus`, from its beginning.

    With many-to-one pairing all engines behind the DPU's door share the first core, and a host
    door's engines have the cores after it. Otherwise each engine has the next core. Where there are
    too few cores, engines share them, and a note says so.
    """
    engines: list[EnginePlace] = []
    next_core = 0
    for door in design.communication:
        processing = design.processing_of(door)
        shares_core = design.pairing == "many-to-one" and door != processing
        for _ in range(engines_per_door):
            in_xdp = door == processing == "dpu"
            cpu = None if in_xdp else host_cpus[next_core % len(host_cpus)]
            engines.append(EnginePlace(len(engines), door, processing, cpu))
            next_core += not in_xdp and not shares_core
        next_core += shares_core
    cpus = tuple(dict.fromkeys(place.cpu for place in engines if place.cpu is not None))
    notes = []
    if next_core > len(host_cpus):
        notes.append(
            f"{next_core} engines want host cores of their own and share {len(host_cpus)}: "
            f"{', '.join(map(str, host_cpus))}"
        )
    return Placement(tuple(engines), cpus, tuple(notes))


def default_host_cpus() -> tuple[int, ...]:
    """Return the cores that this process may use except the last one, which is left to the NIC and
    the client; a single core is returned as it is.
    """
    cpus = sorted(os.sched_getaffinity(0))
    return tuple(cpus[:-1] or cpus)


def partition_owners(placement: Placement, partitions: int, host_share: float) -> tuple[int, ...]:
    """Return the engine that owns each partition.

    With one door, partitions are assigned in turn. With two, the host door's engines share
    `host_share` of them and the DPU door's engines the rest; each engine gets at least one.
    """
    doors = [placement.behind(door) for door in ("dpu", "host")]
    if not all(doors):
        return tuple(index % len(placement.engines) for index in range(partitions))
    host_partitions = round(host_share * partitions)
    fewest, most = len(doors[1]), partitions - len(doors[0])
    host_partitions = min(max(host_partitions, fewest), most)
    counts = (partitions - host_partitions, host_partitions)
    owners: list[int] = []
    for places, count in zip(doors, counts, strict=True):
        owners += [places[index % len(places)].engine for index in range(count)]
    # Spread each door's partitions over the table, so that any range of hashes uses both doors.
    order = sorted(range(partitions), key=lambda partition: partition * SPREAD % partitions)
    return tuple(owners[partition] for partition in order)


def owners_of_hashes(
    owners: tuple[int, ...], hashes: "npt.NDArray[np.uint64]"
) -> "npt.NDArray[np.intp]":
    """Return the engine of each key hash: KV_PARTITION of bpf/abi/partitions.h, then the table."""
    import numpy as np

    partitions = (hashes >> np.uint64(48)) % np.uint64(len(owners))
    return np.array(owners, dtype=np.intp)[partitions.astype(np.intp)]


def door_owners(placement: Placement, door: Place, partitions: int) -> tuple[int, ...]:
    """Return the engine that owns each partition when all partitions are behind one door."""
    places = placement.behind(door)
    return tuple(places[index % len(places)].engine for index in range(partitions))


def partition_table(
    owners: tuple[int, ...],
    *,
    concurrent_read: bool,
    concurrent_write: bool,
    reset_allowed: bool = False,
) -> "npt.NDArray[np.void]":
    """Return struct kv_partition_table as an array of one element."""
    import numpy as np

    table = np.zeros(1, abi.dtype("kv_partition_table"))
    table["partitions"] = len(owners)
    table["concurrent_read"] = concurrent_read
    table["concurrent_write"] = concurrent_write
    table["reset_allowed"] = reset_allowed
    table["owner"][0, : len(owners)] = owners
    return table
