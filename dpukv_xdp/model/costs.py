# SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
"""The inputs of the model: what each stage, the bus, the wire and the client cost."""

from dataclasses import dataclass

VARIATION = 0.1


@dataclass(frozen=True, slots=True)
class Cost:
    """Time of a piece of work."""

    unit_ns: float = 0.0
    """For each packet; of a queue pair, for each transfer."""
    request_ns: float = 0.0

    def of(self, units: int, requests: int) -> float:
        """Nanoseconds for so many."""
        return self.unit_ns * units + self.request_ns * requests

    def __bool__(self) -> bool:
        return self.unit_ns > 0 or self.request_ns > 0

    def times(self, factor: float) -> "Cost":
        """The same on a core of another speed."""
        return Cost(self.unit_ns * factor, self.request_ns * factor)


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineCosts:
    """What the stages cost on a core of one side (section 3.3)."""

    receive: Cost = Cost()
    parse: Cost = Cost()
    process: Cost = Cost()
    prepare: Cost = Cost()
    """What can be done before the host's answer is there."""
    send: Cost = Cost()
    """What can not, and sending itself."""

    def times(self, factor: float) -> "EngineCosts":
        """The same on cores of another speed."""
        return EngineCosts(
            receive=self.receive.times(factor),
            parse=self.parse.times(factor),
            process=self.process.times(factor),
            prepare=self.prepare.times(factor),
            send=self.send.times(factor),
        )

    def request_ns(self, requests_per_packet: int) -> float:
        """All stages, for one request."""
        stages = (self.receive, self.parse, self.process, self.prepare, self.send)
        return sum(stage.of(1, requests_per_packet) for stage in stages) / requests_per_packet


@dataclass(frozen=True, slots=True, kw_only=True)
class BusCosts:
    """Between DPU and host; the two directions are alike and apart."""

    latency_us: float = 0.0
    gbytes_per_s: float = 0.0
    """0 = unlimited."""
    request_ns: float = 0.0
    """Least time between two requests that cross in one direction, in records or in frames."""

    def times_ns(self, size_bytes: int, requests: int) -> tuple[float, float]:
        """How long a transfer's bytes take, and the least time until the next one."""
        by_size_ns = size_bytes / self.gbytes_per_s if self.gbytes_per_s else 0.0
        return by_size_ns, requests * self.request_ns


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientCosts:
    """The load generator."""

    cost: Cost = Cost()
    """To make and send a packet, and to take its answer."""
    lump: int = 1
    """Batches sent at once."""
    is_in_lab: bool = False
    """One client with one window for all endpoints, on the first communication core, as in the veth
    lab; else a window for each endpoint, and cores that nobody else has.
    """


@dataclass(frozen=True, slots=True, kw_only=True)
class Costs:
    """All inputs of the model but the design, the cores and the load."""

    name: str
    source: str
    """Where the numbers are from, in a sentence."""
    host: EngineCosts
    """On one of `host_threads` busy hardware threads."""
    dpu: EngineCosts
    post: Cost = Cost()
    """Of the communicating core, for handing a transfer over."""
    serve: Cost = Cost()
    """Of the processing core, for taking a transfer and handing it back."""
    shared_store: Cost = Cost()
    """More that processing takes where several doors lead to one store."""
    forward: Cost = Cost()
    """Of a communication core, for a frame that goes on to a host's door; 0 if hardware does it."""
    two_doors: Cost = Cost()
    """More that such a frame takes there if that core has a door of its own."""
    two_doors_burst_ns: float = 0.0
    """The same for each burst that such frames are in."""
    client: ClientCosts = ClientCosts()
    bus: BusCosts = BusCosts()
    wire_latency_us: float = 0.0
    wire_gbits_per_s: float = 0.0
    """0 = unlimited."""
    packet_header_bytes: int = 48
    packet_request_bytes: int = 32
    """Of one request in a packet."""
    requests_per_packet: int = 1
    window: int = 64
    """Packets outstanding: see ClientCosts.is_in_lab."""
    host_window: int = 0
    """Of an endpoint behind the host's door; 0 = as many."""
    batch_packets: int = 1
    """Packets that the model moves as one."""
    burst_packets: int = 64
    """Most packets that a communication engine takes at once."""
    rx_descriptors: int = 0
    """Packets that the NIC may have brought to a host's door before they are taken; 0 = any."""
    transfer_packets: int = 0
    """Packets of one transfer through a queue pair; 0 = a burst."""
    parked_transfers: int = 0
    """Transfers that a communication core leaves behind while more arrive; 0 = it waits for
    each.
    """
    carried_by_frames: bool = False
    """XDP's responses: each leaves in place of a later frame, or by the sender."""
    flush_after_us: float = 0.0
    """Until the sender takes a response that no frame has come for."""
    pause_us: float = 0.0
    """Of a processing core, once before counting begins: what is parked then stays parked."""
    sends_late: bool = False
    """A fused core sends when the next burst has been parsed, as MICA does."""
    variation: float = VARIATION
    dpu_cores: int = 8
    host_cores: int = 8
    host_threads: int = 0
    """Busy while the host's costs were measured; 0 = it makes no difference how many are."""
    host_threads_max: int = 0
    """That the host has; 0 = any."""
    host_contention: float = 0.0
    """Of a thread's time, more for each other one that is busy: they share caches, memory, NIC, the
    clock that heat allows, and from half of them on cores.
    """

    def wire_ns(self, packets: int, requests: int) -> float:
        """How long some packets' bytes take."""
        if not self.wire_gbits_per_s:
            return 0.0
        return self.packet_bytes(packets, requests) * 8 / self.wire_gbits_per_s

    def packet_bytes(self, packets: int, requests: int) -> int:
        """Bytes of some packets."""
        return packets * self.packet_header_bytes + requests * self.packet_request_bytes

    def host_slowdown(self, busy: int) -> float:
        """Time of a host core with so many busy, relative to `host_threads` busy ones."""
        if not self.host_threads or not busy:
            return 1.0
        speeds = (
            thread_speed(each, self.host_contention, self.host_threads_max)
            for each in (self.host_threads, busy)
        )
        return next(speeds) / next(speeds)


def thread_speed(busy: int, contention: float, threads_max: int = 0) -> float:
    """Of a hardware thread among so many busy ones, relative to one alone. Threads beyond those
    that there are take turns.
    """
    running = min(busy, threads_max or busy)
    return running / busy / (1 + contention * (running - 1))
