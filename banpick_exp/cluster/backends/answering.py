"""Engines that answer by themselves, for `bench sweep`: with records as large as real ones, written as real ones are.

Slots are in the driver's own process, and answer at once or after a stated time; no vLLM and no Ray has a part in it.
Answers come one at a time, each pickled as between processes: the dearest case for a driver, whose loop turns once for
each. Not in `registry`: what they answer is made up.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import random
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from banpick_exp.cluster.answers import Started, Together
from banpick_exp.cluster.backends.base import Call
from banpick_exp.cluster.record_of import record_of
from banpick_exp.engine.config import EngineConfig
from banpick_exp.models.shape import MoeShape
from banpick_exp.records import Counters, Engagement, Metrics, Outcome, PointMetrics, PointRecord, SpeedCell
from banpick_exp.run_folder import RunFolder
from banpick_exp.sweep.point import Point

SPEED_CELLS: tuple[tuple[Any, int], ...] = (("decode", 1), ("decode", 8), ("prefill", 1024), ("decode", 32))
"""As many as a real point has: they are most of a record's objects."""


@dataclass
class Meter:
    """What the slots and the backend spent or waited, which is none of the driver's."""

    seconds: float = 0.0
    cpu_seconds: float = 0.0

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        begin, cpu = time.perf_counter(), time.process_time()
        try:
            yield
        finally:
            self.seconds += time.perf_counter() - begin
            self.cpu_seconds += time.process_time() - cpu


@dataclass(eq=False)
class AnsweringCall:
    """Work that is done when it is waited for, and not before it is due (on the perf_counter clock)."""

    work: Callable[[], Any]
    due: float
    answer: bytes = b""
    can_run: Callable[[], bool] = lambda: True
    """Whether its slot has its place."""

    def run(self) -> None:
        self.answer = pickle.dumps(self.work())

    def result(self) -> Any:
        return pickle.loads(self.answer)  # in the driver's time, as an answer from another process is


class AnsweringSlot:
    """One place, and in it nothing but answers."""

    apart = False

    def __init__(self, name: str, answer_seconds: float, backend: AnsweringBackend) -> None:
        self.name, self._backend = name, backend
        self._answer_seconds = answer_seconds
        self._folder: RunFolder | None = None

    def placed(self) -> bool:
        return self._backend.has_room_for(self)

    @property
    def occupied(self) -> bool:
        return self._folder is not None

    def start(self, point: Point, run_dir: str) -> AnsweringCall:
        self._folder = RunFolder(Path(run_dir))
        started = Started(
            load_seconds=0.0,
            verify_seconds=0.0,
            layers=point.checkpoint.shape.num_layers,
            routers=("none",),
            host=socket.gethostname(),
            pid=os.getpid(),
        )
        return AnsweringCall(lambda: started, time.perf_counter(), can_run=self.placed)

    def call(self, method: str, *arguments: Any) -> AnsweringCall:
        if method == "calibrate":
            return AnsweringCall(lambda: 0.0, time.perf_counter())
        together = method == "run_together"
        asked, calls = arguments if together else (method, [arguments])
        assert asked == "run_point" and self._folder is not None, f"{asked}: points of this size are answered whole"
        folder = self._folder

        def work() -> Any:
            found = {call[0].fingerprint: _answered(folder, call[0], call[2]) for call in calls}
            return Together(answers=found, pays=None, said="") if together else found[calls[0][0].fingerprint]

        return AnsweringCall(work, time.perf_counter() + self._answer_seconds * len(calls))

    def stop(self) -> None:
        self._folder = None

    def release(self) -> None:
        self.stop()
        self._backend.give_back(self)


@dataclass
class AnsweringBackend:
    """As many slots as are asked for, of which the first `places` have room."""

    answer_seconds: float
    meter: Meter = field(default_factory=Meter)
    places: int | None = None
    """Slots that have their place at a time; None for all."""
    reserved: list[AnsweringSlot] = field(default_factory=list)

    def has_room_for(self, slot: AnsweringSlot) -> bool:
        return self.places is None or slot in self.reserved[: self.places]

    def give_back(self, slot: AnsweringSlot) -> None:
        if slot in self.reserved:
            self.reserved.remove(slot)

    def connect(self, run_dir: str) -> None:
        """Nothing to reach."""

    def room(self, engine: EngineConfig, weight_bytes: float) -> int:
        return 1

    def reserve(self, names: Sequence[str], engine: EngineConfig) -> list[AnsweringSlot]:
        slots = [AnsweringSlot(name, self.answer_seconds, self) for name in names]
        self.reserved += slots
        return slots

    def wait(self, calls: Sequence[Call], seconds: float) -> list[Call]:
        with self.meter.running():
            can_run = [call for call in calls if isinstance(call, AnsweringCall) and call.can_run()]
            if not can_run:
                time.sleep(seconds)
                return []
            first = min(can_run, key=lambda call: call.due)
            time.sleep(min(max(first.due - time.perf_counter(), 0.0), seconds))
            if first.due > time.perf_counter():
                return []
            first.run()
            return [first]

    def check(self) -> None:
        """It is this very process."""

    def leave(self) -> str:
        return ""  # nothing outlives this process

    def close(self) -> None:
        """Nothing to leave."""


