r"""Mathematical equality by the library math-verify: 0.5 is \frac{1}{2}, and {2, 1} is {1, 2}.

The answer is what the last \boxed{} holds; without one what math-verify finds behind `answer is` and the like, and at
last any number or formula, which is graded but not called found. sympy runs in a process beside (`math_process`).
"""

from __future__ import annotations

import importlib.util
import json
import sys
from collections import Counter

from banpick_exp.errors import UserError
from banpick_exp.tasks.config import TaskConfig
from banpick_exp.tasks.graders.bounded import BoundedProcess, TooSlow
from banpick_exp.tasks.graders.exact_match import normalised
from banpick_exp.tasks.graders.grader import Grade
from banpick_exp.tasks.graders.marked import Marked, MarkedGrader
from banpick_exp.tasks.graders.serving import ENDS
from banpick_exp.tasks.graders.signs import legible
from banpick_exp.tasks.problem import Problem

LIMIT_SECONDS = 10.0
"""Processor time of one answer; nearly all take milliseconds."""
MOST_LATE, MOST_LATE_SHARE = 16, 0.05
"""More answers over the limit than this, and than this share of all, are an error and no result."""

START_SECONDS = 600.0
"""Of waiting for sympy to be imported, on a busy machine; a second on an idle one."""

_judge = BoundedProcess(
    "math_process.py",
    arguments=[json.dumps([path for path in sys.path if path])],
    ends=ENDS,
    start_seconds=START_SECONDS,
)
_counted: Counter[str] = Counter()
"""Answers judged, and how many of them were ended, in this process."""


class MathVerify(MarkedGrader):
    """Equal as mathematics, as math-verify sees it."""

    name = "math_verify"
    version = 2
    """2: full-width digits, every minus, narrow spaces between thousands; a box within an answer is no answer alone."""
    reads_signs = True
    libraries = ("math-verify", "latex2sympy2_extended", "sympy")
    from_gold = True

    def normalised(self, answer: str) -> str:
        return normalised(answer)

    def graded(self, part: Marked, problem: Problem) -> Grade | None:
        if not part.text.strip():
            return None
        _counted["judged"] += 1
        try:
            answer, found, correct = _judge.ask(
                [part.text, part.by_task, [legible(each) for each in problem.answers]], LIMIT_SECONDS
            )
        except TooSlow:
            _counted["late"] += 1
            _check_late()
            return Grade(answer="", found=False, correct=False, grader_timeout=True)
        return Grade(answer=answer, found=found, correct=correct)

    def refused(self, task: TaskConfig) -> str | None:
        if importlib.util.find_spec("math_verify") is not None:
            return None
        return (
            "task.grader=math_verify needs the package math-verify, which is not installed here: no answer could be"
            " judged. Type pip install 'math-verify[antlr4-9-3]', or another task.grader."
        )


def _check_late() -> None:
    late, judged = _counted["late"], _counted["judged"]
    if late > max(MOST_LATE, MOST_LATE_SHARE * judged):
        raise UserError(
            f"task.grader=math_verify was stopped after {LIMIT_SECONDS:g} s of processor time, or at its limit of"
            f" memory, on {late} of {judged} answers: what is graded would be the limit, not the model. Mark the answer"
            r" alone, e.g. task.answer_pattern='boxed\{([^{}]*)\}', or type another task.grader."
        )
