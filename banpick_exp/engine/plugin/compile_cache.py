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


def cache_keys(config: VllmConfig, model: torch.nn.Module) -> dict[str, str | bool]:
    """`ours` and `stock`: the cache keys; `used`: the folder the engine works in, empty where it compiled nothing.

    `exact`: `ours` was rebuilt to the name of that folder, so `stock` is a folder's name too; otherwise both are hashes
    of the environment alone.
    """
    compilation = config.compilation_config
    used = compilation.local_cache_dir or compilation.cache_dir or ""
    env = envs.compile_factors()
    ours, stock = (hash_factors(e) for e in (env, env | {"VLLM_PLUGINS": normalize_value(None)}))
    rest = aot_compile_hash_factors(config)[1:]
    for forward in {_model_hash_key(module.forward) for module in model.modules() if hasattr(module, "aot_compile")}:
        ours_key, stock_key = (hashlib.sha256(str([e, *rest, forward]).encode()).hexdigest() for e in (ours, stock))
        if ours_key in Path(used).parts:
            return {"ours": ours_key, "stock": stock_key, "used": ours_key, "exact": True}
    return {"ours": ours, "stock": stock, "used": Path(used).name, "exact": False}
