"""Does this device route as the reference says? Run on hooked layers of a loaded model, on every rank.

What is expected is computed on the CPU from the policy itself, never from the layer's own table, so that a value
written wrongly is seen too. Every check puts the layer's policy and counting back.

Shapes: T tokens, E experts, K experts a token, S slots.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from banpick_exp.engine.plugin.layer import HookedLayer
from banpick_exp.engine.types import FAILED, NOT_APPLICABLE, OK, Check
from banpick_exp.policy import Calibration, Policy, build_policy
from banpick_kernels.reference import biased_logits, edit_selection, router_scores, select_top_k, within_groups

TOKENS = 72
SIZES = (TOKENS, 8)
"""Routed as one batch and as the start of it: few tokens on CPU take a path of their own."""
WEIGHT_TOLERANCE = 1e-4
BY_STOCK = ("none", "fixed_k")
"""vLLM's own router answers these. On a CPU it scores in the type of its logits, the reference always in float32."""
SHORT = ("none", "ban", "pick range_replace")
"""What is tried before every sweep; `trial_policies` has them all."""


@functools.cache
def trial_policies(num_experts: int, top_k: int) -> dict[str, Policy]:
    """One-layer policies of every family, by label. The calibration they read is made up."""
    experts = {0: sorted({num_experts // 3, num_experts - 1})}
    calibration = Calibration(influence=(), layer_sensitivity=(0.35,), r_min=0.45, r_max=1.0)
    ban = {"lambda": 0.9, "k_min": max(1, top_k // 2 - 1)}
    tried: dict[str, tuple[str, dict[str, Any]]] = {
        "none": ("none", {}),
        "ban": ("ban", ban),
        "pick range_replace": ("pick", {"mode": "range_replace", "experts": experts}),
        "fixed_k": ("fixed_k", {"k": max(1, top_k // 2)}),
        "fixed_k of a fraction": ("fixed_k", {"k": max(1, top_k - 0.5)}),
        # A boost off the grid of the trial logits makes no ties.
        "pick boost": ("pick", {"mode": "boost", "boost": 1.503, "experts": experts}),
        "pick force_replace": ("pick", {"mode": "force_replace", "experts": experts}),
        "pick range_add": ("pick", {"mode": "range_add", "experts": experts}),
        "ban_pick": ("ban_pick", {**ban, "mode": "range_replace", "experts": experts}),
    }
    return {
        label: build_policy(
            name,
            knobs,
            num_layers=1,
            num_experts=num_experts,
            top_k=top_k,
            calibration=calibration if name.startswith("ban") else None,
        )
        for label, (name, knobs) in tried.items()
    }


@contextlib.contextmanager
def under(layer: HookedLayer, policy: Policy) -> Iterator[None]:
    """`policy` on this layer for a while, nothing counted."""
    before, slots, edit, counting = layer.table.clone(), layer.slots, layer.edit, layer.counting
    layer.counting = False
    try:
        layer.write(policy.table.layer(0), slots=policy.max_kept)
        yield
    finally:
        layer.write(before, slots=slots, edit=edit)
        layer.counting = counting


@functools.cache
def trial_logits(num_experts: int) -> Tensor:
    """Router logits bfloat16 [T,E], some rows flat and some peaked; no two of a token are equal.

    They are multiples of 1/64 times a power of two, exact in bfloat16: vLLM may order ties in its own way.
    """
    generator = torch.Generator().manual_seed(0)
    steps = max(512, num_experts)
    step_TE = torch.stack([torch.randperm(steps, generator=generator)[:num_experts] for _ in range(TOKENS)])
    spread_T1 = 2.0 ** torch.randint(-2, 2, (TOKENS, 1), generator=generator)
    logits_TE = (step_TE - steps // 2) / 64 * spread_T1
    return logits_TE if steps > 512 else logits_TE.bfloat16()


def _per_expert(weights_TS: Tensor, ids_TS: Tensor, num_experts: int) -> tuple[Tensor, Tensor]:
    """The weight of each expert, float32 [T,E], and whether a token uses it, bool [T,E]; on the CPU."""
    weights_TS, ids_TS = weights_TS.float().cpu(), ids_TS.long().cpu()
    at_TS, real_TS = ids_TS.clamp_min(0), (ids_TS >= 0).float()
    zeros_TE = torch.zeros(ids_TS.shape[0], num_experts)
    return zeros_TE.scatter_add(1, at_TS, weights_TS * real_TS), zeros_TE.scatter_add(1, at_TS, real_TS) > 0


def expected(layer: HookedLayer, policy: Policy, logits_TE: Tensor) -> tuple[Tensor, Tensor]:
    """`_per_expert` of the reference on the CPU."""
    spec, correction_E, table = layer.spec, layer.correction_E, policy.table.layer(0)
    logits_TE = biased_logits(logits_TE.cpu(), table)
    scores_TE = router_scores(logits_TE, spec.scoring)
    ranking_TE = None if correction_E is None else scores_TE + correction_E.float().cpu()
    if spec.grouped:
        ranking_TE = scores_TE if ranking_TE is None else ranking_TE
        ranking_TE = within_groups(ranking_TE, spec.groups, spec.groups_seen, corrected=spec.corrected)
    base_TK = select_top_k(logits_TE if ranking_TE is None else ranking_TE, layer.top_k)
    weights_TS, ids_TS, _ = edit_selection(
        logits_TE, scores_TE, base_TK, table, policy.slots, spec.renormalize, ranking_TE=ranking_TE
    )
    return _per_expert(weights_TS * spec.scaling, ids_TS, layer.num_experts)


def routed(layer: HookedLayer, logits_TE: Tensor) -> tuple[Tensor, Tensor]:
    """Weights and ids [T,S] that the expert kernels would be handed for these logits."""
    device = layer.tokens_P.device
    return layer.route(torch.zeros(logits_TE.shape[0], 1, device=device), logits_TE.to(device), None, None)


@dataclass(frozen=True, slots=True)
class Routed:
    """How one layer routed the trial tokens under one policy, held against the reference."""

    wrong: int
    """Of TOKENS tokens, those that go to other experts."""
    difference: float
    """Largest of the weights; infinite where one is NaN."""
    kept: int
    """Experts kept by all tokens together."""
    tokens: int
    """Over all of SIZES."""

    def problem(self, layer: str, label: str) -> str | None:
        if self.wrong:
            away = f"{self.wrong} of {TOKENS} tokens go to other experts than the reference selects"
            return f"{layer}: under {label}, {away}"
        if self.difference > WEIGHT_TOLERANCE:
            return f"{layer}: under {label}, weights differ from the reference by {self.difference:.1e}"
        return None


def _compared(layer: HookedLayer, policy: Policy) -> Routed:
    logits_TE = trial_logits(layer.num_experts)
    wanted_TE, chosen_TE = expected(layer, policy, logits_TE)
    if policy.rule.name in BY_STOCK:
        logits_TE = logits_TE.float()
    wrong, difference, kept = 0, 0.0, 0
    for size in SIZES:
        with under(layer, policy):
            found_TE, used_TE = _per_expert(*routed(layer, logits_TE[:size]), layer.num_experts)
        wrong = max(wrong, int((used_TE != chosen_TE[:size]).any(-1).sum()))
        difference_TE = (found_TE - wanted_TE[:size]).abs().nan_to_num(nan=torch.inf)
        difference = max(difference, float(difference_TE.max()))
        kept += int(used_TE.sum())
    return Routed(wrong=wrong, difference=difference, kept=kept, tokens=sum(SIZES))


def router_checks(layers: Sequence[HookedLayer], labels: Sequence[str] | None = None) -> list[Check]:
    """One a policy: the layers' own routing against the reference, ids exactly. `labels` None: every policy."""
    labels = labels or list(trial_policies(layers[0].num_experts, layers[0].top_k))
    return [_router_check(layers, label) for label in labels]


def _router_check(layers: Sequence[HookedLayer], label: str) -> Check:
    name = f"router against reference, {label}"
    found, wide = {}, 0
    for layer in layers:
        policy = trial_policies(layer.num_experts, layer.top_k)[label]
        if layer.fixed_slots is not None and policy.max_kept > layer.fixed_slots:
            wide = max(wide, policy.max_kept - layer.top_k)
        else:
            found[layer.name] = _compared(layer, policy)
    problems = [problem for layer, compared in found.items() if (problem := compared.problem(layer, label))]
    if problems:
        return Check(name, FAILED, "; ".join(problems))
    if not found:
        return Check(name, NOT_APPLICABLE, f"a compiled engine needs engine.extra_slots={wide} for this policy")
    tokens, worst = sum(each.tokens for each in found.values()), max(each.difference for each in found.values())
    kept = sum(each.kept for each in found.values()) / tokens
    finding = f"{tokens} choices over {len(layers)} layers: ids exact, weights within {worst:.0e}"
    return Check(name, OK, f"{finding}; {kept:.2f} experts kept")


def stock_check(layers: Sequence[HookedLayer]) -> Check:
    """Policy none against vLLM's own router: the same bits, or the same experts where the width is another."""
    name, problems, worst = "policy none against vLLM's router", [], 0.0
    for layer in layers:
        logits_TE = trial_logits(layer.num_experts).to(layer.tokens_P.device)
        hidden = torch.zeros(TOKENS, 1, device=logits_TE.device)
        if layer.fixed_slots not in (None, layer.top_k):
            logits_TE = logits_TE.float()  # wider than stock: the edit answers, which scores in float32 (see BY_STOCK)
        stock = layer.stock._compute_routing(layer.router, hidden, logits_TE, None)
        with under(layer, trial_policies(layer.num_experts, layer.top_k)["none"]):
            ours = routed(layer, logits_TE)
        if ours[0].shape == stock[0].shape:
            same = all(torch.equal(a, b.to(a.dtype)) for a, b in zip(ours, stock, strict=True))
        else:
            found_TE, used_TE = _per_expert(ours[0], ours[1], layer.num_experts)
            stock_TE, chosen_TE = _per_expert(stock[0], stock[1], layer.num_experts)
            worst = max(worst, float((found_TE - stock_TE).abs().max()))
            same = torch.equal(used_TE, chosen_TE) and worst <= WEIGHT_TOLERANCE
        if not same:
            problems.append(f"{layer.name}: ids or weights are not those of {layer.stock.__name__}")
    if problems:
        return Check(name, FAILED, "; ".join(problems))
    closeness = f"extra slots: ids equal, weights within {worst:.0e}" if worst else "ids and weights bit-equal"
    return Check(name, OK, f"{TOKENS} tokens x {len(layers)} layers: {closeness}")
