"""What to type after a run: each step with its reason and its command."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass

from banpick_exp.report.rivals import rivals_command
from banpick_exp.report.run import Run, resume_command
from banpick_exp.report.sentences import foremost_row
from banpick_exp.report.text import in_words
from banpick_exp.sweep.overrides import key_of

CUT = "task.max_problems"
REPEATS = 3
MOST_UNFINISHED = 2
"""Of several runs."""


@dataclass(frozen=True, slots=True)
class Step:
    """One thing to type."""

    why: str
    command: str
    """For a shell."""


def what_next(run: Run) -> list[Step]:
    """What is not finished first, then the point that matters, then what to do with the run as it is."""
    folder = shlex.quote(str(run.folder.path))
    return [
        *_unfinished(run, folder),
        *_surer(run),
        *_rivals(run),
        Step("All runs of this sweep side by side", f"python -m banpick_exp report {_siblings(run)}"),
        Step("Figures and tables for a paper", f"python -m banpick_exp report {folder} --paper"),
    ]


def what_next_of_several(runs: Sequence[Run]) -> list[Step]:
    """What to type after runs that stand side by side."""
    folders = shlex.join(str(run.folder.path) for run in runs)
    first = shlex.quote(str(runs[0].folder.path))
    found = [Step("One run alone, with its figure and its best policies", f"python -m banpick_exp report {first}")]
    found += [step for run in runs for step in _unfinished(run, shlex.quote(str(run.folder.path)))][:MOST_UNFINISHED]
    if len({run.manifest.sweep for run in runs}) == 1 and len({(run.models, run.tasks) for run in runs}) == 1:
        found.append(
            Step("Does another search find the first run's front?", f"python -m banpick_exp compare {folders}")
        )
    return [*found, Step("Figures and tables for a paper", f"python -m banpick_exp report {folders} --paper")]


def _unfinished(run: Run, folder: str) -> list[Step]:
    failed = sum(record.status == "failed" for record in (*run.records, *run.dev))
    if failed:
        points = "the failed point" if failed == 1 else f"the {failed} failed points"
        return [Step(f"Try {points} again (it prints how)", f"python -m banpick_exp retry {folder}")]
    if run.left_out:
        return [Step(f"Compute again the {len(run.left_out)} whose records cannot be read", resume_command(run))]
    return []


def _rivals(run: Run) -> list[Step]:
    typed = rivals_command(run)
    return [Step("Measure fixed_k at the budgets that have no rival", typed)] if typed else []


def _surer(run: Run) -> list[Step]:
    """The point of the verdict beside stock: with all problems where some were left out, else repeated."""
    row = foremost_row(run)
    record = None if row is None else next(each for each in run.done if each.fingerprint == row["fingerprint"])
    if record is None or not record.command:
        return []
    words = shlex.split(record.command)
    if (record.task.model_extra or {}).get("max_problems") is not None:
        words = [word for word in words if key_of(word) != CUT]
        return [Step(f"{in_words(record.label)} on all problems", shlex.join([*words, f"{CUT}=null"]))]
    words = [word for word in words if key_of(word) != "repeats"]
    why = f"{in_words(record.label)} {REPEATS} times, as all problems were asked: does it stay?"
    return [Step(why, shlex.join([*words, f"repeats={REPEATS}"]))]


def _siblings(run: Run) -> str:
    """The folder of the sweep with a pattern that the shell opens."""
    return f"{shlex.quote(str(run.folder.path.parent))}/*"
