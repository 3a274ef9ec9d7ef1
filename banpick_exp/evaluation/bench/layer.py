"""The layer that every benchmark times, Qwen3-30B-A3B's, and the number formats it is timed in. Loads nothing heavy."""

from __future__ import annotations

from typing import Literal

from banpick_exp.models.dtype import BYTES, Computed, Stored, computed_dtype
from banpick_exp.versions import versions

EXPERTS, TOP_K, HIDDEN, INTERMEDIATE = 128, 8, 2048, 768
FIXED_K = 5
"""What fixed_k keeps, to compare with."""
MEAN_KEPT = 4.8
"""The budget of Ban that the aims are stated for."""

BenchDtype = Literal["bfloat16", "float32"]
DTYPES: tuple[BenchDtype, ...] = ("bfloat16", "float32")
STORED: BenchDtype = "bfloat16"
"""The checkpoint's own."""
LAYER_NUMBERS = 3 * EXPERTS * HIDDEN * INTERMEDIATE
"""Weights of a layer's experts: nearly all that it has."""
WORKING_GIB = 4
"""Of an engine beside its weights: the KV cache, Python, and what is held twice while it is repacked."""


def native_dtype() -> Computed:
    """What this machine computes natively, and why: the format for which the aims are stated."""
    return computed_dtype("auto", Stored(STORED), on_gpu=on_gpu())


def on_gpu() -> bool:
    """Whether vLLM computes on one here: its CPU build goes by another distribution name and knows no GPU."""
    return "vllm" in versions()


def dtypes_of(asked: str | None) -> tuple[BenchDtype, ...]:
    """`both`, one by its name, or None: both on a CPU, the checkpoint's own on a GPU."""
    if asked == "both" or (asked is None and not on_gpu()):
        return DTYPES
    return tuple(dtype for dtype in DTYPES if dtype == (asked or STORED))


def weights_gib(layers: int, dtype: BenchDtype) -> float:
    return layers * LAYER_NUMBERS * BYTES[dtype] / 2**30
