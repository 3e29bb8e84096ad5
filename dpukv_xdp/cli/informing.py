# SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
"""Commands that inform: the designs, and what this machine lacks."""

import sys
from typing import Any

import click

from dpukv_xdp.cli.options import json_option
from dpukv_xdp.cli.output import check_json, emit_json, progress_bar
from dpukv_xdp.cli.signals import signals


@click.command()
@json_option
def designs(json_path: str | None) -> None:
    """List the designs and their purposes."""
    from dpukv_xdp.topology.designs import DESIGNS

    rows = [
        {
            "name": design.name,
            "communication": design.communication,
            "processing": design.processing,
            "pairing": design.pairing,
            "summary": design.summary,
        }
        for design in DESIGNS.values()
    ]
    emit_json(json_path, rows)
    if json_path != "-":
        for row in rows:
            first, second = row["summary"]
            click.echo(f"{row['name']:9} {first}\n{'':9} {second}")


@click.command()
@json_option
def doctor(json_path: str | None) -> None:
    """Report what this machine has and lacks.

    Loads the programs of each design, and tries each kernel feature that they need. Each gap comes
    with its remedy. The exit status is 1 if a requirement is missing or could not be tried.
    """
    from dpukv_xdp.ops.doctor import checks

    check_json(json_path)
    signals.catch()
    with progress_bar() as progress:
        found = checks(progress)
    emit_json(
        json_path,
        [
            {
                "name": c.name,
                "ok": c.ok,
                "found": c.found,
                "remedy": c.remedy,
                "required": c.is_required,
                "tried": c.is_tried,
                **c.details,
            }
            for c in found
        ],
    )
    if json_path != "-":
        for check in found:
            mark = _mark_of(check)
            click.echo(
                f"{mark:8}{check.name}: {check.found}{'' if check.ok else f'; {check.remedy}'}"
            )
    if any(check.is_required and not check.ok for check in found):
        sys.exit(1)


def _mark_of(check: Any) -> str:
    if check.ok:
        return "ok"
    if not check.is_tried:
        return "?"
    return "MISSING" if check.is_required else "note"
