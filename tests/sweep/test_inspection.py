"""`inspect`: what a checkpoint is, read without torch, for every kind of config.json and every file of conf/model/."""

from __future__ import annotations

import dataclasses
import json
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from checkpoint_folder import safetensors, write_folder

from banpick_exp.cli.main import run
from banpick_exp.errors import UserError
from banpick_exp.models.published import PUBLISHED
from banpick_exp.policy.registry import POLICIES, RULES
from banpick_exp.policy.rule import Rule
from banpick_exp.sweep.compose import Composer, choices
from banpick_exp.sweep.inspect_command import WIDTH, plain, told
from banpick_exp.sweep.inspect_next import commands, fetches
from banpick_exp.sweep.inspection import Inspection, inspect
from banpick_exp.sweep.plan import plan_sweep
from banpick_exp.sweep.sensible_rules import rules_for
from banpick_exp.tasks.data_folder import FOLDER_VARIABLE

SHIPPED = [name for name in choices("model") if name not in ("local", "tiny", "tiny_control")]
QWEN = dict(PUBLISHED["Qwen/Qwen3-30B-A3B"])


def folder_of(tmp_path: Path, config: dict[str, Any], **changes: Any) -> Path:
    """A checkpoint before its weights are copied."""
    whole = {key: value for key, value in {**config, **changes}.items() if value is not None}
    return write_folder(tmp_path / "model", whole, weights=None)


def of(tmp_path: Path, config: dict[str, Any], **changes: Any) -> Inspection:
    return inspect(str(folder_of(tmp_path, config, **changes)))


# ---------------------------------------------------------------- conf/model/


@pytest.mark.parametrize("name", SHIPPED)
def test_every_shipped_model_is_inspected_and_plans_from_a_folder_of_its_shape(name: str, tmp_path: Path) -> None:
    """What its file states is what its config.json says, and its own engine holds it."""
    found = inspect(name)
    stated = Composer().setting({"model": name}).model
    assert (found.shape.num_layers, found.shape.num_experts, found.shape.top_k) == (
        *(stated.num_layers, stated.num_experts),
        stated.top_k,
    )
    assert found.hook == "hooked" and found.described.doubts == () and found.described.routing.scoring is not None
    assert found.described.routing.renormalises is not None and found.described.routing.corrected is not None
    least = found.smallest_ranks(found.sizes.weight_bytes)
    assert least == found.engine.tensor_parallel_size, "the smallest that fits 80 GB"
    assert found.heads % found.engine.tensor_parallel_size == 0
    assert {cost.way for cost in found.costs} >= {"layers alone", "gain, race"}
    assert all(len(line) <= WIDTH for line in told(found) if not line.startswith("  python"))
    folder = folder_of(tmp_path, dict(PUBLISHED[str(stated.path)]))
    typed = [
        f"model={name}",
        f"model.path={folder}",
        "task=tiny",
        "policy=fixed_k",
        "policy.k=1",
        f"output_dir={tmp_path}",
    ]
    plan = plan_sweep([*typed, "dry_run=true"])
    assert [point.rule.name for point in plan.points] == ["none", "fixed_k"]
    assert plan.points[0].checkpoint.notes == ()


def test_a_commit_of_one_repository_is_not_asked_of_another() -> None:
    composer = Composer()
    assert composer.setting({"model": "qwen3_30b_a3b"}).model.revision == "ad44e777bcd18fa416d9da3bd8f70d33ebb85d39"
    other = {"model": "qwen3_30b_a3b", "model.path": "somebody/else"}
    assert composer.setting(other).model.revision is None
    assert composer.setting({**other, "model.revision": "abc"}).model.revision == "abc"


def test_revisions_are_whole_commits_or_none() -> None:
    for name in SHIPPED:
        revision = Composer().setting({"model": name}).model.revision
        assert revision is None or (len(revision) == 40 and int(revision, 16)), name


