"""Who is stopped in a race, and how often wrongly: on answers drawn from a seed."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import polars as pl
import pytest

from banpick_exp.analysis.pairing import Answers, Layout, answers_of
from banpick_exp.evaluation.cut import Cut, block_ends, drawn_order
from banpick_exp.sweep.search.elimination import Standing, StoppingRule, rule_of, stops, upper_share

ROUNDS = (0.0625, 0.125, 0.25, 0.5)


def layout(problems: int) -> Layout:
    names = [f"p{i}" for i in range(problems)]
    return Layout(pl.DataFrame({"domain": ["math"] * problems, "problem_id": names, "task": ["add"] * problems}))


def answered(correct: np.ndarray) -> Answers:
    return Answers(layout(len(correct)), 1, {"correct": correct.astype(np.int64)})


def standing(
    correct: np.ndarray, kept: float = 8.0, label: str = "p", stays: bool = False, reference: bool = False
) -> Standing:
    return Standing(label=label, answers=answered(correct), mean_kept=kept, stays=stays, reference=reference)


def right(problems: int, correct: int) -> np.ndarray:
    return np.arange(problems) < correct


def test_a_point_that_is_sure_to_lie_below_one_that_keeps_no_more_is_stopped() -> None:
    field = {"stock": standing(right(300, 200), label="none", stays=True), "worse": standing(right(300, 164))}
    found = stops(field, rule_of(points=30, references=8, rounds=5))
    assert list(found) == ["worse"]
    reason = found["worse"].reason(problems=2400)
    assert (
        reason.startswith("after 300 of 2400 problems: 12.0 points [") and "below none, which keeps no more" in reason
    )
    comparison = found["worse"].comparison
    assert comparison is not None and comparison["mcnemar_p"] == pytest.approx(2 * 0.5**36)


@pytest.mark.parametrize(
    ("correct", "kept"),
    [(200, 8.0), (199, 8.0), (260, 8.0), (100, 7.9)],
    ids=["tied", "one behind", "better", "worse but keeps fewer"],
)
def test_a_point_that_can_still_reach_the_front_goes_on(correct: int, kept: float) -> None:
    field = {"stock": standing(right(300, 200), stays=True), "other": standing(right(300, correct), kept=kept)}
    assert stops(field, StoppingRule(comparisons=1)) == {}


def test_references_and_finished_points_stay_and_a_candidate_may_stop_another() -> None:
    field = {
        "fixed_k": standing(right(300, 100), stays=True),
        "good": standing(right(300, 250), label="good"),
        "poor": standing(right(300, 120)),
    }
    found = stops(field, StoppingRule(comparisons=100))
    assert list(found) == ["poor"] and found["poor"].rival == "good"


def test_few_problems_are_not_enough_for_many_looks() -> None:
    field = {"stock": standing(right(40, 30), stays=True), "other": standing(right(40, 20))}
    assert list(stops(field, StoppingRule(comparisons=1))) == ["other"], "ten losses and no win: p = 2 / 1024"
    assert stops(field, StoppingRule(comparisons=1000)) == {}


def test_the_family_counts_every_look_and_grows_as_the_error_rate_falls() -> None:
    assert rule_of(points=30, references=8, rounds=5) == StoppingRule(comparisons=22 * 29 * 4)
    assert rule_of(points=30, references=8, rounds=5, error_rate=0.01).comparisons == 5 * 22 * 29 * 4
    assert rule_of(points=1, references=1, rounds=5) == StoppingRule(comparisons=1)
    halved = rule_of(points=30, references=8, rounds=5, margin=0.02)
    assert halved == StoppingRule(comparisons=2 * 22 * 29 * 4, margin=0.02, alpha=0.025 / (22 * 4))


def test_a_margin_stops_what_cannot_gain_it_and_nothing_else() -> None:
    rule = rule_of(points=30, references=8, rounds=5, margin=0.03)
    stock = standing(right(600, 400), label="none", stays=True, reference=True)
    ties, gains = standing(right(600, 401)), standing(right(600, 425))
    assert stops({"stock": stock, "gains": gains}, rule) == {}
    found = stops({"stock": stock, "ties": ties}, rule)
    assert stops({"stock": stock, "ties": ties}, rule_of(points=30, references=8, rounds=5)) == {}, "a tie, no margin"
    bound = upper_share(1, 600, rule.alpha / 2)
    assert found["ties"].gain == bound < 0.03
    assert found["ties"].reason(2400) == (
        f"after 600 of 2400 problems: at most {100 * bound:.1f} points above none, which keeps no more (exact bound)"
    )
    fewer = standing(right(600, 401), kept=7.0)
    assert stops({"stock": stock, "fewer": fewer}, rule) == {}, "nothing that keeps no more is as good"


def test_a_true_gain_of_the_margin_is_stopped_no_more_often_than_promised() -> None:
    """At each look on its own 5 % here, so that chance would show an error in the bound."""
    rng, looks, margin = np.random.default_rng(3), 400, 0.05
    rule = StoppingRule(comparisons=10**9, margin=margin, alpha=0.05)
    wrong = 0
    for _ in range(looks):
        stock = rng.random(300) < 0.6
        gained = stock | (rng.random(300) < margin / 0.4)  # right on 5 % more of all problems
        field = {"stock": standing(stock, stays=True, reference=True), "gains": standing(gained)}
        wrong += bool(stops(field, rule))
    assert 0 < wrong <= 0.05 * looks + 3 * math.sqrt(0.05 * 0.95 * looks)


def test_the_exact_bound_of_a_share() -> None:
    assert upper_share(0, 100, 0.05) == pytest.approx(1 - 0.05 ** (1 / 100))
    assert upper_share(100, 100, 0.05) == 1
    at = upper_share(3, 40, 0.01)
    tail = sum(math.comb(40, k) * at**k * (1 - at) ** (40 - k) for k in range(4))
    assert tail == pytest.approx(0.01)


def test_null_races_stop_a_point_no_more_often_than_promised() -> None:
    """Candidates that answer as well as stock and as each other, churning: any stop is an error."""
    races, candidates, problems = 200, 5, 400

    def errors(rule: StoppingRule) -> int:
        rng = np.random.default_rng(7)
        return sum(_any_stop(rng, candidates, problems, rule) for _ in range(races))

    honest = errors(rule_of(candidates + 1, 1, len(ROUNDS) + 1))
    bound = 0.05 * races + 3 * math.sqrt(0.05 * 0.95 * races)
    assert honest <= bound
    alone = errors(StoppingRule(comparisons=1))
    assert alone > bound, "without the family, looking often does stop equals: this test can fail"


def _any_stop(rng: np.random.Generator, candidates: int, problems: int, rule: StoppingRule) -> bool:
    hard = rng.random(problems)
    draw: Callable[[], np.ndarray] = lambda: rng.random(problems) < np.where(hard < 0.7, 0.9, 0.15)  # noqa: E731
    answers = [draw() for _ in range(candidates + 1)]
    for share in ROUNDS:
        end = round(share * problems)
        shared = layout(end)
        field = {
            str(i): Standing(
                label=str(i),
                answers=Answers(shared, 1, {"correct": a[:end].astype(np.int64)}),
                mean_kept=8,
                stays=i == 0,
            )
            for i, a in enumerate(answers)
        }
        if stops(field, rule):
            return True
    return False


def test_blocks_cover_every_problem_once_in_one_drawn_order() -> None:
    shares = (0.0625, 0.125, 0.25, 0.5, 1.0)
    assert block_ends(800, shares) == [50, 100, 200, 400, 800]
    cut = Cut(shares=shares, seed=0)
    assert len(cut) == 5
    blocks = [cut.indices(800, "math", number) for number in range(5)]
    assert sorted(index for block in blocks for index in block) == list(range(800))
    assert blocks[0] != list(range(50)), "a file may be sorted by sub-task"
    assert drawn_order(800, "math", 0) == drawn_order(800, "math", 0) != drawn_order(800, "code", 0)
    assert sorted(i for n in range(5) for i in cut.indices(3, "math", n)) == [0, 1, 2]


def test_samples_of_a_problem_are_one_pair() -> None:
    """Four samples a problem, all worse on ten problems: the signs of ten problems decide, not of forty answers."""

    def frame(bad: int) -> pl.DataFrame:
        rows = [
            {"domain": "math", "problem_id": f"p{i}", "task": "add", "sample": s, "correct": i >= bad}
            for i in range(40)
            for s in range(4)
        ]
        return pl.DataFrame(rows)

    field = {
        "stock": Standing(label="none", answers=answers_of(frame(0)), mean_kept=8, stays=True),
        "other": Standing(label="other", answers=answers_of(frame(10)), mean_kept=8),
    }
    comparison = stops(field, StoppingRule(comparisons=1))["other"].comparison
    assert comparison is not None and comparison["mcnemar_p"] == pytest.approx(2 / 2**10)
