"""Folders that look like a checkpoint to the plan: a config.json, weights with a true header, a tokenizer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def safetensors(content: bytes = b"weights") -> bytes:
    """A safetensors file of one tensor of bytes."""
    tensor = {"dtype": "U8", "shape": [len(content)], "data_offsets": [0, len(content)]}
    header = json.dumps({"weight": tensor}).encode()
    return len(header).to_bytes(8, "little") + header + content


def write_checkpoint(folder: Path, weights: bytes | None = b"weights", **changes: Any) -> Path:
    """A Qwen3-MoE of 2 layers, 16 experts and 4 a token; a change to None removes the key, `weights` None the file."""
    config: dict[str, Any] = {
        "architectures": ["Qwen3MoeForCausalLM"],
        "num_hidden_layers": 2,
        "num_experts": 16,
        "num_experts_per_tok": 4,
    }
    config = {key: value for key, value in (config | changes).items() if value is not None}
    return write_folder(folder, config, weights)


def write_folder(folder: Path, config: Any, weights: bytes | None = b"weights") -> Path:
    """`config` as config.json, `weights` as the one tensor of model.safetensors, and a tokenizer.json."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "tokenizer.json").write_text("{}")
    if weights is not None:
        (folder / "model.safetensors").write_bytes(safetensors(weights))
    return folder
