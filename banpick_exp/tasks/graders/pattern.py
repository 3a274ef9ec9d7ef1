r"""A user's regular expression searched for in a model's text, with a limit to the time that one search may take.

`(a+)+$` on thirty characters that nearly match takes `re` minutes, on forty days, and nothing can stop it from
inside: an engine would stand still in mid-sweep. So patterns run in a process beside (`pattern_process`), which the
kernel ends. What is found is what `re` finds. (`regex` has a timeout, but means other things by `\s` and `{e}`, and
its timeout is the processor time of all threads: gone in no time in an engine.) Here too processor time is what
counts, but that of the search alone: a busy machine changes no grade.
"""

from __future__ import annotations

import functools
import re
import string
from collections import Counter
from collections.abc import Iterator

from banpick_exp.errors import UserError
from banpick_exp.tasks.graders.bounded import BoundedProcess, TooSlow

LIMIT_SECONDS = 30.0
"""Processor time of one search. Most take milliseconds on 30,000 tokens; `(?s).*#### (.+)`, which looks through the
whole text from each of its characters, ten seconds."""
PROBE_SECONDS = 1.0
"""The same for a probe's short text."""
MOST_LATE, MOST_LATE_SHARE = 8, 0.02
"""More searches over the limit than this, and than this share of all with the pattern, are an error and no result."""

PROBE_LENGTH = 200
"""Repetitions in a probe's text: enough for what grows exponentially, and nothing for what grows with the square."""
PROBE_ENDS = ("\0", "\n!", "")

REMEDY = (
    "Say more exactly what it may take: no + or * inside a group that is repeated itself, no alternatives that begin"
    " alike, e.g. task.answer_pattern='answer: *([^.]+)'"
)


_searcher = BoundedProcess("pattern_process.py", "-S")
_asked: Counter[str] = Counter()
_late: Counter[str] = Counter()
"""Searches by pattern, and how many of them were ended, in this process."""


def _search(pattern: str, text: str, seconds: float) -> str | None:
    """The group of the last match; TooSlow where finding it takes more than `seconds` of processor time."""
    found: str | None = _searcher.ask([pattern, text], seconds)
    return found


def last_match(pattern: str, text: str) -> str | None:
    """The one group of the last match of `pattern` in `text`, None where there is none.

    Raises TooSlow where the search was ended at LIMIT_SECONDS, and UserError where that happens again and again: then
    the accuracy would be that of the pattern, and the engine would wait for it.
    """
    _asked[pattern] += 1
    try:
        return _search(pattern, text, LIMIT_SECONDS)
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
            _search(pattern, text, PROBE_SECONDS)
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
