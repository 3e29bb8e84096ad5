# SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
"""The load of a benchmark, and the room that it needs in the server."""

from collections.abc import Callable
from dataclasses import dataclass

import msgspec

from dpukv_xdp.base.errors import UsageError
from dpukv_xdp.load.loadgen import Loop
from dpukv_xdp.load.workload import (
    DISTRIBUTIONS,
    GAP_MEAN_MAX_NS,
    WORKLOADS,
    Distribution,
    Plan,
    frame_bytes_max,
    requests_per_packet_max,
)
from dpukv_xdp.topology.config import ITEMS_MAX, ROOMY_LOG_BYTES, ServerConfig
from dpukv_xdp.wire import abi
from dpukv_xdp.wire.codec import Endpoint

SECONDS_MAX = 3600.0
RATE_MAX = 1e9
Progress = Callable[[str, float], None]
"""Report the present step and the fraction that is done."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchOptions:
    """The load to measure."""

    workload: str = "B"
    distribution: Distribution = "uniform"
    keys: int = 1 << 20
    key_size: int = 8
    value_size: int = 8
    requests_per_packet: int = 0
    """0 = as many as fit."""
    window: int = 64
    """Packets outstanding at most."""
    rate: float = 0.0
    """Requests per second of an open loop; 0 for a closed loop."""
    seconds: float = 10.0
    seed: int = 1
    queues: int = 1
    """Receive queues of the lab's interfaces."""
    mtu: int = 1500

    def check(self) -> None:
        """Raise UsageError for what cannot be measured."""
        if self.workload not in WORKLOADS:
            raise UsageError(
                f"there is no workload {self.workload!r}: choose one of {', '.join(WORKLOADS)}"
            )
        if self.distribution not in DISTRIBUTIONS:
            raise UsageError(
                f"there is no distribution {self.distribution!r}: choose one of "
                f"{', '.join(DISTRIBUTIONS)}"
            )
        if not 1 <= self.keys <= ITEMS_MAX:
            raise UsageError(f"{self.keys} keys are not 1 to {ITEMS_MAX}")
        if self.seed < 0:
            raise UsageError(f"a seed of {self.seed} is below 0")
        if not 0.1 <= self.seconds <= SECONDS_MAX:
            raise UsageError(f"{self.seconds:g} seconds are not 0.1 to {SECONDS_MAX:g}")
        if not 0 <= self.rate <= RATE_MAX:
            raise UsageError(
                f"a rate of {self.rate:g} requests per second is not 0 to {RATE_MAX:g}"
            )
        Loop(self.window).check()
        most = self.requests_per_packet_max()  # which refuses keys and values of impossible sizes
        if self.keys > 256**self.key_size:
            raise UsageError(
                f"{self.keys} keys cannot be told apart by {self.key_size} bytes: use longer keys "
                f"or fewer"
            )
        if not 0 <= self.requests_per_packet <= most:
            raise UsageError(
                f"{self.requests_per_packet} requests per packet are not 1 to {most}, which is "
                f"what fits with keys of {self.key_size} and values of {self.value_size} bytes"
            )
        requests = self.requests_per_packet or most
        rate_min = 1e9 * requests / GAP_MEAN_MAX_NS
        if 0 < self.rate < rate_min:
            raise UsageError(
                f"{self.rate:g} requests per second, {requests} per packet, are too slow: use "
                f"{rate_min:g} or more, or fewer requests per packet"
            )

    def requests_per_packet_max(self) -> int:
        """Return the most requests that fit a packet, and whose answers fit one, too."""
        return requests_per_packet_max(
            self.key_size, self.value_size, WORKLOADS[self.workload], self.packet_mtu()
        )

    def packet_mtu(self) -> int:
        """Return the MTU for packets: the kernel limits live frames below some links' MTU."""
        return min(self.mtu, abi.KV_LIVE_FRAME_MAX - abi.KV_ETH_BYTES)

    def frame_bytes_max(self) -> int:
        """Return the bytes of the longest frame that these options can cause."""
        requests = self.requests_per_packet or self.requests_per_packet_max()
        return frame_bytes_max(self.key_size, self.value_size, requests)

    def plan(self, source: Endpoint, destination: Endpoint, owners: tuple[int, ...]) -> Plan:
        """Return the generator's plan for this load."""
        requests = self.requests_per_packet or self.requests_per_packet_max()
        return Plan(
            source=source,
            destination=destination,
            workload=WORKLOADS[self.workload],
            keys=self.keys,
            requests_per_packet=requests,
            key_size=self.key_size,
            value_size=self.value_size,
            distribution=self.distribution,
            owners=owners,
            seed=self.seed,
            mtu=self.packet_mtu(),
            gap_mean_ns=1e9 * requests / self.rate if self.rate else 0.0,
        )


def replace_config(config: ServerConfig, options: BenchOptions) -> ServerConfig:
    """Return the server's settings with room for the bench's keys.

    GETs that move items to the log's head would push others out of a log that cannot hold all items
    twice; with such a log nothing is moved.
    """
    items_bytes = options.keys * config.item_bytes(options.key_size, options.value_size)
    log_bytes = config.log_bytes or items_bytes + min(items_bytes, ROOMY_LOG_BYTES)
    is_roomy = log_bytes >= 2 * items_bytes
    return msgspec.structs.replace(
        config,
        items=options.keys,
        log_bytes=log_bytes,
        move_to_head=config.move_to_head if is_roomy else 1.0,
    )
