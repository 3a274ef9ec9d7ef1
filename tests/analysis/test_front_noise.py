"""The front judged with noise, the interval of a median, and the one number of a sweep."""

from __future__ import annotations

from typing import Any

import numpy as np
import polars as pl
import pytest
from synthetic_run import SyntheticRun, ladder

from banpick_exp.analysis import hypervolume_gain, median_interval, pareto_front, points_frame
from banpick_exp.analysis.front import paired_errors


def front(*rows: tuple[float, tuple[float, float, float], float]) -> list[tuple[bool, bool]]:
    """(on_front, sure) of points given as (accuracy, (speed-up, low, high), kept); accuracies are +- 2 points."""
    frame = pl.DataFrame({
        "accuracy": [row[0] for row in rows], "accuracy_lo": [row[0] - 0.02 for row in rows],
        "accuracy_hi": [row[0] + 0.02 for row in rows], "speedup": [row[1][0] for row in rows],
        "speedup_lo": [row[1][1] for row in rows], "speedup_hi": [row[1][2] for row in rows],
        "mean_kept": [row[2] for row in rows],
    })  # fmt: skip
    return pareto_front(frame).select("on_front", "sure").rows()


def test_a_point_is_off_the_front_only_when_it_is_beaten_beyond_noise() -> None:
    tight, wide = (1.2, 1.19, 1.21), (1.2, 1.0, 1.4)
    # Worse in accuracy and budget, slower beyond noise: off.
    assert front((0.80, tight, 5.0), (0.79, (1.1, 1.09, 1.11), 5.0)) == [(True, True), (False, False)]
    # The same, but no one can tell: both stay, neither for sure.
    assert front((0.80, wide, 5.0), (0.79, (1.1, 0.9, 1.3), 5.0)) == [(True, False), (True, False)]
    # A trade that noise does not explain: both for sure.
    assert front((0.80, tight, 5.0), (0.70, (1.4, 1.39, 1.41), 3.0)) == [(True, True), (True, True)]
    # More accurate within noise, dearer: it stays, but not for sure; the cheaper one is sure.
    assert front((0.80, (1.0, 0.99, 1.01), 8.0), (0.795, tight, 5.0)) == [(True, False), (True, True)]
    # Equal points share it.
    assert front((0.80, tight, 5.0), (0.80, tight, 5.0)) == [(True, False), (True, False)]


def test_without_any_speed_the_front_is_of_accuracy_and_budget() -> None:
    nothing: Any = (None, None, None)
    assert front((0.8, nothing, 5.0), (0.7, nothing, 5.0), (0.7, nothing, 3.0)) == [
        (True, True), (False, False), (True, True)
    ]  # fmt: skip


def test_answers_to_the_same_problems_are_paired() -> None:
    """Two points that differ on ten problems of 2,400, all one way: their own intervals overlap widely."""
    run = SyntheticRun(seed=1)
    run.add("none")
    run.add("pick", {"boost": 1.0}, shift={"math": 0.05})
    frame = points_frame(run.records).filter(pl.col("domain") == "overall")
    unpaired = pareto_front(frame.with_columns(speedup=1.0, speedup_lo=1.0, speedup_hi=1.0))
    paired = pareto_front(frame.with_columns(speedup=1.0, speedup_lo=1.0, speedup_hi=1.0), run.outcomes)
    assert unpaired["on_front"].to_list() == [True, True]
    assert paired["on_front"].to_list() == [False, True]


def test_the_paired_error_is_that_of_the_differences() -> None:
    rng = np.random.default_rng(0)
    scores = (rng.random((4, 300)) < 0.6).astype(float)
    errors = paired_errors(scores)
    for i in range(4):
        for j in range(4):
            assert errors[i, j] == pytest.approx((scores[i] - scores[j]).std(ddof=1) / 300**0.5, abs=1e-12)


# ---------------------------------------------------------------- medians


