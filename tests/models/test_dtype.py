"""Which number format `model.dtype=auto` stands for: by what the checkpoint stores and what the machine multiplies."""

from __future__ import annotations

from pathlib import Path

import pytest

from banpick_exp.models.config import ModelConfig
from banpick_exp.models.dtype import Computed, Dtype, Machine, Stored, computed_dtype, stored_dtype, this_machine
from banpick_exp.models.inspect import inspect_checkpoint
from banpick_exp.sweep.dry_run import format_line
from banpick_exp.sweep.plan import plan_sweep

GIB = 2**30
NATIVE, PLAIN = Machine("avx512_bf16", 64 * GIB), Machine(None, 64 * GIB)
SMALL = Stored("bfloat16", 1 * GIB)


@pytest.mark.parametrize(
    ("asked", "stored", "on_gpu", "machine", "wanted", "words"),
    [
        ("auto", SMALL, False, NATIVE, "bfloat16", "avx512_bf16"),
        ("auto", SMALL, False, PLAIN, "float32", "float32 is faster"),
        ("auto", Stored("bfloat16", 16 * GIB), False, PLAIN, "float32", "faster"),
        ("auto", Stored("bfloat16", 17 * GIB), False, PLAIN, "bfloat16", "34 of 64 GiB"),
        ("auto", Stored("float32", 30 * GIB), False, PLAIN, "float32", "faster"),
        ("auto", Stored("float16", 1 * GIB), False, NATIVE, "float32", "faster"),
        ("auto", SMALL, True, PLAIN, "bfloat16", "checkpoint's own"),
        ("auto", Stored("float16", 1 * GIB), True, PLAIN, "float16", "checkpoint's own"),
        ("auto", Stored("float32", 1 * GIB), True, NATIVE, "bfloat16", "checkpoint's own"),
        ("auto", Stored("bfloat16", 1 * GIB, quantised=True), False, PLAIN, "auto", "checkpoint's own"),
        ("auto", Stored(), True, PLAIN, "auto", "checkpoint's own"),
        ("bfloat16", SMALL, False, PLAIN, "bfloat16", "as typed"),
        ("float32", SMALL, True, NATIVE, "float32", "as typed"),
    ],
)
def test_the_format_is_what_the_machine_is_fast_at(
    asked: Dtype, stored: Stored, on_gpu: bool, machine: Machine, wanted: str, words: str
) -> None:
    found = computed_dtype(asked, stored, on_gpu=on_gpu, machine=machine)
    assert found.dtype == wanted and words in found.reason


@pytest.mark.parametrize(
    ("config", "wanted"),
    [
        ({"torch_dtype": "bfloat16"}, Stored("bfloat16", 8)),
        ({"dtype": "float16"}, Stored("float16", 8)),
        ({"text_config": {"dtype": "float32"}}, Stored("float32", 8)),
        ({"torch_dtype": "bfloat16", "quantization_config": {"quant_method": "fp8"}}, Stored("bfloat16", 8, True)),
        ({"torch_dtype": "int8"}, Stored(None, 8)),
        ({}, Stored(None, 8)),
    ],
)
def test_what_a_config_says_of_its_weights(config: dict[str, object], wanted: Stored) -> None:
    assert stored_dtype(config, 8) == wanted


def test_the_embedded_checkpoint_is_stored_in_half_precision() -> None:
    stored = inspect_checkpoint(ModelConfig(name="tiny")).stored
    assert stored.dtype == "bfloat16" and stored.bytes > 100_000 and not stored.quantised


def test_a_plan_holds_the_format_and_the_reason_and_its_points_type_it(tmp_path: Path) -> None:
    line = ["policy=fixed_k", "policy.k=4", "tracking=none", f"output_dir={tmp_path}"]
    plan = plan_sweep(line)
    chosen = computed_dtype("auto", SMALL, on_gpu=False, machine=this_machine())
    for point in plan.points:
        assert (point.model.dtype, point.dtype_reason) == (chosen.dtype, chosen.reason)
        assert point.settings["model.dtype"] == chosen.dtype
    assert format_line(plan.points[0]) == f"Computes in {chosen.dtype}: {chosen.reason}."
    typed = plan_sweep([*line, f"model.dtype={chosen.dtype}"])
    assert [point.fingerprint for point in typed.points] == [point.fingerprint for point in plan.points]
    assert format_line(typed.points[0]) == f"Computes in {chosen.dtype}: as typed."
    other = plan_sweep([*line, "model.dtype=float16"])
    assert {p.fingerprint for p in other.points}.isdisjoint(p.fingerprint for p in plan.points)


def test_a_typed_format_stands() -> None:
    assert computed_dtype("float16", Stored(), on_gpu=False) == Computed("float16", "as typed")
