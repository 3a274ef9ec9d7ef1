"""What a model weighs, from the sizes in its config.json: for prices, before anything is loaded.

A Hub id without a local folder is looked up in `published`. Parameters are counted as the usual decoder has them
(grouped-query, latent or linear attention, gated experts); small ones (norms, biases) are left out. Bytes follow the
format of a quantised checkpoint (`quantisation`), and the files where they are there to be weighed.
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
from banpick_exp.models.published import PUBLISHED
from banpick_exp.models.quantisation import Quantisation, quantisation_of
from banpick_exp.models.routing import SHARED_KEYS
from banpick_exp.models.shape import MoeShape

BYTES_A_PARAMETER = 2.0
"""Where no weights are there to be weighed: bfloat16."""
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
    parameters: float
    active_parameters: float
    """That a token is multiplied with: embedding left out."""
    known: bool
    """False where nothing says how it is built."""

    @property
    def weight_bytes(self) -> float:
        return self.common_bytes + self.embedding_bytes + self.routed_bytes

    @property
    def routed_bytes(self) -> float:
        return self.shape.num_layers * self.shape.num_experts * self.expert_bytes

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
    whole: Mapping[str, Any] = PUBLISHED.get(location, {})
    try:
        if (folder / "config.json").is_file():
            whole = read_json(folder / "config.json")
            stored = stored_bytes(folder)
    except (OSError, UserError):
        pass  # a price must not be what stops a plan; whoever loads it says what is wrong
    return sizes_by(whole, shape, stored)


def sizes_by(whole: Mapping[str, Any], shape: MoeShape, stored: float = 0.0) -> Sizes:
    """Of a config.json, and of the bytes that its weights take on the disk (0: not known)."""
    config = language_part(whole)
    return _described(config, shape, quantisation_of(whole, config), stored) or _assumed(shape, stored or UNKNOWN_BYTES)


def stored_bytes(folder: Path) -> float:
    """Of the weights in a checkpoint's folder, or that its index counts; 0 where neither says."""
    return float(sum(path.stat().st_size for path in weight_files(folder))) or _indexed_bytes(folder)


def _indexed_bytes(folder: Path) -> float:
    """Of weights that are not there yet, as their index counts them."""
    for path in sorted(folder.glob("*.safetensors.index.json")):
        metadata = read_json(path).get("metadata")
        if isinstance(metadata, dict):
            return float(first_int(metadata, ("total_size",)))
    return 0.0


def _described(
    config: Mapping[str, Any], shape: MoeShape, quantised: Quantisation | None, stored: float
) -> Sizes | None:
    """None where the config leaves out what all follows from."""
    hidden, layers = first_int(config, ("hidden_size", "d_model")), total_layers(config)
    heads = first_int(config, ("num_attention_heads", "n_heads"))
    width = first_int(config, ("moe_intermediate_size", "expert_ffn_hidden_size", "intermediate_size"))
    if min(hidden, layers, heads, width) < 1:
        return None
    attention, kv_values, kv_heads = _attention(config, hidden, heads)
    linear, with_cache = _linear_attention(config, hidden, layers)
    expert = 3 * hidden * width
    shared = first_int(config, SHARED_KEYS) * expert
    shared += 3 * hidden * first_int(config, ("shared_expert_intermediate_size", "shared_intermediate_size"))
    dense = 3 * hidden * first_int(config, ("intermediate_size",), width) * max(layers - shape.num_layers, 0)
    vocabulary = first_int(config, ("vocab_size",)) * hidden
    held = 0 if config.get("tie_word_embeddings") is True else vocabulary
    multiplied = with_cache * attention + (layers - with_cache) * linear + shape.num_layers * shared + dense
    plain = vocabulary + shape.num_layers * hidden * shape.num_experts  # output layer and routers: never quantised
    routed = shape.num_layers * shape.num_experts * expert
    other_bytes = expert_bytes = BYTES_A_PARAMETER
    if quantised is not None and quantised.expert_bytes is not None and quantised.other_bytes is not None:
        expert_bytes, other_bytes = quantised.expert_bytes, quantised.other_bytes
    by_format = BYTES_A_PARAMETER * (plain + held) + other_bytes * multiplied + expert_bytes * routed
    scale = stored / by_format if stored else 1.0
    return Sizes(
        shape=shape,
        layers=layers,
        expert_bytes=scale * expert_bytes * expert,
        common_bytes=scale * (BYTES_A_PARAMETER * plain + other_bytes * multiplied),
        embedding_bytes=scale * BYTES_A_PARAMETER * held,
        kv_bytes=BYTES_A_PARAMETER * with_cache * kv_values,
        kv_heads=kv_heads,
        parameters=plain + held + multiplied + routed,
        active_parameters=plain + multiplied + shape.num_layers * shape.top_k * expert,
        known=True,
    )


def _linear_attention(config: Mapping[str, Any], hidden: int, layers: int) -> tuple[int, int]:
    """Parameters of a layer of linear attention (Qwen3-Next), and how many layers keep keys and values instead."""
    every = first_int(config, ("full_attention_interval",), 4 if "linear_num_key_heads" in config else 1)
    if every < 2:
        return 0, layers
    keys = first_int(config, ("linear_num_key_heads",)) * first_int(config, ("linear_key_head_dim",))
    value_heads = first_int(config, ("linear_num_value_heads",))
    values = value_heads * first_int(config, ("linear_value_head_dim",))
    return hidden * (2 * keys + 3 * values + 2 * value_heads), layers // every


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
    gated = heads * size * hidden if "linear_num_key_heads" in config else 0  # Qwen3-Next gates what attention says
    return 2 * hidden * size * (heads + kv_heads) + gated, 2 * size * kv_heads, kv_heads


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
        parameters=weight_bytes / BYTES_A_PARAMETER,
        active_parameters=(weight_bytes - routed * (1 - shape.top_k / shape.num_experts)) / BYTES_A_PARAMETER,
        known=False,
    )
