"""Choosing on dev and reporting on test: the mistake is refused, and the report is not the promise."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import polars as pl
import pytest
from synthetic_run import SyntheticRun, changed, ladder

from banpick_exp.analysis import Chosen, choose, report_on_test
from banpick_exp.errors import UserError
from banpick_exp.records import PointRecord

BANS = ((0.5, 5.1), (0.6, 4.9), (0.2, 3.1))
Results = tuple[list[PointRecord], dict[str, pl.DataFrame]]


def sweep(
    split: str, seed: int, boosts: Sequence[float] = (1, 2, 3, 4), bans: Sequence[tuple[float, float]] = BANS
) -> Results:
    """A null sweep: every policy answers like stock but for churn. `bans`: (lambda, experts kept)."""
    run = SyntheticRun(seed, problems=150)
    run.add = partial(run.add, split=split)  # type: ignore[method-assign]
    ladder(run)
    for boost in boosts:
        run.add("pick", {"boost": boost}, churn=0.2)
    for threshold, kept in bans:
        run.add("ban", {"lambda": threshold}, kept=kept, churn=0.2)
    return [changed(record, task={"identity": f"data of {split}"}) for record in run.records], run.outcomes


@pytest.fixture(scope="module")
def dev() -> Results:
    return sweep("dev", 0)


@pytest.fixture(scope="module")
def test() -> Results:
    return sweep("test", 1)


def only(results: Results, chosen: list[Chosen]) -> Results:
    """The references and the chosen points."""
    labels = {point.label for point in chosen}
    records = [r for r in results[0] if r.policy_name in ("none", "fixed_k") or r.label in labels]
    return records, results[1]


def test_the_best_on_dev_is_chosen_and_reported_on_test(dev: Results, test: Results) -> None:
    (chosen,) = choose(*dev)
    assert chosen.candidates == 7 and chosen.budget is None
    accuracy = {r.label: r.measured.overall.accuracy for r in dev[0] if r.policy_name in ("pick", "ban")}
    assert chosen.label == max(accuracy, key=accuracy.__getitem__)
    assert chosen.dev_score == pytest.approx(max(accuracy.values()))
    report = report_on_test([chosen], *only(test, [chosen]))
    assert report["label"].unique().to_list() == [chosen.label]
    assert report["against"].unique(maintain_order=True).to_list() == ["fixed_k", "stock"]
    row = report.row(0, named=True)
    assert row["comparisons"] == 1, "adjusted over what was chosen, not over what was tried"
    assert row["dev_difference"] == chosen.dev_difference and row["difference"] != row["dev_difference"]
    (record,) = [r for r in test[0] if r.label == chosen.label]
    assert row["accuracy"] == record.measured.overall.accuracy


def test_what_dev_promises_is_too_good() -> None:
    """Best of 20 equals over 6 sweeps: the winners' gains on dev shrink on test, where none is real."""
    promised, measured = [], []
    for seed in range(6):
        (chosen,) = choose(*sweep("dev", 2 * seed, range(1, 21), ()), score="difference")
        report = report_on_test([chosen], *only(sweep("test", 2 * seed + 1, range(1, 21), ()), [chosen]))
        promised.append(chosen.dev_score)
        measured.append(report.row(0, named=True)["difference"])
    assert min(promised) > 0.01 and sum(promised) / 6 > sum(measured) / 6 + 0.015


def test_one_for_each_budget_and_rule(dev: Results) -> None:
    chosen = choose(*dev, per_budget=[3, 5, 8])
    assert [(point.policy["name"], point.budget, point.candidates) for point in chosen] == [
        ("ban", 3, 1), ("ban", 5, 2), ("pick", 8, 4),
    ]  # fmt: skip
    assert [point.policy["name"] for point in choose(*dev, per_policy=True)] == ["ban", "pick"]
    with pytest.raises(UserError, match=r"per_budget=7: no dev point .* keep 3\.10 to 8\.00"):
        choose(*dev, per_budget=[7])


