"""`python -m banpick_exp [KEY=VALUE ...]`: plan what was typed, then run it."""

from __future__ import annotations

from rich.console import Console

from banpick_exp.cluster.plan import RunPlan, plan_run
from banpick_exp.cluster.spent import check_unspent
from banpick_exp.report.spelling import fitting
from banpick_exp.sweep.dry_run import print_plan
from banpick_exp.sweep.help import WELCOME
from banpick_exp.sweep.help import help_page as help_page
from banpick_exp.sweep.price import price_notes
from banpick_exp.tasks.registry import check_grades_here

BAD_INPUT = 2


def run(arguments: list[str]) -> int:
    """Returns 0, 1 when a point failed or is invalid, 2 where nothing was typed."""
    if not arguments:
        print(WELCOME)
        return BAD_INPUT
    plan = plan_run(arguments)
    if plan.sweep.dry_run:
        print_plan(plan.sweep, plan.estimate, fitting(Console()))
        return 0
    return run_planned(plan)


def run_planned(plan: RunPlan) -> int:
    """Runs what was planned, to its report: 0, or 1 when a point failed or is invalid.

    Ctrl-C raises KeyboardInterrupt with what to type to go on.
    """
    check_unspent(plan)
    if plan.cluster.address is None:  # engines will be on this machine; others are asked as theirs start (`actor`)
        for task in dict.fromkeys(point.task for point in plan.sweep.corners):
            check_grades_here(task)
    for note in (*plan.sweep.notes, *price_notes(plan.sweep, plan.estimate)):
        print(f"Note: {note}")
    plan.folder.write_manifest(plan.sweep.manifest())

    from banpick_exp.cluster.run import run_sweep  # only now: it loads Ray, and bad input must end before that

    try:
        return run_sweep(plan)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(
            f"the same command with resume={plan.folder.path.name} goes on from here; finished points are kept"
        ) from None
