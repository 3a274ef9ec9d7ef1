"""Which figures answer what a run asked, and what draws each of them on a sheet."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from banpick_exp.report.equal_budget import at_equal_budget
from banpick_exp.report.figures.names import BUDGET, KNOBS, PARETO
from banpick_exp.report.question import Swept, cells, swept
from banpick_exp.report.run import Run
from banpick_exp.report.sentences import problems_a_point
from banpick_exp.report.shown import MOST_DRAWN

if TYPE_CHECKING:
    from banpick_exp.report.figures.sheet import Sheet

Draw = Callable[["Sheet"], Any]
"""A sheet -> the Matplotlib figure. It loads Matplotlib, half a second: nobody waits for it before a run has begun."""


def answers(run: Run) -> dict[str, Draw]:
    """Name -> figure: the one that answers the sweep's question, where anything was compared, then the front."""
    found: dict[str, Draw] = {}
    if (asked := swept(run)) is not None:
        found[KNOBS] = functools.partial(_knobs, run, asked)
    elif at_equal_budget(run.verdicts).height:
        found[BUDGET] = functools.partial(_budgets, run)
    return found | {PARETO: functools.partial(_front, run)}


def asked_in_words(run: Run) -> str:
    """What the first of `answers` shows: its title."""
    if (asked := swept(run)) is not None:
        return _knobs_title(run, asked)
    return _budgets_title(run) if at_equal_budget(run.verdicts).height else _front_title(run)


def _knobs_title(run: Run, asked: Swept) -> str:
    knobs = " and ".join(knob.name for knob in asked.knobs)
    return f"{asked.policy} on {run.models}: {knobs} against fixed_k at equal budget"


def _budgets_title(run: Run) -> str:
    return f"Rules on {run.models} at equal measured budget"


def _front_title(run: Run) -> str:
    return f"Routing policies on {run.models or 'model'}: accuracy, budget and speed"


def _knobs(run: Run, asked: Swept, sheet: Sheet) -> Any:
    words = {"title": _knobs_title(run, asked), "text": _text(run)}
    maps = [cells(run, asked, domain) for domain in run.domains]
    if len(asked.knobs) == 1:
        from banpick_exp.report.figures.knob_curve import draw_curve

        return draw_curve(asked, run.done_rows(), maps, sheet, measure=run.measure, **words)
    from banpick_exp.report.figures.knob_map import draw_map

    return draw_map(asked, maps, sheet, **words)


def _budgets(run: Run, sheet: Sheet) -> Any:
    from banpick_exp.report.figures.forest import draw_budgets

    drawn = run.showing(MOST_DRAWN)
    return draw_budgets(
        drawn.shown_rows(), at_equal_budget(run.verdicts), sheet,
        title=_budgets_title(run),
        text=_text(run, drawn), others=drawn.other_rows(), ringed=run.ringed,
    )  # fmt: skip


def _front(run: Run, sheet: Sheet) -> Any:
    from banpick_exp.report.figures.front import draw_front

    drawn = run.showing(MOST_DRAWN) if run.unshown else run
    return draw_front(
        drawn.shown_rows(), sheet, title=_front_title(run),
        text=_text(run, drawn), others=drawn.other_rows(), published=run.published, ringed=run.ringed,
    )  # fmt: skip


def _text(run: Run, drawn: Run | None = None) -> str:
    mixed = "" if run.mixed_setups is None else " Points of different settings: each has a front of its own."
    others = f" Small dots: {drawn.unshown:,} more." if drawn is not None and drawn.unshown else ""
    return f"{run.headline} {problems_a_point(run)}.{others}{mixed}"
