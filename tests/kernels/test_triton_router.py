"""The Triton router equals the reference under triton's interpreter: ids exactly, weights within 1e-6."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from banpick_kernels.table import LayerTable, RouterTable
from banpick_kernels.triton_router import fused_route

SCRIPT = Path(__file__).with_name("triton_interpreter.py")


@pytest.fixture(scope="module")
def findings() -> dict[str, Any]:
    paths = os.pathsep.join(path for path in sys.path if path)
    environment = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1", "PYTHONPATH": paths}
    ran = subprocess.run([sys.executable, str(SCRIPT)], env=environment, capture_output=True, text=True, timeout=500)
    assert ran.returncode == 0, ran.stderr[-3000:]
    return json.loads(ran.stdout)


@pytest.mark.slow
class TestUnderTheInterpreter:
    def test_generated_cases_equal_the_reference(self, findings: dict[str, Any]) -> None:
        found = findings["property"]
        assert found["problem"] == ""
        assert found["examples"] >= 30 and found["tokens"] >= 300
        assert found["skipped"] < 0.01 * found["tokens"]

    def test_exact_boundaries_equal_the_reference(self, findings: dict[str, Any]) -> None:
        assert len(findings["exact"]) >= 6
        assert {name: problem for name, problem in findings["exact"].items() if problem} == {}

    def test_every_mutant_is_caught(self, findings: dict[str, Any]) -> None:
        assert findings["missing"] == [], "these texts are no longer in the kernel"
        assert findings["mutants_on_healthy"] == [], "the kernel itself fails where its mutants are tried"
        assert len(findings["mutants"]) >= 30
        assert [name for name, problem in findings["mutants"].items() if not problem] == []


def layer(num_experts: int = 8, top_k: int = 2) -> LayerTable:
    return RouterTable.neutral(2, num_experts, top_k).layer(1)


def test_no_tokens_need_no_launch() -> None:
    weights, ids = fused_route(torch.zeros(0, 8), layer(), top_k=2, slots=3, renormalize=True)
    assert weights.shape == ids.shape == (0, 3)
    assert (weights.dtype, ids.dtype) == (torch.float32, torch.int32)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"logits_TE": torch.zeros(4, 8, dtype=torch.float64)}, "bfloat16, float16 or float32"),
        ({"logits_TE": torch.zeros(8)}, r"\[T,E\]"),
        ({"logits_TE": torch.zeros(4, 513)}, "experts=513: the kernel takes 1 to 512"),
        ({"top_k": 9}, "top_k=9: the kernel takes 1 to 8"),
        ({"slots": 0}, "slots=0: the kernel takes 1 to 8"),
        ({"scoring": "tanh"}, "softmax or sigmoid"),
        ({"layer": layer(9)}, r"logit_bias_PE is torch.float32 \(1, 9\)"),
        ({"row_T": torch.zeros(3, dtype=torch.int32)}, "row_T is torch.int32"),
        ({"is_padding_T": torch.zeros(4)}, "Pass torch.bool"),
        ({"correction_E": torch.zeros(7)}, "correction_E"),
        ({"tokens_P": torch.zeros(1, dtype=torch.int64)}, "both or neither"),
        ({"slots": 1, "stock": (torch.zeros(4, 2), torch.zeros(4, 2, dtype=torch.int32))}, "at least 2 slots"),
        ({"stock": (torch.zeros(4, 2), torch.zeros(4, 2))}, "stock ids"),
        ({"correction_E": torch.zeros(16)[::2]}, "has stride 2"),
    ],
)
def test_what_the_kernel_does_not_take(change: dict[str, Any], says: str) -> None:
    arguments = {"logits_TE": torch.zeros(4, 8), "layer": layer(), "top_k": 2, "slots": 3, "renormalize": True}
    with pytest.raises(ValueError, match=says):
        fused_route(**{**arguments, **change})
