"""A model that thinks aloud answers behind its thought: what stands in the thought is no answer."""

from __future__ import annotations

BEGIN, END = "<think>", "</think>"


def after_thought(completion: str) -> str | None:
    """What follows the last thought; all where there is none; None where a thought has begun and not ended.

    A chat template that writes the opening tag into the prompt hides where a thought began: a completion without either
    tag is taken for an answer.
    """
    _, end, answer = completion.rpartition(END)
    rest = answer if end else completion
    return None if BEGIN in rest else rest
