"""What in a config.json should be a number, or an object, and is not: no engine could load it, so nothing is begun."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from banpick_exp.errors import UserError
from banpick_exp.models.language import language_part
from banpick_exp.models.moe_layers import as_int, shown
from banpick_exp.models.quantisation import QUANTISATION_KEYS

WIDTHS = ("hidden_size", "vocab_size", "num_attention_heads", "max_position_embeddings")
"""Whole numbers of any language model, above 0 where they are the first two; not every config has each."""
POSITIVE = WIDTHS[:2]

Count = tuple[int | None, tuple[str, ...]]
"""What was counted (None: nothing could be), and the keys that it may stand under."""


def refuse_no_numbers(path: Path, whole: Mapping[str, Any], counts: Iterable[Count]) -> None:
    """UserError where a size is unknown because what stands under its key is no whole number, where a width is none, or
    the quantisation no object; vLLM needs them too."""
    config = language_part(whole)
    for key in QUANTISATION_KEYS:
        if (said := config.get(key, whole.get(key))) is not None and not isinstance(said, dict):
            raise UserError(
                f"{path}: {key}={shown(said)} is no object, so no engine could load it. Write it as its quantiser does,"
                f' "{key}": {{"quant_method": "fp8", ...}}, or leave it out where the weights are not quantised.'
            )
    wrong = {
        key: config[key]
        for size, keys in counts
        for key in keys
        if size is None and key in config and as_int(config[key]) is None
    }
    for key in WIDTHS:
        if key in config and ((number := as_int(config[key])) is None or (key in POSITIVE and number < 1)):
            wrong[key] = config[key]
    if wrong:
        said = ", ".join(f"{key}={shown(value)} is {_no_size(value)}" for key, value in wrong.items())
        meant = ", ".join(
            f'"{key}": {value.strip() if isinstance(value, str) and value.strip().isdecimal() else "NUMBER"}'
            for key, value in wrong.items()
        )
        raise UserError(f"{path}: {said}, so no engine could load it. Write whole numbers there, unquoted: {meant}.")


def _no_size(value: object) -> str:
    if isinstance(value, str):
        return "text, no number"
    return "no whole number" if as_int(value) is None else "below 1"
