"""Cost: what the run was estimated to take, and what it took."""

from __future__ import annotations

from html import escape

from banpick_exp.report.bill import HEAD, bill_caption, bill_rows
from banpick_exp.report.page.html_tables import html_table
from banpick_exp.report.page.section import Section, by_run
from banpick_exp.report.run import Run


def cost_html(run: Run) -> str:
    """One table, or a sentence where the run has no bill: it has not come to an end, or is older than bills."""
    bill = run.folder.bill()
    if bill is None:
        return "<p>No bill: a run writes one at its end.</p>"
    rows = [[escape(cell) for cell in row] for row in bill_rows(bill)]
    note = (
        '<p class="small">Engine time is added up over all engines. A race or a search that stops early, shorter'
        " answers, and calibrations and knobs that were found again cost less than estimated; engines that died cost"
        " more.</p>"
    )
    return html_table(bill_caption(bill), HEAD, rows) + note


SECTION = Section(key="cost", title="Cost", html=by_run(cost_html))
