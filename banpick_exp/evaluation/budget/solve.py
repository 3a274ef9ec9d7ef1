"""A trial at a wanted budget on the loaded engine: probe a sample for the knob, run everything, confirm, correct once.

A solved knob is kept beside the calibrations, so that no run solves it again; what is read back is confirmed all the
same, because only the budget measured on all problems counts.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from pydantic import BaseModel, ConfigDict, FiniteFloat, ValidationError

from banpick_exp.config import fingerprint
from banpick_exp.disk import write_atomically
from banpick_exp.engine.engine import Engine
from banpick_exp.evaluation.answer import Answered, DomainPolicy, DomainRun, Problems, ask_once
from banpick_exp.evaluation.budget.root_search import TOLERANCE, Solved, UnreachableBudget, driven, search
from banpick_exp.evaluation.together import count_together
from banpick_exp.evaluation.trial import Trial
from banpick_exp.policy import Rule
from banpick_exp.policy.budget import BUDGET, SAMPLE_PROBLEMS, knob_of, known_budgets, policy_of, with_knob
from banpick_exp.records import BudgetAccount
from banpick_exp.tasks.problem import Problem

SAMPLE_TOLERANCE = 0.025
"""Experts per token; less than TOLERANCE, because the sample is not all problems."""

Policies = Mapping[str, DomainPolicy]
Runs = dict[str, DomainRun]
Probed = dict[str, dict[float, float]]
"""Per rule and task, mean_kept by knob value; of one engine."""
Pieces = Callable[[Sequence[Problem]], Iterator[Sequence[Problem]]]
"""The problems of a domain, piece by piece."""
Answer = Callable[[Policies], Answered]
"""Answers all problems under these policies."""


class Knob(BaseModel):
    """A solved knob as it is kept: `sampled` is the budget measured on the sample at `value`."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)
    fingerprint: str
    knob: str
    target: FiniteFloat
    value: FiniteFloat
    sampled: FiniteFloat
    probes: list[tuple[FiniteFloat, FiniteFloat]]
    sample_problems: int
    gap: str | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class AtBudget:
    """The answers of all problems at the solved knob."""

    answered: Answered
    solve_seconds: float
    """All but the run that counts."""
    account: BudgetAccount
    reason: str | None
    """Why the budget was not met, None where it was."""


def answer_at_budget(
    engine: Engine,
    trial: Trial,
    policies: Policies,
    problems: Problems,
    folder: Path,
    answer: Answer,
    probed: Probed | None = None,
    pieces: Pieces | None = None,
    *,
    solved_now: bool = False,
) -> AtBudget:
    """Solve the trial's open knob and answer all problems under it.

    `folder`: where solved knobs are kept; `probed`: what this engine probed so far, added to; `pieces`: in which a
    sample is asked, and what of it (`asking`), the whole of it by default; `solved_now`: whether the knob that is
    kept was solved for this very call, together with others (`solve_together`).
    Raises UnreachableBudget, with the reachable range, where no value of the knob leads to the target.
    """
    assert trial.budget is not None
    begin = time.perf_counter()
    path = folder / f"{trial.knob_fingerprint}.json"
    solver = _solver(engine, trial, policies, problems, probed, pieces)
    kept = _read(path, trial)
    knob = kept or solver.solve(trial.budget)
    running = time.perf_counter()
    answered = answer(with_value(policies, trial.rule, knob.value))
    reason = None
    corrected = abs(mean_kept(answered.runs) - trial.budget) > TOLERANCE
    if corrected:
        # What the sample did not show, all problems did: aim as far to the other side.
        try:
            knob = solver.solve(trial.budget - (mean_kept(answered.runs) - knob.sampled), knob)
        except UnreachableBudget as error:
            reason = str(error)
        else:
            running = time.perf_counter()
            answered = answer(with_value(policies, trial.rule, knob.value))
    measured = mean_kept(answered.runs)
    if abs(measured - trial.budget) > TOLERANCE:
        reason = reason or knob.gap or "corrected once, by what all problems showed and the sample did not"
        reason = f"budget={trial.budget:g} is not met: {measured:.3f} measured on all problems ({reason})"
    else:
        _write(path, knob)
    account = BudgetAccount(
        **knob.model_dump(exclude={"fingerprint", "gap", "sampled"}),
        measured=measured,
        cached=kept is not None and not solved_now and not corrected,
        corrected=corrected,
    )
    return AtBudget(answered=answered, solve_seconds=running - begin, account=account, reason=reason)


