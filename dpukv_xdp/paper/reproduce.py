# SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
"""Run the plans of tools/experiments; append a JSON line for each run as soon as it is done.

Repeats are rounds: every session once, in an order shuffled by a fixed seed, before any runs again,
so that a drift of the machine favours no design. A session is a lab with a server and a generator;
runs that differ only in the load share one within a round. A run whose line exists is not repeated,
and no run is added to those of another machine or version, because medians over both mean nothing.
"""

import contextlib
import itertools
import json
import os
import random
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import fields, replace
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import IO, Any

import msgspec

from dpukv_xdp.base.errors import DpukvError, UsageError
from dpukv_xdp.base.machine import machine_facts
from dpukv_xdp.bench.bench import Bench
from dpukv_xdp.bench.options import BenchOptions, Progress, replace_config
from dpukv_xdp.bench.runs import Session, same_cpus
from dpukv_xdp.paper.plans import Run, Settings, expand, find_plans
from dpukv_xdp.paper.points import Points
from dpukv_xdp.topology import sizing, validation
from dpukv_xdp.topology.designs import find_design
from dpukv_xdp.topology.profiles import find_profile
from dpukv_xdp.topology.schema import ServerConfig
from dpukv_xdp.wire import abi

RUNS_NAME = "runs.jsonl"
SEED = 20250720
"""Seed of the order of runs."""
LOAD_NAMES = ("workload", "distribution", "window", "rate", "seconds")
"""Settings that may change between the runs of a session. The requests per packet may not: the
generator's frames are as long as the longest, which would cost single requests a quarter of their
throughput.
"""
MODEL_CORES = range(1, 9)
"""Cores of the model's curves, as in the paper."""
MODEL_TRANSFERS = (8, 16, 32, 64, 128)
"""Requests per transfer of the model's curve: buffers of 256 bytes to 4 KB."""
MODEL_PLAN = "model"
COSTS_SIZE = "default"
COSTS_WINDOW = 64
COSTS_REQUESTS = (0, 1)

Line = dict[str, Any]
Measure = Callable[[Progress], Any]


def reproduce(
    runs: Sequence[Run], size_name: str, path: Path, progress: Progress, *, resume: bool
) -> int:
    """Do the runs that are not in the file, append their lines, and return their number.

    Raises UsageError if the file exists without `resume`, or if runs are left to do and those in
    the file are of another machine or version.
    """
    if path.exists() and path.stat().st_size and not resume:
        raise UsageError(
            f"{path} holds runs already: say --resume to keep them and go on, or choose another "
            f"--output"
        )
    _drop_half_a_line(path)
    have = {line["key"]: line for line in read_lines(path) if "failed" not in line}
    left = [run for run in runs if run.key not in have]
    done = len(runs) - len(left)
    if left:
        _check_origin(path, [have[run.key] for run in runs if run.key in have])
    with path.open("a", encoding="utf-8") as file:
        writer = _Writer(file, size_name)
        for session in sessions(left):

            def step(what: str, fraction: float, start: int = done) -> None:
                progress(what, min((start + fraction) / len(runs), 1.0))

            _run_session(session, writer, step)
            done += len(session)
    return len(left)


def _check_origin(path: Path, kept: Sequence[Line]) -> None:
    """Raise UsageError for lines that were not measured here, by this version."""
    here = _origin()
    for line in kept:
        other = {name: line.get(name) for name in here}
        if other != here:
            what = "machine" if other["machine"] != here["machine"] else "version of dpukv"
            raise UsageError(
                f"{path} holds runs of another {what}, and medians of both would be of neither: "
                f"choose another --output, or finish it where it was begun"
            )


def _origin() -> Line:
    """Return the facts that all runs of a median must share."""
    return {"machine": machine_facts(), "version": version("dpukv_xdp")}


def measure_costs(workload: str, progress: Progress) -> list[dict[str, Any]]:
    """Measure this machine for the model's costs and return the bench results.

    Takes a minute or two. Raises DpukvError if a run failed.
    """
    runs = [
        run
        for run in expand(find_plans([MODEL_PLAN]), COSTS_SIZE)
        if run.kind == "bench" and run.repeat == 0 and gives_costs(run.settings, workload)
    ]
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / RUNS_NAME
        reproduce(runs, COSTS_SIZE, path, progress, resume=False)
        points = Points.of(runs, read_lines(path))
    for name, reason in points.missing.items():
        raise DpukvError(f"{name} could not be measured: {reason}")
    return points.benches()


def gives_costs(settings: Settings, workload: str) -> bool:
    """Return whether settings are of a closed loop with the largest window, without ablation, and
    with the largest or the smallest packets.
    """
    return (
        settings["workload"] == workload
        and not {"rate", "respond"} & set(settings)
        and settings["window"] == COSTS_WINDOW
        and settings["requests_per_packet"] in COSTS_REQUESTS
    )


