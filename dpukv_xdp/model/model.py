# SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
"""A model of machines that we do not have: throughput, latency and utilisation of any design, with
any number of cores, on any DPU.

`simulate` computes one point, `sweep` a curve, and `figure12` the scaling that the paper measured.
Costs come from costs.py, the event loop from events.py.
"""

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

import numpy as np

from dpukv_xdp.base.errors import OptionError, UsageError
from dpukv_xdp.base.plotting import pyplot, save_figure
from dpukv_xdp.model.costs import Costs
from dpukv_xdp.model.events import run_events
from dpukv_xdp.model.paper_costs import SPARE_HOST_CORES, costs_from_paper
from dpukv_xdp.model.paper_values import paper_names, paper_values
from dpukv_xdp.model.world import Machine, Observation
from dpukv_xdp.topology import ranges
from dpukv_xdp.topology.designs import DESIGNS, Design, find_design
from dpukv_xdp.topology.profiles import PROFILES

SHARED_LIMIT = 0.9
"""Peak utilisation from which the busiest resource counts as the bottleneck."""
TITLE_COLUMNS = 110
LOAD_FRACTIONS = (1 / 32, 1 / 16, 1 / 8, 1 / 4, 3 / 8, 1 / 2, 3 / 4, 1)
"""Fractions of the window, or of the rate, in a sweep over the load."""

SCALING = ("arm_cores_at_saturation", "scaling_with_arm_cores_1_to_8", "arm_cores_at_peak")
"""Metrics of the paper's statements about curves over cores (section 6.4)."""

