"""Which requests of a step are a pair, and what is made of their logits, on vLLM's own batch, however shuffled."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from banpick_exp.engine.contrast import Contrast, Room
from banpick_exp.engine.engine import EngineError
from banpick_exp.engine.plugin.contrast import ContrastedSteps, contrasted
from banpick_exp.engine.plugin.twins import TWIN, Pair, Twin, pairs_of
from banpick_exp.errors import UserError

pytestmark = pytest.mark.engine

VOCABULARY, SLOTS, LENGTH = 12, 10, 16
ALPHA, BETA = 0.2, 0.5


def formula(strong: list[float], weak: list[float], alpha: float, beta: float) -> list[float]:
    """2405.14507, section 3.2, token by token."""
    cutoff = max(strong) + (math.log(alpha) if alpha else -math.inf)
    return [(1 + beta) * s - beta * w if s >= cutoff else -math.inf for s, w in zip(strong, weak, strict=True)]


def batch() -> Any:
    from vllm.v1.worker.gpu_input_batch import InputBatch

    return InputBatch(
        max_num_reqs=SLOTS, max_model_len=LENGTH, max_num_batched_tokens=64, device=torch.device("cpu"),
        vocab_size=VOCABULARY, block_sizes=[8], max_num_blocks_per_req=[2],
    )  # fmt: skip


def state(name: str, twin: Twin | None, length: int) -> Any:
    from vllm import SamplingParams
    from vllm.v1.worker.gpu_input_batch import CachedRequestState

    extra = None if twin is None else {TWIN: twin.wire()}
    return CachedRequestState(
        req_id=name, prompt_token_ids=list(range(length)), mm_features=[], generator=None, block_ids=([1, 2],),
        sampling_params=SamplingParams(temperature=0.0, extra_args=extra), num_computed_tokens=0, output_token_ids=[],
    )  # fmt: skip


def sampled(runner: Any, logits: Any) -> tuple[ContrastedSteps, Any]:
    """Greedy over what stands in place of the logits; each request's own number where that is left as it was."""
    steps = ContrastedSteps()
    steps.active = True
    seen: list[Any] = []

    def stock(scores: Any) -> Any:
        seen.append(scores.clone())
        return SimpleNamespace(sampled_token_ids=torch.arange(len(scores))[:, None])

    tokens = steps.sample(runner, stock, logits.clone()).sampled_token_ids[:, 0].tolist()
    return steps, (seen[0], tokens)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_pairs_are_found_wherever_they_stand(data: st.DataObject) -> None:
    """Requests come, end and change places as vLLM has them; pairs and others stand in one batch."""
    names = [*(f"{which}{pair}" for pair in range(3) for which in "sw"), "alone"]
    runner = SimpleNamespace(input_batch=batch(), requests={})
    for name in data.draw(st.permutations(names)):
        twin = None if name == "alone" else Twin(int(name[1]), name[0] == "w", ALPHA, BETA)
        runner.requests[name] = state(name, twin, 4 + int(name[1]) if twin else 3)
        runner.input_batch.add_request(runner.requests[name])
    gone = data.draw(st.sets(st.integers(0, 2), max_size=2))
    for name in [f"{which}{pair}" for pair in gone for which in "sw"]:
        runner.input_batch.remove_request(name)
        del runner.requests[name]
    runner.input_batch.condense()
    there = len(runner.input_batch.req_ids)
    if there > 1:
        runner.input_batch.swap_states(0, there - 1)
    order = list(runner.input_batch.req_ids)
    runner.optimistic_seq_lens_cpu = torch.tensor([runner.requests[name].num_tokens for name in order])
    runner.discard_request_mask = SimpleNamespace(np=np.zeros(SLOTS, dtype=bool))
    logits = torch.randn(there, VOCABULARY, generator=torch.Generator().manual_seed(0))
    steps, (scores, tokens) = sampled(runner, logits)
    assert steps.faults == [] and steps.steps == {pair: 1 for pair in range(3) if pair not in gone}
    for place, name in enumerate(order):
        if name == "alone":
            assert torch.equal(scores[place], logits[place]) and tokens[place] == place
            continue
        strong, weak = order.index(f"s{name[1]}"), order.index(f"w{name[1]}")
        wanted = formula(logits[strong].tolist(), logits[weak].tolist(), ALPHA, BETA)
        torch.testing.assert_close(scores[place], torch.tensor(wanted), rtol=1e-5, atol=1e-5)
        assert tokens[place] == strong


