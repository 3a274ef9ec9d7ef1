"""Consoles to print on: where the output is no terminal nothing wraps, where it is not Unicode our signs are ASCII."""

from __future__ import annotations

from typing import IO, Any, cast

from rich.console import Console

UNWRAPPED = 10_000
"""Columns, where the output is no terminal: a log wraps nothing, however long a label."""
IN_ASCII = str.maketrans(
    {"●": "#", "○": "o", "⚠": "!", "▲": "^", "▼": "v", "…": "~", "\u00a0": " ", "·": "-", "–": "-", "×": "x"}
)
"""A character for a character: widths stay."""


class Spelled:
    """A text file that gets our signs in ASCII."""

    def __init__(self, file: IO[str]) -> None:
        self._file = file

    def write(self, text: str) -> int:
        return self._file.write(text.translate(IN_ASCII))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


def fitting(console: Console) -> Console:
    """The console itself; another for the same file where that is no terminal, or cannot show our signs."""
    unicode = console.encoding.startswith("utf")
    if console.is_terminal and unicode:
        return console
    return Console(
        file=console.file if unicode else cast("IO[str]", Spelled(console.file)),
        width=console.width if console.is_terminal else UNWRAPPED,
        force_terminal=console.is_terminal,
        no_color=console.no_color,
        color_system="auto" if console.color_system else None,
    )
