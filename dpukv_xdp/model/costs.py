# SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
"""What everything costs in the model: from the paper, from this machine's bench results, or from a
TOML file.

The paper's come from Table 1 (shares of a host core's time by stage), the throughput of CPU-only
and DPU-only (what 100 % of a core is) and a few fitted parameters, each in closed form from one
value of the paper: see `PaperFit`. This machine's come from stage clocks and CPU time in what
`dpukv bench --json` writes.
"""

import json
import tomllib
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import combinations
from pathlib import Path
from statistics import mean
from typing import Any

import msgspec
import numpy as np

from dpukv_xdp.base.errors import MissingError, UsageError
from dpukv_xdp.base.places import RESULTS_DIR
from dpukv_xdp.base.repeats import merged
from dpukv_xdp.model.paper_values import paper_range, paper_results
from dpukv_xdp.topology.config import ServerConfig
from dpukv_xdp.topology.designs import DESIGNS, Design, Place, find_design
from dpukv_xdp.topology.profiles import find_profile

MEASURED_PATH = RESULTS_DIR / "model_points.json"
"""Results of `dpukv bench`, a list: what `--costs committed` reads."""

AS_IT_IS = "as it is"
"""The label of a run of `bench --ablate` with nothing switched."""

SET_SHARES = {"A": 0.5, "B": 0.05, "C": 0.0}
"""Of YCSB's workloads (section 3.1)."""

# Assumptions of the paper's machine: what it does not print. `ASSUMPTIONS` says why.
PREPARE_SHARE = 0.5
CLIENT_LUMP_PACKETS = 32
WIRE_LATENCY_US = 6.0
VARIATION = 0.1
POST_NS = 200.0
BF2_SERVE_NS = 0.0
PARKED_TRANSFERS = {"bf2": 0, "bf3": 1}

HOST_THREADS = 8
"""Of CPU-only (section 6.1): what its throughput and Table 1 are of."""
SPARE_HOST_CORES = 2
"""Of a design with a host's door and one core for the DPU's (section 4.5)."""

# Of the veth lab.
LAB_BURST_PACKETS = 16
"""Live frames that are sent at once, and frames that a host door takes at once."""
LAB_PARKED = 24
"""Batches that `--respond adaptive` parks at most (config's depth)."""
LAB_HAND_OVER_US = 0.2
"""One way: half of a blocking hand-over by mapped ring, `dpukv qp-bench`."""
LAB_PAUSE_US = 10.0
"""Of an engine's core by a timer tick, set by hand: more than 5 us (decision 4). Each frame that
comes meanwhile parks one response more, up to LAB_PARKED, and in a busy stream nothing takes them
away again. More ticks park more, and a flush takes all: the model has one since the last flush.
"""
LAB_PREPARE_NS = 2.0
"""Of a request, in XDP, before the host's answer is needed (docs/EXPERIMENTS.md, Ablation)."""


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


# ---- From the paper


@dataclass(frozen=True, slots=True)
class FittedParameter:
    """One number of the model that was set so that one value of the paper comes out."""

    name: str
    value: float
    unit: str
    fitted_on: str
    """The value, and where the paper has it; or how else it was chosen."""


@dataclass(frozen=True, slots=True)
class Assumption:
    """One number of the model that the paper does not print and that no value of it sets."""

    name: str
    value: float
    unit: str
    why: str


@dataclass(frozen=True, slots=True)
class PaperFit:
    """The fitted parameters of one DPU in the paper's host; everything else is held out."""

    dpu: str
    """The profile's name."""
    column: str
    """What the paper's table calls it."""
    parameters: tuple[FittedParameter, ...]

    def __getitem__(self, name: str) -> float:
        return next(each.value for each in self.parameters if each.name == name)


