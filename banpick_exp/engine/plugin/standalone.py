"""One layer of vLLM's CPU experts without an engine: what `bench moe` times, and what a unit test can hold.

Shapes: T tokens, E experts, S slots, H hidden size, I intermediate size.
"""

from __future__ import annotations

import torch
from torch import Tensor
from vllm._custom_ops import cpu_fused_moe, cpu_prepack_moe_weight
from vllm.model_executor.layers.fused_moe.experts.cpu_moe import X86CPUUnquantizedExperts
from vllm.platforms import CpuArchEnum, current_platform

from banpick_exp.engine.plugin.amx import allow_tiles


class BareExperts:
    """Random gate-up and down projections of E experts (normal, deviation 0.02), packed as the engine packs them."""

    def __init__(self, experts: int, hidden: int, intermediate: int, dtype: torch.dtype, seed: int = 0) -> None:
        current_platform.import_kernels()
        allow_tiles()
        self.isa = _isa() if dtype == torch.bfloat16 else "vec"
        self.expert_numbers = 3 * hidden * intermediate
        generator = torch.Generator().manual_seed(seed)
        shapes = ((experts, 2 * intermediate, hidden), (experts, hidden, intermediate))
        self._w13, self._w2 = (
            cpu_prepack_moe_weight(torch.empty(shape, dtype=dtype).normal_(0, 0.02, generator=generator), self.isa)
            for shape in shapes
        )

    def run(self, output_TH: Tensor, hidden_TH: Tensor, weights_TS: Tensor, ids_TS: Tensor) -> None:
        """Stock: every slot is computed. Weights float32 and ids int32, contiguous; written into `output_TH`."""
        biases = (None, None)
        cpu_fused_moe(output_TH, hidden_TH, self._w13, self._w2, *biases, weights_TS, ids_TS, "silu", self.isa, False)


def _isa() -> str:
    """The instruction set that vLLM takes for bfloat16 on this machine."""
    if current_platform.get_cpu_architecture() == CpuArchEnum.ARM:
        return "neon"
    return "amx" if X86CPUUnquantizedExperts._supports_current_device() else "vec"
