# SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
"""The report's drawings by the name that a plan's panel gives them."""

from collections.abc import Callable

from dpukv_xdp.paper.pictures import Item
from dpukv_xdp.paper.plans import Panel, Plan
from dpukv_xdp.paper.plots_load import draw_bars, draw_curves, draw_times
from dpukv_xdp.paper.plots_stages import (
    draw_batch,
    draw_bytes,
    draw_clocks,
    draw_stages,
    draw_transfers,
)
from dpukv_xdp.paper.plots_sweeps import draw_model_doors, draw_scaling, draw_sweep, draw_validation
from dpukv_xdp.paper.points import Points


def draw(plan: Plan, panel: Panel, points: Points) -> list[Item]:
    """Return a panel's pictures and tables; none if none of its runs were measured."""
    return DRAWINGS[panel.draw](plan, panel, points)


DRAWINGS: dict[str, Callable[[Plan, Panel, Points], list[Item]]] = {
    "curves": draw_curves,
    "times": draw_times,
    "bars": draw_bars,
    "stages": draw_stages,
    "clocks": draw_clocks,
    "batch": draw_batch,
    "bytes": draw_bytes,
    "transfers": draw_transfers,
    "sweep": draw_sweep,
    "scaling": draw_scaling,
    "model-doors": draw_model_doors,
    "validation": draw_validation,
}
