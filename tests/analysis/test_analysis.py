"""Intervals against known values, the front against brute force, and verdicts that do not invent winners."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import polars as pl
import pytest
from synthetic_run import DOMAINS, SyntheticRun, ladder, pick_strength

from banpick_exp.analysis import (
    compare_counts,
    headline,
    holm,
    mcnemar_exact_p,
    paired_bootstrap,
    pareto_front,
    points_frame,
    verdicts,
    wilson,
)
from banpick_exp.analysis.compare import Comparison


def judge(run: SyntheticRun) -> pl.DataFrame:
    return verdicts(run.records, run.outcomes)


def of_single_answers(wins: int, losses: int, n: int, comparisons: int) -> Comparison:
    """One answer a problem: `wins` problems only the policy got right, `losses` only the reference."""
    return compare_counts({1: wins, 0: n - wins - losses, -1: losses}, 1, comparisons)


def test_wilson_known_values() -> None:
    assert wilson(8, 10) == pytest.approx((0.49016, 0.94331), abs=1e-4)  # the docstring's example
    assert wilson(0, 20) == pytest.approx((0.0, 0.16113), abs=1e-4) and wilson(0, 20)[0] == 0.0
    assert wilson(20, 20) == pytest.approx((0.83887, 1.0), abs=1e-4) and wilson(20, 20)[1] == 1.0
    assert wilson(0, 0) == (0.0, 1.0)
    with pytest.raises(ValueError):
        wilson(3, 2)


def test_wilson_covers() -> None:
    draws = np.random.default_rng(0).binomial(200, 0.93, 4000)
    covered = np.mean([low <= 0.93 <= high for low, high in (wilson(int(k), 200) for k in draws)])
    assert 0.935 < covered < 0.97


@pytest.mark.parametrize(("wins", "losses", "n"), [(40, 20, 800), (300, 200, 800), (3, 0, 100), (0, 0, 50), (5, 5, 10)])
def test_bootstrap_equals_resampling_problems(wins: int, losses: int, n: int) -> None:
    """The multinomial shortcut, its exact limit and resampling the problems themselves are one distribution."""
    difference = np.array([1] * wins + [-1] * losses + [0] * (n - wins - losses))
    rng = np.random.default_rng(1)
    direct = np.array([rng.choice(difference, n).mean() for _ in range(4000)])
    naive = np.quantile(direct, [0.025, 0.975])
    sampled = paired_bootstrap(difference, resamples=40_000)
    exact = paired_bootstrap(difference, resamples=None)
    assert sampled[0] == exact[0] == difference.mean()
    step = 1 / n + 0.1 * difference.std() / math.sqrt(n)  # one problem, and the noise of 4,000 draws
    assert sampled[1:] == pytest.approx(exact[1:], abs=1.01 / n)
    assert exact[1:] == pytest.approx(tuple(naive), abs=step)
    assert paired_bootstrap(difference, seed=3) == paired_bootstrap(difference, seed=3)


def test_exact_bootstrap_is_the_binomial_tail() -> None:
    """With wins only, the resampled sum is Binomial(n, wins/n): its quantiles by direct summation."""
    n, wins, tail = 60, 12, 0.005
    pmf = [math.comb(n, k) * (wins / n) ** k * (1 - wins / n) ** (n - k) for k in range(n + 1)]
    cdf = list(itertools.accumulate(pmf))
    low = next(k for k, c in enumerate(cdf) if c >= tail)
    high = next(k for k, c in enumerate(cdf) if c >= 1 - tail)
    difference = np.array([1] * wins + [0] * (n - wins))
    assert paired_bootstrap(difference, confidence=0.99, resamples=None)[1:] == pytest.approx((low / n, high / n))


def test_bootstrap_widens_with_confidence_and_rejects_other_values() -> None:
    difference = np.array([1] * 30 + [-1] * 10 + [0] * 500)
    widths = [
        np.diff(paired_bootstrap(difference, confidence=c, resamples=None)[1:])[0] for c in (0.5, 0.9, 0.99, 0.999)
    ]
    assert widths == sorted(widths) and len(set(widths)) == 4
    for bad in ([], [2, 0], [0.5, 1.0], [float("nan")]):
        with pytest.raises(ValueError), np.errstate(invalid="ignore"):
            paired_bootstrap(np.array(bad))


def test_mcnemar_known_values() -> None:
    assert mcnemar_exact_p(7, 0) == pytest.approx(0.015625)
    assert mcnemar_exact_p(9, 2) == pytest.approx(2 * (1 + 11 + 55) / 2**11)
    assert mcnemar_exact_p(2, 9) == mcnemar_exact_p(9, 2)
    assert mcnemar_exact_p(0, 0) == mcnemar_exact_p(5, 5) == 1.0
    assert 0 < mcnemar_exact_p(700, 900) < 1e-5  # 2**-1600 is below what a float can hold
    with pytest.raises(ValueError):
        mcnemar_exact_p(-1, 2)


def test_pareto_front_against_brute_force() -> None:
    rng = np.random.default_rng(0)
    frame = pl.DataFrame({name: rng.integers(0, 6, 60) / 6 for name in ("accuracy", "speedup", "mean_kept")})
    rows = [(r["accuracy"], r["speedup"], -r["mean_kept"]) for r in frame.iter_rows(named=True)]
    expected = [not any(o != r and all(a >= b for a, b in zip(o, r, strict=True)) for o in rows) for r in rows]
    assert pareto_front(frame)["on_front"].to_list() == expected and 0 < sum(expected) < 60


def test_pareto_front_counts_only_done_points_of_the_same_domain() -> None:
    frame = pl.DataFrame(
        {
            "accuracy": [0.9, 0.8, 0.7, 0.8, None],
            "speedup": [2.0, 1.0, 1.0, 1.0, None],
            "status": ["invalid", "done", "done", "done", "failed"],
            "domain": ["overall", "overall", "math", "overall", "overall"],
        }
    )
    assert pareto_front(frame)["on_front"].to_list() == [False, True, True, True, False]
    assert pareto_front(frame.head(0)).columns[-2:] == ["on_front", "sure"]


def test_null_sweep_has_no_winner() -> None:
    """Nothing helps: over 8 sweeps of 20 settings and 3 domains, each may err at 5 % for each kind of verdict."""
    erring = 0
    for seed in range(8):
        run = SyntheticRun(seed, problems=200)
        run.add("none")
        for boost in range(20):
            run.add("pick", {"boost": boost}, churn=0.15)
        found = judge(run)
        assert found["comparisons"].unique().sort().to_list() == [20, 60]
        erring += found.filter(pl.col("verdict") != "ties").height > 0
    assert erring <= 2  # P(more than 2 of 8 at a rate of 10 %) is 4 %; without the correction nearly all err


def test_simultaneous_error_rate_of_the_verdict() -> None:
    """2,000 null sweeps of 20 policies on counts alone, with few and with many discordant pairs."""
    rng = np.random.default_rng(0)
    for discordant in (8, 60):
        wins = rng.binomial(discordant, 0.5, (300, 20))
        cases = {int(w): of_single_answers(int(w), discordant - int(w), 800, 20)["verdict"] for w in np.unique(wins)}
        rate = np.mean([any(cases[int(w)] != "ties" for w in sweep) for sweep in wins])
        assert rate <= 0.09
        single = {w: of_single_answers(w, discordant - w, 800, 1) for w in cases}
        alone = np.mean([any(single[int(w)]["lo"] > 0 or single[int(w)]["hi"] < 0 for w in sweep) for sweep in wins])
        assert alone > 0.4  # the trap this protects from: 95 % intervals, one for each of 20 settings


def test_few_discordant_pairs_tie() -> None:
    """7 wins and no loss: the bootstrap excludes zero even at 1 - 0.05/20, a fair coin does it once in 64."""
    row = of_single_answers(7, 0, 800, 20)
    assert row["lo_simultaneous"] > 0 and row["mcnemar_p"] > 0.05 / 20 and row["verdict"] == "ties"
    assert (
        of_single_answers(14, 0, 800, 20)["verdict"] == "beats"
        and of_single_answers(0, 14, 800, 20)["verdict"] == "loses"
    )


def test_gain_on_math_is_found_and_said() -> None:
    found = judge(pick_strength(ladder(SyntheticRun()), gain=0.07))
    mild = found.filter(pl.col("label") == "pick boost=1 key_experts=1")
    assert dict(mild.select("domain", "verdict").rows())["math"] == "beats"
    assert dict(mild.select("domain", "verdict").rows())["code"] == "ties"
    strong = found.filter((pl.col("label") == "pick boost=4 key_experts=8") & (pl.col("domain") == "code"))
    assert strong["verdict"].item() == "loses"
    sentence = headline(found)
    assert sentence.startswith("Gain: pick boost=") and " beats stock (none) on math by +" in sentence
    assert "more of 16 points gain too" in sentence


def test_headline_of_a_null_sweep() -> None:
    found = judge(pick_strength(ladder(SyntheticRun())))
    assert headline(found) == "No gain: 16 of 16 pick points tie or lose against fixed_k at equal budget."


def test_intervals_are_nested_and_paired() -> None:
    found = judge(pick_strength(ladder(SyntheticRun()), gain=0.05))
    assert (
        found.filter((pl.col("lo_simultaneous") > pl.col("lo")) | (pl.col("hi_simultaneous") < pl.col("hi"))).height
        == 0
    )
    row = found.row(0, named=True)
    assert row["domain"] == "overall" and row["n_pairs"] == 2400 and row["reference_label"] == "none"
    assert row["difference"] == pytest.approx(row["accuracy"] - row["reference_accuracy"])
    assert row["difference"] == pytest.approx((row["wins"] - row["losses"]) / 2400)
    assert found.height == 16 * (1 + len(DOMAINS))


def test_reference_is_the_nearest_measured_budget() -> None:
    run = ladder(SyntheticRun(problems=100))
    for kept in (4.1, 4.4, 6.5, 7.9, 1.0):
        run.add("ban", {"lambda": kept}, kept=kept)
    found = judge(run).filter(pl.col("domain") == "overall")
    nearest = dict(found.select("label", "reference_label").rows())
    assert nearest == {
        "ban lambda=4.1": "fixed_k k=4", "ban lambda=4.4": "fixed_k k=4", "ban lambda=7.9": "none",
        "ban lambda=6.5": "fixed_k k=7",  # as far from 6: the one that keeps more is the harder rival
        "ban lambda=1.0": "fixed_k k=2",
    }  # fmt: skip
    gaps = dict(found.select("label", "budget_gap").rows())
    assert gaps["ban lambda=4.4"] == pytest.approx(0.4) and gaps["ban lambda=1.0"] == pytest.approx(-1.0)
    notes: dict[str, Any] = dict(found.select("label", "note").rows())
    assert notes["ban lambda=4.1"] is None
    assert notes["ban lambda=4.4"] == "not at equal budget: keeps 0.40 more experts per token than fixed_k k=4"
    assert "1.00 fewer" in notes["ban lambda=1.0"]


def test_a_win_by_a_larger_budget_is_no_gain() -> None:
    run = SyntheticRun()
    run.add("none")
    run.add("fixed_k", {"k": 2}, kept=2.0, shift=dict.fromkeys(DOMAINS, -0.2))
    run.add("ban", {"lambda": 0.5}, kept=4.5, shift=dict.fromkeys(DOMAINS, -0.03))
    found = judge(run)
    assert found["verdict"].unique().to_list() == ["beats"]
    assert headline(found) == (
        "No gain shown: 0 of 1 ban points tie or lose against fixed_k at equal budget; "
        "the other 1 has no fixed_k point within 0.25 experts per token."
    )


def test_only_done_points_of_the_same_set_up_are_compared() -> None:
    run = SyntheticRun(problems=50)
    run.add("none", status="invalid", reason="not engaged")
    run.add("none", model="other")
    run.add("pick", {"boost": 1})
    run.add("pick", {"boost": 2}, status="failed", reason="no")
    found = judge(run)
    assert found.select("label", "verdict").rows() == [("pick boost=1", "unmatched")]
    assert "same set-up" in found["note"].item()
    assert headline(found).startswith("No verdict")
    run.add("none", status="done")
    assert judge(run)["verdict"].to_list() == ["ties"] * 4


def test_partly_shared_problems_are_noted() -> None:
    run = SyntheticRun(problems=50)
    stock, pick = run.add("none"), run.add("pick", {"boost": 1})
    outcomes = run.outcomes
    outcomes[stock.fingerprint] = outcomes[stock.fingerprint].head(120)  # the third domain lacks 30 of 50
    notes = dict(verdicts([stock, pick], outcomes).select("domain", "note").rows())
    assert notes == {
        "overall": "paired on 120 of 150 problems", "math": None, "code": None,
        "knowledge": "paired on 20 of 50 problems",
    }  # fmt: skip


def test_points_frame_is_one_row_a_point_and_domain() -> None:
    run = ladder(SyntheticRun(problems=10))
    frame = points_frame(run.records)
    assert frame["domain"].to_list()[:4] == ["overall", *DOMAINS] and frame.height == 7 * 4
    assert frame.filter(pl.col("policy") == "none")["delta"].null_count() == 4


# ---------------------------------------------------------------- many at once


def test_holm_known_values() -> None:
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])  # the docstring's example
    assert holm([0.5, 0.9]) == [1.0, 1.0] and holm([]) == [] and holm([0.02]) == [0.02]
    p_values = np.random.default_rng(0).random(50).tolist()
    adjusted = holm(p_values)
    order = np.argsort(p_values)
    assert np.all(np.diff(np.array(adjusted)[order]) >= 0)
    assert all(
        a <= min(1.0, 50 * p) + 1e-12 for a, p in zip(adjusted, p_values, strict=True)
    )  # never worse than Bonferroni


def test_holm_finds_what_bonferroni_misses_and_the_interval_agrees() -> None:
    """Ten clear winners pay for themselves: the next one is one of ten, no longer one of twenty."""
    run = SyntheticRun(problems=600)
    run.add("none")
    for boost in range(20):
        run.add("pick", {"boost": boost})
    outcomes = run.outcomes
    wrong, right = np.flatnonzero(~run.stock), np.flatnonzero(run.stock)
    for index, (record, _) in enumerate(run.points[1:]):
        wins, losses = (60, 5) if index < 10 else (22, 6) if index == 10 else (5, 5)
        correct = run.stock.copy()
        correct[wrong[:wins]], correct[right[:losses]] = True, False
        outcomes[record.fingerprint] = outcomes[record.fingerprint].with_columns(correct=correct)
    found = verdicts(run.records, outcomes).filter(pl.col("domain") == "overall")
    row = found.row(10, named=True)
    assert 0.05 / 20 < row["mcnemar_p"] < 0.05 / 10 and row["p_holm"] == pytest.approx(10 * row["mcnemar_p"])
    assert row["verdict"] == "beats" and row["lo_simultaneous"] > 0
    assert of_single_answers(22, 6, 1800, 20)["verdict"] == "ties"  # Bonferroni alone
    assert found["verdict"].to_list() == ["beats"] * 11 + ["ties"] * 9


def test_every_verdict_has_both_of_its_reasons() -> None:
    found = judge(pick_strength(ladder(SyntheticRun()), gain=0.06))
    apart = found.filter(pl.col("verdict") != "ties")
    assert apart.height > 5 and apart["p_holm"].max() <= 0.05  # type: ignore[operator]
    assert ((apart["lo_simultaneous"] > 0) | (apart["hi_simultaneous"] < 0)).all()
    assert (found["p_holm"] >= found["mcnemar_p"]).all()


def test_against_stock_is_another_family() -> None:
    run = ladder(SyntheticRun(problems=200))
    run.add("ban", {"lambda": 0.3}, kept=3.0, churn=0.05)
    outcomes = run.outcomes
    records = run.records
    both = verdicts(records, outcomes, against=("fixed_k", "stock"))
    assert both.filter(pl.col("against") == "fixed_k").equals(verdicts(records, outcomes))
    stock = both.filter((pl.col("against") == "stock") & (pl.col("domain") == "overall"))
    assert stock["label"].to_list() == [*(f"fixed_k k={k}" for k in (7, 6, 5, 4, 3, 2)), "ban lambda=0.3"]
    assert set(stock["reference_label"]) == {"none"} and set(stock["comparisons"]) == {7}
    ban = stock.row(6, named=True)
    assert ban["budget_gap"] == -5.0 and ban["note"] is None, "fewer experts than stock is what it is for"
    assert headline(both) == headline(verdicts(records, outcomes))
    with pytest.raises(ValueError, match="names no rival"):
        verdicts(records, outcomes, against=("none",))


def test_ids_that_repeat_between_domains_are_not_crossed() -> None:
    run = SyntheticRun(problems=30)
    stock, pick = run.add("none"), run.add("pick", {"boost": 1}, churn=0.3)
    same_ids = pl.int_range(pl.len()).mod(30).cast(pl.String)
    outcomes = {name: frame.with_columns(problem_id=same_ids) for name, frame in run.outcomes.items()}
    assert verdicts([stock, pick], outcomes)["n_pairs"].to_list() == [90, 30, 30, 30]


def test_the_order_of_the_problems_does_not_matter() -> None:
    run = SyntheticRun(problems=50)
    stock, pick = run.add("none"), run.add("pick", {"boost": 1}, churn=0.3)
    outcomes = run.outcomes
    shuffled = outcomes | {pick.fingerprint: outcomes[pick.fingerprint].sample(fraction=1, shuffle=True, seed=1)}
    assert verdicts([stock, pick], shuffled).equals(verdicts([stock, pick], outcomes))
