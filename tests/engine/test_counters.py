"""What was routed, counted by the engine and by hand."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from own_process import findings
from prompts import MAX_TOKENS, NUM_EXPERTS, NUM_LAYERS, TOP_K, short_prompts

if TYPE_CHECKING:
    from banpick_exp.engine.types import Generation
    from banpick_exp.records import Counters
from banpick_exp.engine.engine import Engine

pytestmark = pytest.mark.engine

OWN_PROCESS = "run_fresh.py"


def run(engine: Engine, name: str, params: dict[str, Any], salt: str) -> tuple[list[Generation], Counters]:
    engine.set_policy(name, params)
    engine.counters(reset=True)
    answers = engine.generate(short_prompts(90), max_tokens=MAX_TOKENS, salt=salt)
    return answers, engine.counters(reset=True)


def routed_tokens(answers: list[Generation]) -> int:
    """Every prompt token, and every generated token but the last, which is never fed back."""
    return sum(len(a.prompt_token_ids) + len(a.token_ids) - 1 for a in answers)


@pytest.mark.parametrize("k", [1, 3, 8])
def test_fixed_k_counts_exactly(tiny_engine: Engine, k: int) -> None:
    answers, counters = run(tiny_engine, "fixed_k", {"k": k}, "count")
    tokens = routed_tokens(answers)
    assert counters.tokens == [tokens] * NUM_LAYERS
    assert counters.kept == [tokens * k] * NUM_LAYERS
    assert counters.mean_kept == k


@pytest.mark.parametrize(
    ("name", "params"),
    [
        ("none", {}),
        ("pick", {"mode": "boost", "boost": 2.0, "experts": {1: [3]}}),
        ("pick", {"mode": "range_add", "experts": {1: [3]}}),
        ("pick", {"mode": "force_replace", "experts": {1: [3]}}),
    ],
    ids=lambda value: str(value.get("mode", "")) if isinstance(value, dict) else value,
)
def test_usage_sums_to_kept(tiny_engine: Engine, name: str, params: dict[str, Any]) -> None:
    answers, counters = run(tiny_engine, name, params, "usage")
    assert counters.tokens == [routed_tokens(answers)] * NUM_LAYERS
    assert [len(row) for row in counters.usage] == [NUM_EXPERTS] * NUM_LAYERS
    assert [sum(row) for row in counters.usage] == counters.kept
    assert max(max(row) for row in counters.usage) <= counters.tokens[0], "an expert counted twice for a token"


def test_every_token_uses_a_forced_expert(tiny_engine: Engine) -> None:
    answers, counters = run(tiny_engine, "pick", {"mode": "force_replace", "experts": {1: [3]}}, "forced")
    assert counters.usage[1][3] == routed_tokens(answers)
    assert counters.usage[2][3] < routed_tokens(answers)
    assert counters.kept == [routed_tokens(answers) * TOP_K] * NUM_LAYERS


def test_added_experts_raise_the_budget_of_their_layer_alone(tiny_engine: Engine) -> None:
    answers, counters = run(tiny_engine, "pick", {"mode": "range_add", "experts": {1: [3, 5]}}, "added")
    base = routed_tokens(answers) * TOP_K
    assert counters.kept[1] > base
    assert [counters.kept[layer] for layer in (0, 2, 3)] == [base] * 3
    assert counters.mean_kept > TOP_K


def test_reset_empties_the_counters(tiny_engine: Engine) -> None:
    _, counters = run(tiny_engine, "none", {}, "reset")
    assert counters.tokens[0] > 0
    after = tiny_engine.counters(reset=False)
    assert after.tokens == after.kept == [0] * NUM_LAYERS
    assert sum(map(sum, after.usage)) == 0


def test_nothing_is_counted_while_an_engine_starts(request: pytest.FixtureRequest) -> None:
    counters = findings(OWN_PROCESS, request)["swaps"]["counters_after_start"]
    assert counters["tokens"] == counters["kept"] == [0] * NUM_LAYERS
    assert sum(map(sum, counters["usage"])) == 0


@pytest.mark.parametrize(
    "options", [{}, {"is_profile": True}, {"force_attention": True}], ids=["plain", "profile", "attention"]
)
def test_dummy_runs_are_not_counted(tiny_engine: Engine, worker: Any, options: dict[str, bool]) -> None:
    tiny_engine.counters(reset=True)
    worker.model_runner._dummy_run(32, **options)
    counters = tiny_engine.counters(reset=False)
    assert counters.kept == [0] * NUM_LAYERS
    assert counters.tokens == [0] * NUM_LAYERS
    assert sum(map(sum, counters.usage)) == 0


@pytest.fixture
def worker(tiny_engine: Engine) -> Any:
    """The in-process worker behind the engine, with our extension mixed in."""
    return tiny_engine.llm.llm_engine.engine_core.engine_core.model_executor.driver_worker.worker