ASSUMPTIONS = (
    Assumption(
        "prepare_share",
        PREPARE_SHARE,
        "",
        "of Table 1's response that is preparing, the rest is sending; `others` (allocation, and "
        "what perf puts into libraries) counts as preparing too: it can overlap (section 4.3)",
    ),
    Assumption(
        "client_lump",
        CLIENT_LUMP_PACKETS,
        "packets",
        "MICA2's client sends so many at once, or what it has after 10 us; the model moves them as "
        "one",
    ),
    Assumption(
        "wire_latency",
        WIRE_LATENCY_US,
        "us one way",
        "some microsecond of wire and NIC, and half of the client's 10 us of collecting",
    ),
    Assumption(
        "variation", VARIATION, "", "of the time of a piece of work: standard deviation over mean"
    ),
    Assumption("post", POST_NS, "ns", "of a DPU core, for handing one transfer to the DMA engine"),
    Assumption(
        "parked_transfers_bf2",
        PARKED_TRANSFERS["bf2"],
        "transfers",
        "BlueField-2's doca_workq is polled (section 5): a core waits for its transfer, which is "
        "why its throughput falls as the bus gets slower (Figure 10d)",
    ),
    Assumption(
        "parked_transfers_bf3",
        PARKED_TRANSFERS["bf3"],
        "transfers",
        "BlueField-3's doca_pe calls back (section 5): a core works on its next burst while one is "
        "at the host; with 0, lat would be no better than dpu-only with YCSB A",
    ),
    Assumption(
        "serve_request_ns_bf2",
        BF2_SERVE_NS,
        "ns",
        "tuned by hand: of a host core, for handing a request's records over; from 9 ns on, sav's "
        "one host core would be its limit, and the paper has it scale with the DPU's cores",
    ),
)
"""What the paper's costs assume, with reasons."""


def fit_paper(dpu: str) -> PaperFit:
    """Each parameter in closed form. Raises UsageError for a DPU that the paper has not."""
    if dpu == "bf2":
        return _fit_bf2()
    if dpu == "bf3":
        return _fit_bf3()
    raise UsageError(f"the paper has no DPU {dpu!r}: choose bf2 or bf3, or measured costs")


def costs_from_paper(dpu: str, workload: str = "C") -> Costs:
    """Costs of the paper's machine with that DPU, for uniform keys.

    A packet holds one request (section 4.2.1: bytes per packet are those of one); a transfer is
    a burst (section 6.1). A core prepares while it is out (Figure 10a).
    """
    if workload not in SET_SHARES:
        raise UsageError(f"the paper has no workload {workload!r}: choose one of A, B, C")
    fit = fit_paper(dpu)
    profile = find_profile(dpu)
    host_ns = _between(fit["host_request_ns_C"], fit["host_request_ns_A"], workload)
    dpu_ns = _between(fit["dpu_request_ns_C"], fit["dpu_request_ns_A"], workload)
    shares = table1_shares(fit.column, workload)
    gbits = paper_range("link", dpu=fit.column).middle
    return Costs(
        name=dpu,
        source=f"the paper: Table 1, YCSB {workload}, {fit.column}; see `dpukv model --fits`",
        host=_engine_of_shares(shares, host_ns),
        dpu=_engine_of_shares(shares, dpu_ns),
        post=Cost(unit_ns=POST_NS),
        serve=Cost(request_ns=fit["serve_request_ns"]),
        client=ClientCosts(lump=16),
        bus=BusCosts(
            latency_us=profile.bus_latency_us,
            gbytes_per_s=profile.bus_gbytes_per_s,
            request_ns=fit["bus_request_ns"],
        ),
        wire_latency_us=WIRE_LATENCY_US,
        wire_gbits_per_s=gbits,
        packet_header_bytes=60,  # 88 to 96 bytes with one request (Figure 8d)
        packet_request_bytes=32,
        window=round(fit["window"]),
        host_window=round(fit["host_window"]),
        batch_packets=CLIENT_LUMP_PACKETS,
        burst_packets=profile.burst_requests,
        parked_transfers=PARKED_TRANSFERS[dpu],
        rx_descriptors=max(
            int(paper_range("server_rx_descriptors_default").middle), profile.burst_requests
        ),
        sends_late=True,
        dpu_cores=profile.dpu_cores,
        host_cores=HOST_THREADS,
        host_threads=HOST_THREADS,
        host_threads_max=int(paper_range("host_logical_cores").middle),
        host_contention=fit["host_contention"],
    )


