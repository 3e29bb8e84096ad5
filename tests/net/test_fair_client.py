# SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
"""A client that behaves as MICA2's does loses nothing while the engine loses its core.

It has 1,024 packets of one request outstanding, gives each up after 1 ms, and sends the next at
once. The engine pauses 4 ms in every 20, so that five windows wait for it.
"""

import time
from collections.abc import Iterator
from typing import Any
from unittest import mock

import pytest
from net.serving import DROPS, generating, plan_for, serving

from dpukv_xdp.base.patience import patient
from dpukv_xdp.lab.lab import Lab
from dpukv_xdp.load import loadgen
from dpukv_xdp.load.loadgen import LoadGenerator, Loop, Snapshot
from dpukv_xdp.load.workload import build_templates
from dpukv_xdp.server.server import Server

pytestmark = pytest.mark.needs("live frames")

WINDOW = 1024
GIVEN_UP_NS = 1_000_000
STALL_MS = 4.0
RUN_SECONDS = 0.3
"""15 pauses."""
LEAST_SENT = 10 * WINDOW
KEYS = 4096
QUEUED = {"rx_descriptors": 8192}
"""Five windows of frames, where they wait in a socket."""


@pytest.mark.parametrize(
    "settings",
    [
        {"design": "lat"},
        {"design": "lat", "respond": "wait"},
        {"design": "lat", "transport": "ringbuf"},
        {"design": "lat", "transport": "af_xdp", **QUEUED},
        {"design": "sav"},
        {"design": "cpu-only", **QUEUED},
        {"design": "cpu-only", "frames": "ring"},
        {"design": "cpu-only", "frames": "udp", **QUEUED},
        {"design": "dual", **QUEUED},
        {"design": "dual", "frames": "ring"},
        {"design": "dual", "transport": "ringbuf", "frames": "ring"},
        {"design": "shrd", "frames": "ring"},
        {"design": "dpu-only"},
    ],
    ids=lambda settings: " ".join(str(value) for value in settings.values()),
)
def test_nothing_is_lost(lab: Lab, settings: dict[str, Any]) -> None:
    with serving(lab, **settings) as server, generating(lab, engines_of(server)) as generator:
        plan = plan_for(lab, keys=KEYS, requests_per_packet=1, owners=server.owners)
        stored = generator.load(plan, window=16)
        assert (stored["stored"], stored["lost"]) == (KEYS, 0)
        server.set_stall(STALL_MS)
        prepared = build_templates(plan, generator.templates[:KEYS])
        with mock.patch.object(loadgen, "TIMEOUT_NS", GIVEN_UP_NS):
            before = generator.snapshot()
            generator.begin(plan, Loop(WINDOW), prepared.templates)
            deadline = time.monotonic() + patient(5.0)
            time.sleep(RUN_SECONDS)
            while sent_since(generator, before) < LEAST_SENT and time.monotonic() < deadline:
                time.sleep(RUN_SECONDS)
            generator.end()
        sent = sent_since(generator, before)
        for answered in answers(generator, before.received):
            if answered == sent:
                break
        lost = {name: count for name, count in losses(server).items() if count}
        assert (answered, lost) == (sent, {})
        assert sent >= LEAST_SENT


def engines_of(server: Server) -> int:
    """Return the number of the server's engines, each with a port of its own."""
    return len(server.placement.engines)


def sent_since(generator: LoadGenerator, before: Snapshot) -> int:
    """Return the number of packets sent since a snapshot."""
    return generator.snapshot().sent["packets_sent"] - before.sent["packets_sent"]


def answers(generator: LoadGenerator, before: dict[str, int]) -> Iterator[int]:
    """Yield the number of packets answered so far, given up or not, until no more can come."""
    deadline = time.monotonic() + patient(1.0)
    while True:
        now = generator.snapshot().received
        yield sum(now[name] - before[name] for name in ("packets", "late"))
        if time.monotonic() > deadline:
            return
        time.sleep(0.002)


def losses(server: Server) -> dict[str, int]:
    """Return the server's counters of lost packets, in XDP and in the sockets of its doors."""
    stats = server.stats()
    found = {name: stats["counters"].get(name, 0) for name in DROPS}
    for source in (*stats["sockets"], *stats["past_xdp"]):
        found |= {
            name: found.get(name, 0) + value
            for name, value in source.items()
            if name.startswith(("rx_", "tx_", "fill_ring_empty")) and isinstance(value, int)
        }
    return found
