# SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
"""Differences of counters between two moments: throughput, CPU times and stages of a run."""

from dataclasses import dataclass
from typing import Any

from dpukv_xdp.load.loadgen import Snapshot
from dpukv_xdp.wire import abi

ACCOUNTING_DIFFERENCE_MAX = 0.2
"""Relative distance from the run's throughput above which the accounting phase is noted."""

CPU_METHOD = (
    "dpu: CPU time of the interface's NAPI threads, if it has any (--dpu-cpus), else BPF run-time "
    "statistics of kv_receive, which include waiting but not the driver's own work; client: CPU "
    "time of the generating thread, less dpu where that runs on top of it; both and the stages "
    "from an accounting phase after the run (accounting_mops); host: CPU time of the native "
    "threads in the run, which poll all the time (busy_fraction: share of it spent on batches); "
    "stolen_fraction of client and host: share of their cores' time in the run that unrelated "
    "processes used"
)
ACCOUNTING_NOTE = (
    f"CPU time of client and dpu, and stages, are from an accounting phase whose throughput was "
    f"more than {ACCOUNTING_DIFFERENCE_MAX:.0%} away from the run's (accounting_mops)"
)
STAGE_METHOD = (
    f"one frame in {abi.KV_STAGE_FRAMES} (XDP) or one turn in 16 (host) is timed by clock, the "
    "reading of the clock included; process on the host: all batches, by the engine's own clock; "
    "receive: headers, or taking frames from the ring; wait: XDP polling for the engine; send: to "
    "the transmit ring (XDP_TX is in the driver, and not seen)"
)

RoleTimes = dict[str, float]


@dataclass(frozen=True, slots=True)
class Interval:
    """The counters at two moments, and their differences."""

    before: Snapshot
    after: Snapshot
    server_before: dict[str, Any] | None
    server_after: dict[str, Any] | None

    def seconds(self) -> float:
        """Return the time between the generator's two snapshots."""
        return (self.after.at_ns - self.before.at_ns) / 1e9

    def throughput_mops(self) -> float:
        """Return the million requests answered per second."""
        return self.received("responses") / self.seconds() / 1e6

    def received(self, name: str) -> int:
        """Return the growth of a field of kv_load_results."""
        return self.after.received[name] - self.before.received[name]

    def sent(self, name: str) -> int:
        """Return the growth of a field of kv_load_cursor."""
        return self.after.sent[name] - self.before.sent[name]

    def server_counters(self) -> dict[str, int] | None:
        """Return the growth of the communication engine's counters; None for a remote server."""
        return self._growth_of("counters")

    def link_counters(self) -> dict[str, int] | None:
        """Return what the server's link lost, by cause; None for a remote server."""
        return self._growth_of("link")

    def _growth_of(self, part: str) -> dict[str, int] | None:
        if self.server_before is None or self.server_after is None:
            return None
        before = self.server_before[part]
        return {
            name: count - before[name]
            for name, count in self.server_after[part].items()
            if count != before[name]
        }

    def queue_pair_bytes_per_op(self) -> dict[str, float] | None:
        """Return the bytes per request and per response that crossed the queue pair."""
        counters = self.server_counters()
        if counters is None:
            return None
        return {
            "request": counters.get("qp_request_bytes", 0)
            / max(counters.get("requests_received", 0), 1),
            "response": counters.get("qp_response_bytes", 0)
            / max(counters.get("responses_sent", 0), 1),
        }

    def client_ns(self) -> int:
        """Return the CPU time of the generating thread, with the softirqs on top of it, in ns."""
        return self.after.cpu_ns - self.before.cpu_ns

    def communication(self) -> tuple[RoleTimes, RoleTimes | None]:
        """Return cores and CPU time per operation of client and dpu, with BPF statistics on."""
        operations = max(self.received("responses"), 1)
        elapsed_ns = self.after.at_ns - self.before.at_ns
        if self.server_before is None or self.server_after is None:
            return _role(self.client_ns(), operations, elapsed_ns), None
        dpu_ns, dpu_is_apart = _dpu_ns(self.server_before, self.server_after)
        client_ns = self.client_ns() - (0 if dpu_is_apart else dpu_ns)
        return (
            _role(max(client_ns, 0), operations, elapsed_ns),
            _role(dpu_ns, operations, elapsed_ns),
        )

    def host(self) -> RoleTimes | None:
        """Return the same for the host, with its busy share; None for a remote server."""
        if self.server_before is None or self.server_after is None:
            return None
        before, after = self.server_before, self.server_after
        elapsed_ns = self.after.at_ns - self.before.at_ns
        threads = len(after["hosts"])
        cpu_ns = _growth(before["hosts"], after["hosts"], "cpu_ns")
        busy_ticks = _growth(before["engines"], after["engines"], "busy_ticks")
        busy_ns = busy_ticks * 1e9 / after["ticks_per_second"]
        return {
            **_role(cpu_ns, max(self.received("responses"), 1), elapsed_ns),
            "busy_fraction": busy_ns / elapsed_ns / max(threads, 1),
            "stolen_fraction": _stolen_fraction(cpu_ns, elapsed_ns * threads),
        }

    def stages_ns_per_op(self) -> dict[str, dict[str, float]] | None:
        """Return the time per request in each stage, by side, in ns; see STAGE_METHOD."""
        if self.server_before is None or self.server_after is None:
            return None
        stages = {}
        for side, after in self.server_after["stages"].items():
            before = self.server_before["stages"][side]
            requests = after["requests"] - before["requests"]
            stages[side] = {
                stage.name.lower(): (after[stage.name.lower()] - before[stage.name.lower()])
                / requests
                if requests
                else 0.0
                for stage in abi.Stage
            }
        engines = self.server_before["engines"], self.server_after["engines"]
        processed = _growth(*engines, "requests")
        if processed:
            busy_ns = _growth(*engines, "busy_ticks") * 1e9 / self.server_after["ticks_per_second"]
            stages["host"]["process"] = busy_ns / processed
        return stages