def table1_shares(column: str, workload: str) -> dict[str, float]:
    """Table 1: stage to share of a host core's time; the five add up to 1."""
    shares = {
        row.metric.removeprefix("cpu_"): row.value or 0.0
        for row in paper_results()
        if row.figure_table == "Table 1"
        and (row.dpu, row.workload) == (column, workload)
        and row.metric in ("cpu_receive", "cpu_parse", "cpu_response", "cpu_get_set", "cpu_others")
    }
    total = sum(shares.values())
    return {stage: share / total for stage, share in shares.items()}


def _engine_of_shares(shares: dict[str, float], request_ns: float) -> EngineCosts:
    response = shares["response"]
    return EngineCosts(
        receive=Cost(request_ns=shares["receive"] * request_ns),
        parse=Cost(request_ns=shares["parse"] * request_ns),
        process=Cost(request_ns=shares["get_set"] * request_ns),
        prepare=Cost(request_ns=(response * PREPARE_SHARE + shares["others"]) * request_ns),
        send=Cost(request_ns=response * (1 - PREPARE_SHARE) * request_ns),
    )


def _between(request_c_ns: float, request_a_ns: float, workload: str) -> float:
    """Time of a request by the share of SETs, in a line through YCSB C and A."""
    part = SET_SHARES[workload] / SET_SHARES["A"]
    return request_c_ns + part * (request_a_ns - request_c_ns)


def _host_contention() -> FittedParameter:
    """From what two spare host cores add to sav, over what two of CPU-only's eight do. Both DPUs
    are in the same host.
    """
    ratios = {
        base: paper_range(
            f"throughput_ratio_vs_{base}",
            dpu="BF-2",
            design="DPU-KV-dual",
            figure_table="Fig.12a-c",
        ).middle
        for base in ("DPU-KV-sav", "CPU-only")
    }
    spare = 1 - 1 / ratios["DPU-KV-sav"]
    eight = SPARE_HOST_CORES / HOST_THREADS / ratios["CPU-only"]
    # The main host core and the spare ones are busy: (1 + 7c) / (1 + 2c) = spare / eight.
    faster = spare / eight
    return FittedParameter(
        "host_contention",
        (faster - 1) / (HOST_THREADS - 1 - SPARE_HOST_CORES * faster),
        "of a thread's time, for each other busy one",
        "BF-2's dual over sav (1.47 to 1.6) and over CPU-only (1.01 to 1.07), Fig.12a-c: middles",
    )


def _fit_bf2() -> PaperFit:
    def throughput(design: str, workload: str) -> float:
        rows = {"dpu": "BF-2", "design": design, "workload": workload}
        return paper_range("throughput_peak", figure_table="Fig.12a-c", **rows).middle

    cpu_only_c = throughput("CPU-only", "C")
    dual_c = throughput("DPU-KV-dual", "C")
    latency = paper_range("latency_at_peak", dpu="BF-2", design="DPU-only").low
    cpu_only_latency = paper_range("latency_ratio_vs_DPU-only", dpu="BF-2").middle
    dpu_only_c = throughput("DPU-only", "C")
    derived = "middle of the derived range, Fig.12a-c"
    return PaperFit(
        "bf2",
        "BF-2",
        (
            FittedParameter(
                "host_request_ns_C",
                HOST_THREADS * 1e3 / cpu_only_c,
                "ns",
                f"CPU-only, C, {derived}",
            ),
            FittedParameter(
                "host_request_ns_A",
                HOST_THREADS * 1e3 / throughput("CPU-only", "A"),
                "ns",
                f"CPU-only, A, {derived}",
            ),
            FittedParameter(
                "dpu_request_ns_C", HOST_THREADS * 1e3 / dpu_only_c, "ns", f"DPU-only, C, {derived}"
            ),
            FittedParameter(
                "dpu_request_ns_A",
                HOST_THREADS * 1e3 / throughput("DPU-only", "A"),
                "ns",
                f"DPU-only, A, {derived}",
            ),
            FittedParameter(
                "window",
                latency * dpu_only_c / 8,
                "packets an endpoint",
                "DPU-only's lowest latency, 76 us, times its throughput with C",
            ),
            FittedParameter(
                "host_window",
                cpu_only_latency * latency * cpu_only_c / HOST_THREADS,
                "packets an endpoint",
                "CPU-only's latency: middle of 0.95 to 2.68 times DPU-only's (Fig.5a-b), which the "
                "paper puts down to congestion in the receive queue",
            ),
            _host_contention(),
            FittedParameter(
                "bus_request_ns",
                1e3 / dual_c,
                "ns",
                "a cap: dual's peak with C, Fig.12c, beyond which more host cores bring nothing "
                "(Fig.10d)",
            ),
            FittedParameter(
                "serve_request_ns", BF2_SERVE_NS, "ns", "tuned by hand, see the assumptions"
            ),
        ),
    )


