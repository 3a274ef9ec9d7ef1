"""A process asks Linux once before it may use AMX tiles, on Intel CPUs that have them.

What fails without it: vLLM 0.32's expert kernel (`csrc/cpu/micro_gemm/cpu_micro_gemm_amx.hpp`) uses tiles and asks for
nothing, so it ends the process with SIGILL unless something else has asked before: oneDNN does, at the first dense
product. Our self-test runs a layer's experts before any forward pass, and so does `bench moe`.

Why it is safe: the permission is the process's own, all threads included, and only enlarges what a signal saves
(https://docs.kernel.org/arch/x86/xstate.html). Asking twice is asking once.
"""

from __future__ import annotations

import torch


def allow_tiles() -> None:
    """Ask where the CPU has tiles. Raises RuntimeError where Linux refuses: the expert kernel would kill the engine."""
    if torch.cpu._is_amx_tile_supported() and not torch.cpu._init_amx():
        raise RuntimeError(
            "this CPU has AMX and Linux gives this process no permission to use it (arch_prctl"
            " ARCH_REQ_XCOMP_PERM): vLLM's expert kernel would end it with SIGILL. Type model.dtype=float32"
        )
