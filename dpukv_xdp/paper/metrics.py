# SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
"""Metrics: numbers read from one result of a run, by name."""

from collections.abc import Callable, Sequence
from typing import Any

from dpukv_xdp.wire import abi

Result = dict[str, Any]
Reader = Callable[[Any], float | None]
"""Return a number of a result, or None if the result does not have it."""
FLAT = 0.98
"""A curve counts as flat from the point where it reaches this share of its maximum."""
MANY_CORES = 6
"""Host cores at which Figure 10d's drop is looked for: the host's physical cores. The baseline is
two cores, one for each door.
"""

COMMUNICATION = ("receive", "parse", "prepare", "send")
RESPONSE = ("prepare", "send")


def _throughput(result: Result) -> float | None:
    return float(result["throughput_mops"])


def _latency(result: Result) -> float | None:
    latency = result["latency_us"]["p50"]
    return float(latency) if latency and result["throughput_mops"] else None


def _host_core_usage(result: Result) -> float | None:
    usage = result.get("host_core_usage")
    return None if usage is None else 100.0 * usage


def _over(value: float, base: float, factor: float = 1.0) -> float | None:
    return factor * value / base if base > 0 else None


def stage_sum_ns(result: Result, side: str, stages: Sequence[str] = ()) -> float:
    """Return the sum of a side's stage clocks for one request, of all stages or of some."""
    times = (result.get("stages_ns_per_op") or {}).get(side, {})
    return float(sum(time for name, time in times.items() if not stages or name in stages))


def cpu_ns(result: Result, side: str) -> float:
    """Return a side's CPU time for one request."""
    role = result["roles"][side]
    return 0.0 if role is None else float(role["cpu_ns_per_op"])


def _cpu_share(*stages: str) -> Reader:
    """Read the percentage of the host's CPU time that these stages took, at most 100."""

    def share(result: Result) -> float | None:
        whole = max(cpu_ns(result, "host"), stage_sum_ns(result, "host"))
        return _over(stage_sum_ns(result, "host", stages), whole, 100.0)

    return share


def _cpu_others(result: Result) -> float | None:
    whole = cpu_ns(result, "host")
    return _over(max(whole - stage_sum_ns(result, "host"), 0.0), max(whole, 1e-9), 100.0)


def _processing_share(result: Result) -> float | None:
    process = stage_sum_ns(result, "host", ("process",))
    return _over(process, process + stage_sum_ns(result, "host", COMMUNICATION), 100.0)


def _communication_over_processing(result: Result) -> float | None:
    process = stage_sum_ns(result, "host", ("process",))
    return _over(stage_sum_ns(result, "host", COMMUNICATION), process)


def _receive_share(result: Result) -> float | None:
    whole = stage_sum_ns(result, "host", COMMUNICATION)
    return _over(stage_sum_ns(result, "host", ("receive",)), whole, 100.0)


def _bytes(path: str, direction: str) -> Reader:
    def read(result: Result) -> float | None:
        found = (result.get(path) or {}).get(direction, 0.0)
        return float(found) if found else None

    return read


def _door_throughput(result: Result) -> tuple[float, float] | None:
    """Return the Mops of the DPU's and of the host's door, by the records in the queue pair."""
    share = result.get("host_share")
    if share is None:
        return None
    counters = result.get("server_counters") or {}
    records = counters.get("qp_request_bytes", 0) / abi.SIZE("kv_request")
    in_dpu = min(records / max(counters.get("requests_received", 0), 1), 1.0)
    whole = float(result["throughput_mops"])
    return whole * in_dpu, whole * (1 - in_dpu)


def _of_door(door: int) -> Reader:
    def read(result: Result) -> float | None:
        found = _door_throughput(result)
        return None if found is None else found[door]

    return read


def _transfer_us(result: Result) -> float | None:
    """Return the round trip of one packet's requests through the queue pair, with processing.

    Only runs that wait for each response have it.
    """
    if result.get("respond") != "wait" or not result.get("stages_ns_per_op"):
        return None
    requests = int(result["requests_per_packet"])
    return stage_sum_ns(result, "dpu", ("wait",)) * requests / 1e3


