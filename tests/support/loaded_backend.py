"""Where a run's engine is one that the tests have loaded already: a whole run without Ray and without a load."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

from banpick_exp.cluster.actor import EngineActor
from banpick_exp.cluster.answers import Started
from banpick_exp.cluster.backends.base import Call
from banpick_exp.cluster.backends.inline import InlineCall
from banpick_exp.engine.config import EngineConfig
from banpick_exp.engine.engine import Engine
from banpick_exp.sweep.point import Point

Done = tuple[str, str, int]
"""What an engine was asked for: `point` or `block`, the label, and the block's number (0 for a point)."""


class LoadedSlot:
    """One place, and in it an actor around the loaded engine."""

    apart = False

    def __init__(self, name: str, engine: Engine, done: list[Done], limit: int) -> None:
        self.name = name
        self._engine, self._done, self._limit = engine, done, limit
        self._actor: EngineActor | None = None

    def placed(self) -> bool:
        return True

    @property
    def occupied(self) -> bool:
        return self._actor is not None

    def start(self, point: Point, run_dir: str) -> InlineCall:
        self._actor = EngineActor(point, run_dir, self._engine)
        started = Started(load_seconds=0.0, verify_seconds=0.0, layers=0, routers=(), host="", pid=0)
        return InlineCall(lambda: started)

    def call(self, method: str, *arguments: Any) -> InlineCall:
        together = method == "run_together"
        asked, calls = arguments if together else (method, [arguments])
        if asked in ("run_point", "run_block"):
            if len(self._done) + len(calls) > self._limit:
                raise KeyboardInterrupt
            for call in calls:
                block = call[2] if asked == "run_block" else 0
                self._done.append((asked.removeprefix("run_"), call[0].label, block))
        return InlineCall(partial(getattr(self._actor, method), *arguments))

    def stop(self) -> None:
        self._actor = None

    def release(self) -> None:
        self.stop()


class LoadedBackend:
    """`done`: every point and block that it was asked for; the driver dies where one more than `limit` is asked for."""

    def __init__(self, engine: Engine, limit: int = 1000) -> None:
        self._engine, self._limit = engine, limit
        self.done: list[Done] = []

    def connect(self, run_dir: str) -> None:
        """Nothing to reach."""

    def room(self, engine: EngineConfig, weight_bytes: float) -> int:
        return 1

    def reserve(self, names: Sequence[str], engine: EngineConfig) -> list[LoadedSlot]:
        return [LoadedSlot(name, self._engine, self.done, self._limit) for name in names]

    def check(self) -> None:
        """It is there."""

    def wait(self, calls: Sequence[Call], seconds: float) -> list[Call]:
        if not calls:
            return []
        first = calls[0]
        assert isinstance(first, InlineCall)
        first.run()
        return [first]

    def leave(self) -> str:
        return ""  # nothing outlives this process

    def close(self) -> None:
        """Nothing to leave."""
