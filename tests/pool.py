# SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
"""Pools of what takes a test long to make: loaded BPF programs, and labs."""

import mmap
import struct
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from typing import Any
from unittest import mock

import msgspec
from pyroute2 import IPRoute
from pyroute2.ethtool.ioctl import IoctlEthtool

from dpukv_xdp._core._native import lib
from dpukv_xdp.base.errors import UsageError
from dpukv_xdp.base.processes import is_alive
from dpukv_xdp.kernel import loader, nic
from dpukv_xdp.kernel.compiler import MapPlan
from dpukv_xdp.kernel.loader import LoadedObject
from dpukv_xdp.kernel.namespaces import in_namespace
from dpukv_xdp.kernel.veth import End
from dpukv_xdp.lab.lab import Lab

# ---- Programs ------------------------------------------------------------------------------------

SOURCES = ("kv_receive.c", "kv_load.c")
"""Sources whose programs are kept: those of servers and of load generators."""
PROGRAMS_KEPT_MAX = 24
"""Most objects that are kept; the one unused for longest is unloaded first."""
ENTRY_BYTES = 8
"""The kernel rounds the size of an array's entry up to a multiple of this."""
NEVER_ZEROED = ("kv_programs", "kv_sockets", "kv_request_rings", "kv_request_ring_model")
"""Maps that need no reset: programs stay what they are, sockets leave the map when they are closed,
and a server enters its own rings before it starts.
"""
Key = tuple[Any, ...]


class Programs(ExitStack):
    """Loaded objects that are not in use, because verifying programs is most of the time that a
    server needs to start.

    An object that a server or load generator closes is kept. The next one with the same settings
    gets it, with every entry of its maps zeroed, as after loading.
    """

    def __init__(self) -> None:
        """Start empty; the end of the block unloads what is kept."""
        super().__init__()
        self._load = loader.load
        self._idle: deque[_Kept] = deque()
        self.callback(self._unload_all)

    @contextmanager
    def in_use(self) -> Iterator[None]:
        """Load programs through the pool within the block."""
        with mock.patch.object(loader, "load", self.load):
            yield

    @contextmanager
    def bypassed(self) -> Iterator[None]:
        """Load programs without the pool within the block."""
        with mock.patch.object(loader, "load", self._load):
            yield

    def load(
        self,
        source_name: str,
        programs: Sequence[str],
        settings: Mapping[str, int],
        tail_calls: Sequence[str] = (),
        kept_maps: Mapping[str, int] = loader.NO_MAPS,
    ) -> LoadedObject:
        """Do what loader.load() does; an unused object with the same arguments is reset instead."""
        if kept_maps:
            return self._load(source_name, programs, settings, tail_calls, kept_maps)
        key = (source_name, *programs, None, *tail_calls, *sorted(settings.items()))
        found = next((kept for kept in self._idle if kept.key == key), None)
        if found is not None:
            self._idle.remove(found)
            found.reset()
            return found
        loaded = self._load(source_name, programs, settings, tail_calls)
        return _Kept(loaded, self, key) if source_name in SOURCES else loaded

    def take_back(self, unused: "_Kept") -> None:
        """Keep an object, and unload the oldest if there are too many."""
        self._idle.append(unused)
        if len(self._idle) > PROGRAMS_KEPT_MAX:
            self._idle.popleft().unload()

    def _unload_all(self) -> None:
        while self._idle:
            self._idle.popleft().unload()


class _Kept(LoadedObject):
    """A loaded object whose close() gives it back to the pool."""

    def __init__(self, loaded: LoadedObject, pool: Programs, key: Key) -> None:
        super().__init__(loaded._maps, loaded.programs, loaded._kept)
        self._pool, self.key = pool, key

    def close(self) -> None:
        self._pool.take_back(self)

    def unload(self) -> None:
        super().close()

    def reset(self) -> None:
        for name, (fd, plan) in self._maps.items():
            if name not in NEVER_ZEROED:
                _zero(fd, name, plan)


def _zero(fd: int, name: str, plan: MapPlan) -> None:
    entry_bytes = -(-plan.value_bytes // ENTRY_BYTES) * ENTRY_BYTES
    if plan.flags & lib.BPF_F_MMAPABLE:
        with mmap.mmap(fd, plan.entries * entry_bytes) as memory:
            memory[:] = bytes(len(memory))
        return
    assert plan.type in (lib.BPF_MAP_TYPE_ARRAY, lib.BPF_MAP_TYPE_PERCPU_ARRAY), name
    cores = lib.libbpf_num_possible_cpus() if loader._is_per_core(plan) else 1
    blank = bytes(cores * entry_bytes)
    for index in range(plan.entries):
        status = lib.bpf_map_update_elem(fd, struct.pack("=I", index), blank, 0)
        assert status == 0, (name, index, status)


# ---- Labs ----------------------------------------------------------------------------------------


class Labs(ExitStack):
    """Labs that are not in use. A lab is kept if its test left it as Lab.up() makes it."""

    def __init__(self) -> None:
        """Start empty; the end of the block takes down what is kept."""
        super().__init__()
        self._idle: dict[Key, tuple[Lab, Any]] = {}
        """A lab, and its state when it was made, by the settings of Lab.up()."""
        self.callback(self._take_down_all)

    @contextmanager
    def lent(self, **settings: int) -> Iterator[Lab]:
        """Yield a lab with these settings."""
        key = tuple(sorted(settings.items()))
        found = self._idle.pop(key, None)
        if found is None:
            lab = Lab.up(**settings)
            found = lab, state_of(lab)
        lab, state = found
        try:
            yield lab
        except BaseException:  # a failed test says nothing about the state of its lab
            lab.down()
            raise
        if state_of(lab) == state and key not in self._idle:
            self._idle[key] = found
        else:
            lab.down()

    def _take_down_all(self) -> None:
        while self._idle:
            self._idle.popitem()[1][0].down()


def state_of(lab: Lab) -> Any:
    """Return all of a lab that a test may change; None if the lab is down."""
    alive = tuple(filter(is_alive, lab.record.processes))
    record = msgspec.structs.replace(lab.record, processes=alive)
    try:
        return record, [_state_of_end(end) for end in (lab.server, lab.client)]
    except (UsageError, OSError):  # a namespace or an interface is gone
        return None


def _state_of_end(end: End) -> Any:
    with in_namespace(end.namespace), IPRoute() as netlink:
        links = [
            (
                link.get_attr("IFLA_IFNAME"),
                link["flags"],
                *(link.get_attr(f"IFLA_{name}") for name in ("MTU", "ADDRESS", "OPERSTATE")),
                *((each.name, each.mode) for each in nic.programs(link["index"])),
            )
            for link in netlink.get_links()
        ]
        addresses = [each.get_attr("IFA_LOCAL") for each in netlink.get_addr()]
        neighbours = [
            (each.get_attr("NDA_DST"), each.get_attr("NDA_LLADDR"))
            for each in netlink.get_neighbours()
        ]
        with closing(IoctlEthtool(end.interface)) as ethtool:
            features = ethtool.get_features()
            active = [name for name in features.keys() if features.is_active(name)]  # noqa: SIM118
    return links, addresses, neighbours, active