def test_a_hub_id_is_looked_up_and_what_is_unknown_is_refused() -> None:
    assert inspect("openai/gpt-oss-20b").name == "gpt_oss_20b"
    with pytest.raises(UserError, match=r"Did you mean inspect mixtral\?"):
        inspect("mixtrall")
    with pytest.raises(UserError, match=r"hf download foo/bar config\.json"):
        inspect("foo/bar")


# ---------------------------------------------------------------- routers


@pytest.mark.parametrize(
    ("name", "kind", "renormalises", "shared", "dense"),
    [
        ("qwen3_next_80b_a3b", "top-k", True, 1, ()),
        ("deepseek_v2_5", "grouped top-k (the best 3 of 8 groups)", False, 2, (0,)),
        ("deepseek_v3", "grouped top-k (the best 4 of 8 groups) with a correction bias", True, 1, (0, 1, 2)),
        ("kimi_k2", "top-k with a correction bias", True, 1, (0,)),
        ("glm_4_5_air", "top-k with a correction bias", True, 1, (0,)),
        ("ernie_4_5_21b", "top-k with a correction bias", True, 2, (0,)),
        ("olmoe", "top-k", False, 0, ()),
        ("granite_moe", "top-k", True, 0, ()),
    ],
)
def test_routers_are_read(name: str, kind: str, renormalises: bool, shared: int, dense: tuple[int, ...]) -> None:
    found = inspect(name)
    routing = found.described.routing
    assert (routing.kind, routing.renormalises, routing.shared_experts) == (kind, renormalises, shared)
    assert found.dense == dense
    assert routing.scoring == ("sigmoid" if name in ("deepseek_v3", "kimi_k2", "glm_4_5_air") else "softmax")


def test_a_vision_model_is_read_through_its_text_config(tmp_path: Path) -> None:
    inner = {key: value for key, value in QWEN.items() if key != "architectures"}
    quantised = {"quant_method": "fp8"}
    found = of(
        tmp_path,
        {"architectures": ["Qwen3VLMoeForConditionalGeneration"], "text_config": inner, "vision_config": {"depth": 27}},
        quantization_config=quantised,
    )
    assert found.shape.num_layers == 48 and found.described.routing.renormalises is True
    assert found.stored_as == "fp8", "said of the whole, it holds for the text model"


# ---------------------------------------------------------------- quantised checkpoints

INT4 = {"num_bits": 4, "type": "int", "group_size": 128}
GROUP = {"config_groups": {"group_0": {"targets": ["Linear"], "weights": INT4}}, "quant_method": "compressed-tensors"}
NVFP4 = {"config_groups": {"a": {"weights": {"num_bits": 4, "type": "float", "group_size": 16}}}}


@pytest.mark.parametrize(
    ("quantised", "label", "gigabytes", "hook", "words"),
    [
        ({"quant_method": "fp8", "weight_block_size": [128, 128]}, "fp8", 31.2, "hooked", "Hopper takes Triton"),
        ({"quant_method": "awq", "bits": 4, "group_size": 128}, "awq (int4)", 16.8, "hooked", "Marlin asks"),
        ({"quant_method": "gptq", "bits": 8, "group_size": -1}, "gptq (int8)", 31.2, "hooked", "Triton"),
        ({"quant_method": "mxfp4"}, "mxfp4", 18.5, "hooked", "engine.moe_backend=marlin"),
        (GROUP, "compressed-tensors (int4)", 16.8, "hooked", "Marlin asks"),
        ({**GROUP, **NVFP4}, "compressed-tensors (nvfp4)", 18.1, "hooked", "engine.moe_backend=marlin"),
        ({"quant_method": "modelopt", "quant_algo": "NVFP4"}, "modelopt (nvfp4)", 18.1, "hooked", "marlin"),
        ({"quant_method": "hqq"}, "hqq (unknown here)", 61.1, "unknown", "nothing is known here"),
        ({"quant_method": "gptq", "bits": 3}, "gptq (unknown here)", 61.1, "unknown", "nothing is known"),
        ({"quant_method": "compressed-tensors"}, "compressed-tensors (unknown here)", 61.1, "unknown", "nothing"),
    ],
)
def test_a_quantised_checkpoint_says_its_bytes_and_its_kernel(
    tmp_path: Path, quantised: dict[str, Any], label: str, gigabytes: float, hook: str, words: str
) -> None:
    found = of(tmp_path, QWEN, quantization_config=quantised)
    assert found.stored_as == label
    assert found.sizes.weight_bytes / 1e9 == pytest.approx(gigabytes, rel=0.02)
    assert found.sizes.parameters / 1e9 == pytest.approx(30.5, rel=0.01), "as many, however they are stored"
    assert found.hook == hook and words in found.why
    if "marlin" in words:
        assert "engine.moe_backend=marlin" in " ".join(commands(found))


