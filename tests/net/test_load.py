# SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
"""The load generator and the server in the lab: every value comes back right, and a wrong one is
detected.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import pytest
from net.serving import (
    TEMPLATES,
    TIMEOUT_SECONDS,
    Measured,
    Wire,
    client_of,
    ends,
    generating,
    plan_for,
    run_load,
    serving,
    sharing_cores,
)

from dpukv_xdp.base.errors import ResultError
from dpukv_xdp.base.patience import patient, slowness
from dpukv_xdp.lab import lab as labs
from dpukv_xdp.lab.lab import Lab
from dpukv_xdp.load.loadgen import LoadGenerator, Loop
from dpukv_xdp.load.workload import WORKLOADS, key_bytes
from dpukv_xdp.server.server import Server
from dpukv_xdp.wire import codec
from dpukv_xdp.wire.codec import Request
from dpukv_xdp.wire.hashing import hash_key

pytestmark = pytest.mark.needs("live frames")

RUN_SECONDS = 0.1
KEYS = 1 << 16


def test_two_engines_share_the_keys_by_partition(lab: Lab) -> None:
    items = {b"key %d" % number: b"value %d" % number for number in range(200)}
    with sharing_cores(), serving(lab, engines=2) as server:
        assert len(server._hosts) == 2
        with client_of(lab, ports=2) as client:
            assert client.set_many(items) == []
            assert client.get_many(items) == items
            assert min(client.ping(engine) for engine in (0, 1)) > 0
        engines = server.stats()["engines"]
        assert sum(engine["sets"] for engine in engines) == len(items)
        assert min(engine["sets"] for engine in engines) > len(items) // 4
        assert [engine["rejected"] for engine in engines] == [0, 1], "the probe's key is engine 0's"
        with client_of(lab, ports=1) as client, pytest.raises(ResultError) as rejected:
            client.get_many(items)
        assert rejected.value.result == "KV_REJECTED"
        with generating(lab, engines=2) as generator:
            plan = plan_for(lab, keys=2048, requests_per_packet=20, owners=(0, 1))
            stored = generator.load(plan, window=16)
            assert (stored["stored"], stored["lost"], stored["corrupt"]) == (2048, 0, 0)
            assert_all_right(run_load(generator, plan, Loop(32), RUN_SECONDS))
        gets = [engine["gets"] for engine in server.stats()["engines"]]
        assert min(gets) > 0


@dataclass
class Loaded:
    """A lab with a server and a load generator."""

    lab: Lab
    server: Server
    generator: LoadGenerator


@pytest.fixture(scope="module")
def loaded() -> Iterator[Loaded]:
    """Yield one server and generator for all tests that do not change them."""
    labs.remove_stale()
    with (
        Lab.up() as lab,
        serving(lab, items=2 * KEYS, log_bytes=1 << 26) as server,
        generating(lab) as generator,
    ):
        yield Loaded(lab, server, generator)


def assert_all_right(measured: Measured) -> None:
    """Assert that every request was answered, with its own value."""
    assert measured.received["responses"] == measured.sent["requests_sent"] > 0
    assert measured.received["hits"] == measured.received["responses"]
    wrong = ("corrupt", "misses", "refused", "late")
    assert {name: measured.received[name] for name in wrong} == dict.fromkeys(wrong, 0)
    assert (measured.sent["lost_packets"], measured.sent["lost_requests"]) == (0, 0)


@pytest.mark.parametrize(
    ("key_size", "value_size", "keys"),
    [
        (8, 8, KEYS),
        (8, 0, KEYS),
        (8, 5, KEYS),
        (8, 100, KEYS),
        (1, 8, 256),
        (5, 8, KEYS),
        (12, 8, KEYS),
        (200, 8, KEYS),
    ],
)
def test_what_was_loaded_is_read_back(
    loaded: Loaded, key_size: int, value_size: int, keys: int
) -> None:
    plan = {"key_size": key_size, "value_size": value_size, "keys": keys}
    stored = loaded.generator.load(plan_for(loaded.lab, **plan), window=16)
    assert stored["stored"] == keys
    assert (stored["lost"], stored["corrupt"], stored["refused"]) == (0, 0, 0)
    for requests_per_packet, window in ((45, 64), (1, 64), (45, 1), (1, 1)):
        read = plan_for(loaded.lab, requests_per_packet=requests_per_packet, **plan)
        measured = run_load(loaded.generator, read, Loop(window), RUN_SECONDS)
        assert_all_right(measured)


@pytest.mark.parametrize("workload", ["A", "B"])
def test_mixed_workloads(loaded: Loaded, workload: str) -> None:
    plan = plan_for(loaded.lab, workload=WORKLOADS[workload], distribution="zipf")
    loaded.generator.load(plan, window=16)
    before = loaded.server.stats()["engines"][0]
    measured = run_load(loaded.generator, plan, Loop(64), RUN_SECONDS)
    after = loaded.server.stats()["engines"][0]
    received = measured.received
    assert received["hits"] + received["stored"] == received["responses"]
    assert received["responses"] == measured.sent["requests_sent"] > 0
    assert (received["corrupt"], measured.sent["lost_requests"]) == (0, 0)
    assert received["hits"] == after["gets"] - before["gets"]
    assert received["stored"] == after["sets"] - before["sets"]
    share = received["hits"] / received["responses"]
    assert share == pytest.approx(plan.workload.get_fraction, abs=0.02)


PAUSE_US = patient(20_000.0)
"""Longer than the scheduler keeps an engine off its core, but shorter than a generator's lag."""


