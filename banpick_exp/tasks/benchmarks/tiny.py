"""The embedded tasks: three domains of generated problems, shipped beside the embedded model."""

from __future__ import annotations

from pathlib import Path

from banpick_exp.config import suggestion
from banpick_exp.errors import UserError
from banpick_exp.models.tiny import ASSETS, DOMAINS, SPLITS
from banpick_exp.tasks.benchmarks.benchmark import Benchmark
from banpick_exp.tasks.config import TaskConfig

DATA = ASSETS / "data"


def _files(task: TaskConfig, split: str) -> dict[str, Path]:
    for key, value, offered in [("task.split", split, SPLITS), *(("task.domains", d, DOMAINS) for d in task.domains)]:
        if value not in offered:
            raise UserError(
                f"{key}={value} is not among the embedded tasks: there is nothing to ask."
                f" {suggestion(value, offered)}Choices: {', '.join(offered)}. For files of your own type task=jsonl."
            )
    return {domain: DATA / f"{domain}_{split}.jsonl" for domain in task.domains}


TINY = Benchmark(
    name="tiny",
    files=_files,
    missing="the embedded tasks are not in this installation. Type python -m banpick_exp tiny to write them",
)
