# SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
"""Test the running kernel: `inside.py compile`, `load` and `talk` print a line of JSON per result.

It runs in guests and on the host, in the checkout's environment. Each build and each design is
tested in a fork of this process, so that modules are imported only once.
"""

import json
import os
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from dataclasses import replace
from multiprocessing import get_context
from typing import Any

from dpukv_xdp.base.errors import DpukvError
from dpukv_xdp.base.places import BPF_DIR
from dpukv_xdp.bench.options import BenchOptions, replace_config
from dpukv_xdp.cli import main as cli
from dpukv_xdp.kernel import compiler, loader
from dpukv_xdp.kernel.kernel_headers import CACHE_DIRS
from dpukv_xdp.kernel.loader import Build
from dpukv_xdp.load import loadgen
from dpukv_xdp.ops import builds
from dpukv_xdp.server.wiring import Wiring
from dpukv_xdp.topology.designs import DESIGNS
from dpukv_xdp.topology.schema import ServerConfig

KEYS = 4096
SECONDS = 0.5
"""Duration of a bench."""
BENCH = ["--keys", str(KEYS), "--seconds", str(SECONDS), "--json", "-"]
NEVER_SILENT = ["--silent-after-ms", "60000"]
"""In a guest an engine loses its core for longer than the default, and its requests are refused."""
LAB = "kernels"
"""Name of the lab of each design."""
LAB_MTU = 1500
"""Default MTU of a lab, in bytes."""
WORKERS = 2
Result = dict[str, Any]


def main() -> int:
    """Print the results of the jobs on the command line; return the exit status."""
    jobs = {"compile": compile_all, "load": load_all, "talk": talk_all}
    for name in sys.argv[1:]:
        for result in jobs[name]():
            print(json.dumps(result), flush=True)  # noqa: T201 - read by matrix.py
    return 0


# ---- Builds


def compile_all() -> Iterator[Result]:
    """Compile every build, and those of the commands below, unless it is cached."""
    for result in _in_workers(_compile, [*builds.every_build(), *command_builds()]):
        if "refused" in result or result["seconds"] > 0.2:
            yield {"compiled": result}


def load_all() -> Iterator[Result]:
    """Load every build; yield the instructions that the verifier processed per program."""
    for result in _in_workers(_load, builds.every_build()):
        yield {"build": result}


def command_builds() -> list[Build]:
    """Return the builds that `talk` loads: a lab's address and sizes make other programs."""
    options = BenchOptions(keys=KEYS, seconds=SECONDS)
    link = replace(builds.LINK, mtu=LAB_MTU)
    found = []
    for design in DESIGNS:
        config = ServerConfig(design=design)
        for settings in (config, replace_config(config, options)):
            found.append(Wiring.of(settings).build(design, settings, builds.CPUS, link))
        engines = config.endpoint_count()
        found.append(loadgen.build("load", config.port, engines, options.frame_bytes_max()))
    return found


def _compile(build: Build) -> Result:
    compiler.compile_source(BPF_DIR / build.source, build.settings)
    return {}


def _load(build: Build) -> Result:
    loaded = build.load()
    try:
        fds = loaded.programs.items()
        return {"instructions": {name: loader.verified_instructions(fd) for name, fd in fds}}
    finally:
        loaded.close()


def _in_workers(job: Callable[[Build], Result], what: list[Build]) -> Iterator[Result]:
    """Run a job for each build in forks of this process; yield results in the builds' order."""
    with ProcessPoolExecutor(WORKERS, mp_context=get_context("fork")) as pool:
        yield from pool.map(_timed, [job] * len(what), what)


def _timed(job: Callable[[Build], Result], build: Build) -> Result:
    started = time.monotonic()
    try:
        result = job(build)
    except DpukvError as error:
        result = {"refused": str(error)}
    return {"name": build.name, **result, "seconds": round(time.monotonic() - started, 2)}


# ---- Commands


def talk_all() -> Iterator[Result]:
    """Measure each design briefly, and run `set` and `get` with it in a lab."""
    kept = _kept_programs()
    for design in DESIGNS:
        started = time.monotonic()
        yield {"bench": {"design": design, **_bench(design), "seconds": _since(started)}}
    for design in DESIGNS:
        started = time.monotonic()
        yield {"lab": {"design": design, **_ask(design), "seconds": _since(started)}}
    yield {"compiled_here": sorted(_kept_programs() - kept)}


def _bench(design: str) -> Result:
    has_beats = "kv_reject" in Wiring.of(ServerConfig(design=design)).tail_calls
    given = NEVER_SILENT if has_beats else []
    status, said = _dpukv("bench", "--design", design, *given, *BENCH)
    if status:
        return {"failed": _last_line(said)}
    result = json.loads(said)
    names = ("throughput_mops", "hits", "misses", "corrupt", "refused", "lost", "xdp_mode")
    return {name: result[name] for name in names}


def _ask(design: str) -> Result:
    """Run `lab up`, `set`, `get` and `lab down` with a design."""
    steps = (
        (("lab", "up", "--name", LAB, "--design", design), None),
        (("set", "--lab", LAB, "hello", design), None),
        (("get", "--lab", LAB, "hello"), design),
    )
    try:
        for arguments, expected in steps:
            status, said = _dpukv(*arguments)
            if status or (expected is not None and said.strip() != expected):
                return {"failed": f"{' '.join(arguments[:2])}: {_last_line(said)}"}
    finally:
        status, said = _dpukv("lab", "down", LAB)
    return {"failed": f"lab down: {_last_line(said)}"} if status else {}


def _dpukv(*arguments: str) -> tuple[int, str]:
    """Run a dpukv command in a fork; return its exit status and its output.

    The output includes stderr only if the command fails.
    """
    with open_nameless() as out, open_nameless() as err:
        pid = os.fork()
        if pid == 0:
            _become(["dpukv", *arguments], out.fileno(), err.fileno())
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        return status, _read(out) if status == 0 else _read(out) + _read(err)


def _become(argv: list[str], out: int, err: int) -> None:
    """Turn the calling fork into a command, and end with the command's exit status."""
    status = 1
    try:
        os.dup2(out, 1)
        os.dup2(err, 2)
        sys.argv = argv
        cli.main()
        status = 0
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else 1
    except BaseException:  # noqa: BLE001 - the traceback is the command's output
        traceback.print_exc()
    finally:
        with suppress(OSError):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(status)


def _kept_programs() -> set[str]:
    return {path.name for cache in CACHE_DIRS for path in (cache / "programs").glob("*")}


def open_nameless() -> Any:
    """Return an unlinked temporary file."""
    return os.fdopen(os.memfd_create("output"), "r+b")


def _read(file: Any) -> str:
    return os.pread(file.fileno(), os.fstat(file.fileno()).st_size, 0).decode(errors="replace")


def _last_line(text: str) -> str:
    return (text.strip().splitlines() or ["it said nothing"])[-1]


def _since(started: float) -> float:
    return round(time.monotonic() - started, 2)


if __name__ == "__main__":
    sys.exit(main())
