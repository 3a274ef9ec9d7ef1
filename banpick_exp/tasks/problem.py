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
    stop: tuple[str, ...] = ()
    """Texts at which an answer ends, themselves left out."""
    choices: tuple[tuple[str, str], ...] = ()
    """(context, continuation): what is asked is how likely each continuation is behind its context, and no answer is
    written. Empty for every other problem."""
    chat: tuple[tuple[str, str], ...] = ()
    """(role, text) of each message, where the file has a chat; empty where `prompt` is all that the user says."""

    @property
    def asked(self) -> str | list[dict[str, str]]:
        """As an engine takes it: a text, or the messages of a chat."""
        return [{"role": role, "content": text} for role, text in self.chat] or self.prompt

    @property
    def question(self) -> str:
        """The prompt as people tell questions apart: white space around it and how an accent is encoded say nothing."""
        asked = "\n".join([self.prompt, *(text for choice in self.choices for text in choice)])
        return unicodedata.normalize("NFC", asked).strip()

    @property
    def sequences(self) -> tuple[str, ...]:
        """What goes to the engine, each text a request."""
        return tuple(context + continuation for context, continuation in self.choices) or (self.prompt,)

    @property
    def answers(self) -> tuple[str, ...]:
        """Every right answer."""
        return (self.answer, *self.also)
