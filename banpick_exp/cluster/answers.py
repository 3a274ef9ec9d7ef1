"""What an engine's process says of itself to the driver. Imports nothing heavy: the driver has no need of torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True, slots=True)
class Started:
    """What a loaded engine says of itself."""

    load_seconds: float
    verify_seconds: float
    layers: int
    """MoE layers hooked."""
    routers: tuple[str, ...]
    host: str
    pid: int
    attached: bool = False
    """Whether it was loaded for an earlier driver, and is taken over; the seconds are then 0."""
    parity: str = ""
    """How far the engine is from Transformers, or why nobody looked; empty where there is nothing to say."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CalibrationProgress:
    """Changes times problems measured so far of a part of a calibration: what `progress.json` holds."""

    done: int
    total: int
    of: str = ""
    """`math, layer 3 of 4`: what is measured now."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Together:
    """What came of calls that were made at once."""

    answers: Mapping[str, Any]
    """By fingerprint of the point, what its call alone answers; those that are missing are to be made alone."""
    pays: bool | None
    """Whether policies belong into one batch here; None where nobody knows."""
    said: str
    """What to tell of it; empty where there is nothing new."""
