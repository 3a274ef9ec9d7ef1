"""Where engines run: what a backend must do. Everything above it speaks of slots and calls, never of Ray.

A slot is one place for an engine. `start` puts an engine in it, `call` asks it for work, and both answer with a `Call`
that `wait` says is ready. Its `result` is the answer, or one of two errors: the call raised (`CallFailed`, the engine
is still there), or the engine went away (`EngineLost`, the call may have run or not).

To add a backend: one module with classes like these, one line in `registry.BACKENDS`, one yaml in conf/cluster/ that
names it, one test.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, TypeVar

from banpick_exp.engine.config import EngineConfig
from banpick_exp.sweep.point import Point

CallT = TypeVar("CallT", bound="Call")


class DoesNotFit(RuntimeError):
    """The place is too small for the engines that were asked for. The message says what to type."""


class CallFailed(RuntimeError):
    """The call raised inside the engine's process: the name of what it raised, why, and the whole trace."""

    def __init__(self, error: str, reason: str, trace: str) -> None:
        super().__init__(f"{error}: {reason}")
        self.error, self.trace = error, trace


class EngineLost(RuntimeError):
    """The engine's process or node is gone."""


class Call(Protocol):
    """Work that an engine was asked for."""

    def result(self) -> Any:
        """What the method answered, once `wait` named the call. Raises CallFailed or EngineLost."""


class Slot(Protocol):
    """One place for an engine, and the engine in it."""

    name: str
    apart: bool
    """Whether its engine has a process of its own, whose signs of life can be watched (`pulse`)."""

    def placed(self) -> bool:
        """Whether the engine that was started has its place; False while no node has room for it."""

    @property
    def occupied(self) -> bool:
        """Whether an engine was started in it and not stopped since."""

    def start(self, point: Point, run_dir: str) -> Call:
        """Make an `EngineActor` for a point's engine and load it. The call answers what `EngineActor.start` does.

        Where the last one's place is gone, on another. Never waits for one. An engine that an earlier driver of the run
        has left in the slot is taken over: the answer is then `attached`.
        """

    def call(self, method: str, *arguments: Any) -> Call:
        """Ask the engine for a method of `EngineActor`."""

    def stop(self) -> None:
        """End the engine; another can be started in the slot."""

    def release(self) -> None:
        """Give the place back."""


class Backend(Protocol):
    """A place with room for engines."""

    def connect(self, run_dir: str) -> None:
        """Reach the place, or make it, for one run."""

    def room(self, engine: EngineConfig, weight_bytes: float) -> int:
        """How many of one engine fit side by side, at least 1: `cluster.engines=auto`."""

    def reserve(self, names: Sequence[str], engine: EngineConfig) -> Sequence[Slot]:
        """One slot a name, at once: what has no room yet waits for it (`Slot.placed`). Raises DoesNotFit where an
        engine can never have any. Larger engines first: a small one would stand on a node that a large one needs."""

    def wait(self, calls: Sequence[Call], seconds: float) -> Sequence[Call]:
        """Those of the calls that are ready; empty after `seconds` without any."""

    def check(self) -> None:
        """Raises PlaceLost (`faults`) where the place itself is gone and no call will ever come back."""

    def leave(self) -> str:
        """Let loaded engines stay for the next driver, where the place keeps them; `release` then changes nothing. For
        a driver that a signal ends. Returns what to say of it, empty where nothing stays."""

    def close(self) -> None:
        """Leave the place as it was found, but for what `leave` left."""
