"""Where the time of a decode step goes: torch's profiler over a few steps, operators sorted into parts of the model."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

from banpick_exp.evaluation.bench.engine import BenchStepper, Variant, random_stepper, variants_of
from banpick_exp.evaluation.bench.layer import FIXED_K, TOP_K, BenchDtype
from banpick_exp.evaluation.bench.timing import Row, emit, print_table

PARTS = (
    ("experts", ("cpu_fused_moe",)),
    ("attention", ("cpu_attention", "reshape_and_cache", "unified_attention", "rotary")),
    ("linear layers", ("mm", "linear", "onednn", "gemm", "matmul")),
    ("sampling", ("argmax", "softmax", "sort", "topk")),
)
"""Part, and what the names of its operators contain; the first that fits. The router's own top-k counts as sampling."""
OTHERS, PYTHON = "other operators", "python and the rest"
Spent = Mapping[str, float]
"""Seconds of each part; PYTHON is what no operator covers, so they add up to the steps' time."""


def bench_profile(
    batches: Sequence[int],
    rounds: int,
    mean_kept: float,
    threads: int,
    dtypes: Sequence[BenchDtype],
    layers: int,
    output: Path | None,
) -> list[Row]:
    """Per dtype, batch and policy: milliseconds of a step, the share of each part, and what the experts alone save."""
    rows: list[Row] = []
    for dtype in dtypes:
        with random_stepper(layers, threads, dtype) as stepper:
            shown = ("stock", "none", f"fixed_k {FIXED_K}", f"ban at {mean_kept:g}")
            variants = [variant for variant in variants_of(stepper, mean_kept) if variant[0] in shown]
            for batch in batches:
                with stepper.decoding_batch(batch, len(variants) * (rounds + 1)):
                    spent, kept = _profiled(stepper, variants, rounds)
                for label, parts in spent.items():
                    step = sum(parts.values())
                    row: Row = {"bench": "profile", "dtype": dtype, "batch": batch, "variant": label}
                    row |= {"threads": threads, "rounds": rounds, "milliseconds": 1e3 * step / rounds}
                    row |= {"mean_kept": kept[label]} | {part: seconds / step for part, seconds in parts.items()}
                    rows.append(row | ceilings(parts, spent["stock"], kept[label]))
                    emit(rows[-1], output)
    names = [*(name for name, _ in PARTS), OTHERS, PYTHON]
    columns = [("dtype", ""), ("batch", "d"), ("variant", ""), ("milliseconds", ".1f")]
    columns += [
        *((name, ".1%") for name in names),
        ("speedup", ".3f"),
        ("experts_alone", ".3f"),
        ("in_proportion", ".3f"),
    ]
    print_table(
        f"Shares of a decode step, {layers} layers of Qwen3-30B's shape. experts_alone: the speed-up over stock had"
        " nothing but the experts' time changed;\nin_proportion: had it shrunk as the kept slots did",
        rows,
        columns,
    )
    return rows


def _profiled(
    stepper: BenchStepper, variants: Sequence[Variant], rounds: int
) -> tuple[dict[str, Spent], dict[str, float]]:
    """Seconds by label and part over `rounds` steps each, policies in turn, and the mean kept; one round warms up."""
    from torch.profiler import ProfilerActivity, profile

    spent: dict[str, dict[str, float]] = {label: defaultdict(float) for label, _, _ in variants}
    kept: dict[str, float] = {label: float(TOP_K) for label, _, _ in variants}
    for turn in range(-1, rounds):
        for variant in variants:
            stepper.set(variant)
            stepper.engine.counters(reset=True)
            with profile(activities=[ProfilerActivity.CPU]) as profiler:
                wall = stepper.step()
            if turn < 0:
                continue
            events, seconds = profiler.key_averages(), spent[variant[0]]
            for event in events:
                seconds[_part(event.key)] += event.self_cpu_time_total / 1e6
            seconds[PYTHON] += max(0.0, wall - sum(event.self_cpu_time_total for event in events) / 1e6)
            if variant[1] != "stock":  # its hook is off, and counts nothing
                kept[variant[0]] += (stepper.engine.counters(reset=True).mean_kept - TOP_K) / rounds
    return dict(spent), kept


def ceilings(spent: Spent, stock: Spent, mean_kept: float) -> dict[str, float]:
    """Speed-up over stock: as measured, had only the experts changed, and had they shrunk as the kept slots did."""
    whole = sum(stock.values())
    rest = whole - stock["experts"]
    return {
        "speedup": whole / sum(spent.values()),
        "experts_alone": whole / (rest + spent["experts"]),
        "in_proportion": whole / (rest + stock["experts"] * mean_kept / TOP_K),
    }


def _part(operator: str) -> str:
    name = operator.lower()
    return next((part for part, words in PARTS if any(word in name for word in words)), OTHERS)
