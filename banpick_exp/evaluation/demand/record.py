"""Sequences put through the loaded engine under the policy that is on, and what their tokens demand."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import reduce
from typing import Any

from banpick_exp.engine.engine import Engine, EngineError
from banpick_exp.evaluation.demand.sums import Asked, Sums


@dataclass(frozen=True, slots=True)
class Replay:
    """A prompt with its answer."""

    ids: tuple[int, ...]
    begin: int
    """Where the answer begins."""


def record(engine: Engine, replays: Sequence[Replay], asked: Asked) -> Sums:
    """The sums of `replays`, every token of them computed.

    One sequence is in the engine at a time: however many steps a long one takes, its tokens come in their order. The
    engine must have been opened with the worker of calibrations. Its counters are reset.

    Raises: EngineError where what was recorded is not what the engine's own counters count.
    """
    engine.call("banpick_demand_start")
    engine.counters(reset=True)
    try:
        for number, replay in enumerate(replays):
            engine.prefill([replay.ids], salt=f"demand {number}")
    finally:
        lengths, begins = [len(each.ids) for each in replays], [each.begin for each in replays]
        answers: list[dict[str, Any]] = engine.call("banpick_demand_finish", lengths, begins, asdict(asked))
    stages = [found for found in answers if found]  # of each pipeline stage one rank tells
    counted = engine.counters(reset=True)
    usage = [layer for found in stages for layer in found["usage"]]
    if usage != counted.usage:
        layer = next((at for at, pair in enumerate(zip(usage, counted.usage, strict=False)) if pair[0] != pair[1]), 0)
        raise EngineError(
            f"layer {layer}: other experts were recorded than the engine counts, so no figure of demand would hold"
        )
    return reduce(Sums.__add__, [Sums.of(found["sums"]) for found in stages])
