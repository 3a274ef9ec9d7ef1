"""Planning: which points a command means, in which order, under which names."""

from __future__ import annotations

import pickle
import shlex
import time
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from checkpoint_folder import write_checkpoint
from synthetic_run import SyntheticRun

from banpick_exp.engine.config import EngineConfig
from banpick_exp.errors import UserError
from banpick_exp.evaluation.calibration.config import CalibrationConfig
from banpick_exp.manifest import MANIFEST
from banpick_exp.models.config import ModelConfig
from banpick_exp.policy import parse_policy
from banpick_exp.sweep.identity import engine_fingerprint, point_fingerprint
from banpick_exp.sweep.plan import SweepPlan, plan_sweep
from banpick_exp.tasks.config import TaskConfig

NOW = datetime(2026, 1, 31, 9, 30)


@pytest.fixture
def plan(tmp_path: Path) -> Any:
    """Plans a command with its results under tmp_path; a dry run, so that it needs no embedded assets."""

    def planned(*arguments: str) -> SweepPlan:
        return plan_sweep([*arguments, f"output_dir={tmp_path}", "dry_run=true"], now=NOW)

    return planned


def labels(found: SweepPlan) -> list[str]:
    return [point.label for point in found.points]


LADDER = [f"fixed_k k={k}" for k in range(1, 8)]


# ---------------------------------------------------------------- which points


def test_pick_strength_is_boost_by_count_and_range_replace(plan: Any) -> None:
    found = labels(plan("+sweep=pick_strength"))
    assert found[:8] == ["none", *LADDER]
    boosted = [f"pick boost={boost} key_experts={n}" for boost in ("0.25", "0.5", "1", "2") for n in (1, 4, 16)]
    assert found[8:] == [*boosted, *(f"pick range_replace key_experts={n}" for n in (1, 4, 16))]


@pytest.mark.parametrize(
    "typed",
    [
        ["policy.boost=choice(0.5,1)", "policy.key_experts=4"],
        ["policy.boost=0.5,1", "policy.key_experts=4"],
        ["""sweep.params=["policy.boost=choice(0.5,1)","policy.key_experts=4"]"""],
    ],
)
def test_the_command_line_narrows_a_shipped_sweep(plan: Any, typed: list[str]) -> None:
    found = plan("+sweep=pick_strength", *typed)
    expected = ["pick boost=0.5 key_experts=4", "pick boost=1 key_experts=4", "pick range_replace key_experts=4"]
    assert labels(found) == ["none", *LADDER, *expected]
    assert found.notes == ()


def test_any_key_can_be_an_axis_and_references_follow_it(plan: Any) -> None:
    found = plan("+sweep=ban_pick", "engine.max_num_seqs=choice(64,256)", "model.dtype=choice(bfloat16,float32)")
    engines = found.by_engine()
    assert len(engines) == 4
    for points in engines.values():
        assert len(points) == 20
        assert [point.rule.name for point in points[:8]] == ["none"] + ["fixed_k"] * 7
    assert "none engine.max_num_seqs=64 model.dtype=float32" in labels(found)


def test_the_ladder_is_as_long_as_each_checkpoint_allows(plan: Any, tmp_path: Path) -> None:
    small = write_checkpoint(tmp_path / "small", num_experts_per_tok=3)
    found = plan("policy=fixed_k", "policy.k=range(1,K)", "task=tiny", f"model.path={small}")
    assert labels(found) == ["none", "fixed_k k=1", "fixed_k k=2"]
    assert found.points[0].model.name == "small"
    both = plan("+sweep=pick_strength", "task=tiny", "model=choice(tiny,qwen3_30b_a3b)", "policy.key_experts=4")
    assert sum(point.rule.name == "fixed_k" for point in both.points) == 14


def test_without_a_sweep_the_typed_policy_runs_next_to_stock(plan: Any) -> None:
    found = plan("policy=ban", "policy.lambda=choice(0.5,1)")
    assert labels(found) == ["none", "ban lambda=0.5 k_min=3", "ban lambda=1 k_min=3"]
    assert found.sweep_name == "custom"
    assert labels(plan("policy=none")) == ["none"]


def test_experts_by_name_need_no_calibration(plan: Any) -> None:
    found = plan("policy=pick", "policy.experts={0: [3, 7]}")
    assert found.calibrations() == {}
    assert labels(found) == ["none", "pick range_replace experts=L0E3+L0E7"]