def test_an_open_loop_keeps_its_rate_and_does_not_lag(loaded: Loaded) -> None:
    """One good run is enough: other programs may need the cores for a while."""
    packets_per_second = 10_000 / slowness()
    plan = plan_for(
        loaded.lab, requests_per_packet=1, gap_mean_ns=1e9 / packets_per_second, spacing="constant"
    )
    loaded.generator.load(plan, window=16)
    runs = []
    deadline = time.monotonic() + GOOD_RUN_SECONDS
    while time.monotonic() < deadline:
        with engine_share(loaded.server) as share:
            measured = run_load(loaded.generator, plan, Loop(64, open_loop=True), 0.4)
        assert measured.received["corrupt"] == 0
        p50_us, rate = measured.latency_us["p50"], measured.packets_per_second
        runs.append(f"p50 {p50_us:.0f} us at {rate:.0f}/s, engine on its core {share[0]:.0%}")
        if p50_us < PAUSE_US and rate == pytest.approx(packets_per_second, rel=0.05):
            assert_all_right(measured)
            return
    pytest.fail("; ".join(runs))


GOOD_RUN_SECONDS = patient(60.0)


@contextmanager
def engine_share(server: Server) -> Iterator[list[float]]:
    """Yield a list that gets the share of the block's time in which the engine had its core."""
    share = [0.0]
    start_ns, cpu_ns = time.monotonic_ns(), server.stats()["hosts"][0]["cpu_ns"]
    yield share
    spent_ns = server.stats()["hosts"][0]["cpu_ns"] - cpu_ns
    share[0] = spent_ns / (time.monotonic_ns() - start_ns)


def test_misses_are_counted_and_not_taken_for_wrong(loaded: Loaded) -> None:
    keys = 64
    plan = plan_for(loaded.lab, key_size=9, keys=keys)
    measured = run_load(loaded.generator, plan, Loop(4), RUN_SECONDS)
    assert measured.received["misses"] == measured.received["responses"] > 0
    assert (measured.received["corrupt"], measured.received["hits"]) == (0, 0)


@pytest.mark.parametrize(("wrong", "at_most"), [(b"tampered", 1), (b"short", 2)])
def test_wrong_values_are_seen(loaded: Loaded, wrong: bytes, at_most: int) -> None:
    """Each read of the wrong key counts; a wrong length may count as a wrong value, too."""
    keys, key = 64, key_bytes(3, 8)
    plan = plan_for(loaded.lab, keys=keys, requests_per_packet=1)
    loaded.generator.load(plan, window=1)
    set_silently(loaded, key, wrong)
    measured = run_load(loaded.generator, plan, Loop(16), RUN_SECONDS)
    sent, received = measured.sent["packets_sent"], measured.received
    assert received["responses"] == received["hits"] == sent > 0
    assert received["misses"] == 0
    is_wrong = loaded.generator.templates["hash_sum"][:TEMPLATES] == np.uint64(hash_key(key))
    reads = int(is_wrong[np.arange(sent) % TEMPLATES].sum())
    assert 0 < reads <= received["corrupt"] <= reads * at_most


def set_silently(loaded: Loaded, key: bytes, value: bytes) -> None:
    """Store an item without the generator, which takes every answer for its own."""
    before = loaded.server.stats()["engines"][0]["sets"]
    batch = codec.encode_batch([Request.set(key, value)])
    with Wire(loaded.lab.client) as wire:
        wire.send(codec.encode_frame(*ends(loaded.lab), batch))
    deadline = time.monotonic() + TIMEOUT_SECONDS
    while loaded.server.stats()["engines"][0]["sets"] == before:
        assert time.monotonic() < deadline
        time.sleep(0.001)
