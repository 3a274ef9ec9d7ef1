"""Overrides as axes: Hydra's own grammar, expanded here so that one process plans a whole sweep.

An override is KEY=VALUE. With `choice()`, `range()` or commas it is an axis; a list of overrides (a block) stands for
the product of its axes. In `range()` and `choice()` the letters K, E and L are the checkpoint's top_k, experts and MoE
layers, also in sums and products: `choice(K/2,3*K/4)`.
"""

from __future__ import annotations

import ast
import itertools
import math
import operator
import re
import shlex
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args, get_origin

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import (
    Glob,
    IntervalSweep,
    Override,
    OverrideType,
    QuotedString,
    RangeSweep,
    Sweep,
    Transformer,
)
from hydra.errors import HydraException
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from banpick_exp.config import Section, shown, suggestion
from banpick_exp.engine.config import EngineConfig
from banpick_exp.errors import UserError
from banpick_exp.evaluation.calibration.config import CalibrationConfig
from banpick_exp.models.config import ModelConfig
from banpick_exp.models.shape import MoeShape
from banpick_exp.policy import POLICIES
from banpick_exp.policy.registry import EXAMPLES
from banpick_exp.tasks.config import TaskConfig

Block = tuple[str, ...]
"""Overrides as typed; it stands for the product of its axes."""
Assignment = dict[str, Any]
"""One value for each key of a block."""

MOST_POINTS = 20_000
"""Of one list of overrides: planning them takes seconds, and nobody has the months to run more."""

