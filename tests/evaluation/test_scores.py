"""Which score is measured for what is typed, and how a race over it begins."""

from __future__ import annotations

import pytest

from banpick_exp.evaluation.calibration.config import CalibrationConfig
from banpick_exp.evaluation.calibration.scores import BUDGETS, GAIN_OF_MODE, PARTS, SCORES, score_of
from banpick_exp.policy.bases.reinforcing import Reinforcing


@pytest.mark.parametrize(
    ("asked", "mode", "labelled", "expected"),
    [
        ("auto", "boost", True, "gain_boost"),
        ("auto", "range_add", True, "gain_add"),
        ("auto", "force_replace", True, "gain_replace"),
        ("auto", "boost", False, "insertion_kl"),
        ("gain", "boost", True, "gain_boost"),
        ("gain", "force_add", True, "gain_add"),
        ("gain", "range_replace", True, "gain_replace"),
        ("gain_add", "boost", True, "gain_add"),
        ("removal_kl", "boost", True, "removal_kl"),
        ("insertion_kl", "range_replace", False, "insertion_kl"),
        ("gain", None, True, "gain_add"),
    ],
)
def test_what_is_measured(asked: str, mode: str | None, labelled: bool, expected: str) -> None:
    assert score_of(asked, mode, labelled=labelled) == expected


def test_every_mode_has_its_gain() -> None:
    modes = Reinforcing.model_fields["mode"].annotation
    assert set(GAIN_OF_MODE) == set(getattr(modes, "__args__", ()))
    for mode, name in GAIN_OF_MODE.items():
        assert SCORES[name].labelled and mode.endswith(SCORES[name].change)


def test_labels_are_what_gives_a_sign() -> None:
    for name, score in PARTS.items():
        assert score.labelled == ("gain" in name) == (score.unit == "nats an answer")
        assert (score.change == "limit") == (name in BUDGETS)


def test_a_race_begins_with_a_share_and_everything_else_with_all() -> None:
    race, full = CalibrationConfig(), CalibrationConfig(method="full")
    assert race.first_share("insertion_kl") == 1 / 8 and race.first_share("gain_add") == 1 / 4
    assert {full.first_share(name) for name in PARTS} == {1}
    assert {race.first_share(name) for name in BUDGETS} == {1}, "every budget of a layer is looked at"


def test_what_chooses_is_no_part_of_what_is_measured() -> None:
    chosen = CalibrationConfig(path="/x", score="removal_kl", sensitivity="gold")
    assert chosen.measured() == CalibrationConfig().measured()
    assert CalibrationConfig(boost=1).measured() != CalibrationConfig().measured()
