"""What a sweep costs before it starts: held against published measurements, and spelt out with what it follows from."""

from __future__ import annotations

import dataclasses
import io
import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from banpick_exp.cluster.plan import plan_run
from banpick_exp.engine.config import EngineConfig
from banpick_exp.errors import UserError
from banpick_exp.models.published import PUBLISHED
from banpick_exp.models.shape import MoeShape
from banpick_exp.models.sizes import Sizes, sizes_of
from banpick_exp.sweep.compose import Composer, choices
from banpick_exp.sweep.config import Hardware
from banpick_exp.sweep.dry_run import print_plan
from banpick_exp.sweep.estimate import H100, block_problems, speed_of
from banpick_exp.sweep.plan import SweepPlan, plan_sweep
from banpick_exp.sweep.price import FACTOR, points_that_fit, price_notes
from banpick_exp.sweep.roofline import roofline

SHAPES = {
    "Qwen/Qwen3-30B-A3B": (48, 128, 8),
    "Qwen/Qwen3-235B-A22B": (94, 128, 8),
    "deepseek-ai/DeepSeek-V2-Lite-Chat": (26, 64, 6),
    "deepseek-ai/DeepSeek-V2.5": (59, 160, 6),
    "Qwen/Qwen3-Next-80B-A3B-Instruct": (48, 512, 10),
    "deepseek-ai/DeepSeek-V3": (58, 256, 8),
    "moonshotai/Kimi-K2-Instruct": (60, 384, 8),
    "openai/gpt-oss-20b": (24, 32, 4),
    "openai/gpt-oss-120b": (36, 128, 4),
    "allenai/OLMoE-1B-7B-0924-Instruct": (16, 64, 8),
    "mistralai/Mixtral-8x7B-Instruct-v0.1": (32, 8, 2),
    "zai-org/GLM-4.5-Air": (45, 128, 8),
    "ibm-granite/granite-3.1-3b-a800m-instruct": (32, 40, 8),
    "inclusionAI/Ling-lite": (28, 64, 6),
}
LADDER = ["policy=fixed_k", "policy.k=range(2,K)", "tracking=none"]
QWEN235 = ["model=qwen3_235b_a22b", "task=tiny", "task.max_tokens=4096", "engine.max_model_len=8192"]


def sizes(model: str) -> Sizes:
    layers, experts, top_k = SHAPES[model]
    return sizes_of(model, MoeShape(num_layers=layers, num_experts=experts, top_k=top_k))


def planned(tmp_path: Path, *typed: str) -> SweepPlan:
    return plan_sweep([*LADDER, *typed, "dry_run=true", f"output_dir={tmp_path}"])


def printed(tmp_path: Path, *typed: str) -> str:
    plan = plan_run([*LADDER, *typed, "dry_run=true", f"output_dir={tmp_path}"])
    out = io.StringIO()
    print_plan(plan.sweep, plan.estimate, Console(file=out, width=1000))
    return out.getvalue()


# ---------------------------------------------------------------- sizes


@pytest.mark.parametrize(
    ("model", "billions", "active"),
    [
        ("Qwen/Qwen3-30B-A3B", 30.5, 3.3),
        ("Qwen/Qwen3-235B-A22B", 235, 22),
        ("deepseek-ai/DeepSeek-V2-Lite-Chat", 15.7, 2.4),
        ("deepseek-ai/DeepSeek-V2.5", 236, 21),
        ("Qwen/Qwen3-Next-80B-A3B-Instruct", 79.7, 3.6),
        ("deepseek-ai/DeepSeek-V3", 671, 37),
        ("moonshotai/Kimi-K2-Instruct", 1026, 32),
        ("openai/gpt-oss-20b", 20.9, 3.6),
        ("openai/gpt-oss-120b", 116.8, 5.1),
        ("allenai/OLMoE-1B-7B-0924-Instruct", 6.92, 1.2),
        ("mistralai/Mixtral-8x7B-Instruct-v0.1", 46.7, 12.9),
        ("zai-org/GLM-4.5-Air", 106.5, 12),
        ("ibm-granite/granite-3.1-3b-a800m-instruct", 3.3, 0.84),
        ("inclusionAI/Ling-lite", 16.8, 2.65),
    ],
)
def test_parameters_are_those_on_the_model_cards(model: str, billions: float, active: float) -> None:
    assert sizes(model).parameters / 1e9 == pytest.approx(billions, rel=0.005)
    assert sizes(model).active_parameters / 1e9 == pytest.approx(active, rel=0.09), "cards count the embedding too"