def transfer_median_ns(
    result: Result, direction: str, mode: str, size: int | None = None
) -> float | None:
    """Return the median latency of a hand-over with the payload nearest to `size` bytes; by default
    the smallest.
    """
    found = [
        each
        for each in result["measurements"]
        if (each["direction"], each["mode"]) == (direction, mode)
    ]
    if not found:
        return None
    wanted = min((each["bytes"] for each in found), key=lambda b: abs(b - (size or 0)))
    return next(float(e["latency_ns"]["p50"]) for e in found if e["bytes"] == wanted)


def _transfer_size_ratio(result: Result) -> float | None:
    small = transfer_median_ns(result, "dpu-to-host", "blocking")
    large = transfer_median_ns(result, "dpu-to-host", "blocking", 2048)
    return None if small is None or large is None else _over(large, small)


def _mops(curve: Sequence[Result]) -> list[float]:
    return [float(row["throughput_mops"]) for row in curve]


def _model_scaling(curve: Sequence[Result]) -> float:
    """Return the DPU door's throughput with the most cores relative to one core."""

    def by_dpu(row: Result) -> float:
        doors = row["door_mops"]
        return float(doors.get("dpu", row["throughput_mops"]))

    return by_dpu(curve[-1]) / by_dpu(curve[0])


def _model_flat_from(curve: Sequence[Result]) -> float:
    top = max(_mops(curve))
    return float(next(row["cores"] for row in curve if row["throughput_mops"] >= FLAT * top))


def _at(curve: Sequence[Result], at: int, name: str = "cores") -> Result:
    return next(row for row in curve if row[name] == at)


def _model_buffer(read: Callable[[Result], float], requests: int, over: int) -> Reader:
    """Read a number of the model for transfers of `requests`, relative to transfers of `over`."""

    def ratio(curve: Sequence[Result]) -> float | None:
        return _over(read(_at(curve, requests, "requests")), read(_at(curve, over, "requests")))

    return ratio


def _model_door(door: str) -> Callable[[Result], float]:
    return lambda row: float(row["door_mops"][door])


RESULT_METRICS: dict[str, Reader] = {
    "throughput": _throughput,
    "latency": _latency,
    "host_core_usage": _host_core_usage,
    "cpu_receive": _cpu_share("receive"),
    "cpu_parse": _cpu_share("parse"),
    "cpu_response": _cpu_share(*RESPONSE),
    "cpu_get_set": _cpu_share("process"),
    "cpu_comm_total": _cpu_share(*COMMUNICATION),
    "cpu_others": _cpu_others,
    "comm_over_getset": _communication_over_processing,
    "comm_over_processing": _communication_over_processing,
    "receive_share_of_comm": _receive_share,
    "processing_share": _processing_share,
    "qp_request": _bytes("qp_bytes_per_op", "request"),
    "qp_response": _bytes("qp_bytes_per_op", "response"),
    "wire_request": _bytes("wire_bytes_per_op", "request"),
    "wire_response": _bytes("wire_bytes_per_op", "response"),
    "dpu_throughput": _of_door(0),
    "host_throughput": _of_door(1),
    "transfer_us": _transfer_us,
    "transfer_size_ratio": _transfer_size_ratio,
    "model_scaling": _model_scaling,
    "model_flat_from": _model_flat_from,
    "model_peak": lambda curve: max(_mops(curve)),
    "model_transfer_growth": lambda curve: _over(
        _at(curve, MANY_CORES)["transfer_us"], _at(curve, 2)["transfer_us"]
    ),
    "model_door_ratio": lambda curve: _over(
        _at(curve, MANY_CORES)["door_mops"]["dpu"], _at(curve, 2)["door_mops"]["dpu"]
    ),
    "model_4kb_over_1kb": _model_buffer(lambda row: float(row["throughput_mops"]), 128, 32),
    "model_dpu_4kb_over_2kb": _model_buffer(_model_door("dpu"), 128, 64),
    "model_host_4kb_over_2kb": _model_buffer(_model_door("host"), 128, 64),
}