def _fit_bf3() -> PaperFit:
    def peak(design: str, workload: str) -> float:
        return paper_range("throughput_peak", dpu="BF-3", design=design, workload=workload).middle

    host_over_dpu = peak("DPU-only", "A") / peak("CPU-only", "A")
    dpu_c_ns, dpu_a_ns = (
        HOST_THREADS * 1e3 / peak("DPU-only", "C"),
        HOST_THREADS * 1e3 / peak("DPU-only", "A"),
    )
    latency = paper_range("latency_at_peak", dpu="BF-3", design="DPU-only", workload="C").middle
    saturation = paper_range("saturation_throughput", dpu="BF-3").middle
    # One host core, and nothing else on the host.
    host_b_ns = host_over_dpu * _between(dpu_c_ns, dpu_a_ns, "B")
    faster = 1 / thread_speed(HOST_THREADS, _host_contention().value)
    process_ns = host_b_ns * table1_shares("BF-3", "B")["get_set"] / faster
    both = "Fig.5c, skewed keys"
    return PaperFit(
        "bf3",
        "BF-3",
        (
            FittedParameter(
                "host_request_ns_C",
                host_over_dpu * dpu_c_ns,
                "ns",
                f"CPU-only over DPU-only, A, {both}; taken for C too",
            ),
            FittedParameter(
                "host_request_ns_A", host_over_dpu * dpu_a_ns, "ns", f"CPU-only, A, {both}"
            ),
            FittedParameter("dpu_request_ns_C", dpu_c_ns, "ns", "DPU-only, C, Fig.12h"),
            FittedParameter("dpu_request_ns_A", dpu_a_ns, "ns", f"DPU-only, A, {both}"),
            FittedParameter(
                "window",
                latency * peak("DPU-only", "C") / 8,
                "packets an endpoint",
                "DPU-only's latency at its peak, C, Fig.12h",
            ),
            FittedParameter(
                "host_window", 0.0, "packets an endpoint", "not fitted: as many as the DPU's"
            ),
            _host_contention(),
            FittedParameter("bus_request_ns", 0.0, "ns", "not fitted: lat shows no such limit"),
            FittedParameter(
                "serve_request_ns",
                1e3 / saturation - process_ns,
                "ns",
                "sav's saturation, B, Fig.12i",
            ),
        ),
    )


# ---- From this machine


