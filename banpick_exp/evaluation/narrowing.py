"""Which problem breaks an engine: found from what was in flight when engines died. Pure, and imports nothing heavy.

The first engine that dies under a call says nothing: all problems were in flight. The next asks them in about sqrt(n)
pieces, so a second death names a piece; the problems of that piece are then asked one at a time, and a third death
names one of them. Each further problem that breaks engines costs two deaths: its piece is found, and then itself.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

Key = tuple[str, str]
"""(domain, problem_id)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Suspicion:
    """What the deaths under one call have shown so far."""

    deaths: int = 0
    suspects: tuple[Key, ...] = ()
    """In flight, with others, when an engine died for at least the second time: asked one at a time."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Lesson:
    """What one more death shows."""

    suspicion: Suspicion
    convicted: Key | None = None
    """A problem that was in flight alone, and that had been in flight when an engine died before."""
    narrowed: bool = False
    """Whether anything new is known: the next engine asks otherwise, and one death less is left to come."""


def groups(keys: Sequence[Key], suspicion: Suspicion, known: Collection[Key] = ()) -> list[list[Key]]:
    """In which pieces to ask what is left of a call, in order; suspects come last and one at a time.

    `known`: problems that broke an engine elsewhere in the run.

    >>> asked = [("math", str(number)) for number in range(5)]
    >>> groups(asked, Suspicion()) == [asked]
    True
    >>> [len(piece) for piece in groups(asked, Suspicion(deaths=1))]
    [3, 2]
    >>> groups(asked, Suspicion(deaths=2, suspects=tuple(asked[:2])))
    [[('math', '2'), ('math', '3')], [('math', '4')], [('math', '0')], [('math', '1')]]
    """
    doubted = {*suspicion.suspects, *known}
    rest, alone = ([key for key in keys if (key in doubted) is there] for there in (False, True))
    size = max(1, math.ceil(math.sqrt(len(rest)))) if suspicion.deaths else max(1, len(rest))
    return [rest[begin : begin + size] for begin in range(0, len(rest), size)] + [[key] for key in alone]


def after_death(suspicion: Suspicion, in_flight: Sequence[Key] | None) -> Lesson:
    """One more engine died. `in_flight`: the piece that it was asked, None where it said nothing of pieces."""
    died = replace(suspicion, deaths=suspicion.deaths + 1)
    if not in_flight:
        return Lesson(suspicion=died)
    if len(in_flight) == 1:
        left = tuple(key for key in died.suspects if key != in_flight[0])
        return Lesson(suspicion=replace(died, suspects=left), convicted=in_flight[0], narrowed=True)
    new = tuple(key for key in in_flight if key not in died.suspects)
    return Lesson(suspicion=replace(died, suspects=died.suspects + new), narrowed=bool(new))
