"""The one place that turns what a command raises into words and an exit code."""

from __future__ import annotations

import sys
from collections.abc import Callable

from banpick_exp.errors import UserError

BAD_INPUT = 2
INTERRUPTED = 130
"""What a shell reports after Ctrl-C: 128 + SIGINT."""


def answered(work: Callable[[], int], *, on_interrupt: str) -> int:
    """Runs `work` and returns its exit code. A UserError is printed without a stack trace, Ctrl-C as `on_interrupt`."""
    try:
        return work()
    except UserError as error:
        print(f"banpick: {error}", file=sys.stderr)
        return BAD_INPUT
    except KeyboardInterrupt:
        print(f"banpick: {on_interrupt}", file=sys.stderr)
        return INTERRUPTED
