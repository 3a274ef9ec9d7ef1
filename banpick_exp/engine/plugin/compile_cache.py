"""Which folder of vLLM's compile cache an engine uses, and which a stock engine would: they must never be the same one.

How vLLM 0.32 names it (compilation/decorators.py, `__call__` of a compiled module): SHA-256 over the hashes of the
environment (`envs.compile_factors`) and of the configuration, and over the module's forward function. A stock engine of
the same checkpoint differs in the environment alone, by VLLM_PLUGINS.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import torch
from vllm import envs
from vllm.compilation.caching import aot_compile_hash_factors
from vllm.compilation.decorators import _model_hash_key
from vllm.config import VllmConfig
from vllm.config.utils import hash_factors, normalize_value

from banpick_exp.engine.types import CacheKeys


def cache_keys(config: VllmConfig, model: torch.nn.Module) -> CacheKeys:
    """Those of a loaded engine."""
    compilation = config.compilation_config
    used = compilation.local_cache_dir or compilation.cache_dir or ""
    env = envs.compile_factors()
    ours, stock = (hash_factors(e) for e in (env, env | {"VLLM_PLUGINS": normalize_value(None)}))
    rest = aot_compile_hash_factors(config)[1:]
    for forward in {_model_hash_key(module.forward) for module in model.modules() if hasattr(module, "aot_compile")}:
        ours_key, stock_key = (hashlib.sha256(str([e, *rest, forward]).encode()).hexdigest() for e in (ours, stock))
        if ours_key in Path(used).parts:
            return CacheKeys(ours=ours_key, stock=stock_key, used=ours_key, exact=True)
    return CacheKeys(ours=ours, stock=stock, used=Path(used).name, exact=False)
