"""The typed form of every section under conf/, and the fingerprint of a canonical value.

One frozen model per section; a field is a key of the YAML. Unknown keys, wrong types and values out of range
become one `UserError` (`validation.validated`). Imports nothing heavy.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from banpick_exp.errors import UserError


def fingerprint(value: Any) -> str:
    """16 hex digits of the SHA-256 over `value` as canonical JSON (sorted keys, no spaces, no NaN)."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


class Section(BaseModel):
    """A frozen group of settings; a key it does not list is refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=(), allow_inf_nan=False)


SectionT = TypeVar("SectionT", bound=Section)


def suggestion(word: str, choices: Iterable[str], prefix: str = "", *, nearness: float = 0.6) -> str:
    """`Did you mean policy=pick? ` for a near miss, else the empty string.

    `prefix` is what stands before the word; `nearness`, 0 to 1, how alike the two must be (difflib's ratio).
    """
    near = difflib.get_close_matches(word, list(choices), n=1, cutoff=nearness)
    return f"Did you mean {prefix}{near[0]}? " if near else ""


def validated(section: type[SectionT], values: Mapping[str, Any], prefix: str = "") -> SectionT:
    """`values` as a `section`, or one `UserError` for everything wrong in it.

    `prefix` is the name of the section as typed on the command line ("engine"), empty for the root.
    """
    start = f"{prefix}." if prefix else ""
    if not isinstance(values, Mapping):
        key = next(iter(section.model_fields))
        raise UserError(
            f"{prefix}={values} is no setting but a group of them: nothing was started. Type its keys, e.g."
            f" {start}{key}=VALUE; there are {', '.join(section.model_fields)}."
        )
    if unset := [start + key for key, value in values.items() if value == "???"]:
        verb = "has" if len(unset) == 1 else "have"
        raise UserError(f"{' and '.join(unset)} {verb} no default: type {' '.join(f'{key}=VALUE' for key in unset)}.")
    try:
        return section.model_validate(dict(values))
    except ValidationError as error:
        messages = [_explain(section, details, start) for details in _joined([dict(each) for each in error.errors()])]
        raise UserError("\n".join(messages)) from None


EXPECTATIONS = {
    "int_parsing": "is not a whole number",
    "int_type": "is not a whole number",
    "int_from_float": "is not a whole number",
    "float_parsing": "is not a number",
    "float_type": "is not a number",
    "finite_number": "is not a finite number",
    "bool_parsing": "is neither true nor false",
    "bool_type": "is neither true nor false",
    "string_type": "is not a text (put quotes around it)",
    "tuple_type": "is not a list",
    "too_short": "is empty",
    "literal_error": "is none of {expected}",
    "greater_than_equal": "is below {ge}",
    "greater_than": "is not above {gt}",
    "less_than_equal": "is above {le}",
    "string_pattern_mismatch": "is not made of letters, digits, '_', '-' and '.' alone",
}
"""pydantic's error types in our words."""


UNION = "a word or a value"
"""In place of pydantic's error type, of a setting that is one of some words or a value of another type."""


def _joined(errors: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What is wrong, setting by setting: pydantic tells of each type that one may have, under a name of its own."""
    of_words = {each["loc"][0]: each for each in errors if len(each["loc"]) == 2 and _is_of_words(each["loc"][1])}
    found = []
    for each in errors:
        words = of_words.get(each["loc"][0]) if len(each["loc"]) == 2 else None
        if words is None:
            found.append(each)
        elif each is not words:
            problem = f"{_problem(each)}, and not {words['ctx']['expected']} either"
            found.append({**each, "loc": each["loc"][:1], "type": UNION, "msg": problem})
    return found


def _is_of_words(part: Any) -> bool:
    return isinstance(part, str) and part.startswith("literal[")


def _problem(details: Mapping[str, Any]) -> str:
    words: str = EXPECTATIONS.get(details["type"], details["msg"])
    return words if details["type"] == UNION else words.format(**details.get("ctx", {}))


def _explain(section: type[Section], details: dict[str, Any], start: str) -> str:
    path = [str(part) for part in details["loc"]]
    key, kind, value = start + ".".join(path), details["type"], details["input"]
    if kind == "extra_forbidden":
        names = sorted(section.model_fields)
        return (
            f"{key} is no setting: it would be ignored, so nothing was started."
            f" {suggestion(path[0], names, start)}The keys of {start[:-1] or 'the root'}: {', '.join(names)}."
        )
    if kind == "missing":
        return f"{key} has no default: type {key}=VALUE."
    if kind == "value_error":
        return f"{details['ctx']['error']}."
    problem = _problem(details)
    field = section.model_fields.get(path[0]) if path else None
    remedy = "" if field is None or field.is_required() else f" The default: {start}{path[0]}={shown(field.default)}."
    if kind == "tuple_type" and isinstance(value, str | int | float) and value != "":
        remedy = f" Type '{key}=[{shown(value)}]'."
    elif kind == "tuple_type" and not remedy:
        remedy = f" Type the names in brackets: '{key}=[A,B]'."
    elif kind == "string_type" and len(path) > 1 and isinstance(value, int | float):
        remedy = f" Type '{start}{path[0]}=[\"{shown(value)}\"]'."
    return f"{key}={shown(value)} {problem}: the engine or the grading could not use it. Nothing was started.{remedy}"


def shown(value: object) -> str:
    """A value as it was typed, but for spaces: a text that another kind is written as keeps its quotes (`"7"`)."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list | tuple):
        return f"[{','.join(map(shown, value))}]"
    if isinstance(value, dict):
        return "{" + ",".join(f"{shown(key)}:{shown(each)}" for key, each in value.items()) + "}"
    return f'"{value}"' if isinstance(value, str) and _OTHER_KIND.fullmatch(value) else str(value)


_OTHER_KIND = re.compile(r"|null|true|false|[-+]?(nan|inf|[0-9][0-9_]*\.?[0-9]*(e[-+]?[0-9]+)?)", re.IGNORECASE)
"""Texts that would be something else without quotes."""