def sessions(runs: Iterable[Run]) -> list[list[Run]]:
    """Return the runs by session, in the order to run: round by round, shuffled within a round."""
    ordered: list[list[Run]] = []
    for repeat, round_runs in itertools.groupby(
        sorted(runs, key=lambda run: run.repeat), key=lambda run: run.repeat
    ):
        groups: dict[str, list[Run]] = {}
        for run in round_runs:
            groups.setdefault(_session_key(run), []).append(run)
        dice = random.Random(SEED + repeat)
        shuffled = [groups[key] for key in sorted(groups)]
        dice.shuffle(shuffled)
        for group in shuffled:
            group.sort(key=lambda run: run.key)
            dice.shuffle(group)
        ordered += shuffled
    return ordered


def read_lines(path: Path) -> list[Line]:
    """Return the newest line of each run in a file; no lines if there is no file.

    Raises UsageError if it is no file of runs.
    """
    if not path.exists():
        return []
    found: dict[str, Line] = {}
    for number, text in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        try:
            line = json.loads(text)
            found[line["key"]] = line
        except (ValueError, KeyError, TypeError) as error:
            raise UsageError(f"{path}, line {number} is no run: {error}") from error
    return list(found.values())


# ---- One session


class _Writer:
    """Appends lines to the file of runs."""

    def __init__(self, file: IO[str], size_name: str) -> None:
        self._file = file
        self._size_name = size_name
        self._origin = _origin()

    def add(self, run: Run, outcome: Mapping[str, Any], seconds: float) -> None:
        """Append a run's line: its `result`, or the reason why it was `refused` or `failed`."""
        line = {
            "key": run.key,
            "plans": list(run.plans),
            "kind": run.kind,
            "settings": run.settings,
            "repeat": run.repeat,
            "size": self._size_name,
            "at": datetime.now(UTC).isoformat(timespec="seconds"),
            "seconds_taken": round(seconds, 3),
            **self._origin,
            **outcome,
        }
        self._file.write(json.dumps(line) + "\n")
        self._file.flush()


def _run_session(runs: list[Run], writer: _Writer, progress: Progress) -> None:
    """Do all runs of a session; after a failure, those left get a new one."""
    waiting = list(runs)
    while waiting:
        done = len(runs) - len(waiting)
        title = _title(waiting[0])

        def step(what: str, fraction: float, title: str = title, done: int = done) -> None:
            progress(f"{title}: {what}", done + fraction)

        step("starting", 0.0)
        started = time.monotonic()
        try:
            with same_cpus(), OPENERS[waiting[0].kind](waiting) as measure_of:
                while waiting:
                    run = waiting[0]
                    started = time.monotonic()
                    done = len(runs) - len(waiting)

                    def inner(what: str, fraction: float, run: Run = run, done: int = done) -> None:
                        progress(f"{_title(run)}: {what}", done + fraction)

                    result = measure_of(run)(inner)
                    writer.add(run, {"result": result}, time.monotonic() - started)
                    waiting.pop(0)
        except UsageError as error:
            # What is refused before anything runs is refused for all of them.
            writer.add(waiting.pop(0), {"refused": str(error)}, time.monotonic() - started)
        except DpukvError as error:
            writer.add(waiting.pop(0), {"failed": str(error)}, time.monotonic() - started)


@contextlib.contextmanager
def _bench(runs: Sequence[Run]) -> Iterator[Callable[[Run], Measure]]:
    """Yield a measurement for each run, in a lab with our own server."""
    config, options = _largest(runs)
    validation.check(config)
    options.check()
    sizing.check_memory(replace_config(config, options))
    with Bench(config, options) as bench:
        config.placement().leave_host_cpus()
        yield _measures(bench, options)


@contextlib.contextmanager
def _peer(runs: Sequence[Run]) -> Iterator[Callable[[Run], Measure]]:
    """Yield a measurement for each run, in a lab with another store's server."""
    from dpukv_xdp.bench.peer_stores import find_peer
    from dpukv_xdp.bench.peers import PeerSession

    _, options = _largest(runs)
    with PeerSession(find_peer(runs[0].settings["peer"]), options) as session:
        cpus = os.sched_getaffinity(0)
        os.sched_setaffinity(0, cpus.difference(session.server_cpus) or cpus)
        yield _measures(session, options)


def _measures(session: Session, options: BenchOptions) -> Callable[[Run], Measure]:
    load = session.load_keys(options)

    def measure_of(run: Run) -> Measure:
        own = settings_of(run)[1]

        def measure(progress: Progress) -> dict[str, Any]:
            result = session.measure(own, progress)
            result.pop("machine", None)
            return {**result, "load": load}

        return measure

    return measure_of


@contextlib.contextmanager
def _transfers(runs: Sequence[Run]) -> Iterator[Callable[[Run], Measure]]:
    """Yield a measurement for each run of hand-overs between two cores."""
    from dpukv_xdp.bench.transfer import TransferPlan, Transfers, measure

    def plan(run: Run) -> TransferPlan:
        wanted = TransferPlan(
            tuple(run.settings["sizes"]), run.settings["operations"], (run.settings["primitive"],)
        )
        wanted.check()
        return wanted

    with Transfers(needs_link=any(plan(run).needs_link() for run in runs)) as transfers:
        yield lambda run: lambda progress: measure(plan(run), transfers, progress)


