# SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
"""The range of every number that a user can give, for options and for settings in a file alike."""

import math
from dataclasses import dataclass

from dpukv_xdp.base.errors import OptionError
from dpukv_xdp.wire import abi

MTU_MIN = 68
"""Least MTU of IPv4 in bytes (RFC 791)."""
MTU_MAX = abi.KV_FRAME_MAX - abi.offset("kv_packet_header", "ip_version_ihl")
"""Largest MTU of which a batch can use every byte."""
ITEMS_MAX = 1 << 34
LOG_BYTES_MIN = 1 << 12
"""Least bytes of one partition's log: enough for an item with the longest key and value."""
LOG_BYTES_MAX = 1 << 40
RX_DESCRIPTORS = tuple(1 << bits for bits in range(6, 14))
"""Sizes of a receive ring that AF_XDP and DPDK accept."""
SEED_MAX = (1 << 63) - 1
RATE_MAX = 1e9
"""Requests per second, far beyond what any machine answers."""
SECONDS_MIN = 0.1
"""Shortest measurement in seconds: a shorter one is mostly noise."""
SECONDS_MAX = 3600.0
STALL_MS_MAX = abi.KV_STALL_PERIOD_MS - 1
"""Longest pause of a server's host cores: some of each period is left to work."""
CORES_MAX = 256
"""Most cores of one side in the model."""
MODEL_WINDOW_MAX = 1 << 16
MODEL_REQUESTS_PER_PACKET_MAX = 64
REPEATS_MAX = 100
OPERATIONS_MAX = 1_000_000


@dataclass(frozen=True, slots=True)
class Range:
    """The values that a number may have."""

    least: float
    most: float
    unit: str = ""
    """Unit or counted thing, such as "bytes"; empty for a bare number."""
    is_whole: bool = True
    """Whether only integers are allowed."""
    is_open: bool = False
    """Whether `least` itself is excluded."""
    is_below: bool = False
    """Whether `most` itself is excluded."""
    default: tuple[float, str] | None = None
    """A value outside the range that is allowed, and its meaning."""
    cure: str = "choose a number in that range"
    """Advice to the user of a number that is out of range."""

    def holds(self, value: float) -> bool:
        """Return whether a value is allowed; never for nan and the infinities."""
        if self.default is not None and value == self.default[0]:
            return True
        above = self.least < value if self.is_open else self.least <= value
        return above and (value < self.most if self.is_below else value <= self.most)

    def __str__(self) -> str:
        above, below = "above " * self.is_open, "below " * self.is_below
        unit = f" {self.unit}" if self.unit else ""
        default = "" if self.default is None else f" (or {self.default[0]:g}: {self.default[1]})"
        return f"{above}{_text(self.least)} to {below}{_text(self.most)}{unit}{default}"


SETTINGS = {
    "port": Range(1, 0xFFFF, cure="choose a UDP port in that range"),
    "engines": Range(1, abi.KV_ENGINES_MAX),
    "items": Range(1, ITEMS_MAX),
    "log_bytes": Range(LOG_BYTES_MIN, LOG_BYTES_MAX, "bytes", default=(0, "enough for the items")),
    "partitions": Range(1, abi.KV_PARTITIONS_MAX, default=(0, "the design's usual number")),
    "move_to_head": Range(0, 1, is_whole=False, cure="give a share of the log, such as 0.5"),
    "rebalance_s": Range(0, 3600, "seconds", is_whole=False),
    "rx_descriptors": Range(
        RX_DESCRIPTORS[0], RX_DESCRIPTORS[-1], cure="choose a power of two in that range"
    ),
    "host_share": Range(
        0, 1, is_whole=False, is_below=True, cure="give a share of the keys, such as 0.3"
    ),
    "depth": Range(0, abi.KV_PIPELINE_MAX, "batches"),
    "flush_after_us": Range(1, 1e6, "microseconds", is_whole=False),
    "silent_after_ms": Range(20, 60000, "milliseconds", is_whole=False),
}
"""Ranges of ServerConfig's numbers. Limits that depend on the design are in validation.py."""

LOAD = {
    "keys": Range(1, ITEMS_MAX),
    "key_size": Range(1, abi.KV_KEY_MAX, "bytes"),
    "value_size": Range(0, abi.KV_VALUE_MAX, "bytes"),
    "requests_per_packet": Range(0, abi.KV_BATCH_MAX, cure="leave it out for as many as fit"),
    "window": Range(1, abi.KV_WINDOW_MAX, "packets"),
    "stall": Range(0, STALL_MS_MAX, "milliseconds", is_whole=False),
    "rate": Range(
        0,
        RATE_MAX,
        "requests per second",
        is_whole=False,
        is_open=True,
        cure="leave it out for a closed loop",
    ),
    "seconds": Range(SECONDS_MIN, SECONDS_MAX, is_whole=False),
    "seed": Range(0, SEED_MAX),
    "queues": Range(1, abi.KV_QUEUES_MAX, "receive queues"),
    "mtu": Range(MTU_MIN, MTU_MAX, "bytes"),
}
"""Ranges of BenchOptions' numbers, and of a lab's link."""

OTHERS = {
    "client_engines": Range(1, abi.KV_ENGINES_MAX),
    "timeout": Range(0, 3600, "seconds", is_whole=False, is_open=True),
    "look": Range(0, 60, "seconds", is_whole=False),
    "server_cores": Range(1, CORES_MAX),
    "repeats": Range(1, REPEATS_MAX),
    "operations": Range(1, OPERATIONS_MAX),
    "sizes": Range(1, abi.KV_TRANSFER_BYTES_MAX, "bytes"),
    "model_cores": Range(1, CORES_MAX, "cores"),
    "model_window": Range(1, MODEL_WINDOW_MAX, "packets"),
    "model_requests_per_packet": Range(1, MODEL_REQUESTS_PER_PACKET_MAX),
    "percent": Range(
        0, 100, "percent", is_whole=False, is_open=True, cure="give a percentage such as 90"
    ),
}
"""Ranges of the other options' numbers."""

RANGES = SETTINGS | LOAD | OTHERS


def check(name: str, value: float, flag: str | None = None) -> None:
    """Raise OptionError if a number is out of the range of that name.

    `flag` is the option as the user types it; by default it is the name with hyphens.
    """
    found = RANGES[name]
    if not found.holds(value):
        flag = flag or flag_of(name)
        raise OptionError(name, f"{flag} {_text(value)} is not {found}: {found.cure}")


def flag_of(name: str) -> str:
    """Return a setting's option as the user types it."""
    return f"--{name.replace('_', '-')}"


def _text(value: float) -> str:
    """Return whole numbers with all digits, others in six."""
    if math.isfinite(value) and value == int(value) and (isinstance(value, int) or value < 1e15):
        return str(int(value))
    return f"{value:g}"
