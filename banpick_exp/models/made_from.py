"""A checkpoint that a static method (pruning, merging) made from another: held against it only where that is fair.

Accuracies are paired problem by problem and experts kept are counted per token and layer, so both checkpoints must read
the same prompts as the same tokens and have as many layers of experts. How many experts are left, and what they weigh,
is what a static method saves.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from banpick_exp.errors import UserError
from banpick_exp.models.checkpoint import TOKENIZERS, Base, Checkpoint
from banpick_exp.models.folder import read_json
from banpick_exp.models.sizes import sizes_of

SPLITTING = (*TOKENIZERS, "merges.txt", "added_tokens.json")
"""Which tokens a text becomes."""


def made_from(checkpoint: Checkpoint, base: Checkpoint, typed: str) -> Checkpoint:
    """The checkpoint with its base; as it is where it is the base itself (for a Hub id, at
    whatever revision). `typed`: model.made_from.

    Raises UserError where the two cannot be compared.
    """
    if checkpoint.identity == base.identity or checkpoint.location == base.location:
        return checkpoint
    ours, theirs = checkpoint.shape, base.shape
    if ours.num_layers != theirs.num_layers:
        raise UserError(
            f"{checkpoint.location} has {ours.num_layers} layers with experts, model.made_from={typed} has"
            f" {theirs.num_layers}: experts kept per token and layer would be no common budget. Type"
            " model.made_from=null, and it is measured with a front of its own."
        )
    folder, other = Path(checkpoint.location), Path(base.location)
    notes = checkpoint.notes
    if not (folder.is_dir() and other.is_dir()):
        notes += (
            f"whether {checkpoint.location} has the tokenizer of model.made_from={typed} was not looked at, because"
            " not both are folders here: with another one their accuracies are no comparison",
        )
    elif (differing := _other_tokens(folder, other)) is not None:
        raise UserError(
            f"{folder} was made from {typed} as model.made_from says, but their {differing} differs: they read the"
            " problems as other tokens, so their accuracies are no comparison. Copy the tokenizer's files from there,"
            " or type model.made_from=null for a front of its own."
        )
    found = Base(identity=base.identity, num_experts=theirs.num_experts, expert_bytes=_expert_bytes(checkpoint, base))
    return dataclasses.replace(checkpoint, base=found, notes=notes)


def _expert_bytes(checkpoint: Checkpoint, base: Checkpoint) -> float | None:
    """Share of the base's bytes in routed experts that is left; None where no config.json says how wide these are."""
    ours, theirs = (sizes_of(each.location, each.shape) for each in (checkpoint, base))
    return ours.routed_bytes / theirs.routed_bytes if ours.known and theirs.known else None


def _other_tokens(folder: Path, base: Path) -> str | None:
    """The first file that both have and that says otherwise, or what one alone has; None where nothing differs."""
    common = 0
    for name in sorted({path.name for pattern in SPLITTING for each in (folder, base) for path in each.glob(pattern)}):
        ours, theirs = folder / name, base / name
        if not (ours.is_file() and theirs.is_file()):
            continue
        common += 1
        if _content(ours) != _content(theirs):
            return name
    if not common:
        return "tokenizer (no file of it is in both folders)"
    return "chat template" if _chat_template(folder) != _chat_template(base) else None


def _content(path: Path) -> Any:
    """Of JSON the meaning: who saves it again may lay it out anew."""
    return read_json(path) if path.suffix == ".json" else path.read_bytes()


def _chat_template(folder: Path) -> Any:
    """From the file of its own that newer versions of Transformers write, or from tokenizer_config.json."""
    file, settings = folder / "chat_template.jinja", folder / "tokenizer_config.json"
    if file.is_file():
        return file.read_text(encoding="utf-8")
    return read_json(settings).get("chat_template") if settings.is_file() else None
