"""Published figures of the same model and task, in a table beside the points measured here."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

import polars as pl

from banpick_exp.report.page.html_tables import html_table
from banpick_exp.report.published import Published, sources
from banpick_exp.report.run import Run
from banpick_exp.report.text import Row, in_words, signed_points, span, speed_text

SAME = 0.25
"""Experts a token: further apart, two budgets are too different for a difference in accuracy to say anything."""
HEAD = ["published", "accuracy %", "experts kept", "speed-up"]
HEAD += ["ours at the nearest budget", "accuracy %", "experts kept", "speed-up", "ours less published, points"]


def common(runs: Sequence[Run]) -> Sequence[Published]:
    """What is published of the model and task of all these runs; nothing where they differ in that."""
    found = {run.published for run in runs}
    return found.pop() if len(found) == 1 else ()


def published_table(run: Run) -> str:
    """Each published figure with the nearest point of the same policy; empty where nothing is published."""
    if not run.published:
        return ""
    rows = [_row(each, _nearest(each, run.done_rows())) for each in run.published]
    how = "; ".join(dict.fromkeys(f"{each.source}: {each.how}" for each in run.published))
    note = (
        f"Hollow marks: {escape('; '.join(sources(run.published)))}. Measured with ({escape(how)}), so a"
        " difference may come from the engine, sampling, the grader or the calibration: look at stock's first."
        " Brackets: 95 % intervals of ours alone. Of several points with the nearest budget the first is shown."
    )
    return html_table(f"Published beside {run.name}", HEAD, rows) + f'<p class="small">{note}</p>'


def _nearest(each: Published, done: pl.DataFrame) -> Row | None:
    """The point of the same policy whose measured budget is nearest; None where there is none to compare with."""
    same = done.filter(pl.col("policy") == each.policy)
    if each.mean_kept is None or not same.height:
        return None
    return same.sort((pl.col("mean_kept") - each.mean_kept).abs(), maintain_order=True).row(0, named=True)


def _row(each: Published, ours: Row | None) -> list[str]:
    kept = "-" if each.mean_kept is None else f"{each.mean_kept:.2f}"
    faster = "-" if each.speedup is None else f"{each.speedup:.2f}"
    theirs = [escape(in_words(each.label)), f"{100 * each.accuracy:.2f}", kept, faster]
    if ours is None:
        return [*theirs, "-", "-", "-", "-", "-"]
    near = each.mean_kept is not None and abs(ours["mean_kept"] - each.mean_kept) <= SAME
    difference = signed_points(ours["accuracy"] - each.accuracy) if near else "budgets differ"
    told = [span(ours, "accuracy", ".1f", 100), span(ours, "mean_kept", ".2f"), speed_text(ours)]
    return [*theirs, escape(in_words(ours["label"])), *told, difference]
