"""A calibration artifact that the user names: used as it is, or refused before an engine starts."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from measured_arrays import measured

from banpick_exp.errors import UserError
from banpick_exp.evaluation.calibration import arrays
from banpick_exp.evaluation.calibration.artifact import METADATA, TENSORS, artifact_folder
from banpick_exp.evaluation.calibration.config import CalibrationConfig
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
) -> Path:
    """An artifact as `arrays.save` leaves it, with made-up numbers."""
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
        "settings": CalibrationConfig(samples=16).model_dump(exclude={"path"}),
    }
    arrays.save(folder, FINGERPRINT, dict.fromkeys(domains, found), header)
    return folder


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
    ("version", {}, lambda f: _edit(f, schema_version=99), ["schema_version 99", "reads 2"]),
    ("made before", {}, lambda f: _edit(f, schema_version=1), ["schema_version 1,", "Leave calibration.path out"]),
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


def test_it_ends_the_command_with_exit_code_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from banpick_exp.__main__ import main

    folder = write(tmp_path / "mine", name="qwen3_30b_a3b", identity="hub:Qwen/Qwen3-30B-A3B@main")
    typed = ["+sweep=pick_strength", f"calibration.path={folder}", f"output_dir={tmp_path / 'out'}", "tracking=none"]
    assert main(typed) == 2
    error = capsys.readouterr().err
    assert "qwen3_30b_a3b" in error and "tiny" in error and error.count("\n") == 1
    assert not (tmp_path / "out").exists()
