"""The reference router against a slow second opinion: one token at a time, plain Python, written from method.md alone.

Logits are multiples of 1/4: scores differ clearly or are equal, and equal ones are common, so every tie rule is used.
"""

import math
from dataclasses import dataclass, field
from typing import Any

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pytest import approx

from banpick_exp.policy import Policy, build_policy

MODES = ("boost", "force_add", "force_replace", "range_replace", "range_add")
ROUNDING_MARGIN = 1e-4
"""Ban's k is not compared for tokens nearer than this to a half: float32 may fall on either side. test_reference.py has
the exact halves."""


@dataclass
class Case:
    name: str
    params: dict[str, Any]
    num_experts: int
    top_k: int
    keys: set[int]
    sensitivity: float = 0.0
    r_min: float = 0.0
    r_max: float = 0.0
    logits: list[list[float]] = field(default_factory=list)

    def build(self) -> Policy:
        """Two layers; the case is layer 1, layer 0 has other values that must not leak into it."""
        others = sorted(set(range(self.num_experts)) - self.keys)
        params = dict(self.params)
        if self.name in ("pick", "ban_pick"):
            params["experts"] = {"0": others or [0], 1: sorted(self.keys, reverse=True)}
        calibration = {"layer_sensitivity": [0.9, self.sensitivity], "r_min": self.r_min, "r_max": self.r_max}
        return build_policy(
            self.name, params, num_layers=2, num_experts=self.num_experts, top_k=self.top_k, calibration=calibration
        )


def oracle(case: Case, logits: list[float], renormalize: bool, scoring: str) -> list[tuple[int, float]] | None:
    """The kept experts and their weights, highest first; None where k is too close to a half to call."""
    params, experts, mode = case.params, range(case.num_experts), case.params.get("mode")
    z = [-math.inf if math.isnan(value) else value for value in logits]
    if mode == "boost":
        z = [value + params["boost"] if expert in case.keys else value for expert, value in enumerate(z)]
    if scoring == "sigmoid":
        p = [1 / (1 + math.exp(-value)) if value > -math.inf else 0.0 for value in z]
    else:
        peak = max(z)
        exps = [math.exp(value - peak) if value > -math.inf else 0.0 for value in z]
        p = [value / sum(exps) if sum(exps) else 0.0 for value in exps]

    ranking = sorted(experts, key=lambda expert: (-p[expert], expert))
    selected = ranking[: case.top_k]

    if case.name == "fixed_k":
        selected = selected[: params["k"]]
    if case.name in ("ban", "ban_pick"):
        weights = [p[expert] for expert in selected]
        ratio = sum(weights[:3]) / sum(weights) if sum(weights) else 0.0
        spread = case.r_max - case.r_min
        flat = min(1.0, max(0.0, (case.r_max - ratio) / spread)) if spread else 0.0
        share = {"layer": case.sensitivity, "token": flat}.get(params["use"], 0.5 * (case.sensitivity + flat))
        exact = params["k_min"] + (case.top_k - params["k_min"]) * params["lambda"] * share
        if abs(exact - math.floor(exact) - 0.5) < ROUNDING_MARGIN:
            return None
        selected = selected[: min(case.top_k, max(params["k_min"], round(exact)))]

    if mode in MODES[1:]:
        window = params.get("range_factor", 2) * case.top_k if mode.startswith("range") else case.num_experts
        for key in [expert for place, expert in enumerate(ranking) if expert in case.keys and place < window]:
            if key in selected:
                continue
            if mode.endswith("replace"):
                others = [expert for expert in selected if expert not in case.keys]
                if not others:
                    continue
                selected.remove(max(others, key=ranking.index))
            selected.append(key)

    selected.sort(key=ranking.index)
    total = sum(p[expert] for expert in selected) if renormalize else 1.0
    return [(expert, p[expert] / total if total else 0.0) for expert in selected]


@st.composite
def cases(draw: st.DrawFn) -> Case:
    num_experts = draw(st.integers(1, 20))
    top_k = draw(st.integers(1, num_experts))
    name = draw(st.sampled_from(["none", "fixed_k", "pick", "pick", "ban", "ban_pick", "ban_pick"]))
    params: dict[str, Any] = {"mode": None, "k": None}  # null means absent
    keys: set[int] = set()
    if name == "fixed_k":
        params["k"] = draw(st.integers(1, top_k))
    if name in ("pick", "ban_pick"):
        keys = draw(st.sets(st.integers(0, num_experts - 1), min_size=1, max_size=5))
        params["mode"] = draw(st.sampled_from(MODES))
        params["boost"] = draw(st.integers(-32, 32)) / 8 if params["mode"] == "boost" else None
        if params["mode"].startswith("range") and draw(st.booleans()):
            params["range_factor"] = draw(st.integers(top_k, num_experts)) / top_k
    case = Case(name, params, num_experts, top_k, keys)
    if name in ("ban", "ban_pick"):
        params["k_min"] = draw(st.integers(1, top_k))
        params["lambda"] = draw(st.integers(1, 40)) / 20
        params["use"] = draw(st.sampled_from(["layer", "token", "both", None]))
        case.sensitivity = draw(st.integers(0, 20)) / 20
        case.r_min = draw(st.integers(0, 20)) / 20
        case.r_max = draw(st.integers(round(case.r_min * 20), 20)) / 20
    logit = st.one_of(st.integers(-16, 16).map(lambda n: n / 4), st.integers(-2, 2).map(float), st.just(-math.inf))
    row = st.lists(st.one_of(logit, logit, logit, st.just(math.nan)), min_size=num_experts, max_size=num_experts)
    case.logits = draw(st.lists(row, max_size=4))
    return case


@given(
    case=cases(),
    renormalize=st.booleans(),
    scoring=st.sampled_from(["softmax", "sigmoid"]),
    dtype=st.sampled_from([torch.float32, torch.float16, torch.bfloat16]),
)
@settings(max_examples=150, deadline=None, derandomize=True, database=None)
def test_every_rule_against_the_oracle(case: Case, renormalize: bool, scoring: str, dtype: torch.dtype) -> None:
    policy = case.build()
    logits = torch.tensor(case.logits, dtype=dtype).reshape(len(case.logits), case.num_experts)
    weights, ids, kept = policy.route(logits, layer=1, renormalize=renormalize, scoring=scoring)

    assert weights.shape == ids.shape == kept.shape == (len(case.logits), max(case.top_k, policy.max_kept))
    assert (weights.dtype, ids.dtype, kept.dtype) == (torch.float32, torch.int32, torch.bool)
    assert weights.isfinite().all() and not weights[~kept].any()
    assert ((ids >= 0) & (ids < case.num_experts)).all()
    for token, row in enumerate(case.logits):
        expected = oracle(case, row, renormalize, scoring)
        if expected is None:
            continue
        count = len(expected)
        assert kept[token].tolist() == [True] * count + [False] * (len(kept[token]) - count)
        assert ids[token, :count].tolist() == [expert for expert, _ in expected]
        assert weights[token, :count].tolist() == approx([weight for _, weight in expected], rel=0, abs=1e-6)
        assert policy.budget[0] <= count <= policy.max_kept