_SYMBOL = re.compile(r"(?<![\w.])[KEL](?![\w.])")
_CALL = re.compile(r"\w+\(")
_BETWEEN = re.compile(r"[\s,:()\[\]{}]+")
_MAPPING = re.compile(r"\{([^{}]+)\}")
_SCIENTIFIC = re.compile(r"[-+]?([0-9.]+)[eE][-+]?[0-9]+")
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

    Raises UserError for text outside Hydra's grammar (with the quotes to type), deletions, `interval()` and `glob()`.
    Example: `parse_axis("policy.k=range(1,4)")` has the values (1, 2, 3).
    """
    _check_literals(text)
    resolved = text
    if shape is not None and is_symbolic(text):
        numbers = {"K": shape.top_k, "E": shape.num_experts, "L": shape.num_layers}
        key, _, value = text.partition("=")
        resolved = f"{key}={_sized(value, numbers, text)}"
    if resolved.partition("=")[2].replace(" ", "") == "choice()":
        raise UserError(
            f"{text} lists no values, so this is a sweep with zero points: there is nothing to run."
            f" Type e.g. '{key_of(text)}=choice(1,2)'."
        )
    override = _parsed(resolved, text)
    if override.type not in (OverrideType.CHANGE, OverrideType.ADD, OverrideType.FORCE_ADD) or override.package:
        raise UserError(
            f"{text} is a form of override that has no meaning here: nothing was started."
            f" Type {override.key_or_group}=VALUE."
        )
    try:
        values, swept = _values(override, text)
    except UserError:
        raise
    except (HydraException, ValueError, TypeError, ArithmeticError) as error:  # Hydra checks a range only here
        raise _unreadable(text, error) from None
    return Axis(override.key_or_group, values, swept)


def _check_literals(text: str) -> None:
    """UserError for what would be read as something else: a number beyond those of a computer, a key twice in {}."""
    value = text.partition("=")[2].strip()
    if "'" in value or '"' in value:
        return
    for word in _BETWEEN.split(value):
        found = _SCIENTIFIC.fullmatch(word)
        if found is None or found[1].count(".") > 1 or not found[1].strip("."):
            continue
        number = float(word)
        if math.isinf(number) or (number == 0 and found[1].strip("0.")):
            read = "infinite" if number else "0"
            raise UserError(
                f"{text}: {word} is beyond the numbers of a computer, and would count as {read}: nothing was started."
                f" Type {key_of(text)} with a number between 1e-307 and 1e308."
            )
    for inner in _MAPPING.findall(value):
        keys = [entry.partition(":")[0].strip() for entry in _entries(inner)]
        if twice := sorted({key for key in keys if keys.count(key) > 1}):
            raise UserError(
                f"{text} has {twice[0]} twice: which of the two counts would be a guess. Type it once, with all that"
                " belongs to it."
            )


def _sized(value: str, numbers: Mapping[str, int], text: str) -> str:
    """`choice(K/2,3*K/4)` with numbers in the place of the symbols, and of the arithmetic around them.

    >>> _sized("choice(K/2,3*K/8,1)", {"K": 4}, "")
    'choice(2,1.5,1)'
    """
    call, _, inner = value.strip().partition("(")
    entries = []
    for entry in inner.removesuffix(")").split(","):
        if _SYMBOL.search(entry):
            try:
                number = float(_computed(ast.parse(entry.strip(), mode="eval").body, numbers))
            except (SyntaxError, KeyError, ArithmeticError) as error:
                raise _unreadable(text, error) from None
            if not math.isfinite(number):
                raise _unreadable(text, OverflowError(f"{entry.strip()} is beyond the numbers of a computer"))
            entries.append(f"{number:.10g}")
        else:
            entries.append(entry)
    return f"{call}({','.join(entries)})"


_OPERATORS: dict[type[ast.operator], Callable[[float, float], float]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
}


def _computed(node: ast.expr, numbers: Mapping[str, int]) -> float:
    """The value of numbers, K, E and L under the four operations. KeyError for anything else."""
    if isinstance(node, ast.BinOp):
        return _OPERATORS[type(node.op)](_computed(node.left, numbers), _computed(node.right, numbers))
    if isinstance(node, ast.Constant) and isinstance(node.value, int | float):
        return node.value
    return numbers[node.id if isinstance(node, ast.Name) else ast.unparse(node)]


def interval_of(text: str) -> tuple[float, float] | None:
    """(low, high) of `policy.lambda=interval(0.2,1.5)`; None for an override of another form.

    Raises UserError where the interval is empty.
    """
    if not text.partition("=")[2].strip().startswith("interval("):
        return None
    value = _parsed(text, text).value()
    if not isinstance(value, IntervalSweep) or value.start is None or value.end is None or value.start >= value.end:
        raise UserError(
            f"{text} holds no number: nothing could be drawn from it. Type e.g. '{key_of(text)}=interval(0,1)'."
        )
    return float(value.start), float(value.end)


def _parsed(resolved: str, text: str) -> Override:
    try:
        return _PARSER.parse_override(resolved)
    # ANTLR and Hydra's functions raise whatever they like (SyntaxError, ValueError, bare Exception); all of them mean
    # that this text is not in the grammar, and a user can do nothing with their tracebacks.
    except Exception as error:
        raise _unreadable(text, error) from None


def _unreadable(text: str, error: Exception) -> UserError:
    reason = (str(error).strip().splitlines() or ["not in Hydra's grammar"])[0].split(" expecting {")[0]
    if "set_int_max_str_digits" in reason:
        reason = "more digits than any number has here"
    return UserError(f"{text} cannot be read ({reason}): nothing was started. {_text_to_type(text)}")


def _text_to_type(text: str) -> str:
    """How to write what was probably meant. Hydra reads the value, so a text needs quotes of its own in the shell's."""
    key, _, value = text.partition("=")
    name, value = key_of(text), value.strip()
    example = _without_text(name)
    if example is not None and not _CALL.match(value) and not value.startswith(("[", "{")):
        bare = f"{key}={value.strip(chr(34) + chr(39))}"
        return f"Type {bare}." if _is_number(bare) else f"{name} takes no free text. Type e.g. {shlex.quote(example)}."
    listed = name in ("sweep.params", "sweep.blocks", "sweep.reference")
    if _CALL.match(value):
        return f"An axis is {name}=choice(a,b) or {name}=range(start,stop,step). Type e.g. '{name}=choice(1,2)'."
    if listed or value.startswith(("[", "{")):
        entries = ", ".join(f'"{entry}"' for entry in _entries(value))
        guess, phrase = f"{key}=[{entries}]", "Each entry of a list needs quotes of its own"
        if value.startswith("{") or name in ("sweep.blocks", "sweep.reference") or not entries.strip('"'):
            guess = ""
    else:
        for mark in "'\"":  # one that was never closed
            value = value.strip(mark) if value.count(mark) == 1 else value
        quote = "'" if '"' in value else '"'
        guess, phrase = f"{key}={quote}{value}{quote}", "A text with brackets, commas or the like needs quotes"
    try:
        _PARSER.parse_override(guess)
    except Exception:  # as above; then there is no guess to offer
        return f"A setting is KEY=VALUE; every bracket and quote must close. Type e.g. {_example(name)}."
    return f"{phrase}, inside those of the shell. Type {shlex.quote(guess)}."


