# SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
"""The work of the event model's cores: clients, doors (communication engines), processing engines
and cores that pass frames on.
"""

import math
from collections import deque
from collections.abc import Callable, Generator
from dataclasses import dataclass
from functools import partial
from typing import Any

import simpy

from dpukv_xdp.model.costs import Cost, EngineCosts
from dpukv_xdp.model.world import Batch, Core, Duty, Events, World
from dpukv_xdp.topology.designs import Place
from dpukv_xdp.wire import abi

REQUEST_BYTES = abi.SIZE("kv_request")
RESPONSE_BYTES = abi.SIZE("kv_response")
PAUSED_TRANSFER = 100
"""Number of the transfer before which an engine pauses; it falls into the warm-up."""


@dataclass(slots=True)
class Transfer:
    """Batches that go through a queue pair together and come back together."""

    batches: list[Batch]
    door: "OffloadedDoor"
    posted_ns: float = 0.0
    done_ns: float = 0.0
    is_done: bool = False
    waiter: simpy.Event | None = None

    def packets(self) -> int:
        return sum(batch.packets for batch in self.batches)

    def requests(self) -> int:
        return sum(batch.requests for batch in self.batches)


class Client(Duty):
    """A load generator: sends batches to its endpoints and times the answers."""

    def __init__(self, world: "World", core: Core, window_batches: int) -> None:
        self.world = world
        self.core = core
        self.free = window_batches
        self.due: deque[float] = deque()
        """Intended start times of an open loop's unsent batches."""
        self.endpoints: list[Callable[[Batch], None]] = []
        self.weights: list[float] = []
        core.duties.append(self)

    def is_ready(self) -> bool:
        return bool(self.due) if self.world.is_open else self.free > 0

    def work(self) -> Events:
        world, costs = self.world, self.world.costs
        count = min(costs.client.lump, len(self.due) if world.is_open else self.free)
        cost_ns = costs.client.cost.of(world.batch_packets, world.batch_requests)
        batches = []
        for index in range(count):
            sent_ns = world.env.now + index * cost_ns
            if world.is_open:
                sent_ns = self.due.popleft()
            else:
                self.free -= 1
            batches.append(Batch(world.batch_packets, world.batch_requests, sent_ns, self.answered))
        world.sent += count
        yield from self.core.spend(count * cost_ns)
        for batch in batches:
            endpoint = self.endpoints[0]
            if len(self.endpoints) > 1:
                (endpoint,) = world.random.choices(self.endpoints, self.weights)
            world.wire_in.send(world.batch_wire_ns, 0.0, partial(endpoint, batch))

    def answered(self, batch: Batch, _: simpy.Event | None = None) -> None:
        """Take a batch's answer."""
        self.free += 1
        self.world.count(batch)
        self.core.wake()


class Door(Duty):
    """A communication engine, which takes arrived batches in bursts."""

    def __init__(self, world: "World", core: Core, engine: EngineCosts) -> None:
        self.world = world
        self.core = core
        self.engine = engine
        self.arrived: deque[Batch] = deque()
        self.in_nic: deque[Batch] = deque()
        """Frames for a host's door that wait for a free descriptor."""
        self.descriptors = world.costs.rx_descriptors or math.inf
        """Free descriptors: packets that the NIC may still bring to a host's door."""
        core.duties.append(self)

    def arrive(self, batch: Batch, _: simpy.Event | None = None) -> None:
        self.arrived.append(batch)
        self.core.wake()

    def arrive_at_nic(self, batch: Batch, _: simpy.Event | None = None) -> None:
        """Take a whole frame and send it over the bus as soon as it gets a descriptor."""
        self.in_nic.append(batch)
        self._bring()

    def _bring(self) -> None:
        while self.in_nic and self.descriptors >= self.in_nic[0].packets:
            self._bring_one(self.in_nic.popleft())

    def _bring_one(self, batch: Batch) -> None:
        self.descriptors -= batch.packets
        self.world.bus_to_host.send(*self.world.batch_bus_ns, partial(self.arrive, batch))

    def is_ready(self) -> bool:
        return bool(self.arrived)

    def take_burst(self) -> list[Batch]:
        burst: list[Batch] = []
        packets = 0
        most = self.world.costs.burst_packets
        while self.arrived and (not burst or packets + self.arrived[0].packets <= most):
            burst.append(self.arrived.popleft())
            packets += burst[-1].packets
        self.descriptors += packets
        self._bring()
        return burst


