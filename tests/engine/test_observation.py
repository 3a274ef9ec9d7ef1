"""The pass that watches the unchanged model: its sums against counts by hand, its similarities against the weights."""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from prompts import CHECKPOINT, MAX_TOKENS, NUM_EXPERTS, NUM_LAYERS, POLICY_A, TOP_K, short_prompts
from safetensors.torch import load_file

from banpick_exp.evaluation.calibration import passes
from banpick_exp.evaluation.calibration.passes import Observation

if TYPE_CHECKING:
    from banpick_exp.engine.engine import Engine

pytestmark = pytest.mark.engine

LAYER, SAMPLED, K_MIN = 1, 100, 3

Watched = tuple[list[list[int]], Observation, torch.Tensor]


@pytest.fixture(scope="module")
def watched(tiny_engine: Engine) -> Watched:
    """Sequences, what `observe` says of them under another policy, and what the layer's block was really given."""
    tiny_engine.set_policy("none", {})
    answers = tiny_engine.generate(short_prompts(40), max_tokens=MAX_TOKENS)
    sequences = [[*a.prompt_token_ids, *a.token_ids[:-1]] for a in answers]
    tiny_engine.set_policy(*POLICY_A)
    given: list[torch.Tensor] = []

    def listen(worker: Any) -> Any:
        block = worker.get_model().model.layers[LAYER].mlp
        return block.register_forward_pre_hook(lambda _, args: given.append(args[0].clone()))

    (handle,) = tiny_engine.llm.collective_rpc(listen)
    tiny_engine.counters(reset=True)
    found = observe(tiny_engine, sequences, [marker(tiny_engine)])
    handle.remove()
    assert tiny_engine.counters(reset=True).tokens == [0] * NUM_LAYERS
    return sequences, found, torch.cat(given)


def observe(engine: Engine, sequences: list[list[int]], markers: list[int], k_min: int = K_MIN) -> Observation:
    return passes.observe(engine, sequences, markers=markers, k_min=k_min, hidden_states=SAMPLED)


def marker(engine: Engine) -> int:
    (token,) = passes.token_ids(engine, [";", "two tokens"])
    return token


def test_it_counts_what_the_counters_count(tiny_engine: Engine, watched: Watched) -> None:
    sequences, found, _ = watched
    tiny_engine.set_policy("none", {})
    tiny_engine.counters(reset=True)
    tiny_engine.generate_ids(sequences, max_tokens=1, salt="counted by hand")
    counted = tiny_engine.counters(reset=True)
    assert found.tokens == counted.tokens[0] == sum(map(len, sequences))
    assert found.usage == counted.usage
    markers = sum(sequence.count(marker(tiny_engine)) for sequence in sequences)
    assert found.marker_tokens == markers > 20
    for usage_E, with_marker_E in zip(found.usage, found.marker_usage, strict=True):
        assert sum(with_marker_E) == markers * TOP_K
        assert all(few <= many for few, many in zip(with_marker_E, usage_E, strict=True))


def test_every_token_a_marker_is_usage_itself(tiny_engine: Engine, watched: Watched) -> None:
    sequences, found, _ = watched
    everything = sorted({token for sequence in sequences for token in sequence})
    again = observe(tiny_engine, sequences, everything, k_min=TOP_K)
    assert again.marker_usage == again.usage == found.usage
    assert again.tail_square == [0.0] * NUM_LAYERS, "nothing lies below rank K"
    low, high = again.ratio_range
    assert 3 / TOP_K <= low < high <= 1 and again.ratio_range == found.ratio_range


def test_the_policy_from_before_is_on_again(tiny_engine: Engine, watched: Watched) -> None:
    sequences, found, _ = watched
    tiny_engine.set_policy(*POLICY_A)
    before = tiny_engine.generate(short_prompts(10), max_tokens=MAX_TOKENS, salt="before watching")
    assert observe(tiny_engine, sequences, [marker(tiny_engine)]) == found
    assert tiny_engine.generate(short_prompts(10), max_tokens=MAX_TOKENS, salt="after watching") == before


