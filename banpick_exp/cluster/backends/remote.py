"""The process that Ray makes for an engine: a name that the driver can give without importing torch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from banpick_exp.sweep.point import Point


class RemoteEngine:
    """An `EngineActor`, made where it runs."""

    def __init__(self, point: Point, run_dir: str) -> None:
        from banpick_exp.cluster.actor import EngineActor

        self._actor = EngineActor(point, run_dir)

    def ask(self, method: str, *arguments: Any) -> Any:
        """What a method of the actor answers."""
        return getattr(self._actor, method)(*arguments)
