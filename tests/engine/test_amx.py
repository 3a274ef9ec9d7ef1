"""An engine may use AMX tiles before any other library of its process has asked for them."""

import subprocess
import sys

import pytest
import torch

from banpick_exp.engine.plugin import amx

PERMITTED = """
import ctypes
import torch
{before}
from banpick_exp.engine.plugin.amx import allow_tiles
allow_tiles()
permitted = ctypes.c_ulong()
ARCH_GET_XCOMP_PERM, TILE_DATA, ARCH_PRCTL = 0x1022, 1 << 18, 158
assert ctypes.CDLL(None).syscall(ARCH_PRCTL, ARCH_GET_XCOMP_PERM, ctypes.byref(permitted)) == 0
print(bool(permitted.value & TILE_DATA))
"""


@pytest.mark.skipif(not torch.cpu._is_amx_tile_supported(), reason="a CPU without AMX")
@pytest.mark.parametrize("before", ["", "torch.cpu._init_amx()"], ids=["first", "asked_before"])
def test_a_process_is_permitted_to_use_tiles(before: str) -> None:
    done = subprocess.run([sys.executable, "-c", PERMITTED.format(before=before)], capture_output=True, text=True)
    assert done.stdout.strip() == "True", done.stderr


def test_nothing_is_asked_where_there_are_no_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    def asked() -> bool:
        raise AssertionError("asked")

    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    monkeypatch.setattr(torch.cpu, "_init_amx", asked)
    amx.allow_tiles()


def test_a_refusal_is_said_before_the_kernel_is_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: True)
    monkeypatch.setattr(torch.cpu, "_init_amx", lambda: False)
    with pytest.raises(RuntimeError, match=r"model\.dtype=float32"):
        amx.allow_tiles()
