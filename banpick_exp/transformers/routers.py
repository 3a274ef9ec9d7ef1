"""Which routers of Transformers are known, how each scores and selects, and the proof that it still does.

The one place that knows Transformers' names for it (5.16 to 5.19: a router is a module that answers router logits
[T,E], weights [T,K] and ids [T,K]). To add a family: a line of `KINDS` and of `FAMILIES`, which
tests/engine/test_applied_families.py then tests.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from banpick_exp.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

    from banpick_kernels.layer_hooks import LayerEdit
    from banpick_kernels.table import LayerTable

PROOF_TOKENS = 64
"""Random hidden states on which a router is held against `routed`."""
CLOSE, CLOSE_IN_HALF = 1e-5, 2e-2
"""What a weight may be off there: in float32, and rounded to bfloat16 or float16."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Router:
    """How a router scores, selects and weighs."""

    renormalize: bool
    """The weights of a token's experts are divided by their sum."""
    scoring: str = "softmax"
    scaling: float = 1.0
    """A factor on the weights after that."""
    groups: int = 1
    """Groups of neighbouring experts, of which a token sees the best `groups_seen`; 1: none."""
    groups_seen: int = 1
    correction_E: Tensor | None = None
    """What is added to the scores to rank the experts, and left out of the weights."""


def _as_config(gate: Any) -> Router:
    return Router(renormalize=bool(gate.norm_topk_prob))


def _mixtral(gate: Any) -> Router:
    return Router(renormalize=True)


def _deepseek_v2(gate: Any) -> Router:
    grouped = gate.topk_method == "group_limited_greedy"
    return Router(
        renormalize=False,
        scaling=float(gate.routed_scaling_factor),
        groups=int(gate.num_group) if grouped else 1,
        groups_seen=int(gate.topk_group) if grouped else 1,
    )


def _deepseek_v3(gate: Any) -> Router:
    return Router(
        renormalize=bool(gate.norm_topk_prob),
        scoring="sigmoid",
        scaling=float(gate.routed_scaling_factor),
        groups=int(gate.num_group),
        groups_seen=int(gate.topk_group),
        correction_E=gate.e_score_correction_bias,
    )


KINDS: dict[str, Callable[[Any], Router]] = {
    "Qwen3MoeTopKRouter": _as_config,
    "Qwen2MoeTopKRouter": _as_config,
    "OlmoeTopKRouter": _as_config,
    "MixtralTopKRouter": _mixtral,
    "DeepseekV2TopkRouter": _deepseek_v2,
    "DeepseekV3TopkRouter": _deepseek_v3,
}
"""Class of Transformers -> how to read one."""
FAMILIES = ("qwen3_moe", "qwen2_moe", "olmoe", "mixtral", "deepseek_v2", "deepseek_v3")
"""The same as `model_type` has them."""


def gates_of(model: Any) -> list[Any]:
    """The routers of a model, first layer first. Raises UserError where there is none that is known."""
    modules = getattr(model, "modules", None)
    if modules is None:
        raise UserError(
            f"apply was given a {type(model).__name__}, which is no loaded model: there is no router in it. Give it"
            " what AutoModelForCausalLM.from_pretrained returned (of a pipeline: pipeline.model)."
        )
    gates = [each for each in modules() if _is_known(each)]
    if not gates:
        kind = getattr(getattr(model, "config", None), "model_type", None) or type(model).__name__
        raise UserError(
            f"{kind} has no router that is known here, so the policy would silently do nothing. Known are"
            f" {', '.join(FAMILIES)}, by Transformers' own code; other families are served by vLLM (docs/families.md)."
        )
    return gates


def _is_known(module: Any) -> bool:
    # Code that came with a checkpoint may call another thing the same.
    return type(module).__name__ in KINDS and type(module).__module__.startswith("transformers.models.")


def routed(
    logits_TE: Tensor,
    router: Router,
    layer: LayerTable,
    top_k: int,
    slots: int,
    *,
    edit: LayerEdit | None = None,
    own_ids_TK: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Weights float32, ids int32 and kept bool, each [T,S], by the reference (`banpick_kernels.reference`).

    `own_ids_TK`: the selection of the model's own router, taken where the policy leaves the logits alone: of equal
    logits it has chosen as it always does.
    """
    import torch

    from banpick_kernels import reference

    changed = edit is not None or bool((layer.logit_bias_PE != 0).any())
    logits_TE = reference.biased_logits(logits_TE, layer)
    if edit is not None:
        logits_TE = edit.logits(logits_TE)
    scores_TE = reference.router_scores(logits_TE, router.scoring)
    ranking_TE = None
    if router.correction_E is not None:
        ranking_TE = scores_TE + router.correction_E.to(scores_TE.device)
    if router.groups > 1:
        ranking_TE = scores_TE if ranking_TE is None else ranking_TE
        corrected = router.correction_E is not None
        ranking_TE = reference.within_groups(ranking_TE, router.groups, router.groups_seen, corrected=corrected)
    if ranking_TE is not None and bool((layer.logit_bias_PE == -torch.inf).any()):
        ranking_TE = reference.masked_last(ranking_TE, logits_TE)
    if own_ids_TK is None or changed:
        own_ids_TK = reference.select_top_k(logits_TE if ranking_TE is None else ranking_TE, top_k)
    weights, ids, kept = reference.edit_selection(
        logits_TE, scores_TE, own_ids_TK, layer, slots, router.renormalize, ranking_TE=ranking_TE, edit=edit
    )
    return weights * router.scaling, ids, kept


def proved(gate: Any, name: str) -> Router:
    """How a router routes, once it has been seen to do so: its own weights on random hidden states are those of
    `routed` without a policy. Raises UserError where they are not, e.g. with a Transformers that changed it.
    """
    import torch

    from banpick_kernels.table import RouterTable

    router = KINDS[type(gate).__name__](gate)
    weight = gate.weight
    hidden_TH = torch.randn(PROOF_TOKENS, weight.shape[1], generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        answer = gate(hidden_TH.to(weight.device, weight.dtype))
        found = isinstance(answer, tuple) and len(answer) == 3
        found = found and answer[0].shape == (PROOF_TOKENS, weight.shape[0])
        if found:
            logits_TE, weights_TK, _ = answer
            neutral = RouterTable.neutral(1, weight.shape[0], gate.top_k, device=logits_TE.device).layer(0)
            expected_TK, _, _ = routed(logits_TE, router, neutral, gate.top_k, gate.top_k)
            # Of equal logits either may be selected: the weights are the same, in descending order.
            close = CLOSE if weights_TK.dtype == torch.float32 else CLOSE_IN_HALF
            theirs_TK = weights_TK.float().sort(dim=-1, descending=True).values
            ours_TK = expected_TK.sort(dim=-1, descending=True).values
            found = bool(torch.allclose(ours_TK, theirs_TK, rtol=close, atol=close))
    if not found:
        raise UserError(
            f"the router of {name} ({type(gate).__name__}) weighs otherwise than is known here: a policy would be"
            " applied to another router. Install a Transformers from 5.16 to 5.19, or serve the model with vLLM."
        )
    return router