def costs_from_bench(results: Sequence[dict[str, Any]]) -> Costs:
    """Costs of this machine in the veth lab, from results of `dpukv bench --json`.

    Uses closed loops of one workload without emulation, by the columns of the designs: XDP's own
    store (dpu-only) gives the client and XDP's stages, one to one (lat) the queue pair and the
    processing engine, the host alone (cpu-only) its door, two doors (dual, shrd) what frames for
    one take more of the core that has the other, and one store behind two doors (dual) what
    sharing it costs. Several packet sizes give what a packet costs and what a request costs.
    Raises UsageError if one of the first three is missing.
    """
    usable = merged(calibration(results), lambda r: (r["design"], packet_requests(r)))
    kinds: dict[str, Callable[[Design], bool]] = {
        "dpu": lambda row: row.communication == row.processing == ("dpu",),
        "host": lambda row: row.communication == row.processing == ("host",),
        "across": lambda row: (
            row.communication == ("dpu",) != row.processing and row.pairing == "one-to-one"
        ),
    }
    rows = {kind: _rows(usable, applies) for kind, applies in kinds.items()}
    missing = [
        next(row.name for row in DESIGNS.values() if applies(row))
        for kind, applies in kinds.items()
        if not rows[kind]
    ]
    if missing:
        raise UsageError(
            f"there are no results of {', '.join(missing)}, which costs are made of: run "
            "`dpukv bench --design all --json FILE`"
        )
    fused_dpu, fused_host, offloaded = rows["dpu"], rows["host"], rows["across"]
    client = _line([(n, _role_ns(r, "client")) for n, r in fused_dpu])
    process = _line([(n, _host_ns(r, "process")) for n, r in offloaded])
    one_store = _rows(usable, lambda row: row.has_one_store)
    shared_process = _line([(n, _host_ns(r, "process")) for n, r in one_store])
    two_doors = _rows(usable, lambda row: len(row.communication) > 1)
    size = _line(
        [
            (n, mean(r["wire_bytes_per_op"].values()))
            for n, r in (*fused_dpu, *fused_host, *offloaded)
        ]
    )
    first, machine = usable[0], usable[0]["machine"]
    forward = _line([(n, _role_ns(r, "dpu")) for n, r in fused_host])
    of_dpu_door: dict[Place, Rows] = {"dpu": fused_dpu, "host": offloaded}
    more, more_burst_ns = _two_doors(two_doors, client, forward, of_dpu_door)
    return Costs(
        name="measured",
        source=(
            f"measured: {len(usable)} bench results, YCSB {first['workload']}, "
            f"{first['distribution']} keys, on {machine['cores']} cores of {machine['cpu']}"
        ),
        host=_host_engine(fused_host, process),
        dpu=_dpu_engine(fused_dpu, offloaded),
        shared_store=_difference(shared_process, process),
        forward=forward,
        two_doors=more,
        two_doors_burst_ns=more_burst_ns,
        client=ClientCosts(cost=client, lump=LAB_BURST_PACKETS, is_in_lab=True),
        bus=BusCosts(latency_us=LAB_HAND_OVER_US),
        packet_header_bytes=round(size.unit_ns),
        packet_request_bytes=round(size.request_ns),
        requests_per_packet=max(n for n, _ in offloaded),
        window=first["window"],
        burst_packets=LAB_BURST_PACKETS,
        transfer_packets=1,
        parked_transfers=LAB_PARKED,
        carried_by_frames=True,
        flush_after_us=ServerConfig().flush_after_us,
        pause_us=LAB_PAUSE_US,
        dpu_cores=1,
        host_cores=1,
    )


Rows = list[tuple[int, dict[str, Any]]]
"""Requests in a packet, and the result."""


def _dpu_engine(fused: Rows, offloaded: Rows) -> EngineCosts:
    return EngineCosts(
        receive=_line([(n, _work_ns(r)["receive"]) for n, r in offloaded]),
        parse=_line([(n, _work_ns(r)["parse"]) for n, r in offloaded]),
        process=_line([(n, _work_ns(r)["process"]) for n, r in fused]),
        prepare=Cost(request_ns=LAB_PREPARE_NS),
        # Building the answer needs the host's.
        send=_line([(n, _work_ns(r)["prepare"] - LAB_PREPARE_NS) for n, r in offloaded]),
    )


def _host_engine(fused: Rows, process: Cost) -> EngineCosts:
    def stage(name: str) -> Cost:
        return _line([(n, _host_ns(r, name)) for n, r in fused])

    # Processing takes another time on a core that has just received and parsed: with the rest.
    send = [
        (n, _host_ns(r, "send") + _host_ns(r, "process") - process.of(1, n) / n) for n, r in fused
    ]
    return EngineCosts(
        receive=stage("receive"),
        parse=stage("parse"),
        process=process,
        prepare=stage("prepare"),
        send=_line(send),
    )


def _two_doors(
    results: Rows, client: Cost, forward: Cost, of_dpu_door: dict[Place, Rows]
) -> tuple[Cost, float]:
    """What a frame for the host, and a burst with such frames, takes more of XDP's core if that has
    a door of its own: by what is left of that core's time.

    `of_dpu_door`: results of the DPU's door alone, by where it has its requests processed.
    """
    xdp = {place: _line([(n, _xdp_ns(r)) for n, r in rows]) for place, rows in of_dpu_door.items()}
    rows, values = [], []
    for n, result in results:
        share = float(result["host_share"])
        own = xdp[find_design(result["design"]).processing_of("dpu")]
        known_ns = client.of(1, n) + share * forward.of(1, n) + (1 - share) * own.of(1, n)
        more_ns = n * (_role_ns(result, "client") + _xdp_ns(result)) - known_ns
        rows.append((1 / LAB_BURST_PACKETS, share, n * share))
        values.append(max(more_ns, 0.0))
    if not rows:
        return Cost(), 0.0
    burst_ns, frame_ns, request_ns = _least_squares(rows, values)
    return Cost(frame_ns, request_ns), burst_ns


