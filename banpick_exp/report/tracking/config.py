"""Where results are mirrored: the settings of conf/tracking/."""

from __future__ import annotations

from typing import Literal

from banpick_exp.config import Section


class TrackingConfig(Section):
    """Where results are mirrored; the local records are the truth."""

    name: Literal["none", "wandb"] = "wandb"
    mode: Literal["offline", "online"] = "offline"
    project: str = "banpick"
    entity: str | None = None
