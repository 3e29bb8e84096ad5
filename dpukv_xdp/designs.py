# SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
"""The table of designs: who communicates, who processes, and how their cores are paired (paper,
section 4).

A design is a row. What serves requests reads the columns, never the name.
"""

from dataclasses import dataclass
from typing import Literal

from dpukv_xdp.errors import UsageError

Place = Literal["dpu", "host"]
Pairing = Literal["one-to-one", "many-to-one", "fused"]


@dataclass(frozen=True, slots=True)
class Design:
    """Where the two engines run."""

    name: str
    communication: tuple[Place, ...]
    """Where the communication engine runs: `dpu` is XDP on the cores that serve the NIC."""
    processing: tuple[Place, ...]
    """Where the processing engine runs."""
    pairing: Pairing
    """Communication cores to processing cores."""
    summary: str


DESIGNS = {
    design.name: design
    for design in (
        Design(
            "lat",
            communication=("dpu",),
            processing=("host",),
            pairing="one-to-one",
            summary="XDP communicates, a host core of its own processes: lowest latency.",
        ),
    )
}


def find_design(name: str) -> Design:
    """The row of that name. Raises UsageError for one that the table does not have."""
    try:
        return DESIGNS[name]
    except KeyError as error:
        raise UsageError(
            f"there is no design {name!r}: choose one of {', '.join(DESIGNS)}"
        ) from error