def _xdp_ns(result: dict[str, Any]) -> float:
    """XDP's time for one request of all, waiting left out."""
    return sum(ns for stage, ns in _work_ns(result).items() if stage != "wait")


def _host_ns(result: dict[str, Any], stage: str) -> float:
    return float(result["stages_ns_per_op"]["host"][stage])


def apart(costs: Costs) -> Costs:
    """The same with the client on a machine of its own, as over a real network: each endpoint has
    a window then, and a queue of what it can hold.
    """
    return replace(costs, client=ClientCosts(lump=costs.client.lump))


def on_dpu(costs: Costs, dpu: str) -> Costs:
    """Measured costs with the cores, the speed and the bus of a profile. What is for a host's door
    is steered there by hardware, past the DPU's cores.
    """
    profile = find_profile(dpu)
    if not profile.is_emulated:
        return costs
    return replace(
        costs,
        name=f"{costs.name} on {dpu}",
        source=f"{costs.source}; {profile.label()}",
        dpu=costs.dpu.times(1 / profile.dpu_speed),
        forward=Cost(),
        two_doors=Cost(),
        two_doors_burst_ns=0.0,
        bus=BusCosts(latency_us=profile.bus_latency_us, gbytes_per_s=profile.bus_gbytes_per_s),
        dpu_cores=profile.dpu_cores,
        host_cores=profile.dpu_cores,
    )


