"""The best policy at each budget: what a reader takes home of a run, a row each."""

from __future__ import annotations

from collections.abc import Sequence

from banpick_exp.report.equal_budget import at_equal_budget
from banpick_exp.report.run import Run
from banpick_exp.report.text import Row

MOST = 6
"""Rows."""
FILLED = 4
"""Rows where the budgets are fewer: then each has its second best, too."""


def best_per_budget(run: Run, most: int = MOST) -> Sequence[Row]:
    """Rows of `verdicts` over all domains, one for each fixed_k point that keeps as many experts, the largest budget
    first; of more budgets those whose best is the surest, of fewer several rows each.
    """
    rows = at_equal_budget(run.verdicts).sort("lo_simultaneous", descending=True, maintain_order=True)
    by_budget = rows.partition_by("reference_label", maintain_order=True)
    each = max(1, FILLED // max(len(by_budget), 1))
    told = [row for part in by_budget for row in part.head(each).iter_rows(named=True)]
    told.sort(key=lambda row: -float(row["lo_simultaneous"]))
    return sorted(told[:most], key=lambda row: (-float(row["reference_mean_kept"]), -float(row["lo_simultaneous"])))
