"""Several answers a problem: intervals by problem that hold what they promise, and the spread of repeated runs."""

from __future__ import annotations

import itertools
import time

import numpy as np
import polars as pl
import pytest
from synthetic_run import SyntheticRun, changed, ladder

from banpick_exp.analysis import (
    average_at_n,
    average_interval,
    compare_counts,
    difference_at_n,
    guards,
    mcnemar_exact_p,
    repeat_spread,
    sign_flip_p,
    subtasks,
    verdicts,
    wilson,
)
from banpick_exp.analysis.compare import Comparison
from banpick_exp.records import PointRecord


def sampled(correct: np.ndarray, domain: str = "math") -> pl.DataFrame:
    """Outcomes of `correct` [problems, samples]."""
    problems, samples = correct.shape
    return pl.DataFrame(
        {
            "problem_id": np.repeat([f"p{i}" for i in range(problems)], samples),
            "domain": domain,
            "task": domain,
            "sample": np.tile(np.arange(samples), problems),
            "correct": correct.reshape(-1).astype(bool),
            "tokens": np.full(correct.size, 5),
        }
    )


def test_average_at_n_by_hand() -> None:
    found = average_at_n(pl.concat([sampled(np.array([[1, 1], [1, 0], [0, 0]])), sampled(np.array([[1, 1]]), "code")]))
    assert found["domain"].to_list() == ["overall", "math", "code"]
    assert found["accuracy"].to_list() == [5 / 8, 1 / 2, 1.0]
    assert found["n_problems"].to_list() == [4, 3, 1] and found["samples"].to_list() == [2, 2, 2]
    assert found.row(2)[2:4] == wilson(1, 1), "all right is no certainty"


def test_one_sample_is_a_plain_proportion() -> None:
    outcomes = sampled(np.array([[1], [0], [1], [1]]))
    row = average_at_n(outcomes.drop("sample")).row(0, named=True)
    assert (row["lo"], row["hi"]) == wilson(3, 4) and row["samples"] == 1


def test_the_interval_is_the_bootstrap_over_problems() -> None:
    rng = np.random.default_rng(0)
    correct = rng.binomial(8, rng.beta(2, 1, 60))
    draws = rng.choice(correct, (20_000, 60)).mean(axis=1) / 8
    assert average_interval(correct, 8)[1:] == pytest.approx(tuple(np.quantile(draws, [0.025, 0.975])), abs=0.004)


@pytest.mark.parametrize(("problems", "samples"), [(30, 16), (200, 4)])
def test_average_at_n_covers_where_independent_answers_would_not(problems: int, samples: int) -> None:
    """Problems differ in difficulty (Beta(1, 0.5): easy or hard), so the samples of one are alike."""
    rng = np.random.default_rng(1)
    truth, clustered, naive = 1 / 1.5, [], []
    for _ in range(600):
        counts = rng.binomial(samples, rng.beta(1, 0.5, problems))
        _, low, high = average_interval(counts, samples)
        clustered.append(low <= truth <= high)
        low, high = wilson(int(counts.sum()), problems * samples)
        naive.append(low <= truth <= high)
    assert 0.91 <= np.mean(clustered) <= 0.98
    assert np.mean(naive) < 0.85


def test_difference_at_n_covers_and_its_test_keeps_its_level() -> None:
    """A policy 3 points better on 150 problems of 4 samples each: coverage; and no difference: false alarms."""
    rng = np.random.default_rng(2)

    def compare(gain: float) -> Comparison:
        ability = rng.beta(2, 1, 150) * 0.97
        values = rng.binomial(4, ability + gain) - rng.binomial(4, ability)
        counts = {int(value): int((values == value).sum()) for value in np.unique(values)}
        return compare_counts(counts, 4, comparisons=1)

    covered = [row["lo"] <= 0.03 <= row["hi"] for row in (compare(0.03) for _ in range(500))]
    alarms = [row["mcnemar_p"] <= 0.05 for row in (compare(0.0) for _ in range(500))]
    assert 0.92 <= np.mean(covered) <= 0.98
    assert np.mean(alarms) <= 0.08