Sweep = Literal["dpu-cores", "host-cores", "load"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """A point to simulate; None stands for the default of the costs and the design."""

    design: str
    dpu_cores: int | None = None
    host_cores: int | None = None
    """Host cores that the design may use."""
    requests_per_packet: int | None = None
    window: int | None = None
    """Packets outstanding per endpoint (in the veth lab: in total)."""
    rate_mops: float = 0.0
    """Offered load of an open loop in million requests per second; 0 for a closed loop."""
    host_share: float = 0.0
    """Fraction of the requests that arrive at the host's door, 0 to 1; 0 = equal endpoints."""
    seed: int = 1


@dataclass(frozen=True, slots=True)
class Prediction:
    """The result of one simulated point."""

    design: str
    costs: str
    """Name of the costs."""
    dpu_cores: int
    host_cores: int
    """Host cores that work: the paper's host core usage."""
    requests_per_packet: int
    window: int
    rate_mops: float
    throughput_mops: float
    interval: float
    """Half of the throughput's 95 % confidence interval, relative to the throughput."""
    latency_us: dict[str, float]
    """Round trip in microseconds: mean, p50, p99. Interference by other programs is not modelled.
    """
    door_mops: dict[str, float]
    """Throughput by door, in million requests per second."""
    transfer_us: float
    """Mean time from the start of a transfer to its arrival beyond the bus; 0 without transfers."""
    utilisation: dict[str, float]
    """Mean utilisation by resource, 0 to 1: client, wire, bus, and the cores of dpu and host."""
    peak_utilisation: dict[str, float]
    """Utilisation of each resource's busiest core or direction, 0 to 1."""
    bottleneck: str
    """The resource with the highest peak utilisation; `none` if that is below SHARED_LIMIT."""
    is_saturated: bool
    """Whether an open loop offered more than was answered, so that latency grows without limit."""
    batches: int
    """Number of answered batches."""

    def to_json(self) -> dict[str, Any]:
        """Return the prediction as `--json` prints it."""
        return asdict(self)


def simulate(costs: Costs, point: Point) -> Prediction:
    """Simulate one point; the seed determines the result. Raises UsageError for invalid values."""
    design = find_design(point.design)
    dpu_cores = costs.dpu_cores if point.dpu_cores is None else point.dpu_cores
    host_cores = (
        default_host_cores(design, costs, dpu_cores)
        if point.host_cores is None
        else point.host_cores
    )
    requests = _given(point.requests_per_packet, costs.requests_per_packet)
    window = _given(point.window, costs.window)
    _check(design, costs, point, dpu_cores, host_cores, requests, window)
    seen = run_events(
        Machine(
            design=design,
            costs=costs,
            dpu_cores=dpu_cores,
            host_cores=host_cores,
            requests_per_packet=requests,
            window=window,
            host_window=_given(point.window, costs.host_window or window),
            rate_mops=point.rate_mops,
            host_share=point.host_share,
            seed=point.seed,
        )
    )
    uses_dpu = "dpu" in seen.utilisation
    return Prediction(
        design=design.name,
        costs=costs.name,
        dpu_cores=dpu_cores if uses_dpu else 0,
        host_cores=host_cores,
        requests_per_packet=requests,
        window=window,
        rate_mops=point.rate_mops,
        throughput_mops=seen.throughput_mops,
        interval=seen.interval,
        latency_us=_latency(seen),
        door_mops={str(door): mops for door, mops in seen.door_mops.items()},
        transfer_us=seen.transfer_us,
        utilisation=seen.utilisation,
        peak_utilisation=seen.peak_utilisation,
        bottleneck=_bottleneck(seen.peak_utilisation),
        is_saturated=point.rate_mops > 0 and seen.throughput_mops < 0.97 * point.rate_mops,
        batches=seen.answered_batches,
    )


def default_host_cores(design: Design, costs: Costs, dpu_cores: int) -> int:
    """Return the paper's number of host cores (section 6.1).

    Many-to-one has one, and two spare ones if the host has a door; one-to-one has one per DPU core;
    otherwise the costs state it.
    """
    if "host" not in (*design.communication, *design.processing):
        return 0
    if design.pairing == "many-to-one":
        return min(
            1 + SPARE_HOST_CORES * ("host" in design.communication), max(costs.host_cores, 1)
        )
    if design.pairing == "one-to-one":
        return min(dpu_cores, costs.host_threads_max or dpu_cores)
    return costs.host_cores


@dataclass(frozen=True, slots=True)
class Limit:
    """The most host cores that a design can use."""

    cores: int
    reason: str
    """The cause of the limit, as a sentence without a full stop."""


def host_cores_limit(design: Design, costs: Costs, dpu_cores: int) -> Limit:
    """Return the most host cores that a design can use beside so many DPU cores."""
    machine = machine_limit(costs)
    if not design.has_native_threads:
        return Limit(0, f"design {design.name} runs on the DPU alone")
    if design.pairing == "many-to-one" and not design.has_door("host"):
        return Limit(1, f"design {design.name} has one host core, which serves all DPU cores")
    if design.pairing == "one-to-one" and dpu_cores < machine.cores:
        reason = (
            f"design {design.name} has one host core for each DPU core, and there are {dpu_cores} "
            f"(--dpu-cores)"
        )
        return Limit(dpu_cores, reason)
    return machine


def machine_limit(costs: Costs) -> Limit:
    """Return the most host cores of the machine that the costs describe."""
    if costs.host_threads_max:
        reason = f"the costs are of a host with {costs.host_threads_max} hardware threads"
        return Limit(costs.host_threads_max, reason)
    return Limit(ranges.CORES_MAX, "the model has no more cores")


def check_host_cores(host_cores: int, limit: Limit) -> None:
    """Raise OptionError if there are more host cores than the limit."""
    if host_cores > limit.cores:
        raise OptionError(
            "host_cores",
            f"--host-cores {host_cores} is more than {limit.cores}: {limit.reason}; use at most "
            f"{limit.cores}",
        )


def sweep(
    costs: Costs, point: Point, over: Sweep, values: Sequence[float] = ()
) -> list[Prediction]:
    """Return a curve over cores, from 1 to the point's number, or over the load.

    The load grows with the packets outstanding, as with the paper's client threads. If `values` are
    given, they are the core counts, or the open-loop rates in million requests per second.
    """
    if over == "load":
        if values:
            return [simulate(costs, replace(point, rate_mops=rate)) for rate in values]
        whole = _given(point.window, costs.window)
        host = _given(point.window, costs.host_window or whole)
        point = replace(point, window=None)
        loads = [
            replace(
                costs,
                window=max(round(part * whole), 1),
                host_window=max(round(part * host), 1),
            )
            for part in LOAD_FRACTIONS
        ]
        return [simulate(load, point) for load in loads]
    base = simulate(costs, point)
    if over == "dpu-cores":
        counts = [int(value) for value in values] or range(1, (base.dpu_cores or 1) + 1)
        return [simulate(costs, _with_dpu_cores(costs, point, count)) for count in counts]
    most = _given(point.host_cores, base.host_cores)
    counts = [int(value) for value in values] or range(1, most + 1)
    return [simulate(costs, replace(point, host_cores=count)) for count in counts] or [base]


def _with_dpu_cores(costs: Costs, point: Point, dpu_cores: int) -> Point:
    """Return a point of a curve over DPU cores, with at most as many host cores as it can use."""
    limit = host_cores_limit(find_design(point.design), costs, dpu_cores)
    host_cores = None if point.host_cores is None else min(point.host_cores, limit.cores)
    return replace(point, dpu_cores=dpu_cores, host_cores=host_cores)


def _given(value: int | None, default: int) -> int:
    return default if value is None else value


@dataclass(frozen=True, slots=True)
class ScalingRow:
    """One point of Figure 12d-e or i-j, and the paper's statements about it."""

    design: str
    cores: int
    """DPU cores; host cores for a design that uses no DPU core (section 6.4)."""
    prediction: Prediction
    paper_mops: tuple[float, float] | None
    """Range of the paper's numbers, in million requests per second; None if it states none."""
    paper_says: str
    """The paper's text about the curve."""


def figure12(
    dpu: str, *, workload: str = "B", cores: Sequence[int] = range(1, 9), seed: int = 1
) -> list[ScalingRow]:
    """Return throughput over cores for every design that the DPU can run: Figure 12d-e (bf2) and
    i-j (bf3).

    The skewed curves (e, j) are not checked. The model's client has a window per endpoint, so that
    no endpoint is idle under skew, and the paper does not state how much caches speed up the cores
    under skew. The point at which dual reaches the bus's limit (six ARM cores in e) depends on it.
    """
    costs = costs_from_paper(dpu, workload)
    rows = []
    for design in DESIGNS.values():
        if not design.is_compared or not _can_run(dpu, design):
            continue
        for count in cores:
            has_dpu = "dpu" in design.communication
            point = Point(
                design=design.name,
                dpu_cores=count if has_dpu else None,
                host_cores=None if has_dpu else count,
                seed=seed,
            )
            prediction = simulate(costs, point)
            allowed, says = _paper_scaling(dpu, design.name, workload, count)
            rows.append(ScalingRow(design.name, count, prediction, allowed, says))
    return rows


def plot_sweep(
    curves: Mapping[str, Sequence[Prediction]],
    over: Sweep | Literal["cores"],
    title: str,
    path: Path,
    marks: Mapping[str, Sequence[tuple[float, float, float]]] = MappingProxyType({}),
) -> None:
    """Plot throughput and latency of curves; the path's suffix chooses the format.

    Over `cores`, the axis has DPU cores, or host cores for a design that uses no DPU core. `marks`
    are the paper's values by curve: a position on the axis, and a range of throughput.
    """
    figure, left, right = _two_axes()
    for name, points in curves.items():
        throughput = [point.throughput_mops for point in points]
        mean = [point.latency_us["mean"] for point in points]
        p99 = [point.latency_us["p99"] for point in points]
        across = [float(point.window) for point in points]
        if over != "load":
            across = _cores(points, over)
        (line,) = left.plot(across, throughput, "o-", label=name, markersize=4)
        for place, low, high in marks.get(name, ()):
            left.plot([place, place], [low, high], "_-", color=line.get_color(), markersize=14)
        where = throughput if over == "load" else across
        right.plot(where, mean, "o-", color=line.get_color(), markersize=4)
        right.plot(where, p99, "s--", color=line.get_color(), markersize=3, alpha=0.6)
    labels = {
        "cores": "cores of the DPU (cpu-only: of the host)",
        "dpu-cores": "DPU cores",
        "host-cores": "host cores",
        "load": "packets outstanding at an endpoint",
    }
    left.set(xlabel=labels[over], ylabel="million requests per second", ylim=(0, None))
    right.set(
        xlabel="million requests per second" if over == "load" else labels[over],
        ylabel="round trip, µs (dashed: 99 %)",
        ylim=(0, None),
    )
    for axes in (left, right):
        axes.grid(True, alpha=0.3)
        axes.margins(y=0.1)
    left.legend(fontsize="small")
    _save(figure, title, path)


def load_around(costs: Costs, point: Point) -> list[Prediction]:
    """Return a curve over the load that ends at the point: with fewer packets outstanding, or with
    lower rates for an open loop.
    """
    rates = [part * point.rate_mops for part in LOAD_FRACTIONS] if point.rate_mops else []
    return sweep(costs, point, "load", rates)


def plot_points(curves: Mapping[str, Sequence[Prediction]], title: str, path: Path) -> None:
    """Plot points, each at the end of its curve over the load, and the utilisation of resources.

    A bar is the mean over cores; the line on it is the busiest core. The path's suffix chooses the
    format. Raises UsageError if the file cannot be written.
    """
    figure, left, right = _two_axes()
    points = {name: curve[-1] for name, curve in curves.items()}
    resources = sorted(
        {
            name
            for each in points.values()
            for name, part in each.utilisation.items()
            if part >= 0.005
        }
    )
    width = 0.8 / len(points)
    for index, (name, point) in enumerate(points.items()):
        throughput = [each.throughput_mops for each in curves[name]]
        mean = [each.latency_us["mean"] for each in curves[name]]
        (line,) = left.plot(throughput, mean, "o-", label=name, markersize=3)
        left.plot(throughput[-1:], mean[-1:], "*", color=line.get_color(), markersize=14)
        places = np.arange(len(resources)) + (index - (len(points) - 1) / 2) * width
        means = [100 * point.utilisation.get(resource, 0.0) for resource in resources]
        peaks = [100 * point.peak_utilisation.get(resource, 0.0) for resource in resources]
        right.bar(places, means, width, color=line.get_color(), label=name)
        right.plot(places, peaks, "_", color="black", markersize=300 * width / len(resources))
    left.set(
        xlabel="million requests per second",
        ylabel="round trip, mean, µs",
        xlim=(0, None),
        ylim=(0, None),
    )
    right.set(ylabel="busy, % (line: its busiest core)", ylim=(0, 105))
    right.set_xticks(range(len(resources)), resources)
    for axes in (left, right):
        axes.grid(True, axis="y", alpha=0.3)
    left.legend(fontsize="small", title="over the load; star: this point")
    _save(figure, title, path)


def _two_axes() -> tuple[Any, Any, Any]:
    """Return a figure and its two axes, side by side."""
    figure, (left, right) = pyplot().subplots(1, 2, figsize=(11, 4.6), layout="constrained")
    return figure, left, right


def _save(figure: Any, title: str, path: Path) -> None:
    figure.suptitle("\n".join(textwrap.wrap(title, TITLE_COLUMNS)), fontsize="medium")
    save_figure(figure, path)


def _cores(points: Sequence[Prediction], over: str) -> list[float]:
    if over == "cores":
        return [float(point.dpu_cores or point.host_cores) for point in points]
    return [float(point.dpu_cores if over == "dpu-cores" else point.host_cores) for point in points]


def _paper_scaling(
    dpu: str, design: str, workload: str, cores: int
) -> tuple[tuple[float, float] | None, str]:
    column = {"bf2": "BF-2", "bf3": "BF-3"}[dpu]
    rows = [
        row
        for metric in ("throughput_peak", "saturation_throughput", *SCALING)
        for row in paper_values(metric, dpu=column, design=paper_names()[design], workload=workload)
        if "uniform" in row.distribution
    ]
    says = "; ".join(
        dict.fromkeys(
            f"{row.metric.replace('_', ' ')}: {row.text}"
            for row in rows
            if row.figure_table.startswith(("Fig.12d", "Fig.12i"))
        )
    )
    values = [
        row.value
        for row in rows
        if row.value is not None
        and (row.metric == "saturation_throughput" and cores >= 4)
        | (row.metric == "throughput_peak" and cores == 8)
    ]
    return ((min(values), max(values)) if values else None), says


def _can_run(dpu: str, design: Design) -> bool:
    try:
        PROFILES[dpu].check(design)
    except UsageError:
        return False
    return True


def _latency(seen: Observation) -> dict[str, float]:
    latencies = np.array(seen.latencies_us)
    p50, p99 = np.percentile(latencies, [50, 99])
    return {"mean": float(latencies.mean()), "p50": float(p50), "p99": float(p99)}


def _bottleneck(peak_utilisation: dict[str, float]) -> str:
    name, busy = max(peak_utilisation.items(), key=lambda item: item[1])
    return name if busy >= SHARED_LIMIT else "none"


def _check(
    design: Design,
    costs: Costs,
    point: Point,
    dpu_cores: int,
    host_cores: int,
    requests: int,
    window: int,
) -> None:
    ranges.check("model_cores", dpu_cores, "--dpu-cores")
    ranges.check("model_requests_per_packet", requests, "--requests-per-packet")
    ranges.check("model_window", window, "--window")
    if point.rate_mops:
        ranges.check("rate", point.rate_mops * 1e6)
    ranges.check("host_share", point.host_share)
    if design.has_native_threads:
        ranges.check("model_cores", host_cores, "--host-cores")
    check_host_cores(host_cores, host_cores_limit(design, costs, dpu_cores))
