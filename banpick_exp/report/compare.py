"""`python -m banpick_exp compare GRID_RUN RUN [RUN...]`: what a search saved, and whether its front is the same."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from banpick_exp.errors import UserError
from banpick_exp.options import Options
from banpick_exp.records import OVERALL, PointRecord

if TYPE_CHECKING:
    from banpick_exp.analysis.pairing import Answers
    from banpick_exp.report.run import Run
    from banpick_exp.setups import Setup

DESCRIPTION = """\
Holds other searches of a sweep against its full grid: what they cost in generated tokens, and whether they found the
same front. A point on the front of the first run is covered by another run that holds a point at no larger budget
(within 0.25 experts a token) which ties with it or beats it on the same problems, in a paired comparison that allows
for all points of the front at once. Tokens are generated ones: all answers, those of dropped points included, and both
sides of the timed runs; calibration and budget probes are the same for every search and left out.
"""
EXAMPLES = """\
examples:
  python -m banpick_exp compare outputs/iso_budget/GRID outputs/iso_budget/RACE
  python -m banpick_exp compare GRID RACE OPTUNA --markdown searches.md

Exit code: 0 every run covers the front, 1 one does not, 2 the runs or the options cannot be used.
"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Cover:
    """What another run holds against one point of the front; `by` is None where it has nothing at that budget."""

    point: str
    by: str | None
    comparison: Mapping[str, Any] | None
    """As `compare_counts` returns it."""

    @property
    def covered(self) -> bool:
        return self.comparison is not None and self.comparison["verdict"] != "loses"

    def text(self) -> str:
        """`fixed_k k=4: -0.3 [-1.6, +0.9]`: the cover minus the point, in points of accuracy."""
        from banpick_exp.report.text import points

        if self.comparison is None:
            return "nothing at that budget"
        same = "itself" if self.by == self.point else self.by
        return f"{same}: {points(self.comparison, simultaneous=True)}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Spent:
    """Generated tokens of a run, over all points that have a record; a failed one left none of its tokens behind."""

    answers: int
    timed: int

    @property
    def total(self) -> int:
        return self.answers + self.timed


@dataclass(frozen=True, kw_only=True, slots=True)
class Comparison:
    """A grid and other searches of the same space."""

    grid: Run
    others: Sequence[Run]
    front: Sequence[PointRecord]
    """Of the grid."""
    covers: Sequence[Sequence[Cover]]
    """[others][front]."""

    @property
    def all_covered(self) -> bool:
        return all(cover.covered for held in self.covers for cover in held)

    def by_run(self) -> list[list[str]]:
        """The runs side by side, the head first."""
        base = spent(self.grid).total
        head = ["run", "search", "done", "dropped", "answer tokens", "timed tokens", "of the first", "front covered"]
        rows = [[*head, "answers that differ at the same point"]]
        for run, held in zip([self.grid, *self.others], [None, *self.covers], strict=True):
            cost = spent(run)
            covered = 0 if held is None else sum(cover.covered for cover in held)
            rows.append(
                [
                    run.name,
                    run.manifest.search,
                    str(len(run.done)),
                    str(sum(record.status == "dropped" for record in run.records)),
                    f"{cost.answers:,}",
                    f"{cost.timed:,}",
                    f"{cost.total / base:.1%}",
                    "is the front" if held is None else f"{covered} of {len(self.front)}",
                    "-" if held is None else moved(self.grid, run),
                ]
            )
        return rows

    def by_point(self) -> list[list[str]]:
        """The front point by point, the head first."""
        rows = [["front of the first", "kept", "accuracy %", *(run.manifest.search for run in self.others)]]
        for index, record in enumerate(self.front):
            held = [covers[index] for covers in self.covers]
            cells = [f"{'' if cover.covered else 'NOT COVERED: '}{cover.text()}" for cover in held]
            accuracy = f"{100 * record.measured.overall.accuracy:.1f}"
            rows.append([record.label, f"{record.mean_kept:.2f}", accuracy, *cells])
        return rows


def compare_runs(grid: Run, others: Sequence[Run]) -> Comparison:
    """Holds `others` against the front of `grid`. Raises UserError for a run that was asked something else."""
    for other in others:
        _require_alike(grid, other)
    front, theirs = front_of(grid), answers_by_point(grid)
    covers = [covers_of(front, theirs, other.done, answers_by_point(other)) for other in others]
    return Comparison(grid=grid, others=others, front=front, covers=covers)


def _require_alike(grid: Run, other: Run) -> None:
    """UserError unless each set-up of `grid` is one of `other` too: nothing there could cover its points."""
    from banpick_exp.setups import distinct, nearest_differences

    theirs, ours = (distinct(map(_setup, run.done)) for run in (grid, other))
    for setup in theirs:
        if found := nearest_differences(setup, ours):
            first = ", ".join(f"{key}={value}" for key, (_, value) in found.items())
            second = ", ".join(f"{key}={value}" for key, (value, _) in found.items())
            raise UserError(
                f"{grid.folder.path} was asked with {first}, and {other.folder.path} with {second}: whether one covers"
                " the front of the other cannot be said. Compare runs of one command that differ in search= alone."
            )


def _setup(record: PointRecord) -> Setup:
    """What a point was asked with; another vLLM is no other question."""
    from banpick_exp.setups import setup_of_record

    return {key: value for key, value in setup_of_record(record).items() if key != "vLLM"}


