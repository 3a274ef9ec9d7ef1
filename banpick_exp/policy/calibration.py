"""Reading a calibration: which experts are the most influential, and what Ban needs to know about the layers.

A calibration is checked here, where it is used, because one of another model would route without any error.
"""

import math
from collections import defaultdict
from dataclasses import dataclass
from typing import Any

from banpick_exp.errors import UserError
from banpick_exp.models.shape import MoeShape
from banpick_exp.policy.rule import Calibration

RUN_IT = "Run `python -m banpick_exp calibrate` for this model"

KeyExperts = dict[int, tuple[int, ...]]
"""Layer to expert ids, both ascending."""


@dataclass(frozen=True, kw_only=True, slots=True)
class BanStatistics:
    """What Ban reads: sensitivity per layer, 0 to 1, and the range of R over the calibration tokens."""

    layer_sensitivity: tuple[float, ...]
    r_min: float
    r_max: float


def most_influential(
    calibration: Calibration | None, shape: MoeShape, count: int, per_layer: bool, name: str
) -> KeyExperts:
    """The `count` experts with the largest influence over all layers, or in each layer; equal ones in the given order.

    Raises UserError where the calibration is missing, ranks too few experts or is of another model.
    """
    ranked: dict[tuple[int, int], None] = {}  # in order, each expert once
    for layer, expert, _ in sorted(_value(calibration, "influence", name), key=lambda entry: -float(entry[2])):
        if not (0 <= layer < shape.num_layers and 0 <= expert < shape.num_experts):
            raise _of_another_model(f"influence names expert {expert} of layer {layer}", shape)
        ranked[int(layer), int(expert)] = None
    if per_layer:
        by_layer: dict[int, list[int]] = {layer: [] for layer in range(shape.num_layers)}
        for layer, expert in ranked:
            by_layer[layer].append(expert)
        available = min(map(len, by_layer.values()))
        chosen = [(layer, expert) for layer, experts in by_layer.items() for expert in experts[:count]]
    else:
        available, chosen = len(ranked), list(ranked)[:count]
    if available < count:
        where = " in one layer" if per_layer else ""
        raise UserError(
            f"policy.{name}.key_experts={count}, but the calibration ranks only {available} experts{where}: the rest "
            f"would be chosen blindly. Use key_experts of at most {available}, or calibrate more experts: {RUN_IT}."
        )
    named: defaultdict[int, list[int]] = defaultdict(list)
    for layer, expert in chosen:
        named[layer].append(expert)
    return {layer: tuple(sorted(experts)) for layer, experts in sorted(named.items())}


def ban_statistics(calibration: Calibration | None, shape: MoeShape, name: str) -> BanStatistics:
    """Layer sensitivity, R_min and R_max. Raises UserError where one is missing, not finite or of another model."""
    sensitivity = _sensitivity(calibration, shape, name)
    r_min, r_max = float(_value(calibration, "r_min", name)), float(_value(calibration, "r_max", name))
    if not all(map(math.isfinite, (*sensitivity, r_min, r_max))) or r_min > r_max:
        raise UserError(
            f"the calibration has r_min={r_min}, r_max={r_max}, layer_sensitivity={list(sensitivity)}: Ban needs "
            f"finite values and r_min <= r_max to compare tokens. {RUN_IT} again."
        )
    return BanStatistics(layer_sensitivity=sensitivity, r_min=r_min, r_max=r_max)


def layer_sensitivity(calibration: Calibration | None, shape: MoeShape, name: str) -> tuple[float, ...]:
    """Layer sensitivity alone, [L], 0 to 1. Raises UserError where it is missing, not in there or of another model."""
    sensitivity = _sensitivity(calibration, shape, name)
    if not all(0 <= value <= 1 for value in sensitivity):
        raise UserError(
            f"the calibration has layer_sensitivity={list(sensitivity)}: policy={name} needs values from 0 to 1 to "
            f"compare layers. {RUN_IT} again."
        )
    return sensitivity


