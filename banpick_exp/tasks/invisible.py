"""Characters that nobody sees: a model does not write them, so an answer or a mark that holds one is never found."""

from __future__ import annotations

import unicodedata

KEPT = frozenset("\t\n\r\u3000")
"""White space that files mean: an ideographic space is the space of its script."""
JOINERS = frozenset("\u200c\u200d")
"""Persian, the scripts of India and emoji are spelled with them."""
FILLERS = frozenset("\u034f\u115f\u1160\u2800\u3164\uffa0")
"""Invisible, though of a category of letters, marks or symbols."""
SIGNS = frozenset("\u0600\u0601\u0602\u0603\u0604\u0605\u06dd\u070f\u0890\u0891\u08e2\U000110bd\U000110cd")
"""Visible, though of the category of formats."""
LAST_LATIN = "\u02ff"


def invisible(text: str) -> str | None:
    """The first character of `text` that cannot be seen or only looks like a space: `U+200B ZERO WIDTH SPACE`."""
    for at, char in enumerate(text):
        if _is_hidden(char) and not (char in JOINERS and _joins(text[at - 1 : at] + text[at + 1 : at + 2])):
            return f"U+{ord(char):04X} {unicodedata.name(char, 'a control character')}"
    return None


def _is_hidden(char: str) -> bool:
    category = unicodedata.category(char)
    return char in FILLERS or (
        category in ("Cc", "Cf", "Zs") and char != " " and char not in KEPT and char not in SIGNS
    )


def _joins(neighbours: str) -> bool:
    return len(neighbours) == 2 and all(char > LAST_LATIN and not _is_hidden(char) for char in neighbours)
