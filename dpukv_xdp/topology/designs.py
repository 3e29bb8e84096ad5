# SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
"""The table of designs: where the communication and processing engines run, and how their cores are
paired (paper, section 4).

A design is a row. Code that serves requests branches on the columns, never on the name.
"""

from dataclasses import dataclass
from typing import Literal

from dpukv_xdp.base.errors import UsageError

Place = Literal["dpu", "host"]
Pairing = Literal["one-to-one", "many-to-one", "fused"]


@dataclass(frozen=True, slots=True)
class Design:
    """One composition of communication and processing engines."""

    name: str
    communication: tuple[Place, ...]
    """The doors: places where the communication engine runs. `dpu` is XDP on the cores that serve
    the NIC, `host` a native thread.
    """
    processing: tuple[Place, ...]
    """Places where the processing engine runs."""
    pairing: Pairing
    """Communication cores per processing core; `fused` if one core does both."""
    summary: tuple[str, str]
    """Two sentences: how it works, and its purpose."""
    is_compared: bool = True
    """Whether the paper evaluates it."""

    def has_door(self, place: Place) -> bool:
        """Return whether the communication engine runs there."""
        return place in self.communication

    def processing_of(self, door: Place) -> Place:
        """Return where requests that arrive at a door are processed: at the door if that is
        possible.
        """
        return door if door in self.processing else self.processing[0]

    @property
    def hands_over(self) -> bool:
        """Whether XDP hands requests over to engines on the host."""
        return self.has_door("dpu") and self.processing_of("dpu") == "host"

    @property
    def has_native_threads(self) -> bool:
        """Whether any engine runs on a host core."""
        return "host" in (*self.communication, *self.processing)

    @property
    def has_one_store(self) -> bool:
        """Whether several doors lead to the same store, so that each may ask for any key."""
        return len(self.communication) > len(self.processing)


DESIGNS = {
    design.name: design
    for design in (
        Design(
            "cpu-only",
            communication=("host",),
            processing=("host",),
            pairing="fused",
            summary=(
                "The host does everything; the NIC only passes packets (AF_XDP, or mapped rings).",
                "No offloading: the baseline, which needs many host cores.",
            ),
        ),
        Design(
            "dpu-only",
            communication=("dpu",),
            processing=("dpu",),
            pairing="fused",
            summary=(
                "XDP parses, looks up and answers in place, from a store in BPF maps.",
                "No host core at all; slow where the DPU's cores and memory are.",
            ),
        ),
        Design(
            "lat",
            communication=("dpu",),
            processing=("host",),
            pairing="one-to-one",
            summary=(
                "XDP communicates, and a host core of its own processes for each endpoint.",
                "Lowest latency and, with enough host cores, high throughput.",
            ),
        ),
        Design(
            "sav",
            communication=("dpu",),
            processing=("host",),
            pairing="many-to-one",
            summary=(
                "XDP communicates; one host core serves the queue pairs of all DPU cores in turn.",
                "Fewest host cores for the low latency of offloading.",
            ),
        ),
        Design(
            "dual",
            communication=("dpu", "host"),
            processing=("host",),
            pairing="many-to-one",
            summary=(
                "As sav, and spare host cores are endpoints of their own on the same store.",
                "More throughput than the DPU can carry, from few host cores.",
            ),
        ),
        Design(
            "shrd",
            communication=("dpu", "host"),
            processing=("dpu", "host"),
            pairing="fused",
            summary=(
                "DPU and host each serve their own share of the keys from end to end.",
                "Highest throughput: both sides' cores work and nothing crosses the bus.",
            ),
        ),
        Design(
            "inverse",
            communication=("host",),
            processing=("dpu",),
            pairing="one-to-one",
            summary=(
                "The host communicates, and cores of the DPU process (the paper's Figure 7a).",
                "For comparison only: it offloads the smaller part of the work.",
            ),
            is_compared=False,
        ),
    )
}


def find_design(name: str) -> Design:
    """Return the design of that name. Raises UsageError if the table has none."""
    try:
        return DESIGNS[name]
    except KeyError as error:
        raise UsageError(
            f"there is no design {name!r}: choose one of {', '.join(DESIGNS)}"
        ) from error
