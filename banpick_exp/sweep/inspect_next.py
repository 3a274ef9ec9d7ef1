"""What to type next for a checkpoint that `inspect` has looked at: fetch a task, price it, ask the engine, run."""

from __future__ import annotations

import shlex

from banpick_exp.sweep.compose import Composer, choices
from banpick_exp.sweep.inspection import Inspection
from banpick_exp.sweep.suited_task import suggested
from banpick_exp.tasks.registry import BENCHMARKS


def fetches(found: Inspection) -> list[str]:
    """What must be had once before the task that suits the model can be asked; empty where nothing must."""
    names = [word.removeprefix("task=") for word in _task(found) if word.startswith("task=")]
    known = [name for name in names if name in BENCHMARKS and BENCHMARKS[name].source is not None]
    return [f"python -m banpick_exp tasks fetch {name}" for name in known]


def commands(found: Inspection) -> tuple[str, str, str]:
    """Plan and price, ask the engine, run."""
    words = [shlex.quote(word) for word in (found.typed, *found.engine_typed.split(), *_task(found))]
    verifying = [shlex.quote(word) for word in (found.typed, *found.engine_typed.split())]
    line = " ".join(["python -m banpick_exp", "policy=fixed_k 'policy.k=range(1,K)'", *words])
    if found.shape.top_k == 1:
        line = " ".join(["python -m banpick_exp", "policy=mask 'policy.experts={0: [0]}'", *words])
    verify = " ".join(["python -m banpick_exp verify", *verifying])
    return f"{line} dry_run=true", verify, line


def _task(found: Inspection) -> tuple[str, ...]:
    """Problems that suit the model: the embedded one has its own, a real one is asked a benchmark or your own."""
    if not found.engine.gpus:
        return ()
    chosen = {"model": found.name} if found.name in choices("model") else {"model.path": found.location}
    if suited := suggested(Composer().setting(chosen).model):
        return (f"task={suited[0]}",)
    return (
        "task=jsonl",
        "task.domains=[math]",
        'task.data_files="data/{domain}_{split}.jsonl"',
        "task.max_tokens=2048",
    )
