"""Did the policy take effect, by what the engine counted: the measured budget, key experts, and any trace at all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from banpick_exp.analysis.engagement import SLACK
from banpick_exp.config import fingerprint
from banpick_exp.evaluation.answer import DomainPolicy, DomainRun
from banpick_exp.policy import MoeShape, Policy
from banpick_exp.policy.build import build_parts, routing_digest
from banpick_exp.policy.experts import as_knob
from banpick_exp.policy.rule import Pull
from banpick_exp.records import Counters, Engagement, Interval, KeyExpertShare, added_counters


def check_engagement(
    policies: Mapping[str, DomainPolicy],
    runs: Mapping[str, DomainRun],
    stock: Mapping[str, DomainRun],
    shape: MoeShape,
) -> tuple[Engagement, str | None]:
    """Evidence that the policy took effect, and the reason it did not (None when it did).

    The measured budget must lie within what the rule implies, in every domain (and within what chance makes of that,
    where a rule draws how many experts stay). A rule that spends a range must not
    sit at its end everywhere (native K: it did not engage; the floor: its threshold is off). A rule that pulls
    experts into the selection must raise their share over stock's (or lower it, where it pushes them out): its budget
    alone would not show that it was ever applied. A rule that changes more than how many experts stay must
    also leave some trace in what was counted. Of a rule of several rows each is held against what was counted of it
    alone, and together they must be all that was counted. `routing_table` and `routing_counts` are digests per domain
    of what the policy is and of what was counted: with them the replay guard tells equal by definition from replayed.
    """
    held = {domain: _held(policies[domain], runs[domain], shape) for domain in runs}
    every = [row for rows in held.values() for row in rows]
    pulls = [row for row in every if row.pull is not None]
    share = _key_expert_share(held, stock)
    together = {domain: policies[domain].contrast is not None for domain in runs}
    reasons = [
        f"{domain}: {problem}"
        for domain in runs
        for problem in _problems_of_domain(held[domain], runs[domain], together=together[domain])
    ]
    if share is not None and (problem := _unmoved(share, down=any(row.pull.down for row in pulls if row.pull))):
        reasons.append(problem)
    if any(_reroutes(row.policy) for row in every) and not _left_a_trace(runs, stock):
        reasons.append("every expert was selected exactly as often as under stock: nothing shows that it was applied")
    return _evidence(held, runs, share, together), "the policy did not engage: " + "; ".join(
        reasons
    ) if reasons else None


@dataclass(frozen=True, slots=True)
class _Row:
    """What one row held in one domain, and what was counted of it."""

    policy: Policy
    counted: Counters
    pull: Pull | None

    @property
    def choices(self) -> int:
        """Tokens x layers."""
        return sum(self.counted.tokens)


def _held(chosen: DomainPolicy, run: DomainRun, shape: MoeShape) -> list[_Row]:
    built = build_parts(chosen.rule, shape, chosen.calibration)
    counted = run.rows if len(built) > 1 else (run.counters,)
    return [_Row(policy, counters, policy.pull()) for policy, counters in zip(built, counted, strict=True)]


def _implied(rows: Sequence[_Row], *, together: bool) -> Interval:
    """Lowest and highest mean_kept of a domain, each row weighing as much as was routed by it.

    `together`: every token is routed by all rows, so what they keep adds up.
    """
    choices = max(1, sum(row.choices for row in rows))
    lows, highs = zip(*(row.policy.countable(row.choices) for row in rows), strict=True)
    if len(rows) == 1 or together:
        return sum(lows), sum(highs)
    low, high = (sum(end * row.choices for end, row in zip(ends, rows, strict=True)) for ends in (lows, highs))
    return low / choices, high / choices


def _evidence(
    held: Mapping[str, Sequence[_Row]],
    runs: Mapping[str, DomainRun],
    share: KeyExpertShare | None,
    together: Mapping[str, bool],
) -> Engagement:
    counters = {domain: run.counters for domain, run in runs.items()}
    several = {domain: rows for domain, rows in held.items() if len(rows) > 1}
    by_row = {domain: tuple(row.counted.mean_kept for row in rows) for domain, rows in several.items()}
    keys = {domain: [row.policy.key_experts for row in rows] for domain, rows in held.items()}
    evidence = Engagement(
        implied={domain: _implied(rows, together=together[domain]) for domain, rows in held.items()},
        measured={domain: counted.mean_kept for domain, counted in counters.items()},
        routing_table={domain: routing_digest([row.policy for row in rows]) for domain, rows in held.items()},
        routing_counts={domain: fingerprint([c.tokens, c.kept, c.usage]) for domain, c in counters.items()},
        counters=counters,
        key_experts={
            domain: as_knob(own) for domain, of_rows in keys.items() for own in of_rows[:1] if own is not None
        },
    )
    known = {"measured_by_row": by_row or None, "key_expert_share": share}
    return evidence.model_copy(update={name: value for name, value in known.items() if value is not None})


def _problems_of_domain(rows: Sequence[_Row], run: DomainRun, *, together: bool) -> list[str]:
    """What one domain alone shows against the policy."""
    problems = []
    if together and any(counted.tokens != run.counters.tokens for counted in run.rows):
        problems.append("its rows did not route the same tokens: they were not contrasted on all of them")
    counted = replace(added_counters(run.rows), tokens=run.counters.tokens) if together else added_counters(run.rows)
    if len(rows) > 1 and counted != run.counters:
        problems.append("its rows do not add up to what was counted: tokens were routed by a row of no policy")
    for number, row in enumerate(rows):
        where = f"row {number} ({row.policy.rule.label()}): " if len(rows) > 1 else ""
        if len(rows) > 1 and not row.choices and run.outcomes:
            problems.append(f"{where}no token was routed by it")
        elif off := _off_budget(row.policy, row.counted):
            problems.append(f"{where}measured {off}")
        if row.pull is None and row.policy.rule.needs_pull and row.policy.key_experts != {}:
            problems.append(f"{where}no expert is boosted or inserted (boost=0 adds nothing), this is stock routing")
    return problems


def _off_budget(policy: Policy, counted: Counters) -> str | None:
    """What the measured budget (mean_kept) shows against the policy, None where nothing."""
    measured, (low, high) = counted.mean_kept, policy.countable(sum(counted.tokens))
    if not low - SLACK <= measured <= high + SLACK:
        return f"{measured:.3f} experts a token, the policy implies {low:g} to {high:g}"
    low, high = policy.budget
    if low < high <= policy.shape.top_k and measured in (low, high) and policy.rule.ends_are_idle:
        where = "native K: it did not engage" if measured == high else "its floor everywhere: the threshold is off"
        return f"{measured:g} experts a token, {where}"
    return None


def _key_expert_share(held: Mapping[str, Sequence[_Row]], stock: Mapping[str, DomainRun]) -> KeyExpertShare | None:
    """Mean over all domains, because a rule that pulls has experts in each; None for one that pulls none."""
    pulling = [(row.pull, row.counted, domain) for domain, rows in held.items() for row in rows if row.pull is not None]
    if not pulling:
        return None
    return KeyExpertShare(
        policy=sum(_share(pull, counted) for pull, counted, _ in pulling) / len(held),
        stock=sum(_share(pull, stock[domain].counters) for pull, _, domain in pulling) / len(held),
    )


def _unmoved(share: KeyExpertShare, *, down: bool) -> str | None:
    """What is wrong where the pulled experts' share did not move the way it must, None where it did."""
    gained = share.policy - share.stock
    if (-gained if down else gained) > 0:
        return None
    return (
        f"key experts take {share.policy:.4f} of the selections, no {'less' if down else 'more'} "
        f"than stock's {share.stock:.4f}: it never took effect"
    )


def _left_a_trace(runs: Mapping[str, DomainRun], stock: Mapping[str, DomainRun]) -> bool:
    """Whether anything at all was counted otherwise than under stock."""
    return any(run.counters != stock[domain].counters for domain, run in runs.items())


def _share(pull: Pull, counted: Counters) -> float:
    """Of all selections, those of the pulled experts, each as often as it weighs."""
    return float((np.array(counted.usage) * pull.weights_LE.numpy()).sum() / sum(counted.kept))


def _reroutes(policy: Policy) -> bool:
    """Whether a policy selects or weighs experts differently, beyond keeping fewer of the same."""
    table = policy.table
    inserts = bool(table.key_PLE.any()) and bool((table.insert_window > 0).any())
    return policy.edits is not None or bool((table.logit_bias_PLE != 0).any()) or inserts
