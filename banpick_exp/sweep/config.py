"""The search space and how it is spent: the settings of conf/sweep/ and conf/search/, and those of a whole run."""

from __future__ import annotations

from itertools import pairwise
from typing import Literal

from pydantic import Field, model_validator

from banpick_exp.cluster.config import ClusterConfig
from banpick_exp.config import Section
from banpick_exp.report.tracking.config import TrackingConfig


class SweepConfig(Section):
    """A search space: a list of overrides is the product of its `choice()` and `range()`; K is the model's top_k."""

    name: str = Field(pattern=r"^[A-Za-z0-9_.-]+$")
    params: tuple[str, ...] = ()
    blocks: tuple[tuple[str, ...], ...] = ()
    """More products, beside `params`."""
    reference: tuple[tuple[str, ...], ...] = ()
    """Points that every result is held against; `policy=none` is always one of them."""


class SearchConfig(Section):
    """How the space is spent: all of it (`grid`), in blocks with losers stopped (`racing`), or sampled (`optuna`)."""

    name: Literal["grid", "racing", "optuna"] = "grid"
    blocks: tuple[float, ...] = (0.03125, 0.0625, 0.125, 0.1875, 0.25, 0.375, 0.5, 0.75, 1.0)
    """Cumulative shares of the problems after which a race compares its points; the last is 1."""
    error_rate: float = Field(default=0.05, gt=0, lt=1)
    """Chance that a race stops any point that belongs on the front."""
    margin: float = Field(default=0.0, ge=0, lt=1)
    """A race also stops points that gain less than this (accuracy, 0..1) over their reference for sure; 0: none."""
    trials: int = Field(default=24, ge=1)
    """Points that optuna tries, beside the references."""
    startup: int = Field(default=8, ge=1)
    """How many of the trials are drawn at random."""
    seed: int = Field(default=0, ge=0)

    @property
    def sampled(self) -> bool:
        """Whether points are drawn while the run goes on."""
        return self.name == "optuna"

    @model_validator(mode="after")
    def _blocks_rise_to_one(self) -> SearchConfig:
        rising = all(low < high for low, high in pairwise((0.0, *self.blocks)))
        if not rising or not self.blocks or self.blocks[-1] != 1:
            raise ValueError(
                f"search.blocks={list(self.blocks)} does not rise from above 0 to 1: survivors would not answer every"
                " problem once. Type e.g. 'search.blocks=[0.125,0.25,0.5,1]'"
            )
        return self


class RunConfig(Section):
    """Settings of the whole run, the same for every point."""

    output_dir: str = "outputs"
    resume: str | None = None
    dry_run: bool = False
    repeats: int = Field(default=1, ge=1)
    """Runs of every point, in other batches and another order (`asking.batches`), to see how far scores move."""
    cluster: ClusterConfig
    tracking: TrackingConfig
    sweep: SweepConfig
    search: SearchConfig = SearchConfig()
