# SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
"""The events of the model: clients, wire, cores with duties, bus and queue pairs, in simpy.

The unit is the batch: some packets that travel together. `run_events` builds the machine from a
design's columns and runs it; nothing here knows a design's name. Times are in nanoseconds.
"""

import math
import random
from collections import deque
from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from statistics import fmean, stdev
from typing import Any

import simpy

from dpukv_xdp.model.costs import Cost, Costs, EngineCosts
from dpukv_xdp.topology.designs import Design, Place
from dpukv_xdp.wire import abi

WARM_UP_BATCHES = 400
"""Answered before counting begins."""
PAUSED_TRANSFER = 100
"""Of an engine, before which it pauses: within the warm-up."""
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


def run_events(machine: Machine) -> Observation:
    """Build and run; deterministic by the machine's seed."""
    return _World(machine).run()


@dataclass(slots=True)
class _Batch:
    """Packets that travel together, and the requests in them."""

    packets: int
    requests: int
    sent_ns: float
    client: "_Client"


@dataclass(slots=True)
class _Transfer:
    """What goes through a queue pair at once, and comes back."""

    batches: list[_Batch]
    door: "_OffloadedDoor"
    posted_ns: float = 0.0
    done_ns: float = 0.0
    is_done: bool = False
    waiter: simpy.Event | None = None

    def packets(self) -> int:
        return sum(batch.packets for batch in self.batches)

    def requests(self) -> int:
        return sum(batch.requests for batch in self.batches)


class _Core:
    """One core, polling its duties in turn."""

    def __init__(self, world: "_World", role: str, slowdown: float = 1.0) -> None:
        self.world = world
        self.role = role
        self.slowdown = slowdown
        self.duties: list[_Duty] = []
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


class _Lane:
    """One direction of the bus or of the wire: one thing after another, then a latency.

    `service_ns` is the time that the bytes take, and part of what the receiver waits for;
    `spacing_ns` is the least time until the next thing, which only that one waits for.
    """

    def __init__(self, world: "_World", role: str, latency_ns: float) -> None:
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


class _Duty:
    """Something that a core does when there is some of it."""

    core: _Core

    def is_ready(self) -> bool:
        """Whether there is something to do."""
        raise NotImplementedError

    def work(self) -> Events:
        """Do some of it."""
        raise NotImplementedError


class _Client(_Duty):
    """Sends to its endpoints and takes the time of the answers."""

    def __init__(self, world: "_World", core: _Core, window_batches: int) -> None:
        self.world = world
        self.core = core
        self.free = window_batches
        self.due: deque[float] = deque()
        """Of an open loop: when what is not sent yet should have been."""
        self.endpoints: list[Callable[[_Batch], None]] = []
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
            batches.append(_Batch(world.batch_packets, world.batch_requests, sent_ns, self))
        world.sent += count
        yield from self.core.spend(count * cost_ns)
        for batch in batches:
            endpoint = self.endpoints[0]
            if len(self.endpoints) > 1:
                (endpoint,) = world.random.choices(self.endpoints, self.weights)
            world.wire_in.send(
                costs.wire_ns(batch.packets, batch.requests),
                0.0,
                lambda batch=batch, endpoint=endpoint: endpoint(batch),  # type: ignore[misc]
            )

    def answered(self, batch: _Batch) -> None:
        """One is back."""
        self.free += 1
        self.world.count(batch)
        self.core.wake()


class _Door(_Duty):
    """A communication engine: takes a burst of what has arrived."""

    def __init__(self, world: "_World", core: _Core, engine: EngineCosts) -> None:
        self.world = world
        self.core = core
        self.engine = engine
        self.arrived: deque[_Batch] = deque()
        self.in_nic: deque[_Batch] = deque()
        """Frames for a host's door that found no free descriptor."""
        self.descriptors = world.costs.rx_descriptors or math.inf
        """Free: what the NIC may still bring over the bus to a host's door."""
        core.duties.append(self)

    def arrive(self, batch: _Batch) -> None:
        self.arrived.append(batch)
        self.core.wake()

    def arrive_at_nic(self, batch: _Batch) -> None:
        """Over the bus as a whole frame, as soon as there is a descriptor for it."""
        self.in_nic.append(batch)
        self._bring()

    def _bring(self) -> None:
        while self.in_nic and self.descriptors >= self.in_nic[0].packets:
            self._bring_one(self.in_nic.popleft())

    def _bring_one(self, batch: _Batch) -> None:
        costs = self.world.costs
        self.descriptors -= batch.packets
        size = costs.packet_bytes(batch.packets, batch.requests)
        times_ns = costs.bus.times_ns(size, batch.requests)
        self.world.bus_to_host.send(*times_ns, lambda: self.arrive(batch))

    def is_ready(self) -> bool:
        return bool(self.arrived)

    def take_burst(self) -> list[_Batch]:
        burst: list[_Batch] = []
        packets = 0
        most = self.world.costs.burst_packets
        while self.arrived and (not burst or packets + self.arrived[0].packets <= most):
            burst.append(self.arrived.popleft())
            packets += burst[-1].packets
        self.descriptors += packets
        self._bring()
        return burst


