"""Problems of the user's own: JSON lines (or CSV, Parquet), one file a domain and split, named by task.data_files."""

from __future__ import annotations

from pathlib import Path

from banpick_exp.errors import UserError
from banpick_exp.tasks.benchmarks.benchmark import Benchmark
from banpick_exp.tasks.config import TaskConfig


def _files(task: TaskConfig, split: str) -> dict[str, Path]:
    raise UserError(
        f"task={task.name} has no data of its own, and task.data_files is null: there is nothing to ask. Type e.g."
        " task.data_files='\"data/{domain}_{split}.jsonl\"'."
    )


JSONL = Benchmark(name="jsonl", files=_files)
