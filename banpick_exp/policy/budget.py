"""`policy.budget=5`: a rule is planned with its knob open, and the loaded engine solves the knob (`evaluation.budget`).

What can be known without an engine ends here: whether the rule has a knob for it, and whether the target can be met.
A knob that is the budget by definition (fixed_k) is set at once: such a point is no other than the one with k.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from banpick_exp.errors import UserError
from banpick_exp.models.shape import MoeShape
from banpick_exp.policy.registry import POLICIES, parse_policy, rule_named
from banpick_exp.policy.rule import BudgetKnob, Rule, short

BUDGET = "budget"
SAMPLE_PROBLEMS = 48
"""Of each domain, that a probe generates."""
EXPECTED_PROBES = 6


def knob_of(rule: Rule | type[Rule]) -> BudgetKnob:
    """The knob of a rule that is known to have one."""
    assert rule.budget_knob is not None
    return rule.budget_knob


def with_budget(
    name: str, typed: Mapping[str, Any], knobs: Mapping[str, Any], shape: MoeShape
) -> tuple[Rule, float | None]:
    """The rule with its knob somewhere inside its range, and the target; None in its place where nothing is to solve.

    Args:
        typed: what was typed, `budget` among it.
        knobs: all knobs of the rule, defaults included, without `budget`.

    Raises: UserError for a rule without such a knob, for both of them typed, and for a budget out of reach.
    """
    rule_type, at = rule_named(name), f"policy.{BUDGET}={typed[BUDGET]}"
    knob = rule_type.budget_knob
    if knob is None:
        others = ", ".join(each for each, rule in POLICIES.items() if rule.budget_knob is not None)
        raise UserError(
            f"{at} means nothing to policy={name}: it has no knob that decides how many experts stay. Leave it out, or"
            f" choose one of {others}."
        )
    if typed.get(knob.name) is not None:
        raise UserError(
            f"{at} and policy.{knob.name}={typed[knob.name]} both say how many experts policy={name} keeps: one of them"
            f" would be ignored. Type one: the budget is met by solving {knob.name}."
        )
    target = _number(typed[BUDGET], at)
    knob = knob.within(shape)
    if knob.is_budget:
        return parse_policy(name, {**knobs, knob.name: _within(target, knob, shape, name, at)}, shape), None
    if knob.whole:
        return _whole(name, knob, knobs, target, shape, at)
    middle = math.sqrt(knob.low * knob.high) if knob.log else (knob.low + knob.high) / 2
    rule = parse_policy(name, {**knobs, knob.name: middle}, shape)
    low = rule.budget(shape)[0]
    if not low <= target <= shape.top_k:
        floor = f"k_min={low:g}" if "k_min" in rule.canonical() else f"{low:g}"
        raise UserError(
            f"{at} is outside [{low:g}, {shape.top_k}]: policy={name} keeps between {floor} and top_k={shape.top_k}"
            f" experts of this checkpoint whatever {knob.name} is. Type a budget between them"
            + (", or a lower policy.k_min." if target < low and low > 1 else ".")
        )
    if target == low and rule.ends_are_idle:
        raise UserError(
            f"{at} is the floor of policy={name} on this checkpoint: every token would keep it, the rule would decide"
            f" nothing and be fixed_k. Type more than {low:g}" + (", or a lower policy.k_min." if low > 1 else ".")
        )
    return rule, target


def _within(target: float, knob: BudgetKnob, shape: MoeShape, name: str, at: str) -> float:
    if not knob.low <= target <= knob.high:
        raise UserError(
            f"{at} is outside [{knob.low:g}, {shape.top_k}]: policy={name} keeps between {knob.low:g} and"
            f" top_k={shape.top_k} experts of this checkpoint. Type a budget between them."
        )
    return target


def _whole(
    name: str, knob: BudgetKnob, knobs: Mapping[str, Any], target: float, shape: MoeShape, at: str
) -> tuple[Rule, float | None]:
    values = range(math.ceil(knob.low), math.floor(knob.high) + 1)
    if target not in values:
        raise UserError(
            f"{at} cannot be met by policy={name}: its knob {knob.name} is a whole number, so the budgets within reach"
            f" are {', '.join(map(str, values))}. Type one of them."
        )
    rule = parse_policy(name, {**knobs, knob.name: int(target)}, shape)
    return rule, None if rule.budget(shape) == (target, target) else target


def _number(value: Any, at: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise UserError(f"{at} is not a number of experts: nothing could be solved. Type e.g. policy.{BUDGET}=5.")
    return float(value)


def with_knob(rule: Rule, value: float) -> Rule:
    """The same rule with another value of its budget knob."""
    knob = knob_of(rule)
    knobs = {name: each for name, each in rule.canonical().items() if name != "name"}
    return parse_policy(rule.name, knobs | {knob.name: int(value) if knob.whole else value})


def known_budgets(rule: Rule, shape: MoeShape) -> dict[float, float]:
    """Budgets that an end of the knob implies by definition (naee at beta=0 is stock): they need no probe."""
    knob, known = knob_of(rule).within(shape), {}
    for end in (knob.low, knob.high):
        low, high = with_knob(rule, end).budget(shape)
        if low == high:
            known[end] = low
    return known


def policy_of(rule: Rule, budget: float | None) -> dict[str, object]:
    """What a point is before its knob is known: the rule's canonical form, the open knob replaced by the budget."""
    canonical = rule.canonical()
    if budget is None:
        return canonical
    return {name: value for name, value in canonical.items() if name != knob_of(rule).name} | {BUDGET: budget}


def label_of(rule: Rule, budget: float | None) -> str:
    """`naee budget=5`: the rule's label with the budget for the open knob, and without knobs at their defaults."""
    if budget is None:
        return rule.label()
    usual = {f"{name}={short(field.default)}" for name, field in type(rule).model_fields.items()}
    words = [word for word in rule.label().split(" ") if word not in usual]
    is_knob = f"{knob_of(rule).name}="
    return " ".join(f"{BUDGET}={short(budget)}" if word.startswith(is_knob) else word for word in words)