def solved_policies(
    engine: Engine,
    trial: Trial,
    policies: Policies,
    problems: Problems,
    folder: Path,
    probed: Probed | None = None,
    pieces: Pieces | None = None,
) -> dict[str, DomainPolicy]:
    """The trial's policies at the knob that a sample asks for, kept for `answer_at_budget` to confirm on all problems.

    For a trial that is answered in blocks. Raises UnreachableBudget.
    """
    assert trial.budget is not None
    path = folder / f"{trial.knob_fingerprint}.json"
    knob = _read(path, trial)
    if knob is None:
        knob = _solver(engine, trial, policies, problems, probed, pieces).solve(trial.budget)
        _write(path, knob)
    return with_value(policies, trial.rule, knob.value)


def kept_policies(trial: Trial, policies: Policies, folder: Path) -> dict[str, DomainPolicy] | None:
    """The same where the knob was solved before; None where it was not."""
    knob = _read(folder / f"{trial.knob_fingerprint}.json", trial)
    return None if knob is None else with_value(policies, trial.rule, knob.value)


def solve_together(
    engine: Engine, trials: Sequence[tuple[Trial, Policies]], problems: Problems, folder: Path, probed: Probed
) -> dict[str, float]:
    """Solve the open knobs of trials that ask the same problems, none of them one of choices, their probes in one batch
    as far as the engine has rows; what was solved before stays. A budget that is out of reach is left out.

    Returns the seconds that each took now, by its fingerprint: equal shares.
    """
    begin = time.perf_counter()
    solvers: dict[str, _Solver] = {}
    searches: dict[str, Generator[float, float, Knob]] = {}
    for trial, policies in trials:
        if _read(folder / f"{trial.knob_fingerprint}.json", trial) is None:
            assert trial.budget is not None
            solvers[trial.fingerprint] = solver = _solver(engine, trial, policies, problems, probed, None)
            searches[trial.fingerprint] = solver.search(trial.budget)
    answers: dict[str, float | None] = dict.fromkeys(searches)
    solved: list[str] = []
    while searches:
        wanted: dict[str, float] = {}
        for name, answer in answers.items():
            try:
                wanted[name] = next(searches[name]) if answer is None else searches[name].send(answer)
            except StopIteration as over:
                _write(folder / f"{solvers[name].trial.knob_fingerprint}.json", over.value)
                solved.append(name)
            except UnreachableBudget:
                pass
        searches = {name: searches[name] for name in wanted}
        _measure_together(engine, [(solvers[name], value) for name, value in wanted.items()], problems)
        answers = {name: solvers[name].probed[value] for name, value in wanted.items()}
    seconds = (time.perf_counter() - begin) / max(1, len(solved))
    return dict.fromkeys(solved, seconds)


def _measure_together(engine: Engine, wanted: Sequence[tuple[_Solver, float]], problems: Problems) -> None:
    """Add the budgets of these knob values to what their solvers have probed."""
    # Trials of one rule share what is probed, and may want the same value.
    new = list({(id(s.probed), value): (s, value) for s, value in wanted if value not in s.probed}.values())
    for start in range(0, len(new), engine.rows):
        part = new[start : start + engine.rows]
        kept_P, tokens_P = [0.0] * len(part), [0.0] * len(part)
        policies_P = [with_value(solver.policies, solver.trial.rule, value) for solver, value in part]
        for domain, items in part[0][0].sample.items():
            task, weight = part[0][0].trial.task, len(problems[domain]) / len(items)
            domain_P = [policies[domain] for policies in policies_P]
            for row, counted in enumerate(count_together(engine, domain_P, task, items, salt="probe")):
                kept_P[row] += weight * sum(counted.kept)
                tokens_P[row] += weight * sum(counted.tokens)
        for (solver, value), kept, tokens in zip(part, kept_P, tokens_P, strict=True):
            solver.probed[value] = kept / tokens


def mean_kept(runs: Runs) -> float:
    """Over the tokens and layers of all domains."""
    counters = [run.counters for run in runs.values()]
    return sum(sum(c.kept) for c in counters) / max(sum(sum(c.tokens) for c in counters), 1)


