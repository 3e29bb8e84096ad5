# SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
"""Every design of the table gives the same answers, byte for byte, and stays correct under load."""

import secrets
from collections.abc import Iterator
from typing import Any

import pytest
from net.conversation import conversation, converse
from net.serving import (
    DROPS,
    ENGINE_CPU,
    client_of,
    gained,
    generating,
    let_probe_pass,
    plan_for,
    run_load,
    serving,
    sharing_cores,
)

from dpukv_xdp.base.errors import ResultError
from dpukv_xdp.lab import lab as labs
from dpukv_xdp.lab.lab import Lab
from dpukv_xdp.load.loadgen import LoadGenerator, Loop
from dpukv_xdp.load.workload import WORKLOADS
from dpukv_xdp.server.server import Server
from dpukv_xdp.topology.designs import DESIGNS, Design
from dpukv_xdp.topology.schema import FRAMES, FRAMES_PAST_XDP, TRANSPORTS
from dpukv_xdp.wire import abi
from dpukv_xdp.wire.hashing import hash_key

ROWS = DESIGNS.values()
INLINE_DESIGNS = ("lat", "dual", "shrd")
"""Designs that are tried with an inline store too: one store for one engine, a shared one, and one
in XDP beside one on the host.
"""
LONG_MTU = 3506
"""MTU of the longest frames, KV_FRAME_MAX: they have no room for appended records."""
PACKET_LOG_BYTES = 4096
"""Upper bound of the log bytes that one packet's requests append."""
LOAD_SECONDS = 0.3
LOAD_KEYS = 4096
LOAD_TEMPLATES = 1024
LOAD_ENDPOINTS = 2
WINDOW = 16
FAIR = 2
"""Largest allowed ratio of the requests of two endpoints."""


@pytest.fixture(scope="module", params=[(1, 1500), (2, LONG_MTU)], ids=["1-queue", "2-queues"])
def wide_lab(request: pytest.FixtureRequest) -> Iterator[Lab]:
    """Yield one lab for all designs; it has as many queues as engines per door."""
    queues, mtu = request.param
    labs.remove_stale()
    with Lab.up(queues=queues, mtu=mtu) as lab:
        yield lab


@pytest.mark.parametrize(
    ("row", "store"),
    [
        *(pytest.param(row, "cache", id=row.name) for row in ROWS),
        *(pytest.param(DESIGNS[name], "inline", id=f"{name}-inline") for name in INLINE_DESIGNS),
    ],
)
def test_all_designs_give_the_same_answers(
    wide_lab: Lab, row: Design, store: str, request: pytest.FixtureRequest
) -> None:
    """Random operations of all kinds are answered as by a dict; --conversation sets the number."""
    engines = wide_lab.record.queues
    packets = conversation(request.config.getoption("conversation"), wide_lab.record.mtu)
    # A cache loses items that its log overwrites, and the dict does not.
    log_bytes = max(1 << 23, len(packets) * PACKET_LOG_BYTES)
    settings = {"design": row.name, "engines": engines, "log_bytes": log_bytes, "store": store}
    with sharing_cores(), serving(wide_lab, **settings) as server:
        let_probe_pass(server)
        before = server.counters()
        converse(wide_lab, server, packets)
        moved = gained(server, before)
        assert DROPS & set(moved) == set()
        assert moved["frames_received"] == moved["frames_sent"] == len(packets)
        assert moved["requests_received"] == sum(len(packet.requests) for packet in packets)
        check_client(wide_lab, server)
        check_doors(wide_lab, server)


def check_client(lab: Lab, server: Server) -> None:
    """Assert that the Python client finds the items that it stored."""
    items = {secrets.token_bytes(1 + length % 255): secrets.token_bytes(length)
             for length in range(0, 1200, 13)}  # fmt: skip
    with client_of(lab, ports=len(server.placement.engines), owners=server.owners) as client:
        assert client.set_many(items) == []
        assert client.get_many([*items, b"a key that nobody has set"]) == items


def check_doors(lab: Lab, server: Server) -> None:
    """Assert that all endpoints serve all keys if they share one store, and that otherwise each
    refuses the keys of others.
    """
    engines = len(server.placement.engines)
    items = {b"door %d" % number: b"value %d" % number for number in range(40)}
    with client_of(lab, ports=engines, owners=server.owners) as client:
        client.set_many(items)
    for engine in range(engines):
        with client_of(lab, ports=engines, owners=[engine]) as client:
            if server.config.access_mode() == "crcw" or engines == 1:
                assert client.get_many(items) == items
                assert client.set_many({key: value + b"!" for key, value in items.items()}) == []
                items = {key: value + b"!" for key, value in items.items()}
                continue
            for key, value in items.items():
                if owner_of(server, key) == engine:
                    assert client.get(key) == value
                else:
                    with pytest.raises(ResultError) as refused:
                        client.get(key)
                    assert refused.value.result == "KV_REJECTED"