def test_duplicates_are_dropped_with_a_note(plan: Any) -> None:
    found = plan("policy=pick", "policy.mode=choice(boost,force_add)", "policy.boost=choice(1,2)")
    assert labels(found)[1:] == [
        "pick boost=1 key_experts=4",
        "pick boost=2 key_experts=4",
        "pick force_add key_experts=4",
    ]
    assert len(found.notes) == 1
    assert "1 duplicate point(s) dropped" in found.notes[0]
    assert "pick force_add key_experts=4" in found.notes[0]


def test_references_are_shared_without_a_note(plan: Any) -> None:
    found = plan("+sweep=pick_strength", "calibration.score=choice(insertion_kl,removal_kl)")
    assert sum(point.rule.name == "none" for point in found.points) == 1
    assert len(found.points) == 8 + 2 * 15
    assert len(found.calibrations()) == 1, "a score is a choice among what one artifact holds"
    assert len({point.calibration_need for point in found.points}) == 3, "two scores, and none"
    assert found.notes == ()


def test_the_largest_engine_comes_first(plan: Any) -> None:
    found = plan("policy=fixed_k", "policy.k=4", "task=tiny", "model=choice(tiny,qwen3_30b_a3b,qwen3_235b_a22b)")
    assert [point.engine.gpus for point in found.points] == [8, 8, 1, 1, 0, 0]
    assert [point.rule.name for point in found.points] == ["none", "fixed_k"] * 3


@pytest.mark.parametrize(
    ("typed", "words"),
    [
        (["+sweep=pick_strength", "policy=ban"], "both choose the policies"),
        (["+sweep=pick_strength", "policy.lambda=1"], "no knob of any policy in this sweep"),
        (["+sweep=pick_strength", "policy.key_experts=range(4,4)"], "zero points"),
        (["+sweep=pick_strength", "policy.key_experts=choice()"], "zero points"),
        (["+sweep=pick_strength", "sweep.params=[]"], "zero points"),
        (["+sweep=pick_strength", "sweep.params=policy.boost=1"], "cannot be read"),
        (["+sweep=pick_strength", """sweep.params=["cluster.engines=2"]"""], "no setting of a point"),
        (["+sweep=pick_strength", "cluster.engines=choice(1,2)"], "one value only"),
        (["+sweep=pick_strength", "seed=1", "seed=2"], "typed twice"),
        (["+sweep=pick_strength", "seed=x"], "seed=x is no whole number"),
        (["policy.boost=1"], "belongs to no policy"),
        (["policy=pick", "policy.boost=2"], "changes nothing here"),
        (["engine.max_num_seqs=64"], "Neither a sweep nor a policy"),
        (["+sweep=ban_pick", "task.max_tokens=128"], "leaves no room for the prompt"),
        (["+sweep=ban_pick", "calibration.k_min=9"], "calibration.k_min=9 exceeds top_k=8"),
    ],
)
def test_a_command_that_means_nothing_is_refused(plan: Any, typed: list[str], words: str) -> None:
    with pytest.raises(UserError) as caught:
        plan(*typed)
    assert words in str(caught.value)


def test_a_thousand_points_plan_quickly(plan: Any) -> None:
    plan("+sweep=pick_strength")  # composing is paid once
    begin = time.process_time()
    found = plan("+sweep=pick_strength", "policy.boost=range(0.1,10.1,0.1)", "policy.key_experts=range(1,11)")
    assert len(found.points) == 8 + 1010
    assert time.process_time() - begin < 5


# ---------------------------------------------------------------- identity


ENGINE = EngineConfig(tensor_parallel_size=1, gpus=0, cpus=None, max_num_seqs=256)
TASK = TaskConfig(name="tiny", domains=("math", "code"), max_tokens=24)


def golden(policy: dict[str, Any], **changes: Any) -> str:
    values: dict[str, Any] = {
        "policy": policy,
        "engine": "0123456789abcdef",
        "task": TASK,
        "data_identity": "fedcba9876543210",
        "calibration": None,
        "seed": 0,
    }
    return point_fingerprint(**(values | changes))


def test_fingerprints_are_pinned() -> None:
    """A change here throws away every result on disk: raise FINGERPRINT_SCHEMA and say why, or undo it."""
    model = ModelConfig(name="tiny", dtype="bfloat16")
    assert engine_fingerprint("0123456789abcdef", model, ENGINE) == "219c8b965061f50b"
    assert golden({"name": "none"}) == "1de2c15cbfa96289"
    assert golden({"name": "fixed_k", "k": 4}) == "bd82706a9c32a1b2"
    pick = parse_policy("pick", {"mode": "boost", "boost": 1, "key_experts": 4}).canonical()
    settings = CalibrationConfig(k_min=3).model_dump(exclude={"path", "block_layers"}) | {"markers": (";",)}
    calibration = {"version": 3, "data": "0011223344556677", **settings}
    assert golden(pick, calibration=calibration) == "727a40e6e6ee25e9"


