"""An exported policy in Transformers answers as in vLLM, and keeps as many experts: pick, ban, fixed_k, mask."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from exported_folder import export_of
from own_process import findings
from prompts import CHECKPOINT, MAX_TOKENS
from run_applied import CALIBRATED, CALIBRATION, POLICIES, PROMPTS

from banpick_exp.models.checkpoint import folder_identity
from banpick_exp.models.shape import MoeShape
from banpick_exp.transformers import Applied, apply

pytestmark = pytest.mark.engine

OWN_PROCESS = "run_applied.py"

SHAPE = MoeShape(num_layers=4, num_experts=32, top_k=8)
END, PAD = 2, 0
FRACTION = "k with a fraction"


@pytest.fixture(scope="module")
def vllm(request: pytest.FixtureRequest) -> dict[str, Any]:
    return findings(OWN_PROCESS, request)


@pytest.fixture(scope="module")
def model() -> Any:
    """The same checkpoint in Transformers, in the engine's number format."""
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(CHECKPOINT, dtype="float32").eval()


def applied(model: Any, folder: Path, label: str) -> Applied:
    name, knobs = POLICIES[label]
    calibration = CALIBRATION if label in CALIBRATED else None
    identity = folder_identity(Path(CHECKPOINT))
    return apply(model, export_of(folder / label, SHAPE, identity, name, knobs, calibration=calibration))


def answers(model: Any, prompts: list[list[int]]) -> list[list[int]]:
    """Greedy answers as ids, all prompts in one batch, padded on the left."""
    longest = max(map(len, prompts))
    ids = torch.tensor([[PAD] * (longest - len(prompt)) + prompt for prompt in prompts])
    mask = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    rows = model.generate(ids, attention_mask=mask, do_sample=False, max_new_tokens=MAX_TOKENS)
    found = []
    for row in rows[:, longest:].tolist():
        found.append(row[: row.index(END) + 1] if END in row else row)
    return found


@pytest.mark.parametrize("label", [label for label in POLICIES if label != FRACTION])
def test_answers_and_budget_are_those_of_vllm(vllm: dict[str, Any], model: Any, tmp_path: Path, label: str) -> None:
    """Token for token, and by layer to the last expert, of prompts of several lengths in one padded batch."""
    theirs, counted = vllm[label], vllm[label]["counters"]
    with applied(model, tmp_path, label) as handle:
        assert answers(model, theirs["prompts"]) == theirs["answers"]
    assert len(theirs["answers"]) == PROMPTS and handle.tokens() == counted["tokens"][0]
    expected = [kept / tokens for kept, tokens in zip(counted["kept"], counted["tokens"], strict=True)]
    assert handle.mean_kept() == tuple(expected)


@pytest.mark.parametrize("label", POLICIES)
def test_the_policies_do_something(vllm: dict[str, Any], label: str) -> None:
    """The control: to route as stock would not have passed above."""
    stock = vllm["none"]
    assert vllm[label]["counters"] != stock["counters"]
    assert (vllm[label]["answers"] != stock["answers"]) == (label != "pick"), "only the inserted change no answer here"


def test_a_k_with_a_fraction(vllm: dict[str, Any], model: Any, tmp_path: Path) -> None:
    """Which tokens keep one more hangs on the last bit of a logit, where two float32 programs differ: the same budget
    within chance (0.014 over so many tokens and layers), and most answers."""
    theirs, counted = vllm[FRACTION], vllm[FRACTION]["counters"]
    with applied(model, tmp_path, FRACTION) as handle:
        ours = answers(model, theirs["prompts"])
    measured = sum(handle.mean_kept()) / SHAPE.num_layers
    assert measured == pytest.approx(4.6, abs=0.06)
    assert measured == pytest.approx(sum(counted["kept"]) / sum(counted["tokens"]), abs=0.06)
    same = sum(mine == other for mine, other in zip(ours, theirs["answers"], strict=True))
    assert PROMPTS > same > 0.8 * PROMPTS, f"{same} of {PROMPTS}"  # measured: 55
