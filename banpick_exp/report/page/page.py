"""report.html: one file that needs nothing else, no network and no server, and is small enough to mail."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from importlib.resources import files
from pathlib import Path
from typing import Any

from banpick_exp.disk import write_atomically
from banpick_exp.report.failure import or_else
from banpick_exp.report.maps import Maps
from banpick_exp.report.page.html_tables import failed_html
from banpick_exp.report.page.points import page_data
from banpick_exp.report.page.rest import rest_data
from banpick_exp.report.page.section import Section
from banpick_exp.report.page.sections import SECTIONS
from banpick_exp.report.run import Run

LARGEST = 3_000_000  # bytes; beyond, mail servers begin to refuse
FEWER = (200, 100, 50, 20)
"""Points that are told one by one where more make the page too large."""
STYLES, SCRIPTS = ("report.css", "flips.css"), ("tables.js", "report.js", "flips.js")
FIRST = "verdict"
"""Key of the section with the first screen."""
LEFT_OUT = (
    '<p class="failed">This section is left out: with it the page would be too large to mail (3 MB). Its numbers are in'
    " the run's folder; a report of fewer runs, or of one, has room for it.</p>"
)


def write_page(runs: Sequence[Run], maps: Sequence[Maps], path: Path) -> Path:
    """Write the page of one run, or of several side by side, whole or not at all. `maps`: one a run."""
    text = page_html(runs, maps).encode()
    # A link keeps its place and what it leads to is replaced; what is no file, /dev/null say, must not be.
    if path.exists() and not path.is_file():
        path.write_bytes(text)
    else:
        write_atomically(path.resolve(), text)
    return path


def page_html(runs: Sequence[Run], maps: Sequence[Maps]) -> str:
    """The whole page as text, of at most LARGEST bytes whatever the runs hold.

    Where it would be larger, fewer points are told one by one, then the largest sections are left out; both are said.
    """
    page = _drawn(runs, maps)
    for most in FEWER:
        if page.size() <= LARGEST:
            break
        if any(run.foremost(most) != run.shown for run in runs):
            page = _drawn([run.showing(most) for run in runs], maps)
    while page.size() > LARGEST and (largest := max(page.bodies, key=page.weight)):
        if page.bodies[largest] == LEFT_OUT:
            break
        page.bodies[largest] = LEFT_OUT
    return page.text()


@dataclass(frozen=True, kw_only=True, slots=True)
class _Page:
    """What a page is put together of."""

    title: str
    bodies: dict[str, str]
    """Key of a section -> its HTML."""
    data: str
    """JSON for the script."""

    def weight(self, key: str) -> tuple[bool, bool, int]:
        """The largest goes first, the verdict last."""
        return self.bodies[key] != LEFT_OUT, key != FIRST, len(self.bodies[key])

    def size(self) -> int:
        """Bytes."""
        return len(self.text().encode())

    def text(self) -> str:
        title, titles = escape(self.title), {section.key: escape(section.title) for section in SECTIONS}
        nav = "".join(f'<a href="#{key}">{name}</a>' for key, name in titles.items())
        sections = "".join(
            f'<section id="{key}"><h2>{name}</h2>{self.bodies[key]}</section>' for key, name in titles.items()
        )
        return (
            '<!DOCTYPE html><html lang="en"><head><meta charset="utf-8">'
            '<meta name="viewport" content="width=device-width"><meta name="color-scheme" content="light dark">'
            f"<title>{title}</title><style>{_assets(STYLES)}</style></head><body>"
            f'<header><h1>{title}</h1><nav aria-label="Sections">{nav}</nav></header><main>{sections}</main>'
            '<div id="tip" role="status" aria-live="polite" hidden></div>'
            f'<script type="application/json" id="data">{self.data}</script><script>{_assets(SCRIPTS)}</script>'
            "</body></html>\n"
        )


def _drawn(runs: Sequence[Run], maps: Sequence[Maps]) -> _Page:
    """Each section for itself: one that fails leaves a line in its place."""
    models = ", ".join(dict.fromkeys(run.models for run in runs))
    folder = runs[0].folder

    def body(section: Section) -> str:
        what = f"the section {section.title!r}"
        return or_else(what, folder, lambda: section.html(runs, maps), failed_html, writes=False)

    def data() -> dict[str, Any]:
        others = {"rest": rest_data(runs)} if any(run.unshown for run in runs) else {}
        return page_data(runs) | others

    found = or_else("what marks tell", folder, data, lambda _: {"fields": [], "points": [], "rest": []}, writes=False)
    return _Page(
        title=f"Routing policies on {models}: {runs[0].name if len(runs) == 1 else f'{len(runs)} runs side by side'}",
        bodies={section.key: body(section) for section in SECTIONS},
        # Inside a script element "<" could end it or begin another; in JSON it may be written as an escape.
        data=json.dumps(found, ensure_ascii=False, separators=(",", ":")).replace("<", "\\u003c"),
    )


def _assets(names: Sequence[str]) -> str:
    folder = files("banpick_exp.report.page") / "assets"
    return "".join((folder / name).read_text(encoding="utf-8") for name in names)