def _is_number(text: str) -> bool:
    try:
        return isinstance(_PARSER.parse_override(text).value(), int | float)
    except Exception:  # as in `_parsed`
        return False


_SECTIONS: dict[str, type[Section]] = {
    "engine": EngineConfig,
    "calibration": CalibrationConfig,
    "model": ModelConfig,
    "task": TaskConfig,
}
_EXAMPLES = {
    "engine": "cpu", "model": "tiny", "task": "tiny", "policy": "none", "cluster": "local", "tracking": "none",
    "search": "grid", "seed": "0", "repeat": "1", "repeats": "3", "dry_run": "true", "policy.budget": "4",
}  # fmt: skip
"""Of settings that take no free text and are no field of a section."""


def kinds_of(field: FieldInfo) -> tuple[Any, ...]:
    """What a setting may be: (int | None, int, NoneType) for an optional count."""
    return (field.annotation, *get_args(field.annotation))


def _without_text(name: str) -> str | None:
    """What to type for a setting that takes no free text (`policy.k=4`); None for one that does, or that is unknown."""
    if name in _EXAMPLES:
        return f"{name}={_EXAMPLES[name]}"
    first, _, knob = name.partition(".")
    owners = [*POLICIES.values()] if first == "policy" else [_SECTIONS[first]] if first in _SECTIONS else []
    fields = [f for owner in owners for key, f in owner.model_fields.items() if (f.alias or key) == knob]
    if not fields or any(str in kinds_of(field) for field in fields):
        return None
    if first == "policy" and knob in EXAMPLES:
        return f"policy.{EXAMPLES[knob]}"
    return f"{name}={_value_of(fields[0])}"


def _value_of(field: FieldInfo) -> str:
    """A value that a setting may have: its default, else one of its kind."""
    if field.default is not None and field.default is not PydanticUndefined:
        return shown(field.default)
    kinds = kinds_of(field)
    if literal := next((kind for kind in kinds if get_origin(kind) is Literal), None):
        return str(get_args(literal)[0])
    return "true" if bool in kinds else "4" if int in kinds else "0.5" if float in kinds else "{0: [3, 7]}"


def _entries(value: str) -> list[str]:
    """The parts between the commas that stand outside of brackets: of `[a=choice(1,2),b=3]`, two."""
    inner = value.removeprefix("[").removesuffix("]")
    parts, depth = [""], 0
    for letter in inner:
        depth += (letter in "([{") - (letter in ")]}")
        if letter == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += letter
    return [part.strip().strip("'\"") for part in parts]


def _example(name: str) -> str:
    examples = {
        "sweep.params": """sweep.params='["policy.boost=choice(0.5,1)","policy.key_experts=4"]'""",
        "sweep.blocks": """sweep.blocks='[["policy=ban","policy.lambda=choice(0.5,1)"]]'""",
        "sweep.reference": """sweep.reference='[["policy=fixed_k","policy.k=range(1,K)"]]'""",
        "policy.experts": "'policy.experts={0: [3, 7]}'",
    }
    return examples.get(name, f"{name}=VALUE, or '{name}=choice(a,b)'")


