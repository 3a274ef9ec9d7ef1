"""What a model weighs, from the sizes in its config.json: for prices, before anything is loaded.

A Hub id without a local folder is looked up in `PUBLISHED`. Parameters are counted as the usual decoder has them
(grouped-query or latent attention, gated experts); small ones (norms, biases) are left out.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from banpick_exp.errors import UserError
from banpick_exp.models.checkpoint import weight_files
from banpick_exp.models.folder import read_json
from banpick_exp.models.language import language_part
from banpick_exp.models.moe_layers import first_int, total_layers
from banpick_exp.models.shape import MoeShape

BYTES_A_PARAMETER = 2.0
"""Where no weights are there to be weighed: bfloat16."""
_QWEN3 = {"head_dim": 128, "num_key_value_heads": 4, "vocab_size": 151936}
_DEEPSEEK2 = {"kv_lora_rank": 512, "qk_rope_head_dim": 64, "qk_nope_head_dim": 128, "v_head_dim": 128,
              "n_shared_experts": 2, "vocab_size": 102400}  # fmt: skip
PUBLISHED: Mapping[str, Mapping[str, Any]] = {
    "Qwen/Qwen3-30B-A3B": _QWEN3 | {
        "num_hidden_layers": 48, "hidden_size": 2048, "num_attention_heads": 32, "moe_intermediate_size": 768},
    "Qwen/Qwen3-235B-A22B": _QWEN3 | {
        "num_hidden_layers": 94, "hidden_size": 4096, "num_attention_heads": 64, "moe_intermediate_size": 1536},
    "deepseek-ai/DeepSeek-V2-Lite-Chat": _DEEPSEEK2 | {
        "num_hidden_layers": 27, "hidden_size": 2048, "num_attention_heads": 16, "moe_intermediate_size": 1408,
        "intermediate_size": 10944},
    "deepseek-ai/DeepSeek-V2.5": _DEEPSEEK2 | {
        "num_hidden_layers": 60, "hidden_size": 5120, "num_attention_heads": 128, "moe_intermediate_size": 1536,
        "intermediate_size": 12288, "q_lora_rank": 1536},
}  # fmt: skip
"""Hub id -> what its config.json says; sizes of routers are settings (conf/model)."""
UNKNOWN_BYTES = 60e9
"""Of weights that are neither here nor described: those of a 30B model."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Sizes:
    """Bytes as they lie on the disk."""

    shape: MoeShape
    layers: int
    """All, dense ones too."""
    expert_bytes: float
    """One routed expert of one layer."""
    common_bytes: float
    """What every token reads: attention, shared experts, dense layers, routers, output layer."""
    embedding_bytes: float
    """Held, and read a row a token."""
    kv_bytes: float
    """Keys and values of one token in all layers, in bfloat16, once."""
    kv_heads: int
    """Ranks beyond them hold copies; 1 for latent attention, which every rank holds whole."""
    bytes_a_parameter: float
    known: bool
    """False where nothing says how it is built."""

    @property
    def weight_bytes(self) -> float:
        return self.common_bytes + self.embedding_bytes + self.routed_bytes

    @property
    def routed_bytes(self) -> float:
        return self.shape.num_layers * self.shape.num_experts * self.expert_bytes

    @property
    def parameters(self) -> float:
        return self.weight_bytes / self.bytes_a_parameter

    @property
    def active_parameters(self) -> float:
        """That a token is multiplied with: embedding left out."""
        chosen = self.shape.num_layers * self.shape.top_k * self.expert_bytes
        return (self.common_bytes + chosen) / self.bytes_a_parameter

    def experts_read(self, tokens: int) -> float:
        """Different experts of a layer that so many tokens choose, were each choice even."""
        shape = self.shape
        return shape.num_experts * (1 - (1 - shape.top_k / shape.num_experts) ** tokens)


def sizes_of(location: str, shape: MoeShape) -> Sizes:
    """Of a checkpoint's folder or Hub id. Reads config.json and how large the weights are, nothing else."""
    return _sizes(location, shape.num_layers, shape.num_experts, shape.top_k)


