"""Rules beyond the table in a real engine: taken up, counted, swapped away, and refused where a graph is frozen."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
from prompts import MAX_TOKENS, NUM_LAYERS, TOP_K, short_prompts

if TYPE_CHECKING:
    from banpick_exp.engine.engine import Engine
    from banpick_exp.records import Counters

pytestmark = pytest.mark.engine

STEERED: dict[str, Any] = {"on": {"1": [3, 17]}, "off": {"2": [7]}}


def run(engine: Engine, name: str, params: dict[str, Any], salt: str) -> tuple[list[tuple[int, ...]], Counters]:
    engine.set_policy(name, params)
    engine.counters(reset=True)
    answers = engine.generate(short_prompts(30), max_tokens=MAX_TOKENS, salt=salt)
    return [answer.token_ids for answer in answers], engine.counters(reset=True)


def model_of(engine: Engine) -> Any:
    core: Any = engine.llm.llm_engine.engine_core
    return core.engine_core.model_executor.driver_worker.worker.model_runner.model


def test_steered_experts_are_used_by_every_token_or_none_and_a_swap_takes_them_back(tiny_engine: Engine) -> None:
    before = run(tiny_engine, "none", {}, "before steer")
    _, steered = run(tiny_engine, "steer", STEERED, "steer")
    assert [steered.usage[1][expert] for expert in (3, 17)] == [steered.tokens[1]] * 2
    assert steered.usage[2][7] == 0 < before[1].usage[2][7]
    assert steered.kept == [tokens * TOP_K for tokens in steered.tokens]
    assert run(tiny_engine, "none", {}, "after steer") == before
    _, three = run(tiny_engine, "steer", STEERED | {"k": 3}, "steer 3")
    assert three.kept == [tokens * 3 for tokens in three.tokens] and three.usage[1][3] == three.tokens[1]


def test_reinforced_experts_are_selected_as_before_and_weigh_more(tiny_engine: Engine) -> None:
    sequences = tiny_engine.tokenize(short_prompts(20))
    found = []
    for name, params in (("none", {}), ("rice", {"experts": {"1": [3, 17]}, "multiplier": 4})):
        tiny_engine.set_policy(name, params)
        tiny_engine.counters(reset=True)
        found.append((tiny_engine.score(sequences, salt=f"rice {name}"), tiny_engine.counters(reset=True).usage))
    (stock, stock_usage), (reinforced, usage) = found
    assert usage[:2] == stock_usage[:2], "the first layer that the weights can change is the next one"
    assert usage[2:] != stock_usage[2:] and stock != reinforced


def test_sampled_experts_hang_on_the_seed_alone(tiny_engine: Engine) -> None:
    sequences = tiny_engine.tokenize(short_prompts(20))
    usage = []
    for turn, seed in enumerate((0, 0, 1)):
        tiny_engine.set_policy("expert_sample", {"seed": seed, "k": 5})
        tiny_engine.counters(reset=True)
        tiny_engine.score(sequences, salt=f"sample {turn}")
        counters = tiny_engine.counters(reset=True)
        assert counters.mean_kept == 5
        usage.append(counters.usage)
    assert usage[0] == usage[1] != usage[2]
    tiny_engine.set_policy("fixed_k", {"k": 5})
    tiny_engine.score(sequences, salt="sample none")
    assert tiny_engine.counters(reset=True).usage != usage[0]


def test_a_mixed_k_is_the_reference_token_by_token_and_counts_its_mean(tiny_engine: Engine) -> None:
    """In numpy (decode) and in torch (prefill of more than 64 tokens): the ids and the number of every token."""
    from banpick_exp.engine.plugin.hook import find_layers
    from banpick_exp.policy import build_policy

    layers = find_layers(model_of(tiny_engine))
    seen: list[Any] = []
    tiny_engine.set_policy("fixed_k", {"k": 4.6})
    shape: dict[str, Any] = {"num_layers": NUM_LAYERS, "num_experts": layers[0].num_experts, "top_k": TOP_K}
    policy = build_policy("fixed_k", {"k": 4.6}, **shape)
    for index, layer in enumerate(layers):
        layer.observer = lambda weights, ids, _, logits, index=index: seen.append((index, weights, ids, logits))
    try:
        answers, counters = run(tiny_engine, "fixed_k", {"k": 4.6}, "mixed")
    finally:
        for layer in layers:
            layer.observer = None
    assert {len(ids) <= 64 for _, _, ids, _ in seen} == {True, False}
    for index, weights, ids, logits in seen:
        wanted_weights, wanted_ids, kept = (each[:, : ids.shape[1]] for each in policy.route(logits, index))
        assert torch.equal(ids.long(), wanted_ids.long()) and torch.equal(weights > 0, kept)
        assert weights.allclose(wanted_weights, atol=1e-6)
    assert abs(counters.mean_kept - 4.6) < 0.05
    assert all(4 * tokens < kept < 5 * tokens for tokens, kept in zip(counters.tokens, counters.kept, strict=True))
    assert [sum(row) for row in counters.usage] == counters.kept
    assert run(tiny_engine, "fixed_k", {"k": 4.6}, "mixed again") == (answers, counters), (
        "the same tokens, the same coins"
    )
    assert run(tiny_engine, "fixed_k", {"k": 5}, "five")[1].mean_kept == 5


def test_a_frozen_engine_refuses_and_keeps_what_it_had(tiny_engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    from banpick_exp.engine.plugin.hook import find_layers

    tiny_engine.set_policy("fixed_k", {"k": 3})
    held, layers = tiny_engine.policy_fingerprint, find_layers(model_of(tiny_engine))
    for layer in layers:
        monkeypatch.setattr(layer, "frozen", True)
    with pytest.raises(RuntimeError, match=r"routes in torch \(SteerEdit\).*Use engine.compile=false"):
        tiny_engine.set_policy("steer", {"on": {"3": [1]}})
    assert tiny_engine.policy_fingerprint == held
    assert [(int(layer.table.keep[0]), layer.edit) for layer in layers] == [(3, None)] * NUM_LAYERS


def test_what_is_tried_meanwhile_leaves_the_edit_in_place(tiny_engine: Engine) -> None:
    """The self-test and the probe of a calibration write policies of their own and put the old one back."""
    from banpick_exp.engine.plugin.hook import find_layers
    from banpick_exp.evaluation.calibration.passes import probe
    from banpick_exp.evaluation.calibration.probe import Candidate, Judging, Scored

    tiny_engine.set_policy("steer", STEERED)
    layers = find_layers(model_of(tiny_engine))
    held = [layer.edit and layer.edit.digest() for layer in layers]
    assert [bool(digest) for digest in held] == [False, True, True, False]
    sequence = tiny_engine.tokenize(short_prompts(1))
    judging = Judging(objective="kl", last_only=False, top_vocab=20, range_factor=2.0, boost=0.5)
    probe(tiny_engine, [Scored(sequence[0], len(sequence[0]) - 4, None)], [Candidate("remove", 1, 3)], judging)
    assert [layer.edit and layer.edit.digest() for layer in layers] == held
    assert tiny_engine.call("banpick_self_test") == [[]]
    assert [layer.edit and layer.edit.digest() for layer in layers] == held


def test_ranks_with_different_edits_would_disagree(tiny_engine: Engine) -> None:
    """The digest that `set_policy` compares: each answer of a rank is (digest, seconds)."""

    def digest(params: str) -> str:
        return str(tiny_engine.call("banpick_set_policy", "steer", params, "")[0][0])

    named, other = '{"on": {"1": [3]}}', '{"on": {"1": [4]}}'
    assert digest(named) == digest(named)
    assert len({digest(named), digest(other), digest('{"on": {"1": [3]}, "epsilon": 0.02}')}) == 3


def deepseek_layer(bias_E: torch.Tensor | None) -> Any:
    """A hooked layer whose router chooses as DeepSeek's, by vLLM's own function: 3 of 8 groups of 8, then 6 experts."""
    from vllm.model_executor.layers.fused_moe.router.cpu_router import _grouped_topk

    from banpick_exp.engine.plugin.layer import HookedLayer

    class Grouped:
        global_num_experts, top_k, num_expert_group, topk_group = 64, 6, 8, 3
        renormalize, scoring_func, use_grouped_topk = True, "sigmoid", True
        e_score_correction_bias = bias_E

        def _compute_routing(self, hidden: Any, logits_TE: Any, *_: Any, input_ids: Any) -> Any:
            return _grouped_topk(logits_TE, self.top_k, True, 8, 3, "sigmoid", 1.0, bias_E)

    router: Any = Grouped()
    return HookedLayer("grouped", router, torch.device("cpu"), None)


LOGITS = torch.randn(200, 64, generator=torch.Generator().manual_seed(2))
BIAS_E = torch.rand(64, generator=torch.Generator().manual_seed(1)) * 0.1


def policy_of(name: str, params: dict[str, Any]) -> Any:
    from banpick_exp.policy import build_policy

    return build_policy(name, params, num_layers=1, num_experts=64, top_k=6)


def groups_of(ids: torch.Tensor) -> int:
    """The most groups that a token uses."""
    return max(len({expert // 8 for expert in row}) for row in ids.tolist())


@pytest.mark.parametrize("bias_E", [None, BIAS_E], ids=["grouped", "corrected"])
def test_hooks_come_before_grouped_and_corrected_routers_choose(bias_E: torch.Tensor | None) -> None:
    layer, policy = deepseek_layer(bias_E), policy_of("steer", {"on": {0: [9]}, "off": {0: [10]}})
    stock_ids = layer.route(None, LOGITS, None, None)[1]
    layer.write(policy.table.layer(0), slots=6, edit=policy.edits[0])
    weights, ids = layer.route(None, LOGITS, None, None)
    chosen, before = [[(each == expert).any(-1) for expert in (9, 10)] for each in (ids, stock_ids)]
    if bias_E is not None:  # the router's bias still counts
        assert chosen[0].sum() > 2 * before[0].sum() and chosen[1].sum() < before[1].sum()
    else:
        assert chosen[0].all() and not chosen[1].any() and before[1].any()
    by_hand = layer.router._compute_routing(None, policy.edits[0].logits(LOGITS), input_ids=None)[1]
    assert torch.equal(ids.long().sort(-1).values, by_hand.long().sort(-1).values)
    assert groups_of(ids) <= 3 and weights.sum(-1).allclose(torch.ones(200), atol=1e-5)


@pytest.mark.parametrize("bias_E", [None, BIAS_E], ids=["grouped", "corrected"])
def test_a_mixed_k_of_a_grouped_router_keeps_the_heaviest_of_its_own_selection(bias_E: torch.Tensor | None) -> None:
    layer = deepseek_layer(bias_E)
    six = layer.route(None, LOGITS, None, None)[1].long()
    heaviest = six.gather(1, LOGITS.gather(1, six).argsort(dim=1, descending=True))
    policy = policy_of("fixed_k", {"k": 3.5})
    layer.write(policy.table.layer(0), slots=policy.max_kept)
    weights, ids = layer.route(None, LOGITS, None, None)
    kept = (weights > 0).sum(dim=1)
    assert set(kept.tolist()) == {3, 4} and 0.35 < float((kept == 4).double().mean()) < 0.65
    assert all(ids[t, : kept[t]].tolist() == heaviest[t, : kept[t]].tolist() for t in range(200))
    assert torch.equal(layer.route(None, LOGITS[50:70], None, None)[1], ids[50:70])


@pytest.mark.parametrize("bias_E", [None, BIAS_E * 20], ids=["grouped", "corrected"])
@pytest.mark.parametrize(
    "masked", [list(range(0, 64, 2)), [e for e in range(64) if e % 8]], ids=["half", "seven of each group"]
)
def test_a_masked_expert_is_not_selected_however_the_router_ranks(
    bias_E: torch.Tensor | None, masked: list[int]
) -> None:
    layer, policy = deepseek_layer(bias_E), policy_of("mask", {"experts": {0: masked}})
    stock_ids = layer.route(None, LOGITS, None, None)[1]
    layer.write(policy.table.layer(0), slots=6)
    weights, ids = layer.route(None, LOGITS, None, None)
    assert torch.isin(stock_ids, torch.tensor(masked)).any() and not torch.isin(ids, torch.tensor(masked)).any()
    assert (weights > 0).all() and weights.sum(-1).allclose(torch.ones(200), atol=1e-5)
    assert (groups_of(ids) <= 3) == (len(masked) == 32), "3 groups of one expert each do not hold 6"
    assert all(len(set(row)) == 6 for row in ids.tolist())
    layer.write(policy_of("none", {}).table.layer(0), slots=6)
    assert torch.equal(layer.route(None, LOGITS, None, None)[1], stock_ids)