def test_unequal_n_of_two_points_is_allowed_and_within_a_point_refused() -> None:
    ours, theirs = sampled(np.array([[1, 1], [1, 0]])), sampled(np.array([[1, 0, 0], [1, 0, 0]]))
    row = difference_at_n(ours, theirs).row(0, named=True)
    assert row["difference"] == pytest.approx(3 / 4 - 1 / 3) and row["wins"] == 2 and row["n_problems"] == 2
    with pytest.raises(ValueError, match="1 to 2 samples"):
        average_at_n(ours.head(3))
    with pytest.raises(ValueError, match="no `sample` column"):
        average_at_n(ours.drop("sample"))
    with pytest.raises(ValueError, match="no problem in common"):
        difference_at_n(ours, theirs.with_columns(domain=pl.lit("code")))


def test_the_same_id_in_two_domains_is_two_problems() -> None:
    both = pl.concat([sampled(np.array([[1], [1]])), sampled(np.array([[0], [0]]), "code")]).drop("sample")
    assert difference_at_n(both, both)["n_problems"].to_list() == [4, 2, 2]


@pytest.mark.parametrize(
    "differences", [[2, 1, -1, 3], [2, 2, 1, 1, 0], [1, -1, 2, -2], [3, 1, 1, 1, 1, -1, 0, 0], [2, 2, -2]]
)
def test_sign_flips_by_enumeration(differences: list[int]) -> None:
    observed = abs(sum(differences))
    flips = itertools.product((-1, 1), repeat=len(differences))
    sums = [abs(sum(s * d for s, d in zip(signs, differences, strict=True))) for signs in flips]
    expected = np.mean([total >= observed for total in sums])
    counts = {value: differences.count(value) for value in set(differences)}
    assert sign_flip_p(counts) == pytest.approx(expected)


def test_sign_flips_of_single_answers_are_mcnemar() -> None:
    assert sign_flip_p({1: 9, 0: 100, -1: 2}) == mcnemar_exact_p(9, 2) and sign_flip_p({0: 5}) == 1.0
    assert sign_flip_p({4: 9, -4: 2}) == mcnemar_exact_p(9, 2)


def test_sign_flips_of_many_problems_by_convolution() -> None:
    counts = {3: 20, 2: 40, 1: 200, -1: 150, -2: 30, -3: 15, 0: 500}
    probability: np.ndarray = np.ones(1)
    for size in (1, 2, 3):
        for _ in range(counts[size] + counts[-size]):
            probability = np.convolve(probability, [0.5, *[0.0] * (2 * size - 1), 0.5])
    observed = sum(value * count for value, count in counts.items())
    middle = len(probability) // 2
    assert sign_flip_p(counts) == pytest.approx(2 * probability[middle + observed :].sum(), rel=1e-6)


def test_verdicts_of_sampling_runs_are_paired_by_problem() -> None:
    run = SyntheticRun(problems=60)
    stock, pick = run.add("none"), run.add("pick", {"boost": 1})
    rng = np.random.default_rng(3)
    ability = rng.beta(2, 1, 60) * 0.8
    frames = [
        pl.concat([sampled(rng.binomial(1, p[:, None], (60, 8)), domain) for domain in ("math", "code", "knowledge")])
        for p in (ability, ability + 0.2)
    ]
    found = verdicts([stock, pick], dict(zip((stock.fingerprint, pick.fingerprint), frames, strict=True)))
    row = found.row(0, named=True)
    assert row["verdict"] == "beats" and row["n_pairs"] == 180 and row["difference"] == pytest.approx(0.2, abs=0.05)
    assert row["difference"] == pytest.approx(row["accuracy"] - row["reference_accuracy"])


def test_a_million_problems_of_one_point_fit() -> None:
    """Memory and precision of the window, not time: 2 million sums would not be needed."""
    row = compare_counts({1: 30_100, 0: 940_000, -1: 29_900}, 1, 1000)
    assert row["difference"] == pytest.approx(200 / 1e6) and row["verdict"] == "ties"
    assert row["lo"] == pytest.approx(2e-4 - 1.96 * np.sqrt(60_000) / 1e6, abs=3e-6)


