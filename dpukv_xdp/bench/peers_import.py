# SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
"""Results that were measured elsewhere, for example on a BlueField: read, checked, and put into the
rows that `dpukv compare` prints. docs/results/README.md documents the format.
"""

from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec

from dpukv_xdp.base.errors import UsageError
from dpukv_xdp.bench.limits import Result

SCHEMA = "dpukv-results/1"

Positive = Annotated[float, msgspec.Meta(gt=0)]
NotNegative = Annotated[float, msgspec.Meta(ge=0)]
Fraction = Annotated[float, msgspec.Meta(ge=0, le=1)]
Count = Annotated[int, msgspec.Meta(ge=0)]
CountFromOne = Annotated[int, msgspec.Meta(ge=1)]
Name = Annotated[str, msgspec.Meta(min_length=1, max_length=200)]
Text = Annotated[str, msgspec.Meta(max_length=4000)]


class Latency(msgspec.Struct, forbid_unknown_fields=True):
    """Round trips in microseconds; quantities that were not measured are None."""

    p50: Positive | None = None
    p99: Positive | None = None
    p999: Positive | None = None
    mean: Positive | None = None
    unspecified: Positive | None = None
    """A round trip of which the source does not say which of these it is."""


class CpuTime(msgspec.Struct, forbid_unknown_fields=True):
    """Nanoseconds of CPU time per request, by role."""

    client: NotNegative | None = None
    dpu: NotNegative | None = None
    host: NotNegative | None = None


class Machine(msgspec.Struct, forbid_unknown_fields=True):
    """The machine that results come from."""

    description: Name
    """Processors, DPU and network, as far as a reader needs them to judge the numbers."""
    base: Name | None = None
    """The label to which ratios on this machine refer; None for no ratios."""


class Measured(msgspec.Struct, forbid_unknown_fields=True):
    """One result."""

    label: Name
    machine: Name
    """A key of `machines`."""
    workload: Literal["A", "B", "C"] | None = None
    distribution: Literal["uniform", "zipf"] | None = None
    requests_per_packet: CountFromOne | None = None
    keys: CountFromOne | None = None
    key_size: CountFromOne | None = None
    value_size: CountFromOne | None = None
    throughput_mops: Positive | None = None
    latency_us: Latency | None = None
    cpu_ns_per_op: CpuTime | None = None
    client_busy: Fraction | None = None
    server_busy: Fraction | None = None
    corrupt: Count | None = None
    misses: Count | None = None
    lost: Count | None = None
    note: Text = ""


class Document(msgspec.Struct, forbid_unknown_fields=True):
    """A file of results."""

    schema: str
    """SCHEMA."""
    source: Text
    """Author, date and method of the measurement, or the publication."""
    machines: dict[str, Machine]
    results: list[Measured]


def read_results(path: Path) -> Document:
    """Return the results in a file. Raises UsageError that names the first mistake in it."""
    try:
        found = msgspec.json.decode(path.read_bytes())
        if not isinstance(found, dict) or found.get("schema") != SCHEMA:
            raise UsageError(
                f"{path} is no file of results to import: its `schema` must be {SCHEMA!r}, and "
                f"docs/results/README.md describes the rest"
            )
        document = msgspec.convert(found, Document)
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}") from error
    except msgspec.ValidationError as error:
        raise UsageError(f"{path}: {_sentence(str(error))}") from error
    except msgspec.DecodeError as error:
        raise UsageError(f"{path} is not JSON: {error}") from error
    if not document.results:
        raise UsageError(f"{path}: `results` is empty, there is nothing to show")
    for index, result in enumerate(document.results):
        _check(path, document, index, result)
    return document


def imported_rows(document: Document) -> list[Result]:
    """Return rows like those of compare.summary(), with the machine's name; unknown cells are None.

    Ratios refer to the machine's own base at the same load, never to another machine.
    """
    rows = [_row(document, result) for result in document.results]
    for row in rows:
        base_label = document.machines[row["machine"]].base
        base = next((o for o in rows if o["label"] == base_label and _load(o) == _load(row)), None)
        mine = row["throughput_mops"]
        if base is not None and base["throughput_mops"] and mine:
            row["ratio"] = base["throughput_mops"] / mine
    return rows


def _check(path: Path, document: Document, index: int, result: Measured) -> None:
    where = f"{path}: `results[{index}]` ({result.label})"
    if result.machine not in document.machines:
        known = ", ".join(document.machines) or "none"
        raise UsageError(
            f"{where}: machine {result.machine!r} is not described under `machines`, which has "
            f"{known}"
        )
    latency = result.latency_us and any(msgspec.structs.astuple(result.latency_us))
    if result.throughput_mops is None and not latency:
        raise UsageError(f"{where} has neither `throughput_mops` nor a value in `latency_us`")


def _row(document: Document, result: Measured) -> Result:
    latency = result.latency_us or Latency()
    cpu = result.cpu_ns_per_op or CpuTime()
    return {
        "label": result.label,
        "machine": result.machine,
        "machine_description": document.machines[result.machine].description,
        "base": document.machines[result.machine].base,
        "source": document.source,
        "target": None,
        "workload": result.workload,
        "distribution": result.distribution,
        "requests_per_packet": result.requests_per_packet,
        "throughput_mops": result.throughput_mops,
        "throughput_spread_mops": None,
        "latency_us": msgspec.structs.asdict(latency),
        "cpu_ns_per_op": msgspec.structs.asdict(cpu),
        "client_busy": result.client_busy,
        "server_busy": result.server_busy,
        "limit": None,
        "corrupt": result.corrupt,
        "misses": result.misses,
        "lost": result.lost,
        "note": result.note,
        "ratio": None,
    }


def _load(row: Result) -> tuple[Any, ...]:
    return tuple(
        row[name] for name in ("machine", "workload", "distribution", "requests_per_packet")
    )


def _sentence(said: str) -> str:
    """Return msgspec's "Expected `float`, got `str` - at `$.x`" with the place in front."""
    what, _, place = said.partition(" - at `$")
    what = f"{what[0].lower()}{what[1:]}"
    return f"`{place.rstrip('`').lstrip('.')}`: {what}" if place else what
