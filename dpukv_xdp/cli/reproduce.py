# SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
"""The command `dpukv reproduce`."""

from pathlib import Path

import click

from dpukv_xdp.base.errors import UsageError
from dpukv_xdp.cli.output import progress_bar, require_root, terminal
from dpukv_xdp.cli.settings import check_given
from dpukv_xdp.cli.signals import signals

SIZE_DEFAULT = "default"


@click.command()
@click.argument("figures", nargs=-1, metavar="[FIGURE...]")
@click.option("--smoke", is_flag=True, help="Short runs that show that everything works.")
@click.option("--paper", is_flag=True, help="As in the paper: 90 s per run, 3 repeats.")
@click.option(
    "--output",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("dpukv-reproduce"),
    show_default=True,
    help="Directory of the runs and of the report.",
)
@click.option("--resume", is_flag=True, help="Keep the runs that are done, and continue.")
@click.option("--list", "wants_list", is_flag=True, help="List the figures and their runs.")
def reproduce(
    figures: tuple[str, ...], smoke: bool, paper: bool, output: Path, resume: bool, wants_list: bool
) -> None:
    """Measure the paper's figures on this machine.

    The report puts them beside the paper's values.

    FIGURE is one of fig2, table1, fig5, fig6, fig8, fig9, fig10, fig11, fig12, fig13 and model,
    several of them, or all. The report is DIR/report.html and DIR/report.md, every run a line of
    DIR/runs.jsonl. Ctrl-C keeps what was measured.
    """
    from dpukv_xdp.paper.plans import expand, find_plans, load_sizes

    check_given()
    size_name = "smoke" if smoke else "paper" if paper else SIZE_DEFAULT
    plans = find_plans(figures)
    runs = expand(plans, size_name)
    if wants_list:
        for plan in plans:
            own = sum(plan.id in run.plans for run in runs)
            click.echo(f"{plan.id:8} {own:4} runs  {plan.title}")
        click.echo(f"{len(runs)} runs in all, {load_sizes()[size_name].summary}".rstrip())
        return
    from dpukv_xdp.paper import reproduce as runner

    if runner.needs_root(runs):
        require_root("reproduce")
    path = _prepared(output) / runner.RUNS_NAME
    signals.catch()
    with progress_bar(with_time_left=True) as progress:
        measured = runner.reproduce(runs, size_name, path, progress, resume=resume)
        progress("writing the report", 1.0)
        from dpukv_xdp.paper.html_report import write_report

        written = write_report(plans, runs, size_name, runner.read_lines(path), output)
    console = terminal()
    rest = "" if measured == len(runs) else ", the others were there"
    console.print(f"{measured} of {len(runs)} runs measured{rest}")
    for name, reason in written.missing.items():
        console.print(f"{name}: {reason}")
    console.print(f"Report: {written.html} and {written.markdown}")


def _prepared(output: Path) -> Path:
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"cannot write to {output}: {error.strerror}") from error
    return output