# ---------------------------------------------------------------- repeats


def repeated() -> tuple[list[PointRecord], dict[str, pl.DataFrame]]:
    run = SyntheticRun(problems=100)
    for sequences in (64, 128, 256):
        run.add("none", engine={"max_num_seqs": sequences}, churn=0.05)
    run.add("pick", {"boost": 1}, churn=0.05)
    run.add("fixed_k", {"k": 4}, engine={"tensor_parallel_size": 2})
    run.add("fixed_k", {"k": 4})
    return run.records, run.outcomes


def test_repeats_differ_in_batching_alone() -> None:
    records, outcomes = repeated()
    for index in (0, 1):  # as a sweep over it labels its points
        sequences = records[index].engine["max_num_seqs"]
        records[index] = changed(records[index], label=f"{records[index].label} engine.max_num_seqs={sequences}")
    found = repeat_spread(records, outcomes)
    assert found["domain"].to_list() == ["overall", "math", "code", "knowledge"]  # of `none` only: tp 2 is no repeat
    row = found.row(0, named=True)
    scores = [record.measured.overall.accuracy for record in records[:3]]
    assert row["repeats"] == 3 and row["label"] == "none"
    assert row["accuracy_mean"] == pytest.approx(np.mean(scores)) and row["accuracy_sd"] == pytest.approx(
        np.std(scores, ddof=1)
    )
    assert (row["accuracy_min"], row["accuracy_max"]) == (min(scores), max(scores))
    assert row["settings"] == [f"engine.max_num_seqs={n}" for n in (64, 128, 256)]
    assert row["sampling_error"] == pytest.approx(np.sqrt(np.mean(scores) * (1 - np.mean(scores)) / 300))
    answers = [outcomes[record.fingerprint]["correct"].to_numpy() for record in records[:3]]
    varies = (answers[0] != answers[1]) | (answers[0] != answers[2])
    assert row["unstable"] == pytest.approx(varies.mean()) and 0 < row["unstable"] < 0.15


def test_a_recorded_repeat_or_seed_is_a_repeat() -> None:
    run = SyntheticRun(problems=50)
    records = [changed(run.add("none", engine={"seed": seed}, churn=0.1), repeat=seed) for seed in range(3)]
    found = repeat_spread(records)
    assert found["repeats"].to_list() == [3] * 4 and found["unstable"].null_count() == 4
    assert found["settings"][0].to_list()[1] == "engine.seed=1 repeat=1"
    assert repeat_spread(records[:1]).height == 0


def test_a_million_outcomes_analyse_in_under_ten_seconds() -> None:
    """26 points on 39,000 problems of 12 sub-tasks: verdicts against both rivals, guards and sub-tasks, CPU time."""
    run, rng, n = SyntheticRun(problems=2), np.random.default_rng(0), 39_000
    ladder(run)
    for boost in range(19):
        run.add("pick", {"boost": boost})
    problems = {
        "problem_id": [f"p{i:05d}" for i in range(n)],
        "domain": np.repeat(["math", "code", "knowledge"], n // 3),
    }
    frame = pl.DataFrame(problems | {"task": [f"part{i % 4}" for i in range(n)]})
    stock = rng.random(n) < 0.7
    outcomes = {
        record.fingerprint: frame.with_columns(
            correct=pl.Series(stock ^ (rng.random(n) < 0.03)), truncated=pl.Series(rng.random(n) < 0.01),
            tokens=pl.Series(rng.integers(5, 20, n)), answer=pl.Series(rng.integers(0, 50, n).astype(str)),
        )
        for record, _ in run.points
    }  # fmt: skip
    records = run.records
    assert sum(each.height for each in outcomes.values()) >= 1_000_000
    begin = time.process_time()
    found = verdicts(records, outcomes, against=("fixed_k", "stock"))
    looked, parts = guards(records, outcomes), subtasks(records, outcomes)
    assert time.process_time() - begin < 10
    assert found.height == (19 + 25) * 4 and looked.height >= 26 and parts.height == 25 * 12
