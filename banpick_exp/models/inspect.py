"""What a checkpoint is, read from its files without torch: its shape, its identity, and whether we can hook it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from banpick_exp.errors import UserError
from banpick_exp.models.checkpoint import CONTROL_RECIPE, Checkpoint, folder_identity, weight_files
from banpick_exp.models.config import ModelConfig
from banpick_exp.models.dtype import Stored, stored_dtype
from banpick_exp.models.families import TOP_K_KEYS, UNKNOWN, Family, family_of
from banpick_exp.models.folder import check_folder, missing_files, read_json
from banpick_exp.models.language import WRAPPERS, experts_elsewhere, language_part, speaks_of_experts, without_nulls
from banpick_exp.models.moe_layers import TOTAL_KEYS, as_int, first_int, shown, total_layers
from banpick_exp.models.numbers import refuse_no_numbers
from banpick_exp.models.quantisation import Quantisation, quantisation_of
from banpick_exp.models.routing import Routing, routing_of
from banpick_exp.models.shape import MoeShape

EMBEDDED_CHECKPOINT = Path(__file__).parent / "tiny" / "assets" / "checkpoint"

HUB_ID = re.compile(r"^[A-Za-z0-9][\w.-]*/[\w.-]+$")

POSITION_KEYS = (
    "max_position_embeddings",
    "n_positions",
    "max_seq_len",
    "seq_length",
    "model_max_length",
    "max_sequence_length",
    "max_seq_length",
    "seq_len",
)
"""Where vLLM 0.32 looks for the longest sequence (model_arch_config_convertor.derive_max_model_len_and_key)."""
UNSCALED_ROPES = ("su", "longrope", "llama3", "yarn", "deepseek_yarn", "deepseek_llama_scaling", "default")
"""Kinds of rope scaling whose factor vLLM does not multiply the positions with."""

MOST_SCALED = 1e6
"""A rope factor beyond is damage."""

SIZE_WORDS = {
    "num_layers": "layer that has them",
    "num_experts": "number of experts a layer",
    "top_k": "number of experts per token",
}
SIZES = tuple(SIZE_WORDS)
MOST_EXPERTS = 2**16
"""No model has more; a damaged number must not fill the memory."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Described:
    """What a config.json says of its experts; None where it does not say."""

    family: Family
    architectures: tuple[str, ...]
    total: int
    """All layers, dense ones too."""
    layers: tuple[int, ...]
    """Those that have experts, counted from 0 over all."""
    num_layers: int | None
    num_experts: int | None
    top_k: int | None
    routing: Routing
    quantisation: Quantisation | None
    denied: bool
    """A count of experts is there, and it is 0."""
    doubts: tuple[str, ...]
    """What makes the number of MoE layers doubtful."""

    @property
    def label(self) -> str:
        return ", ".join(self.architectures) or "an unnamed architecture"


def inspect_checkpoint(model: ModelConfig) -> Checkpoint:
    """Reads what `model` names. No network: a Hugging Face id is taken at its word, with the sizes from the YAML.

    Raises UserError for a folder that is no checkpoint or a damaged one, a dense model, an architecture that vLLM
    cannot load or that bypasses the hook, and sizes that are unknown or disagree with config.json.
    """
    if model.path is None:
        return _embedded(model)
    folder = _folder(model.path)
    if folder is not None:
        check_folder(folder)
        shape, unhooked, notes = read_shape(model, folder)
        missing = missing_files(folder)
        return Checkpoint(
            location=str(folder.resolve()),
            identity=folder_identity(folder),
            shape=shape,
            missing=unhooked or missing,
            notes=notes,
            max_positions=_max_positions(folder),
            stored=_stored(folder),
        )
    identity = f"hub:{model.path}@{model.revision or 'main'}"
    return Checkpoint(location=model.path, identity=identity, shape=_shape_from_settings(model))


def check_max_model_len(checkpoint: Checkpoint, max_model_len: int) -> None:
    """Raise UserError where an engine with `max_model_len` would not start on this checkpoint."""
    most = checkpoint.max_positions
    if most is not None and max_model_len > most:
        raise UserError(
            f"engine.max_model_len={max_model_len} is more than the {most} positions that {checkpoint.location} was"
            f" made for: the engine would not start. Type engine.max_model_len={most}, or less."
        )


def _folder(path: str) -> Path | None:
    """The folder that `path` names, None for a Hugging Face id. UserError for what is neither."""
    try:
        folder = Path(path).expanduser()
        is_folder, is_there, is_link = folder.is_dir(), folder.exists(), folder.is_symlink()
    except (OSError, RuntimeError, ValueError) as error:
        raise UserError(
            f"model.path={path} cannot be looked up ({error}): there is nothing to load. Type the folder that holds"
            " config.json."
        ) from None
    if is_folder:
        return folder
    if is_there or is_link or not HUB_ID.match(path):
        raise UserError(
            f"model.path={path} is no folder and no Hugging Face id (owner/name): there is nothing to load."
            " Type the folder that holds config.json, or e.g. model.path=Qwen/Qwen3-30B-A3B."
        )
    return None


