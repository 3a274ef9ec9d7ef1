"""Inputs that are refused, or read as they are meant, before anything starts; and where the test of each case is."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from checkpoint_folder import write_checkpoint

from banpick_exp.cluster.plan import RunPlan, plan_run
from banpick_exp.errors import UserError
from banpick_exp.models.tiny import ASSETS
from banpick_exp.sweep.compose import choices

ROOT = Path(__file__).resolve().parents[2]
READING = "tests/tasks/test_reading.py"
FAMILIES = "tests/models/test_model_families.py::test_a_real_config_is_read_as_its_family_means_it"
LATE = f"{READING}::test_a_case_that_failed_late_is_refused_with_its_line"
ENGINE = "tests/cases/test_cases_on_an_engine.py"
PROCESS = "tests/cases/test_cases_of_a_process.py"
PLANNING = "tests/cases/test_cases_of_planning.py"
WHERE = {
    "A10a_null_prompt": LATE,
    "A10b_int_prompts": LATE,
    "A10c_chat_list": LATE,
    "A10d_empty_prompt": LATE,
    "A11a_broken_row": LATE,
    "A11b_lone_surrogate": LATE,
    "A11c_utf16": LATE,
    "A12_readonly_home": f"{PROCESS}::test_a_home_that_is_read_only",
    "A1_int_and_float": f"{ENGINE}::test_a_case_of_numbers_is_measured_as_its_text_would_be",
    "A2_dates": f"{READING}::test_text_stays_text",
    "A3_missing_answer": LATE,
    "A5_trailing_newline": f"{ENGINE}::test_a_case_of_numbers_is_measured_as_its_text_would_be",
    "A6_empty_answers": LATE,
    "A7_stale_cache": f"{ENGINE}::test_a_file_that_is_replaced_within_its_time_is_another_point",
    "A9_brackets": f"{ENGINE}::test_a_folder_is_its_name",
    "B1_run_path_brackets": f"{ENGINE}::test_a_finished_run_is_reported_under_any_name",
    "C1a_lfm2_num_dense_layers": FAMILIES,
    "C1b_nemotron_h_pattern": FAMILIES,
    "C1d_mlp_layer_types": FAMILIES,
    "C2a_dbrx_ffn_config": FAMILIES,
    "C2c_deepseek_vl2_language_config": FAMILIES,
    "C2d_qwen3_omni_thinker_config": FAMILIES,
    "C3a_ernie_vl_lists": FAMILIES,
    "C3c_dangling_symlink": "tests/models/test_inspect.py::test_a_link_to_nothing_is_refused",
    "C5_top_k_2": f"{PLANNING}::test_every_shipped_sweep_plans_on_any_top_k",
    "D1_identity": "tests/sweep/test_identity.py::test_two_folders_that_differ_in_a_template_are_two_points",
    "E1_pydantic_footer": f"{PLANNING}::test_more_positions_than_the_model_has",
    "F1_separator_empty": f"{PLANNING}::test_a_setting_that_only_the_engine_refused",
    "F2_seed": f"{PLANNING}::test_a_setting_that_only_the_engine_refused",
    "F3_chat_template": f"{PLANNING}::test_a_chat_without_a_template",
    "G1_ray_long_tmpdir": f"{PROCESS}::test_ray_starts_where_the_temporary_folder_is_too_deep",
    "H1_latin1_stdout": f"{PROCESS}::test_a_sweep_ends_well_where_a_circle_cannot_be_printed",
    "I1_wandb_run_id": "tests/report/test_tracking.py::test_an_environment_of_another_run_does_not_reach_ours",
    "J1_nothing_right": f"{ENGINE}::test_a_sweep_stops_after_a_stock_that_means_nothing",
}  # fmt: skip
"""Case -> the test that holds the right behaviour."""


@pytest.mark.parametrize("case", WHERE)
def test_every_case_has_its_test(case: str) -> None:
    file, _, name = WHERE[case].partition("::")
    assert re.search(rf"^def {name}\(", (ROOT / file).read_text(), re.MULTILINE)


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def planned(*typed: str) -> RunPlan:
    return plan_run(["tracking=none", "dry_run=true", *typed])


def refusal(*typed: str) -> str:
    with pytest.raises(UserError) as caught:
        planned(*typed)
    return str(caught.value)


FIXED = ["policy=fixed_k", "policy.k=4"]


def test_answers_longer_than_the_model(tmp_path: Path) -> None:
    """The text to type was max_model_len=1024 or more, which the model's own 256 refused; jsonl's answers have 512."""
    (tmp_path / "math_test.jsonl").write_text('{"prompt": "1+1=", "answer": "2"}\n')
    files = f'task.data_files="{tmp_path}/{{domain}}_{{split}}.jsonl"'
    typed = ["task=jsonl", "task.domains=[math]", "task.chat_template=false", files]
    (remedy,) = re.findall(r"Type (\S+=\d+)", refusal(*FIXED, *typed))
    assert remedy == "task.max_tokens=64" and planned(*FIXED, *typed, remedy).sweep.points
    (remedy,) = re.findall(r"Type (\S+=\d+)", refusal(*FIXED, "task.max_tokens=128"))
    assert remedy == "engine.max_model_len=256" and planned(*FIXED, "task.max_tokens=128", remedy).sweep.points


def test_a_prompt_longer_than_the_model(tmp_path: Path) -> None:
    files = f'task.data_files="{tmp_path}/{{domain}}_{{split}}.jsonl"'
    typed = ["task=jsonl", "task.domains=[math]", "task.chat_template=false", "task.max_tokens=24", files]
    for length, remedy in ((110, "engine.max_model_len=13"), (300, "shorter problems")):
        (tmp_path / "math_test.jsonl").write_text(json.dumps({"prompt": "1+" * (length // 2) + "=", "answer": "2"}))
        message = refusal(*FIXED, *typed)
        assert remedy in message
        for words in re.findall(r"[Tt]ype (\S+=\d+)", message):
            assert planned(*FIXED, *typed, words).sweep.points


def test_more_positions_than_the_model_has(tmp_path: Path) -> None:
    """E1, vLLM's commonest mistake: said while planning, and what is said to type works."""
    for asked in (512, 257, 10**9):
        message = refusal(*FIXED, f"engine.max_model_len={asked}")
        assert f"engine.max_model_len={asked}" in message and "256" in message
        (typed,) = re.findall(r"Type (engine\.max_model_len=\d+)", message)
        assert planned(*FIXED, typed).sweep.points
    other = write_checkpoint(tmp_path / "short", max_position_embeddings=64)
    message = refusal("policy=fixed_k", "policy.k=2", "task=tiny", f"model.path={other}", "engine.max_model_len=65")
    assert "64 positions" in message


