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
from dpukv_xdp.topology.designs import DESIGNS, Design, Place, find_design
from dpukv_xdp.topology.profiles import find_profile
from dpukv_xdp.topology.schema import ServerConfig

AS_IT_IS = "as it is"
"""The label of a run of `bench --ablate` with nothing switched."""


# Numbers of the veth lab.
LAB_BURST_PACKETS = 16
"""Live frames sent at once, and frames that a host door takes at once."""
LAB_PARKED = 24
"""Most batches that `--respond adaptive` parks (the default of ServerConfig.depth)."""
LAB_HAND_OVER_US = 0.2
"""Hand-over one way: half of a blocking one by mapped ring, from `dpukv qp-bench`."""
LAB_PAUSE_US = 10.0
"""Pause of an engine's core by a timer tick, set by hand: more than 5 us (decision 4). Each frame
that arrives during it parks one further response, up to LAB_PARKED, and in a busy stream these stay
parked until a flush. The model has one tick since the last flush.
"""
LAB_PREPARE_NS = 2.0
"""Time per request in XDP that needs no answer from the host (docs/EXPERIMENTS.md, Ablation)."""


def costs_from_bench(results: Sequence[dict[str, Any]]) -> Costs:
    """Return this machine's costs in the veth lab, from results of `dpukv bench --json`.

    The results that count are closed loops of one workload without emulation. The columns of a
    design decide what its result gives: XDP's own store (dpu-only) the client and XDP's stages;
    one-to-one pairing (lat) the queue pair and the processing engine; the host alone (cpu-only) its
    door; two doors (dual, shrd) the additional cost of frames for one door on the core of the
    other; one store behind two doors (dual) the cost of sharing it. Several packet sizes separate
    the cost of a packet from that of a request. Raises UsageError if one of the first three is
    missing.
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
"""Pairs of requests per packet and result."""


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
        # Building a response needs the host's answer.
        send=_line([(n, _work_ns(r)["prepare"] - LAB_PREPARE_NS) for n, r in offloaded]),
    )


def _host_engine(fused: Rows, process: Cost) -> EngineCosts:
    def stage(name: str) -> Cost:
        return _line([(n, _host_ns(r, name)) for n, r in fused])

    # On a core that has just received and parsed, processing takes a different time: the difference
    # counts as sending.
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
    """Return the additional cost to XDP's core of frames for the host's door if the core has a door
    of its own, and that of a burst with such frames: the unexplained rest of the core's time.

    `of_dpu_door` has results of the DPU's door alone, by the place of its processing.
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
    """Return XDP's time per request without waiting, in ns."""
    return sum(ns for stage, ns in _work_ns(result).items() if stage != "wait")


def _host_ns(result: dict[str, Any], stage: str) -> float:
    return float(result["stages_ns_per_op"]["host"][stage])


def apart(costs: Costs) -> Costs:
    """Return the costs with the client on a machine of its own, as over a real network: each
    endpoint then has its own window.
    """
    return replace(costs, client=ClientCosts(lump=costs.client.lump))


def on_dpu(costs: Costs, dpu: str) -> Costs:
    """Return measured costs with the cores, the speed and the bus of a profile.

    Hardware steers frames for the host's door past the DPU's cores.
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
    """Return the results from which costs are computed: those with the largest window."""
    usable = [result for result in results if _is_calibration(result)]
    window = max((result["window"] for result in usable), default=0)
    return [result for result in usable if result["window"] == window]


def packet_requests(result: dict[str, Any]) -> int:
    """Return the requests per packet that were sent, which may be fewer than were asked for."""
    return max(round(float(result["throughput_mops"]) / float(result["packets_mpps"])), 1)


def _is_calibration(result: dict[str, Any]) -> bool:
    """Return whether a result is a closed loop of this machine without emulation or ablation."""
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
    """Return the factor that corrects CPU time for the slow-down while it was measured.

    CPU time comes from a phase in which the kernel's statistics slow everything down (bench.py);
    the factor is the throughput of that phase relative to the run's.
    """
    client = result["roles"]["client"]
    accounted_mops = client["cores"] / client["cpu_ns_per_op"] * 1e3
    return float(min(accounted_mops / result["throughput_mops"], 1.0))


def _role_ns(result: dict[str, Any], role: str) -> float:
    """Return a role's CPU time per request without the cost of accounting, in ns."""
    return float(result["roles"][role]["cpu_ns_per_op"]) * _accounting_factor(result)


def _work_ns(result: dict[str, Any]) -> dict[str, float]:
    """Return XDP's time per request by stage, in ns.

    The kernel's total is divided in the proportions of the stage clocks, because each of these
    includes its own reading.
    """
    clocks = dict(result["stages_ns_per_op"]["dpu"])
    total_clocks = sum(clocks.values())
    total_ns = _role_ns(result, "dpu")
    return {stage: total_ns * ns / total_clocks for stage, ns in clocks.items()}


def _line(points: Sequence[tuple[int, float]]) -> Cost:
    """Return the cost of a packet and of a request from (requests per packet, ns per request).

    Fits the least relative squares with neither cost below 0. With a single packet size the cost of
    a packet is unknown, and taken as 0.
    """
    if not points:
        return Cost()
    packets_ns = [n * max(ns, 0.0) for n, ns in points]
    if len({n for n, _ in points}) == 1:
        return Cost(request_ns=mean(packets_ns) / points[0][0])
    return Cost(*_least_squares([(1.0, float(n)) for n, _ in points], packets_ns))


def _least_squares(rows: Sequence[Sequence[float]], values: Sequence[float]) -> list[float]:
    """Return the columns' factors, none below 0, with the least relative squares.

    Tries every subset of columns and takes the best; of equally good ones the smallest, then the
    first.
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
