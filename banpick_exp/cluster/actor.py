"""The process around one engine: loads it once, calibrates, measures points and writes their records itself.

It writes a point's record before it answers, so a driver that dies loses nothing that was finished.
"""

from __future__ import annotations

import json
import os
import socket
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, Literal

from banpick_exp.cluster.answers import CalibrationProgress, Started, Together
from banpick_exp.cluster.faults import ends_the_engine, reason_of
from banpick_exp.cluster.record_of import record_of
from banpick_exp.cluster.shared_memory import too_small
from banpick_exp.disk import write_atomically
from banpick_exp.engine.engine import Engine
from banpick_exp.engine.verify.transformers_parity import check_at_start
from banpick_exp.errors import UserError
from banpick_exp.evaluation.asking import TooManyFailed
from banpick_exp.evaluation.calibration.scores import Part
from banpick_exp.evaluation.calibration.stored import Block
from banpick_exp.evaluation.cut import Cut
from banpick_exp.evaluation.measure import measure, measure_at_once, measure_block
from banpick_exp.evaluation.session import Session, engine_of
from banpick_exp.records import PointRecord
from banpick_exp.run_folder import RunFolder
from banpick_exp.sweep.point import Point
from banpick_exp.sweep.search.cuts import block_layers
from banpick_exp.tasks.registry import check_grades_here


class EngineActor:
    """Methods run one at a time. Every public method takes and returns plain values or frozen specs."""

    def __init__(self, point: Point, run_dir: str, engine: Engine | None = None) -> None:
        """`point`: any point of the engine to load; its engine_fingerprint is the identity of this actor.

        `engine`: one that is started already, in place of the point's own.
        """
        self._folder = RunFolder(Path(run_dir))
        self._task = point.task
        self._engine = engine or engine_of(point)
        self._session = Session(self._engine, self._folder)
        self._processes = point.engine.ranks

    def start(self) -> Started:
        """Load and verify. Raises EngineError where a policy could be bypassed, or the engine is not the model;
        UserError, before anything loads, where answers could not be graded on this machine."""
        check_grades_here(self._task)
        try:
            seconds = self._engine.start()
        except Exception as error:
            if hint := too_small(self._processes):
                traceback.print_exception(error)  # into the engine's log
                raise RuntimeError(f"{reason_of(error)}; {hint}") from None
            raise
        begin = time.perf_counter()
        hooked = self._engine.verify()
        parity = check_at_start(self._engine, hooked)
        return Started(
            load_seconds=seconds,
            verify_seconds=time.perf_counter() - begin,
            parity=parity,
            layers=len(hooked.layers),
            routers=tuple(hooked.router),
            host=socket.gethostname(),
            pid=os.getpid(),
        )

    def close(self) -> None:
        self._engine.close()

    def calibrate(
        self,
        point: Point,
        on_progress: Callable[[int, int, str], None] | None = None,
        parts: Sequence[Part] | None = None,
    ) -> float:
        """Measure what is not there yet of the calibration `point` needs, or `parts` of it. Returns seconds (0: none).

        Progress goes to `on_progress`, or to a file of the run folder that the driver reads.
        """
        layers_of = partial(block_layers, point)
        return self._session.calibrate(point, on_progress or self._report_progress, parts, layers_of)

    def calibrate_block(self, point: Point, block: Block) -> float:
        """Measure one block of the calibration `point` needs and write its file. Returns seconds (0: it was there)."""
        return self._session.calibrate_block(point, block)

    def _report_progress(self, done: int, total: int, of: str) -> None:
        progress = CalibrationProgress(done=done, total=total, of=of)
        write_atomically(self._folder.progress, json.dumps(asdict(progress)).encode())

    def run_block(self, point: Point, cut: Cut, number: int) -> float:
        """Answer one block of a race and write its file. Returns the seconds spent now."""
        return measure_block(self._session, point, cut, number)

    def run_together(self, method: Literal["run_point", "run_block"], calls: Sequence[tuple[Any, ...]]) -> Together:
        """Make several calls of a method, each given by its arguments, whose policies may answer in one batch.

        The points are of one set-up; blocks have one number. A call that raises is left out: made alone it raises
        again, and what it says is then its own. So are those behind it, unless it is surely the point's own fault.
        Raises what says that this engine is not to be asked again.
        """
        points, cut = [call[0] for call in calls], calls[0][1 if method == "run_block" else 3]
        try:
            choice = measure_at_once(self._session, points, cut, calls[0][2] if method == "run_block" else None)
            answers: dict[str, Any] = {}
            for point, call in zip(points, calls, strict=True):
                try:
                    answers[point.fingerprint] = getattr(self, method)(*call)
                except (UserError, TooManyFailed) as error:  # a budget out of reach: the others have their answers
                    traceback.print_exception(error)  # into the engine's log
                except Exception as error:
                    if ends_the_engine(error):
                        raise
                    traceback.print_exception(error)
                    break
        finally:
            self._session.given.clear()
        return Together(answers=answers, pays=choice.pays, said=choice.said)

    def run_point(self, point: Point, stock_fingerprint: str, command: str, cut: Cut | None = None) -> PointRecord:
        """Measure one point and write its record; what a race has answered in blocks is not asked again.

        `stock_fingerprint`: the `none` point it is paired with.
        """
        measured = measure(self._session, point, stock_fingerprint, cut)
        record = record_of(
            point,
            command,
            status="done" if measured.reason is None else "invalid",
            reason=measured.reason,
            metrics=measured.metrics,
            engagement=measured.engagement,
            timing=measured.timing,
            policy=measured.policy,
            budget=measured.budget,
            failed_problems=measured.failed_problems,
        )
        self._folder.write_point(record, measured.outcomes)
        return record
