"""Did the policy take effect, by what the engine counted: the measured budget, key experts, and any trace at all."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from banpick_exp.analysis.engagement import SLACK
from banpick_exp.config import fingerprint
from banpick_exp.evaluation.answer import DomainPolicy, DomainRun
from banpick_exp.policy import MoeShape, Policy, build_policy
from banpick_exp.policy.experts import as_knob
from banpick_exp.policy.rule import Pull
from banpick_exp.records import Counters, Engagement, KeyExpertShare


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
    also leave some trace in what was counted. `routing_table` and `routing_counts` are digests per domain of what the
    policy is and of what was counted: with them the replay guard tells equal by definition from replayed.
    """
    built = {domain: _built(policies[domain], shape) for domain in runs}
    pulls = {domain: pull for domain, policy in built.items() if (pull := policy.pull()) is not None}
    share = _key_expert_share(pulls, runs, stock)
    reasons = [
        f"{domain}: {problem}"
        for domain, policy in built.items()
        for problem in _problems_of_domain(policy, runs[domain].counters, pulls.get(domain))
    ]
    if share is not None and (problem := _unmoved(share, down=any(pull.down for pull in pulls.values()))):
        reasons.append(problem)
    if any(map(_reroutes, built.values())) and not _left_a_trace(runs, stock):
        reasons.append("every expert was selected exactly as often as under stock: nothing shows that it was applied")
    return _evidence(built, runs, share), "the policy did not engage: " + "; ".join(reasons) if reasons else None


def _built(chosen: DomainPolicy, shape: MoeShape) -> Policy:
    return build_policy(
        chosen.rule.name,
        chosen.params,
        num_layers=shape.num_layers,
        num_experts=shape.num_experts,
        top_k=shape.top_k,
        calibration=chosen.calibration,
    )


def _evidence(built: Mapping[str, Policy], runs: Mapping[str, DomainRun], share: KeyExpertShare | None) -> Engagement:
    counters = {domain: run.counters for domain, run in runs.items()}
    evidence = Engagement(
        implied={domain: policy.countable(sum(counters[domain].tokens)) for domain, policy in built.items()},
        measured={domain: counted.mean_kept for domain, counted in counters.items()},
        routing_table={domain: policy.digest()[:16] for domain, policy in built.items()},
        routing_counts={domain: fingerprint([c.tokens, c.kept, c.usage]) for domain, c in counters.items()},
        counters=counters,
        key_experts={
            domain: as_knob(keys) for domain, policy in built.items() if (keys := policy.key_experts) is not None
        },
    )
    return evidence if share is None else evidence.model_copy(update={"key_expert_share": share})


def _problems_of_domain(policy: Policy, counted: Counters, pull: Pull | None) -> list[str]:
    """What one domain alone shows against the policy."""
    problems = []
    if off := _off_budget(policy, counted):
        problems.append(f"measured {off}")
    if pull is None and policy.rule.needs_pull and policy.key_experts != {}:
        problems.append("no expert is boosted or inserted (boost=0 adds nothing), this is stock routing")
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


def _key_expert_share(
    pulls: Mapping[str, Pull], runs: Mapping[str, DomainRun], stock: Mapping[str, DomainRun]
) -> KeyExpertShare | None:
    """Mean over all domains, because a rule that pulls has experts in each; None for one that pulls none."""
    if not pulls:
        return None

    def mean(of: Mapping[str, DomainRun]) -> float:
        return sum(_share(pull, of[domain].counters) for domain, pull in pulls.items()) / len(runs)

    return KeyExpertShare(policy=mean(runs), stock=mean(stock))


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
