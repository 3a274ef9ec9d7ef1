"""One point: accuracy on every problem, speed against stock, the measured budget, and whether the policy engaged.

Accuracy is measured on all problems, greedy unless the task samples, paired with stock by problem. Speed is measured in
greedy runs of its own: stock and policy alternate on the same prompts, every answer has the same forced length, so the
ratio compares equal work.
Budgets and usage are read from the engine's counters after the accuracy run of each domain.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from banpick_exp.analysis import average_at_n, difference_at_n
from banpick_exp.answers import Counters
from banpick_exp.asking import ask
from banpick_exp.config import TaskConfig, fingerprint
from banpick_exp.engine import Engine
from banpick_exp.policy import MoeShape, Policy, Rule, build_policy
from banpick_exp.records import OVERALL
from banpick_exp.repetition import is_repetitive
from banpick_exp.tasks import Problem, extract_answer

BUDGET_TOLERANCE = 1e-6
"""Measured budgets are ratios of exact counts."""

Problems = Mapping[str, Sequence[Problem]]


@dataclass(frozen=True, kw_only=True, slots=True)
class DomainPolicy:
    """A rule as the engine takes it for one domain: key experts and Ban's thresholds differ between domains."""

    rule: Rule
    calibration_key: str
    calibration: Mapping[str, Any] | None

    @property
    def params(self) -> dict[str, object]:
        return {knob: value for knob, value in self.rule.canonical().items() if knob != "name"}

    def activate(self, engine: Engine) -> float:
        return engine.set_policy(self.rule.name, self.params, self.calibration_key)


@dataclass(frozen=True, slots=True)
class DomainRun:
    """Graded answers of one domain and what was routed meanwhile."""

    outcomes: list[dict[str, Any]]
    counters: Counters


@dataclass(frozen=True, slots=True)
class Timing:
    """Seconds of the alternating runs of one domain, repeat by repeat, and the tokens each run generated."""

    stock_seconds: list[float]
    policy_seconds: list[float]
    tokens: int


def answer_problems(
    engine: Engine,
    policies: Mapping[str, DomainPolicy],
    task: TaskConfig,
    problems: Problems,
    *,
    seed: int = 0,
    repeat: int = 0,
) -> tuple[dict[str, DomainRun], float]:
    """Every problem of every domain, as the task samples, under that domain's policy; and the slowest swap in seconds.

    `seed` is that of sampled answers, `repeat` says in which batches and order to ask (`asking`).
    """
    runs, swap = {}, 0.0
    for domain, items in problems.items():
        swap = max(swap, policies[domain].activate(engine))
        engine.counters(reset=True)
        outcomes = []
        for problem, answers in zip(items, ask(engine, items, task, seed=seed, repeat=repeat), strict=True):
            for sample, answer in enumerate(answers):
                given = extract_answer(answer.text, task)
                outcomes.append(
                    {
                        "problem_id": problem.problem_id,
                        "domain": domain,
                        "task": problem.task,
                        "correct": given == problem.answer,
                        "truncated": answer.truncated,
                        "tokens": len(answer.token_ids),
                        "answer": given,
                        "repetitive": is_repetitive(answer.token_ids, stopped=not answer.truncated),
                        **({"sample": sample} if task.samples > 1 else {}),
                    }
                )
        runs[domain] = DomainRun(outcomes, engine.counters(reset=True))
    return runs, swap


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


def domain_metrics(runs: Sequence[DomainRun], stock: Sequence[DomainRun], timings: Sequence[Timing]) -> dict[str, Any]:
    """The metrics of one domain, or of several taken together.

    `accuracy` is avg@n where the outcomes have several samples a problem. `accuracy_ci95` is Wilson's interval, or over
    problems for avg@n; `delta` is the paired difference to stock with a bootstrap interval over problems; `speedup`
    is the median of the paired time ratios and `speedup_spread` their lowest and highest, None without `timings`.
    """
    outcomes = [o for run in runs for o in run.outcomes]
    stock_outcomes = [o for run in stock for o in run.outcomes]
    if [o["problem_id"] for o in outcomes] != [o["problem_id"] for o in stock_outcomes]:
        raise ValueError("stock answered other problems than the policy: the comparison would not be paired")
    ours, theirs = pl.DataFrame(outcomes), pl.DataFrame(stock_outcomes)
    score = average_at_n(ours).row(0, named=True)
    delta = difference_at_n(ours, theirs).row(0, named=True)
    tokens_L = np.sum([run.counters.tokens for run in runs], axis=0)
    kept_L = np.sum([run.counters.kept for run in runs], axis=0)
    return {
        "accuracy": score["accuracy"],
        "accuracy_ci95": [score["lo"], score["hi"]],
        "delta": delta["difference"],
        "delta_ci95": [delta["lo"], delta["hi"]],
        "n_problems": score["n_problems"],
        **_speed(timings),
        "mean_kept": float(kept_L.sum() / tokens_L.sum()),
        "mean_kept_by_layer": [float(x) for x in kept_L / tokens_L],
        "truncated_fraction": float(np.mean([o["truncated"] for o in outcomes])),
    }


def _speed(timings: Sequence[Timing]) -> dict[str, Any]:
    if not timings:
        return dict.fromkeys(("tokens_per_second", "speedup", "speedup_spread"))
    stock_seconds = np.sum([t.stock_seconds for t in timings], axis=0)
    policy_seconds = np.sum([t.policy_seconds for t in timings], axis=0)
    ratios = stock_seconds / policy_seconds
    generated = sum(t.tokens for t in timings) * len(ratios)
    return {
        "tokens_per_second": float(generated / policy_seconds.sum()),
        "speedup": float(statistics.median(ratios)),
        "speedup_spread": [float(ratios.min()), float(ratios.max())],
    }


def all_metrics(
    runs: Mapping[str, DomainRun], stock: Mapping[str, DomainRun], timings: Mapping[str, Timing]
) -> dict[str, Any]:
    """`{"overall": M, "domains": {domain: M}}`, as the records hold it. No `timings`: nothing was timed."""
    domains = {d: domain_metrics([runs[d]], [stock[d]], [timings[d]] if timings else []) for d in runs}
    overall = domain_metrics(list(runs.values()), list(stock.values()), list(timings.values()))
    return {OVERALL: overall, "domains": domains}


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
