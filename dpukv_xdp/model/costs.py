# SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
"""The inputs of the model: what each stage, the bus, the wire and the client cost."""

from dataclasses import dataclass

VARIATION = 0.1


@dataclass(frozen=True, slots=True)
class Cost:
    """The time that a piece of work takes."""

    unit_ns: float = 0.0
    """Time per packet; on a queue pair, per transfer."""
    request_ns: float = 0.0
    """Time per request."""

    def of(self, units: int, requests: int) -> float:
        """Return the time of so many packets and requests, in ns."""
        return self.unit_ns * units + self.request_ns * requests

    def __bool__(self) -> bool:
        return self.unit_ns > 0 or self.request_ns > 0

    def times(self, factor: float) -> "Cost":
        """Return the cost on a core of another speed."""
        return Cost(self.unit_ns * factor, self.request_ns * factor)


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineCosts:
    """Costs of the stages on a core of one side (section 3.3)."""

    receive: Cost = Cost()
    parse: Cost = Cost()
    process: Cost = Cost()
    prepare: Cost = Cost()
    """Preparing the response as far as possible before the result is known."""
    send: Cost = Cost()
    """Completing and sending the response."""

    def times(self, factor: float) -> "EngineCosts":
        """Return the costs on cores of another speed."""
        return EngineCosts(
            receive=self.receive.times(factor),
            parse=self.parse.times(factor),
            process=self.process.times(factor),
            prepare=self.prepare.times(factor),
            send=self.send.times(factor),
        )

    def request_ns(self, requests_per_packet: int) -> float:
        """Return the time of all stages for one request, in ns."""
        stages = (self.receive, self.parse, self.process, self.prepare, self.send)
        return sum(stage.of(1, requests_per_packet) for stage in stages) / requests_per_packet


@dataclass(frozen=True, slots=True, kw_only=True)
class BusCosts:
    """The bus between DPU and host; its two directions are alike and independent."""

    latency_us: float = 0.0
    gbytes_per_s: float = 0.0
    """Bandwidth of one direction; 0 = unlimited."""
    request_ns: float = 0.0
    """Least time between two requests that cross in one direction, as records or in frames."""

    def times_ns(self, size_bytes: int, requests: int) -> tuple[float, float]:
        """Return the time of a transfer's bytes and the least time until the next, in ns."""
        by_size_ns = size_bytes / self.gbytes_per_s if self.gbytes_per_s else 0.0
        return by_size_ns, requests * self.request_ns


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientCosts:
    """Costs and habits of the load generator."""

    cost: Cost = Cost()
    """Making and sending a packet, and taking its answer."""
    lump: int = 1
    """Most batches sent at once."""
    is_in_lab: bool = False
    """Whether one client on the first communication core has one window for all endpoints, as in
    the veth lab. Otherwise each endpoint has a window and a client core of its own.
    """


@dataclass(frozen=True, slots=True, kw_only=True)
class Costs:
    """All inputs of the model except the design, the cores and the load."""

    name: str
    source: str
    """Origin of the numbers, in a sentence."""
    host: EngineCosts
    """Costs on one of `host_threads` busy hardware threads."""
    dpu: EngineCosts
    post: Cost = Cost()
    """Cost to the communicating core of posting a transfer."""
    serve: Cost = Cost()
    """Cost to the processing core of taking a transfer and handing it back."""
    shared_store: Cost = Cost()
    """Additional processing cost where several doors share one store."""
    forward: Cost = Cost()
    """Cost to a communication core of passing a frame to a host's door; 0 if hardware does it."""
    two_doors: Cost = Cost()
    """Additional cost of passing a frame if the communication core has a door of its own."""
    two_doors_burst_ns: float = 0.0
    """Additional cost of each burst that contains such frames."""
    client: ClientCosts = ClientCosts()
    bus: BusCosts = BusCosts()
    wire_latency_us: float = 0.0
    wire_gbits_per_s: float = 0.0
    """Bandwidth of one direction of the wire; 0 = unlimited."""
    packet_header_bytes: int = 48
    packet_request_bytes: int = 32
    """Bytes of one request in a packet."""
    requests_per_packet: int = 1
    window: int = 64
    """Packets outstanding per client: see ClientCosts.is_in_lab."""
    host_window: int = 0
    """Packets outstanding per endpoint behind the host's door; 0 = `window`."""
    batch_packets: int = 1
    """Packets that the model moves as one batch."""
    burst_packets: int = 64
    """Most packets that a communication engine takes at once."""
    rx_descriptors: int = 0
    """Receive descriptors of a host's door: packets that the NIC may bring in advance; 0 = any."""
    transfer_packets: int = 0
    """Packets in one transfer through a queue pair; 0 = a burst."""
    parked_transfers: int = 0
    """Most transfers that stay parked while further packets arrive; 0 = the core waits for each."""
    carried_by_frames: bool = False
    """Whether each response leaves in a later frame's place or by the sender, as with XDP."""
    flush_after_us: float = 0.0
    """Time after which the sender sends a response that no frame has carried."""
    pause_us: float = 0.0
    """Pause of a processing core, once before counting begins; what it leaves parked stays parked.
    """
    sends_late: bool = False
    """Whether a fused core sends after it has parsed the next burst, as in MICA."""
    variation: float = VARIATION
    dpu_cores: int = 8
    host_cores: int = 8
    host_threads: int = 0
    """Threads that were busy while the host's costs were measured; 0 = their number is irrelevant.
    """
    host_threads_max: int = 0
    """Hardware threads of the host; 0 = any number."""
    host_contention: float = 0.0
    """Relative slow-down of a thread per other busy thread. Threads share caches, memory, the NIC
    and the clock that heat allows, and, if more than half of them are busy, cores.
    """

    def wire_ns(self, packets: int, requests: int) -> float:
        """Return the time of some packets' bytes on the wire, in ns."""
        if not self.wire_gbits_per_s:
            return 0.0
        return self.packet_bytes(packets, requests) * 8 / self.wire_gbits_per_s

    def packet_bytes(self, packets: int, requests: int) -> int:
        """Return the bytes of some packets."""
        return packets * self.packet_header_bytes + requests * self.packet_request_bytes

    def host_slowdown(self, busy: int) -> float:
        """Return a host core's time with `busy` busy threads, relative to `host_threads`."""
        if not self.host_threads or not busy:
            return 1.0
        speeds = (
            thread_speed(each, self.host_contention, self.host_threads_max)
            for each in (self.host_threads, busy)
        )
        return next(speeds) / next(speeds)


def thread_speed(busy: int, contention: float, threads_max: int = 0) -> float:
    """Return the speed of one of `busy` busy hardware threads, relative to a single busy one.

    If `busy` exceeds `threads_max`, threads take turns.
    """
    running = min(busy, threads_max or busy)
    return running / busy / (1 + contention * (running - 1))