def test_nothing_happens_where_nobody_looks() -> None:
    runner = SimpleNamespace(requests={"s": state("s", Twin(0, False, 0.1, 0.5), 3)})
    steps, logits = ContrastedSteps(), torch.zeros(1, VOCABULARY)
    assert steps.sample(runner, lambda given: given, logits) is logits


STRONG, WEAK = Twin(7, False, 0.1, 0.5), Twin(7, True, 0.1, 0.5)


@pytest.mark.parametrize(
    ("twins", "lengths", "fault"),
    [
        ([STRONG], [9], "pair 7 has in a step: strong, at token 9"),
        ([None, WEAK], [1, 9], "pair 7 has in a step: weak, at token 9"),
        ([STRONG, STRONG], [9, 9], "pair 7 has in a step: strong, strong, at token 9"),
        ([WEAK, STRONG, WEAK], [9, 9, 9], "pair 7 has in a step: strong, weak, weak, at token 9"),
        ([WEAK, STRONG], [9, 8], "pair 7: the strong one is at token 8, the weak at 9"),
        ([STRONG, Twin(7, True, 0.1, 1.0)], [9, 9], "pair 7 has two contrasts"),
    ],
)
def test_what_is_out_of_step(twins: list[Twin | None], lengths: list[int], fault: str) -> None:
    pairs, faults = pairs_of(twins, lengths, [True] * len(twins))
    assert pairs == [] and len(faults) == 1 and faults[0].startswith(fault)


def test_prompts_that_have_not_ended_are_waited_for() -> None:
    assert pairs_of([STRONG, WEAK], [9, 5], [False, False]) == ([], [])
    assert pairs_of([STRONG, WEAK], [9, 5], [True, False])[1] == ["pair 7 has in a step: strong, at token 9"]
    assert pairs_of([WEAK, None, STRONG], [9, 5, 9], [True] * 3) == ([Pair(STRONG, 2, 0)], [])


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.floats(-20, 20), st.floats(-20, 20)), min_size=1, max_size=8),
    st.sampled_from([0.0, 0.1, 1.0]),
    st.sampled_from([0.0, 0.5, 3.0]),
)
def test_the_formula(logits: list[tuple[float, float]], alpha: float, beta: float) -> None:
    strong, weak = (torch.tensor([each], dtype=torch.float32) for each in zip(*logits, strict=True))
    found = contrasted(strong, weak, [alpha], [beta])[0]
    wanted = torch.tensor(formula(strong[0].tolist(), weak[0].tolist(), alpha, beta))
    at_the_cutoff = (strong[0] - strong.max() - (math.log(alpha) if alpha else -math.inf)).abs() < 1e-4
    torch.testing.assert_close(found[~at_the_cutoff], wanted[~at_the_cutoff], rtol=1e-4, atol=1e-4)
    if not beta:
        assert torch.equal(found[found > -math.inf], strong[0][found > -math.inf]), "bit for bit"


def test_room_for_a_pair() -> None:
    room = Room(tokens=100, requests=4, blocks=20, block_sizes=(16, 8), longest=64)
    assert room.blocks_of(prompt=20, max_tokens=13) == 2 * ((3 + 1) + (5 + 1))
    assert room.blocks_of(prompt=20, max_tokens=1000) == 2 * ((4 + 1) + (8 + 1)), "it ends with the context"
    room.check(20, 13)
    for prompt, max_tokens, said in [(51, 1, "102 tokens in one step"), (20, 1000, "28 blocks")]:
        with pytest.raises(EngineError, match=said):
            room.check(prompt, max_tokens)


@pytest.mark.parametrize("knobs", [{"alpha": 1.5}, {"alpha": -0.1}, {"beta": -1.0}, {"beta": math.inf}])
def test_knobs_out_of_range(knobs: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="Use 0"):
        Contrast(**knobs)
