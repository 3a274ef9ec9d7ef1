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
BETWEEN_THOUSANDS = re.compile(r"(?<=\d)\\[,;:! ](?=\d{3}(?!\d))")
BOX = re.compile(r"\\(?:boxed|fbox)\s*\{")


def last_boxed(text: str) -> str | None:
    r"""What the last whole \boxed{} holds, of boxes in one another the outer; None where there is none."""
    place, found = 0, None
    while match := BOX.search(text, place):
        end = _end_of_group(text, match.end())
        if end is None:
            place = match.end()
            continue
        found, place = text[match.end() : end], end
    return found


def _end_of_group(text: str, begin: int) -> int | None:
    depth = 1
    for sign in re.finditer(r"\\.|[{}]", text[begin:], re.DOTALL):
        depth += {"{": 1, "}": -1}.get(sign[0], 0)
        if depth == 0:
            return begin + sign.start()
    return None


def plain(answer: str) -> tuple[str, bool]:
    """An answer as it is parsed, and whether it is in percent."""
    text = BETWEEN_THOUSANDS.sub("", answer.translate(SPACES)).strip().strip("$").strip()
    inner = last_boxed(text)
    text = (text if inner is None else inner).rstrip(" .,;")
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
    answer = text if whole else last_boxed(text)
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
