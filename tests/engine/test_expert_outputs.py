"""Scores of experts by their outputs: each against a loop over tokens in plain Python, and one token by hand."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

pytestmark = pytest.mark.engine

EXPERTS, TOP_K, K_MIN, HIDDEN, TOKENS, IDLE = 8, 3, 2, 5, 40, 6
RUNNER_SCALE = 1.5

ROUTERS: dict[str, dict[str, Any]] = {
    "softmax, renormalised": {"renormalize": True},
    "softmax": {"renormalize": False},
    "sigmoid, corrected, in groups": {
        "renormalize": True,
        "use_grouped_topk": True,
        "num_expert_group": 4,
        "topk_group": 2,
        "scoring_func": "sigmoid",
        "routed_scaling_factor": 2.5,
        "e_score_correction_bias": torch.tensor([0.1, 0.0, -0.1, 0.2, 0.0, 0.1, -0.9, 0.0]),
    },
}


def hooked(top_k: int = TOP_K, num_experts: int = EXPERTS, slots: int | None = None, **options: Any) -> Any:
    from vllm.model_executor.layers.fused_moe.router.cpu_router import CPURouter

    from banpick_exp.engine.plugin.layer import HookedLayer

    router = CPURouter(top_k=top_k, global_num_experts=num_experts, **options)
    layer = HookedLayer("fake", router, torch.device("cpu"), slots)
    layer.counting = False
    return layer


def runner_of(answer: Any, *, reduced: bool = True, scale: float = 1.0) -> Any:
    """`answer(expert, hidden_NH)`; vLLM's runner around it, as far as the scores know it."""

    def forward_modular(hidden_NH: Tensor, weights_N1: Tensor, ids_N1: Tensor) -> Tensor:
        output_NH: Tensor = weights_N1 * answer(int(ids_N1[0]), hidden_NH)
        hidden_NH.fill_(float("nan"))  # a kernel may write where it reads
        return output_NH

    return SimpleNamespace(
        moe_config=SimpleNamespace(is_sequence_parallel=False),
        routed_experts=SimpleNamespace(quant_method=SimpleNamespace(), forward_modular=forward_modular),
        routed_scaling_factor=scale,
        _fused_output_is_reduced=reduced,
    )


def scored(runner: Any, layer: Any, hidden: Tensor, logits: Tensor, stream: Tensor | None, k_min: int = K_MIN) -> Any:
    from banpick_exp.engine.plugin.observation import Kept
    from banpick_exp.engine.plugin.outputs import expert_outputs

    return expert_outputs(runner, layer, Kept(hidden_NH=hidden, logits_NE=logits, stream_NH=stream), k_min=k_min)


def routed_by_hand(logits: list[float], options: dict[str, Any], removed: int | None, keep: int) -> dict[int, float]:
    """The experts that one token selects and their weights."""
    gone = [expert == removed for expert in range(EXPERTS)]
    odds = [0.0 if out else math.exp(logit) for logit, out in zip(logits, gone, strict=True)]
    sigmoid = options.get("scoring_func") == "sigmoid"
    scores = [odd / (1 + odd) if sigmoid else odd / sum(odds) for odd in odds]
    ranking = scores
    if sigmoid:
        ranking = [s + float(b) for s, b in zip(scores, options["e_score_correction_bias"], strict=True)]
        groups = [(2 * group, 2 * group + 1) for group in range(4)]
        seen = sorted(groups, key=lambda pair: -(ranking[pair[0]] + ranking[pair[1]]))[:2]
        ranking = [r if any(e in pair for pair in seen) else -1e9 for e, r in enumerate(ranking)]
    best = sorted(range(EXPERTS), key=lambda e: (gone[e], -ranking[e]))[:TOP_K]
    best = sorted(best, key=lambda e: -scores[e])[:keep]
    total = sum(scores[e] for e in best) if options["renormalize"] else 1.0
    return {e: scores[e] / total * options.get("routed_scaling_factor", 1.0) * RUNNER_SCALE for e in best}