def covers_of(
    front: Sequence[PointRecord],
    theirs: Mapping[str, Answers],
    others: Sequence[PointRecord],
    ours: Mapping[str, Answers],
) -> list[Cover]:
    """For each point of `front` the best of `others` of its set-up that keeps no more; answers by fingerprint."""
    from banpick_exp.analysis import EQUAL_BUDGET_TOLERANCE, compare_counts
    from banpick_exp.analysis.pairing import pair
    from banpick_exp.setups import differences

    asked = [(other, _setup(other)) for other in others]
    found = []
    for point in front:
        best = Cover(point=point.label, by=None, comparison=None)
        setup = _setup(point)
        for other, with_what in asked:
            if other.mean_kept > point.mean_kept + EQUAL_BUDGET_TOLERANCE or differences(with_what, setup):
                continue
            pairs = pair(ours[other.fingerprint], theirs[point.fingerprint])
            if pairs.n == 0:
                continue
            comparison = compare_counts(*pairs.differences("correct"), comparisons=len(front))
            if best.comparison is None or comparison["difference"] > best.comparison["difference"]:
                best = Cover(point=point.label, by=other.label, comparison=comparison)
        found.append(best)
    return found


def front_of(run: Run) -> list[PointRecord]:
    """The done points on the front of accuracy, speed-up and budget, those that keep most first."""
    rows = run.frame.filter((run.frame["domain"] == OVERALL) & run.frame["on_front"])
    names = set(rows["fingerprint"])
    return sorted((r for r in run.done if r.fingerprint in names), key=lambda record: -record.mean_kept)


def answers_by_point(run: Run) -> dict[str, Answers]:
    """Fingerprint -> answers of the done points."""
    from banpick_exp.analysis.pairing import answers_of

    return {record.fingerprint: answers_of(run.outcomes[record.fingerprint]) for record in run.done}


def moved(grid: Run, other: Run) -> str:
    """How many answers differ at points that both runs finished: what batching moves. `58 of 43,200 (0.13%)`."""
    differ = total = 0
    theirs = {record.fingerprint for record in grid.done}
    for name in (record.fingerprint for record in other.done if record.fingerprint in theirs):
        keys = [key for key in ("domain", "problem_id", "sample") if key in other.outcomes[name].columns]
        ours, whole = (run.outcomes[name].select(*keys, "answer") for run in (other, grid))
        both = ours.join(whole, on=keys, suffix="_grid")
        differ, total = differ + int((both["answer"] != both["answer_grid"]).sum()), total + both.height
    return f"{differ:,} of {total:,} ({differ / total:.2%})" if total else "-"


def spent(run: Run) -> Spent:
    answers = sum(int(frame["tokens"].sum()) for frame in run.outcomes.values())
    return Spent(answers=answers, timed=sum(map(_timed_tokens, run.records)))


def _timed_tokens(record: PointRecord) -> int:
    if record.timing.timed_tokens is not None:
        return record.timing.timed_tokens
    if record.metrics is None or record.metrics.overall.speedup is None:
        return 0
    task, domains = record.task, len(record.metrics.domains)  # a record made before tokens were counted
    prompts = max(1, task.throughput_prompts // domains) * domains
    return 2 * prompts * task.throughput_repeats * (task.throughput_tokens or task.max_tokens)


def markdown(rows: Sequence[Sequence[str]]) -> str:
    """A table whose first row is its head."""
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join([lines[0], "|" + "---|" * len(rows[0]), *lines[1:]])


def _unwritable(path: Path, reason: str) -> UserError:
    return UserError(
        f"--markdown {path} cannot be written ({reason}): the tables would not be kept. Type the name of a file in a"
        f" folder that is there, e.g. --markdown {path.name or 'searches'}.md"
    )


def help_page() -> str:
    return _options().format_help()


def _options() -> Options:
    parser = Options(prog="python -m banpick_exp compare", description=DESCRIPTION, epilog=EXAMPLES)
    parser.add_argument("grid", metavar="GRID_RUN", help="run folder whose front counts")
    parser.add_argument("runs", nargs="+", metavar="RUN", help="run folders to hold against it")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="also write the tables to this file")
    return parser


def run(arguments: list[str]) -> int:
    """Prints both tables; returns 0 where every run covers the front, else 1. Raises UserError for what is no run."""
    typed = _options().parse_args(arguments)
    if typed.markdown is not None:
        if typed.markdown.is_dir():
            raise _unwritable(typed.markdown, "it is a folder")
        if not typed.markdown.parent.is_dir():
            raise _unwritable(typed.markdown, f"there is no folder {typed.markdown.parent}")
    # Imported here: --help and a mistyped option answer at once.
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from banpick_exp.report.run import require_run
    from banpick_exp.report.spelling import fitting

    found = compare_runs(require_run(typed.grid), [require_run(name) for name in typed.runs])
    tables = [found.by_run(), found.by_point()]
    console = fitting(Console())
    for head, *rows in tables:
        table = Table(*map(escape, head))
        for row in rows:
            table.add_row(*map(escape, row))
        console.print(table)
    if typed.markdown is not None:
        try:
            typed.markdown.write_text("\n\n".join(map(markdown, tables)) + "\n", encoding="utf-8")
        except OSError as error:
            raise _unwritable(typed.markdown, error.strerror or str(error)) from None
    return 0 if found.all_covered else 1