@contextlib.contextmanager
def _models(runs: Sequence[Run]) -> Iterator[Callable[[Run], Measure]]:
    """Yield a computation for each run of the model."""
    yield lambda run: lambda progress: MODELS[run.settings["model"]](run.settings)


OPENERS: dict[
    str,
    Callable[[Sequence[Run]], contextlib.AbstractContextManager[Callable[[Run], Measure]]],
] = {"bench": _bench, "peer": _peer, "transfer": _transfers, "model": _models}


# ---- The model's runs


def _model_scaling(settings: Settings) -> list[dict[str, Any]]:
    """Return throughput over the DPU's cores, or over the host's for a design without a DPU."""
    from dpukv_xdp.model.model import Point, simulate
    from dpukv_xdp.model.paper_costs import costs_from_paper

    design = find_design(settings["design"])
    find_profile(settings["dpu"]).check(design)
    costs = costs_from_paper(settings["dpu"], settings["workload"])
    counted = "dpu_cores" if "dpu" in design.communication else "host_cores"
    return [
        {
            "cores": cores,
            **simulate(costs, Point(design=design.name, **{counted: cores})).to_json(),
        }
        for cores in MODEL_CORES
    ]


def _model_host_cores(settings: Settings) -> list[dict[str, Any]]:
    """Return throughput by door and the time of a transfer over host cores."""
    from dpukv_xdp.model.model import Point, simulate
    from dpukv_xdp.model.paper_costs import costs_from_paper

    design = find_design(settings["design"])
    find_profile(settings["dpu"]).check(design)
    costs = costs_from_paper(settings["dpu"], settings["workload"])
    return [
        {
            "cores": cores,
            **simulate(costs, Point(design=design.name, host_cores=cores)).to_json(),
        }
        for cores in MODEL_CORES
    ]


def _model_buffers(settings: Settings) -> list[dict[str, Any]]:
    """Return throughput by door and the time of a transfer over the size of its buffer."""
    from dpukv_xdp.model.model import Point, simulate
    from dpukv_xdp.model.paper_costs import costs_from_paper

    costs = costs_from_paper(settings["dpu"], settings["workload"])
    point = Point(design=settings["design"], host_cores=settings["host_cores"])
    return [
        {
            "requests": requests,
            "bytes": requests * abi.SIZE("kv_request") + 1,
            **simulate(
                replace(
                    costs,
                    burst_packets=requests,
                    batch_packets=min(requests, costs.batch_packets),
                    rx_descriptors=max(requests, costs.rx_descriptors),
                ),
                point,
            ).to_json(),
        }
        for requests in MODEL_TRANSFERS
    ]


def _model_validation(settings: Settings) -> dict[str, Any]:
    """Return the model's errors against the paper."""
    from dpukv_xdp.model.validation import validate_paper, validation_json

    return validation_json(validate_paper())


MODELS: dict[str, Callable[[Settings], Any]] = {
    "scaling": _model_scaling,
    "host-cores": _model_host_cores,
    "buffers": _model_buffers,
    "validation": _model_validation,
}


# ---- Settings


def settings_of(run: Run) -> tuple[ServerConfig, BenchOptions]:
    """Return a run's settings as those of the server and of the load.

    Raises UsageError for an unknown setting.
    """
    load_names = {field.name for field in fields(BenchOptions)}
    load = {name: value for name, value in run.settings.items() if name in load_names}
    server = {
        name: value for name, value in run.settings.items() if name not in (*load_names, "peer")
    }
    try:
        return msgspec.convert(server, ServerConfig), BenchOptions(**load)
    except msgspec.ValidationError as error:
        raise UsageError(f"the plans of {', '.join(run.plans)}: {error}") from error


def _largest(runs: Sequence[Run]) -> tuple[ServerConfig, BenchOptions]:
    """Return options with room for the frames and the window of all runs of a session."""
    settings = [settings_of(run) for run in runs]
    config, longest = max(settings, key=lambda each: each[1].frame_bytes_max())
    return config, replace(longest, window=max(options.window for _, options in settings))


def needs_root(runs: Iterable[Run]) -> bool:
    """Return whether any run measures, which needs root; the model does not."""
    return any(run.kind != "model" for run in runs)


def _session_key(run: Run) -> str:
    if run.kind in ("transfer", "model"):
        return run.kind
    apart = {name: value for name, value in run.settings.items() if name not in LOAD_NAMES}
    return json.dumps([run.kind, apart], sort_keys=True)


def _title(run: Run) -> str:
    """Return a short description for the progress bar."""
    names = ("peer", "primitive", "model", "profile", "design", "workload", "distribution")
    known = [str(run.settings[name]) for name in names if name in run.settings]
    return f"{'/'.join(run.plans)} {' '.join(known)}"


def _drop_half_a_line(path: Path) -> None:
    """Remove an incomplete last line, which an interrupted write left; its run is repeated."""
    if not path.exists():
        return
    content = path.read_bytes()
    whole = content.rfind(b"\n") + 1
    if whole != len(content):
        with path.open("r+b") as file:
            file.truncate(whole)