@pytest.mark.parametrize("kind", ROUTERS)
@pytest.mark.parametrize("with_stream", [True, False])
def test_scores_are_those_of_a_loop(kind: str, with_stream: bool) -> None:
    options, generator = ROUTERS[kind], torch.Generator().manual_seed(5)
    weights_EHH = torch.randn(EXPERTS, HIDDEN, HIDDEN, generator=generator)
    hidden_NH, stream_NH = torch.randn(2, TOKENS, HIDDEN, generator=generator)
    steps_NE = torch.stack([torch.randperm(64, generator=generator)[:EXPERTS] for _ in range(TOKENS)])
    logits_NE = (steps_NE - 32) / 16  # no two of a token are equal
    logits_NE[:, IDLE] = -20
    runner = runner_of(lambda expert, h: torch.tanh(h @ weights_EHH[expert]), scale=RUNNER_SCALE)
    found = scored(runner, hooked(**options), hidden_NH.clone(), logits_NE, stream_NH if with_stream else None)

    reap, man, easy_ep, removal, uses = ([0.0] * EXPERTS for _ in range(5))
    limit = 0.0
    for token in range(TOKENS):
        outputs = [torch.tanh(hidden_NH[token].double() @ weights_EHH[e].double()) for e in range(EXPERTS)]
        logits = logits_NE[token].tolist()

        def total(weights: dict[int, float], outputs: list[Tensor] = outputs) -> Tensor:
            return torch.stack([weight * outputs[e] for e, weight in weights.items()]).sum(0)

        usual = routed_by_hand(logits, options, None, TOP_K)
        limit += float((total(routed_by_hand(logits, options, None, K_MIN)) - total(usual)).square().sum())
        before = (stream_NH if with_stream else hidden_NH)[token].double()
        after = before + total(usual)
        contribution = 1 - float(before @ after / (before.norm() * after.norm()))
        for expert, weight in usual.items():
            norm = float(outputs[expert].norm())
            uses[expert] += 1
            man[expert] += norm
            reap[expert] += weight * norm
            easy_ep[expert] += contribution * weight * norm
            without = routed_by_hand(logits, options, expert, TOP_K)
            assert expert not in without and len(without) == TOP_K
            removal[expert] += float((total(without) - total(usual)).square().sum())
    assert uses[IDLE] == 0 and min(uses[:IDLE]) > 0
    per_use = [max(count, 1) for count in uses]
    assert found["reap"] == pytest.approx([value / count for value, count in zip(reap, per_use, strict=True)], rel=1e-4)
    assert found["man"] == pytest.approx([value / count for value, count in zip(man, per_use, strict=True)], rel=1e-4)
    assert found["easy_ep"] == pytest.approx(easy_ep, rel=1e-4)
    assert found["removal_shift"] == pytest.approx([value / TOKENS for value in removal], rel=1e-4)
    assert found["limit_shift"] == pytest.approx(limit / TOKENS, rel=1e-4)
    assert found["residual"] == with_stream
    assert [found[name][IDLE] for name in ("reap", "man", "easy_ep", "removal_shift")] == [0.0] * 4


def test_one_token_by_hand() -> None:
    """Scores 0.5, 0.3, 0.2, two selected: weights 5/8 and 3/8; outputs (1, 0), (0, 2), (0, -1)."""
    answers = torch.tensor([[1.0, 0.0], [0.0, 2.0], [0.0, -1.0]])
    layer = hooked(top_k=2, num_experts=3, renormalize=True)
    logits, hidden, stream = torch.tensor([[0.5, 0.3, 0.2]]).log(), torch.zeros(1, 2), torch.tensor([[1.0, 0.0]])
    found = scored(runner_of(lambda expert, h: answers[expert].expand_as(h)), layer, hidden, logits, stream, k_min=1)
    assert found["reap"] == pytest.approx([5 / 8, 3 / 4, 0])
    assert found["man"] == pytest.approx([1, 2, 0])
    turned = 1 - 1.625 / math.hypot(1.625, 0.75)
    assert found["easy_ep"] == pytest.approx([turned * 5 / 8, turned * 3 / 4, 0], rel=1e-5)
    # Without the first, 3/5 and 2/5 of the others: (0, 0.8) where (0.625, 0.75) was. Without the second (5, -2) / 7.
    second = (5 / 7 - 0.625) ** 2 + (-2 / 7 - 0.75) ** 2
    assert found["removal_shift"] == pytest.approx([0.625**2 + 0.05**2, second, 0])
    assert found["limit_shift"] == pytest.approx(0.375**2 + 0.75**2), "(1, 0) is left"


