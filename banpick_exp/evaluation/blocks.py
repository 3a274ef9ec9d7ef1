"""A trial answered in blocks of problems, each block one file of the run folder: complete, or absent.

A trial is done when its blocks cover every problem once. Their answers and counters are then those of one run, but for
what batching moves: a block meets fewer requests than the whole, so some greedy answers differ (docs/search.md).
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from banpick_exp.disk import create_folder, write_atomically
from banpick_exp.evaluation.answer import Answered, DomainPolicy, DomainRun, Problems, joined_runs
from banpick_exp.evaluation.asking import Asking
from banpick_exp.evaluation.cut import Cut
from banpick_exp.evaluation.stored_runs import rules_as_json, run_as_json, run_from_json
from banpick_exp.records import OUTCOMES_VERSION, digest_of_json
from banpick_exp.run_folder import RunFolder
from banpick_exp.tasks.problem import Problem

SEAL = "sha256"
"""Key of a file whose value is the digest of all the rest."""


@dataclass(frozen=True, kw_only=True, slots=True)
class AnsweredBlock:
    """The answers of one trial to some problems of each domain; those that were set aside are told beside them."""

    runs: dict[str, DomainRun]
    rules: dict[str, Any]
    """Per domain, the canonical form of the rule that was on, as it reads back from JSON."""
    seconds: float
    swap_seconds: float


def answer_block(
    asking: Asking, policies: Mapping[str, DomainPolicy], problems: Problems, cut: Cut, number: int
) -> float:
    """Answer block `number` of the trial and write its file, unless it is there. Returns the seconds spent now."""
    trial, folder = asking.trial, asking.folder
    if read_block(folder, trial.fingerprint, cut, number) is not None:
        return 0.0
    asked = block_problems(problems, cut, number)
    begin = time.perf_counter()
    answered = asking.answer(policies, asked)
    seconds = time.perf_counter() - begin + (answered.block_seconds or 0.0)
    content = {
        "policy": rules_as_json(policies),
        "seconds": seconds,
        "swap_seconds": answered.swap_seconds,
        "domains": {domain: run_as_json(run) for domain, run in answered.runs.items()},
    }
    path = folder.block_path(trial.fingerprint, number)
    create_folder(path.parent)
    lost = f"block {number} of {trial.fingerprint} is not kept"
    write_atomically(path, block_file(trial.fingerprint, cut, number, content), lost)
    asking.over()
    return seconds


def block_problems(problems: Problems, cut: Cut, number: int) -> dict[str, list[Problem]]:
    """Those of block `number`, in file order; a domain of which it has none is left out."""
    asked = {}
    for domain, items in problems.items():
        if indices := cut.indices(len(items), domain, number):
            asked[domain] = [items[index] for index in indices]
    return asked


def block_file(fingerprint: str, cut: Cut, number: int, content: Mapping[str, Any]) -> bytes:
    """A block's file: whose it is, what came of it, and the seal."""
    whole = {**_header(fingerprint, cut, number), **content}
    return json.dumps({**whole, SEAL: digest_of_json(whole)}).encode()


def read_block(folder: RunFolder, fingerprint: str, cut: Cut, number: int) -> AnsweredBlock | None:
    """One block of a trial, or None where it is not there, not whole, edited, another's, or cut otherwise."""
    try:
        stored = json.loads(folder.block_path(fingerprint, number).read_bytes())
        if any(stored[key] != value for key, value in _header(fingerprint, cut, number).items()):
            return None
        if stored.pop(SEAL) != digest_of_json(stored):
            return None
        return AnsweredBlock(
            runs={domain: run_from_json(part) for domain, part in stored["domains"].items()},
            rules=dict(stored["policy"]),
            seconds=float(stored["seconds"]),
            swap_seconds=float(stored["swap_seconds"]),
        )
    # A file that is no block is answered again.
    except (FileNotFoundError, ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return None


def read_blocks(folder: RunFolder, fingerprint: str, cut: Cut, count: int) -> AnsweredBlock | None:
    """The first `count` blocks of a trial as one, or None where one of them is missing."""
    blocks = [read_block(folder, fingerprint, cut, number) for number in range(count)]
    present = [block for block in blocks if block is not None]
    if not present or len(present) < count or any(block.rules != present[0].rules for block in present):
        return None
    return joined(present)


def answered_in_blocks(
    folder: RunFolder, fingerprint: str, policies: Mapping[str, DomainPolicy], cut: Cut | None, problems: Problems
) -> Answered | None:
    """All blocks of a trial as one, in the order of `problems`.

    None unless each problem was answered in them or set aside, under just these policies.
    """
    if cut is None:
        return None
    whole = read_blocks(folder, fingerprint, cut, len(cut))
    if whole is None or whole.rules != rules_as_json(policies):
        return None
    for domain, items in problems.items():
        place = {problem.problem_id: index for index, problem in enumerate(items)}
        run = whole.runs.get(domain)
        if run is None or run.asked != set(place):
            return None
        run.outcomes.sort(key=lambda outcome: place[outcome.problem_id])
    return Answered(policies=policies, runs=whole.runs, swap_seconds=whole.swap_seconds, block_seconds=whole.seconds)


def joined(blocks: Sequence[AnsweredBlock]) -> AnsweredBlock:
    """Answers one after the other, counters added up."""
    runs = joined_runs([block.runs for block in blocks])
    return AnsweredBlock(
        runs=runs,
        rules=blocks[0].rules,
        seconds=sum(block.seconds for block in blocks),
        swap_seconds=max(block.swap_seconds for block in blocks),
    )


def _header(fingerprint: str, cut: Cut, number: int) -> dict[str, Any]:
    """What a file must say to be this block; one of an older version is answered again."""
    cut_as = {"shares": list(cut.shares), "seed": cut.seed, "block": number}
    return {"schema_version": OUTCOMES_VERSION, "point": fingerprint, **cut_as}
