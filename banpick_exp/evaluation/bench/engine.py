"""Decode and prefill of a random-weight engine under several policies, step by step in turn on the same batch.

A swap takes milliseconds, so the policies alternate between the steps of one running batch: every variant meets the
same context, the same cache and the same minute of a shared machine. `stock` is vLLM with the hook taken off.
"""

from __future__ import annotations

import gc
import itertools
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from banpick_exp.engine.engine import Engine
from banpick_exp.engine.stepping import Stepper
from banpick_exp.evaluation.bench.layer import FIXED_K, MEAN_KEPT, BenchDtype, native_dtype
from banpick_exp.evaluation.bench.random_engine import VOCABULARY, config, open_engine
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
DECODE_AIMS = {1: 1.20, 8: 1.30, 32: 1.25}
"""Speed-up of Ban at MEAN_KEPT over stock by batch, in the dtype that the machine computes natively."""
NEUTRAL_AIM = 0.98
"""What `none` keeps of stock's speed, in the native dtype."""
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

    def decoding_batch(self, batch: int, steps: int, rows: Sequence[int] | None = None) -> AbstractContextManager[None]:
        return self.decoding(self.prompts(batch, PROMPT), steps=steps, rows=rows)

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


@dataclass(frozen=True, slots=True)
class Sample:
    """One timed step."""

    seconds: float
    cpu_seconds: float
    """Of all threads of this process: what other programs take does not count here."""
    mean_kept: float


def measure(stepper: BenchStepper, variants: Sequence[Variant], rounds: int, timed: Callable[[], float]) -> list[Row]:
    """One row a variant: milliseconds, speed-up over stock with quartiles and in CPU time, and the mean kept."""
    samples: dict[str, list[Sample]] = {label: [] for label, _, _ in variants}
    for turn in range(-1, rounds):  # the first round warms up
        start = turn % len(variants)
        for variant in [*variants[start:], *variants[:start]]:
            stepper.set(variant)
            stepper.engine.counters(reset=True)
            begin = time.process_time()
            took = timed()
            cpu = time.process_time() - begin
            if turn >= 0:
                samples[variant[0]].append(Sample(took, cpu, stepper.engine.counters(reset=True).mean_kept))
    seconds = {label: [sample.seconds for sample in found] for label, found in samples.items()}
    cpu_seconds = {label: [sample.cpu_seconds for sample in found] for label, found in samples.items()}
    rows: list[Row] = []
    for label, policy, params in variants:
        row: Row = {"variant": label, "policy": policy, "params": params, "rounds": rounds}
        row |= {"milliseconds": 1e3 * statistics.median(seconds[label])}
        wall = ratios(seconds["stock"], seconds[label])
        row |= {name.replace("ratio", "speedup"): value for name, value in wall.items()}
        row |= {"cpu_speedup": ratios(cpu_seconds["stock"], cpu_seconds[label])["ratio"]}
        kept = statistics.mean(sample.mean_kept for sample in samples[label])
        rows.append(row | {"mean_kept": None if policy == "stock" else kept})
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
def random_stepper(layers: int, threads: int, dtype: BenchDtype, rows: int = 1) -> Iterator[BenchStepper]:
    """A started engine of random layers that holds up to `rows` policies, gone at the end: the next one may need its
    memory."""
    with tempfile.TemporaryDirectory() as folder:
        print(f"Building {layers} random layers in {dtype} and an engine around them.", file=sys.stderr)
        engine = open_engine(Path(folder), config(layers), dtype, threads, PREFILL, rows)
        try:
            yield BenchStepper(engine)
        finally:
            engine.close()
            gc.collect()


def bench_engine(
    batches: Sequence[int],
    rounds: int,
    mean_kept: float,
    threads: int,
    dtypes: Sequence[BenchDtype],
    layers: int,
    output: Path | None,
) -> list[Row]:
    """In each dtype decode at each batch size, then a prefill of 2,048 tokens: one row a cell and variant."""
    rows: list[Row] = []
    for dtype in dtypes:
        for found in _cells(batches, rounds, mean_kept, threads, dtype, layers):
            rows.append(found)
            emit(found, output)
    columns = [("dtype", ""), ("phase", ""), ("batch", "d"), ("variant", ""), ("mean_kept", ".2f")]
    columns += [("milliseconds", ".1f"), ("speedup", ".3f"), ("speedup_q1", ".3f"), ("speedup_q3", ".3f")]
    columns += [("cpu_speedup", ".3f"), ("aim", ".2f"), ("over_fixed_k", ".3f")]
    native = native_dtype()
    print_table(
        f"{layers} layers of Qwen3-30B's shape, {threads} threads: speed-up over stock vLLM in the same dtype.\n"
        f"The aims hold in {native.dtype}: {native.reason}.",
        rows,
        columns,
    )
    return rows


def _cells(
    batches: Sequence[int], rounds: int, mean_kept: float, threads: int, dtype: BenchDtype, layers: int
) -> Iterator[Row]:
    """The rows of one engine."""
    native = native_dtype().dtype == dtype
    with random_stepper(layers, threads, dtype) as stepper:
        variants = variants_of(stepper, mean_kept)
        about: Row = {"bench": "engine", "dtype": dtype, "native": native, "threads": threads}
        for batch in batches:
            with stepper.decoding_batch(batch, (rounds + 1) * len(variants)):
                for row in measure(stepper, variants, rounds, stepper.step):
                    aim = aim_of(row, batch, mean_kept) if native else None
                    yield {**about, "phase": "decode", "batch": batch, **row, "aim": aim}
        for row in measure(stepper, variants, max(2, rounds // 5), stepper.prefill):
            yield {**about, "phase": "prefill", "batch": PREFILL, **row, "aim": None}


def aim_of(row: Row, batch: int, mean_kept: float) -> float | None:
    """The speed-up over stock that this row of a decode is held against; None where none was set."""
    if row["policy"] == "none":
        return NEUTRAL_AIM
    matched = row["variant"] == f"ban at {MEAN_KEPT:g}" and mean_kept == MEAN_KEPT
    return DECODE_AIMS.get(batch) if matched else None
