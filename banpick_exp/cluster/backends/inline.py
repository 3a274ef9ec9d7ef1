"""`cluster=inline`: the engine in this very process, without Ray. One engine at a time, one call after the other.

For debuggers, profilers and machines where Ray cannot run. Nothing outlives a crash of the engine but the records.
What vLLM and torch warn of while they load is in `engine.log` of the run folder, as it is in Ray's logs elsewhere.
"""

from __future__ import annotations

import contextlib
import os
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from banpick_exp.cluster.actor import EngineActor
from banpick_exp.cluster.backends.base import Call, CallFailed, DoesNotFit
from banpick_exp.cluster.config import ClusterConfig
from banpick_exp.cluster.faults import reason_of
from banpick_exp.cluster.shared_memory import check_there
from banpick_exp.engine.config import EngineConfig
from banpick_exp.run_folder import RunFolder
from banpick_exp.sweep.point import Point


@contextlib.contextmanager
def stderr_in(log: Path) -> Iterator[None]:
    """Append what is written to stderr to `log`: that of libraries and of processes that are started meanwhile too."""
    sys.stderr.flush()
    kept = os.dup(2)
    with log.open("ab") as file:
        os.dup2(file.fileno(), 2)
    try:
        yield
    finally:
        sys.stderr.flush()
        os.dup2(kept, 2)
        os.close(kept)


class InlineCall:
    """A call that runs when it is waited for."""

    def __init__(self, work: Callable[[], Any], can_run: Callable[[], bool] = lambda: True) -> None:
        """`can_run`: whether its engine has this process."""
        self._work, self.can_run = work, can_run
        self._answer: Any = None
        self._error: CallFailed | None = None

    def run(self) -> None:
        try:
            self._answer = self._work()
        except Exception as error:  # whatever a method raises is this call's failure, as it is in another process
            trace = "".join(traceback.format_exception(error))
            self._error = CallFailed(type(error).__name__, reason_of(error), trace)
            self._error.__cause__ = error

    def result(self) -> Any:
        if self._error is not None:
            raise self._error
        return self._answer


class InlineSlot:
    """The one place: this process."""

    apart = False

    def __init__(self, name: str, queue: list[InlineSlot]) -> None:
        """`queue`: the slots that are reserved; the first has the process until it is released."""
        self.name, self._queue = name, queue
        self._actor: EngineActor | None = None

    def placed(self) -> bool:
        return self._queue[:1] == [self]

    @property
    def occupied(self) -> bool:
        return self._actor is not None

    def start(self, point: Point, run_dir: str) -> InlineCall:
        actor = self._actor = EngineActor(point, run_dir)

        def load() -> Any:
            with stderr_in(RunFolder(Path(run_dir)).engine_log):
                return actor.start()

        return InlineCall(load, self.placed)

    def call(self, method: str, *arguments: Any) -> InlineCall:
        bound = getattr(self._actor, method)
        return InlineCall(lambda: bound(*arguments), self.placed)

    def stop(self) -> None:
        if self._actor is not None:
            self._actor.close()
            self._actor = None

    def release(self) -> None:
        self.stop()
        if self in self._queue:
            self._queue.remove(self)


class InlineBackend:
    """Runs everything here."""

    def __init__(self, cluster: ClusterConfig) -> None:
        self._cluster = cluster
        self._queue: list[InlineSlot] = []

    def connect(self, run_dir: str) -> None:
        """Raises UserError where no engine can be loaded in this process."""
        check_there()

    def room(self, engine: EngineConfig, weight_bytes: float) -> int:
        return 1

    def reserve(self, names: Sequence[str], engine: EngineConfig) -> list[InlineSlot]:
        if len(names) > 1:
            raise DoesNotFit(
                f"cluster.engines={len(names)} do not fit cluster=inline, which runs one engine in this process."
                " Type cluster.engines=1, or cluster=local."
            )
        slots = [InlineSlot(name, self._queue) for name in names]
        self._queue += slots  # engines of several kinds: one after the other
        return slots

    def check(self) -> None:
        """This process is there."""

    def wait(self, calls: Sequence[Call], seconds: float) -> list[Call]:
        for call in calls:
            assert isinstance(call, InlineCall)
            if call.can_run():
                call.run()
                return [call]
        time.sleep(seconds)
        return []

    def leave(self) -> str:
        return ""  # nothing outlives this process

    def close(self) -> None:
        """Nothing to leave."""
