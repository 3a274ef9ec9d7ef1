"""conf/ and its typed form: every shipped file composes, and every mistake becomes one readable message."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from banpick_exp.config import fingerprint, validated
from banpick_exp.engine.config import EngineConfig
from banpick_exp.errors import UserError
from banpick_exp.models.checkpoint import END_BYTES, WHOLE_FILE_LIMIT
from banpick_exp.models.config import ModelConfig
from banpick_exp.models.families import moe_layer_count
from banpick_exp.models.inspect import inspect_checkpoint
from banpick_exp.models.shape import MoeShape
from banpick_exp.policy import POLICIES
from banpick_exp.sweep.compose import GROUPS, Composer, choices, conf_dir
from banpick_exp.sweep.help import help_page
from banpick_exp.sweep.overrides import edited_blocks, expand, parse_axis
from banpick_exp.sweep.plan import plan_sweep
from banpick_exp.tasks.config import TaskConfig
from banpick_exp.tasks.files import inspect_task

SHAPE = MoeShape(num_layers=2, num_experts=16, top_k=4)
MODELS = [name for name in choices("model") if name != "local"]
FILES = [(group, name) for group in GROUPS for name in choices(group)]


def write_checkpoint(folder: Path, weights: bytes | None = b"weights", **changes: Any) -> Path:
    """A folder that looks like a Qwen3-MoE checkpoint of SHAPE; a change to None removes the key."""
    config: dict[str, Any] = {
        "architectures": ["Qwen3MoeForCausalLM"],
        "num_hidden_layers": 2,
        "num_experts": 16,
        "num_experts_per_tok": 4,
    }
    config = {key: value for key, value in (config | changes).items() if value is not None}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    if weights is not None:
        (folder / "model.safetensors").write_bytes(weights)
    return folder


def write_offset(path: Path, layers: int = 4, experts: int = 32) -> Path:
    """A safetensors file of router-logit offsets, all 0, by default of the tiny model's shape."""
    size = 4 * layers * experts
    tensor = {"dtype": "F32", "shape": [layers, experts], "data_offsets": [0, size]}
    header = json.dumps({"logit_offset": tensor}).encode()
    path.write_bytes(len(header).to_bytes(8, "little") + header + bytes(size))
    return path


def inspect(path: Path | str, **settings: Any) -> Any:
    return inspect_checkpoint(ModelConfig(name="local", path=str(path), **settings))


# ---------------------------------------------------------------- conf/


