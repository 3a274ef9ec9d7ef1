"""Choices with letters: how they are written, and in which order where the source has the right one first."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

LETTERS = "ABCDEFGHIJ"


def lettered(choices: Sequence[str], mark: str) -> str:
    """One choice a line: `A) first` with the mark `)`."""
    return "\n".join(f"{letter}{mark} {choice.strip()}" for letter, choice in zip(LETTERS, choices, strict=False))


def shuffled(problem_id: str, choices: Sequence[str]) -> list[int]:
    """An order of the choices that the problem's id alone decides: the same on every machine, in every run."""
    return sorted(range(len(choices)), key=lambda place: hashlib.sha256(f"{problem_id}\0{place}".encode()).digest())
