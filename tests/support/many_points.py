"""A run folder of as many points as one likes, on sixty problems each: what the end of a long sweep reads.

A rule for each of a handful of policies, knobs on a grid, budgets solved and natural, and a few points that failed.
`python tests/support/many_points.py FOLDER 2000` writes one to try by hand.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from synthetic_run import DOMAINS, TOP_K, SyntheticRun, ladder

PROBLEMS = 20
"""A domain; three domains make sixty."""
POLICIES = ("pick", "ban", "ban_pick", "top_p", "naee")


def many_points(points: int, seed: int = 0) -> SyntheticRun:
    """`points` of which the first are stock and a fixed_k ladder; one in a hundred failed."""
    run = ladder(SyntheticRun(seed=seed, problems=PROBLEMS))
    rng = np.random.default_rng(seed)
    while len(run.points) < points:
        number = len(run.points)
        policy = POLICIES[number % len(POLICIES)]
        kept = float(np.round(rng.uniform(2.5, TOP_K), 2))
        loss = 0.004 * (TOP_K - kept) ** 2
        failed = number % 100 == 99
        run.add(
            policy,
            {"lambda": round(number / 1000, 3), "scope": "own"},
            kept=kept,
            churn=0.1,
            shift={name: float(rng.normal(0.0, 0.05)) - loss for name in DOMAINS},
            speedup=1 + 0.04 * (TOP_K - kept) + float(rng.normal(0, 0.02)),
            status="failed" if failed else "done",
            reason="the engine stopped" if failed else None,
        )
    return run


if __name__ == "__main__":
    many_points(int(sys.argv[2])).write(Path(sys.argv[1]))
