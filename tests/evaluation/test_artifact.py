"""A calibration artifact that the user names: used as it is, or refused before an engine starts."""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from measured_arrays import measured, scored
from safetensors.numpy import load_file, save_file

from banpick_exp.errors import UserError
from banpick_exp.evaluation.calibration import arrays
from banpick_exp.evaluation.calibration.artifact import METADATA, TENSORS, artifact_folder, parts_in, score_file
from banpick_exp.evaluation.calibration.config import CalibrationConfig
from banpick_exp.evaluation.calibration.scores import SCORES, Name
from banpick_exp.models.config import ModelConfig
from banpick_exp.models.inspect import inspect_checkpoint
from banpick_exp.sweep.plan import SweepPlan, plan_sweep
from banpick_exp.sweep.rerun import rerun_command

FINGERPRINT = "0123456789abcdef"
DOMAINS = ("math", "code", "knowledge")
CHECKPOINT = inspect_checkpoint(ModelConfig(name="tiny"))


def write(
    folder: Path,
    *,
    name: str = "tiny",
    identity: str = CHECKPOINT.identity,
    domains: tuple[str, ...] = DOMAINS,
    experts: int = CHECKPOINT.shape.num_experts,
    scores: Iterable[Name] = SCORES,
    **settings: Any,
) -> Path:
    """An artifact as a session leaves it once points have asked for these scores, with made-up numbers."""
    layers = CHECKPOINT.shape.num_layers
    found = measured(
        layers,
        experts,
        tokens=np.full(layers, 8),
        layer_kl=np.arange(layers, dtype=np.float32),
        ratio_range=np.array([0.4, 0.9], dtype=np.float32),
    )
    header = {
        "model": {"name": name, "identity": identity},
        "settings": CalibrationConfig(**{"samples": 16, **settings}).measured(),
    }
    arrays.save_artifact(folder, FINGERPRINT, dict.fromkeys(domains, found), header)
    for score in scores:
        add_score(folder, score, dict.fromkeys(domains, 1.0), experts=experts)
    return folder


def add_score(
    folder: Path, score: Name, values: Mapping[str, float], *, experts: int = CHECKPOINT.shape.num_experts
) -> None:
    """Every expert of a domain has the same value."""
    shape = (CHECKPOINT.shape.num_layers, experts)
    found = {domain: scored(np.full(shape, value), score) for domain, value in values.items()}
    arrays.save_scores(folder, score, found, {"method": "full", "changes": len(values)})


@pytest.fixture
def plan(tmp_path: Path) -> Callable[..., SweepPlan]:
    def planned(*arguments: str) -> SweepPlan:
        return plan_sweep([*arguments, f"output_dir={tmp_path / 'out'}", "dry_run=true"])

    return planned


def test_its_fingerprint_is_the_calibration_of_the_points(tmp_path: Path, plan: Any) -> None:
    folder = write(tmp_path / "mine")
    given, made = plan("+sweep=ban_pick", f"calibration.path={folder}"), plan("+sweep=ban_pick")
    assert list(given.calibrations()) == [FINGERPRINT]
    for with_path, without in zip(given.points, made.points, strict=True):
        needs = with_path.rule.needs_calibration()
        assert with_path.calibration_fingerprint == (FINGERPRINT if needs else None)
        assert (with_path.fingerprint != without.fingerprint) == needs
    assert given.estimate(1).calibration_seconds == 0 < made.estimate(1).calibration_seconds


def test_points_follow_its_content_not_its_place(tmp_path: Path, plan: Any) -> None:
    one, two = write(tmp_path / "one"), write(tmp_path / "two")
    first, second = (plan("policy=pick", f"calibration.path={folder}").points[1] for folder in (one, two))
    assert first.fingerprint == second.fingerprint
    other = plan("policy=pick", f"calibration.path={one}", "calibration.score=removal_kl").points[1]
    assert other.fingerprint != first.fingerprint and other.calibration_fingerprint == FINGERPRINT


def test_a_relative_folder_is_made_absolute(tmp_path: Path, plan: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "mine")
    monkeypatch.chdir(tmp_path)
    point = plan("policy=pick", "calibration.path=mine").points[1]
    assert artifact_folder(point.calibration, Path("elsewhere"), FINGERPRINT) == tmp_path / "mine"
    assert arrays.load(Path(str(point.calibration.path)), FINGERPRINT) is not None
    assert artifact_folder(CalibrationConfig(), Path("shared"), FINGERPRINT) == Path("shared") / FINGERPRINT


