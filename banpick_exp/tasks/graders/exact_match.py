"""Finds the answer in a completion; right is what equals the gold answer to the letter."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from banpick_exp.tasks.config import TaskConfig

if TYPE_CHECKING:
    pass


def extract_answer(text: str, task: TaskConfig) -> str:
    """What the model answered: the last match of `answer_pattern`, else what follows the last separator."""
    if task.answer_pattern is not None:
        found = re.findall(task.answer_pattern, text)
        return found[-1].strip() if found else ""
    if task.answer_separator is not None:
        text = text.rsplit(task.answer_separator, 1)[-1]
    return text.strip()
