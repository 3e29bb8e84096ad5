# SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
"""A server's settings: their names, types and defaults, and how they are read from a TOML file and
from the command line.

`validation` says which settings can work, `applies` which have an effect, `sizing` how much memory
they take.
"""

import tomllib
from pathlib import Path
from typing import Any, Literal, get_args

import msgspec

from dpukv_xdp.base.errors import UsageError
from dpukv_xdp.topology.designs import Design, find_design
from dpukv_xdp.topology.placement import (
    SHARED_PARTITIONS,
    Placement,
    default_host_cpus,
    partition_owners,
    place_engines,
)
from dpukv_xdp.topology.profiles import Profile, find_profile
from dpukv_xdp.topology.ranges import flag_of

Respond = Literal["adaptive", "wait", "pipeline", "sender"]
RESPOND_WAYS: tuple[Respond, ...] = get_args(Respond)
WhenSilent = Literal["reject", "pass"]
WHEN_SILENT: tuple[WhenSilent, ...] = get_args(WhenSilent)
WhenKilled = Literal["detach", "keep"]
WHEN_KILLED: tuple[WhenKilled, ...] = get_args(WhenKilled)
Transport = Literal["ring", "ringbuf", "af_xdp"]
TRANSPORTS: tuple[Transport, ...] = get_args(Transport)
Frames = Literal["af_xdp", "ring", "udp", "dpdk"]
FRAMES: tuple[Frames, ...] = get_args(Frames)
FRAMES_PAST_XDP: tuple[Frames, ...] = ("udp", "dpdk")
"""Ways on which frames bypass our XDP programs."""
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
StoreKind = Literal["cache", "lossless", "inline"]
STORE_KINDS: tuple[StoreKind, ...] = get_args(StoreKind)

DEFAULT_DIRECTORY = "file:/run/dpukv/directory"


class ServerConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The settings of one server. Reading an unknown setting raises an error."""

    design: str = "lat"
    """Name of a row of the table in designs.py."""
    port: int = 9800
    """UDP port of engine 0; engine e listens on port + e."""
    engines: int = 1
    """Processing engines behind each door of the design; each has a UDP port of its own."""
    engine_cpus: tuple[int, ...] = ()
    """Host cores, assigned to the engines in turn; empty for all cores that this process may use
    except the last one."""
    dpu_cpus: tuple[int, ...] = ()
    """Cores for the NAPI threads of the interface's receive queues; empty to leave the queues to
    softirqs on the cores that the kernel chooses."""
    items: int = 1 << 20
    """Items for which the index is sized, over all partitions."""
    log_bytes: int = 0
    """Bytes of the circular logs (lossless: of the allocators' memory) over all partitions. 0 takes
    twice the bytes of `items` items of 8/8 bytes, but at most 128 MiB more than their bytes; an
    inline store, which has no such items in its log, takes 64 MiB, or 1.5 bytes for each of
    `items` if that is more.
    """
    partitions: int = 0
    """Parts of the key space; 0 for one per engine, and for 64 in designs with two doors."""
    access: Access = "auto"
    """Engines that may use a partition: its owner only (erew), the owner to write and all to read
    (crew), or all (crcw). auto is crcw where several doors lead to one store, erew otherwise.
    """
    store: StoreKind = "cache"
    """Kind of store: MICA's cache, which evicts the oldest items; lossless, which refuses SETs when
    it is full; inline, a cache that keeps items of at most 8/8 bytes in the lines of its index.
    """
    move_to_head: float = 0.5
    """Distance from the log's head, as a share of the log, beyond which a GET moves an item to the
    head: 0 is LRU, 1 is FIFO. For caches on the host; a store in XDP never moves items.
    """
    allow_reset: bool = False
    """Whether a RESET from the network empties the partitions of the engine that receives it."""
    directory: str = DEFAULT_DIRECTORY
    """URL of the directory in which `dpukv serve` publishes its endpoints; empty for none."""
    rebalance_s: float = 0.0
    """Seconds between moves of partitions from busy engines to idle ones; 0 for never."""
    huge_pages: bool = True
    """Try 2 MiB pages for stores on the host, then transparent huge pages; the result is reported.
    """
    respond: Respond = "adaptive"
    """How XDP sends responses: wait for each, keep `depth` batches parked, choose between the two
    by the load, or leave all to the sender."""
    transport: Transport = "ring"
    """How requests get from XDP to the host."""
    frames: Frames = "af_xdp"
    """How whole frames get to a host door. udp and dpdk bypass XDP."""
    dpdk_device: str = ""
    """PCI address of the device that DPDK drives (never tried on a real one); empty for a packet
    socket on the kernel's interface."""
    socket_mode: SocketMode = "auto"
    """AF_XDP with or without copying; auto tries zero-copy, and reports when it is refused."""
    rx_descriptors: int = 2048
    """Receive descriptors per AF_XDP socket or DPDK queue, a power of two. A UDP socket's receive
    buffer holds about as many datagrams.
    """
    host_share: float = 0.0
    """Share of the keys behind the host's door in designs with two doors. 0 lets `bench` measure
    the best share; elsewhere it means half."""
    transfer: Transfer = "batch"
    """Unit of a hand-over between XDP and the host: a batch, or (for comparison) a request."""
    prepare: Prepare = "overlap"
    """Prepare the response while the host works, or (for comparison) before the hand-over."""
    send: Send = "after-parse"
    """When a host door sends a burst's responses: after or before it parses the next burst."""
    profile: str = "local"
    """Name of a row of the table in profiles.py."""
    depth: int = 24
    """Most batches that stay parked until a later frame carries their responses."""
    flush_after_us: float = 30.0
    """Microseconds after which the sender sends a response that no frame has carried."""
    silent_after_ms: float = 80.0
    """Milliseconds without a heartbeat after which XDP takes an engine for dead or stopped."""
    when_silent: WhenSilent = "reject"
    """What XDP does with requests for such an engine: answer REJECTED, or pass their frames to the
    kernel's stack, which refuses them by ICMP unless another program listens on the port."""
    when_killed: WhenKilled = "detach"
    """What becomes of the XDP programs when the server's process is killed: the kernel detaches
    them at once, or they keep running, so that engines in XDP go on serving, and frames for engines
    on the host are passed to the kernel's stack."""

    restart: bool = False
    """Whether `dpukv serve` starts a killed server again, with the stores that it left."""

    def row(self) -> Design:
        """Return the design's row of the table."""
        return find_design(self.design)

    def profile_row(self) -> Profile:
        """Return the profile's row of the table."""
        return find_profile(self.profile)

    def placement(self) -> Placement:
        """Return the core, the door and the port of each engine."""
        return place_engines(self.row(), self.engines, self.engine_cpus or default_host_cpus())

    def owners(self) -> tuple[int, ...]:
        """Return the engine that owns each partition."""
        return partition_owners(self.placement(), self.partition_count(), self.host_share or 0.5)

    def partition_count(self) -> int:
        """Return the number of partitions in use."""
        if self.partitions:
            return self.partitions
        return SHARED_PARTITIONS if len(self.row().communication) > 1 else self.endpoint_count()

    def access_mode(self) -> Access:
        """Return the access mode in use, which is never `auto`."""
        if self.access != "auto":
            return self.access
        return "crcw" if self.row().has_one_store else "erew"

    def endpoint_count(self) -> int:
        """Return the number of UDP ports, from `port` on: one per engine."""
        return self.engines * len(self.row().communication)

    def depths(self) -> tuple[int, int]:
        """Return how many batches may always stay parked, and how many on a busy link."""
        table = {
            "adaptive": (0, self.depth),
            "wait": (0, 0),
            "pipeline": (self.depth, self.depth),
            "sender": (0, 0),
        }
        return table[self.respond]

    def changed(self) -> frozenset[str]:
        """Return the names of the settings that differ from their defaults."""
        own, default = msgspec.structs.asdict(self), msgspec.structs.asdict(ServerConfig())
        return frozenset(name for name, value in own.items() if value != default[name])


def option_words(name: str, value: Any) -> list[str]:
    """Return a setting as the words that a user types for it."""
    flag = flag_of(name)
    if isinstance(value, bool):
        return [flag if value else f"--no-{flag.removeprefix('--')}"]
    return [flag, ",".join(map(str, value)) if isinstance(value, tuple) else str(value)]


def read_settings(path: Path) -> dict[str, Any]:
    """Return the settings in a TOML file, not yet converted. Raises UsageError."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}") from error
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise UsageError(f"{path} is not TOML: {error}") from error


def load_config(path: Path | None, overrides: dict[str, Any], **defaults: Any) -> ServerConfig:
    """Return the defaults, changed by the TOML file, changed by `overrides` that are not None.

    `defaults` replace ServerConfig's own. The result is converted, but not checked: see
    validation.check(). Raises UsageError with the file's name and the path of a value of the wrong
    type.
    """
    settings = defaults | (read_settings(path) if path is not None else {})
    settings |= {name: value for name, value in overrides.items() if value is not None}
    try:
        return msgspec.convert(settings, ServerConfig)
    except msgspec.ValidationError as error:
        raise UsageError(f"{path or 'the settings'}: {error}") from error
