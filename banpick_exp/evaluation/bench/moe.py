"""One MoE layer of Qwen3-30B's shape on CPU: stock, dup, ours and fixed_k in turn, beside the bound.

bound = max(kept pairs / all pairs, experts read by kept pairs / experts read by all): a layer is limited by arithmetic
or by reading weights, whichever shrinks less.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from banpick_exp.evaluation.bench.layer import EXPERTS, FIXED_K, HIDDEN, INTERMEDIATE, TOP_K, BenchDtype
from banpick_exp.evaluation.bench.routing import Routed, ban_table, routed_tokens
from banpick_exp.evaluation.bench.timing import Row, alternate, emit, print_table, ratios
from banpick_kernels.cpu_dispatch import run_kept

if TYPE_CHECKING:
    from banpick_exp.engine.plugin.standalone import BareExperts

SIZES = (1, 4, 16, 64, 256, 1024)


def bench_moe(
    sizes: Sequence[int],
    rounds: int,
    mean_kept: float,
    threads: int,
    dtypes: Sequence[BenchDtype],
    output: Path | None,
) -> list[Row]:
    """A row for each dtype, size and variant: its time over stock's, and for ours its largest difference to dup."""
    from banpick_exp.engine.plugin.standalone import BareExperts

    torch.set_num_threads(threads)
    table = ban_table(EXPERTS, TOP_K, mean_kept)
    rows = []
    for dtype in dtypes:
        experts = BareExperts(EXPERTS, HIDDEN, INTERMEDIATE, getattr(torch, dtype))
        for tokens in sizes:
            routed = routed_tokens(tokens, table, TOP_K, mean_kept, FIXED_K)
            for found in _measure(experts, dtype, tokens, routed, rounds):
                rows.append({"bench": "moe", "dtype": dtype, "tokens": tokens, "threads": threads, **found})
                emit(rows[-1], output)
        del experts  # before the next are made: either takes gigabytes
    columns = [("dtype", ""), ("tokens", "d"), ("variant", ""), ("mean_kept", ".2f"), ("milliseconds", ".2f")]
    columns += [("ratio", ".3f"), ("ratio_q1", ".3f"), ("ratio_q3", ".3f"), ("bound", ".3f"), ("over_bound", ".3f")]
    columns += [("error", ".1e")]
    title = f"One layer, {EXPERTS} experts, top {TOP_K}, hidden {HIDDEN}, intermediate {INTERMEDIATE}: time over stock"
    print_table(title, rows, columns)
    return rows


def _measure(experts: BareExperts, dtype: BenchDtype, tokens: int, routed: Routed, rounds: int) -> Iterator[Row]:
    hidden = torch.randn(tokens, HIDDEN, generator=torch.Generator().manual_seed(tokens)).to(getattr(torch, dtype))
    outputs = {name: torch.empty_like(hidden) for name in ("stock", "dup", "ours", "ours_all_kept", "fixed_k")}

    def ours(output: Tensor, weights: Tensor, ids: Tensor) -> None:
        run_kept(output, hidden, weights, ids, experts.run, experts.expert_numbers)

    variants = {
        "stock": partial(experts.run, outputs["stock"], hidden, *routed.stock),
        "dup": partial(experts.run, outputs["dup"], hidden, *routed.banned),
        "ours": partial(ours, outputs["ours"], *routed.banned),
        "ours_all_kept": partial(ours, outputs["ours_all_kept"], *routed.stock),
        "fixed_k": partial(experts.run, outputs["fixed_k"], hidden, *routed.fixed),
    }
    seconds = alternate(variants, rounds)
    scale = float(outputs["dup"].float().abs().max())
    for name in variants:
        mine = routed.mean_kept if name in ("dup", "ours") else FIXED_K if name == "fixed_k" else TOP_K
        row: Row = {"variant": name, "mean_kept": float(mine), "rounds": rounds, "isa": experts.isa}
        row |= {"milliseconds": 1e3 * statistics.median(seconds[name]), **ratios(seconds[name], seconds["stock"])}
        if name == "ours":
            error = (outputs["ours"].float() - outputs["dup"].float()).abs().max()
            row |= {"bound": routed.bound, "over_bound": row["ratio"] / routed.bound, "error": float(error) / scale}
        yield row