def test_every_hub_model_of_ours_is_described() -> None:
    composer = Composer()
    shipped = [composer.setting({"model": name}).checkpoint for name in choices("model") if name != "local"]
    hub = {found.location for found in shipped if not Path(found.location).is_absolute()}
    assert hub == set(PUBLISHED)


def write_folder(folder: Path, total_size: int | None, **changes: Any) -> Path:
    """A checkpoint as it is before its weights are copied: a config.json, a tokenizer, and the index of weights."""
    folder.mkdir()
    config = {"architectures": ["Qwen3MoeForCausalLM"], "num_experts": 128, "num_experts_per_tok": 8} | changes
    (folder / "config.json").write_text(json.dumps(dict(PUBLISHED["Qwen/Qwen3-235B-A22B"]) | config))
    (folder / "tokenizer.json").write_text("{}")
    if total_size is not None:
        index = {"metadata": {"total_size": total_size}, "weight_map": {"a": "model-00001.safetensors"}}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


@pytest.mark.parametrize(("total_size", "each"), [(None, 2.0), (235_092_836_352, 1.0)])
def test_a_folder_without_weights_is_priced_by_its_config_and_its_index(
    tmp_path: Path, total_size: int | None, each: float
) -> None:
    """The second is the same model in 8 bits."""
    folder = write_folder(tmp_path / "model", total_size)
    typed = ["task=tiny", "engine=cuda_tp8", "task.max_tokens=2048"]
    (here,) = planned(tmp_path, f"model.path={folder}", *typed).estimate(1).kinds
    (hub,) = planned(tmp_path, "model=qwen3_235b_a22b", *typed).estimate(1).kinds
    assert here.roofline is not None and hub.roofline is not None
    found = here.roofline.sizes
    assert found.weight_bytes == pytest.approx(each * 235.09e9, rel=1e-4) and found.known
    assert found.kv_bytes == hub.roofline.sizes.kv_bytes, "the cache stays bfloat16"
    if total_size is None:
        assert here.hours == hub.hours
    else:
        assert here.roofline.fits > hub.roofline.fits and here.hours < hub.hours


def test_a_model_that_nothing_describes_is_priced_as_one_of_its_size(tmp_path: Path) -> None:
    typed = ["model=qwen3_30b_a3b", "task=tiny", "model.path=somebody/else"]
    (kind,) = planned(tmp_path, *typed).estimate(1).kinds
    assert kind.roofline is not None and not kind.roofline.sizes.known
    assert kind.roofline.sizes.weight_bytes == pytest.approx(60e9)
    text = printed(tmp_path, *typed)
    assert "nothing here says how it is built" in text and "published" not in text


# ---------------------------------------------------------------- against measurements


MEASURED = [
    # Of the ML.ENERGY benchmark (github.com/ml-energy/leaderboard, data of 2026-02: tasks lm-arena-chat and gpqa): vLLM
    # on H100, bfloat16. GPUs, sequences at once (mean), tokens of an answer (mean), output tokens/s.
    ("Qwen/Qwen3-30B-A3B", 1, 8, 927, 611),
    ("Qwen/Qwen3-30B-A3B", 1, 32, 922, 1394),
    ("Qwen/Qwen3-30B-A3B", 1, 89, 931, 2659),
    ("Qwen/Qwen3-30B-A3B", 1, 16, 8243, 955),
    ("Qwen/Qwen3-30B-A3B", 2, 8, 901, 831),
    ("Qwen/Qwen3-30B-A3B", 2, 128, 8058, 4664),
    ("Qwen/Qwen3-30B-A3B", 2, 256, 920, 7154),
    ("Qwen/Qwen3-30B-A3B", 2, 1019, 920, 12640),
    ("Qwen/Qwen3-235B-A22B", 8, 8, 864, 388),
    ("Qwen/Qwen3-235B-A22B", 8, 32, 865, 908),
    ("Qwen/Qwen3-235B-A22B", 8, 32, 8955, 955),
    ("Qwen/Qwen3-235B-A22B", 8, 128, 863, 2626),
    ("Qwen/Qwen3-235B-A22B", 8, 228, 874, 3696),
]


