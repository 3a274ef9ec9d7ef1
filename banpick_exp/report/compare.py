"""`python -m banpick_exp compare GRID_RUN RUN [RUN...]`: what a search saved, and whether its front is the same.

A point on the front of the first run is covered by another run that holds a point at no larger budget (within
BUDGET_TOLERANCE experts per token) which ties with it or beats it on the same problems, in a paired comparison that
allows for all points of the front at once. Tokens are generated ones: all answers, those of dropped points included,
and both sides of the timed runs; calibration and budget probes are the same for every search and left out.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl
from rich.console import Console
from rich.table import Table

from banpick_exp.analysis.compare import compare_counts
from banpick_exp.analysis.pairing import Answers, Record, answers_of, mean_kept, pair
from banpick_exp.analysis.verdict import BUDGET_TOLERANCE
from banpick_exp.errors import UserError
from banpick_exp.records import OVERALL
from banpick_exp.report.run import Run, require_run
from banpick_exp.report.terminal import WIDE


@dataclass(frozen=True, kw_only=True, slots=True)
class Cover:
    """What another run holds against one point of the front; `by` is None where it has nothing at that budget."""

    point: str
    by: str | None
    comparison: Mapping[str, Any] | None

    @property
    def covered(self) -> bool:
        return self.comparison is not None and self.comparison["verdict"] != "loses"

    def text(self) -> str:
        """`fixed_k k=4: -0.3 [-1.6, +0.9]`: the cover minus the point, in points of accuracy."""
        if self.comparison is None:
            return "nothing at that budget"
        found = self.comparison
        low, high = 100 * found["lo_simultaneous"], 100 * found["hi_simultaneous"]
        same = "itself" if self.by == self.point else self.by
        return f"{same}: {100 * found['difference']:+.1f} [{low:+.1f}, {high:+.1f}]"


@dataclass(frozen=True, kw_only=True, slots=True)
class Spent:
    """Generated tokens of a run."""

    answers: int
    timed: int

    @property
    def total(self) -> int:
        return self.answers + self.timed


def spent(records: Sequence[Record], outcomes: Mapping[str, pl.DataFrame]) -> Spent:
    """Over all points that have a record; a failed one left none of its tokens behind."""
    answers = sum(int(frame["tokens"].sum()) for frame in outcomes.values())
    return Spent(answers=answers, timed=sum(_timed_tokens(record) for record in records))


def _timed_tokens(record: Record) -> int:
    if (
        "timed_tokens" in record["timing"]
        or record["metrics"] is None
        or record["metrics"]["overall"]["speedup"] is None
    ):
        return int(record["timing"].get("timed_tokens", 0))
    task, domains = record["task"], len(record["metrics"]["domains"])  # a record made before tokens were counted
    prompts = max(1, task["throughput_prompts"] // domains) * domains
    return 2 * prompts * int(task["throughput_repeats"]) * int(task["throughput_tokens"] or task["max_tokens"])


def covers(
    front: Sequence[Record], theirs: Mapping[str, Answers], others: Sequence[Record], ours: Mapping[str, Answers]
) -> list[Cover]:
    """For each point of `front` the best of `others` that keeps no more; answers by fingerprint."""
    found = []
    for point in front:
        best: Cover | None = None
        for other in others:
            if mean_kept(other) > mean_kept(point) + BUDGET_TOLERANCE:
                continue
            pairs = pair(ours[other["fingerprint"]], theirs[point["fingerprint"]])
            if not pairs.n:
                continue
            comparison = compare_counts(*pairs.differences("correct"), comparisons=len(front))
            if best is None or best.comparison is None or comparison["difference"] > best.comparison["difference"]:
                best = Cover(point=point["label"], by=other["label"], comparison=comparison)
        found.append(best or Cover(point=point["label"], by=None, comparison=None))
    return found


def front_of(run: Run) -> list[Record]:
    """The done points on the front of accuracy, speed-up and budget, those that keep most first."""
    rows = run.frame.filter((pl.col("domain") == OVERALL) & pl.col("on_front"))
    names = set(rows["fingerprint"])
    return sorted((r for r in run.done if r["fingerprint"] in names), key=lambda record: -mean_kept(record))


def answers(run: Run) -> dict[str, Answers]:
    return {record["fingerprint"]: answers_of(run.outcomes[record["fingerprint"]]) for record in run.done}


def moved(grid: Run, other: Run) -> str:
    """How many answers differ at points that both runs finished: what batching moves. `58 of 43,200 (0.13%)`."""
    differ = total = 0
    theirs = {record["fingerprint"] for record in grid.done}
    for record in (record for record in other.done if record["fingerprint"] in theirs):
        keys = [
            key for key in ("domain", "problem_id", "sample") if key in other.outcomes[record["fingerprint"]].columns
        ]
        ours, whole = (run.outcomes[record["fingerprint"]].select(*keys, "answer") for run in (other, grid))
        both = ours.join(whole, on=keys, suffix="_grid")
        differ, total = differ + int((both["answer"] != both["answer_grid"]).sum()), total + both.height
    return f"{differ:,} of {total:,} ({differ / total:.2%})" if total else "-"


def tables(grid: Run, others: Sequence[Run]) -> tuple[list[list[str]], list[list[str]]]:
    """(the runs side by side, the front point by point), each with its head as the first row."""
    front, theirs = front_of(grid), answers(grid)
    base = spent(grid.records, grid.outcomes).total
    head = ["run", "search", "done", "dropped", "answer tokens", "timed tokens", "of the first", "front covered"]
    head += ["answers that differ at the same point"]
    runs, points = [head], [["front of the first", "kept", "accuracy %", *(_search(other) for other in others)]]
    found = [covers(front, theirs, other.done, answers(other)) for other in others]
    for run, held in zip([grid, *others], [None, *found], strict=True):
        cost = spent(run.records, run.outcomes)
        dropped = sum(record["status"] == "dropped" for record in run.records)
        covered = "is the front" if held is None else f"{sum(cover.covered for cover in held)} of {len(front)}"
        runs.append(
            [run.name, _search(run), str(len(run.done)), str(dropped), f"{cost.answers:,}", f"{cost.timed:,}",
             f"{cost.total / base:.1%}", covered, "-" if run is grid else moved(grid, run)]
        )  # fmt: skip
    for index, record in enumerate(front):
        overall = record["metrics"]["overall"]
        cells = [f"{'' if held[index].covered else 'NOT COVERED: '}{held[index].text()}" for held in found]
        points.append([record["label"], f"{mean_kept(record):.2f}", f"{100 * overall['accuracy']:.1f}", *cells])
    return runs, points


def markdown(rows: Sequence[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join([lines[0], "|" + "---|" * len(rows[0]), *lines[1:]])


def _search(run: Run) -> str:
    return str(run.manifest.get("search", "grid"))


def main(argv: Sequence[str] | None = None) -> int:
    """Prints both tables; `--markdown FILE` keeps them. Returns 0 where every run covers the front, else 1."""
    parser = argparse.ArgumentParser(prog="python -m banpick_exp compare", description=__doc__.split("\n")[0])
    parser.add_argument("grid", help="run folder whose front counts")
    parser.add_argument("runs", nargs="+", help="run folders to hold against it")
    parser.add_argument("--markdown", type=Path, help="also write the tables to this file")
    arguments = parser.parse_args(argv)
    try:
        grid, others = require_run(arguments.grid), [require_run(name) for name in arguments.runs]
    except UserError as error:
        print(f"banpick: {error}", file=sys.stderr)
        return 2
    found = tables(grid, others)
    console = Console()
    if not console.is_terminal:
        console = Console(width=WIDE)
    for rows in found:
        table = Table(*rows[0])
        for row in rows[1:]:
            table.add_row(*row)
        console.print(table)
    if arguments.markdown is not None:
        arguments.markdown.write_text("\n\n".join(map(markdown, found)) + "\n", encoding="utf-8")
    held = [row[found[0][0].index("front covered")] for row in found[0][2:]]
    return 0 if all(text.split(" of ")[0] == text.split(" of ")[1] for text in held) else 1


if __name__ == "__main__":
    sys.exit(main())
