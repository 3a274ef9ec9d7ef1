"""Identities: what makes two points the same experiment, and two engines the same engine."""

from __future__ import annotations

from typing import Any

from banpick_exp.config import fingerprint
from banpick_exp.engine.config import EngineConfig
from banpick_exp.models.config import ModelConfig
from banpick_exp.policy.build import ROUTING_VERSION
from banpick_exp.tasks.config import GREEDY, TaskConfig
from banpick_exp.tasks.config import LATER as TASK_LATER
from banpick_exp.tasks.graders.grader import FIRST_GRADER
from banpick_exp.tasks.registry import grader_of

FINGERPRINT_SCHEMA = 2
"""Part of every fingerprint: raise it when results would differ although no setting does. 2: pruned experts are
skipped, so speeds changed; `engine.compile` took the place of `engine.eager`."""

NO_RESULT = frozenset({"parity_check", "policies_per_batch", "start_timeout_seconds"})
"""Engine settings that change no result. All others stay in: batching moves scores, and speed is a result too."""

LATER: dict[str, object] = {
    "kv_cache_blocks": None,
    "pipeline_parallel_size": 1,
    "data_parallel_size": 1,
    "expert_parallel": False,
    "model_runner": "v1",
}
"""Engine settings that did not exist at first: this value is as it was then, and left out."""

TASK_LABELS = frozenset({"name", "data_files", "grader", "reward_model"})
"""Task settings replaced by what they name: the content of files or of a checkpoint, the name and version of the
grader."""

TASK_NO_RESULT = frozenset({"allow_code", "allow_zero", "block_problems", "max_failed_problems", "prompt_tokens"})
"""Task settings that change no result, or (`prompt_tokens`) none but by the engine's max_model_len."""


def engine_fingerprint(checkpoint_identity: str, model: ModelConfig, engine: EngineConfig) -> str:
    """Identity of a loaded engine: the checkpoint's content, how it is read, and engine settings but `NO_RESULT`."""
    left_out = NO_RESULT | {key for key, then in LATER.items() if getattr(engine, key) == then}
    settings = engine.model_dump(exclude=set(left_out))
    how = {"dtype": model.dtype, "trust_remote_code": model.trust_remote_code}
    return fingerprint(
        {"schema": FINGERPRINT_SCHEMA, "checkpoint": checkpoint_identity, "model": how, "engine": settings}
    )


def point_fingerprint(
    *,
    policy: dict[str, object],
    engine: str,
    task: TaskConfig,
    data_identity: str,
    calibration: dict[str, Any] | None,
    seed: int,
    repeat: int = 0,
    base: str | None = None,
    reward_model: str | None = None,
) -> str:
    """Identity of a point. `engine` is its engine_fingerprint; `calibration` is None unless the policy reads one;
    `base`: of the checkpoint that its own was made from: the record says so, and with whom it is compared;
    `reward_model`: of the checkpoint that chooses among its answers, where one does.

    What is as it was before it could be set (repeat 0, greedy answers, the first grader) is left out: results from then
    stay valid.
    """
    graded = grader_of(task).identity()
    then = GREEDY | TASK_LATER
    left_out = {*TASK_LABELS, *TASK_NO_RESULT, *(key for key, value in then.items() if getattr(task, key) == value)}
    return fingerprint(
        {
            "schema": FINGERPRINT_SCHEMA,
            "routing": ROUTING_VERSION,
            "policy": policy,
            "engine": engine,
            "task": task.model_dump(mode="json", exclude=left_out) | {"data": data_identity},
            "calibration": calibration,
            "seed": seed,
        }
        | ({"repeat": repeat} if repeat else {})
        | ({"made_from": base} if base is not None else {})
        | ({"grader": graded} if graded != FIRST_GRADER else {})
        | ({"reward_model": reward_model} if reward_model is not None else {})
    )