def test_bytes_are_those_of_the_index_where_there_is_one(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, QWEN)
    index = {"metadata": {"total_size": 30_000_000_000}, "weight_map": {"a": "model-00001-of-00002.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    found = inspect(str(folder))
    assert found.sizes.weight_bytes == pytest.approx(30e9) and found.weighed
    assert found.missing is not None and "holds no weights" in found.missing


def test_missing_shards_are_refused_by_name(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, QWEN)
    names = [f"model-0000{n}-of-00009.safetensors" for n in range(1, 10)]
    (folder / names[0]).write_bytes(safetensors())
    weight_map = {str(n): name for n, name in enumerate(names)}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    with pytest.raises(UserError, match=r"names 8 weight files .*00002-of.*00007-of-00009.safetensors and 2 more\)"):
        inspect(str(folder))


# ---------------------------------------------------------------- refused and unknown


@pytest.mark.parametrize(
    ("changes", "hook", "words"),
    [
        ({"architectures": ["DeepseekV4ForCausalLM"]}, "refused", "silently do nothing"),
        ({"architectures": ["Gemma4ForCausalLM"]}, "refused", "a function of the model's own"),
        ({"scoring_func": "sqrtsoftplus"}, "refused", "softmax and sigmoid alone"),
        ({"architectures": ["BrandNewMoeForCausalLM"]}, "unknown", "verify"),
    ],
)
def test_what_the_hook_would_refuse_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], changes: dict[str, Any], hook: str, words: str
) -> None:
    folder = folder_of(tmp_path, QWEN, **changes)
    found = inspect(str(folder))
    assert found.hook == hook and words in found.why
    assert run(["inspect", str(folder)]) == (1 if hook == "refused" else 0)
    printed = capsys.readouterr().out
    assert f"hook        {hook.upper()}" in printed
    assert ("next" in printed.splitlines()) is (hook != "refused")


def test_a_dense_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is a dense model"):
        of(tmp_path, {"architectures": ["LlamaForCausalLM"], "num_hidden_layers": 2, "hidden_size": 8})


# ---------------------------------------------------------------- rules, costs, commands


TYPED: dict[str, dict[str, Any]] = {"fixed_k": {"k": 1}, "mask": {"experts": {0: [3]}}}
"""What the shipped knobs of a rule lack."""


@pytest.mark.parametrize("rule", [rule for rule in RULES if rule.name != "logit_offset"], ids=lambda rule: rule.name)
def test_a_rule_says_of_itself_what_its_shipped_knobs_need(rule: type[Rule]) -> None:
    shape = inspect("qwen3_30b_a3b").shape
    typed = {f"policy.{knob}": value for knob, value in TYPED.get(rule.name, {}).items()}
    policy, _ = Composer().policy({"policy": rule.name, **typed}, shape)
    assert (rule.needs == "a calibration") is policy.needs_calibration()
    assert (rule.needs == "data of your own") is (rule.name == "mask")
    single = dataclasses.replace(shape, top_k=1)
    if rule.prunes:
        policy, _ = Composer().policy({"policy": rule.name, **typed}, single)
        assert policy.budget(single) == (1, 1), "idle with one expert a token"
        assert rule.idle_on(single) and not rule.idle_on(shape)


