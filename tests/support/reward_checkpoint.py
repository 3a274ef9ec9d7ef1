"""Reward models for tests: as much of a folder as a plan reads, and one that Transformers can load."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from checkpoint_folder import write_folder

from banpick_exp.models.inspect import EMBEDDED_CHECKPOINT

HEAD = {"architectures": ["Qwen3ForSequenceClassification"], "id2label": {"0": "LABEL_0"}}


def reward_folder(folder: Path, weights: bytes | None = b"weights", **changes: Any) -> Path:
    """As much as a plan reads; a change to None removes the key, `weights` None the file."""
    config = {key: value for key, value in (HEAD | changes).items() if value is not None}
    return write_folder(folder, config, weights)


def reward_model(folder: Path, *, template: str | None = None, positions: int = 256, seed: int = 0) -> Path:
    """Random weights (2 layers, 16 wide) that read with the embedded model's tokenizer."""
    import torch
    from transformers import Qwen3Config, Qwen3ForSequenceClassification

    torch.manual_seed(seed)
    config = Qwen3Config(
        vocab_size=128, hidden_size=16, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2, head_dim=8,
        num_key_value_heads=1, max_position_embeddings=positions, num_labels=1, pad_token_id=0, eos_token_id=2,
        initializer_range=0.5,
    )  # fmt: skip
    Qwen3ForSequenceClassification(config).save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(EMBEDDED_CHECKPOINT / name, folder / name)
    if template is not None:
        path = folder / "tokenizer_config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"chat_template": template}))
    return folder
