r"""A user's regular expression searched for in a model's text, with a limit to the time that one search may take.

`(a+)+$` on thirty characters that nearly match takes `re` minutes, on forty days, and nothing can stop it from
inside: an engine would stand still in mid-sweep. So patterns run in a process beside (`pattern_process`), which the
kernel ends. What is found is what `re` finds. (`regex` has a timeout, but means other things by `\s` and `{e}`, and
its timeout is the processor time of all threads: gone in no time in an engine.) Here too processor time is what
counts, but that of the search alone: a busy machine changes no grade.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import json
import os
import re
import signal
import string
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from banpick_exp.errors import UserError

LIMIT_SECONDS = 30.0
"""Processor time of one search. Most take milliseconds on 30,000 tokens; `(?s).*#### (.+)`, which looks through the
whole text from each of its characters, ten seconds."""
PROBE_SECONDS = 1.0
"""The same for a probe's short text."""
WALL_FACTOR, WALL_SECONDS = 10, 60
"""A search without an answer after so many times its processor time and so much more is given up: its process is
stopped, and none of the text's doing."""
MOST_LATE, MOST_LATE_SHARE = 8, 0.02
"""More searches over the limit than this, and than this share of all with the pattern, are an error and no result."""

PROBE_LENGTH = 200
"""Repetitions in a probe's text: enough for what grows exponentially, and nothing for what grows with the square."""
PROBE_ENDS = ("\0", "\n!", "")

REMEDY = (
    "Say more exactly what it may take: no + or * inside a group that is repeated itself, no alternatives that begin"
    " alike, e.g. task.answer_pattern='answer: *([^.]+)'"
)


class TooSlow(Exception):
    """A search was ended at its limit."""


class _Searcher:
    """The process, started when it is first needed and again after each end."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._owner = os.getpid()
        self._one_at_a_time = threading.Lock()

    def search(self, pattern: str, text: str, seconds: float) -> str | None:
        """The group of the last match; TooSlow where finding it takes more than `seconds` of processor time."""
        question = json.dumps([pattern, text, seconds]).encode() + b"\n"
        with self._one_at_a_time:
            for _ in range(2):  # one that had idled away is noticed only when it is asked
                process = self._running()
                answer = self._asked(process, question, seconds * WALL_FACTOR + WALL_SECONDS)
                if answer:
                    found: str | None = json.loads(answer)
                    return found
                code = self.close()
                if code in (-signal.SIGPROF, -signal.SIGKILL):
                    raise TooSlow
            raise RuntimeError(
                f"the process that looks for answers by task.answer_pattern={pattern!r} ended with {code}"
            )

    def _running(self) -> subprocess.Popen[bytes]:
        if self._owner != os.getpid():  # forked: the process is the other's
            self._process, self._owner = None, os.getpid()
        if self._process is None:
            command = [sys.executable, "-I", "-S", str(Path(__file__).with_name("pattern_process.py"))]
            # No environment: what searches a model's text needs none of our keys.
            self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env={})
        return self._process

    @staticmethod
    def _asked(process: subprocess.Popen[bytes], question: bytes, wall_seconds: float) -> bytes:
        """The line that comes back; empty where the process ended, or was killed for want of one."""
        assert process.stdin is not None and process.stdout is not None
        too_late = threading.Timer(wall_seconds, process.kill)
        too_late.daemon = True
        too_late.start()
        try:
            process.stdin.write(question)
            process.stdin.flush()
            return process.stdout.readline()
        except BrokenPipeError:
            return b""
        finally:
            too_late.cancel()

    def close(self) -> int | None:
        """End the process. Returns its exit code, a signal's as a negative number; None where there was none."""
        process, self._process = self._process, None
        if process is None or self._owner != os.getpid():
            return None
        assert process.stdin is not None and process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            process.stdin.close()
        try:
            code = process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            process.kill()
            code = process.wait()
        process.stdout.close()
        return code


_searcher = _Searcher()
atexit.register(_searcher.close)
_asked: Counter[str] = Counter()
_late: Counter[str] = Counter()
"""Searches by pattern, and how many of them were ended, in this process."""


def last_match(pattern: str, text: str) -> str | None:
    """The one group of the last match of `pattern` in `text`, None where there is none.

    Raises TooSlow where the search was ended at LIMIT_SECONDS, and UserError where that happens again and again: then
    the accuracy would be that of the pattern, and the engine would wait for it.
    """
    _asked[pattern] += 1
    try:
        return _searcher.search(pattern, text, LIMIT_SECONDS)
    except TooSlow:
        _late[pattern] += 1
        if _late[pattern] > max(MOST_LATE, MOST_LATE_SHARE * _asked[pattern]):
            raise UserError(
                f"task.answer_pattern={pattern!r} was stopped after {LIMIT_SECONDS:g} s of processor time on"
                f" {_late[pattern]} of {_asked[pattern]} completions: what is graded would be the pattern, not the"
                f" model. {REMEDY}"
            ) from None
        raise


@functools.lru_cache(maxsize=64)
def never_ends(pattern: str) -> str | None:
    """A short text on which the search takes more than PROBE_SECONDS, described; None where all of some pass.

    A probe, no proof: what its texts do not bring out is stopped and counted when a completion does.
    """
    for repeated, text in _probes(pattern):
        try:
            _searcher.search(pattern, text, PROBE_SECONDS)
        except TooSlow:
            return f"{len(text)} characters, {repeated!r} again and again"
    return None


def _probes(pattern: str) -> Iterator[tuple[str, str]]:
    """Texts that nearly match: the pattern's literal beginning, one of its signs or words many times, a bad end."""
    begin = _literal_beginning(pattern)
    words = re.findall(r"[^\W_]{2,8}", pattern)
    for repeated in dict.fromkeys(["a", "0", " ", "a ", ".", *filter(str.isprintable, pattern), *words]):
        for end in PROBE_ENDS:
            yield repeated, begin + repeated * PROBE_LENGTH + end


def _literal_beginning(pattern: str) -> str:
    begin = ""
    signs = iter(pattern)
    for sign in signs:
        if sign == "\\":
            sign = next(signs)
            if sign not in string.punctuation:
                break
        elif sign in ".^$*+?{}[]|()":
            break
        begin += sign
    return begin
