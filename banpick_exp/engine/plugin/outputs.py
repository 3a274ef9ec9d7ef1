"""What the experts of a layer answer on the kept hidden states, and scores that need no further forward pass.

Each expert is run once on all of them by the layer's own kernel. The layer's own router says who selects whom, and how
it would weigh if one expert were gone or only k_min experts stayed: the change of the routed sum follows from the same
outputs. A causal audit (arXiv 2606.10703) found that such scores do not predict what removing an expert does: they may
order candidates, and are never the verdict.

Shapes: N sampled tokens, E experts, K experts a token, S slots, H hidden size, R rows of `_routings`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from vllm.distributed import tensor_model_parallel_all_reduce

from banpick_exp.engine.plugin.layer import HookedLayer
from banpick_exp.engine.plugin.observation import Kept
from banpick_exp.engine.plugin.skipping import id_type
from banpick_kernels.table import RouterTable


def expert_outputs(runner: Any, layer: HookedLayer, kept: Kept, *, k_min: int) -> dict[str, Any]:
    """Scores of one layer over its N kept tokens, all from one run of every expert; plain numbers and lists.

    g_e(t) is the weight with which expert e enters the routed sum of token t (renormalised and scaled where the
    checkpoint does), y_e(t) its output, T_e the tokens that select it. An expert that no kept token selects is 0 in
    all but `similarity`.

        similarity     [E][E]  linear CKA of the outputs of each two experts (`cosines`)
        reap           [E]     mean over T_e of g_e |y_e|                        (REAP, arXiv 2510.13999)
        man            [E]     mean over T_e of |y_e|                            (MAN, arXiv 2606.15716)
        easy_ep        [E]     sum over T_e of s g_e |y_e|, s = max(0, 1 - cos(x, x + sum_e g_e y_e))
                               (EASY-EP, arXiv 2504.06792; x the residual stream before the routed experts' sum is
                               added, shared experts left out as in the authors' code)
        residual       bool    whether x was seen. Else, under compilation or where the decoder layer adds by itself,
                               the experts' input stands in: the stream after the layer's norm
        removal_shift  [E]     mean over all N of |change of the routed sum|^2 when the expert's logit is -inf and the
                               next comes in; 0 for tokens that do not select it
        limit_shift    float   the same when the layer keeps `k_min` experts

    The last two serve HEAPr's second-order form (arXiv 2509.22299) with measured KL in place of gradients.

    CKA(i, j) = <G_i, G_j> / (|G_i| |G_j|), G = C Y Y^T C, Y [N,H] an expert's outputs, C = 1 - 1/N (Kornblith et al.,
    arXiv 1905.00414, equation 3 with the linear kernel).

    Every rank gets the same answers: partial outputs are summed first. Memory: E * N^2 + (2 + K) * N * H floats. The
    layer's policy is changed and stays so: the caller puts it back. Raises RuntimeError where ranks hold different
    tokens.
    """
    if runner.moe_config.is_sequence_parallel:
        raise RuntimeError(
            f"{layer.name}: with sequence parallelism each rank holds other tokens, so experts cannot be compared. "
            f"Calibrate on an engine without it: the artifact fits both."
        )
    hidden_NH, tokens, experts = kept.hidden_NH, len(kept.hidden_NH), layer.num_experts
    chosen_NE, weights_RE, token_R, removed_R = _routings(layer, kept, k_min)
    weights_RE = weights_RE * runner.routed_scaling_factor
    gram_EN = torch.zeros(experts, tokens * tokens, device=hidden_NH.device)
    norm_NE = torch.zeros(tokens, experts, device=hidden_NH.device)
    sum_RH = torch.zeros(len(token_R), hidden_NH.shape[1], device=hidden_NH.device)
    for expert in range(experts):
        output_NH = _run(runner, hidden_NH, expert)
        norm_NE[:, expert] = output_NH.norm(dim=-1)
        with_R = weights_RE[:, expert].nonzero().flatten()
        sum_RH[with_R] += weights_RE[with_R, expert, None] * output_NH[token_R[with_R]]
        output_NH = output_NH - output_NH.mean(0)
        gram_EN[expert] = (output_NH @ output_NH.T).flatten()
    routed_NH, limited_NH, without_RH = sum_RH.split([tokens, tokens, len(removed_R)])
    shift_E = torch.zeros_like(norm_NE[0]).index_add_(0, removed_R, without_RH.square().sum(-1))
    stream_NH = kept.stream_NH
    if stream_NH is None or stream_NH.shape != hidden_NH.shape:
        stream_NH = hidden_NH
    uses_E, gated_NE = chosen_NE.sum(0).clamp_min(1), (weights_RE[:tokens] * norm_NE).where(chosen_NE, 0)
    return {
        "similarity": cosines(gram_EN).tolist(),
        "reap": (gated_NE.sum(0) / uses_E).tolist(),
        "man": (norm_NE.where(chosen_NE, 0).sum(0) / uses_E).tolist(),
        "easy_ep": (_contribution(stream_NH, routed_NH)[:, None] * gated_NE).sum(0).tolist(),
        "residual": stream_NH is not hidden_NH,
        "removal_shift": (shift_E / tokens).tolist(),
        "limit_shift": float(limited_NH.square().sum(-1).mean()),
    }


def _run(runner: Any, hidden_NH: Tensor, expert: int) -> Tensor:
    """One expert's whole output on every token, float32 [N,H]."""
    ids_N1 = torch.full((len(hidden_NH), 1), expert, dtype=id_type(runner), device=hidden_NH.device)
    weights_N1 = torch.ones(len(hidden_NH), 1, device=hidden_NH.device)
    output_NH = runner.routed_experts.forward_modular(hidden_NH.clone(), weights_N1, ids_N1).float()
    return output_NH if runner._fused_output_is_reduced else tensor_model_parallel_all_reduce(output_NH)


