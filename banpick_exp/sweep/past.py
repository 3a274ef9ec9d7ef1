"""What engines did on this machine before: seconds of a load, tokens a second, the length of answers.

Kept in `<output_dir>/past.json`, by machine, engine (its fingerprint: checkpoint and settings) and what one engine
holds. Prices and times to come are told by it and nothing else is, so a file that is lost or damaged costs an
assumption in place of a measurement. Of several runs the median counts: one may have had a busy machine.
"""

from __future__ import annotations

import socket
from collections.abc import Callable
from pathlib import Path
from statistics import median

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from banpick_exp.disk import write_atomically
from banpick_exp.sweep.point import Point

VERSION = 1
KEPT = 5
"""Runs of one engine that are remembered, the last ones."""
MOST = 200
"""Runs of all engines."""
MOST_BYTES = 1_000_000
"""Of a file that is read: ours are far smaller."""


class Pace(BaseModel):
    """What one engine did in one run; None where it did none of that."""

    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False)

    host: str
    """Of the driver."""
    engine: str
    """Its fingerprint."""
    devices: int
    """GPUs, or cores, of one."""
    load_seconds: float | None = Field(default=None, gt=0)
    generate: float | None = Field(default=None, gt=0)
    """Generated tokens a second of answering, prompts and grading in it."""
    prefill: float | None = Field(default=None, gt=0)
    """Tokens a second of a calibration, as the estimate counts them."""
    clock: float | None = Field(default=None, gt=0)
    """Seconds that timing a point took for each of task.speed_seconds."""
    lengths: dict[str, float] = {}
    """Problems and how they are asked (`asked`) -> tokens of an answer, the mean."""


class Past(BaseModel):
    """`past.json`."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    schema_version: int = VERSION
    paces: tuple[Pace, ...] = ()
    """The last run last."""

    def of(self, point: Point, devices: int, host: str | None = None) -> Pace | None:
        """The medians of what is known of the point's engine on `host` (this machine); None where nothing is."""
        here = host or socket.gethostname()
        known = [
            pace
            for pace in self.paces
            if (pace.host, pace.engine, pace.devices) == (here, point.engine_fingerprint, devices)
        ]
        if not known:
            return None
        lengths: dict[str, list[float]] = {}
        for pace in known:
            for name, tokens in pace.lengths.items():
                lengths.setdefault(name, []).append(tokens)
        return Pace(
            host=here,
            engine=point.engine_fingerprint,
            devices=devices,
            load_seconds=_median(known, lambda pace: pace.load_seconds),
            generate=_median(known, lambda pace: pace.generate),
            prefill=_median(known, lambda pace: pace.prefill),
            clock=_median(known, lambda pace: pace.clock),
            lengths={name: median(tokens) for name, tokens in lengths.items()},
        )

    def with_run(self, pace: Pace) -> Past:
        """The same and one run more, the oldest left out where there are too many."""
        alike = [each for each in self.paces if _key(each) == _key(pace)][1 - KEPT :]
        others = [each for each in self.paces if _key(each) != _key(pace)]
        return Past(paces=tuple([*others, *alike, pace][-MOST:]))


def asked(point: Point) -> str:
    """What decides how long answers are, beside the engine: the problems, and how they are asked."""
    return f"{point.data_identity} {point.task.max_tokens} {point.task.temperature:g}"


def read_past(path: Path) -> Past:
    """Nothing where there is no such file, or none that can be understood."""
    try:
        if path.stat().st_size > MOST_BYTES:
            return Past()
        found = Past.model_validate_json(path.read_bytes())
    except (OSError, ValidationError, ValueError):
        return Past()
    return found if found.schema_version == VERSION else Past()


def remember(path: Path, *paces: Pace) -> None:
    """Add runs to the file. A folder that takes nothing costs only that."""
    past = read_past(path)
    for pace in paces:
        past = past.with_run(pace)
    try:
        write_atomically(path, past.model_dump_json(exclude_defaults=True).encode())
    except OSError:
        return


def _key(pace: Pace) -> tuple[str, str, int]:
    return pace.host, pace.engine, pace.devices


def _median(known: list[Pace], part: Callable[[Pace], float | None]) -> float | None:
    found = [value for pace in known if (value := part(pace)) is not None]
    return median(found) if found else None
