"""What a sweep asked, read from its points: one knob, two knobs, or many rules. It decides which figure answers.

A knob that another one settles is no axis of its own: `mode` is `boost` wherever `boost` has a value.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl

from banpick_exp.analysis.pairing import REFERENCE_POLICIES
from banpick_exp.policy.rule import short
from banpick_exp.report.equal_budget import is_near
from banpick_exp.report.run import Run

MOST_SWEPT = 2
FEWEST = 3
"""Values of one knob that make a curve."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Knob:
    """One axis of a sweep."""

    name: str
    values: tuple[Any, ...]
    """In order, numbers before words; None where the knob is absent."""
    words: tuple[str, ...]
    """What stands at each value."""

    @property
    def numbers(self) -> bool:
        """Whether all values are numbers, so that an axis can have their scale."""
        return all(isinstance(value, int | float) and not isinstance(value, bool) for value in self.values)

    def place(self, setting: Mapping[str, Any]) -> int:
        """Index of the value that one point has."""
        return self.values.index(_value(setting, self.name))


@dataclass(frozen=True, kw_only=True, slots=True)
class Swept:
    """A rule and the one or two knobs that were swept, with the points at their places."""

    policy: str
    knobs: tuple[Knob, ...]
    places: Mapping[tuple[int, ...], str]
    """Index of each knob's value -> fingerprint."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Cells:
    """A domain on the grid of two knobs; arrays are [values of the second, values of the first], NaN where no point."""

    domain: str
    difference: np.ndarray
    """In points, against the nearest fixed_k."""
    low: np.ndarray
    high: np.ndarray
    """Ends of the interval that holds for all policies at once."""
    kept: np.ndarray
    verdict: np.ndarray
    """`beats`, `loses`, `ties`, empty where nothing was compared."""
    near: np.ndarray
    """Whether the rival keeps as many experts."""


def swept(run: Run) -> Swept | None:
    """The knobs of a run that swept one or two of a single rule; None of any other run."""
    rows = run.done_rows().filter(~pl.col("policy").is_in(REFERENCE_POLICIES))
    solved = rows["budget_target"].drop_nulls().len() > 0  # then the budget is the axis
    if rows.height < FEWEST or rows["policy"].n_unique() != 1 or solved or run.mixed_setups is not None:
        return None
    settings = [json.loads(text) for text in rows["knobs"]]
    names = knob_names(settings)
    if not 0 < len(names) <= MOST_SWEPT:
        return None
    knobs = tuple(knob_of(name, settings) for name in names)
    knobs = tuple(sorted(knobs, key=lambda knob: len(knob.values)))
    places = {
        tuple(knob.place(each) for knob in knobs): fingerprint
        for each, fingerprint in zip(settings, rows["fingerprint"], strict=True)
    }
    if len(places) != rows.height or (len(knobs) == 1 and rows.height < FEWEST):
        return None  # something else differs too: a checkpoint, or what a label does not say
    return Swept(policy=rows["policy"][0], knobs=knobs, places=places)


def cells(run: Run, asked: Swept, domain: str) -> Cells:
    """What `asked` says of a domain; of one knob the grid has one line."""
    shape = tuple(len(knob.values) for knob in reversed(asked.knobs))
    shape = shape if len(shape) == MOST_SWEPT else (1, *shape)
    numbers = {name: np.full(shape, np.nan) for name in ("difference", "low", "high", "kept")}
    verdict, near = np.full(shape, "", dtype=object), np.zeros(shape, dtype=bool)
    for place, fingerprint in asked.places.items():
        row = run.verdict_of.get((fingerprint, domain))
        at = (*reversed(place),) if len(place) == MOST_SWEPT else (0, *place)
        if row is None:
            continue
        numbers["kept"][at] = row["mean_kept"]
        if row["difference"] is None:
            continue
        for name, column in (("difference", "difference"), ("low", "lo_simultaneous"), ("high", "hi_simultaneous")):
            numbers[name][at] = 100 * row[column]
        verdict[at], near[at] = row["verdict"], is_near(row)
    return Cells(domain=domain, verdict=verdict, near=near, **numbers)


def knob_names(settings: Sequence[Mapping[str, Any]], *, drawn: bool = False) -> list[str]:
    """Knobs that vary and that no other one settles.

    `drawn`: values may have been drawn at random. One that is another for each point settles every knob by that alone,
    so it counts as settling only where it is absent somewhere, as `boost` is where `mode` is set.
    """
    every = dict.fromkeys(name for each in settings for name in each)
    columns = {name: [_value(each, name) for each in settings] for name in every}
    count = {name: len(set(map(repr, values))) for name, values in columns.items()}
    axes = [name for name in every if count[name] > 1]

    def may_settle(name: str) -> bool:
        return not drawn or count[name] < len(settings) or None in columns[name]

    for name in sorted(axes, key=lambda name: count[name]):
        if any(_settles(columns[other], columns[name]) for other in axes if other != name and may_settle(other)):
            axes.remove(name)
    return axes


def _settles(given: Sequence[Any], found: Sequence[Any]) -> bool:
    return len({(repr(a), repr(b)) for a, b in zip(given, found, strict=True)}) == len(set(map(repr, given)))


def knob_of(name: str, settings: Sequence[Mapping[str, Any]]) -> Knob:
    """The axis of one knob, by its values in `settings`: the knobs of points of one rule."""
    values = {repr(value): value for each in settings for value in (_value(each, name),)}
    ordered = sorted(values.values(), key=_order)
    return Knob(name=name, values=tuple(ordered), words=tuple(_words(value, name, settings) for value in ordered))


def _words(value: Any, name: str, settings: Sequence[Mapping[str, Any]]) -> str:
    """The value; of an absent knob what is set in its place."""
    if isinstance(value, tuple):
        return short([int(each) if each.isdecimal() else each for each in value])
    if value is not None:
        return f"{value:g}" if isinstance(value, float) else str(value)
    without = [each for each in settings if _value(each, name) is None]
    elsewhere = [each for each in settings if _value(each, name) is not None]
    for other, setting in without[0].items():
        same = all(each.get(other) == setting for each in without)
        if isinstance(setting, str) and same and all(each.get(other) != setting for each in elsewhere):
            return setting
    return f"no {name}"


def _value(setting: Mapping[str, Any], name: str) -> Any:
    value = setting.get(name)
    return tuple(map(str, value)) if isinstance(value, list) else str(value) if isinstance(value, dict) else value


def _order(value: Any) -> tuple[int, float, str]:
    """Numbers, then words, then the absent."""
    if value is None:
        return 2, 0.0, ""
    if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
        return 0, float(value), ""
    return 1, 0.0, str(value)
