# SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
"""Order, groups, names, colours and styles of points in the report's drawings."""

from collections.abc import Mapping, Sequence
from typing import Any

from dpukv_xdp.paper.plans import Panel
from dpukv_xdp.paper.points import Point
from dpukv_xdp.topology.designs import DESIGNS

PAPER_DPU = {"bf2": "BF-2", "bf3": "BF-3"}
"""The paper's name for each emulated profile's DPU."""
MARKERS = "os^Dv<>P*X"
LINES = ("-", "--", ":", "-.")


def split(panel: Panel, shown: Sequence[Point]) -> dict[str, list[Point]]:
    """Return the points of each of the panel's pictures, by the picture's title."""
    groups: dict[str, list[Point]] = {}
    for point in sorted(shown, key=lambda p: order_key(tuple(panel.split), p.settings)):
        parts = [_part(name, point.settings[name]) for name in panel.split]
        groups.setdefault(", ".join(parts), []).append(point)
    return groups


def _part(name: str, value: Any) -> str:
    """Return a setting's value as it reads in a title."""
    if name == "requests_per_packet":
        return f"{value} a message" if value else "messages full"
    return f"YCSB {value}" if name == "workload" else str(value)


def by_line(panel: Panel, shown: Sequence[Point]) -> dict[str, list[Point]]:
    """Return the points of each of the panel's lines, by the line's label."""
    groups: dict[str, list[Point]] = {}
    for point in ordered(shown):
        groups.setdefault(label_of(panel.line, point.settings), []).append(point)
    return groups


def label_of(names: Sequence[str], settings: Mapping[str, Any]) -> str:
    """Return the label that these settings give a line or a bar."""
    parts = []
    for name in names:
        if name in settings:
            text = str(settings[name])
            parts.append(f"{text} descriptors" if name == "rx_descriptors" else text)
    return " ".join(parts) or "-"


def heading_of(name: str) -> str:
    """Return the axis label or column heading of a setting."""
    return {
        "distribution": "keys",
        "requests_per_packet": "requests in a packet",
        "cores": "host cores",
        "bytes": "bytes of a transfer's buffer",
        "window": "packets outstanding",
    }.get(name, name.replace("_", " "))


def ordered(shown: Sequence[Point]) -> list[Point]:
    """Return the points sorted by profile, design and load."""
    names = (
        *("peer", "dpu", "profile", "design", "frames", "rx_descriptors"),
        *("workload", "distribution"),
    )
    return sorted(shown, key=lambda p: order_key(names, p.settings))


def order_key(names: Sequence[str], settings: Mapping[str, Any]) -> tuple[Any, ...]:
    """Return a sort key: designs in the table's order, numbers by size, anything else by name."""
    ranks = list(DESIGNS)
    key: list[tuple[int, float, str]] = []
    for name in names:
        value = settings.get(name, "")
        if value in ranks:
            key.append((0, ranks.index(value), ""))
        elif isinstance(value, int | float):
            key.append((0, float(value), ""))
        else:
            key.append((1, 0.0, str(value)))
    return tuple(key)


def colours_of(names: Sequence[str], shown: Sequence[Point]) -> dict[str, str]:
    """Return a colour for each line's label; a design has the same colour in all pictures."""
    found = {name: f"C{number}" for number, name in enumerate((*DESIGNS, "cpu-only ring"))}
    for point in ordered(shown):
        label = label_of(names, point.settings)
        found.setdefault(label, f"C{(len(found)) % 10}")
    return found


def workload_style(panel: Panel, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the marker and the dashes that tell workloads in one picture apart."""
    if "workload" not in panel.line:
        return {"marker": "o", "linestyle": LINES[0]}
    number = sorted("ABC").index(str(settings["workload"]))
    return {"marker": MARKERS[number], "linestyle": LINES[number]}
