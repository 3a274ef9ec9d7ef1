"""Two policies of one engine contrasted: every token is the one that the formula says, from each policy run by itself.

The formula (2405.14507) once more, in plain Python, on the log-probabilities that either policy gives the answer when
it reads it: they differ from logits by a number that no comparison sees.
"""

from __future__ import annotations

import math
from typing import Any

import pytest
from own_process import findings
from run_contrast import AT_ONCE, CONTRASTS, MAX_TOKENS

pytestmark = [pytest.mark.engine, pytest.mark.slow]

OWN_PROCESS = "run_contrast.py"
TIE = 1e-3
"""Scores closer than this may rank either way: reading an answer and writing it round differently."""


@pytest.fixture(scope="module")
def found(request: pytest.FixtureRequest) -> dict[str, Any]:
    return findings(OWN_PROCESS, request)


def scores(strong: list[float], weak: list[float], alpha: float, beta: float) -> list[float]:
    cutoff = max(strong) + math.log(alpha) if alpha else -math.inf
    return [
        (1 + beta) * s - beta * w if s >= cutoff else -math.inf for s, w in zip(strong, weak, strict=True)
    ]  # fmt: skip


@pytest.mark.parametrize("name", CONTRASTS)
def test_every_token_has_the_highest_score(found: dict[str, Any], name: str) -> None:
    how, given, clear = CONTRASTS[name], found[name], 0
    for answer, strong, weak in zip(given["answers"], given["strong"], given["weak"], strict=True):
        for token, strong_V, weak_V in zip(answer["ids"], strong, weak, strict=True):
            score_V = scores(strong_V, weak_V, how.alpha, how.beta)
            best, second = sorted(score_V, reverse=True)[:2]
            assert best - score_V[token] < TIE
            clear += best - second > TIE
    assert clear > 0.99 * sum(len(answer["ids"]) for answer in given["answers"])


def test_the_contrasts_matter(found: dict[str, Any]) -> None:
    """The control: answers of the strong policy alone would fail the test above, and so would ones without a cutoff."""
    stock = [each["ids"] for each in found["stock"]]
    assert [each["ids"] for each in found["far away"]["answers"]] != stock
    assert [each["ids"] for each in found["turned round, nothing dropped"]["answers"]] != stock
    given, dropped = found["far away"], 0
    for answer, strong, weak in zip(given["answers"], given["strong"], given["weak"], strict=True):
        for token, strong_V, weak_V in zip(answer["ids"], strong, weak, strict=True):
            score_V = scores(strong_V, weak_V, 0.0, CONTRASTS["far away"].beta)
            dropped += max(score_V) - score_V[token] > TIE
    assert dropped


def test_without_a_contrast_it_is_the_strong_policy(found: dict[str, Any]) -> None:
    assert found["beta 0"] == found["against itself"] == found["stock"]


def test_sampled_answers(found: dict[str, Any]) -> None:
    sampled = found["sampled"]
    assert sampled["beta 0"] == sampled["stock"] != found["stock"]
    assert sampled["far away"] != sampled["stock"]
    assert sampled["again, one by one"] == sampled["far away"][: len(sampled["again, one by one"])]


def test_answers_end_where_they_are_told(found: dict[str, Any]) -> None:
    whole = [each["text"] for each in found["far away"]["answers"]]
    ends = [min((text.find(stop) for stop in "3a" if stop in text), default=len(text)) for text in whole]
    assert [each["text"] for each in found["stopped"]] == [text[:end] for text, end in zip(whole, ends, strict=True)]
    assert any(end < len(text) for text, end in zip(whole, ends, strict=True))
    assert all(len(each["ids"]) == MAX_TOKENS and each["end"] == "length" for each in found["not stopping"])


def test_both_policies_are_counted(found: dict[str, Any]) -> None:
    """Every prompt token and every answered one but the last, once by each row; 8 experts of one, 1 of the other."""
    tokens = found["prompt tokens"] + 6 * 4
    assert found["counted"] == [[tokens, 8 * tokens], [tokens, tokens], [0, 0]]


def test_scores_are_not_contrasted(found: dict[str, Any]) -> None:
    before, after = found["scores"]
    assert after == before


@pytest.mark.parametrize("what", ["tokens", "requests", "blocks"])
def test_a_pair_out_of_step_fails_the_call(found: dict[str, Any], what: str) -> None:
    """More is let in than there is room for: vLLM cuts, leaves out or preempts one of two; nothing is handed out."""
    assert "fell out of step: pair " in found["out of step"][what]


def test_the_engine_goes_on_after_such_a_call(found: dict[str, Any]) -> None:
    assert found["after that"] == found["far away"]["answers"]


def test_more_pairs_waited_than_ran(found: dict[str, Any]) -> None:
    """So what is said above holds while pairs come and go, and requests move in vLLM's batch."""
    assert len(found["stock"]) > AT_ONCE
    assert len({len(each["ids"]) for each in found["far away"]["answers"]}) > 3


def test_what_cannot_be_asked(found: dict[str, Any]) -> None:
    refused = found["refused"]
    assert "takes 400 tokens in one step: engine.max_num_batched_tokens=300 is too little" in refused["too long"]
    assert "set_policies was given, 0..2" in refused["no such row"]


def test_what_the_page_shows_runs(found: dict[str, Any]) -> None:
    assert [each["text"] for each in found["page"]] == ["116", "9,15,18"]