def test_other_scores(dev: Results) -> None:
    fewest = choose(*dev, score=lambda record, _: -record.measured.overall.mean_kept)
    assert fewest[0].label == "ban lambda=0.2"
    (by_difference,) = choose(*dev, score="difference")
    assert by_difference.dev_score == by_difference.dev_difference
    with pytest.raises(UserError, match="score=speed is unknown"):
        choose(*dev, score="speed")
    with pytest.raises(UserError, match="fixed_k ladder"):
        choose([r for r in dev[0] if r.policy_name == "pick"], dev[1], score="difference")


def test_equal_scores_choose_the_smaller_budget(dev: Results) -> None:
    (chosen,) = choose(*dev, score=lambda record, _: 1.0)
    assert chosen.label == "ban lambda=0.2"


# ---------------------------------------------------------------- the mistake, refused


def test_choosing_on_test_is_refused(test: Results) -> None:
    with pytest.raises(UserError, match=r"task\.split=test, not dev: .*later reported on\. Run with task\.split=dev"):
        choose(*test)


def test_one_test_record_among_dev_is_enough(dev: Results, test: Results) -> None:
    with pytest.raises(UserError, match="not dev"):
        choose([*dev[0], test[0][3]], {**dev[1], **test[1]})


def test_reporting_on_dev_is_refused(dev: Results) -> None:
    chosen = choose(*dev)
    with pytest.raises(UserError, match=r"task\.split=dev, not test: .*the problems that chose"):
        report_on_test(chosen, *only(dev, chosen))


def test_a_point_that_was_not_chosen_is_refused(dev: Results, test: Results) -> None:
    chosen = choose(*dev)
    with pytest.raises(UserError, match="was not chosen on dev: reporting it would let test choose"):
        report_on_test(chosen, *test)


def test_a_chosen_point_that_was_not_run_is_missed(dev: Results, test: Results) -> None:
    chosen = choose(*dev)
    records = [r for r in test[0] if r.policy_name in ("none", "fixed_k")]
    with pytest.raises(UserError, match=r"did not finish on test.*python -m banpick_exp policy=.* task\.split=test"):
        report_on_test(chosen, records, test[1])


def test_the_same_problems_under_another_name_are_refused(dev: Results, test: Results) -> None:
    chosen = choose(*dev)
    records, outcomes = only(test, chosen)
    renamed = [changed(r, task={"identity": "data of dev"}) for r in records]
    with pytest.raises(UserError, match="the very problems of this test split"):
        report_on_test(chosen, renamed, outcomes)


@pytest.mark.parametrize(
    "forge", [lambda record: record, lambda record: record.label, lambda record: record.fingerprint]
)
def test_only_choose_makes_a_chosen(forge: Callable[[Any], Any], dev: Results, test: Results) -> None:
    with pytest.raises(UserError, match="choose"):
        report_on_test([forge(dev[0][-1])], *test)
    made_by_hand = dict(
        label="pick boost=4", policy={"name": "pick"}, command="", budget=None, mean_kept=8.0, dev_score=1.0,
        dev_difference=None, candidates=1, identity="", dev_data=None, made_by=None,
    )  # fmt: skip
    with pytest.raises(UserError, match="made by hand"):
        Chosen(**made_by_hand)  # type: ignore[arg-type]


def test_another_engine_is_another_point(dev: Results, test: Results) -> None:
    chosen = choose(*dev)
    records, outcomes = only(test, chosen)
    moved = [changed(r, engine={"max_num_seqs": 8}) for r in records]
    with pytest.raises(UserError, match="was not chosen"):
        report_on_test(chosen, moved, outcomes)


def test_nothing_to_choose_from_is_said(dev: Results) -> None:
    with pytest.raises(UserError, match="nothing to choose from"):
        choose([r for r in dev[0] if r.policy_name == "none"], dev[1])
