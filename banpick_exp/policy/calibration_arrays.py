"""A calibration as arrays and back, every digit kept: what is exported of one is kept as safetensors.

Shape suffixes: L MoE layers, E experts, N entries of a ranking. No torch.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from banpick_exp.models.shape import MoeShape
from banpick_exp.policy.calibration import Calibration, Influence

RANKING, ELSEWHERE = "influence", "influence_elsewhere"
SIZES = {
    "layer_sensitivity": "L",
    "r_min": "",
    "r_max": "",
    "usage": "LE",
    "tail_square": "L",
    "fisher": "L",
    "similarity": "LEE",
    "npmi": "LE",
    "contrast": "LE",
    "skip_kl": "L",
    "ratio_median": "L",
}
"""What a part of one name has an axis for; rankings are as long as they are."""


def arrays_of(calibration: Calibration) -> dict[str, np.ndarray]:
    """Name -> array, of the parts that are not None.

    A ranking has `influence.expert` int64 [N,2] (layer, expert), `influence.value` float64 [N] and, of a score with a
    sign, `influence.lower` [N]; those of other domains are `influence_elsewhere.0.expert` and so on.
    """
    found: dict[str, np.ndarray] = {}
    for part in parts_of(calibration):
        value = getattr(calibration, part)
        if part == RANKING:
            found |= _of_ranking(part, value)
        elif part == ELSEWHERE:
            for number, ranking in enumerate(value):
                found |= _of_ranking(f"{part}.{number}", ranking)
        else:
            found[part] = np.array(value, dtype=np.int64 if part == "usage" else np.float64)
    return found


def parts_of(calibration: Calibration) -> list[str]:
    """The parts that are not None, in the order of the fields."""
    return [part for part in Calibration.model_fields if getattr(calibration, part) is not None]


def calibration_of(parts: Sequence[str], arrays: Mapping[str, np.ndarray], shape: MoeShape) -> Calibration:
    """The calibration with these parts. Raises ValueError, in a few words, for an array too many, missing or of another
    shape or type than one of this model."""
    left = dict(arrays)
    values: dict[str, Any] = {}
    for part in parts:
        if part == RANKING:
            values[part] = _ranking(part, left, shape)
        elif part == ELSEWHERE:
            rankings: list[tuple[Influence, ...]] = []
            while f"{part}.{len(rankings)}.expert" in left:
                rankings.append(_ranking(f"{part}.{len(rankings)}", left, shape))
            values[part] = tuple(rankings)
        elif part in SIZES:
            sizes = tuple({"L": shape.num_layers, "E": shape.num_experts}[axis] for axis in SIZES[part])
            values[part] = _taken(left, part, "int64" if part == "usage" else "float64", sizes).tolist()
        else:
            raise ValueError(f"{part} is nothing that a rule reads")
    if left:
        raise ValueError(f"nothing reads {', '.join(sorted(left))}")
    return Calibration(**values)


def digest_of_arrays(arrays: Mapping[str, np.ndarray]) -> str:
    """SHA-256 in hex of names, types, shapes and bytes, whatever the order."""
    found = hashlib.sha256()
    for name, array in sorted(arrays.items()):
        found.update(f"{name} {array.dtype} {array.shape}\n".encode())
        found.update(np.ascontiguousarray(array).tobytes())
    return found.hexdigest()


def _of_ranking(name: str, ranking: Sequence[Influence]) -> dict[str, np.ndarray]:
    found = {
        f"{name}.expert": np.array([entry[:2] for entry in ranking], dtype=np.int64).reshape(len(ranking), 2),
        f"{name}.value": np.array([entry.value for entry in ranking], dtype=np.float64),
    }
    lower = [entry.lower for entry in ranking if entry.lower is not None]
    if lower:
        assert len(lower) == len(ranking), "a score has a sign for all experts or for none"
        found[f"{name}.lower"] = np.array(lower, dtype=np.float64)
    return found


def _ranking(name: str, left: dict[str, np.ndarray], shape: MoeShape) -> tuple[Influence, ...]:
    expert_N2 = _taken(left, f"{name}.expert", "int64", (None, 2))
    sizes = (len(expert_N2),)
    value_N = _taken(left, f"{name}.value", "float64", sizes)
    lower_N = _taken(left, f"{name}.lower", "float64", sizes).tolist() if f"{name}.lower" in left else [None] * sizes[0]
    if len(expert_N2) and not ((expert_N2 >= 0) & (expert_N2 < (shape.num_layers, shape.num_experts))).all():
        raise ValueError(f"{name}.expert names experts that this shape does not have")
    entries = zip(expert_N2.tolist(), value_N.tolist(), lower_N, strict=True)
    return tuple(Influence(layer, expert, value, lower) for (layer, expert), value, lower in entries)


def _taken(left: dict[str, np.ndarray], name: str, dtype: str, sizes: tuple[int | None, ...]) -> np.ndarray:
    """Array `name`, taken out of `left`; None stands for any size."""
    if name not in left:
        raise ValueError(f"{name} is missing")
    array = left.pop(name)
    wanted = tuple(there if size is None else size for size, there in zip(sizes, array.shape, strict=False))
    if array.dtype != dtype or array.ndim != len(sizes) or array.shape != wanted:
        raise ValueError(f"{name} is {array.dtype}{list(array.shape)}, and not {dtype}{list(sizes)}")
    return array
