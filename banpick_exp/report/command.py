"""`python -m banpick_exp report RUN [RUN ...]`: draw what finished runs found."""

from __future__ import annotations

import os
import shlex
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from banpick_exp.errors import UserError
from banpick_exp.options import Options
from banpick_exp.run_paths import REPORT

if TYPE_CHECKING:
    from banpick_exp.report.run import Run
    from banpick_exp.report.tracking.publishing import Publishing

DESCRIPTION = """\
Prints the verdict of a run and writes report.html: the verdict in words, the Pareto front (point at a mark for its
numbers and the command that runs it again), heat maps, domains and sub-tasks against stock, budgets, guards,
provenance. One file, no network needed, under 3 MB: of more than 400 points it tells the front, the references and the
best one by one, lists the others on demand, and leaves all of them in points.parquet. Figures go into each run's folder
as PNG (300 dpi): the one that answers the sweep's question (knobs.png of one or two swept knobs, budget.png of many
rules), pareto.png, and usage.png, influence.png and kept.png where the run has their numbers. Nothing is run again; all
is read from the run folders.

More than 24 runs are a line each: verdict, best policy at equal budget, a link to the run's own report. They are read
from the tables that a run's end or an earlier report wrote, hundreds in seconds; --all draws each of them all the same.
"""
EXAMPLES = """\
examples:
  python -m banpick_exp report outputs/pick_strength/20261122-101500
  python -m banpick_exp report outputs/pick_strength/*             all runs of a sweep side by side
  python -m banpick_exp report RUN_A RUN_B --output compare.html
  python -m banpick_exp report RUN --paper                         PDF, SVG, LaTeX and CSV in RUN/paper/
  python -m banpick_exp report RUN --wandb                         after wandb sync: its report in W&B
  python -m banpick_exp report RUN --policy "pick boost=1 key_experts=4"
"""


def run(arguments: list[str]) -> int:
    """Writes the page and the figures, prints their paths and the verdict of a run alone; returns 0.

    Raises: UserError for a folder that is no finished run, for one typed twice, for a page that cannot be written, and
        for a run that W&B does not have.
    """
    typed = _options().parse_args(arguments)
    publishing = _publishing(typed.runs) if typed.wandb else None
    try:
        runs, files = _report(typed.runs, typed.output, typed.policy, typed.all, paper=typed.paper)
        for path in files:
            print(path, flush=True)
        if publishing is not None:
            print(publishing.publish(runs[0]), flush=True)
    finally:
        if publishing is not None:
            publishing.close()
    from banpick_exp.report.terminal import print_pareto, print_selection, print_verdict

    for each in runs:
        if typed.all:
            print_pareto(each, Console(), everything=True)
            print_selection(each, Console())
        if typed.all or len(runs) == 1:
            print_verdict(each, Console())
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
        "--paper",
        action="store_true",
        help="also write RUN/paper/: the figures 3.3 and 6.75 inches wide with 7 pt type and no title (PDF, SVG, PNG),"
        " and the points with their verdicts as a LaTeX table (booktabs) and as CSV",
    )
    parser.add_argument(
        "--wandb",
        action="store_true",
        help="also make the run's report in W&B: verdict, front, knobs, every point, flips. Needs a key (wandb login),"
        " and the run uploaded by wandb sync",
    )
    parser.add_argument(
        "--policy",
        metavar="LABEL",
        help="the point whose expert usage is drawn beside stock's, by label or fingerprint; default: the best at "
        "equal budget",
    )
    return parser


def _publishing(typed: list[str]) -> Publishing:
    """Asks W&B for the run before anything is drawn."""
    from banpick_exp.report.run import require_folder
    from banpick_exp.report.tracking.publishing import Publishing

    if len(typed) > 1:
        raise UserError(
            f"--wandb makes the report of one run, and {len(typed)} are typed: nothing was made. Type"
            f" python -m banpick_exp report {shlex.quote(typed[0])} --wandb, and so for each of them."
        )
    return Publishing(require_folder(typed[0]), os.environ)