def test_a_fingerprint_changes_with_what_changes_results() -> None:
    base = golden({"name": "none"})
    changed = [
        golden({"name": "fixed_k", "k": 1}),
        golden({"name": "none"}, engine="other"),
        golden({"name": "none"}, task=TASK.model_copy(update={"max_problems": 10})),
        golden({"name": "none"}, data_identity="other"),
        golden({"name": "none"}, seed=1),
        golden({"name": "none"}, calibration=CalibrationConfig().model_dump()),
    ]
    assert len({base, *changed}) == len(changed) + 1
    assert golden({"name": "none"}, task=TASK.model_copy(update={"name": "mine", "data_files": "/x"})) == base


def test_an_engine_fingerprint_leaves_out_the_timeout_alone() -> None:
    model = ModelConfig(name="tiny", dtype="bfloat16")
    base = engine_fingerprint("x", model, ENGINE)
    for field, value in EngineConfig(
        tensor_parallel_size=2, pipeline_parallel_size=2, expert_parallel=True, gpus=4, cpus=2,
        max_num_seqs=8, max_num_batched_tokens=64, max_model_len=64,
        compile=True, extra_slots=2, moe_backend="triton",
        gpu_memory_utilization=0.5, kv_cache_gib=2, kv_cache_blocks=9, distributed_executor_backend="mp",
        policies_per_batch=2, model_runner="v2", parity_check=False, start_timeout_seconds=5, seed=1,
    ):  # fmt: skip
        other = engine_fingerprint("x", model, ENGINE.model_copy(update={field: value}))
        no_result = (
            "policies_per_batch",
            "parity_check",
            "start_timeout_seconds",
            "data_parallel_size",
        )  # the last is 1
        assert (other == base) == (field in no_result), field
    assert engine_fingerprint("x", model.model_copy(update={"dtype": "float32"}), ENGINE) != base
    assert engine_fingerprint("y", model, ENGINE) != base


def test_pipeline_stages_make_no_calibration(plan: Any) -> None:
    with pytest.raises(
        UserError, match=r"engine\.pipeline_parallel_size=2 cannot calibrate.*type calibration\.path=FOLDER"
    ):
        plan("policy=pick", "policy.boost=1", "engine.pipeline_parallel_size=2")
    assert plan("policy=fixed_k", "policy.k=2", "engine.pipeline_parallel_size=2").points


def test_calibration_settings_matter_only_to_policies_that_read_them(plan: Any) -> None:
    one, two = plan("+sweep=ban_pick"), plan("+sweep=ban_pick", "calibration.samples=32")
    for before, after in zip(one.points, two.points, strict=True):
        assert (before.fingerprint == after.fingerprint) == (not before.rule.needs_calibration())
    assert all(point.calibration_files for point in one.calibrations().values())


def test_points_travel_to_other_processes(plan: Any) -> None:
    points = plan("+sweep=ban_pick").points
    assert pickle.loads(pickle.dumps(points)) == points


# ---------------------------------------------------------------- run folder


def test_a_new_run_is_named_by_its_time(plan: Any, tmp_path: Path) -> None:
    first = plan("+sweep=ban_pick")
    assert first.folder.path == tmp_path / "ban_pick" / "20260131-093000"
    assert not (tmp_path / "ban_pick").exists(), "planning leaves nothing behind"
    first.folder.write_manifest(first.manifest())
    assert plan("+sweep=ban_pick").folder.path.name == "20260131-093000-2"


def test_resume_takes_a_name_or_a_folder(plan: Any) -> None:
    first = plan("+sweep=ban_pick")
    first.folder.write_manifest(first.manifest())
    for typed in (first.folder.path.name, str(first.folder.path)):
        again = plan("+sweep=ban_pick", f"resume={typed}", "cluster.engines=2")
        assert again.resume and again.folder.path == first.folder.path
        assert [point.fingerprint for point in again.points] == [point.fingerprint for point in first.points]


