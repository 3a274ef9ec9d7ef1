"""What became of a program in a sandbox."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Status = Literal["passed", "failed", "timeout", "memory", "output", "killed"]
"""passed: it ended by itself and without an error; timeout, memory, output: at that limit; killed: by a signal."""

TAIL = 2000


@dataclass(frozen=True, slots=True)
class Outcome:
    """How it ended, and what it left."""

    status: Status
    stdout: bytes = b""
    results: tuple[str, ...] = ()
    """Lines that the harness sent back; the program can write there too, so they prove nothing by themselves."""
    tail: str = ""
    """The end of its standard error, `TAIL` characters at most."""
