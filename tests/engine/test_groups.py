"""The router's own ranking under grouped top-k: held against vLLM's routing function, not against ours."""

import pytest
import torch

from banpick_kernels.reference import router_scores, select_top_k, within_groups


@pytest.mark.engine
@pytest.mark.parametrize("corrected", [False, True])
def test_the_masked_ranking_selects_what_vllm_selects(corrected: bool) -> None:
    from vllm.model_executor.layers.fused_moe.router.cpu_router import _grouped_topk

    generator = torch.Generator().manual_seed(0)
    logits_TE = torch.randn(200, 64, generator=generator)
    bias_E = torch.rand(64, generator=generator) if corrected else None
    _, ids_TK = _grouped_topk(logits_TE, 6, True, 8, 3, "sigmoid", 1.0, bias_E)
    scores_TE = router_scores(logits_TE, "sigmoid")
    ranking_TE = within_groups(scores_TE if bias_E is None else scores_TE + bias_E, 8, 3, corrected)
    assert torch.equal(select_top_k(ranking_TE, 6).sort(-1).values, ids_TK.long().sort(-1).values)
    # The window of an insertion ends where the seen groups end: 3 groups of 8 experts.
    assert torch.equal(ranking_TE.isfinite().sum(-1), torch.full((200,), 24))
