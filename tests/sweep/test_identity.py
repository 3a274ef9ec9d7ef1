"""Identities outlive the house they are computed in: what was finished before modules moved is finished still."""

from __future__ import annotations

import dataclasses
import shlex
from pathlib import Path
from typing import Any

import pytest

from banpick_exp.models.inspect import inspect_checkpoint
from banpick_exp.run_folder import RunFolder
from banpick_exp.sweep import compose
from banpick_exp.sweep.plan import plan_sweep

BEFORE = Path(__file__).resolve().parents[1] / "records" / "data" / "run_v1"
"""Runs of the commit before the rooms, on the embedded checkpoint."""


@pytest.mark.parametrize("name", sorted(path.name for path in BEFORE.iterdir()))
def test_points_from_before_the_move_are_still_the_same_points(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """But for the checkpoint's own identity, which covers its tokenizer, templates and generation settings by now."""
    (folder,) = [path for path in [BEFORE / name, *(BEFORE / name).iterdir()] if (path / "run.json").is_file()]
    records, set_aside = RunFolder(folder).load_points()
    assert records and not set_aside
    (identity,) = {str(record.model.identity) for record in records}

    def as_it_was(model: Any) -> Any:
        return dataclasses.replace(inspect_checkpoint(model), identity=identity)

    monkeypatch.setattr(compose, "inspect_checkpoint", as_it_was)
    typed = [word for word in shlex.split(RunFolder(folder).manifest().command)[3:] if "output_dir" not in word]
    typed = [word for word in typed if word.split("=")[0] not in ("tracking",)]
    plan = plan_sweep([*typed, f"output_dir={tmp_path}"])
    assert {point.fingerprint for point in plan.points} == {record.fingerprint for record in records}
