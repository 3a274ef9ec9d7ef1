"""What of a report cannot be drawn costs that alone: not the rest of the report, and not a finished run's exit code."""

from __future__ import annotations

import contextlib
import sys
import traceback
from collections.abc import Callable
from typing import TypeVar

from banpick_exp.run_folder import RunFolder

LONGEST = 200
"""Characters of an error's own words."""

T = TypeVar("T")


def or_else(what: str, folder: RunFolder, work: Callable[[], T], otherwise: Callable[[str], T], *, writes: bool) -> T:
    """What `work` returns; where it fails, what `otherwise` makes of the one line that stderr is told.

    The whole trace is kept under errors/ of the run's folder.

    Args: writes: a file or to the terminal, so that an OSError is a full disk or a closed pipe. That is no failure to
        draw, and raised.
    """
    try:
        return work()
    except Exception as error:  # whatever was drawn wrong, the points are whole
        if writes and isinstance(error, OSError):
            raise
        line = f"{what} could not be drawn ({_in_words(error)}); the rest of the report and all points are whole."
        print(f"banpick: {line}{_kept_trace(what, folder)}", file=sys.stderr)
        return otherwise(line)


def _in_words(error: Exception) -> str:
    said = " ".join(str(error).split())
    short = said if len(said) <= LONGEST else f"{said[:LONGEST]}..."
    return f"{type(error).__name__}: {short}" if short else type(error).__name__


def _kept_trace(what: str, folder: RunFolder) -> str:
    name = "report-" + "".join(c if c.isalnum() else "-" for c in what)
    with contextlib.suppress(OSError):
        return f" Its trace: {folder.write_trace(name, traceback.format_exc())}"
    return ""
