"""Did the policy take effect, by what the engine counted: the measured budget, key experts, and any trace at all."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from banpick_exp.config import fingerprint
from banpick_exp.evaluation.answer import DomainPolicy, DomainRun
from banpick_exp.policy import MoeShape, Policy, build_policy
from banpick_exp.policy.rule import Pull
from banpick_exp.records import Counters

BUDGET_TOLERANCE = 1e-6
"""Measured budgets are ratios of exact counts."""


def check_engagement(
    policies: Mapping[str, DomainPolicy],
    runs: Mapping[str, DomainRun],
    stock: Mapping[str, DomainRun],
    shape: MoeShape,
) -> tuple[dict[str, Any], str | None]:
    """Evidence that the policy took effect, and the reason it did not (None when it did).

    The measured budget must lie within what the rule implies, in every domain. A rule that spends a range must not
    sit at its end everywhere (native K: it did not engage; the floor: its threshold is off). A rule that pulls
    experts into the selection must raise their share over stock's (or lower it, where it pushes them out): its budget
    alone would not show that it was ever applied. A rule that changes more than how many experts stay must
    also leave some trace in what was counted. `routing_table` and `routing_counts` are digests per domain of what the
    policy is and of what was counted: with them the replay guard tells equal by definition from replayed.
    """
    built = {domain: _built(policies[domain], shape) for domain in runs}
    evidence: dict[str, Any] = {"implied": {}, "measured": {}, "routing_table": {}, "routing_counts": {}}
    reasons, pulls = [], {}
    for domain, run in runs.items():
        policy, counted = built[domain], run.counters
        evidence["implied"][domain], evidence["measured"][domain] = list(policy.budget), counted.mean_kept
        evidence["routing_table"][domain] = policy.digest()[:16]
        evidence["routing_counts"][domain] = fingerprint([counted.tokens, counted.kept, counted.usage])
        if problem := _off_budget(policy, counted.mean_kept):
            reasons.append(f"{domain}: measured {problem}")
        pull = policy.pull()
        if pull is not None:
            pulls[domain] = pull
        elif policy.rule.needs_pull:
            reasons.append(f"{domain}: no expert is boosted or inserted (boost=0 adds nothing), this is stock routing")
    if pulls:
        # A mean over all domains: a rule that pulls has experts in each.
        share = {
            side: sum(_share(pull, of[domain].counters) for domain, pull in pulls.items()) / len(runs)
            for side, of in (("policy", runs), ("stock", stock))
        }
        evidence["key_expert_share"] = share
        down = any(pull.down for pull in pulls.values())
        gained = share["policy"] - share["stock"]
        if not (-gained if down else gained) > 0:
            reasons.append(
                f"key experts take {share['policy']:.4f} of the selections, no {'less' if down else 'more'} "
                f"than stock's {share['stock']:.4f}: it never took effect"
            )
    rerouted = any(map(_reroutes, built.values()))
    if rerouted and all(run.counters == stock[domain].counters for domain, run in runs.items()):
        reasons.append("every expert was selected exactly as often as under stock: nothing shows that it was applied")
    return evidence, "the policy did not engage: " + "; ".join(reasons) if reasons else None


def _built(chosen: DomainPolicy, shape: MoeShape) -> Policy:
    return build_policy(
        chosen.rule.name,
        chosen.params,
        num_layers=shape.num_layers,
        num_experts=shape.num_experts,
        top_k=shape.top_k,
        calibration=chosen.calibration,
    )


def _off_budget(policy: Policy, measured: float) -> str | None:
    """What the measured budget (mean_kept) shows against the policy, None where nothing."""
    low, high = policy.budget
    if not low - BUDGET_TOLERANCE <= measured <= high + BUDGET_TOLERANCE:
        return f"{measured:.3f} experts a token, the policy implies {low:g} to {high:g}"
    if low < high <= policy.shape.top_k and measured in (low, high) and policy.rule.ends_are_idle:
        where = "native K: it did not engage" if measured == high else "its floor everywhere: the threshold is off"
        return f"{measured:g} experts a token, {where}"
    return None


def _share(pull: Pull, counted: Counters) -> float:
    """Of all selections, those of the pulled experts, each as often as it weighs."""
    return float((np.array(counted.usage) * pull.weights_LE.numpy()).sum() / sum(counted.kept))


def _reroutes(policy: Policy) -> bool:
    """Whether a policy selects or weighs experts differently, beyond keeping fewer of the same."""
    table = policy.table
    inserts = bool(table.key_PLE.any()) and bool((table.insert_window > 0).any())
    return policy.edits is not None or bool((table.logit_bias_PLE != 0).any()) or inserts
