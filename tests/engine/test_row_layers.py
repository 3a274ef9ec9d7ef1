"""A hooked layer whose tokens are of several policies routes and counts each token as in a batch of its own policy."""

from __future__ import annotations

import random
import subprocess
import sys
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from banpick_exp.policy import Policy, build_policy

pytestmark = pytest.mark.engine

EXPERTS, TOP_K = 32, 6
KINDS = ("softmax", "grouped", "corrected", "corrected and grouped")
CALIBRATION = {
    "influence": [], "layer_sensitivity": [0.4], "r_min": 0.3, "r_max": 0.9, "ratio_median": [0.6],
    "similarity": [[[1 / (1 + abs(a - b) / 5) for b in range(EXPERTS)] for a in range(EXPERTS)]],
}  # fmt: skip
POLICIES: list[tuple[str, dict[str, Any]]] = [
    ("none", {}),
    ("fixed_k", {"k": 2}),
    ("fixed_k", {"k": 4.5}),
    ("ban", {"lambda": 0.9, "k_min": 2}),
    ("ban_pick", {"lambda": 0.8, "k_min": 2, "mode": "range_add", "experts": {0: [3, 9]}}),
    ("pick", {"mode": "boost", "boost": 0.7, "experts": {0: [5]}}),
    ("pick", {"mode": "force_add", "experts": {0: [1, 8]}}),
    ("pick", {"mode": "range_replace", "experts": {0: [3, 30]}}),
    ("top_p", {"p": 0.7}),
    ("mask", {"experts": {0: [0, 7, 12]}}),
    ("steer", {"on": {"0": [3]}, "off": {"0": [7]}}),
    ("diep", {"beta": 0.9, "alpha": 0.7, "k_min": 2}),
]


def policy_of(index: int) -> Policy:
    name, params = POLICIES[index]
    shape = {"num_layers": 1, "num_experts": EXPERTS, "top_k": TOP_K}
    return build_policy(name, params, **shape, calibration=CALIBRATION)


def router_of(kind: str) -> Any:
    """vLLM's own functions, as its CPU router calls them."""
    from vllm.model_executor.layers.fused_moe.router import cpu_router

    bias = torch.rand(EXPERTS, generator=torch.Generator().manual_seed(1)) * 0.3 if "corrected" in kind else None
    groups, seen = (4, 2) if "grouped" in kind else (1, 1)

    class Router:
        global_num_experts, top_k, renormalize = EXPERTS, TOP_K, True
        scoring_func = "softmax" if kind in ("softmax", "grouped") else "sigmoid"
        use_grouped_topk, num_expert_group, topk_group = kind != "softmax", groups, seen
        e_score_correction_bias = bias

        def _compute_routing(self, hidden: Any, logits_TE: Any, *_: Any, input_ids: Any) -> Any:
            if kind == "softmax":
                return cpu_router._softmax_topk(logits_TE, self.top_k, True)
            return cpu_router._grouped_topk(logits_TE, self.top_k, True, groups, seen, self.scoring_func, 1.0, bias)

    return Router()


def layer_of(kind: str, fixed_slots: int | None, rows: Any = None) -> Any:
    from banpick_exp.engine.plugin.layer import HookedLayer

    return HookedLayer(kind, router_of(kind), torch.device("cpu"), fixed_slots, rows)


def rows_of(count: int, tokens: int) -> Any:
    from banpick_exp.engine.plugin.token_rows import TokenRows

    rows = TokenRows(count, tokens, tokens + 1, torch.device("cpu"))
    rows.named = count
    return rows


def routed(layer: Any, logits_TE: Tensor, is_padding: Tensor | None) -> tuple[Tensor, Tensor]:
    """In a forward pass that counts."""
    from vllm.forward_context import override_forward_context

    context: Any = SimpleNamespace(attn_metadata={}, is_padding=is_padding)
    with override_forward_context(context):
        found: tuple[Tensor, Tensor] = layer.route(None, logits_TE, None, None)
    return found


def by_expert(weights_TS: Tensor, ids_TS: Tensor) -> Tensor:
    return torch.zeros(len(ids_TS), EXPERTS).scatter_add(1, ids_TS.long(), weights_TS)


