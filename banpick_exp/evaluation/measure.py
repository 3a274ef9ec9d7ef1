"""One trial on a loaded engine: its answers paired with stock's, its speed, and whether its policy engaged."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from banpick_exp.evaluation.answer import Answered, DomainRun, Problems
from banpick_exp.evaluation.asking import Asking, TooManyFailed, check_failed
from banpick_exp.evaluation.at_once import Choice, answer_at_once
from banpick_exp.evaluation.blocks import answer_block, block_problems, read_block, read_blocks
from banpick_exp.evaluation.budget.solve import answer_at_budget, solved_policies
from banpick_exp.evaluation.cut import Cut
from banpick_exp.evaluation.engagement import check_engagement
from banpick_exp.evaluation.metrics import point_metrics
from banpick_exp.evaluation.reward import check_reward_model
from banpick_exp.evaluation.session import Session
from banpick_exp.evaluation.speed import Timed, time_against_stock
from banpick_exp.evaluation.trial import Trial
from banpick_exp.evaluation.trouble import POINT
from banpick_exp.policy.budget import policy_of
from banpick_exp.records import BudgetAccount, Engagement, FailedProblem, Outcome, PointMetrics, Timing
from banpick_exp.tasks.load import load_problems
from banpick_exp.tasks.problem import Problem


@dataclass(frozen=True, kw_only=True, slots=True)
class Measured:
    """What was found about one trial."""

    reason: str | None
    """Why it is invalid, None where it is not."""
    policy: dict[str, object]
    """As it ran: a solved knob has its value."""
    metrics: PointMetrics
    engagement: Engagement
    timing: Timing
    budget: BudgetAccount | None
    outcomes: list[Outcome]
    failed_problems: tuple[FailedProblem, ...]
    """Set aside because they break engines; they are in nothing above."""


def measure(session: Session, trial: Trial, stock_fingerprint: str, cut: Cut | None = None) -> Measured:
    """Measure one trial.

    `stock_fingerprint`: the `none` trial it is paired with; `cut`: into which blocks a race has cut its problems.
    """
    begin = time.perf_counter()
    problems = asked_problems(trial)
    is_stock = trial.fingerprint == stock_fingerprint
    asking = session.asking(trial, POINT)
    policies = session.policies(trial)
    answering = time.perf_counter()
    met = None
    stock_seconds = 0.0
    if is_stock:
        runs, stock_seconds = session.stock(asking, stock_fingerprint, problems, cut)
        answered = Answered(policies=policies, runs=runs, swap_seconds=0.0)
    elif trial.budget is None:
        answered = session.answer(asking, policies, problems, cut)
    else:
        met = answer_at_budget(
            session.engine,
            trial,
            policies,
            _askable(asking, problems),
            session.folder.solved,
            lambda solved: session.answer(asking, solved, problems, cut),
            session.probed,
            asking.pieces,
            solved_now=trial.fingerprint in session.solved,
        )
        answered = met.answered
    solve_seconds = met.solve_seconds if met else 0.0
    accuracy_seconds = 0.0 if is_stock else time.perf_counter() - answering - solve_seconds
    timing = time.perf_counter()
    # A repeat asks how far the score moves; the speed is that of the point itself. Of several rows there is none: what
    # a step costs hangs on how their requests meet in a batch.
    whole = answered_problems(trial, problems, answered.runs)
    timed = (
        Timed()
        if trial.repeat or len(trial.rule.parts) > 1
        else time_against_stock(session.engine, answered.policies, trial.task, whole)
    )
    throughput_seconds = time.perf_counter() - timing
    # Last, because another engine may be answering for stock meanwhile: one of them is enough.
    stock, late_seconds = session.stock(asking, stock_fingerprint, problems, cut)
    stock_seconds += late_seconds
    # On a problem without an answer of stock's nothing can be paired: it is left out for all.
    runs = {domain: run.without(stock[domain].failed) for domain, run in answered.runs.items()}
    answered_problems(trial, problems, runs)
    engagement, reason = check_engagement(answered.policies, runs, stock, trial.checkpoint.shape)
    if is_stock:
        stock_counters = {domain: run.counters for domain, run in stock.items()}
        engagement = engagement.model_copy(update={"stock_counters": stock_counters})
    generating = stock_seconds + solve_seconds + accuracy_seconds + throughput_seconds
    metrics = point_metrics(runs, stock, timed)
    asking.over()
    return Measured(
        reason=reason or (met.reason if met else None),
        policy=answered.policies[trial.task.domains[0]].rule.canonical() if met else policy_of(trial.rule, None),
        metrics=metrics,
        engagement=engagement,
        timing=Timing(
            swap_seconds=answered.swap_seconds,
            stock_seconds=stock_seconds,
            solve_seconds=solve_seconds + session.solved.pop(trial.fingerprint, 0.0),
            accuracy_seconds=accuracy_seconds,
            **({} if answered.block_seconds is None else {"block_seconds": answered.block_seconds}),
            throughput_seconds=throughput_seconds,
            timed_tokens=timed.generated,
            overhead_seconds=time.perf_counter() - begin - generating,
        ),
        budget=met.account if met else None,
        outcomes=[outcome for run in runs.values() for outcome in run.outcomes],
        failed_problems=tuple(each for run in runs.values() for each in run.failed),
    )


def measure_block(session: Session, trial: Trial, cut: Cut, number: int) -> float:
    """Answer one block of a trial and write its file. Returns the seconds spent now."""
    problems = asked_problems(trial)
    asking = session.asking(trial, str(number))
    policies = session.policies(trial)
    if trial.budget is not None:
        folder = session.folder.solved
        sampled = _askable(asking, problems)
        policies = solved_policies(session.engine, trial, policies, sampled, folder, session.probed, asking.pieces)
    return answer_block(asking, policies, problems, cut, number)


def measure_at_once(session: Session, trials: Sequence[Trial], cut: Cut | None, number: int | None) -> Choice:
    """Answer the trials of one set-up, or block `number` of each, in one batch where that pays.

    Each is then measured by itself (`measure`, `measure_block`) and finds its answers. No UserError of one is raised:
    measured by itself it has it too.
    """
    problems = asked_problems(trials[0])
    if number is None or cut is None:
        # One that was answered in blocks is only added up.
        left = [trial for trial in trials if not _in_blocks(session, trial, cut)]
        return answer_at_once(session, left, POINT, problems)
    left = [trial for trial in trials if read_block(session.folder, trial.fingerprint, cut, number) is None]
    return answer_at_once(session, left, str(number), problems, block_problems(problems, cut, number))


def _in_blocks(session: Session, trial: Trial, cut: Cut | None) -> bool:
    return cut is not None and read_blocks(session.folder, trial.fingerprint, cut, len(cut)) is not None


def answered_problems(trial: Trial, problems: Problems, runs: Mapping[str, DomainRun]) -> Problems:
    """The problems that were answered, domain by domain: the others break engines.

    Raises TooManyFailed where those are more than may be, or all of a domain.
    """
    failed = [each for run in runs.values() for each in run.failed]
    if not failed:
        return problems
    check_failed(trial, failed)
    _in_each_domain({domain: run.outcomes for domain, run in runs.items()})
    gone = {(each.domain, each.problem_id) for each in failed}
    return {
        domain: [each for each in items if (domain, each.problem_id) not in gone] for domain, items in problems.items()
    }


def _askable(asking: Asking, problems: Problems) -> Problems:
    """Those that are not set aside: a knob is solved on them. Raises TooManyFailed where a domain has none."""
    left = asking.left(problems)
    _in_each_domain(left)
    return left


def _in_each_domain(there: Mapping[str, Sequence[object]]) -> None:
    for domain, items in there.items():
        if not items:
            raise TooManyFailed(f"every problem of {domain} broke the engines that were asked it: there is no answer")


def asked_problems(trial: Trial) -> dict[str, list[Problem]]:
    """The trial's problems. Raises UserError where the files, or the reward model's, are no longer those planned."""
    task = trial.task
    check_reward_model(task, trial.reward_model)
    return load_problems(task, task.split, task.max_problems, identity=trial.data_identity)
