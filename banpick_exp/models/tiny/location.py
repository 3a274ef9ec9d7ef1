"""Where the checkpoint of a model lies: a control variant is built from the embedded one where it is missing."""

from __future__ import annotations

from banpick_exp.models.config import ModelConfig


def location_of(model: ModelConfig, location: str) -> str:
    """`location`, or the folder of the control that `model` names, built on the first call."""
    if model.control is None:
        return location
    from banpick_exp.models.tiny.control import control_folder  # imports torch

    return str(control_folder(model.control))
