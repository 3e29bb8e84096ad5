# SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
"""What a server can be told: defaults, a TOML file, and the command line over both."""

import os
import tomllib
from functools import cache
from pathlib import Path
from typing import Any, Literal

import msgspec

from dpukv_xdp import abi
from dpukv_xdp._core._native import ffi, lib
from dpukv_xdp.designs import find_design
from dpukv_xdp.errors import MissingError, UsageError

Respond = Literal["adaptive", "wait", "pipeline"]
RESPOND_WAYS: tuple[Respond, ...] = ("adaptive", "wait", "pipeline")

LOG_BYTES_MAX = 1 << 40
ITEMS_MAX = 1 << 34
GIB = 1 << 30
PROBE_ITEMS = 1 << 16


class ServerConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A server's settings; unknown ones are errors."""

    design: str = "lat"
    """A row of the table in designs.py."""
    port: int = 9800
    """UDP port of engine 0; engine e has port + e."""
    engines: int = 1
    """Processing engines, one partition and one core each."""
    engine_cpus: tuple[int, ...] = ()
    """Their cores; empty for the first ones that this process may use."""
    items: int = 1 << 20
    """Items that the index is laid out for, over all engines."""
    log_bytes: int = 0
    """Bytes of the circular logs, over all engines; 0 for twice what `items` of 8/8 bytes take."""
    huge_pages: bool = True
    """Try 2 MiB pages, then transparent huge pages; what it became is reported."""
    respond: Respond = "adaptive"
    """How responses get out: wait for each, keep `depth` parked, or whatever the load suggests."""
    depth: int = 24
    """Most batches that stay parked for a later frame to carry."""
    flush_after_us: float = 30.0
    """A response that no frame carried leaves by the sender after so long."""

    def check(self) -> None:
        """Raise UsageError for a setting that cannot work, before anything is built."""
        find_design(self.design)
        cpus = os.sched_getaffinity(0)
        _require(0 <= self.port <= 0xFFFF - self.engines + 1, f"port {self.port} is not 0 to 65535")
        _require(
            1 <= self.engines <= abi.KV_ENGINES_MAX,
            f"{self.engines} engines are not 1 to {abi.KV_ENGINES_MAX}",
        )
        _require(
            set(self.engine_cpus) <= cpus and len(self.engine_cpus) in (0, self.engines),
            f"engine cores {list(self.engine_cpus)} are not {self.engines} of the cores "
            f"{sorted(cpus)}",
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
        """Bytes that all partitions take: the index, and logs rounded up to powers of two."""
        log_bytes = 1 << (self.log_bytes_per_engine() - 1).bit_length()
        return self.engines * (int(self.items_per_engine() * _index_bytes_per_item()) + log_bytes)

    @staticmethod
    def entry_bytes(key_bytes: int, value_bytes: int) -> int:
        """Log bytes that an item takes."""
        return int(lib.kv_store_entry_bytes(key_bytes, value_bytes))

    def engine_cpu(self, engine: int) -> int:
        """The core of an engine."""
        cpus = self.engine_cpus or tuple(sorted(os.sched_getaffinity(0)))
        return cpus[engine % len(cpus)]

    def leave_engine_cpus(self) -> None:
        """Keep the calling thread off the engines' cores, where it would starve; the kernel does
        not see to that. Threads that it starts later stay off too.
        """
        cpus = os.sched_getaffinity(0)
        others = cpus - {self.engine_cpu(engine) for engine in range(self.engines)}
        os.sched_setaffinity(0, others or cpus)

    def items_per_engine(self) -> int:
        """Items that one partition is laid out for."""
        return -(-self.items // self.engines)

    def log_bytes_per_engine(self) -> int:
        """Log bytes of one partition."""
        total = self.log_bytes or 2 * self.items * self.entry_bytes(8, 8)
        return -(-total // self.engines)

    def depths(self) -> tuple[int, int]:
        """Batches that may stay parked: always, and on a busy link."""
        table = {"adaptive": (0, self.depth), "wait": (0, 0), "pipeline": (self.depth, self.depth)}
        return table[self.respond]


def load_config(path: Path | None, overrides: dict[str, Any]) -> ServerConfig:
    """Defaults, then the TOML file, then `overrides` (None means "not given"), checked.

    Raises UsageError that names the file and the path of the wrong value.
    """
    settings: dict[str, Any] = {}
    if path is not None:
        try:
            settings = tomllib.loads(path.read_text())
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


@cache
def _index_bytes_per_item() -> float:
    """Asked of the native core, which alone knows its buckets."""
    store = lib.kv_store_create(PROBE_ITEMS, 1, False)
    stats = ffi.new("struct kv_store_stats *")
    lib.kv_store_get_stats(store, stats)
    lib.kv_store_destroy(store)
    return float(stats.index_bytes) / PROBE_ITEMS


def _require(condition: bool, sentence: str) -> None:
    if not condition:
        raise UsageError(sentence)
