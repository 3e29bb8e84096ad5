# SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
"""Titles of tables: they state what the runs have in common, and emulation in full."""

from typing import Any

import pytest

from dpukv_xdp.report.tables import designs_table, results_table
from dpukv_xdp.topology.profiles import PROFILES

ROLE = {"cores": 1.0, "cpu_ns_per_op": 10.0}


def result(profile: str) -> dict[str, Any]:
    return {
        "design": "lat",
        "target": None,
        "workload": "B",
        "distribution": "uniform",
        "keys": 1000,
        "key_size": 8,
        "value_size": 8,
        "requests_per_packet": 45,
        "window": 64,
        "rate": None,
        "throughput_mops": 1.0,
        "latency_us": {"p50": 1.0, "p99": 2.0, "p999": 3.0},
        "roles": {"client": ROLE, "dpu": ROLE, "host": ROLE},
        "qp_bytes_per_op": {"request": 32.0, "response": 16.0},
        "host_core_usage": 0.5,
        "corrupt": 0,
        "misses": 0,
        "lost": 0,
        "emulation": PROFILES[profile].label(),
    }


@pytest.mark.parametrize("table", [designs_table, results_table])
@pytest.mark.parametrize("profile", PROFILES)
def test_the_title_has_the_load_and_all_of_the_emulation(table: Any, profile: str) -> None:
    title = table([result(profile)]).title
    assert "1,000 uniform keys of 8" in title
    assert "window 64" in title
    label = PROFILES[profile].label()
    assert (label is None and "emulated" not in title) or label in title
