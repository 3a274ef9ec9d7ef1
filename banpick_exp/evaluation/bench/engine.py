"""Decode and prefill of a random-weight engine under several policies, step by step in turn on the same batch.

A swap takes milliseconds, so the policies alternate between the steps of one running batch: every variant meets the
same context, the same cache and the same minute of a shared machine. `stock` is vLLM with the hook taken off.
"""

from __future__ import annotations

import itertools
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

from banpick_exp.engine.engine import Engine
from banpick_exp.engine.stepping import Stepper
from banpick_exp.evaluation.bench.moe import FIXED_K
from banpick_exp.evaluation.bench.random_engine import VOCABULARY, open_engine
from banpick_exp.evaluation.bench.routing import LAMBDA
from banpick_exp.evaluation.bench.timing import Row, emit, print_table, ratios
from banpick_exp.evaluation.budget.root_search import MAX_PROBES, solve

PREFILL = 2048
PROMPT = 8
K_MIN = 3
PROBE_STEPS = 3
"""Decode steps behind one measured mean kept."""
PROBE_TOLERANCE = 0.02
"""Experts kept a token."""
BAN_PICK = {"mode": "range_add", "key_experts": 4}

Variant = tuple[str, str, dict[str, Any]]
"""(label, policy, params); the policy `stock` is vLLM without the hook."""


class BenchStepper(Stepper):
    """A stepper that knows the variants, and prompts of which no two are equal."""

    def __init__(self, engine: Engine) -> None:
        super().__init__(engine)
        self._prompts = itertools.count()

    def prompts(self, requests: int, tokens: int) -> list[list[int]]:
        numbers = itertools.islice(self._prompts, requests)
        return [[(7 * number + 3 * i) % VOCABULARY for i in range(tokens)] for number in numbers]

    def decoding_batch(self, batch: int, steps: int) -> AbstractContextManager[None]:
        return self.decoding(self.prompts(batch, PROMPT), steps=steps)

    def prefill(self) -> float:
        """Seconds of a prefill of PREFILL tokens."""
        self.add(self.prompts(1, PREFILL), max_tokens=1)
        return self.step()

    def set(self, variant: Variant) -> None:
        _, policy, params = variant
        self.engine.call("banpick_hook", policy != "stock")
        self.engine.set_policy("none" if policy == "stock" else policy, params, "random" if "ban" in policy else "")


def solved_lambda(stepper: BenchStepper, policy: str, params: dict[str, Any], target: float) -> dict[str, Any]:
    """The knobs with the lambda at which the decode of a batch of 32 measures `target` experts kept, or nearest to."""

    def mean_kept(value: float) -> float:
        stepper.set(("", policy, params | {"lambda": value}))
        stepper.engine.counters(reset=True)
        for _ in range(PROBE_STEPS):
            stepper.step()
        return stepper.engine.counters(reset=True).mean_kept

    with stepper.decoding_batch(32, PROBE_STEPS * (MAX_PROBES + 2)):
        solved = solve(mean_kept, LAMBDA, target, tolerance=PROBE_TOLERANCE, nearest=True)
    return params | {"lambda": solved.value}


def measure(stepper: BenchStepper, variants: Sequence[Variant], rounds: int, timed: Callable[[], float]) -> list[Row]:
    """One row a variant: milliseconds, speed-up over stock with quartiles, and the measured mean kept."""
    seconds: dict[str, list[float]] = {label: [] for label, _, _ in variants}
    kept: dict[str, list[float]] = {label: [] for label, _, _ in variants}
    for turn in range(-1, rounds):  # the first round warms up
        start = turn % len(variants)
        for variant in [*variants[start:], *variants[:start]]:
            stepper.set(variant)
            stepper.engine.counters(reset=True)
            took = timed()
            if turn >= 0:
                seconds[variant[0]].append(took)
                kept[variant[0]].append(stepper.engine.counters(reset=True).mean_kept)
    rows: list[Row] = []
    for label, policy, params in variants:
        ratio = ratios(seconds["stock"], seconds[label])
        rows.append(
            {
                "variant": label,
                "policy": policy,
                "params": params,
                "rounds": rounds,
                "milliseconds": 1e3 * statistics.median(seconds[label]),
                "speedup": ratio["ratio"],
                "speedup_q1": ratio["ratio_q1"],
                "speedup_q3": ratio["ratio_q3"],
                "mean_kept": None if policy == "stock" else statistics.mean(kept[label]),
            }
        )
    matched, fixed = f"ban at {FIXED_K}", f"fixed_k {FIXED_K}"
    row = next(row for row in rows if row["variant"] == matched)
    row["over_fixed_k"] = ratios(seconds[fixed], seconds[matched])["ratio"]
    return rows


def variants_of(stepper: BenchStepper, mean_kept: float) -> list[Variant]:
    ban, ban_pick = {"k_min": K_MIN}, {"k_min": K_MIN, **BAN_PICK}
    return [
        ("stock", "stock", {}),
        ("none", "none", {}),
        (f"fixed_k {FIXED_K}", "fixed_k", {"k": FIXED_K}),
        (f"ban at {mean_kept:g}", "ban", solved_lambda(stepper, "ban", ban, mean_kept)),
        (f"ban at {FIXED_K}", "ban", solved_lambda(stepper, "ban", ban, FIXED_K)),
        (f"ban_pick at {mean_kept:g}", "ban_pick", solved_lambda(stepper, "ban_pick", ban_pick, mean_kept)),
    ]


@contextmanager
def random_stepper(layers: int, threads: int) -> Iterator[BenchStepper]:
    """A started engine of random layers, closed at the end."""
    with tempfile.TemporaryDirectory() as folder:
        print(f"Building {layers} random layers of 1.2 GB and an engine around them.", file=sys.stderr)
        engine = open_engine(Path(folder), layers, threads, PREFILL)
        yield BenchStepper(engine)
        engine.close()


def bench_engine(
    batches: Sequence[int], rounds: int, mean_kept: float, threads: int, layers: int, output: Path | None
) -> list[Row]:
    """Decode at each batch size, then a prefill of 2,048 tokens: one row a cell and variant."""
    rows: list[Row] = []
    with random_stepper(layers, threads) as stepper:
        variants = variants_of(stepper, mean_kept)
        for batch in batches:
            with stepper.decoding_batch(batch, (rounds + 1) * len(variants)):
                _collect(rows, measure(stepper, variants, rounds, stepper.step), "decode", batch, threads, output)
        _collect(
            rows, measure(stepper, variants, max(2, rounds // 3), stepper.prefill), "prefill", PREFILL, threads, output
        )
    columns = [("phase", ""), ("batch", "d"), ("variant", ""), ("mean_kept", ".2f"), ("milliseconds", ".1f")]
    columns += [("speedup", ".3f"), ("speedup_q1", ".3f"), ("speedup_q3", ".3f"), ("over_fixed_k", ".3f")]
    print_table(f"{layers} layers of Qwen3-30B's shape, {threads} threads: speed-up over stock vLLM", rows, columns)
    return rows


def _collect(rows: list[Row], found: list[Row], phase: str, batch: int, threads: int, output: Path | None) -> None:
    for row in found:
        rows.append({"bench": "engine", "phase": phase, "batch": batch, "threads": threads, **row})
        emit(rows[-1], output)
