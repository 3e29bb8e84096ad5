# SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
"""The limit of a run is determined in the same way for our stores and for others."""

from typing import Any

import pytest

from dpukv_xdp.bench import limits

XDP_STAGES = {"dpu": {"parse": 5.0, "prepare": 5.0}, "host": {"receive": 0.0, "process": 25.0}}
HOST_STAGES = {"dpu": {}, "host": {"receive": 20.0, "parse": 10.0, "process": 30.0, "send": 38.0}}


def ours(
    *, out: float = 60.0, stages: dict[str, Any] = XDP_STAGES, **changes: dict[str, float]
) -> dict[str, Any]:
    """Return a run with 10 million requests per second, 10 per packet, `out` of 64 packets in
    flight.
    """
    role = {"cores": 1.0, "cpu_ns_per_op": 100.0, "stolen_fraction": 0.0}
    return {
        "design": "lat",
        "rate": None,
        "packets_mpps": 1.0,
        "latency_us": {"mean": out},
        "window": 64,
        "throughput_mops": 10.0,
        "accounting_mops": 10.0,
        "stages_ns_per_op": stages,
        "roles": {
            "client": {**role, **changes.get("client", {})},
            "dpu": {"cores": 0.4, "cpu_ns_per_op": 40.0, **changes.get("dpu", {})},
            "host": {**role, "busy_fraction": 0.5, **changes.get("host", {})},
        },
    }


def peer(client_busy: float, server_busy: float, others: float = 0.0) -> dict[str, Any]:
    role = {"cores": server_busy, "stolen_fraction": others, "busy_fraction": server_busy}
    return {
        **ours(),
        "design": None,
        "client_busy": client_busy,
        "stages_ns_per_op": None,
        "roles": {"client": {"stolen_fraction": 0.0}, "dpu": None, "host": role},
    }


@pytest.mark.parametrize(
    ("result", "limit"),
    [
        (ours(host={"busy_fraction": 0.95}), "engine"),
        (ours(host={"busy_fraction": 0.95}, out=30), "engine"),
        (ours(out=30), "client"),
        (ours(), "window"),
        (ours(dpu={"cores": 0.95}), "dpu"),
        (ours(stages=HOST_STAGES), "host"),
        (ours(stages=HOST_STAGES, host={"cores": 2.0}), "window"),
        (ours(host={"stolen_fraction": 0.2}), "others"),
        (ours(client={"stolen_fraction": 0.2}, host={"busy_fraction": 0.95}), "others"),
        ({**ours(out=3), "rate": 1e6}, "rate"),
        (peer(0.5, 0.99), "server"),
        (peer(0.99, 0.6), "client"),
        (peer(0.97, 0.95), "client"),
        (peer(0.5, 0.5), "window"),
        (peer(0.5, 0.85, others=0.15), "others"),
    ],
)
def test_the_limit_is_named(result: dict[str, Any], limit: str) -> None:
    assert limits.limit_of(result) == limit
    assert limit in limits.LIMITS


def test_a_host_that_communicates_is_busy_with_all_its_stages() -> None:
    assert limits.server_busy_of(ours(stages=HOST_STAGES)) == pytest.approx(0.98)
    assert limits.server_busy_of(ours()) == 0.5


def test_stages_count_at_the_rate_that_they_were_timed_at() -> None:
    """The phase that measures CPU time may have another rate than the run."""
    result = {**ours(stages=HOST_STAGES), "accounting_mops": 6.0}
    assert limits.server_busy_of(result) == pytest.approx(0.588)


def test_a_design_without_a_host_has_no_server_core() -> None:
    result = ours(host={"cores": 0.0, "busy_fraction": 0.0}, out=30)
    assert limits.server_busy_of(result) is None
    assert limits.limit_of(result) == "client"
