# SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
"""What a run was limited by: of our own stores and of others, from what its result has."""

from typing import Any

Result = dict[str, Any]

BUSY = 0.9
"""From here on a core counts as what limits a run."""
WINDOW_FULL = 0.9
"""Our generator polls, and sends whenever its window has room: if less of it was out, its core did
not keep up."""
OTHERS_MAX = 0.1
"""Of a core: with more of it taken by other programs a run is disturbed."""

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
"""What limit_of() returns, in words."""


def limit_of(result: Result) -> str:
    """A name in LIMITS: other programs if they had much of a core, else the busier side if it was
    busy all the time.
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
    """Whether other programs had much of the server's or of the generator's core."""
    roles = filter(None, result["roles"].values())
    return any(role.get("stolen_fraction", 0.0) > OTHERS_MAX for role in roles)


def window_full(result: Result) -> float:
    """The part of a closed loop's window that was out, on average: Little's law."""
    out = result["packets_mpps"] * result["latency_us"]["mean"]
    return float(out / result["window"])


def server_busy_of(result: Result) -> float | None:
    """How busy the server's cores were: of ours, which poll, the time spent on batches, and on
    communication by the stage clocks where the host does that. None without a host.
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
    """Whether frames were parsed on the host's cores."""
    return any(ns for name, ns in _host_stages(result).items() if name != "process")


def _host_stages(result: Result) -> dict[str, float]:
    return dict((result.get("stages_ns_per_op") or {}).get("host", {}))


def _server_limit(result: Result) -> str:
    if not result["design"]:
        return "server"
    return "host" if communicates_on_host(result) else "engine"
