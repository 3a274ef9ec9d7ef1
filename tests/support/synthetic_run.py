"""Runs that never ran: records and outcomes drawn from a seed, with the effects a test asks for."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from banpick_exp.analysis import paired_bootstrap, wilson
from banpick_exp.records import SCHEMA_VERSION, Outcome, PointRecord, outcomes_frame
from banpick_exp.run_folder import RunFolder

DOMAINS = ("math", "code", "knowledge")
TOP_K, LAYERS = 8, 4


class SyntheticRun:
    """Draws points whose answers agree with stock except where a policy's `shift` flips them.

    A problem's difficulty is shared by all points, so outcomes are correlated as those of real policies are.
    """

    def __init__(self, seed: int = 0, problems: int = 800, accuracy: float = 0.7) -> None:
        self.rng = np.random.default_rng(seed)
        self.domains = np.repeat(DOMAINS, problems)
        self.stock = self.rng.random(len(self.domains)) < accuracy
        self.points: list[tuple[PointRecord, list[Outcome] | None]] = []

    def add(
        self,
        policy: str,
        knobs: dict[str, Any] | None = None,
        *,
        kept: float = TOP_K,
        churn: float = 0.0,
        shift: dict[str, float] | None = None,
        speedup: float = 1.0,
        status: str = "done",
        reason: str | None = None,
        model: str = "tiny",
        split: str = "test",
        engine: dict[str, Any] | None = None,
        engagement: dict[str, Any] | None = None,
    ) -> PointRecord:
        """One point: `churn` of the problems are answered anew, `shift[domain]` more (or fewer) get right."""
        knobs = knobs or {}
        label = " ".join([policy, *(f"{key}={value}" for key, value in knobs.items())])
        identity = f"{model} {label}" + (f" {engine}" if engine else "") + (f" {split}" if split != "test" else "")
        fingerprint = hashlib.sha256(identity.encode()).hexdigest()[:16]
        correct = self._answers(churn, shift or {})
        truncated = self.rng.random(len(correct)) < 0.01
        blocks = {"overall": np.ones(len(correct), bool), **{name: self.domains == name for name in DOMAINS}}
        spread = np.sort(speedup * (1 + self.rng.normal(0, 0.012, 5)))
        all_metrics = {
            name: self._metrics(correct[rows], self.stock[rows], truncated[rows], kept, spread, stock=policy == "none")
            for name, rows in blocks.items()
        }
        overall = all_metrics.pop("overall")
        record = PointRecord.model_validate({
            "schema_version": SCHEMA_VERSION, "fingerprint": fingerprint, "status": status, "reason": reason,
            "label": label, "policy": {"name": policy, **knobs}, "model": {"name": model, "path": None},
            "engine": {"max_num_seqs": 64, **(engine or {})}, "task": {"name": "tiny", "split": split},
            "versions": {"vllm": "0.32.0"}, "calibration": None,
            "metrics": None if status == "failed" else {"overall": overall, "domains": all_metrics},
            "engagement": engagement or {}, "timing": {"generate_seconds": 1.5, "swap_seconds": 0.01},
            "command": f"python -m banpick_exp policy={policy} "
                       + " ".join(f"policy.{key}={value}" for key, value in knobs.items()),
            "finished_at": "2026-11-22T00:00:00+00:00",
        })  # fmt: skip
        outcomes = None
        if status != "failed":
            outcomes = [
                Outcome(
                    problem_id=f"p{i:05d}",
                    domain=str(self.domains[i]),
                    task="tiny",
                    correct=bool(correct[i]),
                    truncated=bool(truncated[i]),
                    tokens=12 + i % 7,
                    answer=str(i) if correct[i] else "?",
                    found=True,
                    completion=f"={i};" if correct[i] else "=?;",
                    finish_reason="length" if truncated[i] else "stop",
                )
                for i in range(len(correct))
            ]
        self.points.append((record, outcomes))
        return record

    @property
    def records(self) -> list[PointRecord]:
        return [record for record, _ in self.points]

    @property
    def outcomes(self) -> dict[str, pl.DataFrame]:
        """fingerprint -> outcomes, as `RunFolder.all_outcomes` gives them."""
        return {record.fingerprint: outcomes_frame(rows) for record, rows in self.points if rows is not None}

    def change(self, record: PointRecord, **parts: Any) -> PointRecord:
        """Put `changed(record, **parts)` in the place of a point that was added."""
        index = next(i for i, (known, _) in enumerate(self.points) if known is record)
        self.points[index] = changed(record, **parts), self.points[index][1]
        return self.points[index][0]

    def write(self, run_dir: Path) -> Path:
        """Write every point under `<run_dir>/points`; returns the run folder."""
        for record, outcomes in self.points:
            RunFolder(run_dir).write_point(record, outcomes)
        return run_dir

    def _answers(self, churn: float, shift: dict[str, float]) -> np.ndarray:
        correct = self.stock.copy()
        again = self.rng.random(len(correct)) < churn
        correct[again] = self.rng.random(int(again.sum())) < self.stock.mean()  # as good as stock: a true null
        for domain, amount in shift.items():
            here = np.flatnonzero((self.domains == domain) & (correct == (amount < 0)))
            chosen = self.rng.choice(here, int(abs(amount) * (self.domains == domain).sum()), replace=False)
            correct[chosen] = amount > 0
        return correct

    @staticmethod
    def _metrics(
        correct: np.ndarray, stock_correct: np.ndarray, truncated: np.ndarray, kept: float, spread: np.ndarray,
        *, stock: bool,
    ) -> dict[str, Any]:  # fmt: skip
        delta, low, high = paired_bootstrap(correct.astype(int) - stock_correct.astype(int), resamples=None)
        return {
            "accuracy": float(correct.mean()), "accuracy_ci95": list(wilson(int(correct.sum()), len(correct))),
            "delta": None if stock else delta, "delta_ci95": None if stock else [low, high],
            "n_problems": len(correct), "tokens_per_second": 2000.0 * float(spread[2]), "speedup": float(spread[2]),
            "speedup_ci95": [float(spread[0]), float(spread[-1])], "mean_kept": kept,
            "speed": [
                {
                    "phase": phase, "batch": batch, "speedup": float(spread[2]), "rounds": 9, "mean_kept": kept,
                    "ci95": [float(spread[0]), float(spread[-1])], "tokens_per_second": 2000.0 * float(spread[2]),
                    "unique_experts": None if phase == "prefill" else min(32.0, kept * batch / 2),
                    "stock_unique_experts": None if phase == "prefill" else min(32.0, TOP_K * batch / 2),
                }
                for phase, batch in (("decode", 1), ("decode", 8), ("prefill", 1024), ("decode", 64))
            ],
            "mean_kept_by_layer": [kept] * LAYERS, "truncated_fraction": float(truncated.mean()),
        }  # fmt: skip


def changed(record: PointRecord, **parts: Any) -> PointRecord:
    """The record with other values; a dict is merged into the part of its name (`model={"top_k": 8}`)."""
    plain = record.plain()
    for name, value in parts.items():
        plain[name] = plain.get(name, {}) | value if isinstance(value, dict) else value
    return PointRecord.model_validate(plain)


def ladder(run: SyntheticRun, ks: tuple[int, ...] = (7, 6, 5, 4, 3, 2)) -> SyntheticRun:
    """Add stock and a fixed_k ladder that loses more the fewer experts it keeps."""
    run.add("none")
    for k in ks:
        loss = 0.004 * (TOP_K - k) ** 2
        run.add(
            "fixed_k", {"k": k}, kept=k, churn=0.04, shift=dict.fromkeys(DOMAINS, -loss), speedup=1 + 0.05 * (8 - k)
        )
    return run


def pick_strength(run: SyntheticRun, gain: float = 0.0) -> SyntheticRun:
    """Add a boost x key-expert grid; the strong boosts hurt, `gain` helps math in the mild ones."""
    for boost in (0.5, 1, 2, 4):
        for experts in (1, 2, 4, 8):
            harm = 0.004 * boost * experts / 2 if boost * experts > 4 else 0.0
            shift = {"math": gain - harm, "code": -harm, "knowledge": -harm}
            run.add("pick", {"boost": boost, "key_experts": experts}, churn=0.03, shift=shift, speedup=0.99)
    return run


def three_times() -> SyntheticRun:
    """Stock, a ladder and two Picks, three times; repeats answer 4 % of the problems anew and are not timed."""
    run, untimed = SyntheticRun(problems=60), dict.fromkeys(("tokens_per_second", "speedup", "speedup_spread"))
    for repeat in range(3):
        start = len(run.points)
        ladder(run, ks=(6, 4))
        run.add("pick", {"boost": 1}, churn=0.04)
        run.add("pick", {"boost": 2}, churn=0.04, shift={"math": 0.1})
        for record in run.records[start:] if repeat else []:
            plain = record.measured.model_dump()
            domains = {name: metrics | untimed for name, metrics in plain["domains"].items()}
            run.change(
                record,
                fingerprint=f"{record.fingerprint}-{repeat}",
                label=f"{record.label} repeat={repeat}",
                repeat=repeat,
                metrics={"overall": plain["overall"] | untimed, "domains": domains},
            )
        run.stock = run._answers(0.04, {})
    return run
