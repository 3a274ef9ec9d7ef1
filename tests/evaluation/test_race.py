"""Races for the highest scores: what they measure, what they never lose, and how often a bound claims too much."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from banpick_exp.evaluation.calibration import race
from banpick_exp.evaluation.calibration.race import Scored

T_TABLE = {
    # one-sided levels of the usual printed tables
    (0.95, 10): 1.812, (0.975, 10): 2.228, (0.99, 10): 2.764, (0.995, 10): 3.169, (0.9995, 10): 4.587,
    (0.95, 30): 1.697, (0.975, 30): 2.042, (0.995, 30): 2.750, (0.9995, 30): 3.646,
    (0.95, 120): 1.658, (0.975, 120): 1.980, (0.995, 120): 2.617, (0.9995, 120): 3.373,
}  # fmt: skip


class Noisy:
    """Candidates with a true mean each, and what was asked about them."""

    def __init__(self, means: Sequence[float], samples: int, seed: int, noise: float = 1.0) -> None:
        draw = np.random.default_rng(seed)
        self.values = np.array(means)[:, None] + noise * draw.normal(size=(len(means), samples))
        self.asked: list[tuple[int, int]] = []

    def __call__(self, candidates: Sequence[int], samples: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
        self.asked += [(c, s) for c in candidates for s in samples]
        return self.values[np.ix_(list(candidates), list(samples))], np.ones(len(samples))


class TestWork:
    @pytest.mark.parametrize("candidates", [1, 7, 40, 128])
    @pytest.mark.parametrize("samples", [1, 2, 3, 64, 299])
    @pytest.mark.parametrize("first_share", [1 / 8, 1 / 4, 1])
    @pytest.mark.parametrize("wanted", [1, 16])
    def test_what_is_planned_is_what_is_measured(
        self, candidates: int, samples: int, first_share: float, wanted: int
    ) -> None:
        noisy = Noisy([0] * candidates, samples, seed=candidates)
        found = race.score(candidates, samples, noisy, first_share=first_share, wanted=wanted)
        assert len(noisy.asked) == race.planned(candidates, samples, first_share=first_share, wanted=wanted)
        assert len(set(noisy.asked)) == len(noisy.asked), "no value is measured twice"
        assert found.samples.sum() == len(noisy.asked)
        assert found.samples.max() == samples
        assert (found.samples == samples).sum() >= min(wanted, candidates)

    def test_every_sample_is_in_one_round(self) -> None:
        for samples in range(1, 70):
            for share in (1 / 8, 1 / 4, 1):
                parts = race.rounds(samples, share)
                assert [s for part in parts for s in part] == list(range(samples))
                assert all(len(part) for part in parts)

    def test_nothing_is_dropped_where_the_first_round_is_all(self) -> None:
        noisy = Noisy(list(range(50)), 20, seed=0)
        found = race.score(50, 20, noisy, first_share=1, wanted=1)
        assert (found.samples == 20).all()
        assert found.value == pytest.approx(noisy.values.mean(-1))
        assert found.error == pytest.approx(noisy.values.std(-1, ddof=1) / math.sqrt(20))

    def test_halves_are_dropped_by_what_was_seen_so_far(self) -> None:
        """By hand: 8 candidates, 8 samples, 1 wanted: rounds of 2, 2 and 4 samples with 8, 4 and 2 of them."""
        noisy = Noisy(range(8), 8, seed=0, noise=0)
        found = race.score(8, 8, noisy, first_share=1 / 4, wanted=1)
        assert found.samples.tolist() == [2, 2, 2, 2, 4, 4, 8, 8]
        assert race.planned(8, 8, first_share=1 / 4, wanted=1) == 4 * 2 + 2 * 4 + 2 * 8


@pytest.mark.parametrize("first_share", [1 / 8, 1 / 4])
def test_one_that_is_clearly_best_is_always_found(first_share: float) -> None:
    """Six of its errors in the first round above the others."""
    for seed in range(300):
        best = seed % 128
        means = [6 / math.sqrt(64 * first_share) * (number == best) for number in range(128)]
        found = race.score(128, 64, Noisy(means, 64, seed), first_share=first_share, wanted=4)
        assert found.samples[best] == 64 and np.argmax(np.where(found.samples == 64, found.value, -9)) == best


class TestErrors:
    def test_of_a_ratio_against_the_bootstrap(self) -> None:
        """KL: summed over positions, of which sequences have more or fewer."""
        draw = np.random.default_rng(3)
        weights_S = draw.integers(1, 25, 120).astype(float)
        rates_S = draw.gamma(2, 0.05, 120) * (1 + weights_S / 25)
        sums_S = rates_S * weights_S

        def measure(_: Any, samples: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
            return sums_S[None, list(samples)], weights_S[list(samples)]

        found = race.score(1, 120, measure, first_share=1, wanted=1)
        picks = draw.integers(0, 120, (20000, 120))
        again = sums_S[picks].sum(-1) / weights_S[picks].sum(-1)
        assert found.value[0] == pytest.approx(sums_S.sum() / weights_S.sum())
        assert found.error[0] == pytest.approx(again.std(), rel=0.03)
        unweighted = rates_S.std(ddof=1) / math.sqrt(120)
        assert abs(unweighted / again.std() - 1) > 0.05, (
            "the error of a plain mean would be another: a test that can fail"
        )

    def test_of_one_sample_it_is_not_known(self) -> None:
        found = race.score(3, 1, Noisy([1, 2, 3], 1, 0), first_share=1, wanted=1)
        assert np.isnan(found.error).all() and np.isneginf(race.lower_bounds(found, tried=3)).all()


@pytest.mark.parametrize(("probability", "freedom"), T_TABLE)
def test_quantiles_against_the_table(probability: float, freedom: int) -> None:
    assert race.t_quantile(probability, freedom) == pytest.approx(T_TABLE[probability, freedom], rel=0.01)


def scored(value: Sequence[float], error: Sequence[float], samples: Sequence[int]) -> Scored:
    return Scored(value=np.array(value, float), error=np.array(error, float), samples=np.array(samples))


class TestLowerBounds:
    def test_by_hand(self) -> None:
        """Holm over 4 that were tried, 31 samples each, one-sided 5 %: t(30) at 1.25 %, 1.667 %, 2.5 %, 5 %.

        t are 5, 2.3, 2 and 1.8: the second passes 2.231 at 0.05/3; the third misses 2.042, so the fourth, which alone
        would pass 1.697, claims nothing.
        """
        found = scored([1.8, 5, 2.0, 2.3], [1, 1, 1, 1], [31] * 4)
        lower = race.lower_bounds(found, tried=4)
        assert lower[1] == pytest.approx(5 - 2.360, abs=0.01)
        assert lower[3] == pytest.approx(2.3 - 2.231, abs=0.01) and lower[3] > 0
        assert lower[2] == pytest.approx(2.0 - 2.042, abs=0.01) and lower[2] < 0
        assert lower[0] <= 0

    def test_what_was_tried_and_dropped_still_counts(self) -> None:
        """t = 2.3 of 31 problems: 1.4 % by chance, which is enough for one that was tried and not for 128."""
        found = scored([2.3], [1], [31])
        assert race.lower_bounds(found, tried=1)[0] > 0 > race.lower_bounds(found, tried=128)[0]

    def test_those_that_a_race_dropped_claim_nothing(self) -> None:
        lower = race.lower_bounds(scored([9, 1, 5], [0.1, 0.1, 0.1], [16, 64, 64]), tried=3)
        assert np.isneginf(lower[0]) and (lower[1:] > 0).all()

    def test_one_that_changes_nothing_claims_nothing(self) -> None:
        lower = race.lower_bounds(scored([0, 0.5], [0, 0.01], [64, 64]), tried=2)
        assert np.isneginf(lower[0]) and lower[1] > 0

    @pytest.mark.parametrize("first_share", [1, 1 / 4])
    @pytest.mark.parametrize("others", [0.0, -0.5])
    def test_they_are_wrong_together_in_at_most_5_percent(self, first_share: float, others: float) -> None:
        """2000 times 40 candidates none of which helps: any bound above 0 is wrong. With a race too."""
        wrong, runs = 0, 2000
        for seed in range(runs):
            means = [0.0] * 20 + [others] * 20
            found = race.score(40, 60, Noisy(means, 60, seed), first_share=first_share, wanted=8)
            wrong += bool((race.lower_bounds(found, tried=40) > 0).any())
        assert wrong / runs <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / runs)
        if first_share == 1 and others == 0:
            assert wrong / runs >= 0.05 - 4 * math.sqrt(0.05 * 0.95 / runs), "bounds that never claim are no bounds"

    def test_a_true_null_beside_strong_ones_is_still_guarded(self) -> None:
        """Where some do help, the levels of the rest grow: Holm's step. The nulls stay at 5 % all together."""
        wrong, runs = 0, 2000
        for seed in range(runs):
            found = race.score(40, 60, Noisy([2.0] * 20 + [0.0] * 20, 60, seed), first_share=1, wanted=40)
            lower = race.lower_bounds(found, tried=40)
            assert (lower[:20] > 0).all(), "15 errors above 0"
            wrong += bool((lower[20:] > 0).any())
        assert wrong / runs <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / runs)
        assert wrong / runs >= 0.05 - 4 * math.sqrt(0.05 * 0.95 / runs), (
            "Bonferroni over all 40 would claim half as much"
        )

    def test_each_value_is_a_bound_of_its_own_mean(self) -> None:
        """Held together is only what is claimed to be above 0: values far apart are each wrong in at most 5 %."""
        missed, runs, truth = np.zeros(10), 2000, 2 + 3.0 * np.arange(10)
        for seed in range(runs):
            found = race.score(10, 40, Noisy(truth.tolist(), 40, seed), first_share=1, wanted=10)
            missed += race.lower_bounds(found, tried=10) > truth
        assert (missed / runs <= 0.05 + 4 * math.sqrt(0.05 * 0.95 / runs)).all()


