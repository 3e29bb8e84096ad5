# SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
"""How fast is the data path on this machine, compared with its goals?

A slow run does not fail, because machines differ. An incorrect run fails.
"""

import pytest

from dpukv_xdp.bench.bench import Bench
from dpukv_xdp.bench.options import BenchOptions
from dpukv_xdp.topology.schema import ServerConfig

pytestmark = pytest.mark.needs("live frames", "BPF run-time statistics")

SECONDS = 1.0

GOALS = {
    "45 requests a packet": (BenchOptions(requests_per_packet=45, seconds=SECONDS), "Mops", 40.0),
    "1 request a packet": (BenchOptions(requests_per_packet=1, seconds=SECONDS), "Mops", 2.5),
    "1 request outstanding": (
        BenchOptions(requests_per_packet=1, window=1, seconds=SECONDS),
        "us",
        2.0,
    ),
}
"""Goals for two cores on which redis-server serves about 1 Mops with 45 commands pipelined."""


def test_the_three_goals(capsys: pytest.CaptureFixture[str]) -> None:
    first_options = next(iter(GOALS.values()))[0]
    with Bench(ServerConfig(), first_options) as bench:
        load = bench.load_keys(first_options)
        assert load["stored"] == first_options.keys
        for name, (options, unit, goal) in GOALS.items():
            result = bench.measure(options, lambda what, fraction: None)
            reached = result["throughput_mops"] if unit == "Mops" else result["latency_us"]["p50"]
            with capsys.disabled():
                print(f"\n  {name}: {reached:.2f} {unit}, aim {goal:g}", end="")  # noqa: T201
            assert result["corrupt"] == result["lost"] == result["misses"] == 0
    with capsys.disabled():
        print(f"\n  {load['keys']:,} keys stored in {load['seconds']:.2f} s, aim 2")  # noqa: T201
