"""What a calibration puts through the model: its own answers, right answers, or texts of a corpus.

Own answers are judged by how far predictions move, right ones by how likely they are. A right answer is the data's
whole response where it has one, else the model's own reasoning with the right answer in place of what it answered.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from banpick_exp.engine.config import EngineConfig
from banpick_exp.engine.engine import Engine
from banpick_exp.engine.types import Generation
from banpick_exp.evaluation.calibration.corpus import read_corpus
from banpick_exp.evaluation.calibration.probe import Scored
from banpick_exp.tasks.config import TaskConfig
from banpick_exp.tasks.graders.grader import Grade
from banpick_exp.tasks.problem import Problem
from banpick_exp.tasks.registry import grader_of


def own_answers(answers: Iterable[Generation]) -> list[Scored]:
    """Prompts and own answers, judged from the first generated token to the one that ends it."""
    return _distinct(
        Scored(
            [*answer.prompt_token_ids, *(answer.token_ids if answer.truncated else answer.token_ids[:-1])],
            len(answer.prompt_token_ids),
            None if answer.truncated else answer.token_ids[-1],
        )
        for answer in answers
    )


def right_answers(
    engine: Engine, problems: Sequence[Problem], answers: Sequence[Generation | None], task: TaskConfig
) -> list[Scored]:
    """Prompts and right answers, judged over the response, or over the answer alone where that is all there is.

    `answers`: the model's own, None where the data has a response. Those longer than the engine takes are left out.
    """
    prompts = engine.tokenize([problem.asked for problem in problems], chat=task.chat)
    end = engine.end_token()
    pairs = list(zip(problems, answers, strict=True))
    own = [(answer.text, problem) for problem, answer in pairs if problem.response is None and answer is not None]
    grades = iter(grader_of(task).grade_all(own, task))
    written = [
        ("", problem.response if problem.response is not None else problem.answer)
        if problem.response is not None or answer is None
        else _corrected(problem, answer, next(grades))
        for problem, answer in pairs
    ]
    given, right = (engine.tokenize(part, special_tokens=False) for part in zip(*written, strict=True))
    room = engine.settings.max_model_len - 1
    return _distinct(
        Scored([*prompt, *before, *after], len(prompt) + len(before), end)
        for prompt, before, after in zip(prompts, given, right, strict=True)
        if after and len(prompt) + len(before) + len(after) <= room
    )


def _corrected(problem: Problem, answer: Generation, grade: Grade) -> tuple[str, str]:
    """What the model wrote before its answer, and the right answer, in its own words where it gave one.

    Nothing before it where its answer cannot be found in what it wrote.
    """
    place = answer.text.rfind(grade.answer) if grade.found and grade.answer else -1
    return answer.text[: max(place, 0)], grade.answer if grade.correct else problem.answer


def corpus(engine: Engine, path: Path, samples: int) -> list[Scored]:
    """The first `samples` documents of a text file, one a line, cut to what the engine takes; judged throughout.

    Raises UserError where the file cannot be read or has fewer.
    """
    documents = read_corpus(path, samples)
    room = min(engine.settings.max_model_len - 1, engine.settings.max_num_batched_tokens)
    return _distinct(Scored(ids[:room], 1, None) for ids in engine.tokenize(documents) if len(ids) > 1)


def _distinct(sequences: Iterable[Scored]) -> list[Scored]:
    """Each once: the probe tells sequences apart by their tokens."""
    return list({tuple(each.ids): each for each in reversed(list(sequences))}.values())[::-1]


def in_steps(sequences: Sequence[Scored], chosen: Sequence[int], engine: EngineConfig) -> list[list[int]]:
    """The chosen ones in groups that fit one engine step: no sequence may be split."""
    steps: list[list[int]] = []
    size = 0
    for index in chosen:
        length = len(sequences[index].ids)
        full = not steps or size + length > engine.max_num_batched_tokens or len(steps[-1]) == engine.max_num_seqs
        if full:
            steps.append([])
            size = 0
        steps[-1].append(index)
        size += length
    return steps


# ---------------------------------------------------------------- as arrays

NOTHING = -1
"""In an array, where no token ends a sequence."""


def packed(sequences: Sequence[Scored]) -> tuple[np.ndarray, np.ndarray]:
    """All tokens one after another, int32, and [S,3] int32: length, start and end of each sequence."""
    ids = np.array([token for each in sequences for token in each.ids], dtype=np.int32)
    marks = [[len(each.ids), each.start, NOTHING if each.end is None else each.end] for each in sequences]
    return ids, np.array(marks, dtype=np.int32).reshape(-1, 3)


def unpacked(ids: np.ndarray, marks: np.ndarray) -> list[Scored]:
    """What `packed` was given."""
    found, begin = [], 0
    for length, start, end in marks.tolist():
        found.append(Scored(ids[begin : begin + length].tolist(), start, None if end == NOTHING else end))
        begin += length
    return found
