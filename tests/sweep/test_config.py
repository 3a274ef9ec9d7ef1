"""conf/ and its typed form: every shipped file composes, and every mistake becomes one readable message."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from checkpoint_folder import write_checkpoint

from banpick_exp.config import fingerprint, validated
from banpick_exp.engine.config import EngineConfig
from banpick_exp.errors import UserError
from banpick_exp.models.config import ModelConfig
from banpick_exp.models.shape import MoeShape
from banpick_exp.policy import POLICIES
from banpick_exp.sweep.compose import GROUPS, Composer, choices, conf_dir
from banpick_exp.sweep.help import help_page
from banpick_exp.sweep.overrides import edited_blocks, expand, parse_axis
from banpick_exp.sweep.plan import plan_sweep
from banpick_exp.tasks.config import TaskConfig

SHAPE = MoeShape(num_layers=2, num_experts=16, top_k=4)
MODELS = ["tiny", "tiny_control", "qwen3_30b_a3b", "qwen3_235b_a22b", "deepseek_v2_lite", "deepseek_v2_5"]
"""One of each kind; tests/sweep/test_inspection.py plans on every file."""
FILES = [(group, name) for group in GROUPS for name in choices(group)]


def write_offset(path: Path, layers: int = 4, experts: int = 32) -> Path:
    """A safetensors file of router-logit offsets, all 0, by default of the tiny model's shape."""
    size = 4 * layers * experts
    tensor = {"dtype": "F32", "shape": [layers, experts], "data_offsets": [0, size]}
    header = json.dumps({"logit_offset": tensor}).encode()
    path.write_bytes(len(header).to_bytes(8, "little") + header + bytes(size))
    return path


# ---------------------------------------------------------------- conf/


@pytest.mark.parametrize(("group", "name"), FILES, ids=["-".join(file) for file in FILES])
def test_every_shipped_file_is_composed_and_validated(group: str, name: str, tmp_path: Path) -> None:
    arguments = [f"output_dir={tmp_path}", "dry_run=true", f"+sweep={name}" if group == "sweep" else f"{group}={name}"]
    if (group, name) == ("search", "optuna"):
        arguments += ["policy=fixed_k", "policy.k=choice(2,4)"]
    elif (group, name) == ("search", "select"):
        arguments.append("policy=pick")
    elif group not in ("sweep", "policy"):
        arguments.append("policy=none")
    if group == "model":
        arguments.append("task=tiny")
    if (group, name) == ("model", "local"):
        arguments.append(f"model.path={write_checkpoint(tmp_path / 'checkpoint')}")
    if group == "task" and name != "tiny":  # those that are fetched first are asked what is ours
        (tmp_path / "mine.test.jsonl").write_text('{"prompt": "1+1=", "answer": "2"}\n')
        arguments += [f"task.data_files='{tmp_path}/{{domain}}.{{split}}.jsonl'", "task.domains=[mine]"]
        arguments += ["task.max_tokens=24", "task.chat_template=false", "task.grader=exact_match"]
    if group == "task" and name in ("lm_eval", "ifeval"):
        arguments.append("task.source=null")  # rows of ours are no documents of lm-eval's
    if (group, name) == ("task", "lm_eval"):
        arguments.append("task.name=arc_easy")
    if (group, name) == ("policy", "fixed_k"):
        arguments.append("policy.k=2")
    if (group, name) == ("policy", "dynamic_experts"):
        arguments += ["task.samples=8", "task.temperature=0.5"]
    if (group, name) == ("policy", "mask"):
        arguments.append("policy.experts={0:[3,7]}")
    if (group, name) == ("policy", "logit_offset"):
        arguments.append(f"policy.path={write_offset(tmp_path / 'offset.safetensors')}")
    plan = plan_sweep(arguments)
    assert plan.points[0].rule.name == "none"
    if group == "policy":
        assert plan.points[-1].rule.name == name


def test_every_yaml_is_reached_by_the_test_above() -> None:
    known = {conf_dir() / group / f"{name}.yaml" for group, name in FILES}
    assert set(conf_dir().rglob("*.y*ml")) == known | {conf_dir() / "config.yaml"}


