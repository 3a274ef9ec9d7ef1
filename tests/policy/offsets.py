"""Files of router-logit offsets for the tests, written by safetensors itself."""

import tempfile
from pathlib import Path

import torch
from safetensors.torch import save_file

FOLDER = tempfile.TemporaryDirectory(prefix="offsets-")


def offset_file(name: str, offset: torch.Tensor, key: str = "logit_offset") -> str:
    """Write `offset` under `name` (an earlier file of that name is replaced), and give its path."""
    path = Path(FOLDER.name) / f"{name}.safetensors"
    save_file({key: offset.contiguous()}, path)
    return str(path)
