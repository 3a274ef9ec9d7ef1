"""Where the time of a decode step goes: torch's profiler over a few steps, operators sorted into parts of the model."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from banpick_exp.evaluation.bench.engine import random_stepper, variants_of
from banpick_exp.evaluation.bench.timing import Row, emit, print_table

PARTS = (
    ("experts", ("cpu_fused_moe",)),
    ("attention", ("cpu_attention", "reshape_and_cache", "unified_attention", "rotary")),
    ("linear layers", ("mm", "linear", "onednn", "gemm", "matmul")),
    ("sampling", ("argmax", "softmax", "sort", "topk")),
)
"""Part, and what the names of its operators contain; the first that fits. The router's own top-k counts as sampling."""


def bench_profile(
    batches: Sequence[int], rounds: int, mean_kept: float, threads: int, layers: int, output: Path | None
) -> list[Row]:
    """Per batch and policy, the share of a step's wall time of each part; `python` is what no operator covers."""
    from torch.profiler import ProfilerActivity, profile

    rows: list[Row] = []
    with random_stepper(layers, threads) as stepper:
        chosen = [v for v in variants_of(stepper, mean_kept) if v[0] in ("stock", f"ban at {mean_kept:g}")]
        for batch in batches:
            with stepper.decoding_batch(batch, 2 * len(chosen) * (rounds + 1)):
                for variant in chosen:
                    stepper.set(variant)
                    stepper.step()
                    with profile(activities=[ProfilerActivity.CPU]) as profiler:
                        wall = sum(stepper.step() for _ in range(rounds))
                    spent: dict[str, float] = defaultdict(float)
                    for event in profiler.key_averages():
                        spent[_part(event.key)] += event.self_cpu_time_total / 1e6
                    spent["python and the rest"] = max(0.0, wall - sum(spent.values()))
                    row: Row = {"bench": "profile", "batch": batch, "variant": variant[0], "threads": threads}
                    row |= {"milliseconds": 1e3 * wall / rounds}
                    rows.append(row | {part: seconds / wall for part, seconds in spent.items()})
                    emit(rows[-1], output)
    parts = [*(name for name, _ in PARTS), "other operators", "python and the rest"]
    columns = [("batch", "d"), ("variant", ""), ("milliseconds", ".1f"), *((part, ".1%") for part in parts)]
    print_table(f"Shares of a decode step, {layers} layers of Qwen3-30B's shape", rows, columns)
    return rows


def _part(operator: str) -> str:
    name = operator.lower()
    return next((part for part, words in PARTS if any(word in name for word in words)), "other operators")