def test_similarity_is_cka_of_the_experts_outputs(tiny_engine: Engine, watched: Watched) -> None:
    """Once more from the checkpoint's weights, in float64 and from the definition."""
    sequences, _, given_TH = watched
    observe(tiny_engine, sequences, [])
    (found,) = passes.similarity(tiny_engine, LAYER)
    stride = -(-len(given_TH) // SAMPLED)
    hidden_NH = given_TH[::stride].double()
    assert 50 < len(hidden_NH) <= SAMPLED
    weights = load_file(f"{CHECKPOINT}/model.safetensors")

    def gram(expert: int) -> np.ndarray:
        gate, up, down = (
            weights[f"model.layers.{LAYER}.mlp.experts.{expert}.{name}_proj.weight"].double()
            for name in ("gate", "up", "down")
        )
        output_NH = (torch.nn.functional.silu(hidden_NH @ gate.T) * (hidden_NH @ up.T)) @ down.T
        centre_NN = torch.eye(len(hidden_NH), dtype=torch.float64) - 1 / len(hidden_NH)
        return (centre_NN @ output_NH @ output_NH.T @ centre_NN).numpy()

    grams = [gram(expert) for expert in range(NUM_EXPERTS)]
    wanted = [[np.sum(a * b) / np.sqrt(np.sum(a * a) * np.sum(b * b)) for b in grams] for a in grams]
    similarity_EE = np.array(found)
    assert similarity_EE == pytest.approx(np.array(wanted), abs=5e-3)  # the engine's outputs are bfloat16
    assert (similarity_EE == similarity_EE.T).all() and (np.diag(similarity_EE) == 1).all()
    assert similarity_EE.min() >= 0 and np.sort(similarity_EE.ravel())[-NUM_EXPERTS - 1] < 1


def test_sums_and_samples_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two steps of three and two tokens, the last of the first step being padding; a fourth slot is no selection."""
    from banpick_exp.engine.plugin import observation

    layer: Any = SimpleNamespace(tokens_P=torch.zeros(1), num_experts=4, top_k=3, observer=None)
    observer = observation.Observer([layer], expected=4, markers=[7], k_min=1, hidden_states=2)
    padding = torch.tensor([False, False, True])
    for ids, weights, experts in (
        ([7, 8, 7], [[0.5, 0.25, 0.25], [1.0, 3.0, 4.0], [9.0, 9.0, 9.0]], [[0, 1, 2], [1, 2, 3], [-1, -1, -1]]),
        ([9, 7], [[0.0, 1.0, 0.0], [2.0, 2.0, 4.0]], [[3, 0, 1], [0, 2, 3]]),
    ):
        context = SimpleNamespace(is_padding=padding if len(ids) == 3 else None)
        monkeypatch.setattr(observation, "get_forward_context", lambda context=context: context)
        observer(None, (), {"input_ids": torch.tensor(ids)})
        spare = torch.zeros(len(ids), 1)  # as in a compiled engine with engine.extra_slots=1
        weights_TS = torch.cat([torch.tensor(weights), spare], -1)
        experts_TS = torch.cat([torch.tensor(experts), spare.long()], -1)
        layer.observer(weights_TS, experts_TS, torch.tensor(ids)[:, None].float())
    observer.stop()
    assert layer.observer is None and (observer.tokens, observer.marker_tokens) == (4, 2)
    assert observer.usage_LE.tolist() == [[3, 3, 3, 3]] and observer.marker_usage_LE.tolist() == [[2, 1, 2, 1]]
    squares = [0.25**2 * 2, 0.375**2 + 0.125**2, 0.0, 0.25**2 * 2]
    assert observer.tail_square_L[0] == pytest.approx(sum(squares))
    assert observer.ratio_range == pytest.approx((1.0, 1.0)), "three experts are the top three"
    assert torch.cat(observer.hidden_L[0]).tolist() == [[7.0], [9.0]], "every second token, over both steps"


def test_experts_that_answer_nothing_or_the_same_everywhere_are_like_no_other() -> None:
    from banpick_exp.engine.plugin.observation import cosines

    found = cosines(torch.tensor([[1.0, 0.0], [0.0, 0.0], [3.0, 4.0], [float("nan"), 1.0], [-2.0, 0.0]]))
    assert found[2].tolist() == pytest.approx([0.6, 0.0, 1.0, 0.0, 0.0])
    assert found[1].tolist() == [0, 1, 0, 0, 0] and found[3].tolist() == [0, 0, 0, 1, 0]
