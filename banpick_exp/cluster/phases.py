"""What a run does at the moment, in words: `loading the engine`, `calibrating math, layer 3 of 4`, `asking stock`."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from banpick_exp.cluster.engine_state import EngineState
from banpick_exp.cluster.state import RunState
from banpick_exp.report.text import in_words

MOST_NAMED = 2
"""Different things that a line names, where many engines do many."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CallProgress:
    """How far a calibration is that is one call of one engine."""

    share: float
    """0 to 1."""
    of: str
    """What is measured now; empty where an engine of old does not say."""


def call_progress(file: Path) -> CallProgress | None:
    """What an engine wrote last; None where it wrote nothing that can be read."""
    try:
        found = json.loads(file.read_text())
        return CallProgress(share=found["done"] / found["total"], of=str(found.get("of") or ""))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, ZeroDivisionError):
        return None


def doing(engine: EngineState, calibrating: CallProgress | None) -> str:
    """What one engine does. `calibrating`: how far a calibration of one call is."""
    job = engine.job
    if job is None:
        return {"starting": "loading the engine", "waiting": "waiting for room"}.get(engine.phase, engine.phase)
    if job.kind == "calibration":
        what = job.what or (calibrating.of if calibrating else "")
        return f"calibrating {what}" if what else f"calibrating for {in_words(job.label)}"
    block = "" if job.block is None else f", block {job.block + 1} of {job.of}"
    return f"asking {in_words(job.label)}{block}"


def phase(state: RunState, progress_file: Path) -> str:
    """What all engines do, what most do first; empty where none does anything."""
    calibrating = call_progress(progress_file)
    said = Counter(doing(engine, calibrating) for engine in state.running)
    if not said and any(engine.phase == "waiting" for engine in state.engines):
        return "waiting for room"
    named = [f"{words} (x{count})" if count > 1 else words for words, count in said.most_common(MOST_NAMED)]
    more = sum(said.values()) - sum(count for _, count in said.most_common(MOST_NAMED))
    return "; ".join([*named, f"{more} more engines at work"] if more else named)


def clock(seconds: float) -> str:
    """`0:42`, `1:02:03`."""
    minutes, rest = divmod(int(max(seconds, 0)), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{rest:02}" if minutes >= 60 else f"{minutes}:{rest:02}"