def owner_of(server: Server, key: bytes) -> int:
    return server.owners[(hash_key(key) >> 48) % len(server.owners)]


# ---- Load


@pytest.fixture(scope="module")
def loaded() -> Iterator[tuple[Lab, LoadGenerator]]:
    """Yield a lab with a load generator, which takes all answers at the client for its own."""
    labs.remove_stale()
    with Lab.up() as lab, generating(lab, engines=LOAD_ENDPOINTS) as generator:
        yield lab, generator


def ways_of(row: Design) -> list[dict[str, str]]:
    """Return a design's settings, one for each way of requests or frames from DPU to host."""
    frames: list[dict[str, str]] = [{}]
    if "host" in row.communication:
        frames = [{"frames": way} for way in FRAMES if way not in FRAMES_PAST_XDP]
    if "dpu" not in row.communication or row.processing_of("dpu") == "dpu":
        return frames
    return [
        {"transport": transport} | frames[index % len(frames)]
        for index, transport in enumerate(TRANSPORTS)
    ]


LOADS = [
    pytest.param(row, way, id="-".join((row.name, *way.values())))
    for row, way in (
        *((row, way) for row in ROWS for way in ways_of(row)),
        *((DESIGNS[name], {"store": "inline"}) for name in INLINE_DESIGNS),
    )
]


@pytest.mark.needs("live frames")
@pytest.mark.parametrize(("row", "way"), LOADS)
def test_every_answer_is_right_under_load(
    loaded: tuple[Lab, LoadGenerator], row: Design, way: dict[str, str]
) -> None:
    lab, generator = loaded
    engines = LOAD_ENDPOINTS // len(row.communication)
    cpus = (ENGINE_CPU,)
    with serving(lab, design=row.name, engines=engines, engine_cpus=cpus, **way) as server:
        settings: dict[str, Any] = {"keys": LOAD_KEYS, "owners": server.owners}
        plan = plan_for(lab, workload=WORKLOADS["B"], requests_per_packet=20, **settings)
        let_probe_pass(server)
        before = server.stats()
        stored = generator.load(plan, WINDOW)
        assert (stored["stored"], stored["lost"], stored["corrupt"]) == (LOAD_KEYS, 0, 0)
        measured = run_load(generator, plan, Loop(WINDOW), LOAD_SECONDS, LOAD_TEMPLATES)
        wrong = ("corrupt", "misses", "refused", "late")
        assert {name: measured.received[name] for name in wrong} == dict.fromkeys(wrong, 0)
        assert (measured.sent["lost_packets"], measured.sent["lost_requests"]) == (0, 0)
        assert measured.received["responses"] == measured.sent["requests_sent"] > 0
        assert DROPS & set(gained(server, before["counters"])) == set()
        check_shares(server, before)


def check_shares(server: Server, before: dict[str, Any]) -> None:
    """Assert that every endpoint got its share, and that queue pairs between two places carried
    32 bytes per request, 16 bytes per response and a count per batch, others nothing.
    """
    moved = gained(server, before["counters"])
    after, requests = server.stats(), []
    expected = {"qp_request_bytes": 0, "qp_response_bytes": 0}
    for place in server.placement.engines:
        done, done_before = engine_of(after, place.engine), engine_of(before, place.engine)
        count, batches = (done[name] - done_before[name] for name in ("requests", "batches"))
        requests.append(count)
        if place.door != place.processing:
            expected["qp_request_bytes"] += count * abi.SIZE("kv_request") + batches
            expected["qp_response_bytes"] += count * abi.SIZE("kv_response") + batches
    assert sum(requests) == moved["requests_received"]
    assert max(requests) < FAIR * min(requests)
    frames_cross = server.placement.behind("host") and server.config.frames == "ring"
    for name, count in expected.items():
        assert moved.get(name, 0) > count if frames_cross else moved.get(name, 0) == count
    goes_around = server.placement.behind("host") or server.config.transport == "af_xdp"
    assert ("redirected" in moved) == bool(goes_around)


def engine_of(stats: dict[str, Any], engine: int) -> dict[str, int]:
    """Return an engine's counters, wherever it runs."""
    (found,) = (one for one in stats["engines"] + stats["dpu_stores"] if one["engine"] == engine)
    return found
