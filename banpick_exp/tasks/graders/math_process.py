r"""A process that judges mathematical answers with math-verify, and that the kernel ends when one takes too long.

Run by `math_verify` as a file of its own (`python -I math_process.py PATHS`); the loop is `serving`. A question is
[text, whole, right answers], an answer [answer, found, correct]. `whole`: the text is the answer, and none is looked
for in it. math-verify's own time limits are signals and are off.

What is right is decided by math-verify, from the last \boxed{} of each side, or what math-verify finds itself where
there is none. Before that, what its parser stumbles over is taken away: a full stop at the end, the Unicode minus,
LaTeX's spaces between thousands; a percent sign is a unit and a hundredth, and either is right.
"""

from __future__ import annotations

import functools
import itertools
import json
import re
import sys
from typing import Any

MEMORY_BYTES = 2 * 2**30
"""Of addresses; importing sympy takes a tenth."""
LARGEST_KIB = MEMORY_BYTES // 2048
"""A process that grew larger than half ends after its answer: none is judged with the memory of another."""

SPACES = str.maketrans({"\u2212": "-", "\u00a0": " ", "\u202f": " ", "\u2009": " "})
BETWEEN_THOUSANDS = re.compile(r"(?<=\d)(?:\\[,;:! ]|,\\!|[\u00a0\u2009\u202f])(?=\d{3}(?!\d))")
DASH = re.compile(r"(^|[(\[{,=])\s*\u2013\s*")
"""An en dash where only a minus can stand."""
WHITE_SPACE, STOPS = " \t\n\r", ".,;"
BOX = re.compile(r"\\(?:boxed|fbox)\s*\{")
BRACES = re.compile(rf"{BOX.pattern}|\\\\(?!boxed|fbox)|\\[{{}}]|[{{}}]")
DEEPEST = 8
"""Boxes in one another, and braces doubled by them, that are taken away."""


def last_boxed(text: str) -> str | None:
    r"""What the last whole \boxed{} holds, of boxes in one another the outer; None where there is none."""
    place = last_box(text)
    return None if place is None else text[place[0] : place[1]]


def last_box(text: str) -> tuple[int, int] | None:
    """Where the content of `last_boxed` begins and ends. One pass: a loop of a model may be ten thousand boxes."""
    found: tuple[int, int] | None = None
    opened: list[int | None] = []
    for sign in BRACES.finditer(text):
        if sign[0] == "{" or len(sign[0]) > len("\\{"):
            opened.append(None if sign[0] == "{" else sign.end())
        elif sign[0] == "}" and opened and (begin := opened.pop()) is not None:
            found = (begin, sign.start())
    return found


def unboxed(text: str) -> str:
    """`text` as it is printed without its boxes: what one holds stays in braces, once."""
    if BOX.search(text) is None:
        return text
    text = BOX.sub("{", text)
    for _ in range(DEEPEST):
        text, changed = re.subn(r"\{\s*\{([^{}]*)\}\s*\}", r"{\1}", text)
        if not changed:
            break
    return text


def _bare(text: str) -> str:
    """Without the dollar signs of a formula, and what stands around them."""
    bare = text.lstrip(f"{WHITE_SPACE}$").rstrip(f"{WHITE_SPACE}{STOPS}$")
    return f"{bare}$" if bare.endswith("\\") else bare


def _without_stops(text: str) -> str:
    """Without full stops at the end, in braces or not."""
    inner = text.rstrip("}")
    return text if inner.endswith("\\") else inner.rstrip(WHITE_SPACE + STOPS) + text[len(inner) :]


def plain(answer: str) -> tuple[str, bool]:
    """An answer as it is parsed, and whether it is in percent."""
    text = DASH.sub(r"\1-", BETWEEN_THOUSANDS.sub("", answer).translate(SPACES))
    text = _without_stops(unboxed(_bare(text)))
    for percent in ("\\%", "%"):
        if text.endswith(percent):
            return text.removesuffix(percent).strip(), True
    return text, False


@functools.lru_cache(maxsize=4096)
def parsed(answer: str) -> tuple[tuple[Any, ...], bool]:
    """What an answer can mean, by math-verify, and whether it is in percent."""
    from math_verify import parse

    text, percent = plain(answer)
    return tuple(parse(f"\\boxed{{{text}}}", _targets(), parsing_timeout=None, raise_on_error=True)), percent


@functools.cache
def _targets(*, anchored: bool = False) -> list[Any]:
    from math_verify import ExprExtractionConfig, LatexExtractionConfig

    if anchored:
        boxless = LatexExtractionConfig(try_extract_without_anchor=False, boxed_match_priority=-1)
        return [boxless, ExprExtractionConfig(try_extract_without_anchor=False)]
    return [LatexExtractionConfig(boxed_match_priority=0), ExprExtractionConfig()]


def judge(text: str, whole: bool, right: list[str]) -> tuple[str, bool, bool]:
    """What was taken for the answer, whether it was marked as one, and whether it is right."""
    right = [each if (inner := last_boxed(each)) is None else inner for each in right]
    answer = last_boxed(text)
    if answer is None and whole:
        answer = text
    if answer is not None:
        return answer, True, any(same(each, answer) for each in right)
    from math_verify import parse

    for anchored in (True, False):
        found = parse(text.translate(SPACES), _targets(anchored=anchored), parsing_timeout=None)
        if found:
            told = next((each for each in found if isinstance(each, str)), "")
            return told, anchored, any(told == each or verified(parsed(each)[0], tuple(found)) for each in right)
    return "", False, False


def same(right: str, answer: str) -> bool:
    """Whether an answer says what the right one says; equal texts do, whatever they are."""
    if not answer.strip():
        return False
    (wanted, of_wanted), (given, of_given) = plain(right), plain(answer)
    if wanted == given:
        return bool(given)
    try:
        meant, told = parsed(right)[0], parsed(answer)[0]
    except MemoryError:
        raise
    except Exception:  # what math-verify cannot read is not right
        return False
    if verified(meant, told):
        return True
    if of_wanted == of_given:
        return False
    hundredth = told if of_wanted else meant  # the other side, times a hundred
    scaled = tuple(each * 100 for each in hundredth if not isinstance(each, str) and getattr(each, "is_number", False))
    return verified(meant, scaled) if of_wanted else verified(scaled, told)


def verified(right: tuple[Any, ...], given: tuple[Any, ...]) -> bool:
    from math_verify import verify

    for one, other in itertools.product(right, given):
        try:
            if verify(one, other, timeout_seconds=None, raise_on_error=True):
                return True
        except MemoryError:
            raise
        except Exception:  # what cannot be compared is not equal
            continue
    return False


def prepare() -> None:
    import math_verify  # noqa: F401


if __name__ == "__main__":
    sys.path += [path for path in json.loads(sys.argv[1]) if path not in sys.path]
    from banpick_exp.tasks.graders.serving import serve

    serve(judge, prepare, memory_bytes=MEMORY_BYTES, largest_kib=LARGEST_KIB)
