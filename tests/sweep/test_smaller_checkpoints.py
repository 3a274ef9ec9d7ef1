"""Checkpoints of static methods, with fewer experts in the weights: planned and measured beside the original."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file
from smaller_checkpoints import merged_in_pairs, pruned

from banpick_exp.models.inspect import EMBEDDED_CHECKPOINT
from banpick_exp.models.shape import MoeShape
from banpick_exp.report.run import read_run
from banpick_exp.run_folder import RunFolder
from banpick_exp.sweep.plan import plan_sweep

ENTRY = "import sys; from banpick_exp.__main__ import main; sys.exit(main())"
TIMEOUT_SECONDS = 480


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("checkpoints")
    return {
        "original": EMBEDDED_CHECKPOINT,
        "pruned": pruned(folder / "pruned", keep=24),
        "merged": merged_in_pairs(folder / "merged", top_k=6),
    }


def typed(folders: dict[str, Path], output: Path) -> list[str]:
    paths = ",".join(str(path) for path in folders.values())
    return [
        "model=local", f"model.path=choice({paths})", "task=tiny", "policy=fixed_k", "policy.k=4", "engine=tiny",
        "task.max_problems=4", "task.speed_seconds=0.1", "tracking=none", "cluster=inline", f"output_dir={output}",
    ]  # fmt: skip


def test_each_is_planned_with_its_own_shape_and_its_own_stock(folders: dict[str, Path], tmp_path: Path) -> None:
    points = plan_sweep(typed(folders, tmp_path)).points
    shapes = {Path(point.checkpoint.location).name: point.checkpoint.shape for point in points}
    assert shapes == {
        "checkpoint": MoeShape(num_layers=4, num_experts=32, top_k=8),
        "pruned": MoeShape(num_layers=4, num_experts=24, top_k=8),
        "merged": MoeShape(num_layers=4, num_experts=16, top_k=6),
    }
    assert len({point.engine_fingerprint for point in points}) == 3
    stock = [point for point in points if point.rule.is_stock]
    assert {Path(point.checkpoint.location).name for point in stock} == set(shapes)


def test_the_weights_have_what_the_config_says(folders: dict[str, Path]) -> None:
    for name, experts in (("pruned", 24), ("merged", 16)):
        tensors = load_file(folders[name] / "model.safetensors")
        assert tensors["model.layers.3.mlp.gate.weight"].shape[0] == experts
        assert sum(".layers.3.mlp.experts." in key for key in tensors) == 3 * experts


@pytest.mark.engine
@pytest.mark.slow
def test_all_are_measured_in_one_sweep(folders: dict[str, Path], tmp_path: Path) -> None:
    command = [sys.executable, "-c", ENTRY, *typed(folders, tmp_path)]
    done = subprocess.run(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=TIMEOUT_SECONDS, cwd=tmp_path
    )
    assert done.returncode == 0, done.stdout
    (manifest,) = (tmp_path / "custom").glob("*/run.json")
    run = read_run(RunFolder(manifest.parent))
    found = {(record.model.top_k, record.policy_name): record.mean_kept for record in run.records}
    assert {record.status for record in run.records} == {"done"} and len(run.records) == 6
    assert found == {(8, "none"): 8, (8, "fixed_k"): 4, (6, "none"): 6, (6, "fixed_k"): 4}
    assert len({record.model.identity for record in run.records}) == 3
    assert run.mixed_setups is not None, "it is said that the rows are of different checkpoints"
