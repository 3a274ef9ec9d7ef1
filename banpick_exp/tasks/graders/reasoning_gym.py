"""Right is what the verifier of a reasoning-gym dataset gives full score."""

from __future__ import annotations

import importlib.util
import json
import re

from banpick_exp.tasks.config import TaskConfig
from banpick_exp.tasks.graders.exact_match import normalised
from banpick_exp.tasks.graders.grader import Grade
from banpick_exp.tasks.graders.marked import Marked, MarkedGrader
from banpick_exp.tasks.problem import Problem

FULL = 1.0
TAGS = re.compile(r"<answer>(.*?)</answer>", re.DOTALL)


class ReasoningGym(MarkedGrader):
    """The last text between <answer> and </answer>, else all behind the thought, given to the dataset's verifier.

    An error of a verifier on a given answer is a wrong answer: verifiers parse what they are given.
    """

    name = "reasoning_gym"
    version = 1
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
        return Grade(answer=answer, found=found, correct=_score(answer, problem.material) >= FULL)


def _score(answer: str, material: str) -> float:
    from reasoning_gym.factory import get_score_answer_fn

    kept = json.loads(material)
    try:
        return float(get_score_answer_fn(kept["dataset"])(answer=answer, entry=kept["entry"]))
    except Exception:  # what a verifier cannot parse is no right answer
        return 0.0
