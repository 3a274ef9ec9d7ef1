"""A published benchmark: one whose problems are fetched once, and asked as its source has them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from banpick_exp.config import suggestion
from banpick_exp.errors import UserError
from banpick_exp.tasks.benchmarks.benchmark import Benchmark
from banpick_exp.tasks.benchmarks.source import Source, fetched_path
from banpick_exp.tasks.config import TaskConfig
from banpick_exp.tasks.data_folder import FOLDER_VARIABLE


def files_of(name: str, source: Source) -> Callable[[TaskConfig, str], Mapping[str, Path]]:
    """The `files` of a benchmark that is fetched. They raise UserError for what it does not have, or is not here."""

    def files(task: TaskConfig, split: str) -> Mapping[str, Path]:
        if source.generated is None:
            _check_offered(name, source, task, split)
        found = {domain: fetched_path(name, domain, split, source) for domain in task.domains}
        absent = [path for path in found.values() if not path.is_file()]
        if absent:
            raise UserError(how_to_fetch(name, source, absent[0], split, task.domains))
        return found

    return files


def _check_offered(name: str, source: Source, task: TaskConfig, split: str) -> None:
    domains = tuple(dict.fromkeys(part.domain for part in source.parts))
    splits = tuple(dict.fromkeys([*(part.split for part in source.parts), *(split for split, _ in source.borrowed)]))
    for key, value, offered in [("task.split", split, splits), *(("task.domains", d, domains) for d in task.domains)]:
        if value not in offered:
            raise UserError(
                f"{key}={value} is not in task={name}: there is nothing to ask. {suggestion(value, offered)}Choices:"
                f" {', '.join(offered)}."
            )


def how_to_fetch(name: str, source: Source, path: Path, split: str, domains: tuple[str, ...] = ()) -> str:
    """One line: what is missing, the command that gets it, and where it must lie."""
    owner = dict(source.borrowed).get(split, f"{name}/").split("/")[0]
    more = f" --domains {','.join(domains)}" if source.generated is not None else ""
    local = "" if source.generated or source.package else " (without network: --from FILE_OR_FOLDER of a download)"
    return (
        f"task={name}: there is no file {path} (split {split}), so there is nothing to ask. Fetch it once: type python"
        f" -m banpick_exp tasks fetch {owner}{more}{local}. It must lie there, or below another folder that"
        f" {FOLDER_VARIABLE} names."
    )


def published(name: str, source: Source, *, grader: str) -> Benchmark:
    """A benchmark that is fetched. Its version is 0: all that it asks stands in its files."""
    return Benchmark(name=name, files=files_of(name, source), grader=grader, source=source)
