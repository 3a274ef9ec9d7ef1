"""kernels/ is a source root of its own: it imports where neither the experiments nor vLLM are installed."""

from __future__ import annotations

import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest

import banpick_kernels

MODULES = sorted(module.name for module in pkgutil.iter_modules(banpick_kernels.__path__))
ROOT = Path(banpick_kernels.__path__[0]).parent

ALONE = """
import importlib, sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("banpick_exp", "vllm"):
            raise ImportError(f"{name} is not installed here")
sys.meta_path.insert(0, Absent())
for name in sys.argv[1:]:
    importlib.import_module(f"banpick_kernels.{name}")
print("torch" in sys.modules)
"""


@pytest.mark.parametrize(("modules", "torch"), [(MODULES, True), (["layer_hooks"], False)])
def test_it_imports_alone(modules: list[str], torch: bool) -> None:
    """And `layer_hooks` without torch: planning loads it with the rules."""
    done = subprocess.run(
        [sys.executable, "-c", ALONE, *modules], cwd=ROOT, env={"PYTHONPATH": str(ROOT)}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == str(torch)
