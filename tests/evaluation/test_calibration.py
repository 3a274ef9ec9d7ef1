"""What a policy reads of a calibration: derived quantities against their formulas, and the way through the files."""

from __future__ import annotations

import doctest
import itertools
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from measured_arrays import measured, scored
from test_artifact import FINGERPRINT, write

from banpick_exp.errors import UserError
from banpick_exp.evaluation.calibration import arrays, measure, race, views
from banpick_exp.evaluation.calibration.arrays import Scores
from banpick_exp.evaluation.calibration.config import CalibrationConfig
from banpick_exp.policy import Calibration, MoeShape
from banpick_exp.policy import calibration as statistics
from banpick_exp.sweep.plan import plan_sweep
from banpick_exp.tasks.config import TaskConfig

SHAPE = MoeShape(num_layers=2, num_experts=3, top_k=2)


def domain(seed: int, **changes: Any) -> arrays.DomainCalibration:
    """A calibration of 100 tokens, 10 of them markers, with made-up counts."""
    draw = np.random.default_rng(seed)
    marker_usage = draw.integers(0, 11, (2, 3))
    similarity = np.broadcast_to(np.eye(3, dtype=np.float32), (2, 3, 3)).copy()
    similarity[1, 0, 2] = similarity[1, 2, 0] = 0.25
    found = {
        "usage": draw.integers(1, 100, (2, 3)),
        "tokens": np.array([100, 100]),
        "observed_usage": marker_usage + draw.integers(0, 91, (2, 3)),
        "observed_tokens": np.array([100, 100]),
        "marker_usage": marker_usage,
        "marker_tokens": np.array([10, 10]),
        "tail_square": np.array([0.02, 0.01], dtype=np.float32),
        "fisher": np.array([3.0, 1.0], dtype=np.float32),
        "similarity": similarity,
        "layer_kl": np.array([0.03, 0.005], dtype=np.float32),
        "ratio_range": np.array([0.4, 0.9], dtype=np.float32),
    }
    made = measured(2, 3, **{**found, **changes})
    made.scores["removal_kl"] = scored(draw.random((2, 3)), "removal_kl")
    made.scores["gain_add"] = scored(draw.normal(size=(2, 3)), "gain_add")
    return made


@pytest.mark.parametrize("module", [measure, race, views], ids=lambda m: m.__name__)
def test_the_worked_examples(module: Any) -> None:
    result = doctest.testmod(module, extraglobs={"np": np})
    assert result.attempted > 0 and result.failed == 0


def test_fisher_is_never_negative_and_0_where_nothing_was_dropped() -> None:
    found = measure.fisher_information(np.array([1e-3, -1e-9, 0.5, 0.0]), np.array([2e-3, 0.1, 0.0, 0.1]))
    assert found.dtype == np.float32 and found.tolist() == [1.0, 0.0, 0.0, 0.0]


class TestNpmi:
    def npmi(self, usage: int, marker_usage: int, marker_tokens: int = 10) -> float:
        counts = [[usage]], [100], [[marker_usage]], [marker_tokens]
        ((value,),) = views.npmi_of(*map(np.array, counts)).tolist()
        return float(value)

    def test_its_landmarks(self) -> None:
        assert self.npmi(20, 0) == -1, "never together"
        assert self.npmi(0, 0) == -1, "never selected"
        assert self.npmi(20, 0, marker_tokens=0) == -1, "no marker"
        assert self.npmi(10, 10) == pytest.approx(1), "at markers and nowhere else"
        assert self.npmi(100, 100, marker_tokens=100) == 1, "everything always"
        assert self.npmi(40, 4) == pytest.approx(0), "as often at markers as anywhere"

    def test_against_the_formula(self) -> None:
        both, expert, marked = 0.06, 0.3, 0.1
        assert self.npmi(30, 6) == pytest.approx(np.log(both / (expert * marked)) / -np.log(both))


class TestContrast:
    def test_it_is_this_share_less_the_mean_of_the_others(self) -> None:
        one, two, three = (domain(seed) for seed in range(3))
        expected = one.usage / 100 - (two.usage + three.usage) / 200
        assert views.contrast(one, [two, three]) == pytest.approx(expected)

    def test_a_domain_with_more_tokens_weighs_no_more(self) -> None:
        one, two = domain(0), domain(1)
        doubled = domain(1, usage=2 * two.usage, tokens=2 * two.tokens)
        assert views.contrast(one, [doubled]) == pytest.approx(views.contrast(one, [two]))


