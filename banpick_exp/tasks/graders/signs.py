"""What a completion writes in other signs than ASCII's and means the same by, for graders of numbers and letters.

A full-width digit is a digit, every minus is a hyphen, brackets and quotes of other scripts are brackets and quotes;
and what nobody sees (controls, marks of direction, spaces without width) says nothing.
"""

from __future__ import annotations

_FULL_WIDTH = {code: chr(code - 0xFEE0) for code in range(0xFF01, 0xFF5F)}
_MINUS = dict.fromkeys((0x2212, 0xFE63, 0xFF0D), "-")
_OTHERS = {0x3002: ".", 0x3010: "[", 0x3011: "]", 0x300C: '"', 0x300D: '"', 0xAB: '"', 0xBB: '"', 0x3000: " "}
_WHITE_SPACE = frozenset(map(ord, "\t\n\v\f\r\x1c\x1d\x1e\x1f\x85"))
_UNSEEN = {*range(0x20), *range(0x7F, 0xA0), 0xAD, 0xFEFF, *range(0x200B, 0x2010), *range(0x202A, 0x202F)}
_UNSEEN |= {*range(0x2060, 0x2070)}
_SIGNS: dict[int, str | None] = {**dict.fromkeys(_UNSEEN - _WHITE_SPACE), **_FULL_WIDTH, **_OTHERS, **_MINUS}


def legible(text: str) -> str:
    """`text` in ASCII's signs where it means the same by others, without what nobody sees."""
    return text if text.isascii() and text.isprintable() else text.translate(_SIGNS)
