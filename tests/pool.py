# SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
"""A pool of loaded BPF programs, because verifying them is most of the time that a server needs to
start.

Within the pool's block, the programs of a server or load generator that was closed are kept. The
next one with the same settings gets them, with every entry of their maps zeroed, as after loading.
"""

import mmap
from collections import defaultdict, deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any
from unittest import mock

from dpukv_xdp._core._native import lib
from dpukv_xdp.kernel import loader
from dpukv_xdp.kernel.compiler import MapPlan
from dpukv_xdp.kernel.loader import LoadedObject

SOURCES = ("kv_receive.c", "kv_load.c")
KEPT_MAX = 24
"""Most objects that are kept; the one unused for longest is closed first."""
ENTRY_BYTES = 8
"""The kernel rounds the size of an array's entry up to a multiple of this."""
_KEPT = ("kv_programs", "kv_sockets", "kv_request_rings", "kv_request_ring_model")
"""Maps that need no reset: programs stay what they are, sockets leave the map when they are closed,
and a server enters its own rings before it starts.
"""

Key = tuple[Any, ...]


class Pool:
    """Loaded objects that are not in use, by the arguments that they were loaded with."""

    def __init__(self) -> None:
        """Start empty."""
        self._load = loader.load
        self._idle: defaultdict[Key, list[_Pooled]] = defaultdict(list)
        self._order: deque[_Pooled] = deque()

    def load(
        self,
        source_name: str,
        programs: Sequence[str],
        settings: Mapping[str, int],
        tail_calls: Sequence[str] = (),
    ) -> LoadedObject:
        """Do what loader.load() does; an unused object with the same arguments is reset instead."""
        key = (source_name, *programs, None, *tail_calls, *sorted(settings.items()))
        if self._idle[key]:
            found = self._idle[key].pop()
            self._order.remove(found)
            found.reset()
            return found
        loaded = self._load(source_name, programs, settings, tail_calls)
        return _Pooled(loaded, self, key) if source_name in SOURCES else loaded

    @contextmanager
    def bypassed(self) -> Iterator[None]:
        """Load programs without the pool within the block."""
        with mock.patch.object(loader, "load", self._load):
            yield

    def keep(self, unused: "_Pooled") -> None:
        """Take an object back, and close the oldest if there are too many."""
        self._idle[unused.key].append(unused)
        self._order.append(unused)
        if len(self._order) > KEPT_MAX:
            oldest = self._order.popleft()
            self._idle[oldest.key].remove(oldest)
            oldest.unload()

    def close(self) -> None:
        """Close all objects that are not in use."""
        while self._order:
            self._order.popleft().unload()
        self._idle.clear()


class _Pooled(LoadedObject):
    """A loaded object whose close() gives it back to the pool."""

    def __init__(self, loaded: LoadedObject, pool: Pool, key: Key) -> None:
        super().__init__(loaded._maps, loaded.programs, loaded._kept)
        self._pool, self.key = pool, key

    def close(self) -> None:
        self._pool.keep(self)

    def unload(self) -> None:
        super().close()

    def reset(self) -> None:
        for name, (fd, plan) in self._maps.items():
            if name not in _KEPT:
                _zero(fd, name, plan)


def _zero(fd: int, name: str, plan: MapPlan) -> None:
    entry_bytes = -(-plan.value_bytes // ENTRY_BYTES) * ENTRY_BYTES
    if plan.flags & lib.BPF_F_MMAPABLE:
        with mmap.mmap(fd, plan.entries * entry_bytes) as memory:
            memory[:] = bytes(len(memory))
        return
    assert plan.type in (lib.BPF_MAP_TYPE_ARRAY, lib.BPF_MAP_TYPE_PERCPU_ARRAY), name
    is_per_core = plan.type == lib.BPF_MAP_TYPE_PERCPU_ARRAY
    blank = bytes(entry_bytes * (lib.libbpf_num_possible_cpus() if is_per_core else 1))
    for index in range(plan.entries):
        status = lib.bpf_map_update_elem(fd, index.to_bytes(4, "little"), blank, 0)
        assert status == 0, (name, index, status)


@contextmanager
def pooled_programs() -> Iterator[Pool]:
    """Load all programs through a pool within the block."""
    pool = Pool()
    with mock.patch.object(loader, "load", pool.load):
        try:
            yield pool
        finally:
            pool.close()