@functools.cache
def _sizes(location: str, num_layers: int, num_experts: int, top_k: int) -> Sizes:
    shape = MoeShape(num_layers=num_layers, num_experts=num_experts, top_k=top_k)
    folder = Path(location)
    stored = 0.0
    config: Mapping[str, Any] = PUBLISHED.get(location, {})
    try:
        if (folder / "config.json").is_file():
            config = language_part(read_json(folder / "config.json"))
            stored = float(sum(path.stat().st_size for path in weight_files(folder))) or _indexed_bytes(folder)
    except (OSError, UserError):
        pass  # a price must not be what stops a plan; whoever loads it says what is wrong
    return _described(config, shape, stored) or _assumed(shape, stored or UNKNOWN_BYTES)


def _indexed_bytes(folder: Path) -> float:
    """Of weights that are not there yet, as their index counts them."""
    for path in sorted(folder.glob("*.safetensors.index.json")):
        metadata = read_json(path).get("metadata")
        if isinstance(metadata, dict):
            return float(first_int(metadata, ("total_size",)))
    return 0.0


def _described(config: Mapping[str, Any], shape: MoeShape, stored: float) -> Sizes | None:
    """None where the config leaves out what all follows from."""
    hidden, layers = first_int(config, ("hidden_size", "d_model")), total_layers(config)
    heads = first_int(config, ("num_attention_heads", "n_heads"))
    width = first_int(config, ("moe_intermediate_size", "expert_ffn_hidden_size", "intermediate_size"))
    if min(hidden, layers, heads, width) < 1:
        return None
    attention, kv_values, kv_heads = _attention(config, hidden, heads)
    expert = 3 * hidden * width
    shared = first_int(config, ("n_shared_experts", "num_shared_experts")) * expert
    shared += 3 * hidden * first_int(config, ("shared_expert_intermediate_size",))
    dense = 3 * hidden * first_int(config, ("intermediate_size",), width) * max(layers - shape.num_layers, 0)
    vocabulary = first_int(config, ("vocab_size",)) * hidden
    tied = config.get("tie_word_embeddings") is True
    common = layers * attention + shape.num_layers * (shared + hidden * shape.num_experts) + dense + vocabulary
    held = 0 if tied else vocabulary
    total = common + held + shape.num_layers * shape.num_experts * expert
    each = stored / total if stored else BYTES_A_PARAMETER
    return Sizes(
        shape=shape,
        layers=layers,
        expert_bytes=each * expert,
        common_bytes=each * common,
        embedding_bytes=each * held,
        kv_bytes=BYTES_A_PARAMETER * layers * kv_values,
        kv_heads=kv_heads,
        bytes_a_parameter=each,
        known=True,
    )


def _attention(config: Mapping[str, Any], hidden: int, heads: int) -> tuple[int, int, int]:
    """Of one layer: parameters, numbers cached a token, and over how many ranks these can be divided."""
    latent = first_int(config, ("kv_lora_rank",))
    if latent:
        rope, plain = first_int(config, ("qk_rope_head_dim",)), first_int(config, ("qk_nope_head_dim",))
        value, low = first_int(config, ("v_head_dim",)), first_int(config, ("q_lora_rank",))
        query = heads * (plain + rope)
        query = low * (hidden + query) if low else hidden * query
        keys = hidden * (latent + rope) + latent * heads * (plain + value)
        return query + keys + heads * value * hidden, latent + rope, 1
    size = first_int(config, ("head_dim",)) or hidden // heads
    kv_heads = first_int(config, ("num_key_value_heads",)) or heads
    return 2 * hidden * size * (heads + kv_heads), 2 * size * kv_heads, kv_heads


def _assumed(shape: MoeShape, weight_bytes: float) -> Sizes:
    """Nine tenths of the weights in the routed experts, and the keys and values of Qwen3."""
    routed = 0.9 * weight_bytes
    return Sizes(
        shape=shape,
        layers=shape.num_layers,
        expert_bytes=routed / (shape.num_layers * shape.num_experts),
        common_bytes=weight_bytes - routed,
        embedding_bytes=0.0,
        kv_bytes=BYTES_A_PARAMETER * shape.num_layers * 1024,
        kv_heads=4,
        bytes_a_parameter=BYTES_A_PARAMETER,
        known=False,
    )
