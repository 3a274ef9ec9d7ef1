"""What a checkpoint is, read from its files without torch: its shape, its identity, and whether we can hook it."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from banpick_exp.errors import UserError
from banpick_exp.models.checkpoint import CONTROL_RECIPE, Checkpoint, folder_identity, weight_files
from banpick_exp.models.config import ModelConfig
from banpick_exp.models.families import BYPASSING_ARCHITECTURES, EXPERT_KEYS, TOP_K_KEYS, first_int, moe_layer_count
from banpick_exp.models.shape import MoeShape

EMBEDDED_CHECKPOINT = Path(__file__).parent / "tiny" / "assets" / "checkpoint"

HUB_ID = re.compile(r"^[A-Za-z0-9][\w.-]*/[\w.-]+$")


def inspect_checkpoint(model: ModelConfig) -> Checkpoint:
    """Reads what `model` names. No network: a Hugging Face id is taken at its word, with the sizes from the YAML.

    Raises UserError for a folder without config.json, a dense model, an architecture that bypasses the hook, and
    sizes that are unknown or disagree with config.json.
    """
    if model.path is None:
        return _embedded(model)
    folder = Path(model.path).expanduser()
    if folder.is_dir():
        return Checkpoint(
            location=str(folder.resolve()),
            identity=folder_identity(folder),
            shape=_agreed_shape(model, shape_of_folder(folder), folder),
            missing=None if weight_files(folder) else f"{folder} holds no weights (*.safetensors)",
        )
    if folder.exists() or not HUB_ID.match(model.path):
        raise UserError(
            f"model.path={model.path} is no folder and no Hugging Face id (owner/name): there is nothing to load."
            " Type the folder that holds config.json, or e.g. model.path=Qwen/Qwen3-30B-A3B."
        )
    identity = f"hub:{model.path}@{model.revision or 'main'}"
    return Checkpoint(location=model.path, identity=identity, shape=_shape_from_settings(model))


def _embedded(model: ModelConfig) -> Checkpoint:
    folder = EMBEDDED_CHECKPOINT
    if (folder / "config.json").is_file() and weight_files(folder):
        identity, shape, missing = folder_identity(folder), _agreed_shape(model, shape_of_folder(folder), folder), None
    else:
        identity, shape = "unbuilt", _shape_from_settings(model)
        missing = (
            "the embedded model is not in this installation. Type python -m banpick_exp tiny to train it (15 minutes)"
        )
    if model.control is not None:
        identity = f"control:{CONTROL_RECIPE}:{model.control}:{identity}"
    return Checkpoint(location=str(folder), identity=identity, shape=shape, missing=missing)


def shape_of_folder(folder: Path) -> MoeShape:
    """MoE layers, routed experts and experts per token, from `folder`/config.json."""
    path = folder / "config.json"
    if not path.is_file():
        raise UserError(
            f"model.path={folder} has no config.json, so it is no Hugging Face checkpoint and no engine can load it."
            " Type the folder that holds config.json and the *.safetensors files."
        )
    try:
        whole = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise UserError(
            f"{path} cannot be read ({error}): the checkpoint is damaged. Copy or download it again."
        ) from None
    if not isinstance(whole, dict):
        raise UserError(
            f"{path} holds a {type(whole).__name__}, not an object: the checkpoint is damaged. Copy it again."
        )
    architectures = [str(name) for name in whole.get("architectures") or []]
    for name in architectures:
        if name.startswith(BYPASSING_ARCHITECTURES):
            raise UserError(
                f"model.path={folder} is a {name}: vLLM builds its experts outside the runner we hook, so every policy"
                " would silently do nothing. Use a checkpoint of another family, e.g. model=qwen3_30b_a3b."
            )
    text = whole.get("text_config")
    config: dict[str, Any] = {**whole, **text} if isinstance(text, dict) else whole
    experts, top_k = first_int(config, EXPERT_KEYS), first_int(config, TOP_K_KEYS)
    layers = moe_layer_count(config)
    if experts < 2 or layers < 1:
        label = ", ".join(architectures) or "an unnamed architecture"
        raise UserError(
            f"model.path={folder} is a dense model ({label}): it has no experts to route between, so no policy can act."
            " Use a mixture-of-experts checkpoint, e.g. model=tiny or model=qwen3_30b_a3b."
        )
    if not 1 <= top_k <= experts:
        raise UserError(
            f"{path} gives {experts} experts but {top_k or 'no number of'} experts per token: the budget would be"
            f" unknown. It must hold one of {', '.join(TOP_K_KEYS[:3])}, from 1 to {experts}."
        )
    return MoeShape(num_layers=layers, num_experts=experts, top_k=top_k)


def _agreed_shape(model: ModelConfig, found: MoeShape, folder: Path) -> MoeShape:
    for key in ("num_layers", "num_experts", "top_k"):
        stated, real = getattr(model, key), getattr(found, key)
        if stated is not None and stated != real:
            raise UserError(
                f"model.{key}={stated}, but {folder / 'config.json'} says {real}: policies would be laid out for"
                f" another model. Type model.{key}=null to take it from config.json, or model=local model.path=FOLDER."
            )
    return found


def _shape_from_settings(model: ModelConfig) -> MoeShape:
    if model.num_layers is None or model.num_experts is None or model.top_k is None:
        unknown = [key for key in ("num_layers", "num_experts", "top_k") if getattr(model, key) is None]
        raise UserError(
            f"model.path={model.path} is not a local folder, so its {' and '.join(unknown)} cannot be read and no"
            f" policy can be checked. Type {' '.join(f'model.{key}=NUMBER' for key in unknown)}; only MoE layers count."
        )
    if model.top_k > model.num_experts:
        raise UserError(
            f"model.top_k={model.top_k} exceeds model.num_experts={model.num_experts}: no router can select that many."
            f" Type model.top_k=1..{model.num_experts}."
        )
    return MoeShape(num_layers=model.num_layers, num_experts=model.num_experts, top_k=model.top_k)
