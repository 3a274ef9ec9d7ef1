"""The types of the knobs: what counts as a number, a whole number, a switch or a list of named experts.

Stricter than Python: True is no number and "4" is no 4, because both reach us through a slip in YAML. Each message is
what follows `policy.<name>.<knob>=<value>`. `check_count` needs the checkpoint and comes later.
"""

import math
from collections.abc import Mapping, Sequence, Set
from itertools import pairwise
from numbers import Integral, Real
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator

from banpick_exp.errors import UserError
from banpick_exp.models.shape import MoeShape

DECIMALS = 6
"""Of a number of experts with a fraction: about what the float32 of a router's table holds."""


def as_number(value: Any) -> float:
    """A finite number. Raises ValueError in the words that follow `policy.<name>.<knob>=<value>`."""
    if isinstance(value, bool) or not isinstance(value, Real):
        raise ValueError("is not a number: the router cannot compute with it. Write a plain number such as 1 or 0.5.")
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        raise ValueError("is not finite: every weight would become NaN. Write a plain number such as 1 or 0.5.")
    return number + 0.0  # -0.0 becomes 0.0, so that both have one fingerprint


def as_whole(value: Any) -> int:
    """A whole number. Raises ValueError in the words that follow `policy.<name>.<knob>=<value>`."""
    if isinstance(value, bool) or not (isinstance(value, Integral) or _is_whole(value)):
        raise ValueError("is not a whole number: experts cannot be counted with it. Write a number such as 4.")
    return int(value)


def _is_whole(value: Any) -> bool:
    """4.0 counts as 4: a range() in a sweep yields floats as soon as one end is one."""
    return isinstance(value, Real) and math.isfinite(value) and float(value).is_integer()


def _count(value: Any) -> int | float:
    """A number of experts: whole ones as int, so that 4 and 4.0 are one policy, others to `DECIMALS` of a fraction."""
    if isinstance(value, bool) or not isinstance(value, Real):
        raise ValueError("is not a number: experts cannot be counted with it. Write a number such as 4 or 4.6.")
    number = round(as_number(value), DECIMALS)
    return int(number) if number.is_integer() else number


def _switch(value: Any) -> bool:
    if not isinstance(value, bool):
        raise ValueError("is neither true nor false. Write true or false.")
    return value


def _named_experts(value: Any) -> dict[int, tuple[int, ...]]:
    """{layer: [ids]}, layers as numbers or digits (JSON has no number keys), sorted; layers without ids fall away."""
    example = "Write for example {0: [3, 7], 2: [1]}."
    if not isinstance(value, Mapping):
        raise ValueError(f"is no mapping of layers to expert ids. {example}")
    named: dict[int, tuple[int, ...]] = {}
    for key, ids in value.items():
        layer = _index(int(key) if isinstance(key, str) and key.strip().isdecimal() else key, "layer", example)
        if layer in named:
            raise ValueError(f"names layer {layer} twice: it is unclear which list counts. {example}")
        if isinstance(ids, str) or not isinstance(ids, Sequence | Set):
            raise ValueError(f"gives layer {layer} the value {ids!r}, which is no list of expert ids. {example}")
        experts = sorted(_index(expert, "expert id", example) for expert in ids)
        repeated = [first for first, second in pairwise(experts) if first == second]
        if repeated:
            raise ValueError(f"names expert {repeated[0]} of layer {layer} twice: it can only come in once. {example}")
        named[layer] = tuple(experts)
    named = {layer: experts for layer, experts in sorted(named.items()) if experts}
    if not named:
        raise ValueError(f"names no expert: nothing would change. {example} Or use the policy none.")
    return named


def _index(value: Any, what: str, example: str) -> int:
    try:
        index = as_whole(value)
    except ValueError:
        raise ValueError(f"has the {what} {value!r}, which is not a whole number. {example}") from None
    if index < 0:
        raise ValueError(f"has the {what} {index}, below 0: they are counted from 0. {example}")
    return index


Number = Annotated[float, BeforeValidator(as_number)]
Whole = Annotated[int, BeforeValidator(as_whole)]
Count = Annotated[int | float, BeforeValidator(_count)]
Switch = Annotated[bool, BeforeValidator(_switch)]
NamedExperts = Annotated[dict[int, tuple[int, ...]], BeforeValidator(_named_experts)]
AUTO = "auto"
NamedOrAuto = Annotated[
    dict[int, tuple[int, ...]] | Literal["auto"],
    BeforeValidator(lambda value: value if value == AUTO else _named_experts(value)),
]


def check_count(name: str, knob: str, value: float, shape: MoeShape) -> None:
    """Raise UserError unless 1 <= value <= top_k."""
    if value > shape.top_k:
        problem = f"exceeds top_k={shape.top_k} of this checkpoint: nothing would be pruned"
    elif value < 1:
        problem = "is below 1: a token would keep no expert"
    else:
        return
    raise UserError(f"policy.{knob}={value} {problem}. Use 1..{shape.top_k}.")
