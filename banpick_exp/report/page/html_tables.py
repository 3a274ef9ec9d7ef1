"""Tables as HTML, and verdicts as their cells."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

from banpick_exp.report.text import MARKS, Row, against, p_text, points, rival


def html_table(caption: str, head: Sequence[str], rows: Iterable[Sequence[str]], *, kind: str = "") -> str:
    """A table with a caption and row headers. Cells are HTML already, `head` and `caption` are text."""
    columns = "".join(f'<th scope="col">{escape(name)}</th>' for name in head)
    body = "".join(
        f'<tr><th scope="row">{first}</th>' + "".join(_cell(cell) for cell in rest) + "</tr>" for first, *rest in rows
    )
    table = f"<table><caption>{escape(caption)}</caption><thead><tr>{columns}</tr></thead><tbody>{body}</tbody></table>"
    return f'<div class="scroll {kind}" tabindex="0" role="group" aria-label="{escape(caption)}">{table}</div>'


def failed_html(line: str) -> str:
    """What stands in the place of a part that could not be made."""
    return f'<p class="failed">{escape(line[:1].upper() + line[1:])}</p>'


def _cell(text: str) -> str:
    for verdict in ("beats", "loses"):
        if text.startswith(MARKS[verdict]):
            return f'<td class="{verdict}">{text}</td>'
    return f"<td>{text}</td>"


def verdict_cell(verdict: Row | None, *, short: bool = False) -> str:
    """`▼ loses to stock -6.3 [-11.3, -1.7]`, a * for a note; `short` leaves words out. None: a reference."""
    if verdict is None:
        return "reference"
    interval = "" if verdict["difference"] is None else points(verdict, simultaneous=True)
    if interval and not short:
        interval += f", {p_text(verdict)}"
    note = f' <abbr title="{escape(verdict["note"])}">*</abbr>' if verdict["note"] else ""
    said = against(verdict)
    if short and verdict["verdict"] != "unmatched":
        said = f"{verdict['verdict']} {rival(verdict).removeprefix('fixed_k ')}"
    return f"{MARKS[verdict['verdict']]} {escape(said)} {interval}".strip() + note
