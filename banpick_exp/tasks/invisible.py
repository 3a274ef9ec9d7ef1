"""Characters that nobody sees: a model does not write them, so an answer or a mark that holds one is never found."""

from __future__ import annotations

import unicodedata

KEPT = frozenset("\t\n\u3000")
"""White space that files mean: an ideographic space is the space of its script. A carriage return is none of it: models
end lines without."""
JOINERS = frozenset("\u200c\u200d")
"""Persian, the scripts of India and emoji are spelled with them."""
FILLERS = frozenset("\u034f\u115f\u1160\u2800\u3164\uffa0")
"""Invisible, though of a category of letters, marks or symbols."""
SIGNS = frozenset("\u0600\u0601\u0602\u0603\u0604\u0605\u06dd\u070f\u0890\u0891\u08e2\U000110bd\U000110cd")
"""Visible, though of the category of formats."""
UNSEEN = frozenset({"Cc", "Cf", "Zs", "Zl", "Zp"})
"""Categories of controls, formats and what divides words, lines and paragraphs."""
LAST_LATIN = "\u02ff"
FLAG = "\U0001f3f4"
"""Tags behind it say whose flag it is."""
KEYCAP = "\u20e3"
"""1, a selector of emoji style and this are one emoji; of any other Latin character a selector changes nothing."""


def invisible(text: str) -> str | None:
    """The first character of `text` that cannot be seen or only looks like a space: `U+200B ZERO WIDTH SPACE`."""
    for at, char in enumerate(text):
        if not " " <= char <= "~" and _is_lost(text, at):
            return f"U+{ord(char):04X} {unicodedata.name(char, 'a control character')}"
    return None


def _is_lost(text: str, at: int) -> bool:
    """Is the character hidden, and no part of how those beside it are spelled?"""
    before, char, after = text[max(at - 1, 0) : at], text[at], text[at + 1 : at + 2]
    if _selects_a_style(char):
        return after != KEYCAP and before <= "~"
    if _is_tag(char):
        return FLAG not in text[:at]
    return _is_hidden(char) and not (char in JOINERS and _joins(before + after))


def _is_hidden(char: str) -> bool:
    return char in FILLERS or (
        char != " " and unicodedata.category(char) in UNSEEN and char not in KEPT and char not in SIGNS
    )


def _selects_a_style(char: str) -> bool:
    return "\ufe00" <= char <= "\ufe0f" or "\U000e0100" <= char <= "\U000e01ef"


def _is_tag(char: str) -> bool:
    return "\U000e0020" <= char <= "\U000e007f"


def _joins(neighbours: str) -> bool:
    return len(neighbours) == 2 and all(char > LAST_LATIN and not _is_hidden(char) for char in neighbours)
