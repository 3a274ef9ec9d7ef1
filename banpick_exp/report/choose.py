"""`python -m banpick_exp choose`: choose policies on a dev run, report them on a test run, and never mix the two."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from banpick_exp.cli.console import run
from banpick_exp.errors import UserError
from banpick_exp.options import Options

if TYPE_CHECKING:
    from banpick_exp.analysis import Chosen

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


def main(argv: list[str] | None = None) -> int:
    """Runs one command (`argv` without the program's name, default the process's own) and returns its exit code."""
    return run(_run, _options().format_help, argv)


def _options() -> Options:
    parser = Options(prog="python -m banpick_exp choose", description=DESCRIPTION, epilog=EXAMPLES)
    parser.add_argument("dev", metavar="DEV_RUN", help="run folder of a sweep with task.split=dev")
    parser.add_argument("test", metavar="TEST_RUN", nargs="?", help="run folder of the command that this one printed")
    parser.add_argument(
        "--score", choices=("accuracy", "difference"), default="accuracy",
        help="what is highest: accuracy on dev (default), or the paired difference to fixed_k at equal budget",
    )  # fmt: skip
    parser.add_argument(
        "--budget", type=float, action="append", metavar="EXPERTS",
        help="choose one for this measured budget (within 0.25 experts a token); may be repeated",
    )  # fmt: skip
    parser.add_argument("--per-policy", action="store_true", help="choose one of each rule instead of one of all")
    return parser


def _run(arguments: list[str]) -> int:
    typed = _options().parse_args(arguments)
    # Imported here: --help and a mistyped option answer at once.
    from banpick_exp.analysis import choose, report_on_test
    from banpick_exp.report.run import require_run
    from banpick_exp.report.terminal import unwrapped

    dev = require_run(typed.dev)
    chosen = choose(
        dev.records, dev.outcomes, score=typed.score, per_budget=typed.budget, per_policy=typed.per_policy
    )  # fmt: skip
    console = unwrapped(Console())
    console.print(_chosen_table(chosen, typed.score))
    if typed.test is None:
        console.print("\nTo report them on test, beside the fixed_k ladder:\n")
        print(f"  {test_command(chosen)}\n")
        shown = [word for word in arguments if word != typed.dev]
        again = shlex.join(["python", "-m", "banpick_exp", "choose", typed.dev])
        print(f"and then, with the folder it prints:\n\n  {again} TEST_RUN {shlex.join(shown)}".rstrip())
        return 0
    test = require_run(typed.test)
    found = report_on_test(chosen, test.records, test.outcomes)
    console.print(_test_table(found.iter_rows(named=True)))
    for row in found.iter_rows(named=True):
        if row["domain"] == "overall" and row["against"] == "fixed_k":
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
            "any" if point.budget is None else f"{point.budget:g}", escape(point.label), f"{point.mean_kept:.2f}",
            f"{value:.1f} %" if score == "accuracy" else f"{value:+.1f}", _signed(point.dev_difference),
            str(point.candidates),
        )  # fmt: skip
    return table


def _test_table(rows: Any) -> Table:
    table = Table(title="Reported on test (intervals and p right for all chosen points at once)", title_justify="left")
    for name in ("policy", "domain", "against"):
        table.add_column(name)
    for name in ("accuracy %", "difference, points", "p (Holm)", "verdict", "dev promised, points", "kept"):
        table.add_column(name, justify="right")
    for row in rows:
        promised = row["dev_difference"] if (row["domain"], row["against"]) == ("overall", "fixed_k") else None
        if row["verdict"] == "unmatched":
            cells = ["-", "-", "-", row["note"] or "unmatched"]
        else:
            cells = [f"{100 * row['accuracy']:.1f}", _interval(row), f"{row['p_holm']:.2g}", row["verdict"]]
        rival = row["reference_label"] or row["against"]
        first = (row["label"], row["domain"], "stock" if rival == "none" else rival)
        table.add_row(*map(escape, (*first, *cells)), _signed(promised), f"{row['mean_kept']:.2f}")
    return table


def _sentence(row: dict[str, Any]) -> str:
    if row["verdict"] == "unmatched":
        return f"{row['label']}: no verdict on test, {row['note']}."
    promised = "dev had promised " + _signed(row["dev_difference"]) if row["dev_difference"] is not None else "on test"
    note = f" ({row['note']})" if row["note"] else ""
    rival = "stock" if row["reference_label"] == "none" else row["reference_label"]
    return (
        f"{row['label']}: {promised}, test gives {_interval(row)} points against {rival}: it {row['verdict']}{note}. "
        f"It was the best of {row['candidates']} on dev."
    )


def _interval(row: dict[str, Any]) -> str:
    low, high = 100 * row["lo_simultaneous"], 100 * row["hi_simultaneous"]
    return f"{100 * row['difference']:+.1f} [{low:+.1f}, {high:+.1f}]"


def _signed(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:+.1f}"


if __name__ == "__main__":
    sys.exit(main())
