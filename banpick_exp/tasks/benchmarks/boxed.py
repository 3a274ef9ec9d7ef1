r"""Mathematics with the answer in a box: how Qwen's model cards ask for it (Qwen3: "Best Practices", math problems)."""

from __future__ import annotations

ASKED = "\n\nPlease reason step by step, and put your final answer within \\boxed{}."


def boxed(problem: str) -> str:
    """The prompt of a problem."""
    return problem.strip() + ASKED