def test_every_policy_has_a_file_and_every_file_a_policy() -> None:
    assert set(choices("policy")) == set(POLICIES)


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("sweep", choices("sweep"))
def test_every_sweep_plans_on_every_model(sweep: str, model: str, tmp_path: Path) -> None:
    plan = plan_sweep([f"+sweep={sweep}", f"model={model}", "task=tiny", "dry_run=true", f"output_dir={tmp_path}"])
    few = sweep == "dynamic_experts"  # eight answers to each problem: two rungs, and those of the measured budgets
    assert len(plan.points) >= (4 if few else 17)
    ladder = 2 if few else plan.points[0].checkpoint.shape.top_k - 1
    assert [point.rule.name for point in plan.points[: 1 + ladder]] == ["none"] + ["fixed_k"] * ladder
    assert len(plan.by_engine()) == 1
    engine = plan.points[0].engine
    sizes = {"qwen3_30b_a3b": (1, 1), "qwen3_235b_a22b": (8, 8), "deepseek_v2_lite": (1, 1), "deepseek_v2_5": (8, 8)}
    assert (engine.tensor_parallel_size, engine.gpus) == sizes.get(model, (1, 0))


def test_a_typed_engine_wins_over_the_models_own() -> None:
    assert Composer().setting({"model": "qwen3_235b_a22b"}).engine.gpus == 8
    assert Composer().setting({"model": "qwen3_235b_a22b", "engine": "cuda"}).engine.gpus == 1


def test_the_help_page_lists_every_choice() -> None:
    page = help_page()
    for _, name in FILES:
        assert name in page


# ---------------------------------------------------------------- sections


@pytest.mark.parametrize(
    ("section", "values", "words"),
    [
        (EngineConfig, {"gpu": 1}, ["engine.gpu ", "Did you mean engine.gpus?"]),
        (EngineConfig, {"max_num_seqs": "many"}, ["engine.max_num_seqs=many is not a whole number", "=256"]),
        (EngineConfig, {"max_num_seqs": 0}, ["engine.max_num_seqs=0 is below 1"]),
        (EngineConfig, {"gpu_memory_utilization": float("nan")}, ["engine.gpu_memory_utilization=nan", "finite"]),
        (EngineConfig, {"tensor_parallel_size": 4, "gpus": 2}, ["engine.gpus=2", "no GPU", "Type engine.gpus=4"]),
        (EngineConfig, {"tensor_parallel_size": 2, "pipeline_parallel_size": 2, "gpus": 2}, ["Type engine.gpus=4"]),
        (EngineConfig, {"data_parallel_size": 2}, ["engine.data_parallel_size=2", "type cluster.engines=2"]),
        (EngineConfig, {"expert_parallel": True, "tensor_parallel_size": 2}, ["CPU engines", "expert_parallel=false"]),
        (EngineConfig, {"expert_parallel": True, "gpus": 1}, ["would change nothing", "Type engine.tensor_parallel_s"]),
        (EngineConfig, {"distributed_executor_backend": "ray"}, ["does not exist for CPU engines", "backend=mp"]),
        (EngineConfig, {"policies_per_batch": 0}, ["engine.policies_per_batch=0 is below 1, and not 'auto' either: "]),
        (EngineConfig, {"policies_per_batch": "many"}, ["_batch=many is not a whole number, and not 'auto' either: "]),
        (
            EngineConfig,
            {"policies_per_batch": 257, "max_num_seqs": 0},
            ["batch=257 is above 256", "_seqs=0 is below 1"],
        ),
        (EngineConfig, {"model_runner": "v2"}, ["does not exist for CPU engines", "engine.model_runner=v1"]),
        (EngineConfig, {"max_num_batched_tokens": 8}, ["engine.max_num_batched_tokens=8", "Type"]),
        (ModelConfig, {"name": "x", "dtype": "bf16"}, ["model.dtype=bf16 is none of", "'bfloat16'"]),
        (ModelConfig, {"name": "x", "path": "???"}, ["model.path has no default", "model.path=VALUE"]),
        (ModelConfig, {"name": "x", "path": "/x", "control": "math"}, ["model.control=math", "model=tiny_control"]),
        (TaskConfig, {"name": "x", "domains": []}, ["task.domains=[] is empty"]),
        (TaskConfig, {"name": "x", "domains": ["a", "a"]}, ["names a twice"]),
        (TaskConfig, {"name": "x", "domains": ["a"], "answer_pattern": "a+"}, ["has 0 groups", "exactly one"]),
        (TaskConfig, {"name": "x", "domains": ["a"], "answer_pattern": "("}, ["no regular expression", "type e.g."]),
        (TaskConfig, {"name": "x", "domains": ["a"], "answer_pattern": "[[:digit:]](.)"}, ["no regular expression"]),
        (TaskConfig, {"name": "x", "domains": None}, ["is not a list", "task.domains=[A,B]"]),
        (TaskConfig, {"name": "x", "domains": [1]}, ["is not a text", "Type 'task.domains=[\"1\"]'"]),
        (TaskConfig, {"name": "x", "domains": ["a"], "chat_template_kwargs": 3}, ["no object", "{enable_thinking: "]),
    ],
)
def test_a_wrong_value_is_named_with_its_remedy(section: Any, values: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(UserError) as caught:
        validated(section, values, section.__name__.removesuffix("Config").lower())
    for word in words:
        assert word in str(caught.value)


def test_tensor_parallel_on_cpu_needs_no_gpus() -> None:
    assert EngineConfig(tensor_parallel_size=2, distributed_executor_backend="mp").gpus == 0
    assert EngineConfig(tensor_parallel_size=2, pipeline_parallel_size=3).ranks == 6


def test_how_an_engine_is_divided_is_said_in_words() -> None:
    assert EngineConfig().ranks_in_words == "" and EngineConfig().in_process
    divided = EngineConfig(tensor_parallel_size=8, pipeline_parallel_size=2, expert_parallel=True, gpus=16)
    assert divided.ranks_in_words == ", tensor parallel 8, pipeline parallel 2, expert parallel"
    assert not divided.in_process and not EngineConfig(pipeline_parallel_size=2).in_process


def test_fingerprint_golden_values() -> None:
    """Changing these re-keys every result: a deliberate act."""
    assert fingerprint({}) == "44136fa355b3678a"
    assert fingerprint({"b": [1, 2.5, None], "a": "é"}) == fingerprint({"a": "é", "b": [1, 2.5, None]})
    assert fingerprint({"a": 1}) == "015abd7f5cc57a2d"
    with pytest.raises(ValueError):
        fingerprint({"a": float("nan")})


# ---------------------------------------------------------------- axes


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("policy.boost=choice(0.25,1)", (0.25, 1)),
        ("policy.boost=0.5,1", (0.5, 1)),
        ("policy.lambda=range(0.5,2,0.5)", (0.5, 1.0, 1.5)),
        ("policy.k=range(1,K)", (1, 2, 3)),
        ("policy.key_experts=choice(1,K,E)", (1, 4, 16)),
        ("policy.experts={0: [1, 2]}", ({0: [1, 2]},)),
        ("model.path='a,b'", ("a,b",)),
        ("engine.compile=true,false", (True, False)),
        ("task.split=choice('test',dev)", ("test", "dev")),
    ],
)
def test_an_override_expands_to_its_values(text: str, values: tuple[Any, ...]) -> None:
    assert parse_axis(text, SHAPE).values == values