def _embedded(model: ModelConfig) -> Checkpoint:
    folder = EMBEDDED_CHECKPOINT
    notes: tuple[str, ...] = ()
    positions, stored = None, Stored()
    if (folder / "config.json").is_file() and weight_files(folder):
        missing = missing_files(folder)
        identity, positions, stored = folder_identity(folder), _max_positions(folder), _stored(folder)
        shape, _, notes = read_shape(model, folder)
    else:
        identity, shape = "unbuilt", _shape_from_settings(model)
        missing = (
            "the embedded model is not in this installation. Type python -m banpick_exp tiny to train it (15 minutes)"
        )
    if model.control is not None:
        identity = f"control:{CONTROL_RECIPE}:{model.control}:{identity}"
    return Checkpoint(
        location=str(folder),
        identity=identity,
        shape=shape,
        missing=missing,
        notes=notes,
        max_positions=positions,
        stored=stored,
    )


def _stored(folder: Path) -> Stored:
    return stored_dtype(read_json(folder / "config.json"), sum(path.stat().st_size for path in weight_files(folder)))


# ---------------------------------------------------------------- the shape


def describe(whole: dict[str, Any], place: str, *, refusing: bool = True) -> Described:
    """What a config.json says of its experts. `place` names it in errors.

    Raises UserError for experts that differ from layer to layer and, where `refusing`, for a family that cannot be
    measured.
    """
    architectures = _names(whole.get("architectures"))
    family = family_of(architectures)
    if refusing and family.refused is not None:
        raise UserError(f"{place} is a {', '.join(architectures)}: {family.refused}")
    config = language_part(whole)
    doubts = [
        f"{key}={shown(whole[key])} is no object and was passed over"
        for key in WRAPPERS
        if whole.get(key) is not None and not isinstance(whole[key], dict)
    ]
    if all(first_int(config, (key,)) < 1 for key in family.expert_keys) and (elsewhere := experts_elsewhere(config)):
        doubts.append(f"its experts are described under {elsewhere[0]}")
        config = {**config, **elsewhere[1]}
    for keys in (family.expert_keys, family.top_k_keys):
        for key in keys:
            _refuse_uneven(place, key, config.get(key), total_layers(config))
    _refuse_uneven(place, "n_routed_experts", _of_blocks(config.get("block_configs")), 0)
    counted = family.count(config)
    if family is UNKNOWN:
        named = ", ".join(architectures) or "an unnamed architecture"
        doubts.append(f"{named} is no family known here, so the usual keys were read")
    counts = [number for key in family.expert_keys if (number := as_int(config.get(key))) is not None]
    counts += _of_blocks(config.get("block_configs"))
    experts = next((number for number in counts if number > 0), 0)
    if experts > MOST_EXPERTS:
        raise UserError(f"{place}: config.json counts {experts} experts a layer: it is damaged. Copy it again.")
    return Described(
        family=family,
        architectures=architectures,
        total=total_layers(config),
        layers=tuple(sorted(counted.layers)),
        num_layers=len(counted.layers) or None,
        num_experts=experts or None,
        top_k=next((number for key in family.top_k_keys if (number := first_int(config, (key,))) > 0), None),
        routing=routing_of(config, family.routing),
        quantisation=quantisation_of(whole, config),
        denied=bool(counts) and not experts,
        doubts=(*doubts, *counted.doubts),
    )


def read_shape(model: ModelConfig, folder: Path) -> tuple[MoeShape, str | None, tuple[str, ...]]:
    """Of the folder that `model` names: the shape, why the hook would refuse it (None where it would not), and what to
    tell the user."""
    whole = read_json(folder / "config.json")
    found = describe(whole, f"model.path={folder}")
    # A count of 0 is the config's own word that it has none, whatever a token would select of them.
    said = speaks_of_experts(whole, but=found.family.top_k_keys if found.denied else ())
    if not said:
        raise UserError(
            f"model.path={folder} is a dense model ({found.label}): it has no experts to route between, so no policy"
            " can act. Use a mixture-of-experts checkpoint, e.g. model=tiny or model=qwen3_30b_a3b."
        )
    if found.num_experts == 1 and model.num_experts is None:
        raise UserError(
            f"model.path={folder} has one expert a layer ({', '.join(said)}): there is nothing to route between, so no"
            " policy can act. Use a checkpoint of several experts, e.g. model=tiny or model=qwen3_30b_a3b."
        )
    counts = ((found.num_experts, found.family.expert_keys), (found.top_k, found.family.top_k_keys))
    refuse_no_numbers(folder / "config.json", whole, (*counts, (found.total or None, TOTAL_KEYS)))
    sizes: dict[str, int] = {}
    for key in SIZES:
        size = getattr(model, key) if getattr(found, key) is None else getattr(found, key)
        if size is not None:
            sizes[key] = size
    if unknown := [key for key in SIZES if key not in sizes]:
        lacking = " and no ".join(SIZE_WORDS[key] for key in unknown)
        unread = "".join(f"; {doubt}" for doubt in found.doubts)
        if found.denied and "num_experts" in unknown:
            unread += "; it counts none"
        raise UserError(
            f"model.path={folder}: its config.json speaks of experts ({', '.join(said)}), but has no {lacking} under a"
            f" key that is known here ({found.total} layers in all{unread}): policies could not be laid out. Type"
            f" {' '.join(f'model.{key}=NUMBER' for key in unknown)}; only MoE layers count."
        )
    shape, notes = _agreed(model, found, sizes, folder)
    unhooked = found.family.unhooked
    if unhooked is not None:
        unhooked = f"{folder} holds {found.label}, and {unhooked}. Use a checkpoint of another family"
    return shape, unhooked, notes


