"""The policies of a server set on every rank, before the first request and before memory is measured or a graph kept.

Runs where vLLM's engine core runs, once its workers have loaded the model. Whatever is wrong ends the start.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any, Protocol

from banpick_exp.engine.engine import EngineError, stages_of, wrong_count
from banpick_exp.engine.serving.served import Served
from banpick_exp.engine.types import RankReport

logger = logging.getLogger("vllm.banpick")


class Call(Protocol):
    """`EngineCore.collective_rpc`: what a worker method answers on every rank."""

    def __call__(self, method: str, timeout: float | None = None, args: tuple[Any, ...] = ()) -> list[Any]: ...


def set_at_start(call: Call, served: Sequence[Served]) -> None:
    """Prove the hook on every rank, then write each policy into its row.

    Raises UserError where a folder becomes another policy here, EngineError where a layer is bypassed, a rank routes
    otherwise than the reference or ranks disagree, and what the workers raise where they cannot hold a policy.
    """
    for each in served:
        if each.exported is not None:
            each.exported.build(each.domain)
    reports = [RankReport.of(plain) for plain in call("banpick_describe")]
    _check_layers(reports, served)
    stages = stages_of(reports)
    if len(stages) > 1:
        call("banpick_place", args=([len(ranks[0].layers) for ranks in stages],))
    for rank, problems in enumerate(call("banpick_self_test")):
        if problems:
            raise EngineError(f"rank {rank}: the self-test failed, so nothing is served: {'; '.join(problems)}")
    for key, calibration_json in dict(filter(None, (each.calibration_wire() for each in served))).items():
        call("banpick_load_calibration", args=(key, calibration_json))
    answers = call("banpick_set_policies", args=([each.wire() for each in served],))
    check_agreement([report.stage for report in reports], [digests for digests, _ in answers])
    for row, each in enumerate(served):
        logger.info("policy %s in row %d: %s (%s)", each.name, row, each.label, each.fingerprint)


def _check_layers(reports: Sequence[RankReport], served: Sequence[Served]) -> None:
    """EngineError unless every MoE layer that the policies were made for is hooked, with as many experts."""
    shape = next(each.exported.shape for each in served if each.exported is not None)
    stages = stages_of(reports)
    hooked = sum(len(ranks[0].layers) for ranks in stages)
    uneven = any(len(report.layers) != len(stages[report.stage][0].layers) for report in reports)
    if hooked != shape.num_layers or uneven:
        raise EngineError(
            f"{hooked} of {shape.num_layers} MoE layers are hooked, so the policy would not be the one that was"
            f" measured, and nothing is served. {wrong_count(hooked, shape.num_layers)}"
        )
    for report in reports:
        for what, found, wanted in (
            ("experts a layer", report.num_experts, shape.num_experts),
            ("experts a token (top_k)", report.top_k, shape.top_k),
        ):
            if set(found) - {wanted}:
                raise EngineError(
                    f"rank {report.rank}: the loaded model has {sorted(found)} {what}, the policy is for {wanted}:"
                    " nothing is served. Serve the checkpoint that the policy was measured on."
                )


def check_agreement(stage_R: Sequence[int], digests_R: Sequence[list[str]]) -> None:
    """EngineError where ranks that hold the same layers do not hold the same values."""
    for stage in set(stage_R):
        held = {tuple(digests) for of, digests in zip(stage_R, digests_R, strict=True) if of == stage}
        if len(held) != 1:
            raise EngineError(f"ranks of one stage hold different policies: {sorted(held)}. Start the server again.")