class _FusedDoor(_Door):
    """Receives, parses, processes, prepares and sends on one core."""

    def __init__(
        self, world: "_World", core: _Core, engine: EngineCosts, side: Place, *, sends_late: bool
    ) -> None:
        super().__init__(world, core, engine)
        self.side = side
        self.sends_late = sends_late
        self.process = _plus(engine.process, world.store_extra)
        self.held: list[_Batch] = []
        """Processed; sent when the next burst has been parsed, as MICA does (section 4.3)."""

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

    def _send(self, batches: list[_Batch]) -> Events:
        yield from self.core.spend(_sum(batches, self.engine.send))
        self.world.respond(batches, self.side)


class _OffloadedDoor(_Door):
    """Communicates; a processing engine beyond the bus does the rest.

    What is finished leaves before the next burst is parsed (section 4.3). In the veth lab it leaves
    with the frames of that burst instead, one with each, and by the sender if none comes.
    """

    def __init__(
        self, world: "_World", core: _Core, engine: EngineCosts, side: Place, processor: "_Engine"
    ) -> None:
        super().__init__(world, core, engine)
        self.side = side
        self.processor = processor
        self.parked: deque[_Transfer] = deque()

    def is_ready(self) -> bool:
        return bool(self.arrived) or self._may_leave()

    def work(self) -> Events:
        costs = self.world.costs
        answered: list[_Batch] = []
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

    def finished(self, transfer: _Transfer) -> None:
        """The response queue has it."""
        transfer.is_done = True
        transfer.done_ns = self.world.env.now
        if transfer.waiter is not None:
            transfer.waiter.succeed()
            return
        self.core.wake()
        if self.world.flush_after_ns:
            self.world.after(self.world.flush_after_ns, self.core.wake)

    def _may_leave(self) -> bool:
        """Whether the oldest is finished, and need not look for a frame that carries it."""
        if not self.parked or not self.parked[0].is_done:
            return False
        if not self.world.costs.carried_by_frames:
            return True
        if self.arrived:
            return False
        return self.world.env.now >= self.parked[0].done_ns + self.world.flush_after_ns

    def _hand_over(self, batches: list[_Batch]) -> Events:
        """Receive and parse, over the bus, and prepare meanwhile."""
        engine = self.engine
        transfer = _Transfer(batches, self)
        yield from self.core.spend(
            _sum(batches, engine.receive, engine.parse)
            + self.world.costs.post.of(1, transfer.requests())  # one transfer, whatever is in it
        )
        self._post(transfer)
        yield from self.core.spend(_sum(batches, engine.prepare))
        self.parked.append(transfer)

    def _post(self, transfer: _Transfer) -> None:
        transfer.posted_ns = self.world.env.now
        size = transfer.requests() * abi.SIZE("kv_request") + 1
        self.world.to_processing(self.side).send(
            *self.world.costs.bus.times_ns(size, transfer.requests()),
            lambda: self.processor.arrive(transfer),
        )

    def _carry(self) -> Generator[simpy.Event, Any, list[_Batch]]:
        transfer = self.parked.popleft()
        yield from self.core.spend(_sum(transfer.batches, self.engine.send))
        return transfer.batches


class _Engine(_Duty):
    """A processing engine: serves its queue pairs in the order of what arrives."""

    def __init__(self, world: "_World", core: _Core, engine: EngineCosts, side: Place) -> None:
        self.world = world
        self.core = core
        self.side = side
        self.process = _plus(engine.process, world.store_extra)
        self.queue: deque[_Transfer] = deque()
        self.served = 0
        core.duties.append(self)

    def arrive(self, transfer: _Transfer) -> None:
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
        serve_ns = costs.serve.of(1, requests) / self.core.slowdown  # it waits for the bus
        yield from self.core.spend(_sum(transfer.batches, self.process) + serve_ns)
        size = requests * abi.SIZE("kv_response") + 1
        self.world.to_processing(self.side).send(
            *costs.bus.times_ns(size, requests), lambda: transfer.door.finished(transfer)
        )


