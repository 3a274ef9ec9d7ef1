"""Which problem breaks an engine: found from what was in flight when engines died. Pure, and imports nothing heavy.

The first engine that dies under a call says nothing: all problems were in flight. The next asks them in about sqrt(n)
pieces, so a second death names a piece; the problems of that piece are then asked one at a time, and a third death
names one of them. Each further problem that breaks engines costs two deaths: its piece is found, and then itself.

An engine that dies of whatever it is asked (a policy that no kernel takes, a broken device) must accuse no problem. So
the first piece is a single one, which tells such an engine at once, and a death counts against a problem only where
others were answered.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

Key = tuple[str, str]
"""(domain, problem_id)."""
GOLDEN = (math.sqrt(5) - 1) / 2
"""Its multiples, less their whole part, lie evenly and never near each other."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Suspicion:
    """What the deaths under one call have shown so far."""

    deaths: int = 0
    suspects: tuple[Key, ...] = ()
    """In flight, with others, when an engine died for at least the second time: asked one at a time."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Flight:
    """What an engine was asked when it died, as it said beforehand."""

    keys: tuple[Key, ...]
    doubted: bool
    """Whether each of them was in flight at an earlier death that tells it apart, or broke an engine elsewhere."""
    landed: bool
    """Whether this engine had answered other pieces of the call."""
    proven: bool
    """Whether this or an earlier engine had, or there is no other problem to ask."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Lesson:
    """What one more death shows."""

    suspicion: Suspicion
    convicted: Key | None = None
    """A problem that was in flight alone, and that had been in flight when an engine died before."""
    narrowed: bool = False
    """Whether it is progress: others were answered, and the next engine asks otherwise."""


def groups(keys: Sequence[Key], suspicion: Suspicion, known: Collection[Key] = ()) -> list[list[Key]]:
    """In which pieces to ask what is left of a call, in order; suspects come last and one at a time.

    `known`: problems that broke an engine elsewhere in the run.

    >>> asked = [("math", str(number)) for number in range(5)]
    >>> groups(asked, Suspicion()) == [asked]
    True
    >>> [[name for _, name in piece] for piece in groups(asked, Suspicion(deaths=1))]
    [['3'], ['0', '1'], ['2', '4']]
    >>> suspicion = Suspicion(deaths=2, suspects=tuple(asked[:2]))
    >>> [[name for _, name in piece] for piece in groups(asked, suspicion)]
    [['2'], ['3', '4'], ['0'], ['1']]
    """
    here = set(keys)
    alone = [key for key in suspicion.suspects if key in here]
    alone += [key for key in keys if key in known and key not in alone]
    rest = [key for key in keys if key not in set(alone)]
    if not suspicion.deaths or not rest:
        return ([rest] if rest else []) + [[key] for key in alone]
    # Another one each time, far from the last: it may itself be what breaks the engine.
    first = rest.pop(int(suspicion.deaths * GOLDEN % 1 * len(rest)))
    size = max(1, math.ceil(math.sqrt(len(rest))))
    pieces = [rest[begin : begin + size] for begin in range(0, len(rest), size)]
    return [[first], *pieces, *([key] for key in alone)]


def after_death(suspicion: Suspicion, flight: Flight | None) -> Lesson:
    """One more engine died. `flight`: None where it said nothing of pieces."""
    died = replace(suspicion, deaths=suspicion.deaths + 1)
    if flight is None:
        return Lesson(suspicion=died)
    others = tuple(key for key in died.suspects if key not in flight.keys)
    if len(flight.keys) == 1 and flight.doubted and flight.proven:
        return Lesson(suspicion=replace(died, suspects=others), convicted=flight.keys[0], narrowed=True)
    new = not set(flight.keys) <= set(died.suspects)
    return Lesson(suspicion=replace(died, suspects=others + flight.keys), narrowed=new and flight.landed)
