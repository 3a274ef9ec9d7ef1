"""What it costs to hold several policies at once: a random-weight engine that decodes one batch, step by step in turn.

Requests of the batch name rows 0 to 15 in turn. `one policy` takes the rows out of the engine: the path of an engine
that holds one. `row 0 of 16` follows the requests and finds them all of row 0. `16 rows` holds the same policy in every
row, so that the experts have the same work and what differs is the routing; `16 rows, 4 policies` holds four policies
in turn and is compared with the mean of the four alone.
"""

from __future__ import annotations

import itertools
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import numpy as np

from banpick_exp.analysis.intervals import median_interval
from banpick_exp.engine.engine import PolicyOfRow
from banpick_exp.evaluation.bench.engine import BenchStepper, random_stepper
from banpick_exp.evaluation.bench.layer import BenchDtype, native_dtype
from banpick_exp.evaluation.bench.timing import Row, emit, print_table

ROWS = 16
ALIKE_AIM, MIXED_AIM = 1.01, 1.05
"""Time of `row 0 of 16` over one policy, and of 16 rows over one."""
RANDOM = "random"
"""The calibration of a random engine."""
POLICIES: dict[str, PolicyOfRow] = {
    "none": ("none", {}),
    "fixed_k 5": ("fixed_k", {"k": 5}),
    "ban": ("ban", {"k_min": 3, "lambda": 0.9}, RANDOM),
    "ban_pick": ("ban_pick", {"k_min": 3, "lambda": 0.9, "mode": "range_add", "key_experts": 4}, RANDOM),
}
TIMED = ("none", "ban")
"""Policies of which every row may hold the same."""


@dataclass(frozen=True, slots=True)
class Variant:
    label: str
    follows: str
    """`off`, `first` or `own`: what `BenchExtension.banpick_rows` is told."""
    policies: tuple[PolicyOfRow, ...]


def variants() -> list[Variant]:
    found = []
    for name in POLICIES:
        # In every row, though one is read: a swap of fewer would leave caches and garbage of another size behind.
        found.append(Variant(f"one policy, {name}", "off", (POLICIES[name],) * ROWS))
    for name in TIMED:
        found.append(Variant(f"row 0 of 16, {name}", "first", (POLICIES[name],) * ROWS))
        found.append(Variant(f"16 rows, {name}", "own", (POLICIES[name],) * ROWS))
    four = tuple(itertools.islice(itertools.cycle(POLICIES.values()), ROWS))
    return [*found, Variant("16 rows, 4 policies", "own", four)]


def measure(stepper: BenchStepper, rounds: int) -> list[Row]:
    """One row a variant that follows requests: its time over the same policy held alone, wall and CPU.

    Medians of the ratios round by round, and their 95 % intervals (`median_interval`).
    """
    asked = variants()
    wall: dict[str, list[float]] = {each.label: [] for each in asked}
    cpu: dict[str, list[float]] = {each.label: [] for each in asked}
    for turn in range(-1, rounds):  # the first round warms up
        start = turn % len(asked)
        for each in [*asked[start:], *asked[:start]]:
            stepper.engine.call("banpick_rows", each.follows)
            stepper.engine.set_policies(each.policies)
            begin = time.process_time()
            took = stepper.step()
            spent = time.process_time() - begin
            if turn >= 0:
                wall[each.label].append(took)
                cpu[each.label].append(spent)
    rows: list[Row] = []
    for each in asked:
        if each.follows == "off":
            continue
        names = [name for name in TIMED if each.label.endswith(f", {name}")] or list(POLICIES)
        row: Row = {"variant": each.label, "rounds": rounds, "milliseconds": 1e3 * median(wall[each.label])}
        row["aim"] = ALIKE_AIM if each.follows == "first" else MIXED_AIM
        for clock, seconds in (("wall", wall), ("cpu", cpu)):
            alone = np.mean([seconds[f"one policy, {name}"] for name in names], axis=0)
            middle, low, high = median_interval(np.array(seconds[each.label]) / alone)
            row |= {clock: middle, f"{clock}_low": low, f"{clock}_high": high}
        rows.append(row)
    return rows


def bench_rows(
    batches: Sequence[int], rounds: int, threads: int, dtypes: Sequence[BenchDtype], layers: int, output: Path | None
) -> list[Row]:
    """In each dtype decode at each batch size: one row a cell and variant."""
    rows: list[Row] = []
    for dtype in dtypes:
        with random_stepper(layers, threads, dtype, rows=ROWS) as stepper:
            about: Row = {"bench": "rows", "dtype": dtype, "native": native_dtype().dtype == dtype, "threads": threads}
            stepper.engine.set_policies([POLICIES["none"]] * ROWS)
            for batch in batches:
                steps = (rounds + 1) * len(variants())
                with stepper.decoding_batch(batch, steps, rows=[number % ROWS for number in range(batch)]):
                    for row in measure(stepper, rounds):
                        rows.append({**about, "batch": batch, **row})
                        emit(rows[-1], output)
    columns = [("dtype", ""), ("batch", "d"), ("variant", ""), ("milliseconds", ".1f"), ("wall", ".3f")]
    columns += [(f"{clock}{end}", ".3f") for clock, end in (("wall", "_low"), ("wall", "_high"))]
    columns += [("cpu", ".3f"), ("cpu_low", ".3f"), ("cpu_high", ".3f"), ("aim", ".2f")]
    print_table(
        f"{layers} layers of Qwen3-30B's shape, {threads} threads: time of a decode step over the same policy in an\n"
        f"engine that holds one, {ROWS} policies being held (medians and their 95 % intervals).",
        rows,
        columns,
    )
    print("Answers of such steps are nobody's: rows change within a request. Quality needs a run.", file=sys.stderr)
    return rows
