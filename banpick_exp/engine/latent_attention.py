"""Multi-head latent attention (DeepSeek, Kimi) on a CPU: vLLM 0.32's rotary kernel there errs for its query.

Measured on miniatures of DeepSeek-V2 and V3 in float32: 2.5 and 2.0 nats away from Transformers by default, a few 1e-6
with the same operation in torch. Nothing in the routing shows it, so no check of a hook finds it.
"""

from __future__ import annotations

from typing import Any

from banpick_exp.models.config import ModelConfig

ROTARY_IN_TORCH: dict[str, Any] = {"compilation_config": {"custom_ops": ["-rotary_embedding"]}}
"""Arguments of `vllm.LLM` that keep the kernel out; the other custom operations stay as vLLM chooses them."""


def cpu_options(model: ModelConfig, model_path: str) -> dict[str, Any]:
    """Arguments of `vllm.LLM` that a CPU engine of this checkpoint needs in order to be right; none for most."""
    from vllm.transformers_utils.config import get_config

    config: Any = get_config(model_path, model.trust_remote_code, revision=model.revision)
    return dict(ROTARY_IN_TORCH) if getattr(config.get_text_config(), "kv_lora_rank", None) else {}