def with_value(policies: Policies, rule: Rule, value: float) -> dict[str, DomainPolicy]:
    solved = with_knob(rule, value)
    return {domain: replace(policy, rule=solved) for domain, policy in policies.items()}


@dataclass(frozen=True, slots=True)
class _Solver:
    engine: Engine
    trial: Trial
    policies: Policies
    problems: Problems
    sample: dict[str, list[Problem]]
    probed: dict[float, float]
    """Probes of the same rule on the same sample, by knob value: the same question has the same answer."""
    pieces: Pieces

    def solve(self, target: float, before: Knob | None = None) -> Knob:
        """`before`: what was found for another target; its probes are known."""
        return driven(self.search(target, before), self.measure)

    def search(self, target: float, before: Knob | None = None) -> Generator[float, float, Knob]:
        """The same, for who measures (`root_search.search`)."""
        trial = self.trial
        assert trial.budget is not None and trial.knob_fingerprint is not None
        shape = trial.checkpoint.shape
        knob = knob_of(trial.rule).within(shape)
        earlier = before.probes if before else []
        known = known_budgets(trial.rule, shape) | dict(earlier)
        solved: Solved = yield from search(knob, target, SAMPLE_TOLERANCE, known)
        return Knob(
            fingerprint=trial.knob_fingerprint,
            knob=knob.name,
            target=trial.budget,
            value=solved.value,
            sampled=solved.measured,
            probes=[*earlier, *solved.probes],
            gap=solved.gap,
            sample_problems=sum(map(len, self.sample.values())),
        )

    def measure(self, value: float) -> float:
        """mean_kept on the sample, each domain weighing as it does among all problems."""
        if value in self.probed:
            return self.probed[value]
        task = self.trial.task
        kept = tokens = 0.0
        for domain, policy in with_value(self.policies, self.trial.rule, value).items():
            items = self.sample[domain]
            policy.activate(self.engine)
            self.engine.counters(reset=True)
            # A salt of its own: a prompt found in the prefix cache would not be routed, and not be counted.
            salt = f"probe{self.trial.fingerprint}"
            for piece in self.pieces(items):
                ask_once(self.engine, piece, task, salt=salt)
            counted, weight = self.engine.counters(reset=True), len(self.problems[domain]) / len(items)
            kept += weight * sum(counted.kept)
            tokens += weight * sum(counted.tokens)
        self.probed[value] = kept / tokens
        return self.probed[value]


def _solver(
    engine: Engine,
    trial: Trial,
    policies: Policies,
    problems: Problems,
    probed: Probed | None,
    pieces: Pieces | None,
) -> _Solver:
    sample = {domain: _spread(items, SAMPLE_PROBLEMS) for domain, items in problems.items()}
    return _Solver(engine, trial, policies, problems, sample, _own(probed, trial), pieces or _whole)


def _whole(problems: Sequence[Problem]) -> Iterator[Sequence[Problem]]:
    yield problems


def _own(probed: Probed | None, trial: Trial) -> dict[float, float]:
    """The part of `probed` that is about this rule and task, whatever the budget."""
    asked = {name: value for name, value in policy_of(trial.rule, trial.budget).items() if name != BUDGET}
    given = [trial.calibration_fingerprint, trial.score, trial.calibration.sensitivity, trial.data_identity]
    key = fingerprint([asked, *given, trial.task.model_dump(mode="json")])
    return {} if probed is None else probed.setdefault(key, {})


def _spread(items: Sequence[Problem], count: int) -> list[Problem]:
    """`count` of the problems, evenly spaced: a file may be sorted by sub-task."""
    count = min(count, len(items))
    return [items[i * len(items) // count] for i in range(count)]


def _read(path: Path, trial: Trial) -> Knob | None:
    """A knob solved before; None where there is none, or none that can be trusted."""
    try:
        kept = Knob.model_validate_json(path.read_bytes())
    except (OSError, ValidationError):
        return None
    knob = knob_of(trial.rule).within(trial.checkpoint.shape)
    same = (kept.fingerprint, kept.knob, kept.target) == (trial.knob_fingerprint, knob.name, trial.budget)
    return kept if same and knob.low <= kept.value <= knob.high else None


def _write(path: Path, knob: Knob) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, (knob.model_dump_json(indent=1) + "\n").encode())
