"""Every benchmark by its name, the `name` of its conf/task/ file.

To add one: a file under benchmarks/, a line here, a file under conf/task/, a test (tests/tasks/test_registry.py shows
it with a toy).
"""

from __future__ import annotations

from banpick_exp.config import suggestion
from banpick_exp.errors import UserError
from banpick_exp.tasks.benchmarks.aime import AIME24, AIME25
from banpick_exp.tasks.benchmarks.benchmark import Benchmark
from banpick_exp.tasks.benchmarks.gpqa_diamond import GPQA_DIAMOND
from banpick_exp.tasks.benchmarks.gsm8k import GSM8K
from banpick_exp.tasks.benchmarks.humaneval import HUMANEVAL, HUMANEVAL_PLUS
from banpick_exp.tasks.benchmarks.jsonl import JSONL
from banpick_exp.tasks.benchmarks.livecodebench import LIVECODEBENCH
from banpick_exp.tasks.benchmarks.lm_eval import LM_EVAL
from banpick_exp.tasks.benchmarks.math500 import MATH500
from banpick_exp.tasks.benchmarks.mathqa import MATHQA
from banpick_exp.tasks.benchmarks.mbpp_plus import MBPP_PLUS
from banpick_exp.tasks.benchmarks.mmlu_pro import MMLU_PRO
from banpick_exp.tasks.benchmarks.reasoning_gym import REASONING_GYM
from banpick_exp.tasks.benchmarks.tiny import TINY
from banpick_exp.tasks.config import TaskConfig
from banpick_exp.tasks.graders.grader import Grader
from banpick_exp.tasks.graders.registry import grader_named

_FETCHED = (
    *(GSM8K, MATH500, AIME24, AIME25, MATHQA, GPQA_DIAMOND, MMLU_PRO),
    *(HUMANEVAL, HUMANEVAL_PLUS, MBPP_PLUS, LIVECODEBENCH, REASONING_GYM),
)
BENCHMARKS: dict[str, Benchmark] = {benchmark.name: benchmark for benchmark in (TINY, JSONL, *_FETCHED)}


def benchmark_of(task: TaskConfig) -> Benchmark:
    """What `task.name` names; any other name is the user's own for the files of task.data_files.

    Of `task.source=lm_eval` every name is a task of lm-eval.
    """
    if task.source == LM_EVAL.name:
        return LM_EVAL
    if task.name in BENCHMARKS:
        return BENCHMARKS[task.name]
    if task.data_files is not None:
        return JSONL
    raise UserError(
        f"task.name={task.name} is no benchmark, and task.data_files is null: there is nothing to ask."
        f" {suggestion(task.name, BENCHMARKS)}Choices: {', '.join(BENCHMARKS)}."
    )


def grader_of(task: TaskConfig) -> Grader:
    """Who grades the answers to a task: `task.grader`, else the benchmark's own."""
    return grader_named(task.grader or benchmark_of(task).grader)


def check_grades_here(task: TaskConfig) -> None:
    """Raises UserError where this machine cannot grade the answers to a task; for machines that run engines."""
    if (lacking := grader_of(task).lacking(task)) is not None:
        raise UserError(lacking)
