"""The one place that turns what a command raises into words and an exit code."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Callable

from banpick_exp.errors import UserError

BAD_INPUT = 2
INTERRUPTED = 130
"""What a shell reports after Ctrl-C: 128 + SIGINT."""
BROKEN_PIPE = 141
"""128 + SIGPIPE: whoever read our output went away, as `| head` does."""


def answered(work: Callable[[], int]) -> int:
    """Runs `work` and returns its exit code.

    A UserError is printed without a stack trace; so is Ctrl-C, with what it says about going on.
    """
    _fall_back_in_characters()
    try:
        code = work()
        sys.stdout.flush()
        return code
    except UserError as error:
        print(f"banpick: {error}", file=sys.stderr)
        return BAD_INPUT
    except KeyboardInterrupt as interrupt:
        print(f"banpick: interrupted{f'; {interrupt}' if str(interrupt) else ''}", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        # Python flushes once more at its end, which would print a trace of its own.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return BROKEN_PIPE


def _fall_back_in_characters() -> None:
    """A terminal that is not UTF-8 gets `?` for what it cannot show: a finished run must not die of a circle."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