class TestTheView:
    def test_it_goes_through_the_files_and_the_readers(self, tmp_path: Path) -> None:
        domains = {name: domain(seed) for seed, name in enumerate(("math", "code"))}
        header = {"model": {"name": "m", "identity": "i"}, "settings": {}}
        arrays.save_artifact(tmp_path / "made", FINGERPRINT, domains, header)
        for score in ("removal_kl", "gain_add"):
            arrays.save_scores(tmp_path / "made", score, {n: d.scores[score] for n, d in domains.items()}, {})
        loaded = arrays.load(tmp_path / "made", FINGERPRINT)
        assert loaded is not None
        seen = views.policy_views(loaded, "removal_kl")
        for name, other in (("math", "code"), ("code", "math")):
            view = seen[name]
            assert statistics.fisher(view, SHAPE, "adapmoe") == (3.0, 1.0)
            assert np.array(statistics.similarity(view, SHAPE, "diep"))[1, 0].tolist() == [1, 0, 0.25]
            npmi = statistics.npmi(view, SHAPE, "rice")
            assert np.array(npmi) == pytest.approx(views.npmi(domains[name]), abs=1e-6)
            wanted = views.contrast(domains[name], [domains[other]])
            assert np.array(statistics.contrast(view, SHAPE, "steer")) == pytest.approx(wanted, abs=1e-6)

    def test_the_experts_come_in_the_order_of_the_score_with_their_bounds(self) -> None:
        by_gain = views.policy_view(domain(0), "gain_add").influence
        assert by_gain is not None and len(by_gain) == 6
        values = domain(0).scores["gain_add"].value
        for one, after in itertools.pairwise(by_gain):
            assert one.value > after.value
        for entry in by_gain:
            assert entry.value == values[entry.layer, entry.expert] and entry.lower == entry.value - 0.1
        by_kl = views.policy_view(domain(0), "removal_kl").influence
        assert by_kl is not None and by_kl[0].lower is None and by_kl != by_gain
        assert views.policy_view(domain(0)).influence is None, "a policy that follows none"

    def test_equal_experts_come_by_layer_then_by_number(self) -> None:
        equal = domain(0)
        equal.scores["removal_kl"] = scored([[1, 2, 1], [2, 1, 1]], "removal_kl")
        ranked = views.policy_view(equal, "removal_kl").influence
        assert ranked is not None
        places = [(entry.layer, entry.expert) for entry in ranked]
        assert places == [(0, 1), (1, 0), (0, 0), (0, 2), (1, 1), (1, 2)]

    def test_those_that_a_race_dropped_come_last_however_high_they_were(self) -> None:
        raced = domain(0)
        found = scored([[9, 2, 1], [8, 3, 7]], "gain_add")
        found.samples[:] = [[16, 64, 64], [32, 64, 16]]
        raced.scores["gain_add"] = found
        ranked = views.policy_view(raced, "gain_add").influence
        assert ranked is not None
        places = [(entry.layer, entry.expert) for entry in ranked]
        assert places == [(1, 1), (0, 1), (0, 2), (1, 0), (0, 0), (1, 2)]

    def test_the_other_domains_are_there_to_be_merged(self) -> None:
        one, two, three = (domain(seed) for seed in range(3))
        view = views.policy_view(one, "gain_add", [two, three])
        alone = [views.policy_view(each, "gain_add").influence for each in (two, three)]
        assert view.influence_elsewhere == tuple(alone)
        assert views.policy_view(one).influence_elsewhere is None

    def test_sensitivity_is_scaled_by_either_measure(self) -> None:
        """By hand: KL 0.03 and 0.005; right answers lose 0.1 and 0.4 nats where 1 of 3 experts is kept."""
        made = domain(0)
        made.scores["limit_gain"] = Scores(
            value=np.array([[-0.1, 0.2], [-0.4, 0.0]]), error=np.ones((2, 2)), samples=np.ones((2, 2)),
            lower=np.zeros((2, 2)),
        )  # fmt: skip
        assert views.policy_view(made).layer_sensitivity == (1, 0)
        assert views.policy_view(made, sensitivity="gold").layer_sensitivity == (0, 1)
        at_two = domain(0, k_min=np.array(2))
        at_two.scores["limit_gain"] = made.scores["limit_gain"]
        assert views.policy_view(at_two, sensitivity="gold").layer_sensitivity == (0, 1)
        assert views.loss_of_right_answers(at_two).tolist() == [-0.2, 0]
        whole = domain(0, k_min=np.array(3))
        whole.scores["limit_gain"] = made.scores["limit_gain"]
        assert views.layer_sensitivity(whole, "gold").tolist() == [0, 0], "all K are kept: nobody loses"

    def test_scores_are_compared_over_what_both_saw_whole(self) -> None:
        made = domain(0, reap=np.array([[6, 5, 4], [3, 2, 1]], dtype=np.float32))
        made.scores["removal_kl"] = scored([[1, 2, 3], [4, 5, 6]], "removal_kl")
        raced = scored([[1, 2, 3], [4, -9, -8]], "gain_add")
        raced.samples[1, 1:] = 16
        made.scores["gain_add"] = raced
        table = views.agreement(made)
        assert table["removal_kl"]["gain_add"] == table["gain_add"]["removal_kl"] == pytest.approx(1)
        assert table["reap"]["removal_kl"] == pytest.approx(-1) == table["reap"]["gain_add"]
        assert math.isnan(table["removal_kl"]["removal_kl"])

    def test_one_domain_has_no_contrast(self) -> None:
        view = views.policy_views({"math": domain(0)}, "removal_kl")["math"]
        with pytest.raises(UserError, match=r"policy=steer cannot start.*task.domains=\[math,code,general\]"):
            statistics.contrast(view, SHAPE, "steer")

    def test_without_a_marker_there_is_no_npmi(self) -> None:
        none = domain(0, marker_usage=np.zeros((2, 3), dtype=np.int64), marker_tokens=np.zeros(2, dtype=np.int64))
        view = views.policy_views({"math": none}, "removal_kl")["math"]
        with pytest.raises(UserError, match=r"policy=rice cannot start: no marker token.*calibration\.markers="):
            statistics.npmi(view, SHAPE, "rice")

    @pytest.mark.parametrize("key", ["fisher", "similarity", "npmi", "contrast"])
    def test_what_is_missing_or_of_another_model_is_refused(self, key: str) -> None:
        read = getattr(statistics, key)
        view = views.policy_views({"math": domain(0), "code": domain(1)}, "removal_kl")["math"]
        without = view.model_copy(update={key: None})
        for calibrated, words in ((None, "it needs a calibration"), (without, f"has no {key}")):
            with pytest.raises(UserError, match=f"{words}. Run `python -m banpick_exp calibrate`"):
                read(calibrated, SHAPE, "any")
        for layers, experts in ((3, 3), (2, 4)):
            if key == "fisher" and layers == 2:
                continue
            other = MoeShape(num_layers=layers, num_experts=experts, top_k=2)
            with pytest.raises(UserError, match=f"of another model: {key} has"):
                read(view, other, "any")
        broken = np.array(getattr(view, key))
        broken.ravel()[0] = np.nan
        with pytest.raises(UserError, match=f"the calibration has {key}="):
            read(Calibration.of(view.model_dump() | {key: broken.tolist()}), SHAPE, "any")


