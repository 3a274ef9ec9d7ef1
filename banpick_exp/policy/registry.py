"""From a name and its knobs, as typed, to a checked rule; every mistake becomes one readable UserError."""

import shlex
from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from banpick_exp.config import shown, suggestion
from banpick_exp.errors import UserError
from banpick_exp.models.shape import MoeShape
from banpick_exp.policy.rule import Rule
from banpick_exp.policy.rules.adapmoe import AdapMoe
from banpick_exp.policy.rules.ban import Ban
from banpick_exp.policy.rules.ban_pick import BanPick
from banpick_exp.policy.rules.diep import Diep
from banpick_exp.policy.rules.dynamic_experts import DynamicExperts
from banpick_exp.policy.rules.expert_sample import ExpertSample
from banpick_exp.policy.rules.fixed_k import FixedK
from banpick_exp.policy.rules.logit_offset import LogitOffset
from banpick_exp.policy.rules.mask import Mask
from banpick_exp.policy.rules.modes import Modes
from banpick_exp.policy.rules.naee import Naee
from banpick_exp.policy.rules.none import Stock
from banpick_exp.policy.rules.pick import Pick
from banpick_exp.policy.rules.rank_k import RankK
from banpick_exp.policy.rules.rice import Rice
from banpick_exp.policy.rules.scmoe import Scmoe
from banpick_exp.policy.rules.steer import Steer
from banpick_exp.policy.rules.top_p import TopP

RULES: tuple[type[Rule], ...] = (
    Stock,
    FixedK,
    Pick,
    Ban,
    BanPick,
    Naee,
    TopP,
    Modes,
    AdapMoe,
    Diep,
    Mask,
    LogitOffset,
    Steer,
    Rice,
    ExpertSample,
    RankK,
    Scmoe,
    DynamicExperts,
)
"""Every rule, in the order in which a message lists them. A new one is a module of its own and one more line here."""

POLICIES: dict[str, type[Rule]] = {rule.name: rule for rule in RULES}
"""The rules by name."""

NEARNESS = 0.5
"""How alike a slip must be to be taken for a name. Less than for settings: there are few names to mistake it for."""

EXAMPLES = {
    "k": "k=4",
    "ks": "ks=[4,6,8,10]",
    "lambda": "lambda=0.8",
    "k_min": "k_min=3",
    "beta": "beta=0.5",
    "p": "p=0.8",
    "tau": "tau=0.1",
    "threshold": "threshold=0.01",
    "multiplier": "multiplier=2",
    "experts": "experts={0: [3, 7]}",
    "rank": "rank=2",
    "path": "path=/data/offset.safetensors",
}
"""What to type for a knob that is missing."""


def rule_named(name: str) -> type[Rule]:
    """The class of the rule `name`. Raises UserError where there is none."""
    if isinstance(name, str) and name in POLICIES:
        return POLICIES[name]
    near = suggestion(str(name), POLICIES, nearness=NEARNESS)
    raise UserError(f"policy={name} is unknown: there is no such routing rule. {near}Use one of {', '.join(POLICIES)}.")


def parse_policy(name: str, params: Mapping[str, Any] | None, shape: MoeShape | None = None) -> Rule:
    """The rule `name` with the knobs `params` (None = absent), checked against `shape` where that is known.

    Raises UserError: unknown policy, knob or mode, a knob missing, of the wrong type or out of range.
    """
    rule_type = rule_named(name)
    if params is not None and not isinstance(params, Mapping):
        raise UserError(f"policy={name} with {params!r} is no mapping of knobs to values. Write for example {{k: 4}}.")
    given = {str(knob): value for knob, value in (params or {}).items() if value is not None}
    try:
        rule = rule_type.model_validate(given)
    except ValidationError as invalid:
        raise UserError(_message(rule_type, invalid)) from None
    if shape is not None:
        rule.check(shape)
    return rule


def _message(rule_type: type[Rule], invalid: ValidationError) -> str:
    """The first problem in our words: a misspelt knob before the one that is missing because of it."""
    errors = sorted(invalid.errors(), key=lambda error: error["type"] != "extra_forbidden")
    error = errors[0]
    knob, value = str(error["loc"][0]), error["input"]
    at = f"policy.{knob}"
    known = [field.alias or field_name for field_name, field in rule_type.model_fields.items()]
    if error["type"] == "extra_forbidden":
        if not known:
            return f"{at} is unknown: policy={rule_type.name} has no knobs. Leave {knob} out, or choose another policy."
        near = suggestion(knob, known, "policy.", nearness=NEARNESS)
        return f"{at} is unknown: it would have no effect. {near}Use one of {', '.join(known)}."
    if error["type"] == "missing":
        example = shlex.quote(f"policy.{EXAMPLES.get(knob, f'{knob}=VALUE')}")
        return f"{at} is missing: policy={rule_type.name} cannot work without it. Type for example {example}."
    if error["type"] == "literal_error":
        allowed = [choice.strip("' ") for choice in error["ctx"]["expected"].replace(" or ", ",").split(",")]
        near = suggestion(str(value), allowed, nearness=NEARNESS)
        return f"{at}={value!r} is unknown. {near}Use one of {', '.join(allowed)}."
    typed = shown(value) if isinstance(value, bool) else repr(value)
    return f"{at}={typed} {error['ctx']['error']}"
