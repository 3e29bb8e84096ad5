# SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
"""The load of a benchmark, and the room that it needs in the server."""

from collections.abc import Callable
from dataclasses import dataclass

import msgspec

from dpukv_xdp.base.errors import KeyValueError, OptionError
from dpukv_xdp.load.draws import DISTRIBUTIONS, GAP_MEAN_MAX_NS, Distribution
from dpukv_xdp.load.workload import WORKLOADS, Plan, frame_bytes_max, requests_per_packet_max
from dpukv_xdp.topology import ranges, sizing
from dpukv_xdp.topology.schema import ServerConfig
from dpukv_xdp.wire import abi
from dpukv_xdp.wire.codec import Endpoint

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
    stall: float = 0.0
    """Milliseconds in each KV_STALL_PERIOD_MS that the server's host cores pause."""
    queues: int = 1
    """Receive queues of the lab's interfaces."""
    mtu: int = 1500

    def check(self) -> None:
        """Raise UsageError for what cannot be measured."""
        if self.workload not in WORKLOADS:
            raise OptionError(
                "workload",
                f"--workload: there is no workload {self.workload!r}: choose one of "
                f"{', '.join(WORKLOADS)}",
            )
        if self.distribution not in DISTRIBUTIONS:
            raise OptionError(
                "distribution",
                f"--dist: there is no distribution {self.distribution!r}: choose one of "
                f"{', '.join(DISTRIBUTIONS)}",
            )
        for name in ranges.LOAD:
            if name != "rate" or self.rate:
                ranges.check(name, getattr(self, name))
        try:
            most = self.requests_per_packet_max()
        except KeyValueError as error:
            raise OptionError(
                "value_size",
                f"--key-size {self.key_size} and --value-size {self.value_size} do not fit: "
                f"{error}",
            ) from error
        if self.keys > 256**self.key_size:
            raise OptionError(
                "keys",
                f"--keys {self.keys} cannot be told apart by {self.key_size} bytes: use a larger "
                f"--key-size, or fewer keys",
            )
        if self.requests_per_packet > most:
            raise OptionError(
                "requests_per_packet",
                f"--requests-per-packet {self.requests_per_packet} is not 1 to {most}, which is "
                f"what fits with keys of {self.key_size} and values of {self.value_size} bytes: "
                f"choose a number in that range",
            )
        requests = self.requests_per_packet or most
        rate_min = 1e9 * requests / GAP_MEAN_MAX_NS
        if 0 < self.rate < rate_min:
            raise OptionError(
                "rate",
                f"--rate {self.rate:g}, with {requests} requests per packet, is too slow: use "
                f"{rate_min:g} or more, or fewer --requests-per-packet",
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
    items_bytes = options.keys * sizing.item_bytes(config, options.key_size, options.value_size)
    log_bytes = config.log_bytes or sizing.roomy_log_bytes(config, items_bytes)
    is_roomy = log_bytes >= 2 * items_bytes
    return msgspec.structs.replace(
        config,
        items=options.keys,
        log_bytes=log_bytes,
        move_to_head=config.move_to_head if is_roomy else 1.0,
    )
