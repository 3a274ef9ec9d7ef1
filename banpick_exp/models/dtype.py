"""Which number format an engine computes in when `model.dtype=auto`: what the machine is fast at.

On a GPU the checkpoint's own. On a CPU bfloat16 only where the CPU multiplies it itself: elsewhere vLLM 0.32 sends
bfloat16 products through plain `F.linear` and float32 ones through prepacked oneDNN
(`vllm/model_executor/layers/utils.py`, `dispatch_cpu_unquantized_gemm`), and float32 took half the time on the embedded
model (docs/performance.md). Looks at the machine that plans; a cluster whose nodes differ types its dtype.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from banpick_exp.models.language import language_part

Dtype = Literal["auto", "bfloat16", "float16", "float32"]

NATIVE_BFLOAT16 = ("avx512_bf16", "amx_bf16", "bf16")
"""Flags of /proc/cpuinfo on x86 and, the last, on ARM."""
BYTES = {"bfloat16": 2, "float16": 2, "float32": 4}
FLOAT32_SHARE = 0.5
"""Of the machine's memory that float32 weights may take: prepacking holds some of them twice for a while."""
TYPED = "as typed"


@dataclass(frozen=True, slots=True)
class Machine:
    """What the choice depends on."""

    native_bfloat16: str | None
    """The flag that says so; None where the CPU has none."""
    memory_bytes: int


@dataclass(frozen=True, slots=True)
class Stored:
    """How a checkpoint's weights lie on the disk."""

    dtype: str | None = None
    """None where no file says."""
    bytes: int = 0
    quantised: bool = False


@dataclass(frozen=True, slots=True)
class Computed:
    """The number format of an engine, and why."""

    dtype: Dtype
    """`auto`: left to vLLM, which takes the checkpoint's."""
    reason: str


def stored_dtype(config: dict[str, Any], weight_bytes: int) -> Stored:
    """What config.json says of the weights' format."""
    part = language_part(config)
    named = next((value for key in ("dtype", "torch_dtype") if isinstance(value := part.get(key), str)), None)
    quantised = any(key in {**config, **part} for key in ("quantization_config", "compression_config"))
    return Stored(named if named in BYTES else None, weight_bytes, quantised)


def computed_dtype(asked: Dtype, stored: Stored, *, on_gpu: bool, machine: Machine | None = None) -> Computed:
    """The format for `asked`; a typed one stands."""
    if asked != "auto":
        return Computed(asked, TYPED)
    if stored.quantised or stored.dtype is None:
        return Computed("auto", "vLLM takes the checkpoint's own")
    if on_gpu:
        # float32 checkpoints are halved, as vLLM's own `auto` does.
        return Computed("float16" if stored.dtype == "float16" else "bfloat16", "the checkpoint's own, on a GPU")
    machine = machine or this_machine()
    if machine.native_bfloat16 is not None and stored.dtype != "float16":
        return Computed("bfloat16", f"this CPU multiplies it itself ({machine.native_bfloat16})")
    float32_bytes = stored.bytes // BYTES[stored.dtype] * BYTES["float32"]
    none_there = "this CPU does not multiply bfloat16 itself (no avx512_bf16, no amx_bf16)"
    if float32_bytes <= FLOAT32_SHARE * machine.memory_bytes:
        return Computed("float32", f"{none_there}, so float32 is faster")
    sizes = f"{float32_bytes / 2**30:.0f} of {machine.memory_bytes / 2**30:.0f} GiB of memory"
    return Computed("bfloat16", f"{none_there}, but float32 weights would take {sizes}")


@functools.cache
def this_machine() -> Machine:
    """Read from /proc; where there is none, a CPU without bfloat16 and memory without end."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
        flags = {word for line in lines if line.lower().startswith(("flags", "features")) for word in line.split()}
        memory = Path("/proc/meminfo").read_text(encoding="utf-8").split("MemTotal:")[1].split()[0]
    except (OSError, IndexError):
        return Machine(None, 2**63)
    return Machine(next((flag for flag in NATIVE_BFLOAT16 if flag in flags), None), int(memory) * 1024)