@pytest.mark.parametrize(("model", "gpus", "sequences", "answer", "measured"), MEASURED)
def test_decoding_is_priced_near_what_was_measured(
    model: str, gpus: int, sequences: int, answer: int, measured: float
) -> None:
    """Within a factor of 3 is promised; these are within 1.6."""
    engine = EngineConfig(tensor_parallel_size=gpus, gpus=gpus, max_num_seqs=sequences)
    found = roofline(sizes(model), engine, H100, context=200 + answer / 2, waiting=10_000)
    assert found.batch == sequences, "the cache holds what it held there"
    assert measured / 1.6 < found.generate < measured * 1.6 and FACTOR > 1.6


PROMPTS = [
    # docs.gpustack.ai, performance lab, Qwen3-235B-A22B on vLLM 0.11, FP8, four GPUs, prompts of 4,000 tokens and
    # answers of 200: prompt and answer tokens a second, and milliseconds a token of an answer, from which the sequences
    # follow.
    (Hardware(), 16_479, 89.5),
    (Hardware(memory_tb_s=2.039, bf16_tflops=312), 4_633, 347.1),
]


@pytest.mark.parametrize(("card", "measured", "milliseconds"), PROMPTS)
def test_prompts_are_priced_near_what_was_measured(card: Hardware, measured: float, milliseconds: float) -> None:
    whole = sizes("Qwen/Qwen3-235B-A22B")
    half = ("expert_bytes", "common_bytes", "embedding_bytes")
    fp8 = dataclasses.replace(whole, **{name: getattr(whole, name) / 2 for name in half})
    sequences = measured / 4200 * 200 * milliseconds / 1e3
    engine = EngineConfig(tensor_parallel_size=4, gpus=4, max_num_seqs=256)
    found = roofline(fp8, engine, card, context=4100, waiting=sequences)
    seconds = 4000 / found.prefill + 200 / found.generate
    assert measured / FACTOR < 4200 / seconds < measured * FACTOR


def test_a_faster_card_costs_less_and_a_smaller_cache_holds_fewer() -> None:
    engine = EngineConfig(tensor_parallel_size=8, gpus=8, max_num_seqs=256)
    found = {
        name: roofline(sizes("Qwen/Qwen3-235B-A22B"), engine, card, context=6000, waiting=10_000)
        for name, card in cards().items()
    }
    assert found["h200"].generate > found["h100"].generate > found["a100_80gb"].generate
    assert found["h100"].fits == found["a100_80gb"].fits < found["h200"].fits / 4
    assert all(each.batch == each.fits < 256 for each in found.values()), "the cache is what limits the batch"
    assert found["h100"].prefill == found["h200"].prefill > 3 * found["a100_80gb"].prefill


def cards() -> dict[str, Hardware]:
    composer = Composer()
    return {name: composer.run_config({"hardware": name}, {})[0].hardware for name in choices("hardware")}


def test_the_first_card_is_the_one_of_the_code() -> None:
    assert cards()["h100"] == H100


# ---------------------------------------------------------------- in print


def test_engines_of_a_cluster_are_spelt_out(tmp_path: Path) -> None:
    text = printed(tmp_path, *QWEN235, "cluster.engines=2", "cluster=standing")
    assert "2 engines side by side, tensor parallel 8 x pipeline 1, 8 GPUs each; one bundle of 8 GPUs each, on" in text
    assert "load: 470 GB of weights at 2 GB/s and 120 s: 355 s" in text
    assert "decode: " in text and "8 x 3.35 TB/s at 70 %" in text and "of 128 experts a layer" in text
    assert "prefill: 2 x 21.6e9 operations a token, 8 x 989 TFLOPS at 40 %" in text
    assert "published: 908 tokens/s at 32 sequences on eight H100" in text and "ML.ENERGY" in text
    assert "(2 x 8 held)" in text
    slower = printed(tmp_path, *QWEN235, "cluster.engines=2", "cluster=standing", "hardware.memory_tb_s=1")
    assert "8 x 1 TB/s" in slower


