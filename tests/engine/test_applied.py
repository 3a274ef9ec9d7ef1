"""An exported policy in Transformers answers as in vLLM, and keeps as many experts: pick, ban, fixed_k, mask."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from exported_folder import export_of
from prompts import CHECKPOINT, MAX_TOKENS, short_prompts

from banpick_exp.models.checkpoint import folder_identity
from banpick_exp.models.shape import MoeShape
from banpick_exp.policy.exported import load
from banpick_exp.records import Counters
from banpick_exp.transformers import Applied, apply

if TYPE_CHECKING:
    from banpick_exp.engine.engine import Engine

pytestmark = pytest.mark.engine

SHAPE = MoeShape(num_layers=4, num_experts=32, top_k=8)
CALIBRATION = {"layer_sensitivity": [0.0, 1.0, 0.5, 0.25], "r_min": 0.4, "r_max": 0.9}
POLICIES: dict[str, dict[str, Any]] = {
    "pick": {"mode": "force_add", "experts": {0: [1], 1: [3, 5], 2: [7]}},
    "ban": {"lambda": 0.8, "k_min": 3},
    "fixed_k": {"k": 4.6},
    "mask": {"experts": {0: [0, 4, 9], 2: [1, 2, 3], 3: [30]}},
}
PROMPTS = 24


@pytest.fixture(scope="module")
def model(tiny_engine: Engine) -> Any:
    """The same checkpoint in Transformers, in the engine's number format."""
    from transformers import AutoModelForCausalLM

    (rank,) = tiny_engine.describe()
    return AutoModelForCausalLM.from_pretrained(CHECKPOINT, dtype=rank.dtype).eval()


def by_vllm(engine: Engine, folder: Path) -> tuple[list[list[int]], list[tuple[int, ...]], Counters]:
    """Prompts and greedy answers as ids, and what was counted."""
    exported = load(folder)
    key, calibration = exported.calibration_key("math"), exported.calibrations["math"]
    if calibration is not None:
        engine.load_calibration(key, calibration)
    engine.set_policy(exported.rule.name, exported.params, key)
    engine.counters(reset=True)
    # A salt of its own: nothing is read from a cache, so that the engine computes and counts every token.
    answers = engine.generate(short_prompts(PROMPTS), max_tokens=MAX_TOKENS, salt=str(folder))
    counted = engine.counters(reset=True)
    return [list(answer.prompt_token_ids) for answer in answers], [answer.token_ids for answer in answers], counted


def by_transformers(model: Any, handle: Applied, prompts: list[list[int]]) -> list[tuple[int, ...]]:
    """Greedy answers as ids, the prompts in one batch, padded on the left."""
    longest = max(map(len, prompts))
    ids = torch.tensor([[0] * (longest - len(prompt)) + prompt for prompt in prompts])
    mask = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    handle.reset()
    rows = model.generate(
        ids, attention_mask=mask, do_sample=False, max_new_tokens=MAX_TOKENS, eos_token_id=2, pad_token_id=0
    )
    return [_ended(row[longest:]) for row in rows.tolist()]


def _ended(row: list[int]) -> tuple[int, ...]:
    return tuple(row[: row.index(2) + 1] if 2 in row else row)


@pytest.mark.parametrize("name", POLICIES)
def test_the_answers_and_the_budget_are_those_of_vllm(
    tiny_engine: Engine, model: Any, tmp_path: Path, name: str
) -> None:
    calibration = CALIBRATION if name == "ban" else None
    identity = folder_identity(Path(CHECKPOINT))
    folder = export_of(tmp_path / name, SHAPE, identity, name, POLICIES[name], calibration=calibration)
    prompts, expected, counted = by_vllm(tiny_engine, folder)
    with apply(model, folder) as handle:
        found = by_transformers(model, handle, prompts)
        print(
            name,
            sum(a == b for a, b in zip(found, expected)),
            counted.tokens,
            handle.tokens(),
            [k / t for k, t in zip(counted.kept, counted.tokens)],
            handle.mean_kept(),
        )
        print(found[:3], expected[:3])
