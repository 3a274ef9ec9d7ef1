"""The policies that vLLM and an independent Transformers forward must agree on, and the calibration Ban reads there."""

from __future__ import annotations

from typing import Any

EXPERTS = {"1": [3, 17], "3": [5]}

CALIBRATION: dict[str, Any] = {
    "influence": [[1, 3, 0.4], [2, 9, 0.2], [1, 11, 0.1], [0, 30, 0.05]],
    "layer_sensitivity": [0.0, 0.35, 1.0, 0.6],
    "r_min": 0.45,
    "r_max": 0.95,
    "ratio_median": [0.7, 0.5, 0.8, 0.6],
    "similarity": [[[1 / (1 + abs(a - b) / (4 + layer)) for b in range(32)] for a in range(32)] for layer in range(4)],
}

CALIBRATED = ("ban", "ban_pick", "diep")
"""Policies that read it here."""

POLICIES: dict[str, tuple[str, dict[str, Any]]] = {
    "none": ("none", {}),
    "fixed_k 1": ("fixed_k", {"k": 1}),
    "fixed_k 3": ("fixed_k", {"k": 3}),
    "boost": ("pick", {"mode": "boost", "boost": 1.5, "experts": EXPERTS}),
    "force_add": ("pick", {"mode": "force_add", "experts": EXPERTS}),
    "force_replace": ("pick", {"mode": "force_replace", "experts": EXPERTS}),
    "range_replace": ("pick", {"mode": "range_replace", "experts": EXPERTS}),
    "range_add": ("pick", {"mode": "range_add", "range_factor": 1.5, "experts": EXPERTS}),
    "ban": ("ban", {"lambda": 0.9, "k_min": 3}),
    "ban by layer": ("ban", {"lambda": 0.7, "k_min": 2, "use": "layer"}),
    "ban by token": ("ban", {"lambda": 0.7, "k_min": 2, "use": "token"}),
    "ban_pick": ("ban_pick", {"lambda": 0.7, "k_min": 2, "key_experts": 3}),
    "steer": ("steer", {"on": EXPERTS, "off": {"0": [12], "3": [20]}}),
    "rice": ("rice", {"multiplier": 6.0, "experts": EXPERTS}),
    "diep": ("diep", {"beta": 0.9, "alpha": 0.7, "k_min": 2}),
}

PROBED: list[tuple[str, int, int]] = [
    ("remove", 1, 3), ("remove", 0, 12), ("add", 1, 3), ("add", 3, 20), ("replace", 1, 3), ("replace", 3, 20),
    ("boost", 2, 7), ("boost", 0, 20), ("limit", 2, 3), ("skip", 1, 0), ("skip", 3, 0),
]  # fmt: skip
"""Changes that a calibration judges one at a time: what, in which layer, of which expert or to how many."""
RANGE_FACTOR, BOOST = 1.5, 0.7


def as_policy(change: str, layer: int, expert: int) -> tuple[str, dict[str, Any]] | None:
    """The policy that changes the same, where there is one."""
    experts = {str(layer): [expert]}
    match change:
        case "add" | "replace":
            return "pick", {"mode": f"range_{change}", "range_factor": RANGE_FACTOR, "experts": experts}
        case "boost":
            return "pick", {"mode": "boost", "boost": BOOST, "experts": experts}
    return None
