"""A repeat is paired with its own stock: in the run that measures it, and in the analysis of what it measured."""

from __future__ import annotations

from pathlib import Path

from banpick_exp.analysis import pairing
from banpick_exp.cluster.record_of import record_of
from banpick_exp.sweep.plan import plan_sweep
from banpick_exp.sweep.search import strategy


def test_a_repeat_is_paired_with_its_own_stock(tmp_path: Path) -> None:
    typed = ("+sweep=ban_threshold", "policy.lambda=0.5", "policy.k_min=3", "repeats=3", "seed=choice(0,1)")
    points = plan_sweep([*typed, f"output_dir={tmp_path}", "dry_run=true"]).points
    stock = {strategy.setup(point): point for point in points if point.rule.is_stock}
    assert len(stock) == 6
    for point in points:
        paired = stock[strategy.setup(point)]
        assert (paired.rule.name, paired.repeat, paired.seed) == ("none", point.repeat, point.seed)
    records = [record_of(point, "", status="failed", reason="not run") for point in points]
    setups = {(strategy.setup(p), pairing.setup(record)) for p, record in zip(points, records, strict=True)}
    assert len(setups) == len({ours for _, ours in setups}) == 6, "the analysis pairs as the run does"
