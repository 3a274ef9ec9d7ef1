"""`python -m banpick_exp choose`: choose policies on a dev run, report them on a test run, and never mix the two."""

from __future__ import annotations

import math
import shlex
from argparse import ArgumentTypeError
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from banpick_exp.errors import UserError
from banpick_exp.options import Options
from banpick_exp.records import OVERALL
from banpick_exp.report.text import Row, in_words, points, rival, signed_points

if TYPE_CHECKING:
    from banpick_exp.analysis import Chosen
    from banpick_exp.report.run import Run

DESCRIPTION = """\
The best of many settings looks better than it is on the problems that chose it. So a sweep runs on the dev split, this
command chooses from it, and only what was chosen runs on the test split, beside stock and the fixed_k ladder:

  1. python -m banpick_exp +sweep=ban_threshold task.split=dev      every candidate, on dev
  2. python -m banpick_exp choose DEV_RUN                           what dev chooses, and the command for test
  3. (that command)                                                 the chosen points and their rivals, on test
  4. python -m banpick_exp choose DEV_RUN TEST_RUN                  the verdict on test, beside what dev had promised

Type the same options in 2 and 4. A test run that holds any other policy is refused, because there test would choose;
so is a dev run of another split, and a test run on the dev problems.
"""
EXAMPLES = """\
examples:
  python -m banpick_exp choose outputs/ban_threshold/20261122-101500
  python -m banpick_exp choose DEV_RUN --budget 4 --budget 5             the best at each of two budgets
  python -m banpick_exp choose DEV_RUN --per-policy --score difference   of each rule the one furthest above fixed_k
  python -m banpick_exp choose DEV_RUN TEST_RUN --per-policy --score difference

Exit code: 0 done, 2 the runs or the options cannot be used; the message says what to type.
"""
LADDER = ["policy=fixed_k", "policy.k=range(1,K)"]


def help_page() -> str:
    return _options().format_help()


def _options() -> Options:
    parser = Options(prog="python -m banpick_exp choose", description=DESCRIPTION, epilog=EXAMPLES)
    parser.add_argument("dev", metavar="DEV_RUN", help="run folder of a sweep with task.split=dev")
    parser.add_argument("test", metavar="TEST_RUN", nargs="?", help="run folder of the command that this one printed")
    parser.add_argument(
        "--score",
        choices=("accuracy", "difference"),
        default="accuracy",
        help="what is highest: accuracy on dev (default), or the paired difference to fixed_k at equal budget",
    )
    parser.add_argument(
        "--budget",
        type=_experts,
        action="append",
        metavar="EXPERTS",
        help="choose one for this measured budget (within 0.25 experts a token); may be repeated",
    )
    parser.add_argument("--per-policy", action="store_true", help="choose one of each rule instead of one of all")
    return parser


def _experts(typed: str) -> float:
    """A budget that a point can keep, in experts a token; argparse's complaint for any other."""
    try:
        value = float(typed)
    except ValueError:
        value = math.nan
    if not (math.isfinite(value) and value > 0):
        raise ArgumentTypeError(f"{typed!r} is no budget, which is a number of experts a token such as 4 or 4.5")
    return value


def _require_candidates(dev: Run, typed: str) -> None:
    """UserError where stock and fixed_k are all that finished: they are the rivals, and never chosen."""
    from banpick_exp.analysis.pairing import REFERENCE_POLICIES
    from banpick_exp.analysis.selection import DEV
    from banpick_exp.report.run import resume_command

    others = [record for record in dev.records if record.policy_name not in REFERENCE_POLICIES]
    if any(record.status == "done" for record in others):
        return
    if not others:
        raise UserError(
            f"{typed} holds only stock and fixed_k, which are the rivals: there is nothing to choose from. Run the"
            f" policies to choose from on dev, e.g. python -m banpick_exp +sweep=ban_threshold task.split={DEV}"
        )
    reason = next((f" (first reason: {record.reason})" for record in others if record.reason), "")
    raise UserError(
        f"{typed} has {len(others)} policy point(s) and none is done{reason}: there is nothing to choose from. Type"
        f" {resume_command(dev)} to finish it."
    )