def _agreed(
    model: ModelConfig, found: Described, sizes: dict[str, int], folder: Path
) -> tuple[MoeShape, tuple[str, ...]]:
    """What was typed against what config.json says: the number of MoE layers may be corrected, the rest must agree."""
    config, notes = folder / "config.json", []
    for key in SIZES:
        stated, real = getattr(model, key), getattr(found, key)
        if stated is None or stated == real:
            continue
        if real is None:
            notes.append(f"model.{key}={stated} is taken as typed: {config} does not say it.")
        elif key == "num_layers" and stated <= found.total:
            sizes[key] = stated
            notes.append(
                f"model.num_layers={stated} is taken as typed, though {config} was counted as {real} MoE layers: the"
                " engine refuses at its start where it hooks another number."
            )
        else:
            says = f"{found.total} layers" if key == "num_layers" else str(real)
            raise UserError(
                f"model.{key}={stated}, but {config} says {says}: policies would be laid out for another model. Type"
                f" model.{key}=null to take it from config.json, or model=local model.path=FOLDER."
            )
    if found.doubts and model.num_layers is None:
        notes.append(
            f"{sizes['num_layers']} of {found.total} layers of {folder} were counted as MoE layers, and the count may"
            f" be wrong ({'; '.join(found.doubts)}). If the engine hooks another number, type model.num_layers=NUMBER."
        )
    if not 1 <= sizes["top_k"] <= sizes["num_experts"]:
        raise UserError(
            f"{config} gives {sizes['num_experts']} experts but {sizes['top_k']} experts per token: the budget would be"
            f" unknown. It must hold one of {', '.join(TOP_K_KEYS[:3])}, from 1 to {sizes['num_experts']}."
        )
    return MoeShape(**sizes), tuple(notes)


def _shape_from_settings(model: ModelConfig) -> MoeShape:
    if model.num_layers is None or model.num_experts is None or model.top_k is None:
        unknown = [key for key in SIZES if getattr(model, key) is None]
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


def _names(value: object) -> tuple[str, ...]:
    names = value if isinstance(value, list) else [value]
    return tuple(name for name in names if isinstance(name, str))


def _of_blocks(blocks: object) -> list[int]:
    """Routed experts of each MoE block, where a config has an object a layer."""
    moe = [block for block in blocks if isinstance(block, dict)] if isinstance(blocks, list) else []
    return [
        count
        for block in moe
        if block.get("block_type") == "moe" and (count := as_int(block.get("n_routed_experts"))) is not None
    ]


def _refuse_uneven(place: str, key: str, value: object, layers: int) -> None:
    """UserError for one number a layer where they differ; `layers` 0: any list is one number a layer."""
    numbers = {as_int(number) for number in value} if isinstance(value, list) else set()
    if isinstance(value, list) and len(numbers) > 1 and layers in (0, len(value)):
        raise UserError(
            f"{place}: {key}={shown(value)} differs from layer to layer, and policies here have one number of experts"
            " for all layers. Use a checkpoint whose layers are alike, e.g. model=qwen3_30b_a3b."
        )


# ---------------------------------------------------------------- positions


def _max_positions(folder: Path) -> int | None:
    """The longest sequence vLLM 0.32 accepts for a checkpoint, as `_get_and_verify_max_len` (config/model.py) has it.

    Where files leave it open the larger number is taken: what is refused here must be refused there.
    """
    whole = read_json(folder / "config.json")
    config = language_part(whole)
    stated = [number for key in POSITION_KEYS if (number := as_int(config.get(key))) and number > 0]
    if not stated:
        return None
    longest = as_int(config.get("model_max_length")) or min(stated)
    tokenizer = folder / "tokenizer_config.json"
    allowed = as_int(read_json(tokenizer).get("model_max_length")) if tokenizer.is_file() else None
    if allowed and allowed > 0:
        longest = min(longest, allowed)
    scaled = longest * max(_rope_factors(config), default=1.0)
    return int(max(scaled, as_int(whole.get("model_max_length")) or 0))


def _rope_factors(config: dict[str, Any]) -> Iterator[float]:
    """Each above 1, and no more than a model could have."""
    for key in ("rope_scaling", "rope_parameters"):
        scaling = config.get(key)
        if not isinstance(scaling, dict):
            continue
        for rope in (scaling, *(inner for inner in scaling.values() if isinstance(inner, dict))):
            kind = without_nulls(rope).get("rope_type", rope.get("type", "default"))
            factor = rope.get("factor")
            if kind not in UNSCALED_ROPES and isinstance(factor, (int, float)) and 1 < factor <= MOST_SCALED:
                yield float(factor)
