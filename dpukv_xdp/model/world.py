# SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
"""The simulated machine of the event model, in simpy: cores that poll duties, bus, wire, counters.

The unit of work is the batch: some packets that travel together. Times are in nanoseconds.
"""

import math
import random
from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from functools import partial
from statistics import fmean, stdev
from typing import Any

import simpy

from dpukv_xdp.model.costs import Cost, Costs
from dpukv_xdp.topology.designs import Design, Place

WARM_UP_BATCHES = 400
"""Batches answered before counting begins."""
BLOCK_BATCHES = 250
"""Batches answered in each of the blocks whose spread gives the confidence interval."""
BLOCKS_MIN = 8
BLOCKS_MAX = 20
PRECISION = 0.01
"""A run ends when half of the throughput's 95 % confidence interval, relative, is at most this."""
OPEN_PRECISION = 0.03
"""The same for the mean latency of an open loop, whose throughput is given."""
NORMAL_95 = 1.96
WAIT_MARGIN = 1.25
"""The lab's XDP waits if the time between packets is at least this many times the waiting time."""
LANES = ("bus", "wire")
STALL_NS = 1e9
"""Simulated time without an answer that shows a mistake in the model."""

Events = Generator[simpy.Event, Any, None]
Call = Callable[[simpy.Event | None], None]
"""A function to call at a simulated time; it gets the event of that time, which it may ignore."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """A design on a number of cores, and the load on it."""

    design: Design
    costs: Costs
    dpu_cores: int
    host_cores: int
    requests_per_packet: int
    window: int
    """Packets outstanding per endpoint, or of the only client if costs.client.is_in_lab."""
    host_window: int
    """Packets outstanding per endpoint behind the host's door."""
    rate_mops: float
    """Offered load of an open loop; 0 for a closed loop."""
    host_share: float
    """Share of the requests for the host's door; 0 = all endpoints get the same."""
    seed: int


@dataclass(frozen=True, slots=True)
class Observation:
    """The outcome of one run."""

    throughput_mops: float
    interval: float
    """Half of the 95 % confidence interval of the throughput, relative."""
    latencies_us: tuple[float, ...]
    """Round trip of each batch."""
    door_mops: dict[Place, float]
    """Throughput by door."""
    transfer_us: float
    """Mean time from posting a transfer to its arrival at the other side; 0 without transfers."""
    utilisation: dict[str, float]
    """Busy fraction by resource: the mean over cores; the busier direction of bus and wire."""
    peak_utilisation: dict[str, float]
    """Busy fraction of each resource's busiest core or direction."""
    sent_batches: int
    answered_batches: int
    outstanding_batches: int
    """Batches still on their way when the run ended."""


@dataclass(slots=True)
class Batch:
    """Packets that travel together, and the requests in them."""

    packets: int
    requests: int
    sent_ns: float
    answered: Callable[["Batch", simpy.Event | None], None]
    """Called with the batch when its answer has reached the client."""


class Core:
    """A core that polls its duties in turn."""

    def __init__(self, world: "World", role: str, slowdown: float = 1.0) -> None:
        self.world = world
        self.role = role
        self.slowdown = slowdown
        self.duties: list[Duty] = []
        self.busy_ns = 0.0
        self._idle: simpy.Event | None = None
        world.cores.append(self)
        world.env.process(self._run())

    def wake(self, _: simpy.Event | None = None) -> None:
        """Wake the core if it idles: a duty may be ready."""
        if self._idle is not None:
            idle, self._idle = self._idle, None
            idle.succeed()

    def spend(self, cost_ns: float) -> Events:
        """Work for a time that varies around `cost_ns` by costs.variation."""
        if cost_ns > 0:
            spent_ns = cost_ns * self.slowdown * self.world.vary()
            self.busy_ns += spent_ns
            yield simpy.Timeout(self.world.env, spent_ns)

    def _run(self) -> Events:
        while True:
            idle = True
            for duty in self.duties:
                if duty.is_ready():
                    idle = False
                    yield from duty.work()
            if idle:
                self._idle = self.world.env.event()
                yield self._idle