@pytest.mark.parametrize(
    ("typed", "remedy"),
    [
        (['task.answer_separator=""'], "task.answer_separator=null"),
        (["task.answer_separator=''"], "task.answer_separator=null"),
        (["seed=-5"], "seed=0"),
        (["seed=20261126155720"], "seed=0"),
        (["seed=4294967296"], "seed=0"),
        (["seed=1.5"], "seed=0"),
        (["seed=range(-1,2)"], "seed=0"),
        (["engine.seed=-1"], "engine.seed=0"),
        (["engine.seed=4294967296"], "engine.seed=0"),
    ],
    ids=str,
)
def test_a_setting_that_only_the_engine_refused(typed: list[str], remedy: str) -> None:
    """F1 and F2."""
    assert remedy in refusal(*FIXED, *typed)
    assert planned(*FIXED, remedy).sweep.points


def test_a_chat_without_a_template(tmp_path: Path) -> None:
    """F3: jsonl asks in chat unless told otherwise."""
    for split in ("test", "calibration"):
        (tmp_path / f"math_{split}.jsonl").write_text('{"prompt": "1+1=", "answer": "2"}\n')
    files = f'task.data_files="{tmp_path}/{{domain}}_{{split}}.jsonl"'
    typed = ["task=jsonl", "task.domains=[math]", "task.max_tokens=24", files]
    message = refusal(*FIXED, *typed)
    assert "no chat template" in message and "Type task.chat_template=false" in message
    assert planned(*FIXED, *typed, "task.chat_template=false").sweep.points
    folder = tmp_path / "with one"
    shutil.copytree(ASSETS / "checkpoint", folder)
    (folder / "chat_template.jinja").write_text("{{ messages[0].content }}")
    assert planned(*FIXED, *typed, f'model.path="{folder}"').sweep.points
    (folder / "chat_template.jinja").unlink()
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": "{{ messages }}"}))
    assert planned(*FIXED, *typed, f'model.path="{folder}"').sweep.points


