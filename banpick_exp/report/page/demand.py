"""Expert demand on the page: what the command `demand` found of this run, or what to type to have it."""

from __future__ import annotations

import shlex
from html import escape

from banpick_exp.report.demanded import demand_of, sentence, tables
from banpick_exp.report.figures.sheet import BESIDE, PHONE
from banpick_exp.report.page.html_tables import html_table
from banpick_exp.report.page.inlined import inlined
from banpick_exp.report.page.section import Section, by_run
from banpick_exp.report.run import Run

PICTURE = "expert demand"
INTRODUCTION = (
    "<p>Which experts are demanded at once, read from answers of this run put through the engine once more, each"
    " point's own under its own policy; 95 % intervals by leaving out one problem after the other. A decode step reads"
    " each distinct expert once, so their number is its memory traffic; a cache of experts in fast memory lacks what"
    " it misses. Formulas and sources: <code>docs/demand.md</code>.</p>"
)


def demand_html(run: Run) -> str:
    """Sentences, the figure and tables of each group of points."""
    found = demand_of(run.folder)
    if found is None:
        line = f"python -m banpick_exp demand {shlex.quote(str(run.folder.path))}"
        return f'<p class="small">Not measured. To have it here: <code>{escape(line)}</code>, then report again.</p>'
    parts = [INTRODUCTION]
    for group in found.groups:
        parts += ["<ul>", *(f"<li>{escape(sentence(point, group))}</li>" for point in group.points), "</ul>"]
    parts.append(_picture(run))
    for group in found.groups:
        for caption, head, rows in tables(group):
            named = f"{caption}, {group.model.name}" if len(found.groups) > 1 else caption
            parts.append(html_table(named, head, [[escape(cell) for cell in row] for row in rows]))
    parts.append(f'<p class="small">Measured by <code>{escape(found.command)}</code>, {escape(found.made_at)}.</p>')
    return "".join(parts)


SECTION = Section(key="demand", title="Expert demand", html=by_run(demand_html))


def _picture(run: Run) -> str:
    from banpick_exp.report.figures.demand import demand_figure

    if PICTURE not in run.pictures:
        found = demand_of(run.folder)
        drawn = [(sheet.name, demand_figure(found, sheet)) for sheet in (BESIDE, PHONE)] if found else []
        alt = "Distinct experts of a decode step, hit rate and misses of the best cache: the tables have the numbers."
        # Ids of its own, beside those of the first screen; the style sheet shows one by its class.
        both = "".join(
            inlined(figure, f"demand-{name}", alt).replace(f'class="demand-{name}"', f'class="{name}"', 1)
            for name, figure in drawn
            if figure is not None
        )
        run.pictures[PICTURE] = f'<figure class="answer narrow">{both}</figure>' if both else ""
    return run.pictures[PICTURE]
