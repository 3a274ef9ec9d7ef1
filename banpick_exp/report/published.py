"""What papers report of the same checkpoint on the same benchmark, from published.yaml beside this module.

A checkpoint is known by its hub id; a local copy by its folder's name and the number of experts that it selects.
Nothing more of it stands in a paper. A benchmark is known by its name in conf/task.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import PurePosixPath
from typing import Any

import yaml

from banpick_exp.records import ModelUsed, PointRecord

FILE = "published.yaml"
SPLIT = "test"
"""Of ours, the one that papers ask too."""
HUB_CACHE = "models--"
"""How Hugging Face's cache begins the name of a checkpoint's folder: models--Qwen--Qwen3-30B-A3B."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Published:
    """One figure of a paper: a policy on a benchmark."""

    policy: str
    """By its name here where there is one."""
    label: str
    mean_kept: float | None
    """Experts a token and layer; None where the paper does not say."""
    speedup: float | None
    """Over stock, on the paper's machine."""
    accuracy: float
    """0 to 1."""
    source: str
    table: str
    how: str
    """With what it was measured."""


def published_of(model: ModelUsed, task: str) -> tuple[Published, ...]:
    """What is published of that checkpoint on that benchmark, in the order of the file; empty where nothing is."""
    found = []
    for table in _content()["tables"]:
        if task in table["tasks"] and _same_checkpoint(model, table):
            source, column = _content()["sources"][table["source"]], table["tasks"].index(task)
            for policy, label, kept, speedup, *accuracies in table["rows"]:
                if (accuracy := accuracies[column]) is not None:
                    found.append(
                        Published(
                            policy=policy,
                            label=label,
                            mean_kept=None if kept is None else float(kept),
                            speedup=speedup,
                            accuracy=accuracy / 100,
                            source=source["name"],
                            table=source["table"],
                            how=source["how"],
                        )
                    )
    return tuple(found)


def published_beside(records: Sequence[PointRecord]) -> tuple[Published, ...]:
    """What is published of the model and task of these points; of several models or tasks nothing belongs to all."""
    asked = {(record.model.path, record.model.top_k, record.task.name, record.task.split) for record in records}
    if len(asked) != 1 or records[0].task.split != SPLIT:
        return ()
    return published_of(records[0].model, records[0].task.name)


def sources(published: Sequence[Published]) -> list[str]:
    """`arXiv 2509.06346, main table`: each source once."""
    return list(dict.fromkeys(f"{each.source}, {each.table}" for each in published))


def legend(published: Sequence[Published]) -> str:
    """`published (arXiv 2509.06346)`."""
    return f"published ({', '.join(dict.fromkeys(each.source for each in published))})"


def _same_checkpoint(model: ModelUsed, table: dict[str, Any]) -> bool:
    names = {PurePosixPath(hub_id).name.lower() for hub_id in table["models"]}
    return _base_name(model.path or "") in names and model.top_k in (None, table["top_k"])


def _base_name(path: str) -> str:
    """The checkpoint's own name in a hub id, in a folder or in the cache of the hub, in small letters."""
    parts = PurePosixPath(path).parts
    cached = [part.split("--")[-1] for part in parts if part.startswith(HUB_CACHE)]
    return (cached or parts or ("",))[-1].lower()


@functools.cache
def _content() -> Any:
    return yaml.safe_load((files("banpick_exp.report") / FILE).read_text(encoding="utf-8"))
