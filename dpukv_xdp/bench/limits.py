# SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
"""The limiting resource of a run, from its result; for our own stores and for others."""

from typing import Any

Result = dict[str, Any]

BUSY = 0.9
"""Busy fraction from which a core counts as the limit of a run."""
WINDOW_FULL = 0.9
"""Share of the window in flight below which our generator's core is the limit: the generator sends
whenever its window has room.
"""
OTHERS_MAX = 0.1
"""Share of a core's time; a run in which other programs used more is disturbed."""

LIMITS = {
    "engine": "processing on the host",
    "host": "the host, which also communicates",
    "server": "the server",
    "dpu": "the core of XDP",
    "client": "the core of the load generator, and of XDP where that runs there",
    "window": "nothing that was busy all the time: the requests in flight",
    "rate": "nothing but the rate that was asked for",
    "others": "other programs on the same cores",
}
"""The names that limit_of() returns, in words."""


def limit_of(result: Result) -> str:
    """Return the name in LIMITS of what limited a run: other programs if they used much of a core,
    otherwise the busier side if it was busy all the time.
    """
    if is_disturbed(result):
        return "others"
    server_busy, client_busy = server_busy_of(result) or 0.0, result.get("client_busy")
    if server_busy >= BUSY and server_busy >= (client_busy or 0.0):
        return _server_limit(result)
    if result["rate"]:
        return "rate"
    if client_busy >= BUSY if client_busy is not None else window_full(result) < WINDOW_FULL:
        return "client"
    dpu = result["roles"]["dpu"]
    return "dpu" if dpu and dpu["cores"] >= BUSY else "window"


def is_disturbed(result: Result) -> bool:
    """Return whether other programs used much of the server's or of the generator's core."""
    roles = filter(None, result["roles"].values())
    return any(role.get("stolen_fraction", 0.0) > OTHERS_MAX for role in roles)


def window_full(result: Result) -> float:
    """Return the average share of a closed loop's window in flight, by Little's law."""
    out = result["packets_mpps"] * result["latency_us"]["mean"]
    return float(out / result["window"])


def server_busy_of(result: Result) -> float | None:
    """Return the busy fraction of the server's cores; None without a host.

    Our engines poll; they are busy with batches, and with communication, by the stage clocks, where
    the host communicates.
    """
    host = result["roles"]["host"]
    if not host or not host["cores"]:
        return None
    busy = float(host["busy_fraction"])
    if communicates_on_host(result):
        working_cores = sum(_host_stages(result).values()) * result["accounting_mops"] / 1e3
        busy = max(busy, working_cores / host["cores"])
    return min(busy, 1.0)


def communicates_on_host(result: Result) -> bool:
    """Return whether frames were parsed on the host's cores."""
    return any(ns for name, ns in _host_stages(result).items() if name != "process")


def _host_stages(result: Result) -> dict[str, float]:
    return dict((result.get("stages_ns_per_op") or {}).get("host", {}))


def _server_limit(result: Result) -> str:
    if not result["design"]:
        return "server"
    return "host" if communicates_on_host(result) else "engine"