@pytest.mark.parametrize("reduced", [False, True])
def test_partial_outputs_are_summed_once(reduced: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each of two ranks holds half of every expert; a kernel that has summed them must not be summed again."""
    from banpick_exp.engine.plugin import outputs

    monkeypatch.setattr(outputs, "tensor_model_parallel_all_reduce", lambda part: 2 * part)
    generator = torch.Generator().manual_seed(6)
    hidden_NH, stream_NH = torch.randn(2, TOKENS, HIDDEN, generator=generator)
    logits_NE = torch.randn(TOKENS, EXPERTS, generator=generator)
    layer, part = hooked(renormalize=True), 1.0 if reduced else 0.5
    alone = scored(runner_of(lambda expert, h: h.roll(expert, -1)), layer, hidden_NH, logits_NE, stream_NH)
    halves = runner_of(lambda expert, h: part * h.roll(expert, -1), reduced=reduced)
    found = scored(halves, layer, hidden_NH, logits_NE, stream_NH)
    assert found.keys() == alone.keys()
    for name, value in found.items():
        assert torch.allclose(torch.tensor(value), torch.tensor(alone[name])), name


def test_a_compiled_engine_with_its_fixed_slots_finds_the_same() -> None:
    generator = torch.Generator().manual_seed(8)
    hidden_NH, stream_NH = torch.randn(2, TOKENS, HIDDEN, generator=generator)
    logits_NE = torch.randn(TOKENS, EXPERTS, generator=generator)
    runner = runner_of(lambda expert, h: h.roll(expert, -1))
    plain, fixed = (
        scored(runner, hooked(slots=slots, renormalize=True), hidden_NH, logits_NE, stream_NH)
        for slots in (None, TOP_K + 2)
    )
    for name, value in plain.items():
        assert torch.allclose(torch.tensor(fixed[name]), torch.tensor(value), atol=1e-5), name


def test_an_expert_that_overflows_where_nobody_selects_it_spoils_nothing() -> None:
    hidden_NH = torch.randn(TOKENS, HIDDEN, generator=torch.Generator().manual_seed(7))
    logits_NE = torch.zeros(TOKENS, EXPERTS) - torch.arange(EXPERTS)
    found = scored(
        runner_of(lambda expert, h: h / (0.0 if expert == EXPERTS - 1 else 1.0)),
        hooked(renormalize=True), hidden_NH, logits_NE, None,
    )  # fmt: skip
    for name in ("reap", "man", "easy_ep", "removal_shift"):
        assert all(math.isfinite(value) for value in found[name]) and found[name][-1] == 0
    assert found["removal_shift"][0] == pytest.approx(0, abs=1e-10), "one output for all: the sum stays"


def test_tokens_spread_over_ranks_are_refused() -> None:
    runner = runner_of(lambda expert, h: h)
    runner.moe_config.is_sequence_parallel = True
    with pytest.raises(RuntimeError, match="Calibrate on an engine without it"):
        scored(runner, hooked(renormalize=True), torch.zeros(2, HIDDEN), torch.zeros(2, EXPERTS), None)


def test_experts_that_answer_nothing_or_the_same_everywhere_are_like_no_other() -> None:
    from banpick_exp.engine.plugin.outputs import cosines

    found = cosines(torch.tensor([[1.0, 0.0], [0.0, 0.0], [3.0, 4.0], [float("nan"), 1.0], [-2.0, 0.0]]))
    assert found[2].tolist() == pytest.approx([0.6, 0.0, 1.0, 0.0, 0.0])
    assert found[1].tolist() == [0, 1, 0, 0, 0] and found[3].tolist() == [0, 0, 0, 1, 0]
