"""report.html: one file that needs nothing else, no network and no server, and is small enough to mail."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from html import escape
from importlib.resources import files
from pathlib import Path

from banpick_exp.errors import UserError
from banpick_exp.report.maps import Maps
from banpick_exp.report.page.breakdown import budget_table, domain_tables, guard_table
from banpick_exp.report.page.equal import equal_budget_sentence, solved, solved_table
from banpick_exp.report.page.front import front_html, page_data, run_letter
from banpick_exp.report.page.heat import heat_html
from banpick_exp.report.page.provenance import provenance_html
from banpick_exp.report.page.repeats import repeats_sentence, repeats_table
from banpick_exp.report.page.tables import overview_table, points_table, side_by_side_table, verdict_table
from banpick_exp.report.run import Run
from banpick_exp.report.text import sentences

LARGEST = 3_000_000  # bytes; beyond, mail servers begin to refuse
SECTIONS = {
    "verdict": "Verdict", "front": "Pareto front", "maps": "Heat maps", "domains": "Domains and sub-tasks",
    "budgets": "Budgets", "guards": "Guards", "provenance": "Provenance",
}  # fmt: skip


def write_page(runs: Sequence[Run], maps: Sequence[Maps], path: Path) -> Path:
    """Write the page of one run, or of several side by side. `maps`: one a run.

    Raises: UserError where it would be larger than LARGEST.
    """
    text = page_html(runs, maps)
    size = len(text.encode())
    if size > LARGEST:
        raise UserError(
            f"The report of {len(runs)} run(s) would be {size / 1e6:.1f} MB, too large to mail (limit"
            f" {LARGEST / 1e6:.0f} MB): it was not written. Type fewer runs in one report."
        )
    path.write_text(text, encoding="utf-8")
    return path


def page_html(runs: Sequence[Run], maps: Sequence[Maps]) -> str:
    """The whole page as text."""
    models = ", ".join(dict.fromkeys(run.models for run in runs))
    title = f"Routing policies on {models}: {runs[0].name if len(runs) == 1 else f'{len(runs)} runs side by side'}"
    map_of = {run.folder: found for run, found in zip(runs, maps, strict=True)}
    body = {
        "verdict": _verdict(runs),
        "front": front_html(runs) + "".join(points_table(runs, run) for run in runs),
        "maps": _each(runs, lambda run: heat_html(run, map_of[run.folder])),
        "domains": _each(runs, lambda run: domain_tables(run) + repeats_table(run)),
        "budgets": "<p>Measured by counters inside the engine, over unpadded tokens and layers, never assumed. "
        "Implied: the range the policy's knobs allow.</p>" + _each(runs, _budgets),
        "guards": _each(runs, guard_table),
        "provenance": _each(runs, provenance_html),
    }
    nav = "".join(f'<a href="#{key}">{name}</a>' for key, name in SECTIONS.items())
    sections = "".join(f'<section id="{k}"><h2>{name}</h2>{body[k]}</section>' for k, name in SECTIONS.items())
    # Inside a script element "<" could end it or begin another; in JSON it may be written as an escape.
    data = json.dumps(page_data(runs), ensure_ascii=False, separators=(",", ":")).replace("<", "\\u003c")
    return (
        '<!DOCTYPE html><html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
        '<meta name="color-scheme" content="light dark">'
        f"<title>{escape(title)}</title><style>{_asset('report.css')}</style></head><body>"
        f'<header><h1>{escape(title)}</h1><nav aria-label="Sections">{nav}</nav></header><main>{sections}</main>'
        '<div id="tip" role="status" aria-live="polite" hidden></div>'
        f'<script type="application/json" id="data">{data}</script><script>{_asset("report.js")}</script>'
        "</body></html>\n"
    )


def _verdict(runs: Sequence[Run]) -> str:
    if len(runs) == 1:
        return _words(runs[0])
    parts = [overview_table(runs), side_by_side_table(runs)]
    parts += [
        f"<h3>{run_letter(runs, run)}: {escape(run.name)} ({escape(run.models)})</h3>{_words(run)}" for run in runs
    ]
    return "".join(parts)


def _budgets(run: Run) -> str:
    return solved_table(run) + budget_table(run)


def _words(run: Run) -> str:
    lines = [*sentences(run), repeats_sentence(run.repeats)]
    lines += [equal_budget_sentence(run.found)] if solved(run.frame) else []
    facts = "".join(f"<li>{escape(line)}</li>" for line in lines if line)
    return f'<p class="headline">{escape(run.headline)}</p><ul class="facts">{facts}</ul>{verdict_table(run)}'


def _each(runs: Sequence[Run], part: Callable[[Run], str]) -> str:
    if len(runs) == 1:
        return part(runs[0])
    blocks = (f'<div class="run"><h3>{run_letter(runs, r)}: {escape(r.name)}</h3>{part(r)}</div>' for r in runs)
    return "".join(blocks)


def _asset(name: str) -> str:
    return (files("banpick_exp.report.page") / "assets" / name).read_text(encoding="utf-8")
