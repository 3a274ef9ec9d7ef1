"""The Ray actor around one engine: loads it once, calibrates, runs points and writes their records itself.

The actor writes a point's record before it answers, so a driver that dies loses nothing that was finished.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from banpick_exp.engine.engine import Engine
from banpick_exp.engine.types import Counters
from banpick_exp.evaluation.answer import DomainPolicy, DomainRun, answer_problems
from banpick_exp.evaluation.blocks import answer_block, whole
from banpick_exp.evaluation.budget.solve import AtBudget, Probed, answer_at_budget, solved_policies
from banpick_exp.evaluation.calibration import arrays
from banpick_exp.evaluation.calibration.artifact import artifact_folder
from banpick_exp.evaluation.calibration.measure import calibrate
from banpick_exp.evaluation.engagement import check_engagement
from banpick_exp.evaluation.metrics import all_metrics
from banpick_exp.evaluation.speed import time_against_stock
from banpick_exp.policy import parse_policy
from banpick_exp.policy.budget import policy_of
from banpick_exp.records import SCHEMA_VERSION, CorruptRecord, read_outcomes, read_point, write_point
from banpick_exp.sweep.config import SearchConfig
from banpick_exp.sweep.point import Point
from banpick_exp.tasks.load import load_problems
from banpick_exp.tasks.problem import Problem
from banpick_exp.versions import versions

PROGRESS = "progress.json"


def engine_of(point: Point) -> Engine:
    """The engine that `point` runs on, not started yet; a control variant is built where it is missing."""
    location = point.checkpoint.location
    if point.model.control is not None:
        from banpick_exp.models.tiny.control import control_folder

        location = str(control_folder(point.model.control))
    return Engine(point.model, location, point.engine, point.checkpoint.shape.num_layers)


class EngineActor:
    """Methods run one at a time. Every public method takes and returns plain values or frozen specs."""

    def __init__(self, point: Point, run_dir: str, calibration_dir: str) -> None:
        """`point`: any point of the engine to load; its engine_fingerprint is the identity of this actor."""
        self._run_dir, self._calibration_dir = Path(run_dir), Path(calibration_dir)
        self._solved_dir = self._calibration_dir.parent / "solved"
        self._probed: Probed = {}
        self._point = point
        self._engine = engine_of(point)
        self._stock: dict[str, dict[str, DomainRun]] = {}
        self._calibrations: dict[str, dict[str, Mapping[str, Any]]] = {}

    def start(self) -> dict[str, Any]:
        """Load and verify. Returns seconds and what was hooked; raises EngineError where a policy could be bypassed."""
        seconds = self._engine.start()
        begin = time.perf_counter()
        hooked = self._engine.verify()
        return {"load_seconds": seconds, "verify_seconds": time.perf_counter() - begin, **hooked, "pid": os.getpid()}

    def close(self) -> None:
        self._engine.close()

    # ------------------------------------------------------------ calibration

    def calibrate(self, point: Point, on_progress: Callable[[int, int], None] | None = None) -> float:
        """Make the calibration `point` needs, unless its artifact exists. Returns seconds (0 when it was there).

        Progress goes to `on_progress`, or to a file of the run folder that the driver reads.
        """
        assert point.calibration_fingerprint is not None
        folder = artifact_folder(point.calibration, self._calibration_dir, point.calibration_fingerprint)
        if arrays.load(folder, point.calibration_fingerprint) is not None:
            return 0.0
        begin = time.perf_counter()
        domains = calibrate(
            self._engine, point.checkpoint.shape, point.task, point.calibration, on_progress or self._report_progress
        )
        header = {
            "model": {"name": point.model.name, "identity": point.checkpoint.identity},
            "settings": point.calibration.model_dump(exclude={"path"}),
            "data_files": point.calibration_files,
            "versions": versions(),
            "seconds": time.perf_counter() - begin,
        }
        arrays.save(folder, point.calibration_fingerprint, domains, header)
        return time.perf_counter() - begin

    def _report_progress(self, done: int, total: int) -> None:
        partial = self._run_dir / f".{PROGRESS}.{os.getpid()}"
        partial.write_text(json.dumps({"done": done, "total": total}))
        os.replace(partial, self._run_dir / PROGRESS)

    def _policies(self, point: Point) -> dict[str, DomainPolicy]:
        fingerprint = point.calibration_fingerprint
        if fingerprint is None:
            return {d: DomainPolicy(rule=point.rule, calibration_key="", calibration=None) for d in point.task.domains}
        score = point.calibration.score
        key = f"{fingerprint}/{score}"
        if key not in self._calibrations:
            folder = artifact_folder(point.calibration, self._calibration_dir, fingerprint)
            domains = arrays.load(folder, fingerprint)
            if domains is None:
                raise FileNotFoundError(f"calibration {fingerprint} is not in {folder}")
            self._calibrations[key] = arrays.policy_views(domains, score)
            for domain, view in self._calibrations[key].items():
                self._engine.load_calibration(f"{key}/{domain}", view)
        views = self._calibrations[key]
        return {
            d: DomainPolicy(rule=point.rule, calibration_key=f"{key}/{d}", calibration=views[d])
            for d in point.task.domains
        }

    # ------------------------------------------------------------ points

    def run_block(self, point: Point, search: SearchConfig, number: int) -> dict[str, float]:
        """Answer one block of a race and write its file; see `search.blocks`."""
        problems = load_problems(point.task, point.task.split, point.task.max_problems)
        policies = self._policies(point)
        if point.budget is not None:
            policies = solved_policies(self._engine, point, policies, problems, self._solved_dir, self._probed)
        return answer_block(self._engine, policies, point, problems, search, number, self._run_dir)

    def run_point(
        self, point: Point, stock_fingerprint: str, command: str, search: SearchConfig | None = None
    ) -> dict[str, Any]:
        """Measure one point and write its record; what a race has answered in blocks is not asked again.

        `stock_fingerprint`: the `none` point it is paired with.
        """
        begin = time.perf_counter()
        problems = load_problems(point.task, point.task.split, point.task.max_problems)
        stock, stock_seconds = self._stock_runs(point, stock_fingerprint, problems, search)
        policies = self._policies(point)
        met: AtBudget | None = None

        block_seconds = None

        def answer(chosen: Mapping[str, DomainPolicy]) -> tuple[dict[str, DomainRun], float]:
            nonlocal block_seconds
            if raced := whole(self._run_dir, point.fingerprint, chosen, search, problems):
                block_seconds = raced.seconds
                return raced.runs, raced.swap_seconds
            return answer_problems(self._engine, chosen, point.task, problems, seed=point.seed, repeat=point.repeat)

        answering = time.perf_counter()
        if point.fingerprint == stock_fingerprint:
            runs, swap_seconds = stock, 0.0
        elif point.budget is None:
            runs, swap_seconds = answer(policies)
        else:
            met = answer_at_budget(self._engine, point, policies, problems, self._solved_dir, answer, self._probed)
            policies, runs, swap_seconds = met.policies, met.runs, met.swap_seconds
        solve_seconds = met.solve_seconds if met else 0.0
        accuracy_seconds = time.perf_counter() - answering - solve_seconds
        timing = time.perf_counter()
        # A repeat asks how far the score moves; the speed is that of the point itself.
        timings = {} if point.repeat else time_against_stock(self._engine, policies, point.task, problems)
        throughput_seconds = time.perf_counter() - timing
        evidence, reason = check_engagement(policies, runs, stock, point.checkpoint.shape)
        evidence["counters"] = {d: _counters(run.counters) for d, run in runs.items()}
        if point.fingerprint == stock_fingerprint:
            evidence["stock_counters"] = {d: _counters(run.counters) for d, run in stock.items()}
        if met is not None:
            reason = reason or met.reason
        metrics = all_metrics(runs, stock, timings)
        generating = stock_seconds + solve_seconds + accuracy_seconds + throughput_seconds
        record = {
            "fingerprint": point.fingerprint,
            "status": "done" if reason is None else "invalid",
            "reason": reason,
            "metrics": metrics,
            "engagement": evidence,
            "timing": {
                "swap_seconds": swap_seconds,
                "stock_seconds": stock_seconds,
                "solve_seconds": solve_seconds,
                "accuracy_seconds": accuracy_seconds,
                **({} if block_seconds is None else {"block_seconds": block_seconds}),
                "throughput_seconds": throughput_seconds,
                "timed_tokens": 2 * sum(t.tokens * len(t.stock_seconds) for t in timings.values()),
                "overhead_seconds": time.perf_counter() - begin - generating,
            },
            **describe(point, command),
        }
        if met is not None:
            record |= {"policy": met.policies[point.task.domains[0]].rule.canonical(), "budget": met.account}
        write_point(self._run_dir / "points", record, [o for run in runs.values() for o in run.outcomes])
        return record

    def _stock_runs(
        self, point: Point, fingerprint: str, problems: dict[str, list[Problem]], search: SearchConfig | None
    ) -> tuple[dict[str, DomainRun], float]:
        """Stock answers to pair with: of this engine, or of the record another engine wrote; else made now."""
        if fingerprint not in self._stock:
            recorded = _recorded_stock(self._run_dir / "points", fingerprint)
            if recorded is not None:
                self._stock[fingerprint] = recorded
            else:
                begin = time.perf_counter()
                stock = DomainPolicy(rule=parse_policy("none", {}), calibration_key="", calibration=None)
                policies = dict.fromkeys(point.task.domains, stock)
                if raced := whole(self._run_dir, fingerprint, policies, search, problems):
                    self._stock[fingerprint] = raced.runs
                    return raced.runs, 0.0
                runs, _ = answer_problems(
                    self._engine, policies, point.task, problems, seed=point.seed, repeat=point.repeat
                )
                self._stock[fingerprint] = runs
                return runs, time.perf_counter() - begin
        return self._stock[fingerprint], 0.0


def _recorded_stock(points_dir: Path, fingerprint: str) -> dict[str, DomainRun] | None:
    try:
        record = read_point(points_dir / f"{fingerprint}.json")
    except (FileNotFoundError, CorruptRecord):
        return None
    if record["status"] != "done":
        return None
    rows = read_outcomes(points_dir, fingerprint).to_dicts()
    return {
        domain: DomainRun([row for row in rows if row["domain"] == domain], Counters(**counters))
        for domain, counters in record["engagement"]["stock_counters"].items()
    }


def _counters(counters: Counters) -> dict[str, Any]:
    return {"tokens": counters.tokens, "kept": counters.kept, "usage": counters.usage}


def describe(point: Point, command: str) -> dict[str, Any]:
    """The part of a record that says what the point was, whether it ran or failed."""
    shape = point.checkpoint.shape
    return {
        "schema_version": SCHEMA_VERSION,
        "finished_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "label": point.label,
        "seed": point.seed,
        "repeat": point.repeat,
        "policy": policy_of(point.rule, point.budget),
        "model": {
            **point.model.model_dump(),
            "identity": point.checkpoint.identity,
            "num_layers": shape.num_layers,
            "num_experts": shape.num_experts,
            "top_k": shape.top_k,
        },
        "engine": point.engine.model_dump(),
        "task": {**point.task.model_dump(mode="json"), "identity": point.data_identity},
        "versions": versions(),
        "calibration": point.calibration_fingerprint,
        "command": command,
    }