def _report(
    typed: list[str], output: Path | None, policy: str | None, everything: bool, *, paper: bool
) -> tuple[list[Run], list[Path]]:
    # Imported here: --help and a wrong option answer at once.
    from banpick_exp.report.files import draw_figures, maps_or_none, write_tables
    from banpick_exp.report.page.overview import MOST_DRAWN
    from banpick_exp.report.page.page import write_page
    from banpick_exp.report.paper import write_paper
    from banpick_exp.report.run import require_run

    _refuse_repeated(typed)
    if len(typed) > MOST_DRAWN and not everything and not paper and policy is None:
        return [], [_overview(typed, output or Path(REPORT))]
    runs = [require_run(folder) for folder in typed]
    path = output or (runs[0].folder.report if len(runs) == 1 else Path(runs[0].folder.report.name))
    for run in runs:
        _check_figures(run.folder.path)
    _check_page(path)
    maps = [maps_or_none(run, policy) for run in runs]
    try:
        for run in runs:
            write_tables(run)  # for `list` and `bp.runs`, and the page names them for what it does not tell
        figures = [file for run, own in zip(runs, maps, strict=True) for file in draw_figures(run, own)]
        if paper:
            figures += [file for run in runs for file in write_paper(run)]
        return runs, [*figures, write_page(runs, maps, path)]
    except OSError as error:
        raise UserError(
            f"The report cannot be written ({error.strerror or error}): what lies there may be half a file. The points"
            " are whole. Make room or mend the folder, then type the same again."
        ) from None


def _overview(typed: list[str], path: Path) -> Path:
    """The page of many runs, a line each."""
    from banpick_exp.report.page.overview import write_overview
    from banpick_exp.report.run import require_folder

    folders = [require_folder(folder) for folder in typed]
    _check_page(path)
    try:
        return write_overview(folders, path)
    except OSError as error:
        raise UserError(
            f"The report cannot be written ({error.strerror or error}). Make room or type --output FILE with a file of"
            " yours, then type the same again."
        ) from None


def _refuse_repeated(typed: list[str]) -> None:
    """UserError where a run is typed twice: it would stand beside itself as if it were two."""
    seen: dict[Path, str] = {}
    for name in typed:
        folder = Path(name).expanduser().resolve()
        if folder in seen:
            both = name if name == seen[folder] else f"{seen[folder]} and {name}"
            raise UserError(
                f"{both}: the same run twice, so there is nothing to lay side by side. Type it once:"
                f" python -m banpick_exp report {shlex.join(seen.values())}"
            )
        seen[folder] = name


def _check_page(path: Path) -> None:
    """UserError unless a page can be written there; what lies there stays as it is."""
    if path.is_dir():
        raise UserError(
            f"--output {path}: it is a folder, and the page is a file. Type --output {shlex.quote(str(path / REPORT))}"
        )
    if not path.parent.is_dir():
        raise UserError(
            f"--output {path}: there is no folder {path.parent}, so the page cannot be written. Type mkdir -p"
            f" {shlex.quote(str(path.parent))} first."
        )
    try:
        if path.exists():
            path.open("ab").close()
        if path.is_file() or not path.exists():  # a file is replaced as a whole
            tempfile.TemporaryFile(dir=path.resolve().parent).close()
    except OSError as error:
        raise UserError(
            f"--output {path}: it cannot be written ({error.strerror or error}), so nothing was drawn. Type --output"
            " FILE with a file of yours."
        ) from None


def _check_figures(folder: Path) -> None:
    """UserError unless the figures of a run can be written beside its points."""
    try:
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise UserError(
            f"{folder} cannot be written ({error.strerror or error}) and its figures go there, so nothing was drawn."
            f" Report a copy of yours: cp -r {shlex.quote(str(folder))} COPY, then"
            " python -m banpick_exp report COPY"
        ) from None
