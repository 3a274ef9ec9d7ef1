"""One question and its right answers."""

from __future__ import annotations

import unicodedata
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Problem:
    """One question. Its texts are as the file has them, its answers as the grader compares them."""

    problem_id: str
    """Unique within its domain."""
    domain: str
    task: str
    """Sub-task inside the domain."""
    prompt: str
    """What is asked; of a chat, all that was said, with who said it."""
    answer: str
    also: tuple[str, ...] = ()
    """Other answers that are right."""
    response: str | None = None
    """All that a model should write, its steps included, where the file says it."""
    material: str | None = None
    """What the grader needs beside the answers (tests to run, rules to check), as JSON text; None where nothing."""
    chat: tuple[tuple[str, str], ...] = ()
    """(role, text) of each message, where the file has a chat; empty where `prompt` is all that the user says."""

    @property
    def asked(self) -> str | list[dict[str, str]]:
        """As an engine takes it: a text, or the messages of a chat."""
        return [{"role": role, "content": text} for role, text in self.chat] or self.prompt

    @property
    def question(self) -> str:
        """The prompt as people tell questions apart: white space around it and how an accent is encoded say nothing."""
        return unicodedata.normalize("NFC", self.prompt).strip()

    @property
    def answers(self) -> tuple[str, ...]:
        """Every right answer."""
        return (self.answer, *self.also)
