"""`python -m banpick_exp report RUN [RUN ...]`: draw what finished runs found."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from banpick_exp.errors import UserError
from banpick_exp.options import Options

if TYPE_CHECKING:
    from banpick_exp.report.run import Run

DESCRIPTION = """\
Writes report.html: the verdict in words, the Pareto front (point at a mark for its numbers and the command that runs it
again), heat maps, domains and sub-tasks against stock, budgets, guards, provenance. One file, no network needed, under
3 MB. The same figures go into each run's folder as PNG for papers (300 dpi): pareto.png, and usage.png, influence.png
and kept.png where the run has their numbers. Nothing is run again; all is read from the run folders.
"""
EXAMPLES = """\
examples:
  python -m banpick_exp report outputs/pick_strength/20261122-101500
  python -m banpick_exp report outputs/pick_strength/*             all runs of a sweep side by side
  python -m banpick_exp report RUN_A RUN_B --output compare.html
  python -m banpick_exp report RUN --policy "pick boost=1 key_experts=4"
"""


def run(arguments: list[str]) -> int:
    """Writes the page and the figures and prints their paths; returns 0.

    Raises: UserError for a folder that is no finished run, and for a page that cannot be written.
    """
    typed = _options().parse_args(arguments)
    runs, files = _report(typed.runs, typed.output, typed.policy)
    if typed.all:
        from banpick_exp.report.terminal import print_pareto

        for each in runs:
            print_pareto(each, Console(), everything=True)
    for path in files:
        print(path)
    return 0


def help_page() -> str:
    return _options().format_help()


def _options() -> Options:
    parser = Options(prog="python -m banpick_exp report", description=DESCRIPTION, epilog=EXAMPLES)
    parser.add_argument("runs", nargs="+", metavar="RUN", help="run folder, as a sweep printed it (holds points/)")
    parser.add_argument(
        "--output",
        type=Path,
        metavar="FILE",
        help="where the page goes; default: report.html in the run's folder, of several runs in the current one",
    )
    parser.add_argument(
        "--all", action="store_true", help="also print the table and every finding of the guards, what may be noise too"
    )
    parser.add_argument(
        "--policy",
        metavar="LABEL",
        help="the point whose expert usage is drawn beside stock's, by label or fingerprint; default: the best at "
        "equal budget",
    )
    return parser


def _report(typed: list[str], output: Path | None, policy: str | None) -> tuple[list[Run], list[Path]]:
    # Imported here: --help and a wrong option answer at once.
    from banpick_exp.report.files import draw_figures
    from banpick_exp.report.maps import maps_of
    from banpick_exp.report.page.page import write_page
    from banpick_exp.report.run import require_run

    runs = [require_run(folder) for folder in dict.fromkeys(typed)]
    path = output or (runs[0].folder.report if len(runs) == 1 else Path(runs[0].folder.report.name))
    if not path.parent.is_dir():
        raise UserError(
            f"--output {path}: there is no folder {path.parent}, so the page cannot be written. Make it first."
        )
    maps = [maps_of(run, policy) for run in runs]
    figures = [file for run, own in zip(runs, maps, strict=True) for file in draw_figures(run, own)]
    return runs, [*figures, write_page(runs, maps, path)]
