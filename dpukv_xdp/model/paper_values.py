# SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
"""The values that the paper prints, with notes.

The table is data/paper_results.csv. A note that begins with `exact`, `range:min`, `range:max`,
`bound:upto`, `derived`, `approx` or `config` says how far a value may be trusted: see Trust.
"""

import csv
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal

from dpukv_xdp.base.errors import UsageError
from dpukv_xdp.topology.designs import DESIGNS

RESULTS_PATH = Path(__file__).parent / "data" / "paper_results.csv"

Trust = Literal["exact", "minimum", "maximum", "bound", "derived", "approximate", "setting"]
"""How far a value may be trusted.

exact: printed as such. minimum, maximum: ends of a printed range. bound: "up to". derived: by
arithmetic from printed values. approximate: "around". setting: the experiment's configuration.
"""

INCONSISTENCIES = (
    "The count of a queue pair's batch is one byte, and BlueField-3's burst of 256 does not fit in "
    "one: the count less one does.",
    "63.67 and 81.81 % of bytes saved are rounding slips: 88, 96, 96 and 88 bytes against 32 and "
    "16 give 63.64, 66.67, 83.33 and 81.82 %.",
    'Communication takes "up to 3.5x more" than processing, which no column of Table 1 gives: they '
    "give 3.2 to 7.2.",
    "Figures 9, 10b, 11 and 13 print no values: only the ranges of the text can be compared. A "
    "range that covers workloads and distributions does not say which of them has which end.",
    "Figure 8b's list of the queue pair's functions is an image of which the text names two: "
    "`send_request_queue_to_host` and `send_response_queue_to_dpu`; the others here are ours.",
    'The "192 M" keys are MICA2\'s default, 192 Mi, which is 201,326,592: with 12 GiB of store.',
    "Throughput of DPU-only, CPU-only and sav on BlueField-2 by workload is derived from dual's "
    "and from ranges of ratios.",
    "Doubling the receive descriptors took 41 % off CPU-only's latency: a longer queue that is "
    "full makes latency longer, so something else than the queue's length was at work.",
    "At their peaks on BlueField-3 with YCSB C, throughput times latency is 2481 requests for "
    "DPU-only and 2125 for lat (Figure 12h): the two were not measured with the same number of "
    "requests outstanding.",
)
"""Contradictions between the paper's own numbers, one sentence each."""


@dataclass(frozen=True, slots=True)
class PaperValue:
    """A row of the table."""

    figure_table: str
    """Place of the value in the paper, such as `Fig.12h` or `Table 1`."""
    dpu: str
    """`BF-2`, `BF-3`, or the table's word for both or neither."""
    design: str
    """The paper's name of the design."""
    workload: str
    """YCSB A, B, C, or a list of them."""
    distribution: str
    """`uniform`, `skewed`, or both."""
    metric: str
    value: float | None
    """None where the paper gives a shape instead of a number."""
    text: str
    """The value as printed."""
    unit: str
    note: str

    @property
    def trust(self) -> Trust:
        """Return how far the value may be trusted."""
        words: tuple[tuple[str, Trust], ...] = (
            ("derived", "derived"),
            ("range:min", "minimum"),
            ("range:max", "maximum"),
            ("bound", "bound"),
            ("approx", "approximate"),
            ("config", "setting"),
        )
        return next((trust for word, trust in words if self.note.startswith(word)), "exact")


@dataclass(frozen=True, slots=True)
class PaperRange:
    """The range that the paper gives for a value; both ends are equal for an exact one."""

    low: float
    high: float
    unit: str
    where: str
    """Figure, table or section."""

    @property
    def middle(self) -> float:
        """Return the middle of the range."""
        return (self.low + self.high) / 2

    def error(self, value: float) -> float:
        """Return the relative distance of a value from the range: 0 inside, negative below."""
        nearest = min(max(value, self.low), self.high)
        return (value - nearest) / abs(nearest) if nearest else value


@cache
def paper_results(path: Path = RESULTS_PATH) -> tuple[PaperValue, ...]:
    """Return every row of the table."""
    with path.open(newline="", encoding="utf-8") as file:
        return tuple(
            PaperValue(
                row["figure_table"],
                row["dpu"],
                row["design"],
                row["workload"],
                row["distribution"],
                row["metric"],
                _number(row["value"]),
                row["value"],
                row["unit"],
                row["note"],
            )
            for row in csv.DictReader(file)
        )


def paper_values(
    metric: str,
    *,
    dpu: str | None = None,
    design: str | None = None,
    workload: str | None = None,
    figure_table: str | None = None,
) -> tuple[PaperValue, ...]:
    """Return the rows of a metric that match all other arguments given."""
    wanted = {"dpu": dpu, "design": design, "workload": workload, "figure_table": figure_table}
    return tuple(
        row
        for row in paper_results()
        if row.metric == metric
        and all(value is None or getattr(row, name) == value for name, value in wanted.items())
    )


def paper_range(
    metric: str,
    *,
    dpu: str | None = None,
    design: str | None = None,
    workload: str | None = None,
    figure_table: str | None = None,
) -> PaperRange:
    """Return the range of the rows that paper_values() finds.

    Raises UsageError if it finds none, or only rows without a number.
    """
    rows = paper_values(
        metric, dpu=dpu, design=design, workload=workload, figure_table=figure_table
    )
    numbers = [row.value for row in rows if row.value is not None]
    if not numbers:
        raise UsageError(f"the paper's table has no number for {metric} of {design} on {dpu}")
    where = ", ".join(dict.fromkeys(row.figure_table for row in rows))
    return PaperRange(min(numbers), max(numbers), rows[0].unit, where)


def own_name(paper_name: str) -> str:
    """Return the name in designs.py of a design of the paper."""
    return paper_name.removeprefix("DPU-KV-").lower()


@cache
def paper_names() -> dict[str, str]:
    """Return the paper's names of the designs that it evaluates, by their names in designs.py."""
    names = {own_name(row.design): row.design for row in paper_results()}
    return {own: name for own, name in names.items() if own in DESIGNS}


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None
