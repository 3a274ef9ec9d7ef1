"""How a quantised checkpoint stores its weights, and what that means for prices and the hook; from its config.json.

Bytes are those of the format and its scales. Which expert kernel vLLM takes, and whether that one routes by itself, is
decided on the device: the hook refuses those that do, and what is said here was read in vLLM 0.32
(`fused_moe/oracle/`), not run.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from banpick_exp.models.moe_layers import as_int

PLAIN_BYTES = 2.0
"""A weight in bfloat16 or float16."""
MARLIN = "engine.moe_backend=marlin"
ROUTES_BY_ITSELF = "the kernel that vLLM prefers here routes by itself and would be refused"
KERNELS = {
    "mxfp4": f"On Hopper {ROUTES_BY_ITSELF} at the start: type {MARLIN}",
    "fp8": f"On Blackwell {ROUTES_BY_ITSELF} at the start; Hopper takes Triton, which asks the router",
    "nvfp4": f"On Blackwell {ROUTES_BY_ITSELF} at the start: type {MARLIN}",
    "int4": f"On a GPU Marlin asks the router. On a CPU {ROUTES_BY_ITSELF} at the start",
    "int8": "Triton's kernel asks the router; vLLM's int8 kernels for CPUs were not read",
}
"""By format."""

QUANTISATION_KEYS = ("quantization_config", "compression_config")
"""Of a config.json."""
MARLIN_FORMATS = ("mxfp4", "nvfp4")
"""Those that need `MARLIN` typed."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Quantisation:
    """Of a checkpoint's weights."""

    method: str
    """As config.json names it: fp8, awq, gptq, mxfp4, compressed-tensors, ..."""
    format: str | None
    """A key of `KERNELS`; None where it is not known here."""
    expert_bytes: float | None
    """A weight of a routed expert, its share of the scales in it; None where nothing says."""
    other_bytes: float | None
    """A weight of what is multiplied beside them: attention, shared experts, dense layers."""

    @property
    def known(self) -> bool:
        return self.expert_bytes is not None

    @property
    def label(self) -> str:
        """`fp8`, `compressed-tensors (int4)`, `hqq (unknown here)`."""
        if self.format is None:
            return f"{self.method} (unknown here)"
        return self.method if self.format == self.method else f"{self.method} ({self.format})"

    @property
    def kernel(self) -> str:
        """What is known of the kernels that compute it."""
        if self.format is None:
            return "nothing is known here of its kernels: python -m banpick_exp verify asks the engine"
        return KERNELS[self.format]


def quantisation_of(whole: Mapping[str, Any], part: Mapping[str, Any]) -> Quantisation | None:
    """What a config.json says, `part` of it being the language model; None for weights that are not quantised."""
    found = next(
        (value for key in QUANTISATION_KEYS for config in (part, whole) if isinstance(value := config.get(key), dict)),
        None,
    )
    if found is None:
        return None
    method = str(found.get("quant_method") or found.get("quantization_method") or "unnamed").lower()
    if method == "fp8" or method == "fbgemm_fp8":
        return _made(method, "fp8", 1.0)
    if method == "mxfp4":  # experts alone; a byte of scale for 32 weights
        return Quantisation(method=method, format="mxfp4", expert_bytes=4.25 / 8, other_bytes=PLAIN_BYTES)
    if method in ("awq", "gptq", "auto_awq", "auto_gptq", "awq_marlin", "gptq_marlin", "auto-round"):
        bits, group = as_int(found.get("bits")) or as_int(found.get("w_bit")), as_int(found.get("group_size"))
        return _integer(method, bits, group or as_int(found.get("q_group_size")))
    if method == "compressed-tensors":
        return _compressed(method, found)
    if method == "modelopt":
        algorithm = str(found.get("quant_algo", "")).upper()
        if algorithm == "FP8":
            return _made(method, "fp8", 1.0)
        if algorithm in ("NVFP4", "W4A16_NVFP4"):
            return _made(method, "nvfp4", 4.5 / 8)
    return Quantisation(method=method, format=None, expert_bytes=None, other_bytes=None)


def _made(method: str, format_: str, each: float) -> Quantisation:
    return Quantisation(method=method, format=format_, expert_bytes=each, other_bytes=each)


def _integer(method: str, bits: int | None, group: int | None) -> Quantisation:
    """A scale of two bytes and a zero point a group; none a group: a column."""
    if bits not in (4, 8):
        return Quantisation(method=method, format=None, expert_bytes=None, other_bytes=None)
    overhead = (2 + bits / 8) / group if group and group > 0 else 0.0
    return _made(method, f"int{bits}", bits / 8 + overhead)


def _compressed(method: str, found: Mapping[str, Any]) -> Quantisation:
    """llm-compressor: groups of layers, each with its own number format; the one that names experts, else the first."""
    groups = found.get("config_groups")
    described = [group for group in groups.values() if isinstance(group, dict)] if isinstance(groups, dict) else []
    described.sort(key=lambda group: "expert" not in str(group.get("targets")))
    weights = described[0].get("weights") if described else None
    if not isinstance(weights, dict):
        return Quantisation(method=method, format=None, expert_bytes=None, other_bytes=None)
    bits, group = as_int(weights.get("num_bits")), as_int(weights.get("group_size"))
    if weights.get("type") == "float":
        if bits == 8:
            return _made(method, "fp8", 1.0)
        if bits == 4:
            return _made(method, "mxfp4", 4.25 / 8) if group == 32 else _made(method, "nvfp4", 4.5 / 8)
        return Quantisation(method=method, format=None, expert_bytes=None, other_bytes=None)
    return _integer(method, bits, group)