# ---------------------------------------------------------------- answers


def _answered(folder: RunFolder, point: Point, command: str) -> PointRecord:
    """A record as large as a real one, written as `EngineActor` writes it."""
    drawn = random.Random(point.fingerprint)
    shape = point.checkpoint.shape
    outcomes = {domain: _outcomes(domain, count or 1, drawn) for domain, count in point.problems.items()}
    low, high = point.rule.budget(shape)
    counters = {domain: _counters(shape, high, drawn) for domain in outcomes}
    record = record_of(
        point,
        command,
        status="done",
        reason=None,
        metrics=PointMetrics(
            overall=_metrics([each for rows in outcomes.values() for each in rows], shape, high),
            domains={domain: _metrics(rows, shape, high) for domain, rows in outcomes.items()},
        ),
        engagement=Engagement(
            implied=dict.fromkeys(outcomes, (low, high)),
            measured={domain: counted.mean_kept for domain, counted in counters.items()},
            routing_table={domain: f"{drawn.getrandbits(64):016x}" for domain in outcomes},
            routing_counts={domain: f"{drawn.getrandbits(64):016x}" for domain in outcomes},
            counters=counters,
        ),
    )
    folder.write_point(record, [each for rows in outcomes.values() for each in rows])
    return record


def _outcomes(domain: str, count: int, drawn: random.Random) -> list[Outcome]:
    """Two of three right, the same problems for every point but one in twenty."""
    right = [(number % 3 > 0) != (drawn.random() < 0.05) for number in range(count)]
    return [
        Outcome(
            problem_id=f"{domain}-{number:04d}",
            domain=domain,
            task=domain,
            correct=correct,
            truncated=False,
            tokens=12 + drawn.randrange(12),
            answer=str(number) if correct else f"not {number}",
            repetitive=False,
            found=True,
            completion=f"{drawn.getrandbits(80):020x}={number};",
            finish_reason="stop",
            gold=str(number),
        )
        for number, correct in enumerate(right)
    ]


def _metrics(rows: Sequence[Outcome], shape: MoeShape, kept: float) -> Metrics:
    accuracy = sum(row.correct for row in rows) / len(rows)
    cell: dict[str, Any] = {
        "speedup": 1.0,
        "ci95": (0.9, 1.1),
        "rounds": 9,
        "tokens_per_second": 2e3,
        "mean_kept": kept,
    }
    return Metrics(
        accuracy=accuracy,
        accuracy_ci95=(0.0, 1.0),
        delta=accuracy - 2 / 3,
        delta_ci95=(-1.0, 1.0),
        n_problems=len(rows),
        tokens_per_second=2e3,
        speedup=1.0,
        speedup_ci95=(0.9, 1.1),
        speed=tuple(
            SpeedCell(phase=phase, batch=batch, unique_experts=None, stock_unique_experts=None, **cell)
            for phase, batch in SPEED_CELLS
        ),
        mean_kept=kept,
        mean_kept_by_layer=(kept,) * shape.num_layers,
        truncated_fraction=0.0,
    )


def _counters(shape: MoeShape, kept: float, drawn: random.Random) -> Counters:
    """Of a few hundred tokens, spread at random over the experts."""
    tokens, usage = 400, []
    for _ in range(shape.num_layers):
        left, layer = round(tokens * kept), []
        for expert in range(shape.num_experts - 1, -1, -1):
            share = min(tokens, left, drawn.randint(0, 2 * left // (expert + 1)) if expert else left)
            layer.append(share)
            left -= share
        usage.append(layer)
    return Counters(tokens=[tokens] * shape.num_layers, kept=[sum(layer) for layer in usage], usage=usage)
