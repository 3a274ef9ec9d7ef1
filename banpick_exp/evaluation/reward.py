"""Scores of a reward model for answers (`task.choose=reward`), computed after them in a process of its own.

Plain JSON goes in and out of that process (`reward_process`), in which Transformers loads the model on the CPU: the
engine keeps its memory, and no code or pickle of the folder is run. One process a call, whatever it scores.
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from banpick_exp.errors import UserError
from banpick_exp.keys import NAMES
from banpick_exp.models.reward_model import reward_folder, reward_identity
from banpick_exp.records import Outcome
from banpick_exp.tasks.config import TaskConfig
from banpick_exp.tasks.problem import Problem

LONGEST = 300
"""Characters of an error that are told."""


def with_scores(
    outcomes: Sequence[Outcome], problems: Mapping[tuple[str, str], Problem], task: TaskConfig
) -> list[Outcome]:
    """The same outcomes in the same order, each with the score of its completion. `problems`: by domain and number.

    Equal texts have equal scores: they are scored once. Raises UserError, in words, where the model cannot be loaded,
    cannot read a text, or gives a score that is no finite number.
    """
    places: dict[tuple[str, str], int] = {}
    answers: dict[tuple[int, str], int] = {}
    numbers = []
    for outcome in outcomes:
        question = places.setdefault((outcome.domain, outcome.problem_id), len(places))
        numbers.append(answers.setdefault((question, outcome.completion or ""), len(answers)))
    if not outcomes:
        return []
    questions = [_question(problems[key]) for key in places]
    folder = str(reward_folder(str(task.reward_model)))
    told = _told(str(task.reward_model), {"folder": folder, "questions": questions, "answers": list(answers)})
    scores, cut = told["scores"], set(told["cut"])
    for outcome, number in zip(outcomes, numbers, strict=True):
        if not math.isfinite(scores[number]):
            raise UserError(
                f"task.reward_model={task.reward_model} gives sample {outcome.sample or 0} of problem"
                f" {outcome.problem_id} ({outcome.domain}) the score {scores[number]}, which is neither better nor"
                " worse than another: none was chosen. Its weights overflow in float32 or are damaged: type another"
                " task.reward_model."
            )
    return [
        replace(outcome, score=scores[number], score_cut=True if number in cut else None)
        for outcome, number in zip(outcomes, numbers, strict=True)
    ]


def check_reward_model(task: TaskConfig, identity: str | None) -> None:
    """UserError where the folder no longer holds the reward model that was planned; for machines that run engines."""
    if task.reward_model is not None and (found := reward_identity(task.reward_model)) != identity:
        raise UserError(
            f"task.reward_model={task.reward_model} is another model than when the sweep was planned ({identity}, here"
            f" {found}): its choices would be kept under the identity of the other's. Start the sweep again, with the"
            " same folder on every machine that has an engine."
        )


def _question(problem: Problem) -> dict[str, Any]:
    """What is asked, as messages and as one text."""
    asked = problem.asked
    messages = asked if isinstance(asked, list) else [{"role": "user", "content": asked}]
    return {"messages": messages, "text": problem.prompt}


def _told(typed: str, question: Mapping[str, Any]) -> dict[str, Any]:
    """What the process answers: {scores, cut}. Raises UserError where it could not."""
    # `-P`: the folder of the script is no place to import from.
    command = [sys.executable, "-P", str(Path(__file__).with_name("reward_process.py"))]
    environment = {name: value for name, value in os.environ.items() if not NAMES.search(name)}
    environment |= {"HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": "", "TOKENIZERS_PARALLELISM": "false"}
    done = subprocess.run(command, input=json.dumps(question).encode(), capture_output=True, env=environment)
    if done.returncode == 0 and done.stdout:
        told: dict[str, Any] = json.loads(done.stdout)
        if "problem" not in told:
            return told
        why = str(told["problem"])
    else:
        last = done.stderr.decode(errors="replace").strip().splitlines()[-1:]
        killed = "; killed, as where memory is short" if done.returncode == -9 else ""
        why = f"its process ended with {done.returncode}{killed}; {''.join(last)}"
    raise UserError(
        f"task.reward_model={typed} could not score the answers ({why[:LONGEST]}), so none was chosen. See whether"
        ' Transformers loads it: python -c "from transformers import AutoModelForSequenceClassification as M;'
        f" M.from_pretrained('{typed}', use_safetensors=True)\"; or type another folder."
    )