def _values(override: Override, text: str) -> tuple[tuple[Any, ...], bool]:
    value = override.value()
    if isinstance(value, Glob):
        raise UserError(f"{text} is not expanded here. List the names: {override.key_or_group}=choice(a,b).")
    if not isinstance(value, Sweep):
        return (value,), False
    if isinstance(value, IntervalSweep) or not override.is_discrete_sweep():
        raise UserError(
            f"{text} has no end of values to try: only search=optuna can draw from it. Type search=optuna beside it, or"
            f" list them: {override.key_or_group}=choice(1,2)."
        )
    if isinstance(value, RangeSweep):
        _check_count(_steps(value), text, override.key_or_group)
    elements = list(override.sweep_iterator(transformer=Transformer.identity))
    if any(isinstance(element, Sweep) for element in elements):
        raise UserError(
            f"{text} has an axis inside an axis: nobody can say which values are meant."
            f" List them once: '{override.key_or_group}=choice(1,2)'."
        )
    return tuple(map(_plain, elements)), True


def _steps(axis: RangeSweep) -> float:
    """How many values a range has, about; it is not built for that."""
    if axis.start is None or axis.stop is None or not axis.step:
        return 0
    return (float(axis.stop) - float(axis.start)) / float(axis.step)


def _check_count(count: float, text: str, key: str) -> None:
    if not count <= MOST_POINTS:  # NaN too
        raise UserError(
            f"{text} stands for {'endless' if math.isinf(count) else f'{count:.0f}'} values, and a sweep of more than"
            f" {MOST_POINTS} points would not end. Type fewer, e.g. '{key}=choice(1,2)', or draw from an interval:"
            f" '{key}=interval(0,1)' search=optuna."
        )


def _plain(value: Any) -> Any:
    """Without the marks that Hydra keeps on quoted texts, also inside lists: `choice(["math"],["code"])`."""
    if isinstance(value, QuotedString):
        return value.text
    if isinstance(value, list):
        return [_plain(entry) for entry in value]
    return {_plain(key): _plain(entry) for key, entry in value.items()} if isinstance(value, dict) else value


def expand(block: Block, shape_of: Callable[[Assignment], MoeShape]) -> list[Assignment]:
    """The product of a block's axes, the last fastest; symbolic axes are sized by each assignment's checkpoint.

    `shape_of` gives the checkpoint an assignment (without symbolic axes) names. An empty axis gives no assignments.
    Raises UserError when a key stands twice in the block.
    """
    for key in map(key_of, block):
        found = [text for text in block if key_of(text) == key]
        if len(found) > 1:
            raise UserError(
                f"{key} is set twice in one list, by {' and by '.join(found)}: which value counts would be a guess."
                " Type it once."
            )
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
    if (count := math.prod(len(axis.values) for axis in axes)) > MOST_POINTS:
        longest = max(axes, key=lambda axis: len(axis.values)).key
        _check_count(count, f"The product of {' and '.join(a.key for a in axes if len(a.values) > 1)}", longest)
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
    if len(distinct) < 2 or None in constants.values() or is_symbolic(text) or interval_of(text):
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
    if is_symbolic(text) or interval_of(text):
        return None
    axis = parse_axis(text)
    return None if axis.swept else axis.values[0]


def _takes(block: Block, key: str) -> bool:
    return not key.startswith("policy.") or key.removeprefix("policy.").split(".")[0] in _knobs(block)


def _knobs(block: Block) -> set[str]:
    """Knobs of the policies a block names, as typed (`lambda`, not `lambda_`)."""
    names = [str(value) for text in block if key_of(text) == "policy" for value in parse_axis(text).values]
    rules = [POLICIES[name] for name in names if name in POLICIES]
    budget = {"budget"} if any(rule.budget_knob for rule in rules) else set()
    return budget | {field.alias or knob for rule in rules for knob, field in rule.model_fields.items()}
