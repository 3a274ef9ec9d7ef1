"""One trial on a loaded engine: its answers paired with stock's, its speed, and whether its policy engaged."""

from __future__ import annotations

import time
from dataclasses import dataclass

from banpick_exp.evaluation.answer import Answered
from banpick_exp.evaluation.blocks import answer_block
from banpick_exp.evaluation.budget.solve import answer_at_budget, solved_policies
from banpick_exp.evaluation.cut import Cut
from banpick_exp.evaluation.engagement import check_engagement
from banpick_exp.evaluation.metrics import point_metrics
from banpick_exp.evaluation.session import Session
from banpick_exp.evaluation.speed import Timed, time_against_stock
from banpick_exp.evaluation.trial import Trial
from banpick_exp.policy.budget import policy_of
from banpick_exp.records import BudgetAccount, Engagement, Outcome, PointMetrics, Timing
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


def measure(session: Session, trial: Trial, stock_fingerprint: str, cut: Cut | None = None) -> Measured:
    """Measure one trial.

    `stock_fingerprint`: the `none` trial it is paired with; `cut`: into which blocks a race has cut its problems.
    """
    begin = time.perf_counter()
    problems = asked_problems(trial)
    is_stock = trial.fingerprint == stock_fingerprint
    policies = session.policies(trial)
    answering = time.perf_counter()
    met = None
    stock_seconds = 0.0
    if is_stock:
        runs, stock_seconds = session.stock(trial, stock_fingerprint, problems, cut)
        answered = Answered(policies=policies, runs=runs, swap_seconds=0.0)
    elif trial.budget is None:
        answered = session.answer(trial, policies, problems, cut)
    else:
        met = answer_at_budget(
            session.engine,
            trial,
            policies,
            problems,
            session.folder.solved,
            lambda solved: session.answer(trial, solved, problems, cut),
            session.probed,
        )
        answered = met.answered
    solve_seconds = met.solve_seconds if met else 0.0
    accuracy_seconds = 0.0 if is_stock else time.perf_counter() - answering - solve_seconds
    timing = time.perf_counter()
    # A repeat asks how far the score moves; the speed is that of the point itself.
    timed = Timed() if trial.repeat else time_against_stock(session.engine, answered.policies, trial.task, problems)
    throughput_seconds = time.perf_counter() - timing
    # Last, because another engine may be answering for stock meanwhile: one of them is enough.
    stock, late_seconds = session.stock(trial, stock_fingerprint, problems, cut)
    stock_seconds += late_seconds
    engagement, reason = check_engagement(answered.policies, answered.runs, stock, trial.checkpoint.shape)
    if is_stock:
        stock_counters = {domain: run.counters for domain, run in stock.items()}
        engagement = engagement.model_copy(update={"stock_counters": stock_counters})
    generating = stock_seconds + solve_seconds + accuracy_seconds + throughput_seconds
    metrics = point_metrics(answered.runs, stock, timed)
    return Measured(
        reason=reason or (met.reason if met else None),
        policy=answered.policies[trial.task.domains[0]].rule.canonical() if met else policy_of(trial.rule, None),
        metrics=metrics,
        engagement=engagement,
        timing=Timing(
            swap_seconds=answered.swap_seconds,
            stock_seconds=stock_seconds,
            solve_seconds=solve_seconds,
            accuracy_seconds=accuracy_seconds,
            **({} if answered.block_seconds is None else {"block_seconds": answered.block_seconds}),
            throughput_seconds=throughput_seconds,
            timed_tokens=timed.generated,
            overhead_seconds=time.perf_counter() - begin - generating,
        ),
        budget=met.account if met else None,
        outcomes=[outcome for run in answered.runs.values() for outcome in run.outcomes],
    )


def measure_block(session: Session, trial: Trial, cut: Cut, number: int) -> float:
    """Answer one block of a trial and write its file. Returns the seconds spent now."""
    problems = asked_problems(trial)
    policies = session.policies(trial)
    if trial.budget is not None:
        folder = session.folder.solved
        policies = solved_policies(session.engine, trial, policies, problems, folder, session.probed)
    return answer_block(session.engine, policies, trial, problems, cut, number, session.folder)


def asked_problems(trial: Trial) -> dict[str, list[Problem]]:
    """The trial's problems. Raises UserError where the files are no longer those that were planned."""
    task = trial.task
    return load_problems(task, task.split, task.max_problems, identity=trial.data_identity)