@pytest.mark.parametrize(("n", "out"), [(1, 0), (5, 0), (6, 0), (8, 0), (9, 1), (12, 2), (20, 5), (100, 39)])
def test_the_interval_of_a_median_leaves_out_what_the_sign_test_allows(n: int, out: int) -> None:
    middle, low, high = median_interval(np.arange(n)[::-1])
    assert (middle, low, high) == ((n - 1) / 2, out, n - 1 - out)


def test_the_interval_of_a_median_covers_it() -> None:
    rng = np.random.default_rng(0)
    for n in (6, 15, 60):
        drawn = np.exp(rng.standard_normal((2000, n)))
        held = [low <= 1 <= high for _, low, high in map(median_interval, drawn)]
        assert 0.94 < np.mean(held) <= 1


def test_no_values_have_no_median() -> None:
    with pytest.raises(ValueError, match="no median"):
        median_interval(np.array([]))


# ---------------------------------------------------------------- one number


def sweep(seed: int, *, shift: dict[str, float], policies: int = 18) -> SyntheticRun:
    run = ladder(SyntheticRun(seed=seed))
    for number in range(policies):
        kept = 3 + number % 5
        worse = {domain: -0.004 * (8 - kept) ** 2 + shift.get(domain, 0.0) for domain in ("math", "code", "knowledge")}
        run.add("pick", {"boost": float(number)}, kept=kept, churn=0.1, shift=worse, speedup=1 + (8 - kept) / 20)
    return run


def test_the_best_of_many_equals_gains_what_one_of_them_gains() -> None:
    """The best of 18 looks 1 to 2 points better still; chosen on other problems it is not."""
    gains = []
    for seed in range(12):
        run = ladder(SyntheticRun(seed=seed))
        for number in range(18):
            run.add("ban", {"lambda": float(number)}, kept=7.0, churn=0.2, speedup=1.0)
        gain = hypervolume_gain(points_frame(run.records), run.outcomes, "mean_kept")
        assert gain is not None and (gain.low, gain.high) == (2, 8)
        gains.append(gain)
    # Stock's accuracy at seven experts is a true gain over the ladder's own k=7 for a sixth of the range, no more.
    ladder_of = ladder(SyntheticRun(seed=0)).records
    stock, seven = (next(r for r in ladder_of if r.mean_kept == kept).measured.overall.accuracy for kept in (8, 7))
    assert abs(np.mean([gain.points for gain in gains]) - 100 * (stock - seven) / 6) < 0.15


def test_a_better_policy_gains_its_share_of_the_range() -> None:
    run = ladder(SyntheticRun(seed=3))
    stock = next(record for record in run.records if record.is_stock)
    at_3 = next(record for record in run.records if record.knobs.get("k") == 3)
    lost = stock.measured.overall.accuracy - at_3.measured.overall.accuracy
    run.add("ban", {"lambda": 1.0}, kept=3.0, speedup=1.3)  # as accurate as stock
    gain = hypervolume_gain(points_frame(run.records), run.outcomes, "mean_kept")
    assert gain is not None and gain.decided and gain.points > 0
    assert gain.points < 100 * lost  # it is an average over budgets 2 to 8, and gains nothing below 3


def test_where_there_is_nothing_to_compare_there_is_no_number() -> None:
    run = ladder(SyntheticRun(seed=0))
    assert hypervolume_gain(points_frame(run.records), run.outcomes, "mean_kept") is None
    alone = SyntheticRun(seed=0)
    alone.add("none")
    alone.add("pick", {"boost": 1.0})
    assert hypervolume_gain(points_frame(alone.records), alone.outcomes, "mean_kept") is None


def test_the_noise_of_speeds_widens_the_number_over_speed_ups() -> None:
    run = sweep(0, shift={"math": 0.05})
    frame = points_frame(run.records)
    by_speed = hypervolume_gain(frame, run.outcomes, "speedup")
    sharp = hypervolume_gain(
        frame.with_columns(speedup_lo=pl.col("speedup"), speedup_hi=pl.col("speedup")), run.outcomes, "speedup"
    )
    assert by_speed is not None and sharp is not None and by_speed.low == 1
    assert by_speed.ci95[1] - by_speed.ci95[0] > sharp.ci95[1] - sharp.ci95[0]