@pytest.mark.parametrize("text", ["a=choice()", "a=range(1,K)", "a=interval(0,1)", "a=glob(*)", "~a", "a@b=1", "a==1"])
def test_text_outside_the_grammar_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(UserError, match=r"Type|KEY=choice|List"):
        parse_axis(text)


def test_a_block_is_the_product_of_its_axes() -> None:
    block = ("policy=fixed_k", "policy.k=range(1,K)", "engine.max_num_seqs=choice(8,16)")
    assignments = expand(block, lambda assignment: SHAPE)
    assert len(assignments) == 6
    assert assignments[0] == {"policy": "fixed_k", "engine.max_num_seqs": 8, "policy.k": 1}
    with pytest.raises(UserError, match="twice"):
        expand(("seed=1", "seed=2"), lambda assignment: SHAPE)


BOOST = ("policy=pick", "policy.mode=boost", "policy.boost=choice(1,2)", "policy.key_experts=choice(1,4)")
RANGE = ("policy=pick", "policy.mode=range_replace", "policy.key_experts=choice(1,4)")


@pytest.mark.parametrize(
    ("edits", "expected"),
    [
        (["policy.key_experts=8"], [(*BOOST[:3], "policy.key_experts=8"), (*RANGE[:2], "policy.key_experts=8")]),
        (["policy.boost=3"], [(*BOOST[:2], "policy.boost=3", BOOST[3]), RANGE]),
        (["policy.mode=range_replace"], [RANGE]),
        (
            ["policy.mode=choice(range_replace,range_add)"],
            [(RANGE[0], "policy.mode=choice(range_replace,range_add)", RANGE[2])],
        ),
        (["policy.range_factor=2"], [(*BOOST, "policy.range_factor=2"), (*RANGE, "policy.range_factor=2")]),
        (["seed=choice(0,1)"], [(*BOOST, "seed=choice(0,1)"), (*RANGE, "seed=choice(0,1)")]),
        (["policy=ban", "policy.lambda=1"], [("policy=ban", "policy.lambda=1")]),
    ],
)
def test_the_command_line_narrows_and_adds_axes(edits: list[str], expected: list[tuple[str, ...]]) -> None:
    assert edited_blocks([BOOST, RANGE], edits) == expected
