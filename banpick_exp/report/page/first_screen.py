"""The first screen: the verdict in a sentence, the figure that answers, the best policy per budget, what to type next.

What a reviewer takes away in thirty seconds; all else of the page is evidence for it.
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from banpick_exp.report.best import best_per_budget
from banpick_exp.report.failure import or_else
from banpick_exp.report.one_line import short_rival
from banpick_exp.report.page.front import runs_figure
from banpick_exp.report.page.html_tables import failed_html, html_table
from banpick_exp.report.page.inlined import FIGURE, answer_html
from banpick_exp.report.run import Run
from banpick_exp.report.sentences import alarms, closing
from banpick_exp.report.text import MARKS, Row, in_words, points, speed_text
from banpick_exp.report.what_next import Step, what_next, what_next_of_several

HEAD = ("policy", "keeps", "points to fixed_k", "verdict", "speed")


def first_screen(run: Run) -> str:
    """The sentence with what must be read before it, the figure, and beside it table and commands."""
    figure = or_else(FIGURE, run.folder, lambda: answer_html(run), failed_html, writes=False)
    return (
        f'{sentence_html(run)}<div class="glance">{figure}<div>{best_table(run)}{next_html(what_next(run))}</div></div>'
    )


def first_screen_of_several(runs: Sequence[Run], table: str) -> str:
    """The runs with their verdicts, what they measured in one figure, and what to type next."""
    figure = or_else(FIGURE, runs[0].folder, lambda: runs_figure(runs), failed_html, writes=False)
    return f'{table}<div class="glance">{figure}<div>{next_html(what_next_of_several(runs))}</div></div>'


def sentence_html(run: Run) -> str:
    """As the terminal closes: first what decides whether the verdict means anything."""
    first = "".join(f'<p class="failed"><b>Read this first:</b> {escape(alarm)}</p>' for alarm in alarms(run))
    verdict = escape(closing(run)).replace("/", "/<wbr>")  # names of a dozen rules in a row
    return f'{first}<p class="headline">{verdict}</p>'


def best_table(run: Run) -> str:
    """A row a budget; empty where nothing was compared at equal budget."""
    rows = best_per_budget(run)
    if not rows:
        return ""
    speeds = {row["fingerprint"]: speed_text(row) for row in run.done_rows().iter_rows(named=True)}
    body = [
        [
            escape(in_words(row["label"])),
            f"{row['mean_kept']:.2f}",
            _unbroken(points(row, simultaneous=True)),
            escape(_verdict(row)),
            _unbroken(speeds[row["fingerprint"]]),
        ]
        for row in rows
    ]
    budgets = {row["reference_label"] for row in rows}
    each = "Best policies" if len(rows) > len(budgets) else "Best policy"
    return html_table(f"{each} per budget, all domains", HEAD, body, kind="best")


def next_html(steps: Sequence[Step]) -> str:
    """The commands, each with a button that copies it."""
    lines = "".join(
        f"<li>{escape(step.why)}<span><code>{escape(step.command)}</code>"
        '<button type="button" class="copy" aria-label="copy the command">copy</button></span></li>'
        for step in steps
    )
    return f'<h3 id="next">What to type next</h3><ul class="next">{lines}</ul>'


def _verdict(row: Row) -> str:
    return f"{MARKS[row['verdict']]} {row['verdict']} {short_rival(row)}".strip()


def _unbroken(text: str) -> str:
    """An interval stays in one line, below its number where there is no room beside it."""
    return escape(text).replace(", ", ",\u00a0")
