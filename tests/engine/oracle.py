"""The rules once more, written from the formulas alone: one token at a time, in plain Python, on a Transformers model.

Shares no code with the package. Slow and obvious on purpose: every loop below is one sentence of the method.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

TIE = 5e-6
"""Two float32 implementations differ by about this much in a router logit; closer than that, either order is right."""

Rule = Callable[[int, list[float]], dict[int, float]]
"""(layer, router logits of one token) -> unnormalised weight of each kept expert."""


def softmax(logits: Sequence[float]) -> list[float]:
    top = max(logits)
    powers = [math.exp(z - top) for z in logits]
    return [p / sum(powers) for p in powers]


def best(scores: Sequence[float]) -> list[int]:
    """Expert ids, highest score first, equal scores by lower id."""
    return sorted(range(len(scores)), key=lambda e: (-scores[e], e))


def ban_keeps(weights: Sequence[float], sensitivity: float, params: Mapping[str, Any], found: Mapping[str, Any]) -> int:
    """How many of a token's K experts Ban keeps; `weights` are its K highest scores, descending."""
    ratio = sum(weights[:3]) / sum(weights)
    flatness = min(1.0, max(0.0, (found["r_max"] - ratio) / (found["r_max"] - found["r_min"])))
    share = {"layer": sensitivity, "token": flatness}.get(params.get("use", "both"), 0.5 * (sensitivity + flatness))
    strength = params["lambda"] * share
    k_min, k_max = params["k_min"], len(weights)
    return min(k_max, max(k_min, round(k_min + (k_max - k_min) * strength)))


def key_experts(name: str, params: Mapping[str, Any], calibration: Mapping[str, Any]) -> dict[int, list[int]]:
    if name not in ("pick", "ban_pick"):
        return {}
    if "experts" in params:
        return {int(layer): list(ids) for layer, ids in params["experts"].items()}
    keys: dict[int, list[int]] = {}
    for layer, expert, _ in calibration["influence"][: params["key_experts"]]:
        keys.setdefault(layer, []).append(expert)
    return keys


def steered(layer: int, logits: Sequence[float], params: Mapping[str, Any]) -> list[float]:
    """Log-softmax scores with this layer's experts put just above the highest and just below the lowest."""
    total = math.log(sum(math.exp(z) for z in logits))
    scores = [z - total for z in logits]
    high, low = max(scores) + 0.01, min(scores) - 0.01
    for e in params["on"].get(str(layer), []):
        scores[e] = high
    for e in params["off"].get(str(layer), []):
        scores[e] = low
    return scores


def policy_rule(name: str, params: Mapping[str, Any], calibration: Mapping[str, Any], top_k: int) -> Rule:
    """The rule of one policy for a softmax router."""
    keys = key_experts(name, params, calibration)
    mode = params.get("mode", "range_add" if name == "ban_pick" else None)

    def rule(layer: int, logits: list[float]) -> dict[int, float]:
        mine = keys.get(layer, [])
        if mode == "boost":
            logits = [z + params["boost"] if e in mine else z for e, z in enumerate(logits)]
        if name == "steer":
            logits = steered(layer, logits, params)
        scores = softmax(logits)
        ranking = best(scores)
        chosen = ranking[:top_k]
        if name == "diep":
            similarity, first = calibration["similarity"][layer], chosen[0]
            pairs = [similarity[a][b] for a, b in itertools.combinations(range(len(scores)), 2)]
            alike = [similarity[first][e] / (sum(pairs) / len(pairs)) for e in chosen]
            gamma = params["beta"] * calibration["ratio_median"][layer]
            needs = [scores[first] * gamma * each ** params["alpha"] for each in alike]
            always = chosen[: params["k_min"]]
            chosen = [e for e, need in zip(chosen, needs, strict=True) if e in always or scores[e] >= need]
        if name == "rice":
            named = params["experts"].get(str(layer), [])
            return {e: scores[e] * (params["multiplier"] if e in named else 1.0) for e in chosen}
        if name == "fixed_k":
            chosen = chosen[: params["k"]]
        if name in ("ban", "ban_pick"):
            sensitivity = calibration["layer_sensitivity"][layer]
            chosen = chosen[: ban_keeps([scores[e] for e in chosen], sensitivity, params, calibration)]
        if mode not in (None, "boost"):
            window = len(ranking)
            if mode.startswith("range"):
                window = math.floor(params.get("range_factor", 2.0) * top_k)
            for key in sorted(mine, key=ranking.index):
                if key in chosen or ranking.index(key) >= window:
                    continue
                if mode.endswith("replace"):
                    losers = [e for e in chosen if e not in mine]
                    if not losers:
                        continue
                    chosen.remove(min(losers, key=lambda e: (scores[e], -e)))
                chosen.append(key)
        return {e: scores[e] for e in chosen}

    return rule


