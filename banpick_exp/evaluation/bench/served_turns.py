"""What the turns of a served policy add up to: throughput over stock's, latencies, and whether the policy was on.

An arm is one way to answer: vLLM without the plugin, stock routing beside policies, or a policy. All arms answer the
same prompts in a round, so a figure is a ratio within a round; the order of the arms turns back in every second round.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from banpick_exp.analysis.intervals import median_interval
from banpick_exp.engine.serving.load_client import Turn
from banpick_exp.engine.serving.served import STOCK, Served
from banpick_exp.evaluation.bench.timing import Row

PLAIN = "no plugin"
"""The arm of vLLM alone; no policy can have a space in its name."""
TOLERANCE = 0.005
"""Experts a token: by how much a mean of whole numbers may be off after two divisions."""
FAR = 0.1
"""Share by which the budget of these prompts may differ from the measured one before that is said."""


@dataclass(frozen=True, slots=True)
class Counted:
    """What a policy's row has routed, by `/metrics`; a difference of two readings is what a turn routed."""

    tokens: float
    kept: float
    """Experts of a token, added up over tokens, mean over layers."""

    def __sub__(self, former: Counted) -> Counted:
        return Counted(self.tokens - former.tokens, self.kept - former.kept)


def counted(metrics: Mapping[str, float], policy: str) -> Counted:
    """Of one policy; zeros where it has routed nothing."""
    tokens = metrics.get(f'banpick_tokens_total{{policy="{policy}"}}', 0.0)
    by_layer = [
        value
        for name, value in metrics.items()
        if name.startswith("banpick_mean_kept{") and f'policy="{policy}"' in name
    ]
    return Counted(tokens, tokens * float(np.mean(by_layer)) if by_layer else 0.0)


@dataclass(slots=True)
class Arm:
    """One way to answer, at one number of clients, round by round."""

    name: str
    served: Served | None
    """None: the server without the plugin, which counts nothing."""
    turns: list[Turn] = field(default_factory=list)
    routed: list[Counted] = field(default_factory=list)
    cpu_seconds: list[float] = field(default_factory=list)
    """Of its server, all processes."""

    def add(self, turn: Turn, routed: Counted, cpu_seconds: float) -> None:
        """One round."""
        self.turns.append(turn)
        self.routed.append(routed)
        self.cpu_seconds.append(cpu_seconds)

    @property
    def speeds(self) -> np.ndarray:
        """Answered tokens a second, float64 [rounds]."""
        return np.array([turn.tokens_per_second for turn in self.turns])

    @property
    def mean_kept(self) -> float | None:
        """Experts a token over all its turns."""
        tokens = sum(each.tokens for each in self.routed)
        return sum(each.kept for each in self.routed) / tokens if tokens else None


def order(arms: Sequence[Arm], turn: int) -> Sequence[Arm]:
    """A B C, C B A, A B C ...: what changes steadily meets every arm alike in two rounds."""
    return arms if turn % 2 == 0 else arms[::-1]


def row_of(arm: Arm, arms: Sequence[Arm], top_k: int) -> Row:
    """Medians over the rounds; ratios to stock and to vLLM alone with their 95 % intervals (`median_interval`).

    `cpu_over_stock` is the same by processor time, which bears a busy machine: stock's over the arm's.
    """
    row: Row = {"arm": arm.name, "rounds": len(arm.turns)}
    row |= {"policy": None if arm.served is None else arm.served.label}
    row |= {"fingerprint": None if arm.served is None else arm.served.fingerprint}
    row |= {"tokens_per_second": float(np.median(arm.speeds))}
    for name, base in (("over_stock", STOCK), ("over_plain", PLAIN)):
        reference = next((each for each in arms if each.name == base and each is not arm), None)
        row |= _ratio(name, None if reference is None else arm.speeds / reference.speeds)
        timed = reference is not None and min(*arm.cpu_seconds, *reference.cpu_seconds) > 0
        row |= _ratio(
            f"cpu_{name}",
            np.array(reference.cpu_seconds) / np.array(arm.cpu_seconds) if reference is not None and timed else None,
        )
    for key in ("first_token", "between_tokens"):
        seconds = np.concatenate([getattr(turn, f"{key}_seconds") for turn in arm.turns])
        for name, share in (("ms", 0.5), ("ms_p99", 0.99)):
            row[f"{key}_{name}"] = 1e3 * float(np.quantile(seconds, share)) if seconds.size else None
    problems, notes = engagement(arm, top_k)
    row |= {"mean_kept": arm.mean_kept, "mean_kept_exported": exported_budget(arm.served)}
    return row | {"valid": not problems, "problems": problems, "notes": notes}


def _ratio(name: str, rounds: np.ndarray | None) -> Row:
    middle, low, high = (None, None, None) if rounds is None else median_interval(rounds)
    return {name: middle, f"{name}_low": low, f"{name}_high": high}


def exported_budget(served: Served | None) -> float | None:
    """The mean kept that the export was measured with, in the domain that is served; None of stock."""
    if served is None or served.exported is None:
        return None
    measured = served.exported.header.measured["domains"].get(served.domain) or {}
    kept = measured.get("mean_kept")
    return None if kept is None else float(kept)


def engagement(arm: Arm, top_k: int) -> tuple[list[str], list[str]]:
    """(why its figure says nothing about the policy, what should be known about it), by what the workers counted."""
    if arm.served is None:
        return [], []
    # The last token of an answer is routed by nobody.
    needed = sum(turn.prompt_tokens + turn.output_tokens - len(turn.first_token_seconds) for turn in arm.turns)
    routed, kept = sum(each.tokens for each in arm.routed), arm.mean_kept
    if kept is None or routed < needed:
        return [f"its requests are {needed} tokens, and {routed:.0f} were routed under it"], []
    if arm.served.exported is None:
        low, high = float(top_k), float(top_k)
    else:
        assert arm.served.domain is not None
        low, high = arm.served.exported.header.domains[arm.served.domain].implied_budget
    problems, notes = [], []
    if not low - TOLERANCE <= kept <= high + TOLERANCE:
        problems.append(f"it kept {kept:.2f} experts a token and can keep {low:.2f} to {high:.2f}")
    exported = exported_budget(arm.served)
    if exported is not None:
        if exported < top_k - TOLERANCE and kept > top_k - TOLERANCE:
            problems.append(f"it kept {kept:.2f} of {top_k}: nothing was pruned, and {exported:.2f} were measured")
        elif abs(kept / exported - 1) > FAR:
            notes.append(f"these prompts keep {kept:.2f} experts a token, those it was measured on {exported:.2f}")
    return problems, notes
