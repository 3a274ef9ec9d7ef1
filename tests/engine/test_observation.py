"""The pass that watches the unchanged model: its sums against counts by hand, its experts against the weights."""

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

Watched = tuple[list[list[int]], Observation, dict[str, torch.Tensor]]


@pytest.fixture(scope="module")
def watched(tiny_engine: Engine) -> Watched:
    """Sequences, what `observe` says of them under another policy, and what the layer's parts were really given."""
    tiny_engine.set_policy("none", {})
    answers = tiny_engine.generate(short_prompts(40), max_tokens=MAX_TOKENS)
    sequences = [[*a.prompt_token_ids, *a.token_ids[:-1]] for a in answers]
    tiny_engine.set_policy(*POLICY_A)
    given: dict[str, list[torch.Tensor]] = {"hidden": [], "logits": [], "stream": []}

    def listen(worker: Any) -> Any:
        layer = worker.get_model().model.layers[LAYER]
        norm, gate = layer.post_attention_layernorm, layer.mlp.gate
        return [
            layer.mlp.register_forward_pre_hook(lambda _, args: given["hidden"].append(args[0].clone())),
            gate.register_forward_hook(lambda _, args, answer: given["logits"].append(answer[0].clone())),
            norm.register_forward_pre_hook(lambda _, args: given["stream"].append(args[0] + args[1])),
        ]

    (handles,) = tiny_engine.llm.collective_rpc(listen)
    tiny_engine.counters(reset=True)
    found = observe(tiny_engine, sequences, [marker(tiny_engine)])
    for handle in handles:
        handle.remove()
    assert tiny_engine.counters(reset=True).tokens == [0] * NUM_LAYERS
    return sequences, found, {name: torch.cat(parts) for name, parts in given.items()}


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
    assert passes.expert_outputs(tiny_engine, LAYER, K_MIN) == passes.expert_outputs(tiny_engine, LAYER, K_MIN)
    assert tiny_engine.generate(short_prompts(10), max_tokens=MAX_TOKENS, salt="after watching") == before


def test_the_ratio_is_that_of_the_two_best_logits(watched: Watched) -> None:
    _, found, given = watched
    best_T2 = given["logits"].double().topk(2).values
    assert found.ratio_median[LAYER] == pytest.approx(float((best_T2[:, 1] - best_T2[:, 0]).exp().median()), abs=0.01)
    assert all(0 < median < 1 for median in found.ratio_median) and len(found.ratio_median) == NUM_LAYERS