def test_rules_are_told_by_what_a_checkpoint_has() -> None:
    routing, shape = inspect("mixtral").described.routing, inspect("mixtral").shape
    states = {sense.rule: sense for sense in rules_for(shape, routing, gpu=True)}
    assert list(states) == [name for name in POLICIES if name != "none"]
    assert states["expert_sample"].state == "idle" and states["fixed_k"].state == "sensible"
    assert states["diep"].eager and not states["ban"].eager
    assert states["fixed_k"].remark == "k=1 is the only whole budget below its own"
    assert states["ban"].remark == states["ban_pick"].remark == "k_min 1 unless typed"
    grouped = inspect("deepseek_v3")
    states = {sense.rule: sense for sense in rules_for(grouped.shape, grouped.described.routing, gpu=True)}
    assert states["ban_pick"].remark == "k_min 3 unless typed; inserts only what the 4 groups of a token hold"
    assert "corrected rank" in states["fixed_k"].remark and "raw=false" in states["top_p"].remark
    assert "at weight 0" in states["mask"].remark
    on_cpu = {sense.rule: sense for sense in rules_for(grouped.shape, grouped.described.routing, gpu=False)}
    assert on_cpu["mask"].remark == "experts named by hand" and not on_cpu["diep"].eager


def test_one_expert_a_token_leaves_nothing_to_prune(tmp_path: Path) -> None:
    found = of(tmp_path, QWEN, num_experts_per_tok=1)
    idle = {sense.rule for sense in rules_for(found.shape, found.described.routing, gpu=True) if sense.state == "idle"}
    assert idle >= {"fixed_k", "naee", "top_p", "ban"} and not idle & {"mask", "pick", "ban_pick"}
    assert found.costs == () and "no selection to change" in str(found.no_costs)


def test_a_race_costs_less_than_every_expert_and_a_larger_model_more() -> None:
    small, large = inspect("qwen3_30b_a3b"), inspect("qwen3_235b_a22b")
    hours = {cost.way: cost.hours for cost in small.costs}
    assert hours["insertion_kl, race"] < hours["insertion_kl, full"] < hours["gain, full"]
    assert {cost.way: cost.hours for cost in large.costs}["gain, race"] > hours["gain, race"]


@pytest.mark.parametrize("model", ["tiny", "olmoe"])
def test_the_first_command_plans_as_it_is_printed(model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(FOLDER_VARIABLE, str(tmp_path / "data"))
    found = inspect(model)
    assert fetches(found) == ([] if model == "tiny" else ["python -m banpick_exp tasks fetch gsm8k"])
    (tmp_path / "data" / "gsm8k").mkdir(parents=True)
    (tmp_path / "data" / "gsm8k" / "math_test.jsonl").write_text('{"prompt": "1+1=", "answer": "2"}\n')
    first, verify, last = commands(found)
    assert verify.startswith("python -m banpick_exp verify model=") and first == f"{last} dry_run=true"
    plan = plan_sweep([*shlex.split(first)[3:], f"output_dir={tmp_path}"])
    assert len(plan.points) == plan.points[0].checkpoint.shape.top_k


def test_heads_that_do_not_divide_are_no_choice() -> None:
    found = inspect("ernie_4_5_21b")
    assert found.divides(4) and not found.divides(8)
    assert "20 attention heads do not divide" in " ".join(line.strip() for line in told(found))


def test_json_holds_the_same(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["inspect", "deepseek_v3", "--hardware", "h200", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["moe_layers"][0] == 3 and found["dense_layers"] == [0, 1, 2] and found["schema"] == 1
    assert found["memory"][0]["format"] == "fp8" and found["memory"][0]["smallest_tensor_parallel_size"] == 8
    assert found.keys() == plain(inspect("mixtral")).keys()
    assert found["router"]["scoring"] == "sigmoid" and found["hook"]["verdict"] == "hooked"


def test_nothing_heavy_is_loaded() -> None:
    program = (
        "import sys; from banpick_exp.cli.main import run; run(['inspect', 'tiny']);"
        "sys.exit(sorted({'torch', 'vllm', 'ray', 'wandb', 'transformers', 'datasets'} & set(sys.modules)) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
