"""Trials of one set-up answered in one batch where that pays, so that each finds its answers when it is measured.

`engine.policies_per_batch=auto` chooses by what this engine was measured to do: of the first such trials one is asked
alone and the others together, and whichever took less time a policy is how trials with as many requests are asked from
then on. A number in its place asks that many together, whatever it takes.

What is never asked in company: stock, whose answers all others are paired with, and a repeat, whose other batches are
its purpose (`sweep.search.company`); problems of choices, which are read, not written; and a trial of which something
says that a problem of it breaks engines (`asking`), so that a death is never blamed on a neighbour.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

from banpick_exp.config import fingerprint
from banpick_exp.evaluation.answer import Answered, DomainPolicy, Problems
from banpick_exp.evaluation.asking import TooManyFailed
from banpick_exp.evaluation.budget.solve import kept_policies, solve_together
from banpick_exp.evaluation.session import Session
from banpick_exp.evaluation.together import Pace, answer_together
from banpick_exp.evaluation.trial import Trial

Policies = dict[str, DomainPolicy]


@dataclass(frozen=True, slots=True)
class Choice:
    """What came of asking trials at once."""

    pays: bool | None = None
    """Whether it is faster here; None where nobody knows."""
    said: str = ""
    """In words, where it was found out now."""


def answer_at_once(
    session: Session, trials: Sequence[Trial], call: str, problems: Problems, part: Problems | None = None
) -> Choice:
    """Ask `problems` of all these trials, as many policies at a time as the engine holds, where that pays.

    `call`: as in `Session.asking`; `part`: of the problems, the only ones that are asked now.
    The answers are in `session.given`; a trial that is not there is to be asked alone.
    """
    if len(trials) < 2:
        return Choice()
    engine, setting = session.engine, trials[0].engine.policies_per_batch
    rows = engine.rows if setting == "auto" else min(engine.rows, setting)
    if rows < 2 or any(problem.choices for items in problems.values() for problem in items):
        return Choice()
    asked = problems if part is None else part
    pace = session.paces.setdefault(_like(trials[0], asked), Pace())
    if setting == "auto" and pace.pays is False:
        return Choice(pays=False)
    fit = _solved(session, [each for each in trials if _is_undisturbed(session, each, call, problems)], problems)
    if setting == "auto" and pace.pays is None:
        return _found_out(session, fit, call, asked, rows, pace)
    _ask(session, fit, asked, rows)
    return Choice(pace.pays)


def _solved(session: Session, trials: Sequence[Trial], problems: Problems) -> list[tuple[Trial, Policies]]:
    """The trials with their policies; one whose budget cannot be reached is left out."""
    policies = {trial.fingerprint: session.policies(trial) for trial in trials}
    open_ones = [(trial, policies[trial.fingerprint]) for trial in trials if trial.budget is not None]
    folder = session.folder.solved
    if open_ones:
        session.solved |= solve_together(session.engine, open_ones, problems, folder, session.probed)
    found = []
    for trial in trials:
        own = policies[trial.fingerprint]
        known = own if trial.budget is None else kept_policies(trial, own, folder)
        if known is not None:
            found.append((trial, known))
    return found


def _found_out(
    session: Session,
    fit: Sequence[tuple[Trial, Policies]],
    call: str,
    problems: Problems,
    rows: int,
    pace: Pace,
) -> Choice:
    """Ask the first alone and the others together, and remember which was faster."""
    if len(fit) < 3:  # of two there is one to ask alone, and none to ask it with
        return Choice()
    (first, policies), *others = fit
    begin = time.perf_counter()
    answered = session.asking(first, call).answer(policies, problems)
    pace.alone = time.perf_counter() - begin
    session.given[first.fingerprint] = Answered(
        policies=policies, runs=answered.runs, swap_seconds=answered.swap_seconds, block_seconds=pace.alone
    )
    begin = time.perf_counter()
    _ask(session, others, problems, rows)
    pace.together = (time.perf_counter() - begin) / len(others)
    many, count = min(rows, len(others)), sum(map(len, problems.values()))
    what = f"{count} problem(s) take a policy {pace.alone:.2f} s alone and {pace.together:.2f} s in a batch of {many}"
    how = "policies share batches" if pace.pays else "each policy has the engine to itself"
    return Choice(pace.pays, f"{what}: {how} from here on (engine.policies_per_batch=auto)")


def _ask(session: Session, fit: Sequence[tuple[Trial, Policies]], problems: Problems, rows: int) -> None:
    """As many at a time as there are rows; what each took is its share of the tokens that were routed."""
    for start in range(0, len(fit), rows):
        part = fit[start : start + rows]
        if len(part) < 2:
            return
        task, seed = part[0][0].task, part[0][0].seed
        begin = time.perf_counter()
        runs_P, swap = answer_together(session.engine, [policies for _, policies in part], task, problems, seed=seed)
        seconds = time.perf_counter() - begin
        tokens_P = [sum(sum(run.counters.tokens) for run in runs.values()) for runs in runs_P]
        for (trial, policies), runs, tokens in zip(part, runs_P, tokens_P, strict=True):
            session.given[trial.fingerprint] = Answered(
                policies=policies,
                runs=runs,
                swap_seconds=swap,
                block_seconds=seconds * tokens / max(1, sum(tokens_P)),
            )


def _is_undisturbed(session: Session, trial: Trial, call: str, problems: Problems) -> bool:
    try:
        return session.asking(trial, call).undisturbed(problems)
    except TooManyFailed:
        return False  # asked alone it fails by itself


def _like(trial: Trial, problems: Problems) -> str:
    """Equal for trials that take as long, but for their policies: the task, and how many problems of each domain."""
    counts = {domain: len(items) for domain, items in problems.items()}
    return fingerprint([trial.data_identity, trial.task.model_dump(mode="json"), trial.seed, counts])
