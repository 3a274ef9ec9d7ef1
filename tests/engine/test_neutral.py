"""Policy `none` is stock vLLM, bit for bit; and without the plugin's name the engine refuses."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from own_process import findings
from prompts import POLICY_A, POLICY_B, answers_with_logprobs, short_prompts

if TYPE_CHECKING:
    from banpick_exp.engine.engine import Engine

pytestmark = pytest.mark.engine

OWN_PROCESS = "run_stock.py"


@pytest.fixture(scope="module")
def stock(request: pytest.FixtureRequest) -> dict[str, Any]:
    return findings(OWN_PROCESS, request)


def test_none_equals_stock_vllm(tiny_engine: Engine, stock: dict[str, Any]) -> None:
    tiny_engine.set_policy("none", {})
    answers = answers_with_logprobs(tiny_engine.llm, short_prompts(100), "neutral")
    assert not stock["hooked"], "the reference must be vLLM without the plugin"
    assert len(answers) == 100
    assert [a["tokens"] for a in answers] == [a["tokens"] for a in stock["answers"]]
    assert answers == stock["answers"]


@pytest.mark.parametrize("policy", [POLICY_A, POLICY_B], ids=lambda p: p[0])
def test_none_equals_stock_after_another_policy(
    tiny_engine: Engine, stock: dict[str, Any], policy: tuple[str, dict[str, Any]]
) -> None:
    prompts = short_prompts(100)
    tiny_engine.set_policy(*policy)
    other = answers_with_logprobs(tiny_engine.llm, prompts, f"other {policy[0]}")
    assert other != stock["answers"], "the other policy must change something, or the swap back proves nothing"
    tiny_engine.set_policy("none", {})
    assert answers_with_logprobs(tiny_engine.llm, prompts, f"back from {policy[0]}") == stock["answers"]


def test_an_engine_whose_environment_does_not_name_the_plugin_is_refused(stock: dict[str, Any]) -> None:
    assert "did not hook" in stock["refusal"]
    assert "VLLM_PLUGINS=banpick" in stock["refusal"]
