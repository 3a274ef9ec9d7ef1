"""The one place that turns what a command raises into words and an exit code."""

from __future__ import annotations

import contextlib
import errno
import io
import os
import re
import sys
from collections.abc import Callable

from banpick_exp.errors import INTERRUPTED, CannotWrite, UserError

BAD_INPUT = 2
FULL = 1
BROKEN_PIPE = 141
"""128 + SIGPIPE: whoever read our output went away, as `| head` does."""


LONGEST_WORD = 300
"""Characters without a space that a message repeats whole: a value of 5,000 digits says no more than its beginning."""
LONGEST_LINE = 2000
"""Characters of a line that are printed whole: our own texts are shorter, a value of a thousand words is not."""


def answered(work: Callable[[], int]) -> int:
    """Runs `work` and returns its exit code.

    A UserError is printed without a stack trace; so is Ctrl-C, with what it says about going on.
    """
    open_closed_streams()
    _fall_back_in_characters()
    try:
        code = work()
        sys.stdout.flush()
        return code
    except UserError as error:
        _say(_shortened(str(error)))
        return BAD_INPUT
    except KeyboardInterrupt as interrupt:
        _say(f"interrupted{f'; {interrupt}' if str(interrupt) else ''}")
        return INTERRUPTED
    except CannotWrite as error:
        _say(str(error))
        return FULL
    except BrokenPipeError:
        _silence_stdout()
        return BROKEN_PIPE
    except OSError as error:
        if error.errno != errno.ENOSPC or error.filename is not None:  # a file of ours: not what is printed
            raise
        _silence_stdout()
        _say("what was printed could not be written: no space is left where it goes")
        return FULL


def _say(text: str) -> None:
    with contextlib.suppress(OSError):  # nobody reads it; the exit code still tells
        print(f"banpick: {text}", file=sys.stderr, flush=True)


def restart_in_utf8() -> None:
    """Start this process again in Python's UTF-8 mode where it reads all text as ASCII (LC_ALL=C PYTHONUTF8=0).

    Paths and texts that were typed would be something else there, and torch cannot read its own files.
    """
    if sys.getfilesystemencoding() == "ascii" and os.environ.get("PYTHONUTF8") != "1":  # once: -X utf8=0 wins over it
        os.environ["PYTHONUTF8"] = "1"
        os.execv(sys.executable, sys.orig_argv)


def _silence_stdout() -> None:
    """Python flushes once more at its end, which would print a trace of its own."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _shortened(text: str) -> str:
    short = re.sub(rf"\S{{{LONGEST_WORD + 1},}}", lambda word: f"{word[0][:60]}... ({len(word[0])} characters)", text)
    return "\n".join(_line_shortened(line) for line in short.split("\n"))


def _line_shortened(line: str) -> str:
    """A long line without its middle: it begins with what was typed and ends with what to type."""
    if len(line) <= LONGEST_LINE:
        return line
    return f"{line[: LONGEST_LINE // 2]} ... ({len(line)} characters) ... {line[-LONGEST_LINE // 2 :]}"


def open_closed_streams() -> None:
    """Give a stream that the shell has closed (`>&-`) to /dev/null: the next file opened would become it otherwise."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            assert os.open(os.devnull, os.O_RDWR) == number, "the lowest free number is what `open` returns"
    names = (("stdin", "r"), ("stdout", "w"), ("stderr", "w"))
    for number, (name, mode) in enumerate(names):
        if getattr(sys, name) is None:
            setattr(sys, name, open(number, mode, closefd=False))  # noqa: SIM115 (for the whole process)


def _fall_back_in_characters() -> None:
    """A terminal that is not UTF-8 gets `?` for what it cannot show: a finished run must not die of a circle."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
