"""The program in a completion: the last block of Python between fences, else the last block, else all of the text."""

from __future__ import annotations

from typing import NamedTuple

from banpick_exp.tasks.graders.signs import legible
from banpick_exp.tasks.graders.thought import after_thought

FENCE = "```"
PYTHON = frozenset({"python", "python3", "py", "py3"})


class Written(NamedTuple):
    """A program, and whether fences marked it."""

    code: str
    fenced: bool


def program_of(completion: str) -> Written | None:
    """Behind the thought; None where the thought has no end, or nothing follows it.

    A block that the end of the completion has cut off is one too.
    """
    text = after_thought(completion)
    if text is None or not text.strip():
        return None
    blocks = _blocks(text)
    of_python = [code for language, code in blocks if language in PYTHON]
    every = [code for _, code in blocks]
    chosen = (of_python or every)[-1:]
    if chosen:
        return Written(chosen[0], True) if chosen[0].strip() else None
    return Written(text, False)


def _blocks(text: str) -> list[tuple[str, str]]:
    """(language, content) of each, in order."""
    found: list[tuple[str, list[str]]] = []
    inside = False
    for line in text.split("\n"):
        stripped = legible(line).strip() if FENCE in line else ""
        if stripped.startswith(FENCE) and (not inside or stripped == FENCE):
            if not inside:
                found.append((stripped.removeprefix(FENCE).strip().lower(), []))
            inside = not inside
        elif inside:
            found[-1][1].append(line)
    return [(language, "\n".join(lines) + "\n") for language, lines in found]