def _routings(layer: HookedLayer, kept: Kept, k_min: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Who selects whom, and how single tokens are weighed.

    Selected, bool [N,E]; weights float32 [R,E]; the token of a row [R]; the expert removed, of the rows after 2N. The
    first N rows are the tokens as they are, the next N what changes of that when `k_min` experts are kept, the others
    what changes when one expert is removed: a row for each token that selects it.
    """
    gate_NE, chosen_NE = _weights(layer, kept.hidden_NH, kept.logits_NE)
    limited_NE, _ = _weights(layer, kept.hidden_NH, kept.logits_NE, keep=k_min)
    every_N = torch.arange(len(gate_NE), device=gate_NE.device)
    weights, tokens, removed = [gate_NE, limited_NE - gate_NE], [every_N, every_N], []
    for expert in range(layer.num_experts):
        rows = chosen_NE[:, expert].nonzero().flatten()
        if len(rows) == 0:
            continue
        without_NE, _ = _weights(layer, kept.hidden_NH[rows], kept.logits_NE[rows], remove=expert)
        weights.append(without_NE - gate_NE[rows])
        tokens.append(rows)
        removed.append(torch.full_like(rows, expert))
    return chosen_NE, torch.cat(weights), torch.cat(tokens), torch.cat(removed)


def _weights(
    layer: HookedLayer, hidden_NH: Tensor, logits_NE: Tensor, *, remove: int | None = None, keep: int | None = None
) -> tuple[Tensor, Tensor]:
    """Each expert's weight, float32 [N,E], and whether it is selected, bool [N,E], with one removed or few kept."""
    keep = layer.top_k if keep is None else keep
    table = RouterTable.neutral(1, layer.num_experts, layer.top_k, device=logits_NE.device).layer(0)
    table.keep[0] = keep
    if remove is not None:
        table.logit_bias_PE[0, remove] = -torch.inf
    layer.write(table, slots=keep)
    weights_NS, ids_NS = layer.route(hidden_NH, logits_NE, None, None)
    at_NS, used_NS = ids_NS.long().clamp_min(0), (ids_NS >= 0).float()
    zeros_NE = torch.zeros(len(logits_NE), layer.num_experts, device=logits_NE.device)
    weights_NE = zeros_NE.scatter_add(1, at_NS, weights_NS.float() * used_NS)
    return weights_NE, zeros_NE.scatter_add(1, at_NS, used_NS) > 0


def _contribution(before_NH: Tensor, added_NH: Tensor) -> Tensor:
    """EASY-EP's weight of a token, float32 [N]: 1 - cos(before, before + added), no less than 0.

    In float64: deep in a model the stream is long, and what is added to it hardly turns it.
    """
    before_NH = before_NH.double()
    cosine_N = torch.nn.functional.cosine_similarity(before_NH, before_NH + added_NH.double(), dim=-1)
    return (1 - cosine_N).clamp_min(0).float()


def cosines(vectors_EN: Tensor) -> Tensor:
    """Cosine of each two rows, cut to [0, 1], float32 [E,E] on the CPU; a row of zeros is at 0 to all but itself."""
    norm_E1 = vectors_EN.norm(dim=-1, keepdim=True)
    usable_E1 = torch.isfinite(norm_E1) & (norm_E1 > 0)
    unit_EN = torch.where(usable_E1, vectors_EN / norm_E1.where(usable_E1, 1), 0)
    cosine_EE = unit_EN @ unit_EN.T
    return ((cosine_EE + cosine_EE.T) / 2).clamp(0, 1).fill_diagonal_(1).cpu()
