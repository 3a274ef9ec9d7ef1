"""report.html: one file that needs nothing else, no network and no server, and is small enough to mail."""

from __future__ import annotations

import json
from collections.abc import Sequence
from html import escape
from importlib.resources import files
from pathlib import Path

from banpick_exp.errors import UserError
from banpick_exp.report.maps import Maps
from banpick_exp.report.page.points import page_data
from banpick_exp.report.page.sections import SECTIONS
from banpick_exp.report.run import Run

LARGEST = 3_000_000  # bytes; beyond, mail servers begin to refuse


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
    nav = "".join(f'<a href="#{section.key}">{escape(section.title)}</a>' for section in SECTIONS)
    sections = "".join(
        f'<section id="{section.key}"><h2>{escape(section.title)}</h2>{section.html(runs, maps)}</section>'
        for section in SECTIONS
    )
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


def _asset(name: str) -> str:
    return (files("banpick_exp.report.page") / "assets" / name).read_text(encoding="utf-8")
