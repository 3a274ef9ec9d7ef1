"""What a checkpoint is, read from its files without torch, and its identity: what its answers come from."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from pathlib import Path

from banpick_exp.models.dtype import Stored
from banpick_exp.models.shape import MoeShape

CONTROL_RECIPE = 1
"""Part of a control model's identity: raise it when the way the control is built changes."""


WHOLE_FILE_LIMIT = 64 * 2**20
"""Bytes: weights are hashed whole up to here, larger ones by size and both ends of each file."""
END_BYTES = 2**20

WEIGHTS = "*.safetensors"
TOKENIZERS = (
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer.model.v*",
    "tekken.json",
    "*.tiktoken",
    "tiktoken.model",
    "spiece.model",
    "sentencepiece.bpe.model",
    "vocab.json",
    "vocab.txt",
    "tokenization_*.py",
)
"""Any of these can make tokens of a prompt."""
IDENTITY_FILES = (
    "config.json",
    # Which tokens a prompt becomes, and which text an answer.
    *TOKENIZERS,
    "tokenizer_config.json",
    "merges.txt",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.*",
    "additional_chat_templates/*",
    # How it generates, and how its weights are read.
    "generation_config.json",
    "*.safetensors.index.json",
    "quant*_config.json",
    "hf_quant_config.json",
    "params.json",
    "*.py",
)
"""Patterns of the files beside the weights that can change an answer, hashed whole."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Base:
    """What a static method (pruning, merging) made a checkpoint from."""

    identity: str
    num_experts: int
    expert_bytes: float | None
    """Share of its bytes in routed experts that the checkpoint still has; None where that is not known."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Checkpoint:
    """A checkpoint to plan with."""

    location: str
    """A folder, or a Hugging Face id."""
    identity: str
    shape: MoeShape
    missing: str | None = None
    """What a real run still needs; None when complete."""
    notes: tuple[str, ...] = ()
    """What to tell the user: what was typed against config.json, and a count that cannot be sure."""
    max_positions: int | None = None
    """Tokens of prompt and answer that vLLM allows at most (`engine.max_model_len`); None where no file says."""
    stored: Stored = field(default_factory=Stored)
    """How its weights lie on the disk."""
    base: Base | None = None
    """Of one with model.made_from: its points belong into the comparison of that checkpoint."""


def folder_identity(folder: Path) -> str:
    """SHA-256 (16 hex digits) over `IDENTITY_FILES` and every weight file; above 64 MiB of these, over their ends."""
    digest = hashlib.sha256()
    weights = weight_files(folder)
    whole = sum(path.stat().st_size for path in weights) <= WHOLE_FILE_LIMIT
    for path in [*identity_files(folder), *weights]:
        size = path.stat().st_size
        digest.update(f"{path.relative_to(folder).as_posix()}\0{size}\0".encode())
        with path.open("rb") as file:
            if whole or size <= 2 * END_BYTES or path not in weights:
                digest.update(file.read())
            else:
                digest.update(file.read(END_BYTES))
                file.seek(size - END_BYTES)
                digest.update(file.read(END_BYTES))
    return digest.hexdigest()[:16]


def identity_files(folder: Path) -> list[Path]:
    """What `IDENTITY_FILES` finds in `folder`, each once, sorted by name."""
    return sorted({path for pattern in IDENTITY_FILES for path in folder.glob(pattern) if path.is_file()})


def weight_files(folder: Path) -> list[Path]:
    return sorted(folder.glob(WEIGHTS))
