"""What an engine's process says of itself to the driver. Imports nothing heavy: the driver has no need of torch."""

from __future__ import annotations

from dataclasses import dataclass


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
