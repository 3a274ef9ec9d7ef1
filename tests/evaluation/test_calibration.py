"""What a policy reads of a calibration: derived quantities against their formulas, and the way through the files."""

from __future__ import annotations

import doctest
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from measured_arrays import measured
from test_artifact import FINGERPRINT, write

from banpick_exp.errors import UserError
from banpick_exp.evaluation.calibration import arrays, measure
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
        **{score: draw.random((2, 3), dtype=np.float32) for score in arrays.SCORES},
    }
    return measured(2, 3, **{**found, **changes})


@pytest.mark.parametrize("module", [arrays, measure], ids=lambda m: m.__name__)
def test_the_worked_examples(module: Any) -> None:
    result = doctest.testmod(module, extraglobs={"np": np})
    assert result.attempted > 0 and result.failed == 0


def test_fisher_is_never_negative_and_0_where_nothing_was_dropped() -> None:
    found = measure.fisher_information(np.array([1e-3, -1e-9, 0.5, 0.0]), np.array([2e-3, 0.1, 0.0, 0.1]))
    assert found.dtype == np.float32 and found.tolist() == [1.0, 0.0, 0.0, 0.0]


class TestNpmi:
    def npmi(self, usage: int, marker_usage: int, marker_tokens: int = 10) -> float:
        counts = [[usage]], [100], [[marker_usage]], [marker_tokens]
        ((value,),) = arrays.npmi_of(*map(np.array, counts)).tolist()
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
        assert arrays.contrast(one, [two, three]) == pytest.approx(expected)

    def test_a_domain_with_more_tokens_weighs_no_more(self) -> None:
        one, two = domain(0), domain(1)
        doubled = domain(1, usage=2 * two.usage, tokens=2 * two.tokens)
        assert arrays.contrast(one, [doubled]) == pytest.approx(arrays.contrast(one, [two]))


class TestTheView:
    def test_it_goes_through_the_files_and_the_readers(self, tmp_path: Path) -> None:
        domains = {name: domain(seed) for seed, name in enumerate(("math", "code"))}
        header = {"model": {"name": "m", "identity": "i"}, "settings": {}}
        arrays.save(tmp_path / "made", FINGERPRINT, domains, header)
        loaded = arrays.load(tmp_path / "made", FINGERPRINT)
        assert loaded is not None
        views = arrays.policy_views(loaded, "removal_kl")
        for name, other in (("math", "code"), ("code", "math")):
            view = views[name]
            assert statistics.fisher(view, SHAPE, "adapmoe") == (3.0, 1.0)
            assert np.array(statistics.similarity(view, SHAPE, "diep"))[1, 0].tolist() == [1, 0, 0.25]
            npmi = statistics.npmi(view, SHAPE, "rice")
            assert np.array(npmi) == pytest.approx(arrays.npmi(domains[name]), abs=1e-6)
            wanted = arrays.contrast(domains[name], [domains[other]])
            assert np.array(statistics.contrast(view, SHAPE, "steer")) == pytest.approx(wanted, abs=1e-6)

    def test_one_domain_has_no_contrast(self) -> None:
        view = arrays.policy_views({"math": domain(0)}, "removal_kl")["math"]
        with pytest.raises(UserError, match=r"policy=steer cannot start.*task.domains=\[math,code,general\]"):
            statistics.contrast(view, SHAPE, "steer")

    def test_without_a_marker_there_is_no_npmi(self) -> None:
        none = domain(0, marker_usage=np.zeros((2, 3), dtype=np.int64), marker_tokens=np.zeros(2, dtype=np.int64))
        view = arrays.policy_views({"math": none}, "removal_kl")["math"]
        with pytest.raises(UserError, match=r"policy=rice cannot start: no marker token.*calibration\.markers="):
            statistics.npmi(view, SHAPE, "rice")

    @pytest.mark.parametrize("key", ["fisher", "similarity", "npmi", "contrast"])
    def test_what_is_missing_or_of_another_model_is_refused(self, key: str) -> None:
        read = getattr(statistics, key)
        view = arrays.policy_views({"math": domain(0), "code": domain(1)}, "removal_kl")["math"]
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