@pytest.mark.parametrize(("group", "name"), FILES, ids=["-".join(file) for file in FILES])
def test_every_shipped_file_is_composed_and_validated(group: str, name: str, tmp_path: Path) -> None:
    arguments = [f"output_dir={tmp_path}", "dry_run=true", f"+sweep={name}" if group == "sweep" else f"{group}={name}"]
    if (group, name) == ("search", "optuna"):
        arguments += ["policy=fixed_k", "policy.k=choice(2,4)"]
    elif group not in ("sweep", "policy"):
        arguments.append("policy=none")
    if (group, name) == ("model", "local"):
        arguments.append(f"model.path={write_checkpoint(tmp_path / 'checkpoint')}")
    if (group, name) == ("task", "jsonl"):
        (tmp_path / "mine.test.jsonl").write_text('{"prompt": "1+1=", "answer": "2"}\n')
        arguments += [f"task.data_files='{tmp_path}/{{domain}}.{{split}}.jsonl'", "task.domains=[mine]"]
        arguments.append("engine.max_model_len=1024")
    if (group, name) == ("policy", "fixed_k"):
        arguments.append("policy.k=2")
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
    plan = plan_sweep([f"+sweep={sweep}", f"model={model}", "dry_run=true", f"output_dir={tmp_path}"])
    assert len(plan.points) >= 20
    assert [point.rule.name for point in plan.points[:8]] == ["none"] + ["fixed_k"] * 7
    assert len(plan.by_engine()) == 1
    engine = plan.points[0].engine
    sizes = {"qwen3_30b_a3b": (1, 1), "qwen3_235b_a22b": (8, 8)}
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
        (EngineConfig, {"distributed_executor_backend": "ray"}, ["does not exist for CPU engines", "backend=mp"]),
        (EngineConfig, {"max_num_batched_tokens": 8}, ["engine.max_num_batched_tokens=8", "Type"]),
        (ModelConfig, {"name": "x", "dtype": "bf16"}, ["model.dtype=bf16 is none of", "'bfloat16'"]),
        (ModelConfig, {"name": "x", "path": "???"}, ["model.path has no default", "model.path=VALUE"]),
        (ModelConfig, {"name": "x", "path": "/x", "control": "math"}, ["model.control=math", "model=tiny_control"]),
        (TaskConfig, {"name": "x", "domains": []}, ["task.domains=[] is empty"]),
        (TaskConfig, {"name": "x", "domains": ["a", "a"]}, ["names a twice"]),
        (TaskConfig, {"name": "x", "domains": ["a"], "answer_pattern": "a+"}, ["has 0 groups", "exactly one"]),
        (TaskConfig, {"name": "x", "domains": ["a"], "answer_pattern": "("}, ["no regular expression"]),
    ],
)
def test_a_wrong_value_is_named_with_its_remedy(section: Any, values: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(UserError) as caught:
        validated(section, values, section.__name__.removesuffix("Config").lower())
    for word in words:
        assert word in str(caught.value)


def test_tensor_parallel_on_cpu_needs_no_gpus() -> None:
    assert EngineConfig(tensor_parallel_size=2, distributed_executor_backend="mp").gpus == 0


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


# ---------------------------------------------------------------- checkpoints


def test_a_folder_gives_its_own_sizes(tmp_path: Path) -> None:
    checkpoint = inspect(write_checkpoint(tmp_path))
    assert checkpoint.shape == SHAPE
    assert checkpoint.missing is None
    assert checkpoint.location == str(tmp_path)


@pytest.mark.parametrize(
    ("config", "layers"),
    [
        ({"num_hidden_layers": 48}, 48),
        ({"num_hidden_layers": 24, "decoder_sparse_step": 2, "mlp_only_layers": [1]}, 11),
        ({"num_hidden_layers": 27, "first_k_dense_replace": 1, "moe_layer_freq": 1}, 26),
        ({"num_hidden_layers": 48, "interleave_moe_layer_step": 2}, 24),
        ({"num_hidden_layers": 48, "moe_layers": [1, 3, 5]}, 3),
        ({"num_hidden_layers": 4, "moe_layer_freq": [0, 1, 1, 1]}, 3),
        ({"num_hidden_layers": 32, "expert_layer_period": 2, "expert_layer_offset": 1}, 16),
        ({"num_hidden_layers": 28, "moe_layer_start_index": 1, "moe_layer_end_index": -1, "moe_layer_interval": 1}, 27),
    ],
    ids=["all", "qwen2", "deepseek", "llama4", "llama4-list", "frequency-list", "jamba", "ernie"],
)
def test_moe_layers_are_counted_as_each_family_writes_them(config: dict[str, Any], layers: int) -> None:
    assert moe_layer_count(config) == layers


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"num_experts": None}, ["is a dense model (Qwen3MoeForCausalLM)", "model=tiny"]),
        ({"num_experts": 1}, ["is a dense model"]),
        ({"first_k_dense_replace": 2}, ["is a dense model"]),
        ({"architectures": ["MiniCPMForCausalLM"]}, ["MiniCPMForCausalLM", "silently do nothing"]),
        ({"architectures": ["DeepseekV4ForCausalLM"]}, ["DeepseekV4ForCausalLM"]),
        ({"architectures": ["Moondream3ForCausalLM"]}, ["Moondream3ForCausalLM"]),
        ({"num_experts_per_tok": None}, ["no number of experts per token"]),
        ({"num_experts_per_tok": 17}, ["17 experts per token"]),
    ],
)
def test_a_checkpoint_that_cannot_be_routed_is_refused(
    tmp_path: Path, changes: dict[str, Any], words: list[str]
) -> None:
    with pytest.raises(UserError) as caught:
        inspect(write_checkpoint(tmp_path, **changes))
    for word in words:
        assert word in str(caught.value)


def test_a_text_model_inside_a_larger_config_is_found(tmp_path: Path) -> None:
    text = {"num_hidden_layers": 3, "num_local_experts": 16, "num_experts_per_tok": 2}
    folder = write_checkpoint(tmp_path, num_experts=None, num_experts_per_tok=None, text_config=text)
    assert inspect(folder).shape == MoeShape(num_layers=3, num_experts=16, top_k=2)