def test_expert_outputs_follow_from_the_weights(tiny_engine: Engine, watched: Watched) -> None:
    """Once more from the checkpoint's weights, in float64 and from the definitions, token by token."""
    sequences, _, given = watched
    observe(tiny_engine, sequences, [])
    found = passes.expert_outputs(tiny_engine, LAYER, K_MIN)
    stride = -(-len(given["hidden"]) // SAMPLED)
    hidden_NH, logits_NE, stream_NH = (given[name][::stride] for name in ("hidden", "logits", "stream"))
    hidden_NH, stream_NH = hidden_NH.double(), stream_NH.double()
    assert 50 < len(hidden_NH) <= SAMPLED
    weights = load_file(f"{CHECKPOINT}/model.safetensors")

    def outputs(expert: int) -> torch.Tensor:
        gate, up, down = (
            weights[f"model.layers.{LAYER}.mlp.experts.{expert}.{name}_proj.weight"].double()
            for name in ("gate", "up", "down")
        )
        return (torch.nn.functional.silu(hidden_NH @ gate.T) * (hidden_NH @ up.T)) @ down.T

    output_ENH = torch.stack([outputs(expert) for expert in range(NUM_EXPERTS)])
    centre_NN = torch.eye(len(hidden_NH), dtype=torch.float64) - 1 / len(hidden_NH)
    grams = [(centre_NN @ y @ y.T @ centre_NN).numpy() for y in output_ENH]
    wanted = [[np.sum(a * b) / np.sqrt(np.sum(a * a) * np.sum(b * b)) for b in grams] for a in grams]
    similarity_EE = np.array(found.similarity)
    assert similarity_EE == pytest.approx(np.array(wanted), abs=5e-3)  # the engine's outputs are bfloat16
    assert (similarity_EE == similarity_EE.T).all() and (np.diag(similarity_EE) == 1).all()
    assert similarity_EE.min() >= 0 and np.sort(similarity_EE.ravel())[-NUM_EXPERTS - 1] < 1
    assert found.similarity_by_rank == [found.similarity] and found.residual

    reap, man, easy_ep, removal, uses = np.zeros((5, NUM_EXPERTS))
    limit = 0.0
    for token, stream_H in enumerate(stream_NH):

        def routed(logits_E: torch.Tensor, kept: int, token: int = token) -> tuple[torch.Tensor, ...]:
            best_K, ids_K = logits_E.topk(kept, sorted=False)  # breaks ties of bfloat16 logits as vLLM's router does
            weight_K = best_K.double().softmax(0)  # the checkpoint renormalises over the selection
            return ids_K, weight_K, (weight_K[:, None] * output_ENH[ids_K, token]).sum(0)

        logits_E = logits_NE[token]
        ids_K, weight_K, sum_H = routed(logits_E, TOP_K)
        limit += float((routed(logits_E, K_MIN)[2] - sum_H).square().sum())
        turned = 1 - float(torch.nn.functional.cosine_similarity(stream_H, stream_H + sum_H, dim=0))
        for expert, weight in zip(ids_K.tolist(), weight_K.tolist(), strict=True):
            norm = float(output_ENH[expert, token].norm())
            uses[expert] += 1
            man[expert] += norm
            reap[expert] += weight * norm
            easy_ep[expert] += turned * weight * norm
            without_E = logits_E.float().index_fill(0, torch.tensor(expert), -torch.inf)
            removal[expert] += float((routed(without_E, TOP_K)[2] - sum_H).square().sum())
    assert (uses > 0).sum() > NUM_EXPERTS / 2
    for name, values in (
        ("reap", reap / np.maximum(uses, 1)),
        ("man", man / np.maximum(uses, 1)),
        ("easy_ep", easy_ep),
        ("removal_shift", removal / len(hidden_NH)),
    ):
        assert np.array(getattr(found, name)) == pytest.approx(values, rel=0.02), name
    assert found.limit_shift == pytest.approx(limit / len(hidden_NH), rel=0.02)


class Model(torch.nn.Module):
    """One decoder layer, in vLLM's way: what its experts answer, and beside it the stream that waits for it."""

    def __init__(self, layer: Any) -> None:
        super().__init__()

        class Decoder(torch.nn.Module):
            def forward(self, hidden_TH: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
                layer.route(hidden_TH, -hidden_TH, None, None)
                return hidden_TH, 100 * hidden_TH

        self.layers = torch.nn.ModuleList([torch.nn.Identity(), Decoder()])

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        added_TH, stream_TH = self.layers[1](input_ids[:, None].float())
        return stream_TH.add_(added_TH)  # in place, as a fused norm does


class Layer:
    name, num_experts, top_k, tokens_P = "layers.1.mlp.experts", 4, 3, torch.zeros(1)
    observer: Any = None
    routed: Any = None

    def route(self, hidden_TH: torch.Tensor, logits_TE: torch.Tensor, *_: Any) -> Any:
        if self.observer is not None:
            self.observer(*self.routed, hidden_TH, logits_TE)
        return self.routed


def test_sums_and_samples_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two steps of three and two tokens, the last of the first step being padding; a fourth slot is no selection."""
    from banpick_exp.engine.plugin import observation

    layer: Any = Layer()
    model = Model(layer)
    observer = observation.Observer(model, [layer], expected=4, markers=[7], k_min=1, hidden_states=2)
    padding = torch.tensor([False, False, True])
    for ids, weights, experts in (
        ([7, 8, 7], [[0.5, 0.3, 0.2], [1.0, 3.0, 4.0], [9.0, 9.0, 9.0]], [[0, 1, 2], [1, 2, 3], [-1, -1, -1]]),
        ([9, 7], [[0.0, 1.0, 0.0], [2.0, 2.0, 4.0]], [[3, 0, 1], [0, 2, 3]]),
    ):
        context = SimpleNamespace(is_padding=padding if len(ids) == 3 else None)
        monkeypatch.setattr(observation, "get_forward_context", lambda context=context: context)
        spare = torch.zeros(len(ids), 1)  # as in a compiled engine with engine.extra_slots=1
        layer.routed = torch.cat([torch.tensor(weights), spare], -1), torch.cat([torch.tensor(experts), spare], -1)
        model(input_ids=torch.tensor(ids))
    observer.stop()
    model(input_ids=torch.tensor([5, 6]))
    assert layer.observer is None and (observer.tokens, observer.marker_tokens) == (4, 2)
    assert observer.usage_LE.tolist() == [[3, 3, 3, 3]] and observer.marker_usage_LE.tolist() == [[2, 1, 2, 1]]
    squares = [0.3**2 + 0.2**2, 0.375**2 + 0.125**2, 0.0, 0.25**2 * 2]
    assert observer.tail_square_L[0] == pytest.approx(sum(squares))
    assert observer.ratio_range == pytest.approx((1.0, 1.0)), "three experts are the top three"
    assert observer.ratio_median() == pytest.approx([(0.5 + 0.6) / 2]), "of 0.6, 0.75, 0 and 0.5"
    (kept,) = observer.kept()
    assert kept.hidden_NH.tolist() == [[7.0], [9.0]], "every second token, over both steps"
    assert kept.logits_NE.tolist() == [[-7.0], [-9.0]]
    assert kept.stream_NH is not None and kept.stream_NH.tolist() == [[700.0], [900.0]], "before anything is added"


def test_one_expert_a_token_has_no_second(monkeypatch: pytest.MonkeyPatch) -> None:
    from banpick_exp.engine.plugin import observation

    layer: Any = Layer()
    layer.top_k, layer.name = 1, "named otherwise"
    layer.routed = torch.ones(2, 1), torch.tensor([[0], [3]])
    model = Model(layer)
    monkeypatch.setattr(observation, "get_forward_context", lambda: SimpleNamespace(is_padding=None))
    observer = observation.Observer(model, [layer], expected=2, markers=[], k_min=1, hidden_states=2)
    model(input_ids=torch.tensor([5, 6]))
    observer.stop()
    assert observer.ratio_median() == [0.0]
    assert observer.kept()[0].stream_NH is None, "no such decoder layer"
