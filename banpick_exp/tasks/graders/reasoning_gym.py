"""Right is what the verifier of a reasoning-gym dataset gives full score, in a process beside (`verifier_process`)."""

from __future__ import annotations

import importlib.util
import json
import re
import sys

from banpick_exp.tasks.config import TaskConfig
from banpick_exp.tasks.graders.bounded import BoundedProcess, TooSlow
from banpick_exp.tasks.graders.exact_match import normalised
from banpick_exp.tasks.graders.grader import Grade
from banpick_exp.tasks.graders.marked import Marked, MarkedGrader
from banpick_exp.tasks.graders.serving import ENDS
from banpick_exp.tasks.problem import Problem

FULL = 1.0
TAGS = re.compile(r"<answer>(.*?)</answer>", re.DOTALL)
LIMIT_SECONDS = 10.0
"""Processor time of one answer; nearly all take milliseconds."""
START_SECONDS = 600.0
"""Of waiting for the package to be imported, on a busy machine; two seconds on an idle one."""
_verifiers = BoundedProcess(
    "verifier_process.py",
    arguments=[json.dumps([path for path in sys.path if path])],
    ends=ENDS,
    start_seconds=START_SECONDS,
)


class ReasoningGym(MarkedGrader):
    """The last text between <answer> and </answer>, else all behind the thought, given to the dataset's verifier.

    An error of a verifier on a given answer is a wrong answer: verifiers parse what they are given; some evaluate it.
    """

    name = "reasoning_gym"
    version = 2
    """2: verifiers evaluate arithmetic alone, and are ended at a limit of processor time."""
    libraries = ("reasoning-gym",)

    def normalised(self, answer: str) -> str:
        return normalised(answer)

    def refused(self, task: TaskConfig) -> str | None:
        if importlib.util.find_spec("reasoning_gym") is None:
            return (
                "task.grader=reasoning_gym needs the package reasoning-gym, which is not installed, so no answer could"
                " be judged. Type pip install reasoning-gym six."
            )
        return None

    def wrong_material(self, material: str | None) -> str | None:
        kept = json.loads(material or "null")
        if isinstance(kept, dict) and isinstance(kept.get("dataset"), str) and isinstance(kept.get("entry"), dict):
            return None
        return (
            "has no material of reasoning-gym's (its dataset and entry), so no answer could be right: type"
            " task=reasoning_gym, whose problems have it, or another task.grader"
        )

    def graded(self, part: Marked, problem: Problem) -> Grade | None:
        marked = TAGS.findall(part.text)
        answer = (marked[-1] if marked else part.text).strip()
        found = bool(marked) or part.by_task
        if not answer or problem.material is None:
            return Grade(answer=answer, found=found, correct=False)
        kept = json.loads(problem.material)
        try:
            score = _verifiers.ask([kept["dataset"], kept["entry"], answer], LIMIT_SECONDS)
        except TooSlow:
            return Grade(answer=answer, found=found, correct=False, grader_timeout=True)
        return Grade(answer=answer, found=found, correct=score >= FULL)
