"""Where the numbers come from: versions, engine and task settings, identities, fingerprints and commands."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from typing import Any

from banpick_exp import __version__
from banpick_exp.report.page.tables import html_table
from banpick_exp.report.run import Run

BLOCKS = ("versions", "model", "engine", "task")


def provenance_html(run: Run) -> str:
    """The run's command, one table of settings (a setting that differs between points says so), one of all points."""
    command = str(run.manifest.get("command", ""))
    parts = [f"<p>Drawn by banpick_exp {escape(__version__)} from <code>{escape(run.name)}</code>.</p>"]
    if command:
        parts.append(f"<p>The whole run again: <code>{escape(command)}</code></p>")
    rows = []
    for block in BLOCKS:
        keys = list(dict.fromkeys(key for record in run.records for key in record[block]))
        for key in keys:
            values = list(dict.fromkeys(_text(record[block].get(key)) for record in run.records))
            rows.append([escape(f"{block}.{key}"), escape("; ".join(values))])
    for key in ("seed", "repeat"):
        values = list(dict.fromkeys(_text(record.get(key)) for record in run.records))
        rows.append([key, escape("; ".join(values))])
    for fingerprint in sorted({str(r["calibration"]) for r in run.records if r["calibration"]}):
        found = run.calibrations.get(fingerprint)
        rows.append(
            ["calibration", escape(f"{fingerprint}, " + (f"score {found[0]}" if found else "not beside this run"))]
        )
    parts.append(html_table(f"Versions and settings of {run.name}", ["setting", "value"], rows, kind="words"))
    points = [
        [escape(record["label"]), f"<code>{escape(record['fingerprint'])}</code>", record["status"],
         escape(record["finished_at"]), f"<code>{escape(record['command'] or '')}</code>"]
        for record in run.records
    ]  # fmt: skip
    head = ["policy", "fingerprint", "status", "finished (UTC)", "command that runs it again"]
    parts.append(html_table(f"Fingerprints and commands of {run.name}", head, points, kind="words"))
    return "".join(parts)


def _text(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key}={_text(each)}" for key, each in value.items())
    if isinstance(value, list):
        return ", ".join(map(_text, value))
    return "-" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
