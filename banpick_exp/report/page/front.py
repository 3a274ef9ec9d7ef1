"""The Pareto front: a pair of panels a domain with its legend, and every point in a table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path

from banpick_exp.records import ON, OVERALL
from banpick_exp.report.figures.styles import Style, family_name, family_styles
from banpick_exp.report.maps import Maps
from banpick_exp.report.page.html_tables import html_table, verdict_cell
from banpick_exp.report.page.panels import Look, budget_figure, domain_panels, shape_id
from banpick_exp.report.page.points import FIELDS, headings, numbers, point_index
from banpick_exp.report.page.published import common, published_table
from banpick_exp.report.page.rest import rest_html
from banpick_exp.report.page.scatter import EMPTY, shape_path
from banpick_exp.report.page.section import Section, run_letter
from banpick_exp.report.published import Published, legend
from banpick_exp.report.run import Run
from banpick_exp.report.terminal import FRONT
from banpick_exp.report.text import STOCK

RUN_COLOURS = 7  # .r0 to .r6 in report.css
READING = (
    '<p class="small">Point at a mark (or step to it with Tab and the arrow keys) for its numbers and the command '
    "that runs it again; a click (or Enter) copies the command. Points stand where they were measured. Ringed: a "
    "gain, it beats fixed_k at equal budget, over all domains and for all points at once. Bars: 95 % "
    "intervals, on the left of the speed-up, on the right of the accuracy. Grey line: the fixed_k ladder.</p>"
)
DOTS = '<p class="small">Small dots: points that are not told one by one; they are in the table on demand below.</p>'
MOST_WARNINGS = 6
"""Of one point under the pointer; the others are counted."""

RING = '<span title="beats fixed_k at equal budget">◉</span> '
"""What stands before the label of a gain."""


def front_html(runs: Sequence[Run], maps: Sequence[Maps]) -> str:
    """Menu, legend, the panels of each domain, and a table a run."""
    published = common(runs)
    measured = [name for run in runs for name in run.frame["policy"].to_list()]
    families = family_styles([*measured, *(each.policy for each in published)])
    look = Look(families=families, colours=_colours(runs, families))
    domains = list(dict.fromkeys(domain for run in runs for domain in run.domains))
    whole = (OVERALL, *domains[1:]) if len(domains) == 2 else (OVERALL,)  # papers report the task as a whole
    panels = "".join(domain_panels(runs, domain, look, published if domain in whole else ()) for domain in domains)
    tables = "".join(_points_table(runs, run) + rest_html(runs, run) + published_table(run) for run in runs)
    reading = READING + (DOTS if any(run.unshown for run in runs) else "")
    return f"{_shapes(families)}{_controls(domains)}{_legend(runs, look, published)}{panels}{reading}{tables}"


def runs_figure(runs: Sequence[Run]) -> str:
    """What several runs measured, in one panel: accuracy against the measured budget, a colour a run."""
    families = family_styles([name for run in runs for name in run.frame["policy"].to_list()])
    look = Look(families=families, colours=_colours(runs, families))
    return f'<div class="answer">{budget_figure(runs, look)}{_legend(runs, look, ())}</div>'


SECTION = Section(key="front", title="Pareto front", html=front_html)


def _shapes(families: Mapping[str, Style]) -> str:
    """What the marks refer to."""
    shapes = "".join(
        f'<path id="{shape_id(name)}" d="{shape_path(marker, size * 1.1)}"/>'
        for name, (_, marker, size) in families.items()
    )
    return (
        f'<svg width="0" height="0" class="defs" aria-hidden="true"><defs>{shapes}'
        '<circle id="ring" r="9.5"/><circle id="dot" r="5.5"/></defs></svg>'
    )


def _controls(domains: Sequence[str]) -> str:
    options = "".join(f'<option value="{escape(domain)}">{escape(domain)}</option>' for domain in domains)
    return (
        '<p class="controls"><label>Domain <select id="domain">'
        f'{options}</select></label> <label><input type="checkbox" id="closer"> closer view: only the accuracy range '
        "of stock and the other policies, the ladder's lower end cut off</label></p>"
    )


def _colours(runs: Sequence[Run], families: Mapping[str, Style]) -> dict[tuple[Path, str], str]:
    if len(runs) > 1:
        return {(run.folder.path, name): f"r{i % RUN_COLOURS}" for i, run in enumerate(runs) for name in families}
    classes = {STOCK: "ink", "fixed_k": "grey"}
    return {
        (runs[0].folder.path, name): classes.get(name.partition(ON)[0], f"c-{colour[1:]}")
        for name, (colour, *_) in families.items()
    }


def _legend(runs: Sequence[Run], look: Look, published: Sequence[Published]) -> str:
    def swatch(shape: str, colour: str, text: str) -> str:
        mark = f'<svg width="18" height="18" viewBox="-9 -9 18 18" aria-hidden="true"><use href="#{shape}" '
        return f'<li>{mark}class="{colour}"/></svg>{escape(text)}</li>'

    several = len(runs) > 1
    items = [
        swatch(shape_id(name), "ink" if several else look.colours[runs[0].folder.path, name], family_name(name))
        for name in look.families
    ]
    if several:
        for run in runs:
            text = f"{run_letter(runs, run)}: {run.name} ({run.models})"
            items.append(swatch("dot", look.colours[run.folder.path, next(iter(look.families))], text))
    ring = (
        '<svg width="22" height="22" viewBox="-11 -11 22 22" aria-hidden="true"><use href="#ring" class="front"/></svg>'
    )
    gains = any(run.ringed for run in runs)
    items.append(f"<li>{ring}{'beats fixed_k at equal budget' if gains else 'no point is ringed: none gains'}</li>")
    if published:
        empty = f'<use href="#dot" class="bar ink" style="{EMPTY}"/>'
        mark = f'<svg width="18" height="18" viewBox="-9 -9 18 18" aria-hidden="true">{empty}</svg>'
        items.append(f"<li>{mark}{escape(legend(published))}</li>")
    return f'<ul class="legend">{"".join(items)}</ul>'


def _points_table(runs: Sequence[Run], run: Run) -> str:
    """The points of a run that are shown, all domains together, best accuracy first, with a button for the command."""
    index, body, warnings = point_index(runs), [], _warnings(run)
    for row in run.shown_rows().sort("accuracy", descending=True).iter_rows(named=True):
        verdict = run.verdict_of.get((row["fingerprint"], OVERALL))
        cells = [escape(text) for text in numbers(row, verdict)]
        cells[FIELDS.index("at equal budget")] = verdict_cell(verdict)
        number = index[run.folder.path, row["fingerprint"]]
        button = f'<button type="button" class="copy" data-copy="{number}">copy</button>'
        ring = RING if row["fingerprint"] in run.ringed else ""
        sign = f" {front}" if (front := FRONT[row["on_front"], row["sure"]]) else ""
        raised = warnings.get(row["fingerprint"], "")
        label = f'{ring}<span data-row="{number}">{escape(row["label"])}</span>{sign}{raised}'
        body.append([label, *cells[:-1], button])
    which = f"{len(body):,} of {len(run.done):,} points" if run.unshown else "Every point"
    caption = f"{which} of {run.name}, all domains (◉ a gain, ● surely on the front, ○ within noise, ⚠ a guard)"
    return html_table(caption, ["policy", *headings([run])[:-1], "run again"], body)


def _warnings(run: Run) -> dict[str, str]:
    """Fingerprint -> a sign with what the guards raised on that point."""
    details: dict[str, list[str]] = {}
    for row in run.raised.iter_rows(named=True):
        details.setdefault(row["fingerprint"], []).append(f"{row['guard']}: {row['detail']}")
    found = {}
    for fingerprint, each in details.items():
        more = f"; and {len(each) - MOST_WARNINGS} more" if len(each) > MOST_WARNINGS else ""
        found[fingerprint] = f' <abbr title="{escape("; ".join(each[:MOST_WARNINGS]) + more)}">⚠</abbr>'
    return found
