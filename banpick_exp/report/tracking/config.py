"""Where results are mirrored: the settings of conf/tracking/."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from banpick_exp.config import Section


class TrackingConfig(Section):
    """Where results are mirrored; the local records are the truth."""

    name: Literal["none", "wandb"] = "wandb"
    mode: Literal["offline", "online"] = "offline"
    project: str = "banpick"
    entity: str | None = None
    timeout_seconds: float = Field(default=30, gt=0, le=86_400)
    """How long one call of W&B may take before the run no longer counts on it (`mirroring`)."""