class Lane:
    """One direction of the bus or of the wire: messages in sequence, then a latency.

    `service_ns` is the time that the bytes take; the receiver waits for it. `spacing_ns` is the
    least time until the next message; only that message waits for it.
    """

    def __init__(self, world: "World", role: str, latency_ns: float) -> None:
        self.world = world
        self.role = role
        self.latency_ns = latency_ns
        self.busy_ns = 0.0
        self._free_at_ns = 0.0
        world.lanes.append(self)

    def send(self, service_ns: float, spacing_ns: float, deliver: Call) -> None:
        now_ns = self.world.env.now
        start_ns = self._free_at_ns if self._free_at_ns > now_ns else now_ns
        taken_ns = spacing_ns if spacing_ns > service_ns else service_ns
        self._free_at_ns = start_ns + taken_ns
        self.busy_ns += taken_ns
        delay_ns = start_ns + service_ns + self.latency_ns - now_ns
        if delay_ns > 0:
            self.world.after(delay_ns, deliver)
        else:
            deliver(None)


class Duty:
    """A kind of work that a core does whenever some of it is ready."""

    core: Core

    def is_ready(self) -> bool:
        """Return whether work is ready."""
        raise NotImplementedError

    def work(self) -> Events:
        """Do a portion of the work."""
        raise NotImplementedError


@dataclass(slots=True)
class Counts:
    """Counters since the warm-up."""

    latencies_us: list[float] = field(default_factory=list)
    block_mops: list[float] = field(default_factory=list)
    requests: int = 0
    door_requests: dict[Place, int] = field(default_factory=dict)
    transfers: int = 0
    transfers_ns: float = 0.0


