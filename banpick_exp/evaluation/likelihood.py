"""How likely a model finds each of several continuations: the answer to a problem of choices, without a word written.

Divided into tokens as lm-eval does (its `TemplateLM._encode_pair`, 0.4.13), because scores there move with it: white
space at the end of a context belongs to the continuation, and the whole text is tokenized, not its parts.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

from banpick_exp.engine.engine import Engine
from banpick_exp.engine.types import Generation
from banpick_exp.errors import UserError
from banpick_exp.tasks.problem import Problem


def likelihoods(engine: Engine, problems: Sequence[Problem], *, salt: str = "") -> list[Generation]:
    """For each problem, as JSON text, [log-probability (nats), whether greedy decoding writes it] of every choice."""
    pairs = [choice for problem in problems for choice in problem.choices]
    sequences, starts = encoded(engine, pairs)
    scores = iter(engine.continuations(sequences, starts, salt=salt))
    return [
        Generation(
            text=json.dumps([next(scores) for _ in problem.choices]),
            token_ids=(),
            prompt_token_ids=(),
            finish_reason="scored",
        )
        for problem in problems
    ]


def encoded(engine: Engine, pairs: Sequence[tuple[str, str]]) -> tuple[list[list[int]], list[int]]:
    """Tokens of context and continuation together, and where the continuation begins: at 1 or later.

    Raises UserError where a continuation without a context has no token before it, or has none itself.
    """
    contexts = [context.rstrip() if context.strip() else context for context, _ in pairs]
    befores = engine.tokenize(contexts)
    wholes = engine.tokenize([context + continuation for context, continuation in pairs])
    alone = [continuation for context, continuation in pairs if context == ""]
    without = iter(engine.tokenize(alone, special_tokens=False) if alone else [])
    sequences, starts = [], []
    for (context, continuation), before, whole in zip(pairs, befores, wholes, strict=True):
        start = len(before)
        if context == "":
            first, whole = engine.first_token(), next(without)
            if first is not None and whole[:1] != [first]:
                whole = [first, *whole]
            start = 1
        if not 0 < start < len(whole):
            raise UserError(
                f"the continuation {continuation!r} behind {context[-40:]!r} has no token of its own, so nobody can say"
                " how likely it is: nothing was asked. Leave the problem out."
            )
        sequences.append(whole)
        starts.append(start)
    return sequences, starts
