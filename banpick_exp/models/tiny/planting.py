"""How an expert is planted: a gate row refitted, a down_proj scaled. In closed form, without training.

Per planted expert e of layer l, on the router inputs of training problems, for a `Planting`:

1. Its gate row is refitted by weighted ridge regression. On tokens where e was selected the target logit is the smaller
   of its own and the midpoint of the other experts' `rank`-th and the next, weighted by (gate weight / mean)^2;
   elsewhere the target is its own logit, with weight 0.02.
2. Its down_proj is multiplied by `contribution` * (gate weight before) / (weight when selected with `boost`), over the
   30 % of its tokens that gave it the most weight.

Shapes: T tokens, E experts, H hidden, U tokens that used the expert.
"""

from __future__ import annotations

import random

import torch
from torch import Tensor

from banpick_exp.models.tiny.kinds import Planting
from banpick_exp.models.tiny.model import TinyMoe, tiny_config
from banpick_exp.models.tiny.problems import Exercise, draw, is_trainable
from banpick_exp.models.tiny.train import encode

PROBLEMS = 300
RIDGE = 1e-4
UNUSED_WEIGHT = 0.02
TOP_SHARE = 0.3


def training_problems(domain: str, count: int = PROBLEMS) -> list[Exercise]:
    """Distinct problems the model was trained on, always the same ones."""
    rng = random.Random(f"control/{domain}")
    found: dict[str, Exercise] = {}
    while len(found) < count:
        problem = draw(rng, domain)
        if is_trainable(problem):
            found.setdefault(problem.prompt, problem)
    return list(found.values())


def router_inputs(weights: dict[str, Tensor], domain: str) -> list[Tensor]:
    """Per layer the router's inputs [T, H] over prompts and responses of the training problems.

    In float64: what is left of rounding differences between machines vanishes in the final bf16.
    """
    model = TinyMoe(tiny_config()).double()
    model.load_state_dict(weights)
    inputs: list[Tensor] = []
    for block in model.model.moe_blocks():
        block.gate.register_forward_hook(lambda module, args, output: inputs.append(args[0]))
    with torch.no_grad():
        model(encode(training_problems(domain))[0])
    return inputs


def plant(weights: dict[str, Tensor], inputs_TH: Tensor, layer: int, expert: int, how: Planting) -> float:
    """Plant one expert in `weights`, in place. Returns the factor its down_proj was multiplied by.

    Raises ValueError for an expert that no token selects: there is nothing to plant.
    """
    gate_name = f"model.layers.{layer}.mlp.gate.weight"
    down_name = f"model.layers.{layer}.mlp.experts.{expert}.down_proj.weight"
    top_k = tiny_config().num_experts_per_tok
    logits_TE = inputs_TH @ weights[gate_name].double().T
    used_T = (logits_TE.topk(top_k, -1).indices == expert).any(-1)
    if not used_T.any():
        raise ValueError(f"expert {expert} of layer {layer} is selected by no token of the training problems")
    own_T = logits_TE[:, expert]
    others_TE = logits_TE.clone()
    others_TE[:, expert] = float("-inf")
    others_TE = others_TE.sort(-1, descending=True).values

    before_U = _share(own_T, others_TE, top_k)[used_T]
    aim_T = others_TE[:, how.rank - 1 : how.rank + 1].mean(-1)
    target_T = torch.where(used_T, torch.minimum(own_T, aim_T), own_T)
    weight_T = torch.full_like(own_T, UNUSED_WEIGHT)
    weight_T[used_T] = (before_U / before_U.mean()) ** 2
    gram_HH = inputs_TH.T @ (weight_T[:, None] * inputs_TH)
    gram_HH.diagonal().add_(RIDGE * gram_HH.diagonal().mean())
    row_H = torch.linalg.solve(gram_HH, inputs_TH.T @ (weight_T * target_T)).bfloat16()
    weights[gate_name] = weights[gate_name].clone()
    weights[gate_name][expert] = row_H

    selected_U = _share(inputs_TH @ row_H.double() + how.boost, others_TE, top_k)[used_T]
    strongest = before_U.argsort(descending=True, stable=True)[: max(1, round(TOP_SHARE * len(before_U)))]
    scale = how.contribution * float(before_U[strongest].mean() / selected_U[strongest].mean())
    weights[down_name] = (weights[down_name].double() * scale).bfloat16()
    return scale


def _share(own_T: Tensor, others_TE: Tensor, top_k: int) -> Tensor:
    """The expert's renormalised gate weight [T] beside the K - 1 strongest others: its weight when it is selected."""
    return torch.cat((own_T[:, None], others_TE[:, : top_k - 1]), -1).softmax(-1)[:, 0]
