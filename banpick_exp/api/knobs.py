"""The knobs of points as a struct with a field each, in place of one JSON text."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

import polars as pl


def with_knobs(frame: pl.DataFrame) -> pl.DataFrame:
    """A frame of `points_frame` whose `knobs` is a struct: `frame.unnest("knobs")` makes columns of it.

    A field is a whole number, a number or a truth value where all of its values are, null where a policy has no such
    knob, and else text: of a mapping or a list its JSON. A run whose policies have no knobs has one field, `none`.
    """
    parsed: list[dict[str, Any]] = [json.loads(text) for text in frame["knobs"].to_list()]
    names = list(dict.fromkeys(name for knobs in parsed for name in knobs))
    types = {name: _type(knobs[name] for knobs in parsed if knobs.get(name) is not None) for name in names}
    columns = [
        pl.Series(name, [_value(knobs.get(name), types[name]) for knobs in parsed], dtype=types[name]) for name in names
    ]
    fields = columns or [pl.Series("none", [None] * frame.height, dtype=pl.Null)]
    return frame.with_columns(pl.DataFrame(fields).to_struct("knobs"))


def _type(values: Iterable[Any]) -> Any:
    kinds = {type(value) for value in values}
    if kinds == {bool}:
        return pl.Boolean
    if kinds == {int}:
        return pl.Int64
    return pl.Float64 if kinds and kinds <= {int, float} else pl.String


def _value(value: Any, kind: Any) -> Any:
    return value if value is None or kind != pl.String or isinstance(value, str) else json.dumps(value)
