"""What rules read of a calibration, typed, and how they read it: what is missing or of another model is refused.

`Calibration` is one domain's. `evaluation.calibration` measures it and says how; the engine hands it to its workers as
JSON. It is checked against the checkpoint here, where a rule reads it, because one of another model would route without
any error.

Shape suffixes: L MoE layers, E experts.
"""

import math
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, Self

from pydantic import BaseModel, ConfigDict, ValidationError

from banpick_exp.config import suggestion
from banpick_exp.errors import UserError
from banpick_exp.models.shape import MoeShape
from banpick_exp.policy.experts import KeyExperts

AUTO_MOST = 16
"""Where every expert that helps for sure is asked for: at most so many of a domain. A race looks for no more."""
RUN_IT = "Run `python -m banpick_exp calibrate` for this model"


class Influence(NamedTuple):
    """How much the model's answers hang on one expert."""

    layer: int
    """0 is the first MoE layer."""
    expert: int
    value: float
    """By the score that the calibration was asked for (`calibration.score`), the higher the more."""
    lower: float | None = None
    """Of a score that tells help from harm: above 0 the expert helps, by a bound that holds for all together."""


class Calibration(BaseModel):
    """What the rules read of one domain's calibration. None: not measured, and a rule that needs it cannot start.

    Lengths and ranges are those of a sound calibration; they are checked by the functions below, when a rule asks.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="constants")

    influence: tuple[Influence, ...] | None = None
    """Experts of all layers, the most influential first; equal ones by layer, then by id. Up to L * E entries."""
    influence_elsewhere: tuple[tuple[Influence, ...], ...] | None = None
    """The same of every other domain."""
    layer_sensitivity: tuple[float, ...] | None = None
    """[L], 0 to 1: the KL when the layer alone is pruned, scaled so that the least sensitive has 0 and the most 1."""
    r_min: float | None = None
    """Lowest R of a token, 0 to 1: the share of its selected weight that its three best experts hold."""
    r_max: float | None = None
    """Highest R of a token, r_min to 1."""
    usage: tuple[tuple[int, ...], ...] | None = None
    """[L, E], tokens that select the expert, at least 0."""
    tail_square: tuple[float, ...] | None = None
    """[L], 0 to 1: mean sum of the squared weights that are dropped where the layer keeps the calibration's k_min."""
    fisher: tuple[float, ...] | None = None
    """[L], nats, at least 0: how much the model minds a change of the layer's output, 2 * KL / tail_square."""
    similarity: tuple[tuple[tuple[float, ...], ...], ...] | None = None
    """[L, E, E], 0 to 1, symmetric, 1 with itself: linear CKA of two experts' outputs on the same tokens."""
    npmi: tuple[tuple[float, ...], ...] | None = None
    """[L, E], -1 (never) to 1 (only and always): how much an expert goes with the calibration's marker tokens."""
    contrast: tuple[tuple[float, ...], ...] | None = None
    """[L, E], -1 to 1: share of this domain's tokens that select an expert, less the mean share of the other domains;
    0 everywhere where there is no other."""
    skip_kl: tuple[float, ...] | None = None
    """[L], nats, at least 0: the KL when the layer's routed experts are skipped altogether, shared ones apart."""
    ratio_median: tuple[float, ...] | None = None
    """[L], 0 to 1: the median over calibration tokens of w_2 / w_1, the two largest selected weights."""

    @classmethod
    def of(cls, values: "Calibration | Mapping[str, Any]") -> "Calibration":
        """`values` as they are, or a mapping of the names above to numbers and nested lists, typed.

        Raises UserError for a name that is not among them and for a value of another form.
        """
        if isinstance(values, Calibration):
            return values
        try:
            return cls.model_validate(dict(values))
        except ValidationError as invalid:
            raise UserError(_message(invalid)) from None

    def to_json(self) -> str:
        """As text for `from_json`, every float exact."""
        return self.model_dump_json(exclude_none=True)

    @classmethod
    def from_json(cls, text: str) -> Self:
        return cls.model_validate_json(text)


