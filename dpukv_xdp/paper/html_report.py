# SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
"""The report of `dpukv reproduce`: one document, written as a self-contained HTML file and as
Markdown with its pictures beside it.
"""

import base64
import html
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dpukv_xdp.base.errors import UsageError
from dpukv_xdp.base.machine import machine_facts
from dpukv_xdp.bench.limits import OTHERS_MAX
from dpukv_xdp.model.paper_values import INCONSISTENCIES, paper_results
from dpukv_xdp.paper.claims import Finding, check_claim
from dpukv_xdp.paper.pictures import Item, Picture, Table, save
from dpukv_xdp.paper.plans import Plan, Run, load_sizes
from dpukv_xdp.paper.plots import draw
from dpukv_xdp.paper.points import Points
from dpukv_xdp.paper.sentences import clock_sentences, validation_sentences
from dpukv_xdp.topology.profiles import PROFILES

TITLE = "DPU-KV, reproduced"
POINTS_NAME = "points.json"
GIB = 1 << 30
NOTHING = "Nothing of this was measured."
READING = (
    "Ratios are compared with ratios. Absolute numbers are this machine's, except where a row says "
    "that they are the paper's or the model's. A value is the median of its repeats, with their "
    "least and greatest. A ratio is formed in each round, and its value is the median over rounds. "
    'It agrees under a load if it is within the paper\'s range (2 % more or less; an "up to" allows '
    "everything from there to no difference). Agreements are counted over loads; a range over loads "
    "is a range of medians. The paper has 8 cores per side, a client machine and real DPUs; here "
    "two network namespaces share this machine's cores, and bf2 and bf3 are emulations: a bus that "
    "takes time, and XDP that is slowed down."
)


@dataclass(frozen=True, slots=True)
class Section:
    """A section of the report: one figure."""

    id: str
    title: str
    paragraphs: tuple[tuple[str, tuple[str, ...]], ...]
    """Headings, each with one text or with the items of a list."""
    items: tuple[Item, ...]


@dataclass(frozen=True, slots=True)
class Document:
    """The whole report."""

    title: str
    lead: tuple[str, ...]
    sections: tuple[Section, ...]


@dataclass(frozen=True, slots=True)
class Written:
    """The files that write_report() wrote."""

    html: Path
    markdown: Path
    points: Path
    missing: dict[str, str] = field(default_factory=dict)
    """The reason for each run that is missing in the report."""


def write_report(
    plans: Sequence[Plan],
    runs: Sequence[Run],
    size_name: str,
    lines: Sequence[Mapping[str, Any]],
    output: Path,
) -> Written:
    """Write report.html, report.md with its pictures, and the medians of our own stores' runs as
    results that `dpukv model --costs` reads, into `output`.
    """
    return write_document(compose(plans, runs, size_name, lines), Points.of(runs, lines), output)


def write_document(document: Document, points: Points, output: Path) -> Written:
    """Write a composed document and its points into `output`."""
    written = Written(
        output / "report.html", output / "report.md", output / POINTS_NAME, points.missing
    )
    _write(written.points, f"{json.dumps(points.benches(), indent=1)}\n")
    _write(written.html, to_html(document))
    for picture in _pictures(document):
        save(picture, output)
    _write(written.markdown, to_markdown(document))
    return written


def compose(
    plans: Sequence[Plan],
    runs: Sequence[Run],
    size_name: str,
    lines: Sequence[Mapping[str, Any]],
) -> Document:
    """Return the report of these plans from the lines of their runs."""
    own = {run.key for run in runs}
    used = [line for line in lines if line["key"] in own]
    sections = [_section(plan, _of_plan(plan, runs), used) for plan in plans]
    points = Points.of(runs, used)
    return Document(
        TITLE,
        tuple(_lead(plans, points, size_name, used)),
        (*sections, _inconsistencies()),
    )


def _lead(
    plans: Sequence[Plan], points: Points, size_name: str, lines: Sequence[Mapping[str, Any]]
) -> Iterable[str]:
    size = load_sizes()[size_name]
    machines = list(dict.fromkeys(_origin(line) for line in lines))
    yield f"Measured on {'; and on '.join(machines or [_machine(machine_facts())])}."
    yield (
        f"Size {size_name}: {' '.join(size.summary.split())}. {size.seconds:g} s a run, "
        f"{size.repeats} repeat{'s' * (size.repeats > 1)}, {size.keys:,} keys of 8 bytes with "
        f"values of 8 bytes; repeats are rounds over all runs in a shuffled order."
    )
    yield READING
    yield (
        f"{points.runs} runs of stores: {points.wrong} wrong values, {points.lost} requests lost; "
        f"in {points.disturbed} of them other programs had more than {OTHERS_MAX:.0%} of "
        f"a core."
    )
    for profile in (row for row in PROFILES.values() if row.is_emulated):
        yield f"{profile.name}: {profile.label()}."
    for name, reason in points.missing.items():
        yield f"Not measured: {name}: {reason}."


