# SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
"""Costs of this machine in the veth lab, from the stage clocks and CPU times in the results of
`dpukv bench --json`.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import combinations
from statistics import mean
from typing import Any

import numpy as np

from dpukv_xdp.base.errors import UsageError
from dpukv_xdp.base.repeats import merged
from dpukv_xdp.model.costs import BusCosts, ClientCosts, Cost, Costs, EngineCosts
from dpukv_xdp.topology.config import ServerConfig
from dpukv_xdp.topology.designs import DESIGNS, Design, Place, find_design
from dpukv_xdp.topology.profiles import find_profile

AS_IT_IS = "as it is"
"""The label of a run of `bench --ablate` with nothing switched."""


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
    fused_dpu, fused_host, offloaded = _required_rows(usable)
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


def _required_rows(usable: Sequence[dict[str, Any]]) -> tuple[Rows, Rows, Rows]:
    """Return the results of XDP alone, of the host alone, and of one host core for each DPU core.

    Raises UsageError if one of the three is missing.
    """
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
    return rows["dpu"], rows["host"], rows["across"]


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
