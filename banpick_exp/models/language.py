"""The part of a config.json that describes the language model: multimodal checkpoints wrap it, some several times."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import Any

from banpick_exp.models.moe_layers import shown

WRAPPERS = (
    "thinker_config",
    "text_config",
    "llm_config",
    "language_config",
    "language_model_config",
    "text_model_config",
)
"""Keys whose object is the language model, or wraps it again."""
PARTS = ("ffn_config", "moe_config", "moe", "mlp_config")
"""Keys whose object describes the experts of the model around it."""
OTHER_MODELS = ("vision", "visual", "audio", "speech", "talker", "code2wav", "quantization", "mtp", "draft", "video")
"""Beginnings of keys whose object is another model."""

MOST_SHOWN = 4


def language_part(whole: Mapping[str, Any]) -> dict[str, Any]:
    """What `whole` says of its language model, in one flat object without nulls; inner keys win over outer ones."""
    config = without_nulls(whole)
    while wrapper := next((key for key in WRAPPERS if isinstance(config.get(key), dict)), None):
        inner = config.pop(wrapper)
        config |= without_nulls(inner)
    for part in PARTS:
        if isinstance(config.get(part), dict):
            config = without_nulls(config.pop(part)) | config
    return config


def experts_elsewhere(config: Mapping[str, Any]) -> tuple[str, dict[str, Any]] | None:
    """The first object in `config`, under a key unknown here, that counts experts: (key, object); None without one."""
    for key, value in config.items():
        if not isinstance(value, dict) or key.lower().startswith(OTHER_MODELS):
            continue
        if any("expert" in name and isinstance(count, int) and count > 1 for name, count in value.items()):
            return key, without_nulls(value)
    return None


def without_nulls(config: Mapping[str, Any]) -> dict[str, Any]:
    """A key that is null says nothing: config classes write every field."""
    return {key: value for key, value in config.items() if value is not None}


def speaks_of_experts(whole: Mapping[str, Any], but: Collection[str] = ()) -> tuple[str, ...]:
    """`ffn_config.moe_top_k=4`, ...: what says that this is no dense model, four of it at most; not the keys `but`."""
    found = []
    architectures = whole.get("architectures")
    for name in architectures if isinstance(architectures, list) else [architectures]:
        if isinstance(name, str) and "moe" in name.lower():
            found.append(f"architectures={name}")
    for path, value in _leaves(whole, "", 0):
        key = path.rpartition(".")[2].lower()
        if ("expert" in key or "moe" in key) and key not in but and value not in (None, 0, False, "", [], {}):
            found.append(f"{path}={shown(value)}")
    return tuple(found[:MOST_SHOWN])


def _leaves(config: Mapping[str, Any], prefix: str, depth: int) -> Iterator[tuple[str, Any]]:
    for key, value in config.items():
        if isinstance(value, dict) and depth < 16:
            yield from _leaves(value, f"{prefix}{key}.", depth + 1)
        else:
            yield prefix + str(key), value