def _section(plan: Plan, runs: Sequence[Run], lines: Sequence[Mapping[str, Any]]) -> Section:
    points = Points.of(runs, lines)
    findings = [found for claim in plan.claims if (found := check_claim(claim, points))]
    items = [item for panel in plan.panels for item in draw(plan, panel, points)]
    if findings:
        items.insert(0, _findings_table(findings))
    printed = _printed_table(plan)
    if printed is not None:
        items.append(printed)
    return Section(plan.id, plan.title, tuple(_paragraphs(plan, points, findings)), tuple(items))


def _paragraphs(
    plan: Plan, points: Points, findings: Sequence[Finding]
) -> Iterable[tuple[str, tuple[str, ...]]]:
    yield "Question", (_joined(plan.question),)
    yield "Method", (_joined(plan.method),)
    measured = [found for found in findings if not found.claim.by_construction]
    agreeing = tuple(_sentence(found) for found in measured if found.agrees)
    differing = tuple(_sentence(found) for found in measured if not found.agrees)
    for panel in plan.panels:
        if panel.draw == "clocks":
            clocks = tuple(clock_sentences(points.where(panel.where)))
            if clocks:
                yield "Do the two clocks agree?", clocks
        if panel.draw == "validation":
            well, badly = validation_sentences(points.validation(panel.model))
            agreeing, differing = (*agreeing, *well), (*differing, *badly)
    if agreeing:
        yield "What agrees", agreeing
    if differing:
        yield "What differs, and why", differing
    if not points.points:
        yield "What was found", (NOTHING,)
    elif not findings and plan.claims:
        yield "What was found", ("What the paper prints needs runs that were not measured.",)
    if plan.notes:
        yield "Notes", tuple(_joined(note) for note in plan.notes)
    yield "What this machine cannot show", (_joined(plan.cannot),)


def _findings_table(findings: Sequence[Finding]) -> Table:
    rows = []
    for found in findings:
        unit = " x" if found.is_ratio else ""
        rows.append(
            (
                found.claim.name,
                f"{found.found()}{unit}",
                f"{_joined(found.printed())}{'' if found.claim.says else unit}",
                found.verdict(),
                "; ".join(load.text() for load in found.loads),
                found.where,
            )
        )
    headings = ("what", "here", "paper", "", "by load", "printed in")
    title = "The paper's values beside ours: medians over rounds (least–most of the rounds)"
    return Table(title, headings, tuple(rows), may_fold=False)


def _printed_table(plan: Plan) -> Table | None:
    """Return a table of the paper's values for the figure; None if there are none."""
    rows = tuple(
        (
            *(row.figure_table, row.dpu, row.design, row.workload, row.distribution),
            *(row.metric.replace("_", " "), f"{row.text} {row.unit}", row.note),
        )
        for row in paper_results()
        if any(_is_of(row.figure_table, prefix) for prefix in plan.paper_figures)
    )
    headings = ("where", "DPU", "design", "YCSB", "keys", "what", "value", "note")
    return Table(f"What the paper prints ({len(rows)} values)", headings, rows) if rows else None


def _is_of(figure_table: str, prefix: str) -> bool:
    """Return whether a place is part of a figure; `Fig.11` is not part of `Fig.1`."""
    rest = figure_table.removeprefix(prefix)
    return figure_table.startswith(prefix) and not rest[:1].isdigit()


def _inconsistencies() -> Section:
    return Section(
        "inconsistencies",
        "What the paper's own numbers contradict",
        (("Kept in mind where values are compared", INCONSISTENCIES),),
        (),
    )


# ---- HTML

STYLE = """
:root { color-scheme: light; }
body { font: 16px/1.5 system-ui, sans-serif; color: #1a1a1a; background: #fff;
  max-width: 70rem; margin: 0 auto; padding: 1.5rem; }
h1 { font-size: 1.8rem; margin: 0 0 1rem; }
h2 { font-size: 1.35rem; margin: 3rem 0 .5rem; padding-top: .5rem; border-top: 2px solid #ccc; }
h3 { font-size: 1rem; margin: 1.2rem 0 .2rem; }
p, ul { margin: 0 0 .6rem; max-width: 50rem; }
nav ul { columns: 2; max-width: none; padding-left: 1.2rem; }
img { max-width: 100%; height: auto; display: block; }
figure { margin: 1.2rem 0; }
.table { overflow-x: auto; margin: 1rem 0; }
table { border-collapse: collapse; font-size: .82rem; }
caption { text-align: left; font-weight: 600; padding: .3rem 0; }
th, td { text-align: left; padding: .15rem .7rem .15rem 0; border-bottom: 1px solid #ddd;
  vertical-align: top; }
summary { cursor: pointer; font-weight: 600; font-size: .9rem; margin: .6rem 0; }
"""


