# SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
"""Costs of the paper's machine: Table 1 gives the shares of a host core's time by stage, the
throughput of CPU-only and DPU-only gives the time of a whole request.

A few fitted parameters complete them, each in closed form from one value of the paper (`PaperFit`);
`ASSUMPTIONS` lists the numbers that the paper does not print.
"""

from dataclasses import dataclass

from dpukv_xdp.base.errors import UsageError
from dpukv_xdp.model.costs import (
    VARIATION,
    BusCosts,
    ClientCosts,
    Cost,
    Costs,
    EngineCosts,
    thread_speed,
)
from dpukv_xdp.model.paper_values import paper_range, paper_results
from dpukv_xdp.topology.profiles import find_profile

SET_SHARES = {"A": 0.5, "B": 0.05, "C": 0.0}
"""Share of SETs in each YCSB workload (section 3.1)."""


# Assumptions about the paper's machine; ASSUMPTIONS has their reasons.
PREPARE_SHARE = 0.5
CLIENT_LUMP_PACKETS = 32
WIRE_LATENCY_US = 6.0
POST_NS = 200.0
BF2_SERVE_NS = 0.0
PARKED_TRANSFERS = {"bf2": 0, "bf3": 1}
HOST_THREADS = 8
"""Host threads of CPU-only (section 6.1), to which its throughput and Table 1 refer."""
SPARE_HOST_CORES = 2
"""Host cores for the host's door in a design with one core for the DPU's door (section 4.5)."""


@dataclass(frozen=True, slots=True)
class FittedParameter:
    """A number of the model that was set to reproduce one value of the paper."""

    name: str
    value: float
    unit: str
    fitted_on: str
    """The paper's value and its place; or how else the number was chosen."""


@dataclass(frozen=True, slots=True)
class Assumption:
    """A number of the model that the paper neither prints nor determines."""

    name: str
    value: float
    unit: str
    why: str


@dataclass(frozen=True, slots=True)
class PaperFit:
    """The fitted parameters of one DPU in the paper's host; all other values are held out."""

    dpu: str
    """The profile's name."""
    column: str
    """The DPU's name in the paper's table."""
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
"""Assumptions of the paper's costs, with reasons."""


def fit_paper(dpu: str) -> PaperFit:
    """Return a DPU's fitted parameters, each in closed form.

    Raises UsageError for a DPU that is not in the paper.
    """
    if dpu == "bf2":
        return _fit_bf2()
    if dpu == "bf3":
        return _fit_bf3()
    raise UsageError(f"the paper has no DPU {dpu!r}: choose bf2 or bf3, or measured costs")


def costs_from_paper(dpu: str, workload: str = "C") -> Costs:
    """Return the costs of the paper's machine with a DPU, for uniform keys.

    A packet holds one request, as the bytes per packet show (section 4.2.1); a transfer is a burst
    (section 6.1). A core prepares responses while its transfer is processed (Figure 10a). Raises
    UsageError for an unknown DPU or workload.
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
    """Return Table 1's shares of a host core's time by stage, scaled so that they add up to 1."""
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
    """Return a request's time by its workload's share of SETs, on a line through YCSB C and A."""
    part = SET_SHARES[workload] / SET_SHARES["A"]
    return request_c_ns + part * (request_a_ns - request_c_ns)


def _host_contention() -> FittedParameter:
    """Return the host's contention: the throughput that two spare host cores add to sav, relative
    to that of two of CPU-only's eight. Both DPUs are in the same host.
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
