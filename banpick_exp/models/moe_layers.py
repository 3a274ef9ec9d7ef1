"""Which layers of a checkpoint have experts: every convention that config.json files use, read without trusting one.

A convention is a function of the language part of a config.json (`language.language_part`: no nulls) and the number of
layers. It returns the layers (from 0) that have experts by it, or None where the config says nothing of its kind.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

Config = Mapping[str, Any]
Layers = frozenset[int]
Convention = Callable[[Config, int], Layers | None]

TOTAL_KEYS = ("num_hidden_layers", "n_layers", "num_layers", "n_layer")
MOST_LAYERS = 10_000
"""No model has more; a damaged number must not fill the memory."""
MOST = 2**53
"""Numbers beyond are written for "no limit"."""

TYPE_WORDS = frozenset({"sparse", "moe", "dense", "mlp"})
"""What `mlp_layer_types` calls layers; the first two have experts."""


def as_int(value: object) -> int | None:
    """A whole number as JSON may hold it (8, 8.0, a list that begins with one), else None.

    Ernie's VL models give one number a modality; text is the first.
    """
    if isinstance(value, list) and value:
        value = value[0]
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not -MOST <= value <= MOST:
        return None
    return int(value) if value == int(value) else None


def first_int(config: Config, keys: tuple[str, ...], default: int = 0) -> int:
    """The first of `keys` that holds a whole number."""
    for key in keys:
        value = as_int(config.get(key))
        if value is not None:
            return value
    return default


def total_layers(config: Config) -> int:
    """All layers, dense ones too; where none are stated, as many as the longest list that speaks of them."""
    stated = first_int(config, TOTAL_KEYS)
    if stated:
        return stated
    lists = [config.get(key) for key in ("hybrid_override_pattern", "mlp_layer_types", "layers_block_type")]
    return max((len(value) for value in lists if isinstance(value, (list, str))), default=0)


# ---------------------------------------------------------------- lists: one entry a layer, or the numbers of layers


def _by_pattern(config: Config, total: int) -> Layers | None:
    """Nemotron-H: one letter a layer, E for experts."""
    pattern = config.get("hybrid_override_pattern")
    return frozenset(n for n, letter in enumerate(pattern) if letter == "E") if isinstance(pattern, str) else None


def _by_types(config: Config, total: int) -> Layers | None:
    """Transformers 5: `mlp_layer_types`, sparse or dense, one a layer."""
    types = config.get("mlp_layer_types")
    if not isinstance(types, list):
        return None
    return frozenset(n for n, kind in enumerate(types[:total]) if kind in ("sparse", "moe"))


def _by_block_types(config: Config, total: int) -> Layers | None:
    """Nemotron-H in Transformers 5; other hybrids list their attention here and say nothing of experts."""
    for key in ("layers_block_type", "layer_types"):
        types = config.get(key)
        if isinstance(types, list) and "moe" in types:
            return frozenset(n for n, kind in enumerate(types) if kind == "moe")
    return None


def _by_block_configs(config: Config, total: int) -> Layers | None:
    """Nemotron puzzles: an object a layer."""
    blocks = config.get("block_configs")
    if not isinstance(blocks, list):
        return None
    kinds = [block.get("block_type") if isinstance(block, dict) else None for block in blocks]
    return frozenset(n for n, kind in enumerate(kinds) if kind == "moe") if "moe" in kinds else None


def _by_numbers(config: Config, total: int) -> Layers | None:
    """Llama 4: the numbers of the MoE layers; Step: the same as a text, `4,5,6`."""
    for key in ("moe_layers", "moe_layers_enum"):
        value = config.get(key)
        if isinstance(value, str):
            value = [int(part) if part.strip().isdecimal() else None for part in value.split(",")]
        if isinstance(value, list):
            numbers = (as_int(number) for number in value)
            return frozenset(n for n in numbers if n is not None and 0 <= n < total)
    return None


def _by_frequency_list(config: Config, total: int) -> Layers | None:
    """MiMo, MiniMax: 0 or 1 a layer."""
    frequency = config.get("moe_layer_freq")
    return frozenset(n for n, on in enumerate(frequency[:total]) if on) if isinstance(frequency, list) else None


LISTS: dict[str, Convention] = {
    "hybrid_override_pattern": _by_pattern,
    "mlp_layer_types": _by_types,
    "layers_block_type": _by_block_types,
    "block_configs": _by_block_configs,
    "moe_layers": _by_numbers,
    "moe_layer_freq": _by_frequency_list,
}
"""By the key that is named to the user; the first that speaks is believed."""

# ---------------------------------------------------------------- rules: arithmetic on the number of the layer


def _by_step(config: Config, total: int) -> Layers | None:
    """Qwen, Llama 4: every n-th layer, counted from 1."""
    step = first_int(config, ("decoder_sparse_step", "interleave_moe_layer_step"), default=1)
    return frozenset(n for n in range(total) if step > 0 and (n + 1) % step == 0)


def _by_exceptions(config: Config, total: int) -> Layers | None:
    """Qwen: the numbers of the dense layers."""
    dense = config.get("mlp_only_layers")
    return frozenset(range(total)) - {as_int(n) for n in dense} if isinstance(dense, list) else None


def _by_dense_start(config: Config, total: int) -> Layers | None:
    """DeepSeek, GLM, LFM2, AFMoE: the first k layers are dense."""
    dense = max(first_int(config, (key,)) for key in ("first_k_dense_replace", "num_dense_layers", "n_dense_layers"))
    return frozenset(range(max(dense, 0), total))


def _by_frequency(config: Config, total: int) -> Layers | None:
    """DeepSeek: layers whose number is a multiple."""
    frequency = config.get("moe_layer_freq")
    if isinstance(frequency, list) or not (number := as_int(frequency)) or number < 1:
        return None
    return frozenset(range(0, total, number))


def _by_period(config: Config, total: int) -> Layers | None:
    """Jamba: every period-th layer, beginning with the offset."""
    period = as_int(config.get("expert_layer_period"))
    if period is None or period < 1:
        return None
    offset = first_int(config, ("expert_layer_offset",))
    return frozenset(n for n in range(total) if n % period == offset)


def _by_window(config: Config, total: int) -> Layers | None:
    """Ernie: from start to end (both in it, -1 is the last), every interval-th counted from 1."""
    keys = ("moe_layer_interval", "moe_layer_start_index", "moe_layer_end_index")
    if not any(key in config for key in keys):
        return None
    interval, start = first_int(config, keys[:1], default=1), first_int(config, keys[1:2])
    end = first_int(config, keys[2:], default=-1)
    last = total - 1 if end < 0 else end
    return frozenset(n for n in range(total) if interval > 0 and start <= n <= last and (n + 1) % interval == 0)


RULES: dict[str, Convention] = {
    "decoder_sparse_step": _by_step,
    "mlp_only_layers": _by_exceptions,
    "first_k_dense_replace": _by_dense_start,
    "moe_layer_freq": _by_frequency,
    "expert_layer_period": _by_period,
    "moe_layer_interval": _by_window,
}
"""By the key that is named to the user; a layer has experts where all that speak agree."""

KNOWN_KEYS = frozenset(
    {*LISTS, *RULES, "layer_types", "moe_layers_enum", "interleave_moe_layer_step", "num_dense_layers"}
    | {"n_dense_layers", "expert_layer_offset", "moe_layer_start_index", "moe_layer_end_index"}
)

NUMBER_KEYS = frozenset(
    {"decoder_sparse_step", "interleave_moe_layer_step", "first_k_dense_replace", "num_dense_layers", "n_dense_layers"}
    | {"expert_layer_period", "expert_layer_offset"}
    | {"moe_layer_interval", "moe_layer_start_index", "moe_layer_end_index"}
)
NUMBERS_KEYS = frozenset({"mlp_only_layers", "moe_layers", "moe_layers_enum"})
"""The numbers of layers, as a list; those of MoE layers as a text with commas too."""
NAMES_KEYS = frozenset({"mlp_layer_types", "layers_block_type", "layer_types"})

ABOUT_EXPERTS = frozenset({"moe", "expert", "experts", "sparse", "dense", "mlp"})
ABOUT_PLACE = frozenset(
    {"layer", "layers", "freq", "frequency", "interval", "period", "step", "every", "pattern", "types", "mask", "list"}
    | {"enum", "indices", "idx", "start", "end", "first", "last", "replace", "skip", "skipped"}
)


@dataclass(frozen=True, slots=True)
class Counted:
    """The MoE layers of a checkpoint, and what makes the count doubtful."""

    layers: Layers
    doubts: tuple[str, ...] = ()


def count(config: Config, fallback: Convention | None = None) -> Counted:
    """The MoE layers of the language part of a config.json.

    A list of layers is believed before the rules, because it says of every layer what it is; `fallback` is the
    family's own answer where no list speaks, in place of the rules.
    """
    total = total_layers(config)
    if not 0 <= total <= MOST_LAYERS:
        return Counted(frozenset(), (f"{total} layers are no number of layers",))
    doubts = [
        f"{key}={shown(config[key])} is not understood"
        for key in config
        if key not in KNOWN_KEYS and config[key] and _speaks_of_layers(key)
    ]
    doubts += [
        f"{key}={shown(config[key])} cannot be read" for key in config if not _is_readable(key, config[key], total)
    ]
    listed = {key: layers for key, rule in LISTS.items() if (layers := rule(config, total)) is not None}
    if listed:
        key, layers = next(iter(listed.items()))
        doubts += [
            f"{key} names {len(layers)} MoE layers, {other} {len(also)}"
            for other, also in listed.items()
            if also != layers
        ]
        entries = config.get(key)
        if isinstance(entries, (list, str)) and key in ("hybrid_override_pattern", "mlp_layer_types"):
            if len(entries) != total:
                doubts.append(f"{key} has {len(entries)} entries for {total} layers")
            if key == "mlp_layer_types":
                odd = {shown(kind) for kind in entries} - TYPE_WORDS
                doubts += [f"{key} calls layers {', '.join(sorted(odd))}"] if odd else []
        return Counted(layers, tuple(doubts))
    if fallback is not None and (layers_or_none := fallback(config, total)) is not None:
        return Counted(layers_or_none, tuple(doubts))
    layers = frozenset(range(total))
    for rule in RULES.values():
        said = rule(config, total)
        layers = layers if said is None else layers & said
    return Counted(layers, tuple(doubts))


def all_but_the_first(config: Config, total: int) -> Layers:
    """Step 3, where no list says otherwise."""
    return frozenset(range(1, total))


def _is_readable(key: str, value: object, total: int) -> bool:
    """False for a key of these conventions with a value of another form than theirs; an empty one says nothing."""
    if value in ("", [], {}):
        return True
    if key in NUMBER_KEYS:
        return (number := as_int(value)) is not None and (number > 0 or key != "expert_layer_period")
    if key in NUMBERS_KEYS:
        whole = [as_int(number) for number in _items(value)]
        if isinstance(value, str) and key != "mlp_only_layers":
            whole = [int(part) if part.strip().isdecimal() else None for part in value.split(",")]
        return bool(whole) and all(number is not None and 0 <= number < total for number in whole)
    if key == "moe_layer_freq":
        if isinstance(value, list):
            return len(value) == total and all(as_int(number) in (0, 1) for number in value)
        return (as_int(value) or 0) > 0
    if key == "hybrid_override_pattern":
        return isinstance(value, str)
    if key in NAMES_KEYS:
        return bool(_items(value)) and all(isinstance(name, str) for name in _items(value))
    return key != "block_configs" or (bool(_items(value)) and all(isinstance(block, dict) for block in _items(value)))


def _items(value: object) -> list[object]:
    return value if isinstance(value, list) else []


def _speaks_of_layers(key: str) -> bool:
    words = set(key.lower().split("_"))
    return bool(words & ABOUT_EXPERTS) and bool(words & ABOUT_PLACE)


def shown(value: object) -> str:
    """A value of a config.json in a few characters."""
    if isinstance(value, dict):
        return "{...}"
    if isinstance(value, list) and value:
        return f"[{', '.join('...' if isinstance(item, (list, dict)) else str(item) for item in value[:6])}, ...]"
    text = f'"{value}"' if isinstance(value, str) and value.strip().isdecimal() else str(value)  # text, not a number
    return text if len(text) <= 40 else f"{text[:37]}..."