@settings(max_examples=60, deadline=None)
@given(
    kind=st.sampled_from(KINDS),
    chosen=st.lists(st.integers(0, len(POLICIES) - 1), min_size=2, max_size=5),
    tokens=st.sampled_from([2, 40, 150]),
    padding=st.sampled_from([0, 3]),
    fixed=st.booleans(),
    ties=st.booleans(),
    seed=st.integers(0, 2**16),
)
def test_each_token_goes_the_way_of_its_row(
    kind: str, chosen: list[int], tokens: int, padding: int, fixed: bool, ties: bool, seed: int
) -> None:
    generator, draw = torch.Generator().manual_seed(seed), random.Random(seed)
    logits_TE = torch.randn(tokens + padding, EXPERTS, generator=generator) * 2
    if ties:  # few tokens on a CPU order ties by id, many as vLLM does: whichever it is, all must be few
        tokens, logits_TE = min(tokens, 40), logits_TE[: min(tokens, 40) + padding].round()
    is_padding = torch.arange(len(logits_TE)) >= tokens if padding else None
    rows, fixed_slots = rows_of(len(chosen), tokens + padding), TOP_K + 3 if fixed else None
    layer = layer_of(kind, fixed_slots, rows)
    policies = [policy_of(index) for index in chosen]
    for row, policy in enumerate(policies):
        edit = None if policy.edits is None else policy.edits[0]
        layer.write(policy.table.layer(0), slots=policy.max_kept, edit=edit, row=row)
    row_R = [draw.randrange(len(chosen)) for _ in range(tokens)]
    rows.fill(row_R, np.arange(tokens))
    weights_TS, ids_TS = routed(layer, logits_TE, is_padding)
    assert weights_TS.shape == ids_TS.shape
    found_TE = by_expert(weights_TS, ids_TS)[:tokens]
    for row, policy in enumerate(policies):
        of_row = torch.tensor([each == row for each in row_R])
        if not of_row.any():
            assert layer.tokens_P[row] == 0 and not layer.usage_PE[row].any()
            continue
        alone = layer_of(kind, fixed_slots)
        edit = None if policy.edits is None else policy.edits[0]
        alone.write(policy.table.layer(0), slots=policy.max_kept, edit=edit)
        own_weights, own_ids = routed(alone, logits_TE[:tokens][of_row], None)
        wanted_TE = by_expert(own_weights, own_ids)
        assert torch.equal(found_TE[of_row] > 0, wanted_TE > 0)
        assert found_TE[of_row].allclose(wanted_TE, atol=1e-6, rtol=1e-6)
        width = min(ids_TS.shape[1], own_ids.shape[1])
        assert torch.equal(ids_TS[:tokens][of_row][:, :width], own_ids[:, :width].int())
        assert layer.tokens_P[row] == alone.tokens_P[0] == int(of_row.sum())
        assert torch.equal(layer.usage_PE[row], alone.usage_PE[0])


def test_a_token_without_its_row_is_refused() -> None:
    rows = rows_of(2, 8)
    layer = layer_of("softmax", None, rows)
    rows.fill([0, 1], np.array([0, 0, 0, 1, 1]))
    with pytest.raises(RuntimeError, match="is handed 3 of the 5 tokens of a step"):
        routed(layer, torch.randn(3, EXPERTS), None)


def test_rows_of_a_step_end_with_it() -> None:
    rows = rows_of(4, 8)
    rows.fill([3, 1], np.array([0, 0, 0, 1, 1]))
    assert rows.row_T.tolist() == [3, 3, 3, 1, 1, 0, 0, 0] and rows.present == (1, 3)
    rows.fill([2], np.array([0, 0]))
    assert rows.row_T.tolist() == [2, 2, 0, 0, 0, 0, 0, 0] and rows.present == (2,)
    rows.clear()
    assert rows.row_T.tolist() == [0] * 8 and rows.present == (0,)


ON_A_DEVICE = """
import numpy as np
import torch
from banpick_exp.engine.plugin.token_rows import TokenRows

rows = TokenRows(4, 8, 9, torch.device("meta"))
rows.named = 4
rows.fill([3, 1], np.array([0, 0, 0, 1, 1]))
assert rows.host_T.tolist() == [3, 3, 3, 1, 1, 0, 0, 0] and rows.row_T.shape == (8,)
first, second = rows.places(np.array([-1, 1, -1, 0]), 6)
assert (first.shape, second.shape) == ((3,), (2,)) and first.device.type == "meta" and first.dtype == torch.int64
rows.clear()
assert rows.host_T.tolist() == [0] * 8
"""


def test_on_a_device_the_host_knows_the_rows_too() -> None:
    """The device is torch's `meta`, which computes nothing: what is copied fits, from arrays and into tensors. In a
    process of its own: a CPU engine of this one has put vLLM's copy to the CPU in place of that to a device."""
    done = subprocess.run([sys.executable, "-c", ON_A_DEVICE], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("row", [-1, 4])
def test_a_row_that_holds_nothing_is_refused_and_nothing_changes(row: int) -> None:
    rows = rows_of(4, 8)
    rows.fill([3], np.array([0, 0]))
    with pytest.raises(RuntimeError, match=rf"routing_row={row}, .*Name one of 0\.\.3"):
        rows.fill([1, row], np.array([0, 1]))
    assert rows.row_T.tolist() == [3, 3, 0, 0, 0, 0, 0, 0]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"dp_size": 2}, "data parallelism"),
        ({"is_sequence_parallel": True}, "sequence parallelism"),
        ({"pcp_size": 2}, "prefill context parallelism"),
        ({"use_ubatching": True}, "micro-batches"),
        ({"speculative_config": object()}, "speculative decoding"),
        ({"kv_sharing_fast_prefill": True}, "kv_sharing_fast_prefill"),
        ({}, None),
    ],
)
def test_where_tokens_travel_without_their_rows(change: dict[str, Any], says: str | None) -> None:
    from banpick_exp.engine.plugin.token_rows import refuse

    values = {
        "dp_size": 1, "is_sequence_parallel": False, "pcp_size": 1, "use_ubatching": False,
        "speculative_config": None, "kv_sharing_fast_prefill": False, **change,
    }  # fmt: skip
    one: Any = SimpleNamespace(**values)
    config = SimpleNamespace(parallel_config=one, cache_config=one, speculative_config=one.speculative_config)
    if says is None:
        refuse("layer", config, one)
    else:
        with pytest.raises(RuntimeError, match=f"layer: .*{says}.*one policy"):
            refuse("layer", config, one)


def test_a_runner_that_does_not_say_whose_tokens_it_has_is_refused() -> None:
    """One of a plugin of vLLM."""
    from banpick_exp.engine.plugin.model_runners import follow

    with pytest.raises(RuntimeError, match="one of vLLM's own model runners, this is builtins"):
        follow(object(), rows_of(2, 8))