class TestMarkers:
    TASK = TaskConfig(name="any", domains=("math",))

    def test_what_they_are_for_a_task(self) -> None:
        assert CalibrationConfig().markers_of(self.TASK) == (";",)
        whole = self.TASK.model_copy(update={"answer_separator": None})
        assert CalibrationConfig().markers_of(whole) == ("<think>", "</think>")
        assert CalibrationConfig(markers=("Wait",)).markers_of(whole) == ("Wait",)

    def test_other_markers_are_another_calibration(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def key(*typed: str) -> str | None:
            arguments = ["policy=pick", *typed, f"output_dir={tmp_path}", "dry_run=true"]
            return plan_sweep(arguments).points[1].calibration_fingerprint

        assert key("calibration.markers=['=']") != key() == key("calibration.markers=[';']")
        assert key("task.answer_separator='='") == key("calibration.markers=['=']")
        before = key()
        monkeypatch.setattr("banpick_exp.sweep.make_points.CALIBRATION_VERSION", 1)
        assert key() != before, "an artifact of an earlier version would be found, and refused"

    def test_typed_ones_are_held_against_an_artifact(self, tmp_path: Path) -> None:
        folder = write(tmp_path / "mine")
        with pytest.raises(UserError, match=r"calibration.markers=\['='\] would change nothing"):
            plan_sweep(["policy=pick", f"calibration.path={folder}", "calibration.markers=['=']", "dry_run=true"])
