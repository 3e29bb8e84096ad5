# SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
"""Costs and bench results in files: TOML of `dpukv model --write-costs`, JSON of `dpukv bench`."""

import json
import tomllib
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import msgspec

from dpukv_xdp.base.errors import MissingError, UsageError
from dpukv_xdp.base.places import RESULTS_DIR
from dpukv_xdp.model.bench_costs import apart, costs_from_bench, on_dpu
from dpukv_xdp.model.costs import Costs
from dpukv_xdp.model.paper_costs import costs_from_paper

MEASURED_PATH = RESULTS_DIR / "model_points.json"
"""A list of results of `dpukv bench`, which `--costs committed` reads."""


def read_costs(path: Path) -> Costs:
    """Return costs from a TOML file that `costs_toml` wrote, or from a JSON file of bench results.

    Raises UsageError for any other file.
    """
    if path.suffix == ".json":
        return costs_from_bench(read_results(path))
    try:
        return msgspec.convert(tomllib.loads(path.read_text(encoding="utf-8")), Costs)
    except (OSError, tomllib.TOMLDecodeError, msgspec.ValidationError) as error:
        raise UsageError(f"{path} holds no costs: {error}") from error


def read_results(path: Path) -> list[dict[str, Any]]:
    """Return the results in a file of `dpukv bench --json`: one, a list, or those of
    `--design all`.

    Raises UsageError for any other file.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UsageError(f"{path} holds no bench results: {error}") from error
    if isinstance(content, dict):
        content = content.get("results", [content])
    if not isinstance(content, list) or not all(
        isinstance(result, dict) and "throughput_mops" in result for result in content
    ):
        raise UsageError(f"{path} holds no bench results: write it with `dpukv bench --json`")
    return content


def find_costs(source: str, dpu: str, workload: str) -> Costs:
    """Return the costs that the option --costs names: `paper`, `committed`, or a file."""
    if source == "paper":
        return costs_from_paper(dpu, workload)
    if source == "committed":
        if not MEASURED_PATH.exists():
            raise MissingError("--costs committed", f"{MEASURED_PATH}: use `--costs here`")
        source = str(MEASURED_PATH)
    if not source.endswith(".json"):
        return read_costs(Path(source))
    return costs_of_results(read_results(Path(source)), dpu, workload)


def costs_of_results(results: Sequence[dict[str, Any]], dpu: str, workload: str) -> Costs:
    """Return costs from bench results, with a separate client and with a profile's cores and bus.

    Uses the results of this workload with uniform keys if there are any, otherwise all.
    """
    uniform = [
        result
        for result in results
        if (result["workload"], result["distribution"]) == (workload, "uniform")
    ]
    return on_dpu(apart(costs_from_bench(uniform or results)), dpu)


def costs_toml(costs: Costs) -> str:
    """Return the costs as TOML, which `read_costs` reads."""
    lines: list[str] = []
    _write_table(lines, "", asdict(costs))
    return "\n".join(lines) + "\n"


def _write_table(lines: list[str], name: str, table: dict[str, Any]) -> None:
    if name:
        lines += ["", f"[{name}]"]
    for key, value in table.items():
        if not isinstance(value, dict):
            lines.append(f"{key} = {json.dumps(value)}")
    for key, value in table.items():
        if isinstance(value, dict):
            _write_table(lines, f"{name}.{key}" if name else key, value)
