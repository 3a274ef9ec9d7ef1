"""What a program may use in a sandbox before it is ended."""

from __future__ import annotations

from dataclasses import dataclass

WALL_FACTOR, WALL_SECONDS = 3, 10
"""Processor time is what counts, so that a busy machine changes no grade; but a program that sleeps, waits or has
stopped itself uses none. It is ended after so many times its processor time and so much more."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Limits:
    """Of one program, which is one process with all its threads: no sandbox lets it start another."""

    seconds: float = 10.0
    """Processor time."""
    memory_mb: int = 2048
    """Addresses (RLIMIT_AS), in MiB; Python itself takes 30, numpy 150."""
    output_bytes: int = 16 * 2**20
    """Written to standard output, standard error and back to who asked, together."""
    scratch_bytes: int = 64 * 2**20
    """All files in /tmp together, and each file. A sandbox without a /tmp of its own lets it write none."""
    threads: int = 64
    files: int = 64
    """Open at once."""

    @property
    def wall_seconds(self) -> float:
        return WALL_FACTOR * self.seconds + WALL_SECONDS
