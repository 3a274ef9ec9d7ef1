"""Speed against stock: alternating timed runs on the same prompts, every answer of one forced length."""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from banpick_exp.engine.engine import Engine
from banpick_exp.evaluation.answer import DomainPolicy, Problems
from banpick_exp.tasks.config import TaskConfig


@dataclass(frozen=True, slots=True)
class Timing:
    """Seconds of the alternating runs of one domain, repeat by repeat, and the tokens each run generated."""

    stock_seconds: list[float]
    policy_seconds: list[float]
    tokens: int


def time_against_stock(
    engine: Engine, policies: Mapping[str, DomainPolicy], task: TaskConfig, problems: Problems
) -> dict[str, Timing]:
    """Alternating timed runs on the same prompts: stock first, then policy first, and so on.

    Each run has its own cache salt, so no run finds another's prefixes.
    """
    share = max(1, task.throughput_prompts // len(problems))
    length = task.throughput_tokens or task.max_tokens
    timings = {}
    for domain, items in problems.items():
        prompts = engine.tokenize([p.prompt for p in items[:share]], chat=task.chat_template)
        seconds: dict[str, list[float]] = {"stock": [], "policy": []}
        for repeat in range(task.throughput_repeats):
            for side in ("stock", "policy") if repeat % 2 == 0 else ("policy", "stock"):
                if side == "stock":
                    engine.set_policy("none", {})
                else:
                    policies[domain].activate(engine)
                begin = time.perf_counter()
                engine.generate_ids(prompts, max_tokens=length, salt=f"{side}{repeat}", ignore_eos=True)
                seconds[side].append(time.perf_counter() - begin)
        timings[domain] = Timing(seconds["stock"], seconds["policy"], len(prompts) * length)
    return timings


@dataclass(frozen=True, slots=True)
class Speed:
    """A policy's speed beside stock's: generated tokens/s, the median of the paired ratios, and their ends."""

    tokens_per_second: float
    ratio: float
    spread: tuple[float, float]


def speed_of(timings: Sequence[Timing]) -> Speed | None:
    """The timed runs of several domains as one, repeat by repeat; None where nothing was timed."""
    if not timings:
        return None
    stock_seconds = np.sum([t.stock_seconds for t in timings], axis=0)
    policy_seconds = np.sum([t.policy_seconds for t in timings], axis=0)
    ratios = stock_seconds / policy_seconds
    generated = sum(t.tokens for t in timings) * len(ratios)
    return Speed(
        tokens_per_second=float(generated / policy_seconds.sum()),
        ratio=float(statistics.median(ratios)),
        spread=(float(ratios.min()), float(ratios.max())),
    )
