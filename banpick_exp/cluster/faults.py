"""What is done when work or an engine fails: how often each is tried, and what is said of it."""

from __future__ import annotations

from collections import Counter

ATTEMPTS = 2
"""A point whose engine died is tried once more on a new engine; one that fails by itself is not."""
FATAL_TO_ENGINE = ("EngineError", "EngineDeadError")
"""Errors of a call after which the engine can no longer be trusted with the next point."""


class Restarts:
    """How often an engine was started in each slot."""

    def __init__(self) -> None:
        self._starts: Counter[str] = Counter()

    def started(self, slot: str) -> None:
        self._starts[slot] += 1

    def may_start_again(self, slot: str) -> bool:
        return self._starts[slot] <= ATTEMPTS


def last_line(error: BaseException) -> str:
    """The line of an error's text that says what went wrong: the last one."""
    lines = [line for line in str(error).splitlines() if line.strip()]
    return lines[-1].strip() if lines else repr(error)
