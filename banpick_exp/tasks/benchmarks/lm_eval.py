"""Any task of lm-eval (task=lm_eval task.name=TASK): its problems, made once by its own code (`harness.building`)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from banpick_exp.errors import UserError
from banpick_exp.tasks.benchmarks.benchmark import Benchmark
from banpick_exp.tasks.config import TaskConfig
from banpick_exp.tasks.graders.lm_eval import material_of, metric_of
from banpick_exp.tasks.harness.place import CALIBRATION, TEST, how_to_make, problems_path
from banpick_exp.tasks.problem import Problem


def _files(task: TaskConfig, split: str) -> dict[str, Path]:
    if len(task.domains) != 1:
        raise UserError(
            f"task.domains names {len(task.domains)} domains, and a task of lm-eval is one: the same problems would be"
            " asked twice. Name one, or leave it out."
        )
    if split not in (TEST, CALIBRATION):
        raise UserError(
            f"task=lm_eval has the problems that lm-eval asks, as split test, others to calibrate on, and none of split"
            f" {split}: nothing could be asked. Type task.split=test."
        )
    path = problems_path(task.name, split)
    if split == CALIBRATION and not path.is_file() and problems_path(task.name).is_file():
        raise UserError(
            f"task=lm_eval: there is no {path}, so there is nothing to calibrate on: {task.name} has no split but the"
            f" one that is asked, or its problems were made before there were others. Type"
            f" {how_to_make(task.name)}, which says; or make a calibration on problems of your own (python -m"
            f" banpick_exp calibrate task=jsonl 'task.domains=[{task.domains[0]}]' ...) and type"
            " calibration.path=FOLDER."
        )
    return {task.domains[0]: path}


def _missing(task: TaskConfig) -> str:
    return (
        f"the problems of lm-eval's {task.name} are made once, with lm-eval's own code, and {problems_path(task.name)}"
        f" is not there. Type {how_to_make(task.name)} (a task whose data is on the Hugging"
        " Face Hub needs a network for it: do it on a machine that has one, and copy that file)"
    )


def _check(task: TaskConfig, problems: Sequence[Problem]) -> list[str]:
    if any(problem.material is None for problem in problems):
        raise UserError(
            f"task.data_files={task.data_files}: its rows have no material to grade with, so they are no problems of an"
            " lm-eval task. Leave task.data_files out, or type task=jsonl."
        )
    material = material_of(problems[0])
    if split := material.get("calibration"):
        return [f"lm-eval's {task.name}: calibrated on {len(problems)} problems of its split {split}."]
    by_choices = sum(1 for problem in problems if problem.choices)
    drawn = [key for key, usual in (("samples", 1), ("temperature", 0)) if getattr(task, key) != usual]
    if by_choices and (drawn or task.chat_template or task.grader not in (None, "lm_eval")):
        key = (drawn or (["chat_template"] if task.chat_template else ["grader"]))[0]
        usual = {"samples": "1", "temperature": "0", "chat_template": "false", "grader": "null"}[key]
        raise UserError(
            f"task.{key}={getattr(task, key)}: {task.name} asks how likely given texts are behind its own prompt, and"
            f" nothing is written, so this has no meaning. Type task.{key}={usual}."
        )
    if task.grader not in (None, "lm_eval"):
        return []
    metric = metric_of(material, task)
    others = [each for each in material["metrics"] if each != metric]
    notes = [
        f"lm-eval's {task.name}: right is what its {metric} says"
        + (f"; task.metric takes {', '.join(others)} too" if others else "")
        + (f". {by_choices} problem(s) are asked by likelihood" if by_choices else "")
        + "."
    ]
    asked = material.get("generation") or {}
    own = {"max_tokens": asked.get("max_gen_toks"), "temperature": asked.get("temperature")}
    for key, value in own.items():
        if value is not None and value != getattr(task, key):
            notes.append(f"lm-eval's {task.name} says {value}, and task.{key}={getattr(task, key)} is what is asked.")
    return notes


LM_EVAL = Benchmark(
    name="lm_eval",
    files=_files,
    stop_key="stop",
    choices_key="choices",
    grader="lm_eval",
    version=1,
    missing=_missing,
    published=True,
    check=_check,
)
