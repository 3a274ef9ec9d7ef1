"""What it costs to ask: texts are tokenized together, and no request's parameters are copied deeply."""

from __future__ import annotations

import gc
from typing import TYPE_CHECKING, Any

import pytest
from prompts import short_prompts

if TYPE_CHECKING:
    from banpick_exp.engine.engine import Engine

pytestmark = pytest.mark.engine


@pytest.mark.parametrize("special_tokens", [True, False])
def test_texts_have_the_tokens_they_have_alone(tiny_engine: Engine, special_tokens: bool) -> None:
    texts = [*short_prompts(20), "1", "a longer text; of no domain"]
    alone = [tiny_engine.tokenize([text], special_tokens=special_tokens)[0] for text in texts]
    assert tiny_engine.tokenize(texts, special_tokens=special_tokens) == alone
    assert tiny_engine.tokenize([], special_tokens=special_tokens) == []


def test_no_request_is_copied_deeply(tiny_engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """vLLM's deep copies cost a tenth of the embedded model's time; answers and scores are the same without."""
    import vllm.sampling_params

    sequences = tiny_engine.tokenize(short_prompts(8))
    scores = tiny_engine.score(sequences)
    answers = tiny_engine.generate_ids(sequences, max_tokens=8)

    def deepcopy(value: Any) -> None:
        raise AssertionError(f"{value} was copied deeply")

    monkeypatch.setattr(vllm.sampling_params.copy, "deepcopy", deepcopy)
    assert tiny_engine.generate_ids(sequences, max_tokens=8) == answers
    assert tiny_engine.score(sequences) == scores
    tiny_engine.prefill(sequences)


def test_limits_of_a_call_end_with_it(tiny_engine: Engine) -> None:
    """Parameters are made for one request: none finds those of a call before."""
    sequences = tiny_engine.tokenize(short_prompts(4))
    whole = tiny_engine.generate_ids(sequences, max_tokens=6, ignore_eos=True)
    assert {len(answer.token_ids) for answer in whole} == {6}
    cut = tiny_engine.generate_ids(sequences, max_tokens=2, ignore_eos=True)
    assert [answer.token_ids for answer in cut] == [answer.token_ids[:2] for answer in whole]
    assert tiny_engine.generate_ids([], max_tokens=2) == []


def test_garbage_is_collected_after_a_start(tiny_engine: Engine) -> None:
    assert tiny_engine.llm is not None and gc.isenabled()
