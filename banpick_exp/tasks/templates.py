"""task.data_files: a path in which {domain} and {split} stand for names. All else in it is a name, never a pattern."""

from __future__ import annotations

import string
from pathlib import Path

from banpick_exp.errors import UserError
from banpick_exp.tasks.config import TaskConfig

TYPE = "Type e.g. task.data_files='\"data/{domain}_{split}.jsonl\"'"


def files_of_template(template: str, task: TaskConfig, split: str) -> dict[str, Path]:
    """The file of each domain. Raises UserError for a template without its placeholders, or with others."""
    _check(template, task)
    return {domain: _expanded(template.format(domain=domain, split=split)) for domain in task.domains}


def domains_there(template: str, split: str) -> list[str]:
    """The domains for which `template` has a file, by what lies in its folder; none where {domain} names a folder."""
    pattern = _expanded(template.format(domain="\0", split=split))
    before, mark, after = pattern.name.partition("\0")
    if not mark or "\0" in after or "\0" in str(pattern.parent) or not pattern.parent.is_dir():
        return []
    names = sorted(path.name for path in pattern.parent.iterdir())
    longer = len(before) + len(after)
    return [
        name[len(before) : len(name) - len(after)]
        for name in names
        if name.startswith(before) and name.endswith(after) and len(name) > longer
    ]


def _expanded(path: str) -> Path:
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise UserError(f"task.data_files={path} cannot be looked up ({error}). {TYPE}.") from None


def _check(template: str, task: TaskConfig) -> None:
    try:
        parts = [part for part in string.Formatter().parse(template) if part[1] is not None]
    except ValueError as error:
        raise UserError(
            f"task.data_files={template} is no path template ({error}): no file can be found with it. {TYPE}."
        ) from None
    fields = {str(name) for _, name, _, _ in parts}
    if extra := sorted(fields - {"domain", "split"}):
        raise UserError(
            f"task.data_files={template} asks for {', '.join(map(repr, extra))}, which nothing fills in."
            " Only {domain} and {split} are known."
        )
    if any(form or conversion for _, _, form, conversion in parts):
        raise UserError(
            f"task.data_files={template} says how to print a name, and names stand as they are. Write {{domain}} and"
            " {split} without ':' or '!'."
        )
    if "split" not in fields:
        raise UserError(
            f"task.data_files={template} has no {{split}}: calibration would learn from the test problems. {TYPE}."
        )
    if "domain" not in fields and len(task.domains) > 1:
        raise UserError(
            f"task.data_files={template} has no {{domain}}, but there are {len(task.domains)} domains: all would ask"
            f" the same problems. {TYPE}, or name one domain."
        )