def fisher(calibration: Calibration | None, shape: MoeShape, name: str) -> tuple[float, ...]:
    """Importance of a layer's output H_l, [L], at least 0, in nats. Raises UserError where it is missing or odd."""
    return tuple(_checked(_value(calibration, "fisher", name), (shape.num_layers,), (0, math.inf), "fisher", shape))


def similarity(calibration: Calibration | None, shape: MoeShape, name: str) -> list[list[list[float]]]:
    """Similarity of each two experts of a layer, [L][E][E], 0 to 1, 1 with itself. Raises UserError as `fisher`."""
    sizes = (shape.num_layers, shape.num_experts, shape.num_experts)
    return _checked(_value(calibration, "similarity", name), sizes, (0, 1), "similarity", shape)


def npmi(calibration: Calibration | None, shape: MoeShape, name: str) -> list[list[float]]:
    """How much an expert goes with marker tokens, [L][E], -1 (never) to 1 (only and always).

    Raises UserError as `fisher`, and where no marker was seen.
    """
    sizes = (shape.num_layers, shape.num_experts)
    values_LE = _checked(_value(calibration, "npmi", name), sizes, (-1, 1), "npmi", shape)
    if all(value == -1 for values_E in values_LE for value in values_E):
        raise UserError(
            f"policy={name} cannot start: no marker token was seen while calibrating, so no expert goes with one. "
            f"Type markers that are single tokens of this model and that its answers contain, e.g. "
            f"calibration.markers=['<think>','</think>'], or name the experts yourself."
        )
    return values_LE


def contrast(calibration: Calibration | None, shape: MoeShape, name: str) -> list[list[float]]:
    """Share of this domain's tokens that select an expert less that of the other domains, [L][E], -1 to 1.

    Raises UserError as `fisher`, and where there is no other domain to differ from.
    """
    sizes = (shape.num_layers, shape.num_experts)
    values_LE = _checked(_value(calibration, "contrast", name), sizes, (-1, 1), "contrast", shape)
    if not any(value for values_E in values_LE for value in values_E):
        raise UserError(
            f"policy={name} cannot start: its experts are those that one domain uses more than the others, and this "
            f"calibration knows no difference between domains. Calibrate several, e.g. "
            f"task.domains=[math,code,general], or name the experts yourself."
        )
    return values_LE


def _checked(values: Any, sizes: tuple[int, ...], limits: tuple[float, float], key: str, shape: MoeShape) -> list[Any]:
    """Nested lists of floats of these sizes, or a UserError: of another model, or outside the limits."""
    if len(values) != sizes[0]:
        raise _of_another_model(f"{key} has {len(values)} values where {sizes[0]} belong", shape)
    if len(sizes) > 1:
        return [_checked(part, sizes[1:], limits, key, shape) for part in values]
    numbers = [float(value) for value in values]
    if not all(limits[0] <= number <= limits[1] and math.isfinite(number) for number in numbers):
        raise UserError(f"the calibration has {key}={numbers}, outside {limits[0]} to {limits[1]}. {RUN_IT} again.")
    return numbers


def _sensitivity(calibration: Calibration | None, shape: MoeShape, name: str) -> tuple[float, ...]:
    sensitivity = tuple(float(value) for value in _value(calibration, "layer_sensitivity", name))
    if len(sensitivity) != shape.num_layers:
        raise _of_another_model(f"layer_sensitivity has {len(sensitivity)} values", shape)
    return sensitivity


def _value(calibration: Calibration | None, key: str, name: str) -> Any:
    if calibration is None or calibration.get(key) is None:
        missing = "it needs a calibration" if calibration is None else f"the calibration has no {key}"
        instead = " Or name the key experts yourself: experts={0: [3]}." if key == "influence" else ""
        raise UserError(f"policy={name} cannot start: {missing}. {RUN_IT} first.{instead}")
    return calibration[key]


def _of_another_model(finding: str, shape: MoeShape) -> UserError:
    return UserError(
        f"the calibration is of another model: {finding}, this model has {shape.num_layers} MoE layers of "
        f"{shape.num_experts} experts. {RUN_IT}."
    )
