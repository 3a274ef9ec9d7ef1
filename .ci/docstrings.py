"""Docstrings of this project as Markdown: they are written to be read in an editor, and `make docs` renders them.

Shapes such as [T][K] are no links, `<` opens no tag, worked examples are blocks of Python, and a section's name before
text of its own line begins a sentence.
"""

from __future__ import annotations

import re
from typing import Any

import griffe

CODE = re.compile(r"(`+)(?!`).*?(?<!`)\1(?!`)")
SENTENCE = re.compile(r"^(Args|Raises|Returns|Yields): (?=\S)")
"""A section's name before text of its own line: a section has its entries in the lines below."""


def as_markdown(text: str) -> str:
    """`text` with its doctests fenced, and what Markdown would read out of plain prose escaped."""
    lines: list[str] = []
    within = False
    before = ""
    for line in text.splitlines():
        begins = line.lstrip().startswith(">>>")
        if begins and not within:
            lines += ["", "```pycon"]
            within = True
        elif within and not line.strip():
            lines.append("```")
            within = False
        indented = line.startswith("    ") and not before.strip()
        lines.append(line if within or indented else SENTENCE.sub(r"**\1**: ", escaped(line)))
        before = "" if indented else line
    return "\n".join([*lines, "```"] if within else lines)


def escaped(line: str) -> str:
    """A line of prose; what stands in backticks stays as it is."""
    result, end = "", 0
    for code in CODE.finditer(line):
        result += _escaped(line[end : code.start()]) + code[0]
        end = code.end()
    return result + _escaped(line[end:])


def _escaped(prose: str) -> str:
    return re.sub(r"([\[\]*])", r"\\\1", prose).replace("<", "&lt;")


class Docstrings(griffe.Extension):
    def on_object(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        if obj.docstring:
            obj.docstring.value = as_markdown(obj.docstring.value)
