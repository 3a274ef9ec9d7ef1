"""A policy swap is fast, leaves nothing behind, and the prefix cache never serves another policy's keys and values."""

from __future__ import annotations

import statistics
from typing import TYPE_CHECKING, Any

import pytest
from own_process import findings
from prompts import MAX_TOKENS, NUM_LAYERS, POLICY_A, POLICY_B, long_prompts, short_prompts

if TYPE_CHECKING:
    from banpick_exp.engine.engine import Engine

pytestmark = pytest.mark.engine

OWN_PROCESS = "run_fresh.py"

SWAP_SECONDS = 0.05


@pytest.fixture(scope="module")
def fresh(request: pytest.FixtureRequest) -> dict[str, Any]:
    found: dict[str, Any] = findings(OWN_PROCESS, request)["swaps"]
    return found


def test_a_again_equals_the_first_time_and_a_fresh_engine(tiny_engine: Engine, fresh: dict[str, Any]) -> None:
    answers = {}
    for turn, policy in enumerate((POLICY_A, POLICY_B, POLICY_A)):
        tiny_engine.set_policy(*policy)
        # A salt for each turn: the second A must compute its answers again, not read them.
        generations = tiny_engine.generate(short_prompts(60), max_tokens=MAX_TOKENS, salt=f"turn {turn}")
        answers[turn] = [list(g.token_ids) for g in generations]
    assert answers[0] == answers[2]
    assert answers[0] != answers[1]
    assert answers[0] == fresh["a_short"]


def test_a_swap_takes_milliseconds(tiny_engine: Engine) -> None:
    seconds = [tiny_engine.set_policy(*policy) for _ in range(5) for policy in (POLICY_A, POLICY_B, ("none", {}))]
    assert statistics.median(seconds) < SWAP_SECONDS


def test_each_policy_has_its_own_cache_salt(tiny_engine: Engine) -> None:
    policies: list[tuple[str, dict[str, Any]]] = [
        ("none", {}), POLICY_A, POLICY_B, ("fixed_k", {"k": 3}), ("pick", {**POLICY_A[1], "mode": "range_replace"}),
        ("pick", {**POLICY_A[1], "experts": {1: [3, 5], 2: [8]}}),
    ]  # fmt: skip
    salts = []
    for policy in policies:
        tiny_engine.set_policy(*policy)
        salts.append(tiny_engine.policy_fingerprint)
    assert len(set(salts)) == len(policies)
    tiny_engine.set_policy(*POLICY_A)
    assert tiny_engine.policy_fingerprint == salts[1]


def test_the_prefix_cache_does_not_leak_between_policies(fresh: dict[str, Any]) -> None:
    assert fresh["b_long_after_a"] == fresh["b_long"], "B after A must answer like an engine that never saw A"
    assert fresh["a_long_again"] == fresh["a_long"]


def test_the_prefix_cache_would_leak_with_one_salt(fresh: dict[str, Any]) -> None:
    """The control: with a common salt the same prompts do hit the other policy's blocks, and answers change."""
    assert fresh["leak"] != fresh["b_long"]


def test_the_prefix_cache_works_within_a_policy(fresh: dict[str, Any]) -> None:
    """A asked twice: each prompt's first block of 128 tokens is read from the cache, so it is not routed again."""
    generated = sum(len(answer) - 1 for answer in fresh["a_long_again"])
    prompts = [len(text) for text in long_prompts(24)]
    assert min(prompts) > 128
    assert fresh["a_tokens_again"] == [sum(prompts) - 128 * len(prompts) + generated] * NUM_LAYERS