def test_folders_that_are_no_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no config\.json"):
        inspect(tmp_path)
    with pytest.raises(UserError, match="no folder and no Hugging Face id"):
        inspect(tmp_path / "nowhere")
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(UserError, match="damaged"):
        inspect(tmp_path)
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(UserError, match="damaged"):
        inspect(tmp_path)
    assert "no weights" in inspect(write_checkpoint(tmp_path / "b", weights=None)).missing


def test_stated_sizes_must_agree_with_the_folder(tmp_path: Path) -> None:
    assert inspect(write_checkpoint(tmp_path), top_k=4).shape == SHAPE
    with pytest.raises(UserError, match=r"model\.top_k=8, but .* says 4"):
        inspect(tmp_path, top_k=8)


def test_a_hub_id_needs_its_sizes_stated() -> None:
    sizes = {"num_layers": 2, "num_experts": 16, "top_k": 4}
    assert inspect("owner/name", **sizes).identity == "hub:owner/name@main"
    assert inspect("owner/name", **sizes, revision="abc").identity == "hub:owner/name@abc"
    with pytest.raises(UserError, match=r"model\.num_experts=NUMBER model\.top_k=NUMBER"):
        inspect("owner/name", num_layers=2)
    with pytest.raises(UserError, match=r"model\.top_k=17 exceeds model\.num_experts=16"):
        inspect("owner/name", **(sizes | {"top_k": 17}))


def test_identity_follows_content_not_place(tmp_path: Path) -> None:
    one = inspect(write_checkpoint(tmp_path / "one"))
    same = inspect(write_checkpoint(tmp_path / "two"))
    assert one.identity == same.identity
    assert inspect(write_checkpoint(tmp_path / "three", weights=b"Weights")).identity != one.identity
    assert inspect(write_checkpoint(tmp_path / "four", rope_theta=1)).identity != one.identity


def test_large_files_are_known_by_size_and_ends(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path)
    weights = folder / "model.safetensors"
    seen = set()
    for place in (None, 0, WHOLE_FILE_LIMIT, WHOLE_FILE_LIMIT // 2):
        with weights.open("wb") as file:
            file.truncate(WHOLE_FILE_LIMIT + END_BYTES)
            if place is not None:
                file.seek(place)
                file.write(b"x")
        seen.add(inspect(folder).identity)
    assert len(seen) == 3, "both ends count, the middle of a large file does not"


# ---------------------------------------------------------------- task files


def write_problems(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).write_text('{"prompt": "1+1=", "answer": "2"}\n\n{"prompt": "1+2=", "answer": "3"}\n')


def test_local_problems_are_counted_and_hashed(tmp_path: Path) -> None:
    write_problems(tmp_path, "a_test.jsonl", "b_test.jsonl")
    task = TaskConfig(name="x", domains=("a", "b"), data_files=f"{tmp_path}/{{domain}}_{{split}}.jsonl")
    before = inspect_task(task)
    assert before.problems == {"a": 2, "b": 2}
    (tmp_path / "a_test.jsonl").write_text('{"prompt": "1+1=", "answer": "3"}\n')
    assert inspect_task(task).identity != before.identity


@pytest.mark.parametrize(
    ("template", "words"),
    [
        ("{domain}.jsonl", "has no {split}"),
        ("{split}.jsonl", "has no {domain}"),
        ("{domain}_{split}_{size}.jsonl", "'size'"),
        ("{domain}_{split.jsonl", "no path template"),
        ("{domain}_{split}.jsonl", "there is no file"),
        ("empty_{domain}_{split}.jsonl", "is empty"),
        ("wrong_{domain}_{split}.jsonl", "does not begin with a problem"),
    ],
)
def test_data_files_that_cannot_be_read_are_refused(tmp_path: Path, template: str, words: str) -> None:
    for domain in "ab":
        (tmp_path / f"empty_{domain}_test.jsonl").write_text("\n")
        (tmp_path / f"wrong_{domain}_test.jsonl").write_text('{"question": 1}\n')
    with pytest.raises(UserError) as caught:
        inspect_task(TaskConfig(name="x", domains=("a", "b"), data_files=f"{tmp_path}/{template}"))
    assert words in str(caught.value)


def test_embedded_tasks_offer_their_own_names() -> None:
    with pytest.raises(UserError, match=r"task\.domains=maths .*Did you mean math\?"):
        inspect_task(TaskConfig(name="tiny", domains=("maths",)))
    with pytest.raises(UserError, match=r"task\.split=train .*calibration, dev, test"):
        inspect_task(TaskConfig(name="tiny", domains=("math",), split="train"))
