"""Did the policy take effect, by what the engine counted: the measured budget, key experts, and any trace at all."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from banpick_exp.config import fingerprint
from banpick_exp.evaluation.answer import DomainPolicy, DomainRun
from banpick_exp.policy import MoeShape, Policy, build_policy

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
    sit at its end everywhere (native K: it did not engage; the floor: its threshold is off). A Pick rule must raise
    the share of its key experts over stock's (a negative boost: lower it): its budget alone would not show that it was
    ever applied; so must the experts that `steer` switches on. A rule that changes more than how many experts stay must
    also leave some trace in what was counted. `routing_table` and `routing_counts` are digests per domain of what the
    policy is and of what was counted: with them the replay guard tells equal by definition from replayed.
    """
    evidence: dict[str, Any] = {"implied": {}, "measured": {}, "routing_table": {}, "routing_counts": {}}
    reasons = []
    key_share = {"policy": 0.0, "stock": 0.0}
    keys_known = weakens = reroutes = False
    for domain, run in runs.items():
        chosen = policies[domain]
        policy = build_policy(
            chosen.rule.name,
            chosen.params,
            num_layers=shape.num_layers,
            num_experts=shape.num_experts,
            top_k=shape.top_k,
            calibration=chosen.calibration,
        )
        low, high = policy.budget
        measured = run.counters.mean_kept
        evidence["implied"][domain], evidence["measured"][domain] = [low, high], measured
        evidence["routing_table"][domain] = policy.digest()[:16]
        counted = run.counters
        evidence["routing_counts"][domain] = fingerprint([counted.tokens, counted.kept, counted.usage])
        if not low - BUDGET_TOLERANCE <= measured <= high + BUDGET_TOLERANCE:
            reasons.append(f"{domain}: measured {measured:.3f} experts a token, the policy implies {low:g} to {high:g}")
        elif low < high <= shape.top_k and measured in (low, high) and chosen.rule.name != "pick":
            where = "native K: it did not engage" if measured == high else "its floor everywhere: the threshold is off"
            reasons.append(f"{domain}: measured {measured:g} experts a token, {where}")
        pull_LE, weakens = _pull(policy)
        reroutes = reroutes or _reroutes(policy)
        if chosen.rule.name in ("pick", "ban_pick") and not pull_LE.any():
            reasons.append(f"{domain}: no expert is boosted or inserted (boost=0 adds nothing), this is stock routing")
        elif pull_LE.any():
            keys_known = True
            for side, counters in (("policy", run.counters), ("stock", stock[domain].counters)):
                key_share[side] += float((np.array(counters.usage) * pull_LE).sum() / sum(counters.kept))
    if keys_known:
        key_share = {side: total / len(runs) for side, total in key_share.items()}  # a mean: each domain has keys
        evidence["key_expert_share"] = key_share
        gained = key_share["policy"] - key_share["stock"]
        if not (-gained if weakens else gained) > 0:
            reasons.append(
                f"key experts take {key_share['policy']:.4f} of the selections, no {'less' if weakens else 'more'} "
                f"than stock's {key_share['stock']:.4f}: it never took effect"
            )
    if reroutes and all(run.counters == stock[domain].counters for domain, run in runs.items()):
        reasons.append("every expert was selected exactly as often as under stock: nothing shows that it was applied")
    return evidence, "the policy did not engage: " + "; ".join(reasons) if reasons else None


def _pull(policy: Policy) -> tuple[npt.NDArray[Any], bool]:
    """The experts whose share of the selections must move, [L,E], and whether downwards; all 0 where there are none."""
    bias_LE = policy.table.logit_bias_PLE[0]
    if policy.rule.name == "logit_offset":
        # An offset touches every expert: what it raises is the mean offset of the selected ones.
        return bias_LE.numpy(), False
    pulls = [None if edit is None else edit.pull() for edit in policy.edits or ()]
    if all(pull is None for pull in pulls):
        return (policy.table.key_PLE[0] | (bias_LE != 0)).numpy(), bool((bias_LE < 0).any())
    pull_LE = np.array([[0] * policy.shape.num_experts if pull is None else pull.tolist() for pull in pulls])
    weakens = bool((pull_LE <= 0).all())
    return (-pull_LE if weakens else pull_LE), weakens


def _reroutes(policy: Policy) -> bool:
    """Whether a policy selects or weighs experts differently, beyond keeping fewer of the same."""
    table = policy.table
    inserts = bool(table.key_PLE.any()) and bool((table.insert_window > 0).any())
    return policy.edits is not None or bool((table.logit_bias_PLE != 0).any()) or inserts
