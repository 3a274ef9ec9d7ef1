"""Overrides as axes: Hydra's own grammar, expanded here so that one process plans a whole sweep.

An override is KEY=VALUE. With `choice()`, `range()` or commas it is an axis; a list of overrides (a block) stands for
the product of its axes. In `range()` and `choice()` the letters K, E and L are the checkpoint's top_k, experts and MoE
layers.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import (
    Glob,
    IntervalSweep,
    Override,
    OverrideType,
    QuotedString,
    Sweep,
    Transformer,
)
from hydra.errors import HydraException

from banpick_exp.config import suggestion
from banpick_exp.errors import UserError
from banpick_exp.policy import POLICIES
from banpick_exp.policy.base import MoeShape

Block = tuple[str, ...]
"""Overrides as typed; it stands for the product of its axes."""
Assignment = dict[str, Any]
"""One value for each key of a block."""

_SYMBOL = re.compile(r"(?<![\w.])[KEL](?![\w.])")
_PARSER = OverridesParser.create()


@dataclass(frozen=True, slots=True)
class Axis:
    """One override: its key, the values it takes in order, and whether it was written as an axis."""

    key: str
    values: tuple[Any, ...]
    swept: bool


def key_of(text: str) -> str:
    """`policy.boost` of `+policy.boost=choice(1,2)`."""
    return text.split("=", 1)[0].strip().lstrip("+")


def is_symbolic(text: str) -> bool:
    """Whether the values depend on the checkpoint: `policy.k=range(1,K)`."""
    value = text.partition("=")[2].strip()
    return value.startswith(("range(", "choice(")) and _SYMBOL.search(value) is not None


def parse_axis(text: str, shape: MoeShape | None = None) -> Axis:
    """Parses one override; K, E and L become numbers when `shape` is given.

    Raises UserError for text outside Hydra's grammar, deletions, `interval()` and `glob()`.
    Example: `parse_axis("policy.k=range(1,4)")` has the values (1, 2, 3).
    """
    resolved = text
    if shape is not None and is_symbolic(text):
        numbers = {"K": shape.top_k, "E": shape.num_experts, "L": shape.num_layers}
        key, _, value = text.partition("=")
        resolved = f"{key}={_SYMBOL.sub(lambda match: str(numbers[match.group()]), value)}"
    if resolved.partition("=")[2].replace(" ", "") == "choice()":
        raise UserError(
            f"{text} lists no values, so this is a sweep with zero points: there is nothing to run."
            f" Type e.g. '{key_of(text)}=choice(1,2)'."
        )
    try:
        override = _PARSER.parse_override(resolved)
    except HydraException as error:
        reason = (str(error).strip().splitlines() or ["not in Hydra's grammar"])[0]
        raise UserError(
            f"{text} cannot be read ({reason}): nothing was started. A setting is KEY=VALUE; an axis is"
            f" KEY=choice(a,b) or KEY=range(start,stop,step). In a shell, quote it: '{key_of(text)}=choice(1,2)'."
        ) from None
    if override.type not in (OverrideType.CHANGE, OverrideType.ADD, OverrideType.FORCE_ADD) or override.package:
        raise UserError(
            f"{text} is a form of override that has no meaning here: nothing was started."
            f" Type {override.key_or_group}=VALUE."
        )
    values, swept = _values(override, text)
    return Axis(override.key_or_group, values, swept)


def _values(override: Override, text: str) -> tuple[tuple[Any, ...], bool]:
    value = override.value()
    if isinstance(value, Glob):
        raise UserError(f"{text} is not expanded here. List the names: {override.key_or_group}=choice(a,b).")
    if not isinstance(value, Sweep):
        return (value,), False
    if isinstance(value, IntervalSweep) or not override.is_discrete_sweep():
        raise UserError(f"{text} has no end of values to try. List them: {override.key_or_group}=choice(1,2).")
    elements = override.sweep_iterator(transformer=Transformer.identity)
    return tuple(element.text if isinstance(element, QuotedString) else element for element in elements), True


def expand(block: Block, shape_of: Callable[[Assignment], MoeShape]) -> list[Assignment]:
    """The product of a block's axes, the last fastest; symbolic axes are sized by each assignment's checkpoint.

    `shape_of` gives the checkpoint an assignment (without symbolic axes) names. An empty axis gives no assignments.
    Raises UserError when a key stands twice in the block.
    """
    keys = [key_of(text) for text in block]
    for key in keys:
        if keys.count(key) > 1:
            raise UserError(f"{key} is set twice in one list: which value counts would be a guess. Type it once.")
    fixed = _product([parse_axis(text) for text in block if not is_symbolic(text)])
    symbolic = [text for text in block if is_symbolic(text)]
    if not symbolic:
        return fixed
    assignments = []
    for assignment in fixed:
        shape = shape_of(assignment)
        assignments += [assignment | more for more in _product([parse_axis(text, shape) for text in symbolic])]
    return assignments


def _product(axes: Sequence[Axis]) -> list[Assignment]:
    keys = [axis.key for axis in axes]
    return [dict(zip(keys, values, strict=True)) for values in itertools.product(*(axis.values for axis in axes))]


def merged(block: Block, edits: Iterable[str]) -> Block:
    """`block` with each of `edits` in place of the override of the same key, or at the end."""
    by_key: Mapping[str, str] = {key_of(text): text for text in edits}
    kept = tuple(by_key.get(key_of(text), text) for text in block)
    present = {key_of(text) for text in block}
    return kept + tuple(text for key, text in by_key.items() if key not in present)


def edited_blocks(blocks: Sequence[Block], edits: Sequence[str]) -> list[Block]:
    """The search space after the command line narrowed or added axes.

    An edit replaces the axis of its key wherever a block has one. Where blocks differ by a constant of that key (the
    mode, say), those whose constant is not among the edit's values drop out. A key no block has is added to every block
    whose policy takes it. Edits that name a policy replace the whole space.
    """
    if any(key_of(text) == "policy" for text in edits):
        return [tuple(edits)]
    for text in edits:
        blocks = _edited(blocks, text)
    return list(blocks)


def _edited(blocks: Sequence[Block], text: str) -> list[Block]:
    key = key_of(text)
    holders = [block for block in blocks if any(key_of(entry) == key for entry in block)]
    if not holders:
        takers = [block for block in blocks if _takes(block, key)]
        if not takers:
            knobs = sorted({knob for block in blocks for knob in _knobs(block)})
            near = suggestion(key.removeprefix("policy."), knobs, "policy.")
            raise UserError(
                f"{key} is no knob of any policy in this sweep: it would change nothing. {near}"
                f"The knobs here: {', '.join(f'policy.{knob}' for knob in knobs) or 'none'}."
            )
        return [merged(block, [text]) if block in takers else block for block in blocks]
    constants = {block: _constant(block, key) for block in holders}
    distinct = {repr(value) for value in constants.values()}
    if len(distinct) < 2 or None in constants.values() or is_symbolic(text):
        return [merged(block, [text]) if block in holders else block for block in blocks]
    wanted = list(parse_axis(text).values)
    kept = [block for block in blocks if block not in constants or constants[block] in wanted]
    extra = [value for value in wanted if value not in constants.values()]
    if not any(block in constants for block in kept):
        return [merged(block, [text]) if block in holders else block for block in blocks]
    if extra:
        first = next(index for index, block in enumerate(kept) if block in constants)
        kept[first] = merged(kept[first], [f"{key}=choice({','.join(map(str, [constants[kept[first]], *extra]))})"])
    return kept


def _constant(block: Block, key: str) -> Any:
    """The one value a block gives `key`, or None where it is an axis."""
    text = next(entry for entry in block if key_of(entry) == key)
    if is_symbolic(text):
        return None
    axis = parse_axis(text)
    return None if axis.swept else axis.values[0]


def _takes(block: Block, key: str) -> bool:
    return not key.startswith("policy.") or key.removeprefix("policy.").split(".")[0] in _knobs(block)


def _knobs(block: Block) -> set[str]:
    """Knobs of the policies a block names, as typed (`lambda`, not `lambda_`)."""
    names = [str(value) for text in block if key_of(text) == "policy" for value in parse_axis(text).values]
    rules = [POLICIES[name] for name in names if name in POLICIES]
    return {field.alias or knob for rule in rules for knob, field in rule.model_fields.items()}
