"""Which problem breaks an engine, found from what was in flight: against engines that die of any problems we choose."""

from __future__ import annotations

import itertools
import math
import random
from dataclasses import dataclass, field

import pytest

from banpick_exp.evaluation.narrowing import Flight, Key, Suspicion, after_death, groups


def asked(count: int) -> list[Key]:
    return [("math" if number % 3 else "code", str(number)) for number in range(count)]


@dataclass
class Engines:
    """Engines that die of the problems in `poison`, as many as a call takes; three idle ones in a row end it."""

    poison: set[Key]
    known: set[Key] = field(default_factory=set)
    deaths: int = 0
    convicted: list[Key] = field(default_factory=list)
    idle: int = 0
    """Deaths in a row that were no progress."""
    answered: list[Key] = field(default_factory=list)

    def call(self, keys: list[Key]) -> bool:
        """Whether the call came to its end."""
        suspicion = Suspicion()
        while self.idle < 3:
            flight = self.one_engine(keys, suspicion)
            if flight is None:
                assert sorted([*self.answered, *self.convicted]) == sorted(keys), "each is answered once, or set aside"
                return True
            noted = suspicion.deaths or self.known.issuperset(flight.keys)
            lesson = after_death(suspicion, flight if noted else None)
            self.deaths, self.idle = self.deaths + 1, 0 if lesson.narrowed else self.idle + 1
            self.convicted += [lesson.convicted] if lesson.convicted else []
            suspicion = lesson.suspicion
        return False

    def one_engine(self, keys: list[Key], suspicion: Suspicion) -> Flight | None:
        """Under what it dies."""
        left = [key for key in keys if key not in self.answered and key not in self.convicted]
        doubted, before, landed = {*suspicion.suspects, *self.known}, bool(self.answered), False
        for group in groups(left, suspicion, self.known):
            if self.poison & set(group):
                last = len(keys) - len(self.convicted) == 1
                told = doubted.issuperset(group) or (last and suspicion.deaths > 0)
                return Flight(keys=tuple(group), doubted=told, landed=landed, proven=landed or before or last)
            self.answered += group
            landed = True
        return None


@pytest.mark.parametrize("count", [2, 3, 60, 1000])
def test_one_problem_costs_three_engines_wherever_it_stands(count: int) -> None:
    for place in range(0, count, max(1, count // 20)):
        engines = Engines({asked(count)[place]})
        assert engines.call(asked(count))
        assert engines.convicted == [asked(count)[place]] and engines.deaths == 3


def test_a_call_of_one_problem_needs_two_deaths() -> None:
    engines = Engines(set(asked(1)))
    assert engines.call(asked(1)) and (engines.deaths, engines.convicted) == (2, asked(1))


def test_several_are_found_and_no_other_is() -> None:
    draw = random.Random(7)
    for _ in range(300):
        count = draw.randint(12, 120)
        engines = Engines(set(draw.sample(asked(count), draw.randint(0, 3))))
        assert engines.call(asked(count)), engines
        assert set(engines.convicted) == engines.poison and len(engines.convicted) == len(engines.poison)
        assert engines.deaths <= 1 + 2 * len(engines.poison)


@pytest.mark.parametrize("count", [2, 5, 60, 1000])
def test_engines_that_die_of_everything_accuse_no_problem(count: int) -> None:
    engines = Engines(set(asked(count)))
    assert not engines.call(asked(count)) and (engines.convicted, engines.deaths) == ([], 3)


def test_one_that_is_known_costs_one_engine_and_the_others_none() -> None:
    known = set(asked(60)[5:7])
    engines = Engines({asked(60)[5]}, known)
    assert engines.call(asked(60)) and (engines.deaths, engines.convicted, engines.idle) == (1, [asked(60)[5]], 0)
    assert Engines(set(), known).call(asked(60))
    assert groups(asked(60), Suspicion(), known)[1:] == [[key] for key in asked(60)[5:7]], "last, and alone"


def test_a_first_try_is_one_piece_and_a_second_about_the_root_of_it() -> None:
    assert groups(asked(60), Suspicion()) == [asked(60)]
    pieces = groups(asked(60), Suspicion(deaths=1))
    assert len(pieces[0]) == 1 and max(map(len, pieces)) == math.ceil(math.sqrt(60))
    assert sorted(itertools.chain(*pieces)) == sorted(asked(60))
    assert groups([], Suspicion()) == groups([], Suspicion(deaths=3)) == []


def test_deaths_of_which_the_engine_said_nothing_show_nothing() -> None:
    suspicion = Suspicion()
    for deaths in range(1, 5):
        lesson = after_death(suspicion, None)
        assert not lesson.narrowed and lesson.convicted is None
        suspicion = lesson.suspicion
        assert suspicion == Suspicion(deaths=deaths)


def test_the_same_word_twice_shows_nothing_new() -> None:
    """A file that a machine sees late must not let a call go on for ever."""
    flight = Flight(keys=tuple(asked(4)), doubted=False, landed=True, proven=True)
    first = after_death(Suspicion(deaths=1), flight)
    assert first.narrowed and not after_death(first.suspicion, flight).narrowed
