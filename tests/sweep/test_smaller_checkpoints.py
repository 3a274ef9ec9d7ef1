"""Checkpoints of static methods, with fewer experts in the weights: planned and measured beside the original."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file
from smaller_checkpoints import merged_in_pairs, pruned

from banpick_exp.errors import UserError
from banpick_exp.models.inspect import EMBEDDED_CHECKPOINT
from banpick_exp.models.shape import MoeShape
from banpick_exp.report.run import Run, read_run
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


def made_from(folders: dict[str, Path], output: Path) -> list[str]:
    """The same, with the original declared as what the others were made from; it may name itself."""
    return [*typed(folders, output), f"model.made_from={folders['original']}"]


def test_a_declared_base_gives_its_name_to_no_label_and_theirs_to_them(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    points = plan_sweep(made_from(folders, tmp_path)).points
    assert {point.label for point in points} == {
        "none", "none on pruned", "none on merged", "fixed_k k=4", "fixed_k k=4 on pruned", "fixed_k k=4 on merged",
    }  # fmt: skip
    before = {point.label: point for point in plan_sweep(typed(folders, tmp_path)).points}
    assert len(before) == 6 and all("model.path=" in label for label in before)
    now = {point.fingerprint for point in points if point.checkpoint.base is None}
    assert now < {point.fingerprint for point in before.values()}, "the original's points are what they were"
    changed = {point.fingerprint for point in points} - now
    assert len(changed) == 4 and not changed & {point.fingerprint for point in before.values()}
    assert {point.engine_fingerprint for point in points} == {point.engine_fingerprint for point in before.values()}


def test_what_is_left_of_the_experts_is_known_before_anything_is_loaded(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    points = plan_sweep(made_from(folders, tmp_path)).points
    found = {point.model.name: point.checkpoint.base for point in points}
    assert found["checkpoint"] is None
    for name, share in (("pruned", 24 / 32), ("merged", 16 / 32)):
        base = found[name]
        assert base is not None and base.num_experts == 32
        assert base.expert_bytes == pytest.approx(share, rel=0.02), "the file has a header beside the weights"


def test_a_name_of_conf_model_is_a_base(folders: dict[str, Path], tmp_path: Path) -> None:
    blocks = f"""["policy=none","model=tiny"],["policy=none","model.path={folders["pruned"]}","model.made_from=tiny"]"""
    line = [f"sweep.blocks=[{blocks}]", "task=tiny", "tracking=none", f"output_dir={tmp_path}"]
    (note,) = [note for note in plan_sweep(line).notes if "made from" in note]
    assert "pruned was made from tiny, but is asked with engine." in note and "(there " in note, "another engine file"
    plan = plan_sweep([*line, "engine=tiny"])
    assert {point.label for point in plan.points if point.rule.is_stock} == {"none model=tiny", "none on pruned"}
    assert not any("was made from" in note for note in plan.notes)


def alone(folder: Path, base: object, output: Path) -> list[str]:
    return [
        f"model.path={folder}",
        f"model.made_from={base}",
        "policy=none",
        "task=tiny",
        "tracking=none",
        f"output_dir={output}",
    ]


def test_a_base_of_which_nothing_is_asked_is_noted(folders: dict[str, Path], tmp_path: Path) -> None:
    (note,) = [note for note in plan_sweep(alone(folders["pruned"], "tiny", tmp_path)).notes if "made from" in note]
    assert "pruned was made from tiny" in note and "compared with nothing" in note and "model.path=choice(" in note


def copied(folder: Path, source: Path, **config: object) -> Path:
    shutil.copytree(source, folder)
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | config), encoding="utf-8")
    return folder


def test_checkpoints_that_cannot_be_compared_are_refused(folders: dict[str, Path], tmp_path: Path) -> None:
    other = copied(tmp_path / "other_tokens", folders["pruned"])
    tokenizer = json.loads((other / "tokenizer.json").read_text(encoding="utf-8"))
    (other / "tokenizer.json").write_text(json.dumps(tokenizer, indent=1), encoding="utf-8")
    plan_sweep(alone(other, "tiny", tmp_path))  # laid out anew, and the same
    (other / "tokenizer.json").write_text(json.dumps(tokenizer | {"normalizer": {"type": "Lowercase"}}))
    with pytest.raises(UserError, match=r"their tokenizer.json differs.*Copy the tokenizer.*model.made_from=null"):
        plan_sweep(alone(other, "tiny", tmp_path))
    plan_sweep(alone(other, "null", tmp_path))
    templated = copied(tmp_path / "templated", folders["pruned"])
    (templated / "chat_template.jinja").write_text("{{ messages[0].content }}")
    with pytest.raises(UserError, match="their chat template differs"):
        plan_sweep(alone(templated, "tiny", tmp_path))
    shorter = copied(tmp_path / "shorter", folders["pruned"], num_hidden_layers=3)
    with pytest.raises(UserError, match=r"has 3 layers with experts, model.made_from=tiny has 4"):
        plan_sweep(alone(shorter, "tiny", tmp_path))
    with pytest.raises(UserError, match=r"model.made_from=tinny is no folder and no model of conf/model"):
        plan_sweep(alone(folders["pruned"], "tinny", tmp_path))


def test_two_of_one_name_are_refused(folders: dict[str, Path], tmp_path: Path) -> None:
    twin = copied(tmp_path / "pruned", folders["merged"])
    line = [
        f"model.path=choice({folders['pruned']},{twin})",
        "policy=none",
        "model.made_from=tiny",
        "task=tiny",
        "tracking=none",
    ]
    with pytest.raises(UserError, match=r"would both be called pruned.*model.name=first"):
        plan_sweep([*line, f"output_dir={tmp_path}"])
    blocks = ",".join(
        f'["policy=none","model.path={path}","model.name={name}"]'
        for path, name in ((folders["pruned"], "a"), (twin, "b"))
    )
    plan = plan_sweep([f"sweep.blocks=[{blocks}]", *line[2:], f"output_dir={tmp_path}"])
    assert {point.label for point in plan.points} == {"none on a", "none on b"}


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


def swept(line: list[str], output: Path) -> Run:
    done = subprocess.run(
        [sys.executable, "-c", ENTRY, *line],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=TIMEOUT_SECONDS, cwd=output,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
    (manifest,) = (output / "custom").glob("*/run.json")
    run = read_run(RunFolder(manifest.parent))
    found = {(record.model.num_experts, record.policy_name): record.mean_kept for record in run.records}
    assert {record.status for record in run.records} == {"done"}
    stock = {32: 8, 24: 8, 16: 6}
    for (experts, policy), kept in found.items():
        assert experts is not None and kept == (stock[experts] if policy == "none" else 4)
    assert len({record.model.identity for record in run.records}) == len(run.records) / 2 == len(found) / 2
    return run


@pytest.mark.engine
@pytest.mark.slow
def test_checkpoints_are_measured_in_one_sweep(folders: dict[str, Path], tmp_path: Path) -> None:
    """Two of the three: the next test asks all."""
    run = swept(typed({name: folders[name] for name in ("original", "pruned")}, tmp_path), tmp_path)
    assert run.mixed_setups is not None, "it is said that the rows are of different checkpoints"
    assert set(run.frame["policy"]) == {"none", "fixed_k"} and run.verdicts.height == 0


@pytest.mark.engine
@pytest.mark.slow
def test_with_a_declared_base_all_stand_on_one_front(folders: dict[str, Path], tmp_path: Path) -> None:
    run = swept(made_from(folders, tmp_path), tmp_path)
    assert run.mixed_setups is None
    rows = {row["label"]: row for row in run.done_rows().iter_rows(named=True)}
    assert set(rows) == {
        "none", "none on pruned", "none on merged", "fixed_k k=4", "fixed_k k=4 on pruned", "fixed_k k=4 on merged",
    }  # fmt: skip
    against = {row["label"]: row["reference_label"] for row in run.verdicts.iter_rows(named=True)}
    assert against == {
        "none on pruned": "none", "fixed_k k=4 on pruned": "fixed_k k=4",
        "none on merged": "none", "fixed_k k=4 on merged": "fixed_k k=4",
    }  # fmt: skip
    for label, row in rows.items():
        assert (row["speedup"] is None) == (row["own_speedup"] is not None) == (" on " in label)
        if " on " in label:
            assert row["delta"] == pytest.approx(row["accuracy"] - rows["none"]["accuracy"])
    by_checkpoint = {record.model.name: record.model for record in run.records}
    assert by_checkpoint["checkpoint"].base is None
    assert by_checkpoint["pruned"].base is not None
    assert by_checkpoint["pruned"].base.identity == by_checkpoint["checkpoint"].identity
    told = run.folder.report.read_text(encoding="utf-8")
    assert "24 of 32 experts a layer are left, 75% of the bytes" in told and "m-none-on-merged" in told