def roles_of(run: Interval, accounting: Interval) -> dict[str, RoleTimes | None]:
    """Return cores and CPU time per operation of client, dpu and host; see CPU_METHOD.

    The generating thread polls, so other processes had the part of its core that it did not get.
    """
    client, dpu = accounting.communication()
    client["stolen_fraction"] = _stolen_fraction(run.client_ns(), round(run.seconds() * 1e9))
    return {"client": client, "dpu": dpu, "host": run.host()}


def accounting_notes(throughput_mops: float, accounting_mops: float) -> list[str]:
    """Return a note if the accounting phase's throughput was far from the run's."""
    away_mops = abs(accounting_mops - throughput_mops)
    return [ACCOUNTING_NOTE] if away_mops > ACCOUNTING_DIFFERENCE_MAX * throughput_mops else []


def _stolen_fraction(cpu_ns: int, polled_ns: int) -> float:
    """Return the share of their polling time that threads did not get."""
    return max(1 - cpu_ns / polled_ns, 0.0) if polled_ns else 0.0


def _growth(before: list[dict[str, Any]], after: list[dict[str, Any]], name: str) -> int:
    return sum(int(b[name]) - int(a[name]) for a, b in zip(before, after, strict=True))


def _dpu_ns(before: dict[str, Any], after: dict[str, Any]) -> tuple[int, bool]:
    """Return the CPU time of the DPU's cores, in ns, and whether the client's excludes it."""
    if after["napi"]:
        threads = before["napi"] or {}
        gained = (
            thread["cpu_ns"] - threads.get(pid, thread)["cpu_ns"]
            for pid, thread in after["napi"].items()
        )
        return sum(gained), True
    return after["xdp"]["run_time_ns"] - before["xdp"]["run_time_ns"], False


def _role(cpu_ns: float, operations: int, elapsed_ns: int) -> dict[str, float]:
    return {"cores": cpu_ns / elapsed_ns, "cpu_ns_per_op": cpu_ns / operations}
