# SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
"""What a server can be told: defaults, a TOML file, and the command line over both."""

import math
import os
import re
import tomllib
from pathlib import Path
from typing import Any, Literal, get_args

import msgspec

from dpukv_xdp._core._native import ffi, lib
from dpukv_xdp.base.directory_url import parse_directory_url
from dpukv_xdp.base.errors import MissingError, UsageError
from dpukv_xdp.base.machine import possible_cpus
from dpukv_xdp.topology.designs import Design, find_design
from dpukv_xdp.topology.dpu_store import DpuStoreSizes
from dpukv_xdp.topology.placement import (
    SHARED_PARTITIONS,
    Placement,
    default_host_cpus,
    partition_owners,
    place_engines,
)
from dpukv_xdp.topology.profiles import Profile, find_profile
from dpukv_xdp.wire import abi

Respond = Literal["adaptive", "wait", "pipeline", "sender"]
RESPOND_WAYS: tuple[Respond, ...] = get_args(Respond)
Transport = Literal["ring", "ringbuf", "af_xdp"]
TRANSPORTS: tuple[Transport, ...] = get_args(Transport)
Frames = Literal["af_xdp", "ring", "udp", "dpdk"]
FRAMES: tuple[Frames, ...] = get_args(Frames)
FRAMES_PAST_XDP: tuple[Frames, ...] = ("udp", "dpdk")
"""Those that XDP has no part in."""
SocketMode = Literal["auto", "copy", "zero-copy"]
SOCKET_MODES: tuple[SocketMode, ...] = get_args(SocketMode)
Transfer = Literal["batch", "request"]
TRANSFERS: tuple[Transfer, ...] = get_args(Transfer)
Prepare = Literal["overlap", "serial"]
PREPARES: tuple[Prepare, ...] = get_args(Prepare)
Send = Literal["after-parse", "before-parse"]
SENDS: tuple[Send, ...] = get_args(Send)
Access = Literal["auto", "erew", "crew", "crcw"]
ACCESSES: tuple[Access, ...] = get_args(Access)
StoreKind = Literal["cache", "lossless"]
STORE_KINDS: tuple[StoreKind, ...] = get_args(StoreKind)

STORE_KIND_NAMES = {"cache": "KV_STORE_CACHE", "lossless": "KV_STORE_LOSSLESS"}
"""What configuration and kv_core.h call the same kind."""
DEFAULT_DIRECTORY = "file:/run/dpukv/directory"
BLOCK_BYTES = 8
"""In front of an item in the allocator's memory."""
VERSION_BYTES = 4
"""Of a bucket in a store that several engines use."""
LOG_BYTES_MAX = 1 << 40
PCI_ADDRESS = re.compile(r"[0-9a-f]{4,8}:[0-9a-f]{2}:[0-9a-f]{2}\.[0-7]")
ITEMS_MAX = 1 << 34
RX_DESCRIPTORS = tuple(1 << bits for bits in range(6, 14))
GIB = 1 << 30
ROOMY_LOG_BYTES = 128 << 20
"""Up to here a log has room for twice the items that were asked for, then for so much more."""
DENSE_ITEMS = 1 << 26
"""From here on the index has 4.5 items a bucket instead of 3: 192 Mi items of 8/8 bytes take 12
GiB, and one of some 150,000 finds its bucket full.
"""
DENSITY = abi.KV_ITEMS_PER_BUCKET / 4.5
SIGMAS = 6.0
"""By so many standard deviations may a partition have more keys than its share."""
NEVER_TO_HEAD = 1 << 16
"""Of struct kv_store_options: FIFO."""


class ServerConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A server's settings; unknown ones are errors."""

    design: str = "lat"
    """A row of the table in designs.py."""
    port: int = 9800
    """UDP port of engine 0; engine e has port + e."""
    engines: int = 1
    """Processing engines behind each door of the design, each with a UDP port of its own."""
    engine_cpus: tuple[int, ...] = ()
    """Host cores, dealt out in turn; empty for all that this process may use but the last one."""
    dpu_cpus: tuple[int, ...] = ()
    """Cores for the interface's receive queues, as NAPI threads; empty to leave them where the
    kernel runs them."""
    items: int = 1 << 20
    """Items that the index is laid out for, over all partitions."""
    log_bytes: int = 0
    """Bytes of the circular logs (or of the allocator's memory), over all partitions; 0 for twice
    what `items` of 8/8 bytes take, or 128 MiB more.
    """
    partitions: int = 0
    """Parts of the key space; 0 for one for each engine, and 64 in designs with two doors."""
    access: Access = "auto"
    """Who may read and write a partition: its owner only (erew), owner writes and all read (crew),
    all (crcw); auto is crcw where several doors lead to one store, else erew.
    """
    store: StoreKind = "cache"
    """What happens when memory is full: the oldest item goes (cache), or SET is refused."""
    move_to_head: float = 0.5
    """A GET refreshes an item that is farther from the log's head than this share of the log: 0 is
    LRU, 1 is FIFO. Cache only, and not in XDP's.
    """
    allow_reset: bool = False
    """Whether a RESET from the network empties the partitions of the engine that it reaches."""
    directory: str = DEFAULT_DIRECTORY
    """Where `dpukv serve` publishes its endpoints; empty for nowhere."""
    rebalance_s: float = 0.0
    """Move partitions from busy engines to idle ones every so many seconds; 0 for never."""
    huge_pages: bool = True
    """Try 2 MiB pages, then transparent huge pages; what it became is reported."""
    respond: Respond = "adaptive"
    """How responses get out: wait for each, keep `depth` parked, or whatever the load suggests."""
    transport: Transport = "ring"
    """How requests get from XDP to the host."""
    frames: Frames = "af_xdp"
    """How whole frames get to a host door: past XDP through the kernel's UDP sockets or DPDK."""
    dpdk_device: str = ""
    """PCI address of the device that DPDK takes, never tried on a real one; empty for the kernel's
    interface, behind a packet socket."""
    socket_mode: SocketMode = "auto"
    """AF_XDP with or without copying; auto tries zero-copy and says so if it cannot be had."""
    rx_descriptors: int = 2048
    """Of each AF_XDP socket or DPDK queue; a power of two. About so many datagrams wait in a UDP
    socket of the kernel's.
    """
    host_share: float = 0.0
    """Share of the keys behind the host's door, in designs with two doors; 0 for what `bench`
    measures, and half elsewhere."""
    transfer: Transfer = "batch"
    """Hand over whole batches, or (for comparison) each request and response by itself."""
    prepare: Prepare = "overlap"
    """Prepare the response while the host works, or (for comparison) before handing over."""
    send: Send = "after-parse"
    """A host door sends a burst's responses after the next burst's parsing, or before."""
    profile: str = "local"
    """A row of the table in profiles.py."""
    depth: int = 24
    """Most batches that stay parked for a later frame to carry."""
    flush_after_us: float = 30.0
    """A response that no frame carried leaves by the sender after so long."""

    def check(self) -> None:
        """Raise UsageError for a setting that cannot work, before anything is built."""
        design = find_design(self.design)
        profile = find_profile(self.profile)
        profile.check(design)
        cpus = os.sched_getaffinity(0)
        most = abi.KV_ENGINES_MAX // len(design.communication)
        _require(1 <= self.engines <= most, f"{self.engines} engines are not 1 to {most}")
        _require(
            0 <= self.port <= 0xFFFF - self.endpoint_count() + 1,
            f"port {self.port} is not 0 to {0xFFFF - self.endpoint_count() + 1}",
        )
        for name, wanted in (("engine", self.engine_cpus), ("dpu", self.dpu_cpus)):
            _require(
                set(wanted) <= cpus,
                f"{name} cores {list(wanted)} are not among the cores {sorted(cpus)}",
            )
        _require(
            self.rx_descriptors in RX_DESCRIPTORS,
            f"{self.rx_descriptors} receive descriptors are not a power of two from "
            f"{RX_DESCRIPTORS[0]} to {RX_DESCRIPTORS[-1]}",
        )
        self._check_store(design)
        self._check_frames(design)
        self._check_rebalancing(design)
        if self.directory:
            parse_directory_url(self.directory)
        _require(0 <= self.host_share < 1, f"a host share of {self.host_share:g} is not 0 to 1")
        _require(
            not profile.is_emulated or self.transport == "ring",
            f"profile {profile.name} emulates a bus on the mapped ring only: use --transport ring",
        )
        _require(
            self.transport == "ring" or self.transfer == "batch",
            f"transport {self.transport} hands over whole batches: use --transfer batch",
        )
        _require(
            self.transport != "af_xdp" or self.respond == "adaptive",
            f"over AF_XDP responses leave by AF_XDP: leave out --respond {self.respond}",
        )
        _require(1 <= self.items <= ITEMS_MAX, f"{self.items} items are not 1 to {ITEMS_MAX}")
        _require(
            0 <= self.log_bytes <= LOG_BYTES_MAX,
            f"a log of {self.log_bytes} bytes is not 0 to {LOG_BYTES_MAX}",
        )
        _require(
            0 <= self.depth <= abi.KV_PIPELINE_MAX,
            f"a depth of {self.depth} is not 0 to {abi.KV_PIPELINE_MAX}",
        )
        _require(
            1.0 <= self.flush_after_us <= 1e6,
            f"flushing after {self.flush_after_us:g} us is not 1 to 1000000",
        )

    def _check_store(self, design: Design) -> None:
        least = self.endpoint_count()
        _require(
            self.partitions == 0 or least <= self.partitions <= abi.KV_PARTITIONS_MAX,
            f"{self.partitions} partitions are not {least} (one for each engine) to "
            f"{abi.KV_PARTITIONS_MAX}",
        )
        _require(
            self.access_mode() == "erew" or len(design.processing) == 1,
            f"design {design.name} keeps its shares in separate memories, so only their owners can "
            f"serve them: use --access erew",
        )
        _require(
            self.store == "cache" or "dpu" not in design.processing,
            f"design {design.name} keeps items in BPF maps, which are always a cache: use --store "
            f"cache",
        )
        _require(
            0 <= self.move_to_head <= 1, f"a share of {self.move_to_head:g} is not from 0 to 1"
        )

    def _check_rebalancing(self, design: Design) -> None:
        _require(
            0 <= self.rebalance_s <= 3600,
            f"rebalancing every {self.rebalance_s:g} s is not from 0 to 3600",
        )
        if not self.rebalance_s:
            return
        movers = sum(place.processing == "host" for place in self.placement().engines)
        way_out = "more --engines" if "host" in design.processing else "another design"
        _require(
            movers > 1,
            f"partitions move between engines that process on the host, and design {design.name} "
            f"has {movers} of them here: use {way_out}, or leave out --rebalance-s",
        )
        _require(
            self.partition_count() > self.endpoint_count(),
            f"with {self.partition_count()} partitions, one for each engine, nothing can be evened "
            f"out: use --partitions 64, or leave out --rebalance-s",
        )

    def _check_frames(self, design: Design) -> None:
        _require(
            "host" not in design.communication
            or len(design.communication) == 1
            or self.frames not in FRAMES_PAST_XDP,
            f"design {design.name} has a door in XDP too, which takes all frames of its ports: use "
            f"--frames af_xdp or ring, or design cpu-only with {self.frames}",
        )
        _require(
            not self.dpdk_device or self.frames == "dpdk",
            f"DPDK device {self.dpdk_device} serves --frames dpdk only, not {self.frames}",
        )
        _require(
            not self.dpdk_device or PCI_ADDRESS.fullmatch(self.dpdk_device) is not None,
            f"DPDK device {self.dpdk_device!r} is no PCI address such as 0000:03:00.0",
        )

    def check_memory(self) -> None:
        """Raise MissingError if the store cannot fit into what is free here.

        Without this the kernel would find out while it fills the pages, and kill somebody for it.
        """
        needed_bytes = self.memory_bytes()
        free_bytes = free_memory_bytes()
        if needed_bytes > free_bytes:
            raise MissingError(
                f"a store of {self.items} items",
                f"{needed_bytes / GIB:.1f} GiB of memory, and {free_bytes / GIB:.1f} GiB are free: "
                f"ask for fewer items or a smaller log",
            )

    def memory_bytes(self) -> int:
        """Bytes that a server takes as soon as it is full: stores and queue pairs."""
        return self.store_bytes() + self.queue_pair_bytes()

    def queue_pair_bytes(self) -> int:
        """Bytes of the queue pairs: each engine has one with every core that the kernel may ever
        use, and one with every endpoint behind a host door.
        """
        placement = self.placement()
        sides = min(possible_cpus(), abi.KV_CPUS_MAX) + len(placement.behind("host"))
        return len(placement.engines) * sides * abi.SIZE("kv_queue_pair")

    def store_bytes(self) -> int:
        """Bytes that all stores take: indexes and logs."""
        placement = self.placement()
        in_xdp = len(placement.engines) - len(placement.native())
        needed_bytes = 0
        if placement.native():
            options = self.partition_options()
            needed_bytes += self.partition_count() * int(lib.kv_store_memory_bytes(options))
            if self.access_mode() != "erew":
                versions = self.partition_count() * options.item_count // abi.KV_ITEMS_PER_BUCKET
                needed_bytes += versions * VERSION_BYTES
        if in_xdp:
            needed_bytes += self.dpu_store_count() * self.dpu_store_sizes().memory_bytes()
        return needed_bytes

    @staticmethod
    def entry_bytes(key_bytes: int, value_bytes: int) -> int:
        """Log bytes that an item takes."""
        return int(lib.kv_store_entry_bytes(key_bytes, value_bytes))

    def item_bytes(self, key_bytes: int, value_bytes: int) -> int:
        """Bytes of log, or of the allocator's memory, that an item takes."""
        block = BLOCK_BYTES if self.store == "lossless" else 0
        return self.entry_bytes(key_bytes, value_bytes) + block

    def row(self) -> Design:
        """The design's row of the table."""
        return find_design(self.design)

    def profile_row(self) -> Profile:
        """The profile's row of its table."""
        return find_profile(self.profile)

    def placement(self) -> Placement:
        """Which engine runs where."""
        return place_engines(self.row(), self.engines, self.engine_cpus or default_host_cpus())

    def owners(self) -> tuple[int, ...]:
        """The engine that owns each partition."""
        return partition_owners(self.placement(), self.partition_count(), self.host_share or 0.5)

    def partition_count(self) -> int:
        """Partitions in use."""
        if self.partitions:
            return self.partitions
        return SHARED_PARTITIONS if len(self.row().communication) > 1 else self.endpoint_count()

    def access_mode(self) -> Access:
        """The access mode in use: never `auto`."""
        if self.access != "auto":
            return self.access
        return "crcw" if self.row().has_one_store else "erew"

    def endpoint_count(self) -> int:
        """UDP ports, from `port` on: one for each engine."""
        return self.engines * len(self.row().communication)

    def leave_engine_cpus(self) -> None:
        """Keep the calling thread off the engines' cores, where it would starve; the kernel does
        not see to that. Threads that it starts later stay off too.
        """
        cpus = os.sched_getaffinity(0)
        others = cpus - set(self.placement().host_cpus)
        os.sched_setaffinity(0, others or cpus)

    def log_bytes_total(self) -> int:
        """Log bytes of all stores, before uneven shares are allowed for."""
        items_bytes = self.items * self.item_bytes(8, 8)
        return self.log_bytes or items_bytes + min(items_bytes, ROOMY_LOG_BYTES)

    def partition_options(self) -> Any:
        """struct kv_store_options of one partition's native store."""
        options = ffi.new("struct kv_store_options *")
        items, log_bytes = self._share(self.partition_count())
        options.item_count = items if self.items < DENSE_ITEMS else int(items * DENSITY)
        options.log_bytes = log_bytes
        options.kind = getattr(lib, STORE_KIND_NAMES[self.store])
        options.want_huge = self.huge_pages
        options.move_to_head = round(self.move_to_head * NEVER_TO_HEAD)
        return options

    def dpu_store_sizes(self) -> DpuStoreSizes:
        """The stores of engines in XDP. With two doors either may get nearly all keys."""
        return DpuStoreSizes.of(*self._share(1 if self.dpu_store_count() == 1 else self.engines))

    def dpu_store_count(self) -> int:
        """Stores in XDP: one for each engine there, or one that all may use."""
        in_xdp = len(self.placement().engines) - len(self.placement().native())
        return min(in_xdp, 1) if self.access_mode() != "erew" else in_xdp

    def _share(self, parts: int) -> tuple[int, int]:
        """Items and log bytes of one of several parts: hashing deals keys out unevenly."""
        items = -(-self.items // parts)
        spare = math.ceil(SIGMAS * math.sqrt(items)) if parts > 1 else 0
        items_more = min(items + spare, self.items)
        return items_more, math.ceil(self.log_bytes_total() / parts * items_more / items)

    def depths(self) -> tuple[int, int]:
        """Batches that may stay parked: always, and on a busy link."""
        table = {
            "adaptive": (0, self.depth),
            "wait": (0, 0),
            "pipeline": (self.depth, self.depth),
            "sender": (0, 0),
        }
        return table[self.respond]


def load_config(path: Path | None, overrides: dict[str, Any], **defaults: Any) -> ServerConfig:
    """Defaults, then the TOML file, then `overrides` (None means "not given"), checked. Those in
    `defaults` differ from ServerConfig's.

    Raises UsageError that names the file and the path of the wrong value.
    """
    settings: dict[str, Any] = defaults
    if path is not None:
        try:
            settings = defaults | tomllib.loads(path.read_text())
        except OSError as error:
            raise UsageError(f"{path} cannot be read: {error.strerror}") from error
        except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
            raise UsageError(f"{path} is not TOML: {error}") from error
    settings |= {name: value for name, value in overrides.items() if value is not None}
    try:
        config = msgspec.convert(settings, ServerConfig)
    except msgspec.ValidationError as error:
        raise UsageError(f"{path or 'the settings'}: {error}") from error
    config.check()
    return config


def free_memory_bytes() -> int:
    """Memory that can be had without swapping, and huge pages that are set aside and free."""
    fields = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())

    def number(name: str) -> int:
        return int(fields.get(name, "0").split()[0])

    huge_kib = number("HugePages_Free") * number("Hugepagesize")
    return (number("MemAvailable") + huge_kib) << 10


def _require(condition: bool, sentence: str) -> None:
    if not condition:
        raise UsageError(sentence)
