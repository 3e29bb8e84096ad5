# SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
"""The simulated machine of the event model, in simpy: cores that poll duties, bus, wire, counters.

The unit of work is the batch: some packets that travel together. Times are in nanoseconds.
"""

import math
import random
from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from statistics import fmean, stdev
from typing import Any

import simpy

from dpukv_xdp.model.costs import Cost, Costs
from dpukv_xdp.topology.designs import Design, Place

WARM_UP_BATCHES = 400
"""Answered before counting begins."""
BLOCK_BATCHES = 250
"""Answered in one of the blocks whose spread gives the confidence interval."""
BLOCKS_MIN = 8
BLOCKS_MAX = 20
PRECISION = 0.01
"""Half width of the 95 % confidence interval of the throughput at which a run ends."""
OPEN_PRECISION = 0.03
"""The same of the mean latency of an open loop, whose throughput is given."""
NORMAL_95 = 1.96
WAIT_MARGIN = 1.25
"""Of the time between packets over what waiting takes, from which on the lab's XDP waits."""
LANES = ("bus", "wire")
STALL_NS = 1e9
"""Simulated time without an answer after which a run is a mistake of the model."""

Events = Generator[simpy.Event, Any, None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """What runs where, and under which load."""

    design: Design
    costs: Costs
    dpu_cores: int
    host_cores: int
    requests_per_packet: int
    window: int
    """Packets outstanding: of an endpoint, or of the one client if costs.client.is_in_lab."""
    host_window: int
    """Of an endpoint behind the host's door."""
    rate_mops: float
    """Of an open loop; 0 for a closed one."""
    host_share: float
    """Of the requests, behind the host's door; 0 = the doors' endpoints are alike."""
    seed: int


@dataclass(frozen=True, slots=True)
class Observation:
    """What one run showed."""

    throughput_mops: float
    interval: float
    """Half of the 95 % confidence interval of the throughput, relative."""
    latencies_us: tuple[float, ...]
    """One for each batch."""
    door_mops: dict[Place, float]
    """What came in by each door."""
    transfer_us: float
    """From handing a transfer over to its arrival at the other side, mean; 0 if there is none."""
    utilisation: dict[str, float]
    """By resource: the mean over its cores; the busier direction of the bus and of the wire."""
    peak_utilisation: dict[str, float]
    """By resource: of its busiest core or direction."""
    sent_batches: int
    answered_batches: int
    outstanding_batches: int
    """Sent and not answered when the run ended, wherever they were found."""


@dataclass(slots=True)
class Batch:
    """Packets that travel together, and the requests in them."""

    packets: int
    requests: int
    sent_ns: float
    answered: Callable[["Batch"], None]
    """Called with the batch when its answer has reached the client."""


class Core:
    """One core, polling its duties in turn."""

    def __init__(self, world: "World", role: str, slowdown: float = 1.0) -> None:
        self.world = world
        self.role = role
        self.slowdown = slowdown
        self.duties: list[Duty] = []
        self.busy_ns = 0.0
        self._idle: simpy.Event | None = None
        world.cores.append(self)
        world.env.process(self._run())

    def wake(self) -> None:
        """There may be something to do."""
        if self._idle is not None:
            idle, self._idle = self._idle, None
            idle.succeed()

    def spend(self, cost_ns: float) -> Events:
        """Work; the time varies as costs.variation says."""
        if cost_ns > 0:
            spent_ns = cost_ns * self.slowdown * self.world.vary()
            self.busy_ns += spent_ns
            yield self.world.env.timeout(spent_ns)

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
    """One direction of the bus or of the wire: one thing after another, then a latency.

    `service_ns` is the time that the bytes take, and part of what the receiver waits for;
    `spacing_ns` is the least time until the next thing, which only that one waits for.
    """

    def __init__(self, world: "World", role: str, latency_ns: float) -> None:
        self.world = world
        self.role = role
        self.latency_ns = latency_ns
        self.busy_ns = 0.0
        self._free_at_ns = 0.0
        world.lanes.append(self)

    def send(self, service_ns: float, spacing_ns: float, deliver: Callable[[], None]) -> None:
        now_ns = self.world.env.now
        start_ns = max(now_ns, self._free_at_ns)
        taken_ns = max(service_ns, spacing_ns)
        self._free_at_ns = start_ns + taken_ns
        self.busy_ns += taken_ns
        delay_ns = start_ns + service_ns + self.latency_ns - now_ns
        if delay_ns > 0:
            self.world.after(delay_ns, deliver)
        else:
            deliver()


class Duty:
    """Something that a core does when there is some of it."""

    core: Core

    def is_ready(self) -> bool:
        """Whether there is something to do."""
        raise NotImplementedError

    def work(self) -> Events:
        """Do some of it."""
        raise NotImplementedError


@dataclass(slots=True)
class Counts:
    """What the blocks saw."""

    latencies_us: list[float] = field(default_factory=list)
    block_mops: list[float] = field(default_factory=list)
    requests: int = 0
    door_requests: dict[Place, int] = field(default_factory=dict)
    transfers: int = 0
    transfers_ns: float = 0.0


class World:
    """The machine of one run."""

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
        # A run's unit: a packet of many requests, or many packets of few.
        self.parked_transfers = 0 if self._has_time() else costs.parked_transfers
        # A closed loop's depth falls to what frames carry; then nothing has to be flushed.
        self.flush_after_ns = costs.flush_after_us * 1e3 if self.is_open else 0.0
        self.store_extra = costs.shared_store if machine.design.has_one_store else Cost()
        self.window_batches = max(math.ceil(machine.window / costs.batch_packets), 1)
        self.batch_packets = max(round(machine.window / self.window_batches), 1)
        self.batch_requests = self.batch_packets * machine.requests_per_packet

    def run(self) -> Observation:
        """Warm up, then blocks until their mean is known well enough."""
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
            # What a lane has accepted may end after the run.
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
        """A factor around 1."""
        variation = self.costs.variation
        if not variation:
            return 1.0
        shape = 1 / variation**2
        return self.random.gammavariate(shape, 1 / shape)

    def after(self, delay_ns: float, call: Callable[[], None]) -> None:
        """Call later."""
        self.env.timeout(delay_ns).callbacks.append(lambda event: call())

    def count(self, batch: Batch) -> None:
        """One is answered."""
        self.answered += 1
        self.block_requests += batch.requests
        if self.is_counting:
            self.counts.requests += batch.requests
            self.counts.latencies_us.append((self.env.now - batch.sent_ns) / 1e3)
        if self.answered >= self._answered_goal and not self.goal.triggered:
            self.goal.succeed()

    def transferred(self, since_ns: float) -> None:
        """A queue pair has delivered."""
        if self.is_counting:
            self.counts.transfers += 1
            self.counts.transfers_ns += self.env.now - since_ns

    def respond(self, batches: list[Batch], side: Place) -> None:
        """Onto the wire; from the host's door over the bus first."""
        if self.is_counting:
            requests = self.counts.door_requests
            requests[side] = requests.get(side, 0) + sum(batch.requests for batch in batches)
        for batch in batches:
            if side == "host":
                size = self.costs.packet_bytes(batch.packets, batch.requests)
                self.bus_to_dpu.send(
                    *self.costs.bus.times_ns(size, batch.requests),
                    lambda batch=batch: self._onto_wire(batch),  # type: ignore[misc]
                )
            else:
                self._onto_wire(batch)

    def to_processing(self, side: Place) -> Lane:
        """The lane that leads away from a side."""
        return self.bus_to_host if side == "dpu" else self.bus_to_dpu

    def _onto_wire(self, batch: Batch) -> None:
        self.wire_out.send(
            self.costs.wire_ns(batch.packets, batch.requests),
            0.0,
            lambda: batch.answered(batch),
        )

    def _answer(self, batches: int) -> int:
        self.block_requests = 0
        self._answered_goal = self.answered + batches
        self.goal = self.env.event()
        limit = self.env.timeout(STALL_NS)
        self.env.run(until=self.goal | limit)
        assert self.goal.triggered, "nothing is answered any more"
        return self.block_requests

    def _is_known(self) -> bool:
        """Well enough to end."""
        if not self.is_open:
            return _interval(self.counts.block_mops) <= PRECISION
        latencies = self.counts.latencies_us
        starts = range(0, len(latencies), BLOCK_BATCHES)
        means = [fmean(latencies[start : start + BLOCK_BATCHES]) for start in starts]
        return _interval(means) <= OPEN_PRECISION

    def _has_time(self) -> bool:
        """Whether waiting for each response would fit between an open loop's packets: the lab's
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
    """Half of the 95 % confidence interval of the blocks' mean, relative."""
    return NORMAL_95 * stdev(blocks) / math.sqrt(len(blocks)) / fmean(blocks)