class FusedDoor(Door):
    """A door that receives, parses, processes, prepares and sends on one core."""

    def __init__(
        self, world: "World", core: Core, engine: EngineCosts, side: Place, *, sends_late: bool
    ) -> None:
        super().__init__(world, core, engine)
        self.side = side
        self.sends_late = sends_late
        self.process = _plus(engine.process, world.store_extra)
        self.held: list[Batch] = []
        """Processed batches that are sent after the next burst is parsed, as in MICA (section 4.3).
        """

    def is_ready(self) -> bool:
        return bool(self.arrived or self.held)

    def work(self) -> Events:
        burst = self.take_burst()
        engine = self.engine
        yield from self.core.spend(_sum(burst, engine.receive, engine.parse))
        yield from self._send(self.held)
        self.held = []
        yield from self.core.spend(_sum(burst, self.process, engine.prepare))
        if self.sends_late:
            self.held = burst
        else:
            yield from self._send(burst)

    def _send(self, batches: list[Batch]) -> Events:
        yield from self.core.spend(_sum(batches, self.engine.send))
        self.world.respond(batches, self.side)


class OffloadedDoor(Door):
    """A door whose requests a processing engine beyond the bus processes.

    Finished responses leave before the next burst is parsed (section 4.3). In the veth lab they
    leave with the frames of that burst instead, one per frame, and by the sender if no frame comes.
    """

    def __init__(
        self, world: "World", core: Core, engine: EngineCosts, side: Place, processor: "Engine"
    ) -> None:
        super().__init__(world, core, engine)
        self.side = side
        self.processor = processor
        self.parked: deque[Transfer] = deque()

    def is_ready(self) -> bool:
        return bool(self.arrived) or self._may_leave()

    def work(self) -> Events:
        costs = self.world.costs
        answered: list[Batch] = []
        while self._may_leave():
            answered += yield from self._carry()
        self.world.respond(answered, self.side)
        answered = []
        for batches in _transfers_of(
            self.take_burst(), costs.transfer_packets or costs.burst_packets
        ):
            yield from self._hand_over(batches)
            if len(self.parked) > self.world.parked_transfers and not self.parked[0].is_done:
                waiter = self.parked[0].waiter = self.world.env.event()
                yield waiter
            if self.parked[0].is_done:
                answered += yield from self._carry()
        self.world.respond(answered, self.side)

    def finished(self, transfer: Transfer, _: simpy.Event | None = None) -> None:
        """Note that a transfer's responses are in the response queue."""
        transfer.is_done = True
        transfer.done_ns = self.world.env.now
        if transfer.waiter is not None:
            transfer.waiter.succeed()
            return
        self.core.wake()
        if self.world.flush_after_ns:
            self.world.after(self.world.flush_after_ns, self.core.wake)

    def _may_leave(self) -> bool:
        """Return whether the oldest transfer is finished and leaves without a frame to carry it."""
        if not self.parked or not self.parked[0].is_done:
            return False
        if not self.world.costs.carried_by_frames:
            return True
        if self.arrived:
            return False
        return self.world.env.now >= self.parked[0].done_ns + self.world.flush_after_ns

    def _hand_over(self, batches: list[Batch]) -> Events:
        """Receive and parse a burst, post it to the bus, and prepare while it is processed."""
        engine = self.engine
        transfer = Transfer(batches, self)
        yield from self.core.spend(
            _sum(batches, engine.receive, engine.parse)
            + self.world.costs.post.of(1, transfer.requests())
        )
        self._post(transfer)
        yield from self.core.spend(_sum(batches, engine.prepare))
        self.parked.append(transfer)

    def _post(self, transfer: Transfer) -> None:
        transfer.posted_ns = self.world.env.now
        requests = transfer.requests()
        self.world.to_processing(self.side).send(
            *self.world.costs.bus.times_ns(requests * REQUEST_BYTES + 1, requests),
            partial(self.processor.arrive, transfer),
        )

    def _carry(self) -> Generator[simpy.Event, Any, list[Batch]]:
        transfer = self.parked.popleft()
        yield from self.core.spend(_sum(transfer.batches, self.engine.send))
        return transfer.batches