MIXTRAL = {"architectures": ["MixtralForCausalLM"], "num_local_experts": 8, "num_experts": None}
SHAPES: dict[str, dict[str, Any]] = {
    "mixtral": MIXTRAL | {"num_experts_per_tok": 2},
    "top_k 1": {"architectures": ["Llama4ForCausalLM"], "num_experts": 16, "num_experts_per_tok": 1},
    "top_k 3": {"num_experts": 6, "num_experts_per_tok": 3},
    "all experts": {"num_experts": 4, "num_experts_per_tok": 4},
    "top_k 10": {"num_experts": 512, "num_experts_per_tok": 10},
}


@pytest.mark.parametrize("sweep", choices("sweep"))
@pytest.mark.parametrize("shape", SHAPES)
def test_every_shipped_sweep_plans_on_any_top_k(sweep: str, shape: str, tmp_path: Path) -> None:
    """C5: each refused a top_k of 2, and named a setting that cannot be typed."""
    folder = write_checkpoint(tmp_path / "m", **SHAPES[shape])
    plan = planned(f"+sweep={sweep}", "task=tiny", f"model.path={folder}").sweep
    if shape == "top_k 1" and len(plan.points) == 1:
        assert any("left out, because this checkpoint has no room" in note for note in plan.notes)
    else:
        assert len(plan.points) > 1 and "none" in {point.rule.name for point in plan.points}


@pytest.mark.parametrize("name", ["overall", "calibrations", "solved", " ", ""])
def test_a_domain_has_a_name_of_its_own(name: str, tmp_path: Path) -> None:
    assert "task.domains" in refusal(
        *FIXED, f'task.domains=["{name}"]', "task=jsonl", f"task.data_files='{tmp_path}/x{{split}}'"
    )


@pytest.mark.parametrize(
    "name", ["..", ".", "../up", "a/b", "/abs", "calibrations", "solved", ".hidden", "", "x" * 300]
)
def test_a_sweep_stays_within_its_folder(name: str) -> None:
    assert "sweep.name" in refusal(*FIXED, f'sweep.name="{name}"')


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 4\n", "LFS"),
        (b"", "empty"),
        (b"\x10\0\0\0\0\0\0\0{", "header"),
    ],
)
def test_weights_that_are_none(content: bytes, words: str, tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "m")
    (folder / "model.safetensors").write_bytes(content)
    assert words in refusal("policy=fixed_k", "policy.k=2", f"model.path={folder}")


@pytest.mark.parametrize("typed", ["policy.k=range(1,10000000)", "seed=range(0,1000000000000)", "repeats=100000000"])
def test_an_axis_that_would_not_end_is_refused_at_once(typed: str) -> None:
    """Found by the fuzz test: each value was built before anything was said."""
    words = ["policy=fixed_k", typed] if typed.startswith("policy.k") else [*FIXED, typed]
    assert ("is above 1000" if typed.startswith("repeats") else "would not end") in refusal(*words)
    assert "would not end" in refusal("policy=fixed_k", "policy.k=range(1,9)", "seed=range(0,9000)")


@pytest.mark.parametrize("group", ["calibration", "sweep", "search", "engine", "task", "model", "cluster", "tracking"])
def test_a_group_is_no_setting(group: str) -> None:
    """Found by the fuzz test: `calibration=3` ended in a traceback."""
    assert group in refusal("policy=none", f"{group}=3") and group in refusal("policy=none", f"{group}=[1]")


def test_a_name_of_a_search_that_is_none() -> None:
    """Found by the fuzz test."""
    assert "search.name" in refusal("policy=none", "search.name=[grid]")
