"""How families of checkpoints write down their experts: the keys of config.json, and which layers have experts."""

from __future__ import annotations

from typing import Any

BYPASSING_ARCHITECTURES = ("MiniCPM", "Moondream3", "DeepseekV4")
"""Prefixes of architectures whose vLLM model files build experts without the runner we hook (read in vLLM 0.32)."""

EXPERT_KEYS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts", "num_routed_experts")

TOP_K_KEYS = (
    "num_experts_per_tok",
    "num_experts_per_token",
    "experts_per_token",
    "moe_topk",
    "moe_top_k",
    "moe_k",
    "top_k_experts",
)


def moe_layer_count(config: dict[str, Any]) -> int:
    """How many of the layers have experts, by the conventions of Qwen, DeepSeek and GLM, Llama 4, Ernie and Jamba."""
    total = first_int(config, ("num_hidden_layers", "n_layers", "num_layers"))
    layers = set(range(total))
    if isinstance(config.get("moe_layers"), list):
        return len(layers & set(config["moe_layers"]))
    layers -= set(config.get("mlp_only_layers") or [])
    step = first_int(config, ("decoder_sparse_step", "interleave_moe_layer_step"), default=1)
    layers = {layer for layer in layers if step > 0 and (layer + 1) % step == 0}
    frequency = config.get("moe_layer_freq", 1)
    if isinstance(frequency, list):
        layers &= {layer for layer, sparse in enumerate(frequency) if sparse}
    elif isinstance(frequency, int) and frequency > 1:
        layers = {layer for layer in layers if layer % frequency == 0}
    layers -= set(range(first_int(config, ("first_k_dense_replace",))))
    if "expert_layer_period" in config:
        period, offset = int(config["expert_layer_period"]), int(config.get("expert_layer_offset", 0))
        layers = {layer for layer in layers if layer % period == offset}
    if "moe_layer_interval" in config:
        start, end = int(config.get("moe_layer_start_index", 0)), int(config.get("moe_layer_end_index", total - 1))
        last = total - 1 if end < 0 else end
        layers = {
            layer for layer in layers if start <= layer <= last and (layer + 1) % int(config["moe_layer_interval"]) == 0
        }
    return len(layers)


def first_int(config: dict[str, Any], keys: tuple[str, ...], default: int = 0) -> int:
    for key in keys:
        value = config.get(key)
        if isinstance(value, list) and value:  # Ernie's VL models give one number per modality; text is the first
            value = value[0]
        if isinstance(value, int) and not isinstance(value, bool):
            return value
    return default
