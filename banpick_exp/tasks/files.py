"""Which files a task reads, and what they are: their content is part of every result's identity."""

from __future__ import annotations

import hashlib
import json
import string
from dataclasses import dataclass
from pathlib import Path

from banpick_exp.config import suggestion
from banpick_exp.errors import UserError
from banpick_exp.models.tiny import ASSETS, DOMAINS, SPLITS
from banpick_exp.tasks.config import TaskConfig

EMBEDDED_DATA = ASSETS / "data"
EMBEDDED_TEMPLATE = "{domain}_{split}.jsonl"
CALIBRATION_SPLIT = "calibration"


@dataclass(frozen=True, kw_only=True, slots=True)
class TaskFiles:
    """One split of a task. `problems` per domain, None where unknown; `missing`: what a real run still needs."""

    paths: dict[str, str]
    identity: str
    problems: dict[str, int | None]
    missing: str | None = None


def inspect_task(task: TaskConfig, split: str | None = None) -> TaskFiles:
    """The files of `split` (the task's own when None), one a domain, hashed.

    Raises UserError for a template without its placeholders, and for a file that is not there or holds no problems.
    """
    split = task.split if split is None else split
    template = task.data_files
    if template is None:
        return _embedded(task, split)
    _check_template(template, task)
    paths = {domain: template.format(domain=domain, split=split) for domain in task.domains}
    for domain, path in paths.items():
        if not Path(path).expanduser().is_file():
            raise UserError(
                f"task.data_files={template}: there is no file {path} (domain {domain}, split {split}), so there is"
                f" nothing to ask. Put it there, or type another task.data_files, task.domains or task.split."
            )
    return _read({domain: Path(path).expanduser().resolve() for domain, path in paths.items()})


def _embedded(task: TaskConfig, split: str) -> TaskFiles:
    for key, value, offered in [("task.split", split, SPLITS), *(("task.domains", d, DOMAINS) for d in task.domains)]:
        if value not in offered:
            raise UserError(
                f"{key}={value} is not among the embedded tasks: there is nothing to ask."
                f" {suggestion(value, offered)}Choices: {', '.join(offered)}. For files of your own type task=jsonl."
            )
    paths = {domain: EMBEDDED_DATA / EMBEDDED_TEMPLATE.format(domain=domain, split=split) for domain in task.domains}
    if all(path.is_file() for path in paths.values()):
        return _read(paths)
    return TaskFiles(
        paths={domain: str(path) for domain, path in paths.items()},
        identity="unbuilt",
        problems=dict.fromkeys(paths),
        missing="the embedded tasks are not in this installation. Type python -m banpick_exp tiny to write them",
    )


def _check_template(template: str, task: TaskConfig) -> None:
    try:
        fields = {name for _, name, _, _ in string.Formatter().parse(template) if name is not None}
    except ValueError as error:
        raise UserError(
            f"task.data_files={template} is no path template ({error}): no file can be found with it."
            " Type e.g. task.data_files='\"data/{domain}_{split}.jsonl\"'."
        ) from None
    if extra := sorted(fields - {"domain", "split"}):
        raise UserError(
            f"task.data_files={template} asks for {', '.join(map(repr, extra))}, which nothing fills in."
            " Only {domain} and {split} are known."
        )
    if "split" not in fields:
        raise UserError(
            f"task.data_files={template} has no {{split}}: calibration would learn from the test problems."
            " Type e.g. task.data_files='\"data/{domain}_{split}.jsonl\"'."
        )
    if "domain" not in fields and len(task.domains) > 1:
        raise UserError(
            f"task.data_files={template} has no {{domain}}, but there are {len(task.domains)} domains: all would ask"
            " the same problems. Type e.g. task.data_files='\"data/{domain}_{split}.jsonl\"', or name one domain."
        )


def _read(paths: dict[str, Path]) -> TaskFiles:
    digest = hashlib.sha256()
    problems: dict[str, int | None] = {}
    for domain, path in paths.items():
        data = path.read_bytes()
        digest.update(f"{domain}\0{len(data)}\0".encode())
        digest.update(data)
        lines = [line for line in data.splitlines() if line.strip()]
        if not lines:
            raise UserError(
                f"{path} is empty: domain {domain} would have no problems. Fill it, or leave the domain out."
            )
        _check_line(path, lines[0])
        problems[domain] = len(lines)
    return TaskFiles(
        paths={domain: str(path) for domain, path in paths.items()},
        identity=digest.hexdigest()[:16],
        problems=problems,
    )


def _check_line(path: Path, line: bytes) -> None:
    """UserError unless a line is a problem; only the first is looked at, the rest when the problems are loaded."""
    try:
        row = json.loads(line)
    except ValueError:
        row = None
    if not isinstance(row, dict) or not {"prompt", "answer"} <= set(row):
        raise UserError(
            f"{path} does not begin with a problem: nothing could be asked or graded. Every line must be a JSON object"
            ' such as {"prompt": "1+1=", "answer": "2"}.'
        )