class Engine(Duty):
    """A processing engine, which serves transfers in the order of their arrival."""

    def __init__(self, world: "World", core: Core, engine: EngineCosts, side: Place) -> None:
        self.world = world
        self.core = core
        self.side = side
        self.process = _plus(engine.process, world.store_extra)
        self.queue: deque[Transfer] = deque()
        self.served = 0
        core.duties.append(self)

    def arrive(self, transfer: Transfer, _: simpy.Event | None = None) -> None:
        self.world.transferred(transfer.posted_ns)
        self.queue.append(transfer)
        self.core.wake()

    def is_ready(self) -> bool:
        return bool(self.queue)

    def work(self) -> Events:
        transfer = self.queue.popleft()
        self.served += 1
        if self.served == PAUSED_TRANSFER:
            yield from self.core.spend(self.world.costs.pause_us * 1e3)
        requests = transfer.requests()
        costs = self.world.costs
        # Serving waits for the bus, so a slower core does not lengthen it.
        serve_ns = costs.serve.of(1, requests) / self.core.slowdown
        yield from self.core.spend(_sum(transfer.batches, self.process) + serve_ns)
        self.world.to_processing(self.side).send(
            *costs.bus.times_ns(requests * RESPONSE_BYTES + 1, requests),
            partial(transfer.door.finished, transfer),
        )


class Forward(Duty):
    """A communication core that passes frames on to the host's door."""

    def __init__(self, world: "World", core: Core, door: Door) -> None:
        self.world = world
        self.core = core
        self.door = door
        self.arrived: deque[Batch] = deque()
        self.cost, self.burst_ns = world.costs.forward, 0.0
        if len(world.machine.design.communication) > 1:
            self.cost = _plus(self.cost, world.costs.two_doors)
            self.burst_ns = world.costs.two_doors_burst_ns
        core.duties.append(self)

    def arrive(self, batch: Batch, _: simpy.Event | None = None) -> None:
        self.arrived.append(batch)
        self.core.wake()

    def is_ready(self) -> bool:
        return bool(self.arrived)

    def work(self) -> Events:
        count = min(len(self.arrived), self.world.costs.burst_packets)
        burst = [self.arrived.popleft() for _ in range(count)]
        yield from self.core.spend(_sum(burst, self.cost) + self.burst_ns)
        for batch in burst:
            self.door.arrive_at_nic(batch)


def _sum(batches: list[Batch], *stages: Cost) -> float:
    """Return the time of some stages for some batches, in ns."""
    packets = requests = 0
    for batch in batches:
        packets += batch.packets
        requests += batch.requests
    total_ns = 0.0
    for stage in stages:
        total_ns += stage.unit_ns * packets + stage.request_ns * requests
    return total_ns


def _plus(one: Cost, other: Cost) -> Cost:
    return Cost(one.unit_ns + other.unit_ns, one.request_ns + other.request_ns)


def _transfers_of(burst: list[Batch], packets_max: int) -> list[list[Batch]]:
    """Return a burst in pieces of at most `packets_max` packets, in order."""
    pieces: list[list[Batch]] = []
    packets = packets_max
    for batch in burst:
        packets += batch.packets
        if packets > packets_max or not pieces:
            pieces.append([])
            packets = batch.packets
        pieces[-1].append(batch)
    return pieces