def run(arguments: list[str]) -> int:
    """Prints what dev chooses and, without a test run, the command for test, else its verdict; returns 0.

    Raises: UserError for runs that may not be chosen from or reported on.
    """
    typed = _options().parse_args(arguments)
    # Imported here: --help and a mistyped option answer at once.
    from banpick_exp.analysis import choose, report_on_test
    from banpick_exp.report.run import require_run
    from banpick_exp.report.sentences import alarms
    from banpick_exp.report.spelling import fitting

    dev = require_run(typed.dev)
    test = None if typed.test is None else require_run(typed.test)
    _require_candidates(dev, typed.dev)
    chosen = choose(dev.records, dev.outcomes, score=typed.score, per_budget=typed.budget, per_policy=typed.per_policy)
    found = None if test is None else report_on_test(chosen, test.records, test.outcomes)
    console = fitting(Console())
    for alarm in alarms(dev):
        console.print(f"Read this first: {alarm}", markup=False, highlight=False, soft_wrap=True)
    console.print(_chosen_table(chosen, typed.score))
    if found is None:
        console.print("\nTo report them on test, beside the fixed_k ladder:\n")
        print(f"  {test_command(chosen)}\n")
        shown = [word for word in arguments if word != typed.dev]
        again = shlex.join(["python", "-m", "banpick_exp", "choose", typed.dev])
        print(f"and then, with the folder it prints:\n\n  {again} TEST_RUN {shlex.join(shown)}".rstrip())
        return 0
    rows = list(found.iter_rows(named=True))
    console.print(_test_table(rows))
    for row in rows:
        if row["domain"] == OVERALL and row["against"] == "fixed_k":
            console.print(escape(_sentence(row)), highlight=False)
    return 0


def test_command(chosen: Sequence[Chosen]) -> str:
    """What runs the chosen points on test, with stock and the fixed_k ladder; quoted for a shell.

    Raises: UserError for a point without a command, as only runs made by hand have.
    """
    from banpick_exp.sweep.overrides import key_of
    from banpick_exp.sweep.rerun import WHOLE_RUN, as_typed

    whole: list[str] = []
    blocks = []
    for point in chosen:
        words = shlex.split(point.command)[3:]  # python -m banpick_exp
        if not words:
            raise UserError(f"{point.label} has no command in its record, so it cannot be run on test. Run dev again.")
        whole += [word for word in words if key_of(word).split(".")[0] in WHOLE_RUN]
        blocks.append([word for word in words if word not in whole and key_of(word) != "task.split"])
    space = ["task.split=test", f"sweep.blocks={as_typed(blocks)}", f"sweep.reference={as_typed([LADDER])}"]
    return shlex.join(["python", "-m", "banpick_exp", *dict.fromkeys(whole), "sweep.name=chosen", *space])


def _chosen_table(chosen: Sequence[Chosen], score: str) -> Table:
    table = Table(title="Chosen on dev (scores of the best of many: too good, for choosing only)", title_justify="left")
    table.add_column("budget", justify="right")
    table.add_column("policy")
    for name in ("kept on dev", f"{score} on dev", "vs fixed_k on dev, points", "best of"):
        table.add_column(name, justify="right")
    for point in chosen:
        value = 100 * point.dev_score
        table.add_row(
            "any" if point.budget is None else f"{point.budget:g}",
            escape(point.label),
            f"{point.mean_kept:.2f}",
            f"{value:.1f} %" if score == "accuracy" else f"{value:+z.1f}",
            signed_points(point.dev_difference),
            str(point.candidates),
        )
    return table


def _test_table(rows: Iterable[Row]) -> Table:
    table = Table(title="Reported on test (intervals and p right for all chosen points at once)", title_justify="left")
    for name in ("policy", "domain", "against"):
        table.add_column(name)
    for name in ("accuracy %", "difference, points", "p (Holm)", "verdict", "dev promised, points", "kept"):
        table.add_column(name, justify="right")
    for row in rows:
        promised = row["dev_difference"] if (row["domain"], row["against"]) == (OVERALL, "fixed_k") else None
        if row["verdict"] == "unmatched":
            cells = ["-", "-", "-", row["note"] or "unmatched"]
        else:
            interval = points(row, simultaneous=True)
            cells = [f"{100 * row['accuracy']:.1f}", interval, f"{row['p_holm']:.2g}", row["verdict"]]
        first = (row["label"], row["domain"], in_words(row["reference_label"] or row["against"]))
        table.add_row(*map(escape, (*first, *cells)), signed_points(promised), f"{row['mean_kept']:.2f}")
    return table


def _sentence(row: Row) -> str:
    if row["verdict"] == "unmatched":
        return f"{row['label']}: no verdict on test, {row['note']}."
    dev = row["dev_difference"]
    promised = "on test" if dev is None else "dev had promised " + signed_points(dev)
    note = f" ({row['note']})" if row["note"] else ""
    return (
        f"{row['label']}: {promised}, test gives {points(row, simultaneous=True)} points against {rival(row)}: "
        f"it {row['verdict']}{note}. It was the best of {row['candidates']} on dev."
    )
