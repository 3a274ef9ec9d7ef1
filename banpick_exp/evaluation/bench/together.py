"""When it pays to have several policies in one batch: the embedded model asked the same problems one policy after the
other, and all policies at once (`evaluation.together`), in turn in one process.

What is timed is all that a sweep does for it: the swap, the answers, the grades, the counters. Which answers come is
not compared here: tests hold them token for token against runs alone (tests/engine/test_rows.py).
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import median

import numpy as np

from banpick_exp.analysis.intervals import median_interval
from banpick_exp.engine.config import AUTO_ROWS, EngineConfig
from banpick_exp.engine.engine import Engine
from banpick_exp.evaluation.answer import DomainPolicy, answer_problems
from banpick_exp.evaluation.bench.timing import Row, alternate, emit, print_table
from banpick_exp.evaluation.controls import tiny_shape, tiny_task
from banpick_exp.evaluation.together import GAIN, answer_together
from banpick_exp.models.config import ModelConfig
from banpick_exp.models.tiny import ASSETS, DOMAINS
from banpick_exp.policy import parse_policy
from banpick_exp.tasks.load import load_problems

POLICIES = (4, AUTO_ROWS)
"""Policies in one batch."""
MAX_NUM_SEQS = (64, 256)
"""Sequences that the engine batches at most."""
MOST_REQUESTS = 2000
"""Of a batch: with more of them the batch is full whoever is in it, and a round takes a minute."""


def bench_together(
    sizes: Sequence[int], rounds: int, threads: int, output: Path | None, batches: Sequence[int] = MAX_NUM_SEQS
) -> list[Row]:
    """A row for each width of the engine, number of problems (`sizes`) and of policies: seconds a policy alone and
    together, and the median of their ratio round by round with its 95 % interval."""
    rows: list[Row] = []
    for width in batches:
        settings = EngineConfig(cpus=threads, max_num_seqs=width, kv_cache_blocks=3 * width)
        folder, layers = str(ASSETS / "checkpoint"), tiny_shape().num_layers
        engine = Engine(ModelConfig(name="tiny"), folder, settings, layers, rows=AUTO_ROWS)
        engine.start()
        try:
            engine.verify()
            for problems in sizes:
                for policies in (each for each in POLICIES if problems * each <= MOST_REQUESTS):
                    row = {"bench": "together", "threads": threads, "max_num_seqs": width}
                    rows.append({**row, **_timed(engine, problems, policies, rounds)})
                    emit(rows[-1], output)
        finally:
            engine.close()
    columns = [("max_num_seqs", "d"), ("problems", "d"), ("policies", "d"), ("alone_ms", ".0f"), ("together_ms", ".0f")]
    columns += [("ratio", ".2f"), ("ratio_low", ".2f"), ("ratio_high", ".2f"), ("pays", "")]
    print_table(
        f"The embedded model, {threads} thread(s): milliseconds a policy takes to answer so many problems alone and\n"
        "in one batch with others; medians, the ratio with its 95 % interval.",
        rows,
        columns,
    )
    print(f"Pays: together takes at most {GAIN:g} of the time (engine.policies_per_batch=auto).", file=sys.stderr)
    return rows


def _timed(engine: Engine, count: int, many: int, rounds: int) -> Row:
    """`count` problems, of all domains, under so many policies: fixed_k from k=1 to 8 in even steps."""
    task = tiny_task(*DOMAINS)
    each = -(-count // len(DOMAINS))
    loaded = load_problems(task, task.split, each)
    flat = [problem for turn in range(each) for items in loaded.values() for problem in items[turn : turn + 1]]
    problems = {domain: [each for each in flat[:count] if each.domain == domain] for domain in DOMAINS}
    problems = {domain: items for domain, items in problems.items() if items}
    ks = np.linspace(1, tiny_shape().top_k, many).round(2)
    of_policies = [
        dict.fromkeys(
            problems, DomainPolicy(rule=parse_policy("fixed_k", {"k": float(k)}), calibration_key="", calibration=None)
        )
        for k in ks
    ]

    def alone() -> None:
        for policies in of_policies:
            answer_problems(engine, policies, task, problems)

    def together() -> None:
        answer_together(engine, of_policies, task, problems, seed=0)

    seconds = alternate({"alone": alone, "together": together}, rounds)
    middle, low, high = median_interval(np.divide(seconds["together"], seconds["alone"]))
    milliseconds = {f"{name}_ms": 1e3 * median(values) / many for name, values in seconds.items()}
    found: Row = {"problems": count, "policies": many, "rounds": rounds, **milliseconds}
    pays = "yes" if middle <= GAIN and high < 1 else "no"
    return {**found, "ratio": middle, "ratio_low": low, "ratio_high": high, "pays": pays}
