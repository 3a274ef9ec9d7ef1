"""The process that Ray makes for an engine: a name that the driver can give without importing torch."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from banpick_exp.cluster.pulse import beating
from banpick_exp.run_folder import RunFolder, create_folder

if TYPE_CHECKING:
    from banpick_exp.sweep.point import Point


class RemoteEngine:
    """An `EngineActor`, made where it runs."""

    def __init__(self, point: Point, run_dir: str, name: str) -> None:
        """`name`: of the engine's slot, after which its log and its signs of life are named."""
        os.umask(os.umask(0o077) | 0o002)  # a standing cluster's may be 0, and all that is made here lies in the run
        folder = RunFolder(Path(run_dir))
        self._life = contextlib.ExitStack()
        self._life.enter_context(beating(folder, name))
        _print_into(folder.log_path(name))

        from banpick_exp.cluster.actor import EngineActor

        self._actor = EngineActor(point, run_dir)

    def ask(self, method: str, *arguments: Any) -> Any:
        """What a method of the actor answers."""
        return getattr(self._actor, method)(*arguments)


def _print_into(log: Path) -> None:
    """What this process and those it starts write goes to a file of the run, which every machine of it can read."""
    create_folder(log.parent)
    with log.open("ab") as file:
        for stream in (1, 2):
            os.dup2(file.fileno(), stream)
