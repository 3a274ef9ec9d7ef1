"""Sums and figures of expert demand against what the definitions say, over every group, batch and sample by hand."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest

from banpick_exp.evaluation.demand.estimates import Features, compared, jackknife_error, rows_of
from banpick_exp.evaluation.demand.sums import Asked, Sums, layer_sums, srp, step_sums, touch_probability, window_sums

CASES = range(12)


def drawn(seed: int, sequences: int, experts: int, longest: int = 9) -> tuple[list[np.ndarray], list[int]]:
    """What tokens of some sequences keep, each one expert at least, and where answers begin."""
    rng = np.random.default_rng(seed)
    found, begins = [], []
    for _ in range(sequences):
        length = int(rng.integers(2, longest + 1))
        kept_TE = rng.random((length, experts)) < 0.35
        kept_TE[np.arange(length), rng.integers(0, experts, length)] = True
        found.append(kept_TE)
        begins.append(int(rng.integers(0, length)))
    return found, begins


def summed(kept: list[np.ndarray], begins: list[int], asked: Asked) -> Sums:
    return layer_sums(np.concatenate(kept), [len(each) for each in kept], begins, asked)


def windows_by_hand(kept: list[np.ndarray], begins: list[int], size: int) -> list[np.ndarray]:
    """[E] counts of each window that ends in an answer."""
    return [
        np.array([sum(each[t, e] for t in range(end - size + 1, end + 1)) for e in range(each.shape[1])])
        for each, begin in zip(kept, begins, strict=True)
        for end in range(begin, len(each))
        if end - size + 1 >= 0
    ]


@pytest.mark.parametrize("seed", CASES)
@pytest.mark.parametrize("size", [1, 2, 4])
def test_windows_are_those_of_the_definition(seed: int, size: int) -> None:
    kept, begins = drawn(seed, sequences=3, experts=6)
    found = summed(kept, begins, Asked(windows=(size,), caches=(1, 3, 6), batches=()))
    by_hand = windows_by_hand(kept, begins, size)
    assert found.windows.sum() == len(by_hand)
    assert found.experts.sum() == sum((counts > 0).sum() for counts in by_hand)
    for place, cache in enumerate((1, 3, 6)):
        groups = itertools.combinations(range(6), cache)
        held = list(groups)
        best = sum(max(counts[list(group)].sum() for group in held) for counts in by_hand)
        assert found.hits[:, 0, place].sum() == best, f"a cache of {cache}"
    assert found.hits[:, 0, 2].sum() == sum(counts.sum() for counts in by_hand), "all experts hit always"
    histogram = np.bincount(np.concatenate(by_hand), minlength=size + 1) if by_hand else np.zeros(size + 1)
    assert found.histogram[:, 0].sum(axis=0).tolist() == [0, *histogram[1:]]


@pytest.mark.parametrize("seed", CASES)
def test_srp_is_the_best_over_all_groups(seed: int) -> None:
    """Every choice of one group a window: 2 to the power of (windows times experts) of them."""
    rng = np.random.default_rng(seed)
    size, windows, experts = 3, 3, 4
    counts_WE = rng.integers(0, size + 1, (windows, experts))
    counts_WE[0, 0] = max(counts_WE[0, 0], 1)
    flat, demanded = counts_WE.ravel(), counts_WE.sum()
    choices = np.array(list(itertools.product((0, 1), repeat=windows * experts)))
    best = (2 * choices @ flat / (demanded + size * choices.sum(axis=1))).max()
    histogram = np.bincount(flat, minlength=size + 1)[None]
    histogram[:, 0] = 0
    assert srp(histogram, np.array([size]))[0] == pytest.approx(best, abs=1e-12)


def test_srp_of_one_token_and_of_equal_tokens_is_one() -> None:
    kept, begins = drawn(0, sequences=4, experts=8)
    asked = Asked(windows=(1, 3), caches=(), batches=())
    assert srp(summed(kept, begins, asked).histogram.sum(axis=0), np.array([1, 3]))[0] == 1
    same = [np.repeat(each[:1], 5, axis=0) for each in kept]
    assert srp(summed(same, [0] * 4, asked).histogram.sum(axis=0), np.array([1, 3])).tolist() == [1, 1]


def step_by_hand(answers: list[np.ndarray], batch: int, last: int) -> float:
    """The mean over all choices of `batch` sequences, step by step, summed."""
    total = 0.0
    for t in range(last):
        going = [each[t] for each in answers if len(each) > t]
        chosen = itertools.combinations(going, batch)
        total += float(np.mean([np.any(group, axis=0).sum() for group in chosen]))
    return total


@pytest.mark.parametrize("seed", CASES)
@pytest.mark.parametrize("batch", [1, 2, 4])
def test_a_step_is_the_mean_of_all_choices_of_sequences(seed: int, batch: int) -> None:
    kept, begins = drawn(seed, sequences=6, experts=5)
    answers = [each[begin:] for each, begin in zip(kept, begins, strict=True)]
    steps_B, touched_B, without_NB = step_sums(answers, (batch,))
    longest = max(map(len, answers))
    last = sum(sum(len(each) > t for each in answers) > batch for t in range(longest))
    assert steps_B.tolist() == [last]
    assert touched_B[0] == pytest.approx(step_by_hand(answers, batch, last), abs=1e-9)
    for number in range(len(answers)):
        others = answers[:number] + answers[number + 1 :]
        assert without_NB[number, 0] == pytest.approx(step_by_hand(others, batch, last), abs=1e-9)


def test_a_batch_of_one_touches_what_it_keeps_and_no_batch_has_too_few() -> None:
    answers = [np.eye(4, dtype=bool)[[0, 1, 2]], np.eye(4, dtype=bool)[[0, 3]]]
    steps_B, touched_B, without_NB = step_sums(answers, (1, 2, 9))
    assert steps_B.tolist() == [2, 0, 0] and touched_B.tolist() == [2, 0, 0], "at the third step only one goes on"
    assert without_NB[:, 0].tolist() == [2, 2]
    table = touch_probability(3, 2)
    assert table[3].tolist() == pytest.approx([0, 2 / 3, 1, 1]) and table[2].tolist()[:3] == pytest.approx([0, 1, 1])
    assert np.isnan(table[1]).all()


@pytest.mark.parametrize("seed", CASES)
def test_leaving_out_is_summing_without(seed: int) -> None:
    asked = Asked(windows=(2, 4), caches=(1, 2), batches=(1, 2))
    kept, begins = drawn(seed, sequences=6, experts=5)
    features = Features(asked)
    whole_F, without_NF = features.rows(summed(kept, begins, asked))
    steps = features.get(whole_F, "steps")
    for number in range(6):
        fewer = summed(kept[:number] + kept[number + 1 :], begins[:number] + begins[number + 1 :], asked)
        row_F, _ = features.rows(fewer)
        for name in ("tokens", "kept", "all_tokens", "all_kept", "windows", "experts", "histogram", "hits"):
            assert features.get(without_NF[number], name).tolist() == features.get(row_F, name).tolist(), name
        assert features.get(without_NF[number], "steps").tolist() == steps.tolist(), "the same steps"
    assert rows_of(features, [summed(kept, begins, asked)] * 2).without[1][0] == pytest.approx(whole_F + without_NF[0])


def test_the_jackknife_of_a_mean_is_its_standard_error() -> None:
    values = np.random.default_rng(0).normal(size=50)
    without = (values.sum() - values) / 49
    assert jackknife_error([without]) == pytest.approx(values.std(ddof=1) / np.sqrt(50))


ASKED = Asked(windows=(1, 3, 40), caches=(2, 4), batches=(1, 2, 30))


def sums_of(kept: list[np.ndarray], begins: list[int]) -> Sums:
    """Two equal layers."""
    one = summed(kept, begins, ASKED)
    return Sums.of((one + one).plain())


def test_figures_of_a_policy_beside_stock() -> None:
    """The policy keeps the first of the experts that stock keeps: its figures follow by hand."""
    kept, begins = drawn(1, sequences=8, experts=6, longest=12)
    first = [np.eye(6, dtype=bool)[each.argmax(axis=1)] for each in kept]
    stock = {"math": sums_of(kept[:4], begins[:4]), "code": sums_of(kept[4:], begins[4:])}
    policy = {"math": sums_of(first[:4], begins[:4]), "code": sums_of(first[4:], begins[4:])}
    found = compared(stock, policy, ASKED)
    answers = np.concatenate([each[begin:] for each, begin in zip(kept, begins, strict=True)])
    assert found.problems == 8 and found.tokens == found.stock_tokens == len(answers)
    assert found.kept.policy.value == 1 and found.kept.policy.ci95 == (1, 1)
    assert found.kept.stock.value == pytest.approx(answers.sum() / len(answers))
    assert found.kept.ratio is not None and found.kept.ratio.value == pytest.approx(len(answers) / answers.sum())
    assert found.all_kept.stock.value == pytest.approx(np.concatenate(kept).sum() / len(np.concatenate(kept)))
    assert [step.sequences for step in found.steps] == [1, 2], "no domain has 31 answers"
    assert found.steps[0].experts.policy.value == pytest.approx(1)
    assert found.steps[1].experts.policy.value < found.steps[1].experts.stock.value
    assert [window.tokens for window in found.windows] == [1, 3], "no answer has 40 tokens"
    one, three = found.windows
    assert one.srp.stock.value == one.srp.policy.value == 1 and one.experts.policy.value == 1
    by_hand = windows_by_hand(first, begins, 3)
    assert three.experts.policy.value == pytest.approx(np.mean([(counts > 0).sum() for counts in by_hand]))
    hits = sum(np.sort(counts)[-2:].sum() for counts in by_hand) / (3 * len(by_hand))
    two, four = three.caches
    assert (two.experts, four.experts) == (2, 4) and two.hit_rate.policy.value == pytest.approx(hits)
    assert two.misses.policy.value == pytest.approx(1 - hits), "one expert a token"
    assert four.hit_rate.policy.value == 1 and four.misses.policy.value == 0
    assert four.misses.stock.value > 0 and four.misses.difference.value == pytest.approx(-four.misses.stock.value)
    low, high = two.hit_rate.difference.ci95
    assert low < two.hit_rate.difference.value < high


def test_a_policy_that_changes_nothing_differs_by_nothing() -> None:
    kept, begins = drawn(2, sequences=6, experts=6)
    same = {"math": sums_of(kept, begins)}
    found = compared(same, same, ASKED)
    for each in (found.kept, found.steps[1].experts, found.windows[1].srp, found.windows[1].caches[0].misses):
        assert each.difference.value == 0 and each.difference.ci95 == (0, 0)
        assert each.ratio is not None and each.ratio.value == 1 and each.ratio.ci95 == pytest.approx((1, 1))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"math": 3, "code": 4}, "the same problems"),
        ({"math": 4}, "the same problems"),
        ({"math": 1, "code": 1}, "two problems"),
    ],
)
def test_what_cannot_be_compared_is_refused(change: dict[str, int], reason: str) -> None:
    kept, begins = drawn(3, sequences=4, experts=6)
    stock = {"math": sums_of(kept, begins), "code": sums_of(kept, begins)}
    policy = {name: sums_of(kept[:number], begins[:number]) for name, number in change.items()}
    with pytest.raises(ValueError, match=reason):
        compared(policy if reason == "two problems" else stock, policy, ASKED)


def test_the_interval_covers(trials: int = 200) -> None:
    """Draws sequences of two kinds of known demand; 95 % intervals of the experts of a step hold the truth."""
    rng = np.random.default_rng(5)
    experts, held = 12, 0
    rates_KE = np.array([np.linspace(0.05, 0.8, experts), np.linspace(0.7, 0.1, experts)])

    def sequences(number: int) -> list[np.ndarray]:
        kinds = rng.integers(0, 2, number)
        return [rng.random((6, experts)) < rates_KE[kind] for kind in kinds]

    truth = np.mean(
        [np.sum(1 - np.prod(1 - rates_KE[list(pair)], axis=0)) for pair in itertools.product((0, 1), repeat=2)]
    )
    asked = Asked(windows=(1,), caches=(1,), batches=(2,))
    for _ in range(trials):
        kept = sequences(30)
        own = {"math": summed(kept, [0] * 30, asked)}
        low, high = compared(own, own, asked).steps[0].experts.stock.ci95
        held += low <= truth <= high
    assert 0.90 <= held / trials <= 0.99


def test_sums_travel_as_plain_values() -> None:
    kept, begins = drawn(4, sequences=3, experts=6)
    found = summed(kept, begins, ASKED)
    plain: Any = found.plain()
    assert all(isinstance(value, int | list) for value in plain.values())
    again = Sums.of(plain)
    assert all(np.array_equal(getattr(again, name), getattr(found, name)) for name in plain)


def test_windows_longer_than_the_sequence_are_none() -> None:
    asked = Asked(windows=(4,), caches=(2,), batches=())
    windows_M, experts_M, histogram_MX, hits_MC = window_sums(np.ones((3, 5), dtype=bool), 0, asked)
    assert windows_M.tolist() == [0] and experts_M.tolist() == [0] and not histogram_MX.any() and not hits_MC.any()
    with pytest.raises(ValueError, match="3 tokens for sequences of 4"):
        layer_sums(np.ones((3, 5), dtype=bool), [4], [0], asked)