@pytest.mark.parametrize(
    ("typed", "words"),
    [
        (["+sweep=pick_strength"], "of the sweep ban_pick, but this command is of the sweep pick_strength"),
        (["+sweep=ban_pick", "model=qwen3_30b_a3b", "task=tiny"], "of the model(s) tiny"),
        (["+sweep=ban_pick", "task.domains=[math]"], "on the data of tiny"),
    ],
)
def test_a_run_of_something_else_is_not_resumed(plan: Any, typed: list[str], words: str) -> None:
    first = plan("+sweep=ban_pick")
    first.folder.write_manifest(first.manifest())
    with pytest.raises(UserError) as caught:
        plan(*typed, f"resume={first.folder.path}")
    if words != "on the data of tiny" or not first.points[0].data_missing:
        assert words in str(caught.value)


@pytest.mark.parametrize(
    ("begun", "typed", "words"),
    [
        ([], ["task.max_problems=5"], "task.max_problems=null"),
        (["task.max_tokens=12"], [], "task.max_tokens=12"),
        (["task.temperature=0.6"], ["task.temperature=0.7"], "task.temperature=0.6"),
        (["task.answer_separator=null"], [], "task.answer_separator=null"),
        ([], ["seed=1"], "seed=0"),
        (["engine.max_num_seqs=8"], [], "engine.max_num_seqs=8"),
        (["model.dtype=float32"], ["model.dtype=bfloat16"], "model.dtype=float32"),
    ],
)
def test_points_that_were_asked_otherwise_are_not_joined(
    plan: Any, begun: list[str], typed: list[str], words: str
) -> None:
    """Stock would stand twice in one table, with other answers."""
    first = plan("+sweep=ban_pick", *begun)
    first.folder.write_manifest(first.manifest())
    with pytest.raises(UserError, match="Leave resume out") as caught:
        plan("+sweep=ban_pick", *typed, f"resume={first.folder.path}")
    said = str(caught.value)
    remedy = shlex.split(said[said.rindex("or type ") + 8 : -1])
    assert words in said and words.split("=")[0] in [text.split("=")[0] for text in remedy]
    mended = {text.split("=")[0] for text in remedy}
    kept = [text for text in typed if text.split("=")[0] not in mended]
    assert plan("+sweep=ban_pick", *kept, *remedy, f"resume={first.folder.path}").resume, "what it says to type works"


def test_an_axis_of_a_sweep_is_many_setups_and_no_other(plan: Any) -> None:
    first = plan("+sweep=ban_pick", "task.max_tokens=choice(12,24)")
    first.folder.write_manifest(first.manifest())
    for typed in ("task.max_tokens=choice(12,24)", "task.max_tokens=12"):
        assert plan("+sweep=ban_pick", typed, f"resume={first.folder.path}").resume
    with pytest.raises(UserError, match=r"task\.max_tokens=48"):
        plan("+sweep=ban_pick", "task.max_tokens=choice(12,48)", f"resume={first.folder.path}")


def test_what_changes_no_answer_may_be_typed_anew(plan: Any) -> None:
    first = plan("+sweep=ban_pick")
    first.folder.write_manifest(first.manifest())
    typed = ("engine.start_timeout_seconds=900", "task.allow_zero=true", "repeats=2")
    assert plan("+sweep=ban_pick", *typed, f"resume={first.folder.path}").resume


def test_another_vllm_does_not_go_on(plan: Any) -> None:
    first = plan("+sweep=ban_pick")
    manifest = first.manifest()
    of_old = tuple(setup | {"vLLM": "0.1.0"} for setup in manifest.setups)
    first.folder.write_manifest(manifest.model_copy(update={"setups": of_old}))
    if not any("vLLM" in setup for setup in manifest.setups):
        pytest.skip("no vLLM is installed here")
    with pytest.raises(UserError, match=r"vLLM=0\.1\.0.*resume it where vLLM 0\.1\.0 is installed"):
        plan("+sweep=ban_pick", f"resume={first.folder.path}")


def test_a_manifest_of_old_is_held_against_its_records(plan: Any) -> None:
    first = plan("policy=none", "task.max_tokens=12")
    first.folder.write_manifest(first.manifest().model_copy(update={"setups": ()}))
    assert plan("policy=none", f"resume={first.folder.path}").resume, "nothing to mix with yet"
    (point,) = first.points
    task = point.task.model_dump(mode="json") | {"identity": point.data_identity}
    written = SyntheticRun(problems=3)
    written.add("none")
    written.change(written.records[0], model={"identity": point.checkpoint.identity}, task=task, versions={})
    written.change(written.records[0], engine={"max_num_seqs": point.engine.max_num_seqs})
    written.write(first.folder.path)
    with pytest.raises(UserError, match=r"task\.max_tokens=12"):
        plan("policy=none", f"resume={first.folder.path}")
    assert plan("policy=none", "task.max_tokens=12", f"resume={first.folder.path}").resume


