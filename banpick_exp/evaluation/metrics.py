"""The numbers of a point: accuracy paired with stock, the measured budget, and the speed of its timed runs.

Accuracy is measured on all problems, greedy unless the task samples. Budgets are read from the engine's counters after
the accuracy run of each domain. Speed comes from runs of its own (`speed`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from banpick_exp.analysis import average_at_n, difference_at_n
from banpick_exp.evaluation.answer import DomainRun
from banpick_exp.evaluation.speed import Timed, speed_cells
from banpick_exp.records import Metrics, PointMetrics, SpeedCell, outcomes_frame


def domain_metrics(runs: Sequence[DomainRun], stock: Sequence[DomainRun], cells: Sequence[SpeedCell]) -> Metrics:
    """The metrics of one domain, or of several taken together.

    `accuracy` is avg@n where the outcomes have several samples a problem. `accuracy_ci95` is Wilson's interval, or over
    problems for avg@n; `delta` is the paired difference to stock with a bootstrap interval over problems; `speedup`
    is that of the last of `cells`, None where that is no decode: the batch of the accuracy run was not timed.

    A problem that was set aside on either side is in no number of that side, and in no pair.
    """
    outcomes = [outcome for run in runs for outcome in run.outcomes]
    stock_outcomes = [outcome for run in stock for outcome in run.outcomes]
    if [r.asked for r in runs] != [r.asked for r in stock]:
        raise ValueError("stock answered other problems than the policy: the comparison would not be paired")
    ours, theirs = outcomes_frame(outcomes), outcomes_frame(stock_outcomes)
    score = average_at_n(ours).row(0, named=True)
    delta = difference_at_n(ours, theirs).row(0, named=True)
    tokens_L = np.sum([run.counters.tokens for run in runs], axis=0)
    kept_L = np.sum([run.counters.kept for run in runs], axis=0)
    speed = next((cell for cell in cells[-1:] if cell.phase == "decode"), None)
    return Metrics(
        accuracy=score["accuracy"],
        accuracy_ci95=(score["lo"], score["hi"]),
        delta=delta["difference"],
        delta_ci95=(delta["lo"], delta["hi"]),
        n_problems=score["n_problems"],
        tokens_per_second=speed.tokens_per_second if speed else None,
        speedup=speed.speedup if speed else None,
        speedup_ci95=speed.ci95 if speed else None,
        speed=tuple(cells),
        mean_kept=float(kept_L.sum() / tokens_L.sum()),
        mean_kept_by_layer=tuple(float(x) for x in kept_L / tokens_L),
        truncated_fraction=float(np.mean([o.truncated for o in outcomes])),
    )


def point_metrics(runs: Mapping[str, DomainRun], stock: Mapping[str, DomainRun], timed: Timed) -> PointMetrics:
    """Of all domains and of each. An empty `timed`: nothing was timed.

    A domain in which nothing was answered, because all of it was set aside, has no numbers.
    """
    runs = {domain: run for domain, run in runs.items() if run.outcomes}
    domains = {d: domain_metrics([runs[d]], [stock[d]], speed_cells(timed, d)) for d in runs}
    overall = domain_metrics(list(runs.values()), [stock[d] for d in runs], speed_cells(timed))
    return PointMetrics(overall=overall, domains=domains)
