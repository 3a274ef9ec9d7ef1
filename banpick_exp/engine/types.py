"""What an engine is asked for and gives back: how to sample, the answers, and what was routed meanwhile."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class Sampling:
    """How one answer is drawn."""

    temperature: float
    top_p: float
    seed: int


@dataclass(frozen=True, slots=True)
class Generation:
    """One answer. `truncated`: it hit the token cap instead of stopping by itself."""

    text: str
    token_ids: tuple[int, ...]
    prompt_token_ids: tuple[int, ...]
    truncated: bool


@dataclass(frozen=True, slots=True)
class Counters:
    """What was routed since the last reset, per MoE layer. Padding rows and dummy runs are left out."""

    tokens: list[int]
    kept: list[int]
    usage: list[list[int]]

    @property
    def mean_kept(self) -> float:
        """The measured budget: experts kept a token and layer."""
        return sum(self.kept) / max(sum(self.tokens), 1)
