"""The figures of a run, once: the name of a file without `.png` is also its key in W&B.

`knobs` answers a sweep of one or two knobs, `budget` one of many rules: a run has one of them, and `pareto` beside it.
"""

from __future__ import annotations

KNOBS, BUDGET, PARETO, USAGE, INFLUENCE, KEPT = FIGURES = ("knobs", "budget", "pareto", "usage", "influence", "kept")

DEMAND = "demand"
"""What the command `demand` draws beside them."""
