"""Two requests of one prompt contrasted in every step: both are answered by what the strong one says beyond the weak.

SCMoE (2405.14507, section 3.2), on the logits z_s of the strong and z_w of the weak request, as the model gives them:

    score = (1 + beta) z_s - beta z_w   where z_s >= max(z_s) + ln(alpha);   -inf elsewhere

vLLM's V1 model runner hands the logits of a step, one row a request, to its `_sample`; `follow` wraps that method of
the one runner. So the scores stand where the logits stood: before penalties, temperature and top-p, and after the
log-probabilities of prompts were made. The strong request's token is then written over the weak one's, so that both go
on alike whatever the sampler draws.

Nothing is remembered of places in the batch, which requests change as others come and go: who stands where is read in
every step from vLLM's own batch. What fails without a check: a request whose twin is missing, or stands at another
token, would be answered uncontrasted. It is noted as a fault and left as it is; whoever asked looks at the faults, and
at how many steps of each pair were contrasted (`engine/contrast.py`).

Shapes: N pairs, V tokens of the vocabulary, R requests of a step; a 1 is an axis that broadcasts.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from banpick_exp.engine.plugin.twins import Pair, Twin, pairs_of

REMEMBERED_FAULTS = 20


def contrasted(strong_NV: Tensor, weak_NV: Tensor, alpha_N: Sequence[float], beta_N: Sequence[float]) -> Tensor:
    """The scores float32 [N,V] that are sampled from; `alpha` 0 drops no token.

    The weak one likes the strong one's favourite too, so the second wins; the third is below the cutoff of 2 + ln 0.1:

    >>> contrasted(torch.tensor([[2.0, 1.5, -1.0]]), torch.tensor([[2.0, 0.0, -9.0]]), [0.1], [0.5])
    tensor([[2.0000, 2.2500,   -inf]])
    """
    strong_NV, weak_NV = strong_NV.float(), weak_NV.float()
    beta_N1 = strong_NV.new_tensor(beta_N)[:, None]
    ln_alpha_N1 = strong_NV.new_tensor([math.log(alpha) if alpha else -math.inf for alpha in alpha_N])[:, None]
    score_NV = (1 + beta_N1) * strong_NV - beta_N1 * weak_NV
    # Written last: where both are -inf the difference is no number.
    return score_NV.masked_fill(strong_NV < strong_NV.amax(dim=-1, keepdim=True) + ln_alpha_N1, -math.inf)


class ContrastedSteps:
    """The pairs that one model runner has contrasted since they were last taken."""

    def __init__(self) -> None:
        self.active = False
        """Whether anyone looks at the faults: otherwise nothing is contrasted."""
        self.steps: dict[int, int] = {}
        """By pair."""
        self.faults: list[str] = []

    def take(self) -> tuple[list[list[int]], list[str]]:
        """[pair, steps] of each pair, and the first faults; nothing is contrasted from now on."""
        found = [[pair, steps] for pair, steps in self.steps.items()], self.faults
        self.active, self.steps, self.faults = False, {}, []
        return found

    def pairs(self, runner: Any) -> list[Pair]:
        """Those of the step that `runner` has run and not sampled."""
        names, known = runner.input_batch.req_ids, runner.requests
        twin_R = [_twin_of(known[name]) for name in names]
        if not any(twin_R):
            return []
        length_R = runner.optimistic_seq_lens_cpu[: len(names)].tolist()
        waits_R = runner.discard_request_mask.np[: len(names)].tolist()
        pairs, faults = pairs_of(twin_R, length_R, [not waits for waits in waits_R])
        self.faults += faults[: REMEMBERED_FAULTS - len(self.faults)]
        return pairs

    def sample(self, runner: Any, stock: Any, logits: Tensor, *others: Any) -> Any:
        """What the runner's `_sample` (`stock`) returns, pairs contrasted."""
        if not self.active or not (pairs := self.pairs(runner)):
            return stock(logits, *others)
        strong_N = torch.tensor([pair.strong for pair in pairs], device=logits.device)
        weak_N = torch.tensor([pair.weak for pair in pairs], device=logits.device)
        twins = [pair.twin for pair in pairs]
        logits = logits.float()
        score_NV = contrasted(
            logits[strong_N], logits[weak_N], [twin.alpha for twin in twins], [twin.beta for twin in twins]
        )
        logits[strong_N] = score_NV
        logits[weak_N] = score_NV
        sampled = stock(logits, *others)
        tokens_R1 = sampled.sampled_token_ids
        tokens_R1[weak_N] = tokens_R1[strong_N]
        for twin in twins:
            self.steps[twin.pair] = self.steps.get(twin.pair, 0) + 1
        return sampled


def _twin_of(request: Any) -> Twin | None:
    """Of vLLM's own state of a request, where it is remembered."""
    try:
        known: Twin | None = request.banpick_twin
    except AttributeError:
        known = request.banpick_twin = Twin.of(getattr(request.sampling_params, "extra_args", None))
    return known


def follow(runner: Any) -> ContrastedSteps:
    """Have the model runner of this worker contrast pairs, while `active`. Safe to call again.

    Raises RuntimeError for another runner than vLLM's V1, and where one step has more than a token a request.
    """
    known: ContrastedSteps | None = getattr(runner, "banpick_contrast", None)
    if known is not None:
        return known
    from vllm.v1.worker.gpu_model_runner import GPUModelRunner

    if not isinstance(runner, GPUModelRunner):
        raise RuntimeError(
            f"a contrast needs vLLM's V1 model runner, this is {type(runner).__module__}: start the engine with"
            " engine.model_runner=v1"
        )
    if runner.speculative_config is not None:
        raise RuntimeError(
            "speculative decoding samples several tokens of a request in one step, which are not contrasted: start the"
            " engine without it"
        )
    steps, stock = ContrastedSteps(), runner._sample

    def _sample(logits: Tensor, *others: Any, **named: Any) -> Any:
        return steps.sample(runner, stock, logits, *others, *named.values())

    runner._sample, runner.banpick_contrast = _sample, steps
    return steps
