# SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
"""DPU profiles: the paper's numbers, the designs that each refuses, and the emulation's label."""

import itertools
from dataclasses import replace

import pytest

from dpukv_xdp.base.errors import UsageError
from dpukv_xdp.topology import validation
from dpukv_xdp.topology.designs import DESIGNS
from dpukv_xdp.topology.profiles import PROFILES, find_profile
from dpukv_xdp.topology.schema import ServerConfig
from dpukv_xdp.wire import abi

REFUSED = {("bf3", "dual"), ("bf3", "shrd")}


@pytest.mark.parametrize(
    ("name", "burst_requests", "request_bytes", "response_bytes"),
    [("bf2", 64, 2049, 1025), ("bf3", 256, 8193, 4097)],
)
def test_buffers_are_the_paper_s(
    name: str, burst_requests: int, request_bytes: int, response_bytes: int
) -> None:
    """Section 6.1: N*32+1 and N*16+1 bytes."""
    profile = find_profile(name)
    assert profile.burst_requests == burst_requests
    assert profile.request_buffer_bytes == request_bytes
    assert profile.response_buffer_bytes == response_bytes


def test_this_machine_takes_a_packet_s_requests_at_once() -> None:
    assert find_profile("local").burst_requests == abi.KV_BATCH_MAX


@pytest.mark.parametrize(("profile", "design"), list(itertools.product(PROFILES, DESIGNS)))
def test_what_a_dpu_cannot_run_is_refused_with_the_reason(profile: str, design: str) -> None:
    row = find_profile(profile)
    if (profile, design) not in REFUSED:
        row.check(DESIGNS[design])
        validation.check(ServerConfig(profile=profile, design=design))
        return
    for check in (
        lambda: row.check(DESIGNS[design]),
        lambda: validation.check(ServerConfig(profile=profile, design=design)),
    ):
        with pytest.raises(UsageError) as refused:
            check()
        assert f"profile {profile} cannot run design {design}: " in str(refused.value)
        assert "in DPU mode" in str(refused.value)


def test_an_unknown_profile_is_named_beside_the_known() -> None:
    with pytest.raises(UsageError, match=r"no profile 'bf4': choose one of local, bf2, bf3"):
        find_profile("bf4")
    with pytest.raises(UsageError, match="no profile 'bf4'"):
        validation.check(ServerConfig(profile="bf4"))


def test_an_emulation_says_so() -> None:
    assert find_profile("local").label() is None
    assert find_profile("bf2").label() == (
        "emulated bf2: 2 us and 12 GB/s bus, DPU cores at 85% speed"
    )
    assert find_profile("bf3").label() == (
        "emulated bf3: 1.5 us and 12 GB/s bus, DPU cores at 100% speed"
    )


@pytest.mark.parametrize(
    "change", [{"bus_latency_us": 0.1}, {"bus_gbytes_per_s": 1.0}, {"dpu_speed": 0.99}]
)
def test_any_difference_from_this_machine_is_an_emulation(change: dict[str, float]) -> None:
    local = find_profile("local")
    assert not local.is_emulated
    assert replace(local, **change).is_emulated
    assert replace(local, **change).label() is not None


def test_slower_cores_take_longer() -> None:
    local = find_profile("local")
    percents = {1.0: 0, 0.85: 18, 0.5: 100, 0.25: 300}
    assert {s: replace(local, dpu_speed=s).slower_percent for s in percents} == percents
