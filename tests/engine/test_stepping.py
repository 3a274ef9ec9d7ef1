"""An engine driven step by step: policies change within one running batch, and nothing of it stays."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from prompts import MAX_TOKENS, NUM_LAYERS, short_prompts

if TYPE_CHECKING:
    from banpick_exp.engine.engine import Engine

pytestmark = pytest.mark.engine

BATCH = 4


def test_policies_alternate_between_the_steps_of_one_batch(tiny_engine: Engine) -> None:
    from banpick_exp.engine.stepping import Stepper

    tiny_engine.set_policy("none", {})
    before = tiny_engine.generate(short_prompts(10), max_tokens=MAX_TOKENS, salt="before stepping")
    prompts = tiny_engine.tokenize(short_prompts(BATCH))
    stepper, core = Stepper(tiny_engine), tiny_engine.llm.llm_engine
    for _ in range(2):
        with stepper.decoding(prompts, steps=9):
            for k in (3, 8, 5):
                tiny_engine.set_policy("fixed_k", {"k": k})
                tiny_engine.counters(reset=True)
                assert all(stepper.step() > 0 for _ in range(3))
                counted = tiny_engine.counters(reset=True)
                assert (counted.tokens, counted.mean_kept) == ([3 * BATCH] * NUM_LAYERS, k)
            assert core.has_unfinished_requests()
        assert not core.has_unfinished_requests()
    tiny_engine.set_policy("none", {})
    assert tiny_engine.generate(short_prompts(10), max_tokens=MAX_TOKENS, salt="after stepping") == before


def test_a_prefill_is_one_step_and_nothing_of_it_is_found_again(tiny_engine: Engine) -> None:
    """Prompts over one KV block long: the prefix cache would hold back what it had seen."""
    from banpick_exp.engine.stepping import Stepper

    tiny_engine.set_policy("fixed_k", {"k": 2})
    stepper, prompt = Stepper(tiny_engine), [10 + i % 80 for i in range(100)]
    for _ in range(2):
        tiny_engine.counters(reset=True)
        names = stepper.add([prompt], max_tokens=1)
        stepper.step()
        assert tiny_engine.counters(reset=True).tokens == [len(prompt)] * NUM_LAYERS
        stepper.abort(names)