def test_an_engine_over_nodes_says_so(tmp_path: Path) -> None:
    text = printed(tmp_path, *QWEN235, "engine.distributed_executor_backend=ray")
    assert "8 bundles of 1 GPU each, over nodes where one has too few" in text


def test_hours_are_those_of_all_engines_on_the_clock(tmp_path: Path) -> None:
    one, two = (planned(tmp_path, *QWEN235).estimate(engines) for engines in (1, 2))
    assert one.gpu_hours == pytest.approx(8 * one.seconds / 3600) and one.cpu_hours == 0
    assert two.gpu_hours == pytest.approx(2 * 8 * two.seconds / 3600)
    assert two.seconds < one.seconds and two.gpu_hours > one.gpu_hours, "one more load"
    assert two.answer_seconds == one.answer_seconds


def test_what_a_calibration_holds_up_is_held_up(tmp_path: Path) -> None:
    """It is one call of one engine: more of them do not make it shorter."""
    plan = plan_sweep(["policy=pick", "policy.mode=boost", "policy.boost=1", "policy.key_experts=2", *QWEN235,
                       "dry_run=true", f"output_dir={tmp_path}"])  # fmt: skip
    (kind,) = plan.estimate(64).kinds
    assert kind.wall_seconds > kind.load_seconds / kind.engines + kind.calibration_seconds > 0
    assert kind.waiting_seconds == pytest.approx((kind.answer_seconds + kind.time_seconds) / 2), "stock does not wait"


def test_weights_that_do_not_fit_are_said_before_they_are_loaded(tmp_path: Path) -> None:
    typed = ["engine.gpus=4", "engine.tensor_parallel_size=4"]
    text = printed(tmp_path, *QWEN235, *typed)
    assert (
        "470 GB of weights leave no room for a sequence on 4 x 80 GB" in text and "engine.tensor_parallel_size" in text
    )
    assert "leave no room" not in printed(tmp_path, *QWEN235, *typed, "hardware=h200", "hardware.memory_gb=192")


def test_blocks_are_cut_alike_whatever_a_gpu_is_taken_for(tmp_path: Path) -> None:
    """Else a run that is gone on with under another price would not find its answered blocks."""
    plans = [planned(tmp_path, *QWEN235, *more) for more in ([], ["hardware=a100_80gb"])]
    assert len({block_problems(plan.points[0]) for plan in plans}) == 1
    assert plans[0].points[0].fingerprint == plans[1].points[0].fingerprint
    speeds = {speed_of(plan.points[0], plan.hardware).generate for plan in plans}
    assert len(speeds) == 2


# ---------------------------------------------------------------- a budget


def test_a_budget_below_the_estimate_says_how_many_points_fit(tmp_path: Path) -> None:
    plan = planned(tmp_path, *QWEN235, "budget.gpu_hours=6")
    cost = plan.estimate(1)
    assert cost.gpu_hours > 6
    (note,) = price_notes(plan, cost)
    fit = points_that_fit(plan.points, cost, 6, gpus=True)
    assert 0 < fit < len(plan.points)
    assert f"about {fit} of {len(plan.points)} points fit" in note and "stock and references first" in note
    each = (cost.gpu_hours - 8 * cost.load_seconds / 3600) / len(plan.points)
    assert fit == int((6 - 8 * cost.load_seconds / 3600) / each)
    assert points_that_fit(plan.points, cost, 1.001 * cost.gpu_hours, gpus=True) == len(plan.points)
    assert price_notes(planned(tmp_path, *QWEN235, "budget.gpu_hours=9999"), cost) == []


@pytest.mark.parametrize(
    ("typed", "other"),
    [(["budget.gpu_hours=2"], "budget.cpu_hours=2"), ([*QWEN235, "budget.cpu_hours=2"], "budget.gpu_hours=2")],
)
def test_a_budget_that_no_engine_would_touch_is_refused(typed: list[str], other: str, tmp_path: Path) -> None:
    plan = planned(tmp_path, *typed)
    with pytest.raises(UserError, match=f"is idle: .*Type {other}, or leave it out"):
        price_notes(plan, plan.estimate(1))


def test_a_budget_of_nothing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"budget\.gpu_hours=0 is not above 0"):
        planned(tmp_path, "budget.gpu_hours=0")