class World:
    """The simulated machine of one run: clock, cores, lanes and counters."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self.costs = machine.costs
        self.env = simpy.Environment()
        self.random = random.Random(machine.seed)
        self.cores: list[Core] = []
        self.lanes: list[Lane] = []
        self.is_open = machine.rate_mops > 0
        self.sent = self.answered = self.block_requests = 0
        self.goal = self.env.event()
        self.counts = Counts()
        self.is_counting = False
        costs = self.costs
        self.wire_in = Lane(self, "wire", costs.wire_latency_us * 1e3)
        self.wire_out = Lane(self, "wire", costs.wire_latency_us * 1e3)
        self.bus_to_host = Lane(self, "bus", costs.bus.latency_us * 1e3)
        self.bus_to_dpu = Lane(self, "bus", costs.bus.latency_us * 1e3)
        # An open loop with time to wait for each response parks none.
        self.parked_transfers = 0 if self._has_time() else costs.parked_transfers
        # In a closed loop frames carry every response, so that none has to be flushed.
        self.flush_after_ns = costs.flush_after_us * 1e3 if self.is_open else 0.0
        self.store_extra = costs.shared_store if machine.design.has_one_store else Cost()
        self.window_batches = max(math.ceil(machine.window / costs.batch_packets), 1)
        self.batch_packets = max(round(machine.window / self.window_batches), 1)
        self.batch_requests = self.batch_packets * machine.requests_per_packet
        # All batches are alike.
        self.batch_wire_ns = costs.wire_ns(self.batch_packets, self.batch_requests)
        self.batch_bus_ns = costs.bus.times_ns(
            costs.packet_bytes(self.batch_packets, self.batch_requests), self.batch_requests
        )
        self._shape = 1 / costs.variation**2 if costs.variation else 0.0
        self._scale = 1 / self._shape if self._shape else 0.0

    def run(self) -> Observation:
        """Warm up, then run blocks until the confidence interval is narrow enough."""
        self._answer(WARM_UP_BATCHES)
        self.is_counting = True
        start_ns = self.env.now
        parts: list[Core | Lane] = [*self.cores, *self.lanes]
        busy_before = {id(part): part.busy_ns for part in parts}
        while len(self.counts.block_mops) < BLOCKS_MAX:
            block_start_ns = self.env.now
            requests = self._answer(BLOCK_BATCHES)
            self.counts.block_mops.append(requests / (self.env.now - block_start_ns) * 1e3)
            if len(self.counts.block_mops) >= BLOCKS_MIN and self._is_known():
                break
        elapsed_ns = self.env.now - start_ns
        shares: dict[str, list[float]] = {}
        for part in parts:
            # A lane may have accepted messages that end after the run.
            busy = min((part.busy_ns - busy_before[id(part)]) / elapsed_ns, 1.0)
            shares.setdefault(part.role, []).append(busy)
        return Observation(
            throughput_mops=self.counts.requests / elapsed_ns * 1e3,
            interval=_interval(self.counts.block_mops),
            latencies_us=tuple(self.counts.latencies_us),
            door_mops={
                side: requests / elapsed_ns * 1e3
                for side, requests in self.counts.door_requests.items()
            },
            transfer_us=self.counts.transfers_ns / max(self.counts.transfers, 1) / 1e3,
            utilisation={
                role: max(values) if role in LANES else sum(values) / len(values)
                for role, values in shares.items()
            },
            peak_utilisation={role: max(values) for role, values in shares.items()},
            sent_batches=self.sent,
            answered_batches=self.answered,
            outstanding_batches=self.sent - self.answered,
        )

    def vary(self) -> float:
        """Return a random factor with mean 1."""
        if not self._shape:
            return 1.0
        return self.random.gammavariate(self._shape, self._scale)

    def after(self, delay_ns: float, call: Call) -> None:
        """Call a function after a simulated delay."""
        simpy.Timeout(self.env, delay_ns).callbacks.append(call)

    def count(self, batch: Batch) -> None:
        """Count an answered batch."""
        self.answered += 1
        self.block_requests += batch.requests
        if self.is_counting:
            self.counts.requests += batch.requests
            self.counts.latencies_us.append((self.env.now - batch.sent_ns) / 1e3)
        if self.answered >= self._answered_goal and not self.goal.triggered:
            self.goal.succeed()

    def transferred(self, since_ns: float) -> None:
        """Count a transfer that has arrived at the other side."""
        if self.is_counting:
            self.counts.transfers += 1
            self.counts.transfers_ns += self.env.now - since_ns

    def respond(self, batches: list[Batch], side: Place) -> None:
        """Send responses onto the wire; those of the host's door cross the bus first."""
        if self.is_counting:
            requests = self.counts.door_requests
            requests[side] = requests.get(side, 0) + sum(batch.requests for batch in batches)
        for batch in batches:
            if side == "host":
                self.bus_to_dpu.send(*self.batch_bus_ns, partial(self._onto_wire, batch))
            else:
                self._onto_wire(batch)

    def to_processing(self, side: Place) -> Lane:
        """Return the bus direction that leads away from a side."""
        return self.bus_to_host if side == "dpu" else self.bus_to_dpu

    def _onto_wire(self, batch: Batch, _: simpy.Event | None = None) -> None:
        self.wire_out.send(self.batch_wire_ns, 0.0, partial(batch.answered, batch))

    def _answer(self, batches: int) -> int:
        self.block_requests = 0
        self._answered_goal = self.answered + batches
        self.goal = self.env.event()
        limit = self.env.timeout(STALL_NS)
        self.env.run(until=self.goal | limit)
        assert self.goal.triggered, "nothing is answered any more"
        return self.block_requests

    def _is_known(self) -> bool:
        """Return whether the confidence interval is narrow enough to end the run."""
        if not self.is_open:
            return _interval(self.counts.block_mops) <= PRECISION
        latencies = self.counts.latencies_us
        starts = range(0, len(latencies), BLOCK_BATCHES)
        means = [fmean(latencies[start : start + BLOCK_BATCHES]) for start in starts]
        return _interval(means) <= OPEN_PRECISION

    def _has_time(self) -> bool:
        """Return whether waiting for each response fits between an open loop's packets: the lab's
        XDP then parks nothing (bpf/base/stages.h).
        """
        machine, costs = self.machine, self.costs
        if not self.is_open or not costs.carried_by_frames:
            return False
        requests = machine.requests_per_packet
        door = (costs.dpu.receive, costs.dpu.parse, costs.dpu.prepare, costs.dpu.send)
        needed_ns = sum(stage.of(1, requests) for stage in (*door, costs.host.process))
        needed_ns += 2 * costs.bus.latency_us * 1e3
        return requests / machine.rate_mops * 1e3 > WAIT_MARGIN * needed_ns


def _interval(blocks: list[float]) -> float:
    """Return half of the 95 % confidence interval of the blocks' mean, relative to the mean."""
    return NORMAL_95 * stdev(blocks) / math.sqrt(len(blocks)) / fmean(blocks)
