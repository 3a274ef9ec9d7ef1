"""One point: accuracy on every problem, speed against stock, the measured budget, and whether the policy engaged.

Accuracy is measured on all problems, greedy unless the task samples, paired with stock by problem. Speed is measured in
greedy runs of its own: stock and policy alternate on the same prompts, every answer has the same forced length, so the
ratio compares equal work.
Budgets and usage are read from the engine's counters after the accuracy run of each domain.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import polars as pl

from banpick_exp.analysis import average_at_n, difference_at_n
from banpick_exp.evaluation.answer import DomainRun
from banpick_exp.evaluation.speed import Timing
from banpick_exp.records import OVERALL


def domain_metrics(runs: Sequence[DomainRun], stock: Sequence[DomainRun], timings: Sequence[Timing]) -> dict[str, Any]:
    """The metrics of one domain, or of several taken together.

    `accuracy` is avg@n where the outcomes have several samples a problem. `accuracy_ci95` is Wilson's interval, or over
    problems for avg@n; `delta` is the paired difference to stock with a bootstrap interval over problems; `speedup`
    is the median of the paired time ratios and `speedup_spread` their lowest and highest, None without `timings`.
    """
    outcomes = [o for run in runs for o in run.outcomes]
    stock_outcomes = [o for run in stock for o in run.outcomes]
    if [o["problem_id"] for o in outcomes] != [o["problem_id"] for o in stock_outcomes]:
        raise ValueError("stock answered other problems than the policy: the comparison would not be paired")
    ours, theirs = pl.DataFrame(outcomes), pl.DataFrame(stock_outcomes)
    score = average_at_n(ours).row(0, named=True)
    delta = difference_at_n(ours, theirs).row(0, named=True)
    tokens_L = np.sum([run.counters.tokens for run in runs], axis=0)
    kept_L = np.sum([run.counters.kept for run in runs], axis=0)
    return {
        "accuracy": score["accuracy"],
        "accuracy_ci95": [score["lo"], score["hi"]],
        "delta": delta["difference"],
        "delta_ci95": [delta["lo"], delta["hi"]],
        "n_problems": score["n_problems"],
        **_speed(timings),
        "mean_kept": float(kept_L.sum() / tokens_L.sum()),
        "mean_kept_by_layer": [float(x) for x in kept_L / tokens_L],
        "truncated_fraction": float(np.mean([o["truncated"] for o in outcomes])),
    }


def _speed(timings: Sequence[Timing]) -> dict[str, Any]:
    if not timings:
        return dict.fromkeys(("tokens_per_second", "speedup", "speedup_spread"))
    stock_seconds = np.sum([t.stock_seconds for t in timings], axis=0)
    policy_seconds = np.sum([t.policy_seconds for t in timings], axis=0)
    ratios = stock_seconds / policy_seconds
    generated = sum(t.tokens for t in timings) * len(ratios)
    return {
        "tokens_per_second": float(generated / policy_seconds.sum()),
        "speedup": float(statistics.median(ratios)),
        "speedup_spread": [float(ratios.min()), float(ratios.max())],
    }


def all_metrics(
    runs: Mapping[str, DomainRun], stock: Mapping[str, DomainRun], timings: Mapping[str, Timing]
) -> dict[str, Any]:
    """`{"overall": M, "domains": {domain: M}}`, as the records hold it. No `timings`: nothing was timed."""
    domains = {d: domain_metrics([runs[d]], [stock[d]], [timings[d]] if timings else []) for d in runs}
    overall = domain_metrics(list(runs.values()), list(stock.values()), list(timings.values()))
    return {OVERALL: overall, "domains": domains}