def to_html(document: Document) -> str:
    """Return the report as one HTML file that needs no other files and no network."""
    body = [f"<h1>{_escaped(document.title)}</h1>"]
    body += [f"<p>{_escaped(text)}</p>" for text in document.lead]
    links = (
        f'<li><a href="#{section.id}">{_escaped(section.title)}</a></li>'
        for section in document.sections
    )
    body.append(f"<nav><ul>{''.join(links)}</ul></nav>")
    for section in document.sections:
        body += _html_section(section)
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{_escaped(document.title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n"
        + "\n".join(body)
        + "\n</body>\n</html>\n"
    )


def _html_section(section: Section) -> Iterable[str]:
    yield f'<section id="{section.id}">'
    yield f"<h2>{_escaped(section.title)}</h2>"
    for heading, texts in section.paragraphs:
        yield f"<h3>{_escaped(heading)}</h3>"
        if len(texts) == 1:
            yield f"<p>{_escaped(texts[0])}</p>"
        else:
            yield f"<ul>{''.join(f'<li>{_escaped(text)}</li>' for text in texts)}</ul>"
    for item in section.items:
        yield _html_picture(item) if isinstance(item, Picture) else _html_table(item)
    yield "</section>"


def _html_picture(picture: Picture) -> str:
    data = base64.b64encode(picture.png).decode()
    title = html.escape(picture.title)
    return f'<figure><img alt="{title}" src="data:image/png;base64,{data}"></figure>'


def _html_table(table: Table) -> str:
    head = "".join(f"<th>{_escaped(text)}</th>" for text in table.headings)
    rows = "".join(
        f"<tr>{''.join(f'<td>{_escaped(cell)}</td>' for cell in row)}</tr>\n" for row in table.rows
    )
    title = _escaped(table.title)
    caption = "" if table.is_long else f"<caption>{title}</caption>"
    whole = (
        f'<div class="table"><table>{caption}<thead><tr>{head}</tr></thead>\n'
        f"<tbody>\n{rows}</tbody></table></div>"
    )
    return f"<details><summary>{title}</summary>{whole}</details>" if table.is_long else whole


def _escaped(text: str) -> str:
    """Return a text as HTML, with `words` as code as in Markdown."""
    return re.sub(r"`([^`]*)`", r"<code>\1</code>", html.escape(text, quote=False))


# ---- Markdown


def to_markdown(document: Document) -> str:
    """Return the report as Markdown, with the pictures as files beside it."""
    parts = [f"# {document.title}", *document.lead]
    for section in document.sections:
        parts.append(f"## {section.title}")
        for heading, texts in section.paragraphs:
            parts.append(f"### {heading}")
            parts.append(texts[0] if len(texts) == 1 else "\n".join(f"- {t}" for t in texts))
        for item in section.items:
            if isinstance(item, Picture):
                parts.append(f"![{item.title}]({item.name}.png)")
            else:
                parts.append(_markdown_table(item))
    return "\n\n".join(parts) + "\n"


def _markdown_table(table: Table) -> str:
    rows = [table.headings, tuple("---" for _ in table.headings), *table.rows]
    lines = ("| " + " | ".join(_cell(cell) for cell in row) + " |" for row in rows)
    return f"**{table.title}**\n\n" + "\n".join(lines)


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


# ---- Helpers


def _of_plan(plan: Plan, runs: Sequence[Run]) -> list[Run]:
    return [run for run in runs if plan.id in run.plans]


def _pictures(document: Document) -> list[Picture]:
    return [
        item for section in document.sections for item in section.items if isinstance(item, Picture)
    ]


def _origin(line: Mapping[str, Any]) -> str:
    """Return the machine and the version of a run's line."""
    return f"{_machine(line['machine'])}, by dpukv {line.get('version', 'before 0.3.0')}"


def _machine(facts: Mapping[str, Any]) -> str:
    virtual = ", a virtual machine" if facts.get("hypervisor") else ""
    return (
        f"{facts['cores']} cores of {facts['cpu']}, {facts['memory_bytes'] / GIB:.0f} GiB, Linux "
        f"{facts['kernel']}, {facts['architecture']}{virtual}"
    )


def _joined(text: str) -> str:
    """Return a plan's text, which has line breaks, as one line."""
    return " ".join(text.split())


def _sentence(found: Finding) -> str:
    return f"{_joined(found.sentence())}."


def _write(path: Path, text: str) -> None:
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise UsageError(f"{path} cannot be written: {error.strerror}") from error