@pytest.mark.parametrize("typed", ["", " "])
def test_an_output_dir_without_a_name_is_refused(typed: str) -> None:
    with pytest.raises(UserError, match=r"output_dir=.*names no folder.*output_dir=\."):
        plan_sweep(["policy=none", f"output_dir='{typed}'", "dry_run=true"])


@pytest.mark.parametrize("resume", [(), ("resume=a",)])
def test_an_output_dir_that_no_disk_can_hold_is_refused(resume: tuple[str, ...]) -> None:
    with pytest.raises(UserError, match=r"output_dir=/tmp/xxx.*longer than this file system allows"):
        plan_sweep(["policy=none", f"output_dir=/tmp/{'x' * 300}", "dry_run=true", *resume])


def test_folders_that_are_no_run_are_not_resumed(plan: Any, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no folder and no run.*no run of ban_pick"):
        plan("+sweep=ban_pick", "resume=20260101-000000")
    with pytest.raises(UserError, match=rf"no {MANIFEST}"):
        plan("+sweep=ban_pick", f"resume={tmp_path}")
    (tmp_path / MANIFEST).write_text("{")
    with pytest.raises(UserError, match="is damaged"):
        plan("+sweep=ban_pick", f"resume={tmp_path}")


def test_a_real_run_needs_what_a_dry_run_only_mentions(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"num_hidden_layers": 2, "num_experts": 16, "num_experts_per_tok": 4}')
    arguments = ["policy=none", "task=tiny", f"model.path={tmp_path}", f"output_dir={tmp_path / 'out'}"]
    assert any("no weights" in note for note in plan_sweep([*arguments, "dry_run=true"]).notes)
    with pytest.raises(UserError, match="no weights"):
        plan_sweep(arguments)


def test_an_estimate_grows_with_the_work_and_shrinks_with_engines(plan: Any) -> None:
    few, many = plan("+sweep=ban_pick", "task.max_problems=10"), plan("+sweep=ban_pick")
    assert few.estimate(1).answer_seconds < many.estimate(1).answer_seconds
    two = plan("+sweep=ban_pick").estimate(2)
    assert two.engine_loads == 2 and two.seconds < many.estimate(1).seconds
    assert two.answer_seconds == many.estimate(1).answer_seconds, "the same work, on two engines"
    assert plan("policy=none").estimate(1).calibration_seconds == 0


def test_a_compiled_engine_too_narrow_for_added_experts_is_announced(plan: Any) -> None:
    wide = ("engine.compile=true", "policy=pick", "policy.mode=range_add", "policy.key_experts=4")
    (note,) = plan(*wide, "engine.extra_slots=1").notes
    assert "engine.extra_slots=4, or engine.compile=false" in note and "pick range_add key_experts=4" in note
    with pytest.raises(UserError, match=r"no slot for it: engine\.extra_slots=0\. Type engine\.extra_slots=1"):
        plan(*wide)
    assert not plan(*wide, "engine.extra_slots=4").notes
    assert not plan("engine.compile=true", "policy=ban", "policy.lambda=1", "policy.k_min=3").notes


def test_nothing_typed_is_dropped_because_params_name_a_policy(plan: Any) -> None:
    """15 planned points became 5."""
    typed = [
        """sweep.params=["policy=naee","policy.beta=choice(0.3,0.5)"]""",
        """sweep.blocks=[["policy=ban","policy.lambda=choice(0.5,0.7,1)"]]""",
    ]
    names = [point.rule.name for point in plan(*typed).points]
    assert names == ["none", "naee", "naee", "ban", "ban", "ban"]
    beside = [point.rule.name for point in plan("+sweep=pick_strength", *typed).points]
    assert [name for name in beside if name not in ("none", "fixed_k")] == names[1:]


@pytest.mark.parametrize("name", ["..", ".", ".hidden", "calibrations", "solved"])
def test_a_sweep_cannot_be_named_out_of_its_folder(plan: Any, name: str) -> None:
    with pytest.raises(UserError, match="is no name for a sweep"):
        plan("policy=none", f"sweep.name={name}")


@pytest.mark.parametrize("seed", [-5, 2**32, 20261126155720])
def test_a_seed_that_the_engine_would_refuse_is_refused(plan: Any, seed: int) -> None:
    with pytest.raises(UserError, match="outside 0 to 4294967295"):
        plan("policy=none", f"seed={seed}")
