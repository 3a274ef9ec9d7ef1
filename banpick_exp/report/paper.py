"""What a paper takes from a run: its figures at the width of a column and of a page, and its points as a table.

Under `paper/` of the run's folder: NAME_column (3.3 inches) and NAME_page (6.75) as PDF, SVG and PNG, with 7 pt type at
that size and no title, and points.tex (booktabs) and points.csv.
"""

from __future__ import annotations

import csv
import functools
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from banpick_exp.disk import write_atomically
from banpick_exp.records import OVERALL
from banpick_exp.report.drawn import Draw, answers
from banpick_exp.report.equal_budget import is_near
from banpick_exp.report.failure import or_else
from banpick_exp.report.run import Run
from banpick_exp.report.text import Row, in_words

COLUMNS = (
    "label", "policy", "mean_kept", "accuracy", "accuracy_lo", "accuracy_hi", "reference", "difference",
    "difference_lo", "difference_hi", "p_holm", "verdict", "at_equal_budget", "speedup", "speedup_lo", "speedup_hi",
    "n_problems", "fingerprint",
)  # fmt: skip
"""Of points.csv; accuracies and differences are fractions, intervals of differences hold for all points at once."""
ESCAPED = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}",
}  # fmt: skip
SIGNS = {"beats": r"$\blacktriangle$", "loses": r"$\blacktriangledown$"}
MOST_ON_A_PAGE = 45
"""Rows of a table that does not break."""
HEAD = "Policy & Kept & Accuracy (\\%) & Difference (points) & & Against & Speed-up \\\\"


def write_paper(run: Run) -> list[Path]:
    """Write all of it; returns the paths. What cannot be drawn is named on stderr and costs nothing else.

    Raises: OSError where a file cannot be written.
    """
    run.folder.paper.mkdir(exist_ok=True)
    found = []
    for name, draw in answers(run).items():
        work = functools.partial(_write_figure, run, name, draw)
        found += or_else(f"the figure {name} for papers", run.folder, work, lambda _: [], writes=True)
    rows = table_rows(run)
    for file, text in (("points.tex", latex(rows, run.measure)), ("points.csv", as_csv(rows))):
        write_atomically(run.folder.paper / file, text.encode())
        found.append(run.folder.paper / file)
    return found


def table_rows(run: Run) -> list[dict[str, Any]]:
    """A row a done point with the keys `COLUMNS`, the largest budget first; None where a value was not measured."""
    found = []
    points = run.done_rows().sort("mean_kept", "accuracy", descending=True, maintain_order=True)
    for row in points.iter_rows(named=True):
        verdict: Row = run.verdict_of.get((row["fingerprint"], OVERALL)) or {}
        compared = verdict.get("difference") is not None
        found.append(
            {name: row.get(name) for name in COLUMNS}
            | {
                "label": in_words(row["label"]),
                "reference": in_words(str(verdict["reference_label"])) if compared else None,
                "difference": verdict.get("difference"),
                "difference_lo": verdict.get("lo_simultaneous"),
                "difference_hi": verdict.get("hi_simultaneous"),
                "p_holm": verdict.get("p_holm"),
                "verdict": verdict.get("verdict"),
                "at_equal_budget": is_near(verdict) if compared else None,
            }
        )
    return found


def as_csv(rows: Sequence[Mapping[str, Any]]) -> str:
    """The rows under their names; an empty field where nothing was measured."""
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def latex(rows: Sequence[Mapping[str, Any]], measure: str) -> str:
    """A booktabs table; of many rows one that breaks over pages (longtable)."""
    kind = "tabular" if len(rows) <= MOST_ON_A_PAGE else "longtable"
    head = HEAD.replace("Accuracy", tex(measure[:1].upper() + measure[1:]))
    needed = "booktabs, amssymb" + (", longtable" if kind == "longtable" else "")
    above = ["\\toprule", head, "\\midrule", *(["\\endhead"] if kind == "longtable" else [])]
    return "\n".join([
        f"% \\usepackage{{{needed}}}. In brackets: 95\\,\\% intervals, those of differences for all points at once.",
        "% Up: beats, down: loses to the fixed_k point of the nearest measured budget; * it is over 0.25 experts away.",
        f"\\begin{{{kind}}}{{@{{}}lrrrcll@{{}}}}", *above, *map(_tex_row, rows), "\\bottomrule", f"\\end{{{kind}}}", "",
    ])  # fmt: skip


def tex(text: str) -> str:
    """The text with all that LaTeX would take for a command escaped."""
    return "".join(ESCAPED.get(character, character) for character in text)


def _tex_row(row: Mapping[str, Any]) -> str:
    difference = _interval(row, "difference", "{:+z.1f}", 100)
    sign = "" if row["verdict"] is None else SIGNS.get(row["verdict"], "")
    apart = "" if row["at_equal_budget"] in (None, True) else "*"
    cells = (
        tex(row["label"]), _number(row["mean_kept"], "{:.2f}"), _interval(row, "accuracy", "{:.1f}", 100), difference,
        sign, tex(row["reference"] or "") + apart, _interval(row, "speedup", "{:.2f}"),
    )  # fmt: skip
    return f"{' & '.join(cells)} \\\\"


def _interval(row: Mapping[str, Any], key: str, form: str, scale: float = 1.0) -> str:
    """`61.2 [59.0, 63.3]` in mathematics, so that a minus is one; without the ends where they are none, or equal."""
    value, low, high = row[key], row[f"{key}_lo"], row[f"{key}_hi"]
    if value is None:
        return "--"
    text = _number(value, form, scale)
    return text if low is None or low == high else f"{text} [{_number(low, form, scale)}, {_number(high, form, scale)}]"


def _number(value: float | None, form: str, scale: float = 1.0) -> str:
    return "--" if value is None else f"${form.format(value * scale)}$"


def _write_figure(run: Run, name: str, draw: Draw) -> list[Path]:
    from banpick_exp.report.figures.sheet import FOR_PAPERS, SUFFIXES, save

    found = []
    for sheet in FOR_PAPERS:
        figure = draw(sheet)
        found += [save(figure, run.folder.paper / f"{name}_{sheet.name}{suffix}") for suffix in SUFFIXES]
    return found