def test_the_command_to_rerun_a_point_keeps_it(tmp_path: Path, plan: Any) -> None:
    found = plan("+sweep=ban_threshold", f"calibration.path={write(tmp_path / 'mine')}")
    again = plan(*shlex.split(rerun_command(found.command, found.points[-1]))[3:])
    assert again.points[-1].fingerprint == found.points[-1].fingerprint


def test_planning_reads_no_array(tmp_path: Path, plan: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write(tmp_path / "mine")

    def refuse(path: Path) -> None:
        raise AssertionError(f"{path} was loaded")

    monkeypatch.setattr(arrays, "load_file", refuse)
    assert plan("policy=pick", f"calibration.path={folder}").calibrations()


def _edit(folder: Path, **changes: Any) -> None:
    path = folder / METADATA
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def _cut(folder: Path) -> None:
    path = folder / TENSORS
    path.write_bytes(path.read_bytes()[:-4])


BAD: list[tuple[str, dict[str, Any], Callable[[Path], object], list[str]]] = [
    ("no header", {}, lambda f: (f / METADATA).unlink(), ["there is no file", METADATA]),
    ("no arrays", {}, lambda f: (f / TENSORS).unlink(), ["there is no file", TENSORS]),
    ("no JSON", {}, lambda f: (f / METADATA).write_text("{"), ["cannot be read", "Copy the folder again"]),
    ("a list", {}, lambda f: (f / METADATA).write_text("[]"), ["cannot be read"]),
    ("no model", {}, lambda f: _edit(f, model={}), ["cannot be read", "KeyError"]),
    ("version", {}, lambda f: _edit(f, schema_version=99), ["schema_version 99", "reads 3"]),
    ("made before", {}, lambda f: _edit(f, schema_version=2), ["schema_version 2,", "Leave calibration.path out"]),
    (
        "model",
        {"name": "other", "identity": "feedfeedfeedfeed"},
        lambda f: None,
        ["of the model other", "sweep is of tiny", CHECKPOINT.identity, "model=other", "Leave calibration.path out"],
    ),
    ("domains", {"domains": ("math", "code")}, lambda f: None, ["not knowledge", "task.domains=[math,code]"]),
    ("shape", {"experts": 16}, lambda f: None, ["[4, 16]", "[4, 32]", "mixed up"]),
    ("cut", {}, _cut, ["cut short", "damaged"]),
    ("garbage", {}, lambda f: (f / TENSORS).write_bytes(b"x"), ["damaged"]),
]


@pytest.mark.parametrize(("made", "break_it", "words"), [b[1:] for b in BAD], ids=[b[0] for b in BAD])
def test_one_that_does_not_fit_is_refused(
    made: dict[str, Any], break_it: Callable[[Path], object], words: list[str], tmp_path: Path, plan: Any
) -> None:
    folder = write(tmp_path / "mine", **made)
    break_it(folder)
    with pytest.raises(UserError) as caught:
        plan("+sweep=ban_pick", f"calibration.path={folder}")
    for word in words:
        assert word in str(caught.value)
    assert plan("policy=fixed_k", "policy.k=4", f"calibration.path={folder}").calibrations() == {}, "nobody reads it"


def test_a_setting_it_was_not_made_with_is_refused(tmp_path: Path, plan: Any) -> None:
    folder = write(tmp_path / "mine")
    plan("policy=pick", f"calibration.path={folder}", "calibration.samples=16")
    with pytest.raises(UserError, match=r"samples=32 would change nothing.*made with 16"):
        plan("policy=pick", f"calibration.path={folder}", "calibration.samples=32")


class TestScores:
    """Each in a file of its own: added when a point first asks for it."""

    def test_an_artifact_without_the_asked_score_is_refused(self, tmp_path: Path, plan: Any) -> None:
        folder = write(tmp_path / "mine", scores=["insertion_kl", "gain_add"])
        given = ["policy=pick", f"calibration.path={folder}"]
        assert plan(*given, "calibration.score=insertion_kl").points[1].score == "insertion_kl"
        assert plan(*given, "policy.mode=range_add").points[1].score == "gain_add", "auto: the gain of its mode"
        with pytest.raises(UserError, match=r"holds no gain_boost \(it holds insertion_kl, gain_add\).*leave calib"):
            plan(*given, "policy.mode=boost", "policy.boost=1")
        with pytest.raises(UserError, match=r"holds no removal_kl.*calibration\.score=removal_kl"):
            plan(*given, "calibration.score=removal_kl")
        bare = write(tmp_path / "bare", scores=())
        with pytest.raises(UserError, match=r"holds no insertion_kl, which"):
            plan("policy=pick", f"calibration.path={bare}", "calibration.score=insertion_kl")
        assert plan("policy=ban", "policy.lambda=0.9", f"calibration.path={bare}").points[1].score is None

    def test_a_policy_that_follows_layers_by_right_answers_needs_them_measured(self, tmp_path: Path, plan: Any) -> None:
        given = ["policy=ban", "policy.lambda=0.9", f"calibration.path={write(tmp_path / 'mine')}"]
        assert plan(*given).points[1].calibration_parts == ()
        with pytest.raises(UserError, match=r"holds no limit_gain.*calibration\.sensitivity=gold"):
            plan(*given, "calibration.sensitivity=gold")

    def test_adding_one_changes_nothing_else(self, tmp_path: Path) -> None:
        folder = write(tmp_path / "mine", scores=["insertion_kl"])
        before = {path.name: path.read_bytes() for path in folder.iterdir()}
        add_score(folder, "gain_add", {"math": 2.0, "code": 3.0, "knowledge": 4.0})
        after = {path.name: path.read_bytes() for path in folder.iterdir()}
        assert set(after) - set(before) == {score_file("gain_add")}
        assert {name: after[name] for name in before} == before
        assert parts_in(folder) == ["insertion_kl", "gain_add"]
        loaded = arrays.load(folder, FINGERPRINT)
        assert loaded is not None and set(loaded["code"].scores) == {"insertion_kl", "gain_add"}
        assert (loaded["code"].scores["gain_add"].value == 3).all()
        assert (loaded["knowledge"].scores["gain_add"].lower == 3.9).all()
        assert np.isnan(loaded["math"].scores["insertion_kl"].lower).all()
        assert arrays.score_header(folder, "gain_add") == {"method": "full", "changes": 3}

    def test_one_that_is_there_stays_when_the_artifact_is_saved_again(self, tmp_path: Path) -> None:
        """Two drivers may make the same artifact; the later one must not take the earlier's scores away."""
        folder = write(tmp_path / "mine", scores=["insertion_kl"])
        write(folder, scores=())
        assert parts_in(folder) == ["insertion_kl"]

    def test_a_write_that_breaks_off_leaves_nothing_to_see(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        folder = write(tmp_path / "mine", scores=["insertion_kl"])

        def broken(*_: object, **__: object) -> None:
            raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr(os, "replace", broken)
            with pytest.raises(KeyboardInterrupt):
                add_score(folder, "gain_add", dict.fromkeys(DOMAINS, 1.0))
            with pytest.raises(KeyboardInterrupt):
                write(tmp_path / "other")
        assert parts_in(folder) == ["insertion_kl"] and arrays.load(folder, FINGERPRINT) is not None
        assert not (tmp_path / "other").exists()
        assert arrays.load(tmp_path / "other", FINGERPRINT) is None

    def test_a_lost_array_is_named(self, tmp_path: Path) -> None:
        folder = write(tmp_path / "mine")
        values = load_file(folder / TENSORS)
        del values["code.skip_kl"]
        save_file(values, folder / TENSORS)
        with pytest.raises(UserError, match=r"lacks skip_kl: the calibration is damaged"):
            arrays.load(folder, FINGERPRINT)

    def test_one_of_a_corpus_has_no_gain(self, tmp_path: Path, plan: Any) -> None:
        folder = write(tmp_path / "mine", text="/some/where.txt")
        given = ["policy=pick", f"calibration.path={folder}"]
        assert plan(*given).points[1].score == "insertion_kl"
        with pytest.raises(UserError, match=r"calibration\.score=gain_add is told by right answers"):
            plan(*given, "calibration.score=gain_add")


def test_it_ends_the_command_with_exit_code_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from banpick_exp.__main__ import main

    folder = write(tmp_path / "mine", name="qwen3_30b_a3b", identity="hub:Qwen/Qwen3-30B-A3B@main")
    typed = ["+sweep=pick_strength", f"calibration.path={folder}", f"output_dir={tmp_path / 'out'}", "tracking=none"]
    assert main(typed) == 2
    error = capsys.readouterr().err
    assert "qwen3_30b_a3b" in error and "tiny" in error and error.count("\n") == 1
    assert not (tmp_path / "out").exists()