def calibration(results: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Of some results those that costs are made of: with the largest window."""
    usable = [result for result in results if _is_calibration(result)]
    window = max((result["window"] for result in usable), default=0)
    return [result for result in usable if result["window"] == window]


def packet_requests(result: dict[str, Any]) -> int:
    """Requests in a packet as they were sent: a packet that is asked to hold more than fits holds
    what fits.
    """
    return max(round(float(result["throughput_mops"]) / float(result["packets_mpps"])), 1)


def _is_calibration(result: dict[str, Any]) -> bool:
    """A closed loop of this machine as it is, with nothing switched."""
    return (
        bool(result.get("design"))
        and not result.get("rate")
        and not result.get("emulation")
        and bool(result.get("stages_ns_per_op"))
        and result.get("label", AS_IT_IS) in (*DESIGNS, AS_IT_IS)
    )


def _rows(results: Sequence[dict[str, Any]], applies: Callable[[Design], bool]) -> Rows:
    return [
        (packet_requests(result), result)
        for result in results
        if applies(find_design(result["design"]))
    ]


def _accounting_factor(result: dict[str, Any]) -> float:
    """What CPU time has to be multiplied with: it is taken in a phase of its own in which the
    kernel's statistics slow everything down (bench.py), so this is its throughput over the run's.
    """
    client = result["roles"]["client"]
    accounted_mops = client["cores"] / client["cpu_ns_per_op"] * 1e3
    return float(min(accounted_mops / result["throughput_mops"], 1.0))


def _role_ns(result: dict[str, Any], role: str) -> float:
    """CPU time of a role for one request, without the cost of accounting."""
    return float(result["roles"][role]["cpu_ns_per_op"]) * _accounting_factor(result)


def _work_ns(result: dict[str, Any]) -> dict[str, float]:
    """XDP's time for one request by stage: the kernel's total, in the proportions of the stage
    clocks, of which each adds its own reading; waiting is left out.
    """
    clocks = dict(result["stages_ns_per_op"]["dpu"])
    total_clocks = sum(clocks.values())
    total_ns = _role_ns(result, "dpu")
    return {stage: total_ns * ns / total_clocks for stage, ns in clocks.items()}


def _line(points: Sequence[tuple[int, float]]) -> Cost:
    """What a packet and a request cost, from (requests in a packet, ns for each): the least
    relative squares, neither below 0. One packet size alone says nothing about packets.
    """
    if not points:
        return Cost()
    packets_ns = [n * max(ns, 0.0) for n, ns in points]
    if len({n for n, _ in points}) == 1:
        return Cost(request_ns=mean(packets_ns) / points[0][0])
    return Cost(*_least_squares([(1.0, float(n)) for n, _ in points], packets_ns))


def _least_squares(rows: Sequence[Sequence[float]], values: Sequence[float]) -> list[float]:
    """Factors of the columns, none below 0, with the least relative squares: of those subsets of
    columns that allow it the best; of equally good ones the first, by fewest and by order.
    """
    columns, wanted = np.array(rows), np.array(values)
    weights = 1 / np.maximum(wanted, 1e-9)
    best, least = np.zeros(columns.shape[1]), np.inf
    numbers = range(columns.shape[1])
    for chosen in (c for size in numbers for c in combinations(numbers, size + 1)):
        weighted = columns[:, chosen] * weights[:, None]
        factors, *_ = np.linalg.lstsq(weighted, wanted * weights, rcond=None)
        squares = float(np.sum((weighted @ factors - wanted * weights) ** 2))
        if factors.min() >= 0 and squares < least - 1e-9:
            best, least = np.zeros(columns.shape[1]), squares
            best[list(chosen)] = factors
    return [float(factor) for factor in best]


def _difference(whole: Cost, part: Cost) -> Cost:
    return Cost(
        max(whole.unit_ns - part.unit_ns, 0.0), max(whole.request_ns - part.request_ns, 0.0)
    )


# ---- From and to files


def read_costs(path: Path) -> Costs:
    """Costs from a TOML file as `costs_toml` writes it, or from a JSON file of bench results.

    Raises UsageError for what is neither.
    """
    if path.suffix == ".json":
        return costs_from_bench(read_results(path))
    try:
        return msgspec.convert(tomllib.loads(path.read_text(encoding="utf-8")), Costs)
    except (OSError, tomllib.TOMLDecodeError, msgspec.ValidationError) as error:
        raise UsageError(f"{path} holds no costs: {error}") from error


def read_results(path: Path) -> list[dict[str, Any]]:
    """Results of `dpukv bench --json`: one, a list, or what `--design all` writes.

    Raises UsageError if the file is none of these.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UsageError(f"{path} holds no bench results: {error}") from error
    if isinstance(content, dict):
        content = content.get("results", [content])
    if not isinstance(content, list) or not all(
        isinstance(result, dict) and "throughput_mops" in result for result in content
    ):
        raise UsageError(f"{path} holds no bench results: write it with `dpukv bench --json`")
    return content


def find_costs(source: str, dpu: str, workload: str) -> Costs:
    """Costs by the command line's words: `paper`, `committed`, or a file's name."""
    if source == "paper":
        return costs_from_paper(dpu, workload)
    if source == "committed":
        if not MEASURED_PATH.exists():
            raise MissingError("--costs committed", f"{MEASURED_PATH}: use `--costs here`")
        source = str(MEASURED_PATH)
    if not source.endswith(".json"):
        return read_costs(Path(source))
    return costs_of_results(read_results(Path(source)), dpu, workload)


def costs_of_results(results: Sequence[dict[str, Any]], dpu: str, workload: str) -> Costs:
    """Costs from bench results, for a client apart and with a profile's cores and bus: of this
    workload with uniform keys, if there is any of it.
    """
    uniform = [
        result
        for result in results
        if (result["workload"], result["distribution"]) == (workload, "uniform")
    ]
    return on_dpu(apart(costs_from_bench(uniform or results)), dpu)


def costs_toml(costs: Costs) -> str:
    """The costs as TOML, to be changed by hand and read again."""
    lines: list[str] = []
    _write_table(lines, "", asdict(costs))
    return "\n".join(lines) + "\n"


def _write_table(lines: list[str], name: str, table: dict[str, Any]) -> None:
    if name:
        lines += ["", f"[{name}]"]
    for key, value in table.items():
        if not isinstance(value, dict):
            lines.append(f"{key} = {json.dumps(value)}")
    for key, value in table.items():
        if isinstance(value, dict):
            _write_table(lines, f"{name}.{key}" if name else key, value)