class _Forward(_Duty):
    """A communication core that only passes frames on to the host's door."""

    def __init__(self, world: "_World", core: _Core, door: _Door) -> None:
        self.world = world
        self.core = core
        self.door = door
        self.arrived: deque[_Batch] = deque()
        self.cost, self.burst_ns = world.costs.forward, 0.0
        if len(world.machine.design.communication) > 1:
            self.cost = _plus(self.cost, world.costs.two_doors)
            self.burst_ns = world.costs.two_doors_burst_ns
        core.duties.append(self)

    def arrive(self, batch: _Batch) -> None:
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


@dataclass(slots=True)
class _Counts:
    """What the blocks saw."""

    latencies_us: list[float] = field(default_factory=list)
    block_mops: list[float] = field(default_factory=list)
    requests: int = 0
    door_requests: dict[Place, int] = field(default_factory=dict)
    transfers: int = 0
    transfers_ns: float = 0.0


class _World:
    """The machine of one run."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self.costs = machine.costs
        self.env = simpy.Environment()
        self.random = random.Random(machine.seed)
        self.cores: list[_Core] = []
        self.lanes: list[_Lane] = []
        self.is_open = machine.rate_mops > 0
        self.sent = self.answered = self.block_requests = 0
        self.goal = self.env.event()
        self.counts = _Counts()
        self.is_counting = False
        costs = self.costs
        self.wire_in = _Lane(self, "wire", costs.wire_latency_us * 1e3)
        self.wire_out = _Lane(self, "wire", costs.wire_latency_us * 1e3)
        self.bus_to_host = _Lane(self, "bus", costs.bus.latency_us * 1e3)
        self.bus_to_dpu = _Lane(self, "bus", costs.bus.latency_us * 1e3)
        # A run's unit: a packet of many requests, or many packets of few.
        self.parked_transfers = 0 if self._has_time() else costs.parked_transfers
        # A closed loop's depth falls to what frames carry; then nothing has to be flushed.
        self.flush_after_ns = costs.flush_after_us * 1e3 if self.is_open else 0.0
        self.store_extra = costs.shared_store if machine.design.has_one_store else Cost()
        self.window_batches = max(math.ceil(machine.window / costs.batch_packets), 1)
        self.batch_packets = max(round(machine.window / self.window_batches), 1)
        self.batch_requests = self.batch_packets * machine.requests_per_packet
        self._build()

    def run(self) -> Observation:
        """Warm up, then blocks until their mean is known well enough."""
        self._answer(WARM_UP_BATCHES)
        self.is_counting = True
        start_ns = self.env.now
        parts: list[_Core | _Lane] = [*self.cores, *self.lanes]
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

    def count(self, batch: _Batch) -> None:
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

    def respond(self, batches: list[_Batch], side: Place) -> None:
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

    def to_processing(self, side: Place) -> _Lane:
        """The lane that leads away from a side."""
        return self.bus_to_host if side == "dpu" else self.bus_to_dpu

    def _onto_wire(self, batch: _Batch) -> None:
        self.wire_out.send(
            self.costs.wire_ns(batch.packets, batch.requests),
            0.0,
            lambda: batch.client.answered(batch),
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
        XDP then parks nothing (bpf/side.h).
        """
        machine, costs = self.machine, self.costs
        if not self.is_open or not costs.carried_by_frames:
            return False
        requests = machine.requests_per_packet
        door = (costs.dpu.receive, costs.dpu.parse, costs.dpu.prepare, costs.dpu.send)
        needed_ns = sum(stage.of(1, requests) for stage in (*door, costs.host.process))
        needed_ns += 2 * costs.bus.latency_us * 1e3
        return requests / machine.rate_mops * 1e3 > WAIT_MARGIN * needed_ns

    # ---- From a design's columns to cores

    def _build(self) -> None:
        machine, costs, design = self.machine, self.costs, self.machine.design
        slowdown = costs.host_slowdown(machine.host_cores)
        host = [_Core(self, "host", slowdown) for _ in range(machine.host_cores)]
        needs_dpu = "dpu" in (*design.communication, *design.processing) or costs.forward
        dpu = [_Core(self, "dpu") for _ in range(machine.dpu_cores)] if needs_dpu else []
        cores: dict[Place, list[_Core]] = {"dpu": dpu, "host": host}
        free: dict[Place, list[_Core]] = {"dpu": list(dpu), "host": list(host)}
        endpoints: dict[Place, list[Callable[[_Batch], None]]] = {}
        client_core = dpu[0] if costs.client.is_in_lab and dpu else None
        lab_client = self._client(client_core) if costs.client.is_in_lab else None
        for side in design.communication:
            endpoints[side] = self._build_door(side, cores, free)
        if lab_client is not None:
            lab_client.endpoints = [each for side in endpoints.values() for each in side]
            lab_client.weights = self._weights(endpoints)
            clients = [lab_client]
        else:
            clients = []
            for side, each in endpoints.items():
                for endpoint in each:
                    client = self._client(None, side)
                    client.endpoints, client.weights = [endpoint], [1.0]
                    clients.append(client)
        if self.is_open:
            self.env.process(self._arrivals(clients, self._rates(endpoints)))

    def _build_door(
        self, side: Place, cores: dict[Place, list[_Core]], free: dict[Place, list[_Core]]
    ) -> list[Callable[[_Batch], None]]:
        design, costs = self.machine.design, self.costs
        processing = design.processing_of(side)
        engines: dict[Place, EngineCosts] = {"dpu": costs.dpu, "host": costs.host}
        doors: list[_Door] = []
        if side == processing:
            doors = [
                _FusedDoor(self, core, engines[side], side, sends_late=costs.sends_late)
                for core in free[side] or cores[side]
            ]
        else:
            pool = cores[processing]
            count = 1 if design.pairing == "many-to-one" else len(pool)
            processors = [
                _Engine(self, core, engines[processing], processing) for core in pool[:count]
            ]
            if design.pairing == "many-to-one":
                free[processing] = pool[count:]
            doors = [
                _OffloadedDoor(self, core, engines[side], side, processors[index % count])
                for index, core in enumerate(cores[side])
            ]
        if side == "dpu":
            return [door.arrive for door in doors]
        return [self._host_endpoint(door, index, cores["dpu"]) for index, door in enumerate(doors)]

    def _host_endpoint(self, door: _Door, index: int, dpu: list[_Core]) -> Callable[[_Batch], None]:
        if self.costs.forward and dpu:
            return _Forward(self, dpu[index % len(dpu)], door).arrive
        return door.arrive_at_nic

    def _client(self, core: _Core | None, side: Place = "dpu") -> _Client:
        batches = self.window_batches
        if side == "host":
            batches = max(round(self.machine.host_window / self.batch_packets), 1)
        return _Client(self, core or _Core(self, "client"), batches)

    def _weights(self, endpoints: dict[Place, list[Callable[[_Batch], None]]]) -> list[float]:
        """By the doors' shares; within a door alike."""
        share = self.machine.host_share
        if len(endpoints) == 1 or not share:
            return [1.0] * sum(map(len, endpoints.values()))
        parts: dict[Place, float] = {"host": share, "dpu": 1 - share}
        return [parts[side] / len(each) for side, each in endpoints.items() for _ in each]

    def _rates(self, endpoints: dict[Place, list[Callable[[_Batch], None]]]) -> list[float]:
        return [1.0] if self.costs.client.is_in_lab else self._weights(endpoints)

    def _arrivals(self, clients: list[_Client], weights: list[float]) -> Events:
        mean_ns = self.batch_requests / self.machine.rate_mops * 1e3
        while True:
            yield self.env.timeout(self.random.expovariate(1 / mean_ns))
            (client,) = self.random.choices(clients, weights)
            client.due.append(self.env.now)
            client.core.wake()


def _interval(blocks: list[float]) -> float:
    """Half of the 95 % confidence interval of the blocks' mean, relative."""
    return NORMAL_95 * stdev(blocks) / math.sqrt(len(blocks)) / fmean(blocks)


def _sum(batches: list[_Batch], *stages: Cost) -> float:
    """Nanoseconds of stages for some batches."""
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


def _transfers_of(burst: list[_Batch], packets_max: int) -> list[list[_Batch]]:
    """A burst in pieces of at most so many packets, in order."""
    pieces: list[list[_Batch]] = []
    packets = packets_max
    for batch in burst:
        packets += batch.packets
        if packets > packets_max or not pieces:
            pieces.append([])
            packets = batch.packets
        pieces[-1].append(batch)
    return pieces
