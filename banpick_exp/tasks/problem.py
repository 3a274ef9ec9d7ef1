"""One question and its right answer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    pass


@dataclass(frozen=True, slots=True)
class Problem:
    """One question. `task` is its sub-task inside the domain."""

    problem_id: str
    domain: str
    task: str
    prompt: str
    answer: str
