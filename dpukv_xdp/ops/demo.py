# SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
"""The demo: YCSB A, B and C through XDP in a lab of its own, a table, and a latency-throughput
plot.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

from dpukv_xdp.bench.bench import Bench
from dpukv_xdp.bench.options import BenchOptions, Progress
from dpukv_xdp.load.workload import WORKLOADS
from dpukv_xdp.report.figures import plot_latency_throughput
from dpukv_xdp.topology.schema import ServerConfig

CURVE_WINDOWS = (1, 2, 4, 8, 16, 32, 64)
CURVE_SECONDS_MAX = 0.5


def story(config: ServerConfig, options: BenchOptions) -> str:
    """Return the text that explains the parts, their cores, and the measurements to come."""
    host_cpus = ",".join(map(str, config.placement().host_cpus))
    client_cpu = Bench(config, options).client_cpu
    plot_seconds = 2 * len(CURVE_WINDOWS) * _curve_seconds(options)
    return f"""\
Two network namespaces, real packets on the veth pair between them:

  client  makes requests, sends them, checks every answer       core {client_cpu}
  dpu     the communication engine, XDP programs: parses        core {client_cpu}
          packets into request queues, and builds packets from
          response queues
  host    the processing engine, a native loop: takes requests  core {host_cpus}
          from the queue, does GET and SET, queues responses

On a BlueField, "dpu" would be the card and the queue pair would cross PCIe.
Now {options.keys:,} keys are stored; then come YCSB A (half GET, half SET),
B (95 % GET) and C (GET), {options.seconds:g} s each, and {plot_seconds:g} s of runs for the plot.
"""


def run_demo(
    config: ServerConfig, options: BenchOptions, picture: Path, progress: Progress
) -> dict[str, Any]:
    """Run the demo; return `load`, `runs` for A, B and C, `curves`, and the `picture`'s path.

    Raises UsageError if the picture cannot be written.
    """
    steps = len(WORKLOADS) + 2 * len(CURVE_WINDOWS) + 1
    done = 0

    def step(what: str) -> Progress:
        nonlocal done
        done += 1
        start = done - 1
        progress(what, start / steps)
        return lambda _, fraction: progress(what, (start + fraction) / steps)

    with Bench(config, options) as bench:
        bench.config.placement().leave_host_cpus()
        step(f"storing {options.keys:,} keys through the network")
        load = bench.load_keys(options)
        runs = [
            bench.measure(
                replace(options, workload=name), step(f"YCSB {name}: {workload.description}")
            )
            for name, workload in WORKLOADS.items()
        ]
        curves = {}
        for requests in (options.requests_per_packet_max(), 1):
            name = f"{requests} request{'' if requests == 1 else 's'} per packet"
            curves[name] = [
                bench.measure(
                    replace(
                        options,
                        requests_per_packet=requests,
                        window=window,
                        seconds=_curve_seconds(options),
                    ),
                    step(f"{name}, {window} outstanding"),
                )
                for window in CURVE_WINDOWS
            ]
        attachment = bench.attachment
    title = (
        f"dpukv_xdp, design {config.design}, YCSB {options.workload}, "
        f"{options.distribution} keys: round trip against throughput"
    )
    plot_latency_throughput(curves, title, picture)
    progress("done", 1.0)
    return {
        "load": load,
        "runs": runs,
        "curves": curves,
        "picture": str(picture),
        "attachment": attachment,
    }


def _curve_seconds(options: BenchOptions) -> float:
    return min(CURVE_SECONDS_MAX, options.seconds)
