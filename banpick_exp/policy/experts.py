"""Which experts a rule is about: named outright, or those that score highest in a calibration."""

from collections import Counter, defaultdict
from collections.abc import Sequence

from banpick_exp.errors import UserError
from banpick_exp.models.shape import MoeShape

KeyExperts = dict[int, tuple[int, ...]]
"""Layer to expert ids, both ascending."""


def as_knob(named: KeyExperts) -> dict[str, list[int]]:
    """As plain JSON, which has no number keys."""
    return {str(layer): list(experts) for layer, experts in named.items()}


def check_named_experts(at: str, named: KeyExperts, shape: MoeShape) -> None:
    """Raise UserError, about the knob `at`, where a named layer or expert does not exist."""
    for layer, experts in named.items():
        if layer >= shape.num_layers:
            raise UserError(
                f"{at} names layer {layer}, but this checkpoint has {shape.num_layers} MoE layers: "
                f"nothing would change there. Use layers 0..{shape.num_layers - 1}."
            )
        if experts[-1] >= shape.num_experts:
            raise UserError(
                f"{at} names expert {experts[-1]} of layer {layer}, but a layer of this checkpoint has "
                f"{shape.num_experts} experts: it does not exist. Use ids 0..{shape.num_experts - 1}."
            )


def check_enough_stay(at: str, removed: KeyExperts, shape: MoeShape) -> None:
    """Raise UserError where a layer would be left with fewer than top_k experts."""
    spare = shape.num_experts - shape.top_k
    for layer, experts in removed.items():
        if len(experts) > spare:
            raise UserError(
                f"{at} masks {len(experts)} of the {shape.num_experts} experts of layer {layer}: fewer than "
                f"top_k={shape.top_k} would stay, and masked ones would fill the slots. Name at most {spare} there."
            )


def highest(scores_LE: Sequence[Sequence[float]], count: int, at: str, *, per_layer: int | None = None) -> KeyExperts:
    """The `count` experts with the highest scores above 0 over all layers, at most `per_layer` of one layer.

    Equal scores: the lower layer, then the lower id. Raises UserError, about the knob `at`, where there are fewer.
    """
    ranked = sorted(
        (-score, layer, expert)
        for layer, scores_E in enumerate(scores_LE)
        for expert, score in enumerate(scores_E)
        if score > 0
    )
    taken: Counter[int] = Counter()
    named: defaultdict[int, list[int]] = defaultdict(list)
    for _, layer, expert in ranked:
        if taken.total() < count and (per_layer is None or taken[layer] < per_layer):
            taken[layer] += 1
            named[layer].append(expert)
    if taken.total() < count:
        raise UserError(
            f"{at}={count}, but the calibration has only {taken.total()} experts that qualify: the rest would be "
            f"chosen blindly. Use {at}={taken.total()} or less, or name the experts yourself."
        )
    return {layer: tuple(sorted(experts)) for layer, experts in sorted(named.items())}
