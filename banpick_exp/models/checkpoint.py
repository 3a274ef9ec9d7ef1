"""What a checkpoint is, read from its files without torch: its shape, its identity, and whether we can hook it."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from banpick_exp.models.shape import MoeShape

CONTROL_RECIPE = 1
"""Part of a control model's identity: raise it when the way the control is built changes."""


WHOLE_FILE_LIMIT = 64 * 2**20
"""Bytes: smaller checkpoints are hashed whole, larger ones by size and both ends of each file."""
END_BYTES = 2**20


@dataclass(frozen=True, kw_only=True, slots=True)
class Checkpoint:
    """`location` is a folder or a Hugging Face id; `missing` says what a real run still needs, None when complete."""

    location: str
    identity: str
    shape: MoeShape
    missing: str | None = None


def folder_identity(folder: Path) -> str:
    """SHA-256 (16 hex digits) over config.json and every weight file; above 64 MiB, over names, sizes and file ends."""
    digest = hashlib.sha256()
    files = weight_files(folder)
    whole = sum(path.stat().st_size for path in files) <= WHOLE_FILE_LIMIT
    config = folder / "config.json"
    for path in [*([config] if config.is_file() else []), *files]:
        size = path.stat().st_size
        digest.update(f"{path.name}\0{size}\0".encode())
        with path.open("rb") as file:
            if whole or path == config or size <= 2 * END_BYTES:
                digest.update(file.read())
            else:
                digest.update(file.read(END_BYTES))
                file.seek(size - END_BYTES)
                digest.update(file.read(END_BYTES))
    return digest.hexdigest()[:16]


def weight_files(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.safetensors"))
