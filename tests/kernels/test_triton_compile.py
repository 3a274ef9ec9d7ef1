"""Registers, spills, shared memory and barriers of the Triton router, from compiling it for GPUs that are not here."""

from __future__ import annotations

import pytest

from banpick_kernels.resources import TARGETS, VARIANTS, measure
from banpick_kernels.triton_kernel import max_registers

MAIN = "everything on"
WIDEST = "widest, correction, stock"
OTHERS = [name for name in TARGETS if name != "cuda:90"]


@pytest.mark.parametrize("name", VARIANTS)
def test_registers_on_sm_90(name: str) -> None:
    variant = VARIANTS[name]
    found = measure(variant, TARGETS["cuda:90"])
    bound = max_registers(variant.num_experts, variant.block_tokens, variant.correction)
    assert found.registers <= bound <= 96
    assert (found.local, found.stack, found.shared, found.barriers) == (0, 0, 0, 0)


def test_the_bound_of_the_main_variant_is_48() -> None:
    assert max_registers(VARIANTS[MAIN].num_experts, VARIANTS[MAIN].block_tokens, False) == 48


@pytest.mark.slow
@pytest.mark.parametrize("target", OTHERS)
@pytest.mark.parametrize("name", [MAIN, WIDEST])
def test_registers_on_other_gpus(name: str, target: str) -> None:
    found = measure(VARIANTS[name], TARGETS[target])
    assert found.registers <= 96
    assert (found.local, found.stack) == (0, 0)