class TestHowSure:
    def test_by_hand(self) -> None:
        """The next is 1 with error 0.3; 1.96 * hypot(0.4, 0.3) = 0.98, so 2.0 is sure and 1.97 is not."""
        found = scored([2.0, 1.97, 1, 5, -3], [0.4, 0.4, 0.3, 0.4, 0.1], [64] * 5)
        assert race.surely_above(found, 3) == 2
        assert race.surely_above(found, 5) == 5, "nobody is left to be confused with"

    def test_those_without_an_error_are_never_sure(self) -> None:
        assert race.surely_above(scored([3, 2, 1], [math.nan] * 3, [1] * 3), 1) == 0


def test_rank_correlation_against_its_formula() -> None:
    """Without ties: 1 - 6 sum d^2 / (n (n^2 - 1))."""
    draw = np.random.default_rng(0)
    one, other = draw.normal(size=30), draw.normal(size=30)
    difference = one.argsort().argsort() - other.argsort().argsort()
    expected = 1 - 6 * (difference**2).sum() / (30 * (30**2 - 1))
    assert race.rank_correlation(one, other) == pytest.approx(expected)
    assert race.rank_correlation(np.array([1, 1, 2, 2]), np.array([1, 1, 5, 5])) == pytest.approx(1)
    assert math.isnan(race.rank_correlation(np.ones(4), np.arange(4)))