def _message(invalid: ValidationError) -> str:
    error = min(invalid.errors(), key=lambda each: each["type"] != "extra_forbidden")
    key, *place = map(str, error["loc"])
    if error["type"] == "extra_forbidden":
        known = list(Calibration.model_fields)
        return (
            f"the calibration has {key}, which no policy reads: it would have no effect. {suggestion(key, known)}"
            f"Use some of {', '.join(known)}."
        )
    at = f"{key}[{']['.join(place)}]" if place else key
    return (
        f"the calibration has {at}={str(error['input'])[:60]}: routing needs numbers there, in the shape that a "
        f"calibration has. {RUN_IT} again."
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class BanStatistics:
    """What Ban reads: sensitivity per layer, 0 to 1, and the range of R over the calibration tokens. 0: not read."""

    layer_sensitivity: tuple[float, ...]
    r_min: float
    r_max: float


def most_influential(
    calibration: Calibration | None,
    shape: MoeShape,
    count: int | None,
    name: str,
    *,
    per_layer: bool = False,
    merged: bool = False,
) -> KeyExperts:
    """The `count` experts with the largest influence over all layers, or in each layer; equal ones in the given order.

    Of a score with a sign only those that help for sure count, so there may be fewer, or none; `count` None takes all
    of them, at most AUTO_MOST. `merged` takes those of the other domains too. Raises UserError where the calibration is
    missing, ranks too few experts or is of another model.
    """
    rankings: list[tuple[Influence, ...]] = [_value(calibration, "influence", name)]
    if merged:
        rankings += _value(calibration, "influence_elsewhere", name)
    named: defaultdict[int, set[int]] = defaultdict(set)
    for ranking in rankings:
        for layer, expert in _first(ranking, shape, count, per_layer, name):
            named[layer].add(expert)
    return {layer: tuple(sorted(experts)) for layer, experts in sorted(named.items())}


def _first(
    ranking: tuple[Influence, ...], shape: MoeShape, count: int | None, per_layer: bool, name: str
) -> list[tuple[int, int]]:
    signed = any(entry.lower is not None for entry in ranking)
    if count is None and not signed:
        raise UserError(
            f"policy={name} experts=auto takes every expert that helps for sure, and this calibration's score has no"
            " sign. Type calibration.score=gain, or a number: policy.key_experts=4."
        )
    ranked: dict[tuple[int, int], None] = {}  # in order, each expert once
    for layer, expert, _, lower in sorted(ranking, key=lambda entry: -entry.value) if not signed else ranking:
        if not (0 <= layer < shape.num_layers and 0 <= expert < shape.num_experts):
            raise _of_another_model(f"influence names expert {expert} of layer {layer}", shape)
        if not signed or (lower is not None and lower > 0):
            ranked[layer, expert] = None
    most = min(len(ranked), AUTO_MOST) if count is None else count
    if per_layer:
        by_layer: dict[int, list[int]] = {layer: [] for layer in range(shape.num_layers)}
        for layer, expert in ranked:
            by_layer[layer].append(expert)
        available = min(map(len, by_layer.values()))
        chosen = [(layer, expert) for layer, experts in by_layer.items() for expert in experts[:most]]
    else:
        available, chosen = len(ranked), list(ranked)[:most]
    if available < most and not signed:
        where = " in one layer" if per_layer else ""
        raise UserError(
            f"policy.key_experts={count}, but the calibration ranks only {available} experts{where}: the rest "
            f"would be chosen blindly. Type policy.key_experts={available} or less, or calibrate more experts:"
            f" {RUN_IT}."
        )
    return chosen


def ban_statistics(
    calibration: Calibration | None, shape: MoeShape, name: str, *, layer: bool = True, token: bool = True
) -> BanStatistics:
    """Layer sensitivity (with `layer`), R_min and R_max (with `token`); what is not asked for is 0 and may be missing.

    Raises UserError where one that is asked for is missing, not finite or of another model.
    """
    sensitivity = _sensitivity(calibration, shape, name) if layer else (0.0,) * shape.num_layers
    r_min, r_max = (_value(calibration, key, name) if token else 0.0 for key in ("r_min", "r_max"))
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
    values_L: tuple[float, ...] = _value(calibration, "fisher", name)
    _check(values_L, (shape.num_layers,), (0, math.inf), "fisher", shape)
    return values_L


def skip_kl(calibration: Calibration | None, shape: MoeShape, name: str) -> tuple[float, ...]:
    """KL when a layer's routed experts are skipped altogether, [L], at least 0, nats. Raises UserError as `fisher`."""
    values_L: tuple[float, ...] = _value(calibration, "skip_kl", name)
    _check(values_L, (shape.num_layers,), (0, math.inf), "skip_kl", shape)
    return values_L


def ratio_median(calibration: Calibration | None, shape: MoeShape, name: str) -> tuple[float, ...]:
    """Median of w_2 / w_1 of a layer, [L], 0 to 1. Raises UserError as `fisher`."""
    values_L: tuple[float, ...] = _value(calibration, "ratio_median", name)
    _check(values_L, (shape.num_layers,), (0, 1), "ratio_median", shape)
    return values_L


def similarity(
    calibration: Calibration | None, shape: MoeShape, name: str
) -> tuple[tuple[tuple[float, ...], ...], ...]:
    """Similarity of each two experts of a layer, [L][E][E], 0 to 1, 1 with itself. Raises UserError as `fisher`."""
    values_LEE: tuple[tuple[tuple[float, ...], ...], ...] = _value(calibration, "similarity", name)
    _check(values_LEE, (shape.num_layers, shape.num_experts, shape.num_experts), (0, 1), "similarity", shape)
    return values_LEE


def npmi(calibration: Calibration | None, shape: MoeShape, name: str) -> tuple[tuple[float, ...], ...]:
    """How much an expert goes with marker tokens, [L][E], -1 (never) to 1 (only and always).

    Raises UserError as `fisher`, and where no marker was seen.
    """
    values_LE: tuple[tuple[float, ...], ...] = _value(calibration, "npmi", name)
    _check(values_LE, (shape.num_layers, shape.num_experts), (-1, 1), "npmi", shape)
    if all(value == -1 for values_E in values_LE for value in values_E):
        raise UserError(
            f"policy={name} cannot start: no marker token was seen while calibrating, so no expert goes with one. "
            f"Type markers that are single tokens of this model and that its answers contain, e.g. "
            f"calibration.markers=['<think>','</think>'], or name the experts yourself."
        )
    return values_LE


def contrast(calibration: Calibration | None, shape: MoeShape, name: str) -> tuple[tuple[float, ...], ...]:
    """Share of this domain's tokens that select an expert less that of the other domains, [L][E], -1 to 1.

    Raises UserError as `fisher`, and where there is no other domain to differ from.
    """
    values_LE: tuple[tuple[float, ...], ...] = _value(calibration, "contrast", name)
    _check(values_LE, (shape.num_layers, shape.num_experts), (-1, 1), "contrast", shape)
    if not any(value for values_E in values_LE for value in values_E):
        raise UserError(
            f"policy={name} cannot start: its experts are those that one domain uses more than the others, and this "
            f"calibration knows no difference between domains. Calibrate several, e.g. "
            f"task.domains=[math,code,general], or name the experts yourself."
        )
    return values_LE


def _check(
    values: tuple[Any, ...], sizes: tuple[int, ...], limits: tuple[float, float], key: str, shape: MoeShape
) -> None:
    """Raise UserError unless nested tuples have these sizes (they are of this model) and their numbers these limits."""
    if len(values) != sizes[0]:
        raise _of_another_model(f"{key} has {len(values)} values where {sizes[0]} belong", shape)
    if len(sizes) > 1:
        for part in values:
            _check(part, sizes[1:], limits, key, shape)
    elif not all(limits[0] <= number <= limits[1] and math.isfinite(number) for number in values):
        raise UserError(
            f"the calibration has {key}={list(values)}, outside {limits[0]} to {limits[1]}. {RUN_IT} again."
        )


def _sensitivity(calibration: Calibration | None, shape: MoeShape, name: str) -> tuple[float, ...]:
    sensitivity: tuple[float, ...] = _value(calibration, "layer_sensitivity", name)
    if len(sensitivity) != shape.num_layers:
        raise _of_another_model(f"layer_sensitivity has {len(sensitivity)} values", shape)
    return sensitivity


def _value(calibration: Calibration | None, key: str, name: str) -> Any:
    """One part of it, for the policy `name`. Raises UserError where there is none."""
    value = None if calibration is None else getattr(calibration, key)
    if value is None:
        missing = "it needs a calibration" if calibration is None else f"the calibration has no {key}"
        instead = " Or name the key experts yourself: experts={0: [3]}." if key == "influence" else ""
        raise UserError(f"policy={name} cannot start: {missing}. {RUN_IT} first.{instead}")
    return value


def _of_another_model(finding: str, shape: MoeShape) -> UserError:
    return UserError(
        f"the calibration is of another model: {finding}, this model has {shape.num_layers} MoE layers of "
        f"{shape.num_experts} experts. {RUN_IT}."
    )
