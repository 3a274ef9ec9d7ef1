"""A point answered in blocks of problems, each block one file of the run folder: complete, or absent.

A point is done when its blocks cover every problem once. Their answers and counters are then those of one run, but for
what batching moves: a block meets fewer requests than the whole, so some greedy answers differ (docs/search.md).
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from banpick_exp.engine.engine import Engine
from banpick_exp.engine.types import Counters
from banpick_exp.evaluation.answer import DomainPolicy, DomainRun, answer_problems
from banpick_exp.sweep.config import SearchConfig
from banpick_exp.sweep.point import Point
from banpick_exp.sweep.search.elimination import block_indices
from banpick_exp.tasks.problem import Problem

FOLDER = "blocks"


@dataclass(frozen=True, kw_only=True, slots=True)
class Block:
    """The answers of one point to some problems of each domain."""

    runs: dict[str, DomainRun]
    rules: dict[str, Any]
    """Per domain, the canonical form of the rule that was on."""
    seconds: float
    swap_seconds: float


def answer_block(
    engine: Engine,
    policies: Mapping[str, DomainPolicy],
    point: Point,
    problems: Mapping[str, list[Problem]],
    search: SearchConfig,
    number: int,
    run_dir: Path,
) -> dict[str, float]:
    """Answer block `number` of the point and write its file, unless it is there. Returns the seconds spent now."""
    if read_block(run_dir, point.fingerprint, search, number) is not None:
        return {"seconds": 0.0}
    asked = {}
    for domain, items in problems.items():
        indices = block_indices(len(items), search.blocks, number, domain, search.seed)
        if indices:
            asked[domain] = [items[index] for index in indices]
    begin = time.perf_counter()
    runs, swap = answer_problems(engine, policies, point.task, asked, seed=point.seed, repeat=point.repeat)
    seconds = time.perf_counter() - begin
    _write(run_dir, point.fingerprint, number, {
        **_header(search, number),
        "policy": _rules(policies),
        "seconds": seconds,
        "swap_seconds": swap,
        "domains": {d: {"outcomes": run.outcomes, "counters": _plain(run.counters)} for d, run in runs.items()},
    })  # fmt: skip
    return {"seconds": seconds}


def read_block(run_dir: Path, fingerprint: str, search: SearchConfig, number: int) -> Block | None:
    """One block of a point, or None where it is not there, not whole, or was cut under other settings."""
    try:
        found = json.loads(block_path(run_dir, fingerprint, number).read_bytes())
        if any(found[key] != value for key, value in _header(search, number).items()):
            return None
        runs = {d: DomainRun(part["outcomes"], Counters(**part["counters"])) for d, part in found["domains"].items()}
        return Block(runs=runs, rules=found["policy"], seconds=found["seconds"], swap_seconds=found["swap_seconds"])
    except (FileNotFoundError, ValueError, KeyError, TypeError):  # a file that is no block is answered again
        return None


def read_blocks(run_dir: Path, fingerprint: str, search: SearchConfig, count: int) -> Block | None:
    """The first `count` blocks of a point as one, or None where one of them is missing."""
    found = [read_block(run_dir, fingerprint, search, number) for number in range(count)]
    present = [block for block in found if block is not None]
    if not present or len(present) < count or any(block.rules != present[0].rules for block in present):
        return None
    return joined(present)


def whole(
    run_dir: Path,
    fingerprint: str,
    policies: Mapping[str, DomainPolicy],
    search: SearchConfig | None,
    problems: Mapping[str, Sequence[Problem]],
) -> Block | None:
    """All blocks of a point as one, in the order of `problems`.

    None unless each problem was answered in them, under just these policies.
    """
    if search is None or search.name != "racing":
        return None
    found = read_blocks(run_dir, fingerprint, search, len(search.blocks))
    if found is None or found.rules != _rules(policies):
        return None
    for domain, items in problems.items():
        place = {problem.problem_id: index for index, problem in enumerate(items)}
        run = found.runs.get(domain)
        if run is None or {outcome["problem_id"] for outcome in run.outcomes} != set(place):
            return None
        run.outcomes.sort(key=lambda outcome: place[outcome["problem_id"]])
    return found


def joined(found: Sequence[Block]) -> Block:
    """Answers one after the other, counters added up."""
    names = dict.fromkeys(domain for block in found for domain in block.runs)
    runs = {}
    for domain in names:
        parts = [block.runs[domain] for block in found if domain in block.runs]
        outcomes = [outcome for part in parts for outcome in part.outcomes]
        runs[domain] = DomainRun(outcomes, _added([part.counters for part in parts]))
    return Block(
        runs=runs,
        rules=found[0].rules,
        seconds=sum(block.seconds for block in found),
        swap_seconds=max(block.swap_seconds for block in found),
    )


def block_path(run_dir: Path, fingerprint: str, number: int) -> Path:
    return Path(run_dir) / FOLDER / f"{fingerprint}.{number}.json"


def _header(search: SearchConfig, number: int) -> dict[str, Any]:
    return {"shares": list(search.blocks), "seed": search.seed, "block": number}


def _rules(policies: Mapping[str, DomainPolicy]) -> dict[str, Any]:
    """As they read back from JSON."""
    rules = {domain: policy.rule.canonical() for domain, policy in policies.items()}
    found: dict[str, Any] = json.loads(json.dumps(rules))
    return found


def _plain(counters: Counters) -> dict[str, Any]:
    return {"tokens": counters.tokens, "kept": counters.kept, "usage": counters.usage}


def _added(counters: Sequence[Counters]) -> Counters:
    """Layer by layer, expert by expert."""
    return Counters(
        tokens=[sum(layer) for layer in zip(*(c.tokens for c in counters), strict=True)],
        kept=[sum(layer) for layer in zip(*(c.kept for c in counters), strict=True)],
        usage=[
            [sum(expert) for expert in zip(*layers, strict=True)]
            for layers in zip(*(c.usage for c in counters), strict=True)
        ],
    )


def _write(run_dir: Path, fingerprint: str, number: int, content: dict[str, Any]) -> None:
    path = block_path(run_dir, fingerprint, number)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    with open(partial, "w", encoding="utf-8") as file:
        json.dump(content, file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)
