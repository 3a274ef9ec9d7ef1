"""Degenerate repetition: a model that is pruned too hard stops stopping and goes round in a circle."""

from __future__ import annotations

from collections.abc import Sequence

LONGEST_PERIOD = 64
"""Tokens of the longest loop that is looked for: about a paragraph."""
MIN_ROUNDS = 4
MIN_TOKENS = 16
"""Tokens that a loop must fill: `0000` at the end of a number is no loop."""


def is_repetitive(token_ids: Sequence[int], *, stopped: bool) -> bool:
    """Whether an answer ends in a loop: its last max(16, 4 * p) tokens repeat with some period p of 1 to 64.

    Args:
        token_ids: of the answer.
        stopped: the answer ended by itself, so its last token is the stop token, which is left out.

    Example: is_repetitive([5, 1, 2] + [7, 8] * 8, stopped=False) is True; with seven rounds of two tokens it is False.
    """
    ids = list(token_ids[:-1] if stopped else token_ids)
    for period in range(1, min(LONGEST_PERIOD, len(ids) // MIN_ROUNDS) + 1):
        length = max(MIN_TOKENS, MIN_ROUNDS * period)
        # The first comparison rejects nearly every period without a copy.
        if len(ids) >= length and ids[-1] == ids[-1 - period] and ids[-length:-period] == ids[period - length :]:
            return True
    return False