def probe_rule(candidate: Sequence[Any], top_k: int, range_factor: float, boost: float) -> Rule:
    """What the calibration probe changes: one expert removed, added, put in the K-th's place or boosted; or one layer
    limited, or left without its routed experts.
    """
    change, where, value = candidate
    stock = policy_rule("none", {}, {}, top_k)

    def rule(layer: int, logits: list[float]) -> dict[int, float]:
        if layer != where:
            return stock(layer, logits)
        if change == "skip":
            return {}
        if change == "remove":
            scores = softmax(logits)
            return {e: scores[e] for e in [e for e in best(scores) if e != value][:top_k]}
        if change == "limit":
            return policy_rule("fixed_k", {"k": value}, {}, top_k)(layer, logits)
        mode = {"add": "range_add", "replace": "range_replace", "boost": "boost"}[change]
        knobs = {"mode": mode, "range_factor": range_factor, "boost": boost, "experts": {layer: [value]}}
        return policy_rule("pick", knobs, {}, top_k)(layer, logits)

    return rule


class OracleGate(nn.Module):
    """Stands in for a Transformers router: names every expert, with weight 0 where the rule does not keep it."""

    def __init__(self, gate: Any, layer: int, top_k: int) -> None:
        super().__init__()
        self.gate, self.layer, self.top_k = gate, layer, top_k
        self.rule: Rule | None = None
        self.narrowest_gap_T: list[float] = []

    def forward(self, hidden_states: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        assert self.rule is not None
        logits_TE = nn.functional.linear(hidden_states.reshape(-1, hidden_states.shape[-1]), self.gate.weight)
        weights_TE = torch.zeros_like(logits_TE)
        self.narrowest_gap_T = []
        for t, logits in enumerate(logits_TE.double().tolist()):
            ranked = sorted(logits, reverse=True)[: 2 * self.top_k + 2]
            self.narrowest_gap_T.append(min(a - b for a, b in itertools.pairwise(ranked)))
            kept = self.rule(self.layer, logits)
            total = sum(kept.values())
            for expert, weight in kept.items():
                weights_TE[t, expert] = weight / total
        ids_TE = torch.arange(logits_TE.shape[1]).expand_as(weights_TE)
        return logits_TE, weights_TE, ids_TE


class Oracle:
    """A Qwen3-MoE checkpoint in float32 under Transformers, routed by an independent rule."""

    def __init__(self, folder: str) -> None:
        from transformers import Qwen3MoeForCausalLM

        self.model = Qwen3MoeForCausalLM.from_pretrained(
            folder, dtype=torch.float32, attn_implementation="eager", experts_implementation="eager"
        ).eval()
        self.top_k = self.model.config.num_experts_per_tok
        self.gates = []
        for layer, block in enumerate(self.model.model.layers):
            gate = OracleGate(block.mlp.gate, layer, self.top_k)
            block.mlp.gate = gate
            self.gates.append(gate)

    @torch.no_grad()
    def logits(self, sequence: Sequence[int], rule: Rule) -> tuple[Tensor, bool]:
        """Next-token logits [T, V] of one sequence, and whether some routing hangs on a tie."""
        for gate in self.gates:
            gate.rule = rule
        logits_TV = self.model(torch.tensor([list(sequence)])).logits[0]
        return logits_TV, min(min(gate.narrowest_gap_T) for gate in self.gates) < TIE

    def differs(self, sequence: Sequence[int], rule: Rule, other: Rule) -> bool:
        """Whether the second rule would weigh the experts of any token otherwise where the first is on."""
        found = False

        def both(layer: int, logits: list[float]) -> dict[int, float]:
            nonlocal found
            kept = rule(layer, logits)
            found = found or other(layer, logits) != kept
            return kept

        self.logits(sequence, both)
        return found

    def log_probabilities(self, sequence: Sequence[int], rule: Rule) -> tuple[Tensor, bool]:
        """Log-probability (nats) of each token but the first, and whether some routing hangs on a tie."""
        logits_TV, tie = self.logits(sequence, rule)
        following = torch.tensor(list(sequence[1:]))[:, None]
        return logits_TV[:-1].log_softmax(-1).gather(1, following)[:, 0], tie


def kl(original_NV: Tensor, modified_NV: Tensor, top_vocab: int) -> Tensor:
    """KL(original || modified) [N] over the original's likeliest tokens, both renormalised; in float64."""
    values = []
    for original, modified in zip(original_NV.double(), modified_NV.double(), strict=True):
        likely = sorted(range(len(original)), key=lambda v: -float(original[v]))[:top_vocab]
        p, q = softmax(original[likely].tolist()), softmax(modified[likely].tolist())
        values.append(sum(a * math.log(a / b) for a, b in zip(p, q, strict=True) if a > 0))
    return torch.tensor(values)
