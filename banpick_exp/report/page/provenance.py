"""Where the numbers come from: versions, engine and task settings, identities, fingerprints and commands."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

from banpick_exp.records import PointRecord
from banpick_exp.report.page.html_tables import html_table
from banpick_exp.report.page.rest import IN_TABLE, not_here
from banpick_exp.report.page.section import Section, by_run
from banpick_exp.report.run import Run
from banpick_exp.versions import VERSION

MOST_VALUES = 12
"""Of one setting that are spelt out."""


def provenance_html(run: Run) -> str:
    """The run's command, one table of settings (a setting that differs between points says so), one of all points."""
    parts = [f"<p>Drawn by banpick_exp {escape(VERSION)} from <code>{escape(run.name)}</code>.</p>"]
    if command := run.manifest.command:
        parts.append(f"<p>The whole run again: <code>{escape(command)}</code></p>")
    caption = f"Versions and settings of {run.name}"
    parts.append(html_table(caption, ["setting", "value"], _settings(run), kind="words"))
    told = _told(run)
    points = [
        [
            escape(record.label),
            f"<code>{escape(record.fingerprint)}</code>",
            record.status,
            escape(record.finished_at),
            f"<code>{escape(record.command or '')}</code>",
        ]
        for record in told
    ]
    head = ["policy", "fingerprint", "status", "finished (UTC)", "command that runs it again"]
    parts.append(html_table(f"Fingerprints and commands of {run.name}", head, points, kind="words"))
    parts.append(not_here(len(run.records) - len(told), IN_TABLE))
    return "".join(parts)


SECTION = Section(key="provenance", title="Provenance", html=by_run(provenance_html))


def _told(run: Run) -> Sequence[PointRecord]:
    """All points, or those that the page shows."""
    if len(run.records) <= run.most_shown:
        return run.records
    return [record for record in run.records if record.fingerprint in run.shown]


def _settings(run: Run) -> list[list[str]]:
    """A row a setting, with every value that it has in the run."""
    settings = [record.settings() for record in run.records]
    rows = []
    for part in settings[0]:
        keys = dict.fromkeys(key for one in settings for key in one[part])
        rows += [[escape(f"{part}.{key}"), _values(one[part].get(key) for one in settings)] for key in keys]
    rows.append(["seed", _values(record.seed for record in run.records)])
    rows.append(["repeat", _values(record.repeat for record in run.records)])
    for fingerprint in sorted({record.calibration for record in run.records if record.calibration}):
        scores = sorted({record.score for record in run.records if record.calibration == fingerprint and record.score})
        known = (
            f"scores {', '.join(scores) or 'none'}"
            if fingerprint in run.calibrations
            else "neither in this run nor beside it"
        )
        rows.append(["calibration", escape(f"{fingerprint}, {known}")])
    return rows


def _values(values: Iterable[Any]) -> str:
    found = list(dict.fromkeys(map(_text, values)))
    more = f"; and {len(found) - MOST_VALUES:,} more" if len(found) > MOST_VALUES else ""
    return escape("; ".join(found[:MOST_VALUES]) + more)


def _text(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key}={_text(each)}" for key, each in value.items())
    if isinstance(value, list):
        return ", ".join(map(_text, value))
    return "-" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
