"""A vLLM engine of a few Qwen3-30B layers with random weights, built on the fly: real kernels and scheduler."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from banpick_exp.engine.config import EngineConfig
from banpick_exp.engine.engine import Engine
from banpick_exp.engine.random_weights import LOAD_FORMAT
from banpick_exp.evaluation.bench.layer import EXPERTS, HIDDEN, INTERMEDIATE, STORED, TOP_K, BenchDtype
from banpick_exp.models.config import ModelConfig
from banpick_exp.policy.calibration import Calibration, Influence

BENCH_WORKER = "banpick_exp.evaluation.bench.worker.BenchExtension"
VOCABULARY = 1024
SENSITIVITY = (0.2, 0.4, 0.6, 0.8)
"""Of the layers in turn: made up, since random weights have none."""


def config(layers: int) -> dict[str, Any]:
    """The config.json: Qwen3-30B-A3B but for the number of layers and the vocabulary."""
    return {
        "architectures": ["Qwen3MoeForCausalLM"],
        "model_type": "qwen3_moe",
        "hidden_size": HIDDEN,
        "intermediate_size": 6144,
        "moe_intermediate_size": INTERMEDIATE,
        "num_hidden_layers": layers,
        "num_attention_heads": 32,
        "num_key_value_heads": 4,
        "head_dim": 128,
        "num_experts": EXPERTS,
        "num_local_experts": EXPERTS,
        "num_experts_per_tok": TOP_K,
        "norm_topk_prob": True,
        "decoder_sparse_step": 1,
        "mlp_only_layers": [],
        "vocab_size": VOCABULARY,
        "max_position_embeddings": 4096,
        "rope_theta": 1e6,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e6},
        "rms_norm_eps": 1e-6,
        "hidden_act": "silu",
        "tie_word_embeddings": False,
        "attention_bias": False,
        "torch_dtype": STORED,
    }


def open_engine(
    folder: Path, checkpoint: dict[str, Any], dtype: BenchDtype, threads: int, prefill: int, rows: int = 1
) -> Engine:
    """A started engine of random weights. `folder` gets `checkpoint`, which is what `config` says or a variant."""
    (folder / "config.json").write_text(json.dumps(checkpoint))
    layers = checkpoint["num_hidden_layers"]
    settings = EngineConfig(
        cpus=threads, max_model_len=4096, max_num_seqs=64, max_num_batched_tokens=max(4096, prefill), kv_cache_gib=2
    )
    options = {"load_format": LOAD_FORMAT, "skip_tokenizer_init": True, "async_scheduling": False}
    model = ModelConfig(name="random", dtype=dtype)
    engine = Engine(model, str(folder), settings, layers, options, worker=BENCH_WORKER, rows=rows)
    engine.start()
    calibration = Calibration(
        influence=tuple(Influence(layer, expert, 1.0) for layer in range(layers) for expert in range(4)),
        layer_sensitivity=tuple(SENSITIVITY[layer % len(SENSITIVITY)] for layer in range(layers)),
        r_min=0.4,
        r_max=0.9,
    )
    engine.load_calibration("random", calibration)
    return engine
