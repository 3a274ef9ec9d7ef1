"""May a run be resumed by this command: its points must have been asked with what this command would ask with."""

from __future__ import annotations

import shlex
from collections.abc import Iterable
from typing import Any

from banpick_exp.disk import reading
from banpick_exp.errors import UserError
from banpick_exp.run_folder import RunFolder
from banpick_exp.setups import Setup, distinct, nearest_differences, setup_of, setup_of_record
from banpick_exp.sweep.point import Point
from banpick_exp.sweep.rerun import as_typed
from banpick_exp.versions import versions


def setups_of(points: Iterable[Point]) -> tuple[Setup, ...]:
    """What the points are asked with, each set-up once: several where a sweep has an axis such as task.max_tokens."""
    return tuple(
        distinct(
            setup_of(
                model={"dtype": point.model.dtype, "trust_remote_code": point.model.trust_remote_code}
                | {"identity": (point.checkpoint.base or point.checkpoint).identity},
                engine=point.engine.model_dump(mode="json"),
                task=point.task.model_dump(mode="json")
                | {"identity": point.data_identity, "reward_identity": point.reward_model},
                seed=point.seed,
                versions=versions(),
            )
            for point in points
        )
    )


def check_setups(folder: RunFolder, wanted: Iterable[Setup]) -> None:
    """UserError for a set-up that the run in `folder` was not begun with; the records tell where its manifest does not.

    A run without either is let through: there is nothing that could be mixed.
    """
    manifest = folder.manifest()
    known = list(manifest.setups) or _recorded(folder)
    for setup in wanted:
        if found := nearest_differences(setup, known):
            said = ", ".join(f"{key}={_shown(then)}" for key, (then, _) in found.items())
            says = ", ".join(f"{key}={_shown(now)}" for key, (_, now) in found.items())
            raise UserError(
                f"resume={folder.path} holds points that were asked with {said}, and this command would ask with"
                f" {says}: their answers must not be mixed in one table. {_remedy(found)}"
            )


def _recorded(folder: RunFolder) -> list[Setup]:
    """The set-ups of the points that count as finished."""
    with reading(folder.path):
        records, _ = folder.load_points()
    return distinct(setup_of_record(record) for record in records if record.status != "failed")


def _remedy(found: dict[str, tuple[Any, Any]]) -> str:
    typed = [
        f"{key}={as_typed(then)}"
        for key, (then, _) in found.items()
        if key not in ("vLLM", "model", "task.data", "task.reward_model")
    ]
    parts = [f"type {shlex.join(typed)}"] if typed else []
    if "vLLM" in found:
        parts.append(f"resume it where vLLM {found['vLLM'][0]} is installed")
    return f"Leave resume out to begin a new run{''.join(f', or {each}' for each in [' and '.join(parts)] if each)}."


def _shown(value: Any) -> str:
    return value if isinstance(value, str) else as_typed(value)
