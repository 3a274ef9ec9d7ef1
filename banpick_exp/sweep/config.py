"""The search space and how it is spent: the settings of conf/sweep/ and conf/search/, and those of a whole run."""

from __future__ import annotations

import re
from collections.abc import Mapping
from itertools import pairwise
from typing import Any, Literal

from pydantic import Field, model_validator

from banpick_exp.config import Section, shown, suggestion, validated
from banpick_exp.errors import UserError

RESERVED_NAMES = ("calibrations", "solved", "past.json")
"""What all sweeps share in output_dir."""


class SweepConfig(Section):
    """A search space: a list of overrides is the product of its `choice()` and `range()`; K is the model's top_k."""

    name: str = Field(pattern=r"^[A-Za-z0-9_.-]+$", max_length=100)
    """Also of the folder below output_dir."""
    params: tuple[str, ...] = ()
    blocks: tuple[tuple[str, ...], ...] = ()
    """More products, beside `params`."""
    reference: tuple[tuple[str, ...], ...] = ()
    """Points that every result is held against; `policy=none` is always one of them."""

    @model_validator(mode="after")
    def _name_is_a_folder_of_its_own(self) -> SweepConfig:
        if self.name.startswith(".") or self.name in RESERVED_NAMES:
            raise ValueError(
                f"sweep.name={self.name} is no name for a sweep: its runs would lie among what all sweeps"
                f" share, or outside of output_dir. Type another, e.g. sweep.name=mine (not"
                f" {', '.join(RESERVED_NAMES)}, nor one that begins with a dot)"
            )
        return self


class GridSearch(Section):
    """Every point of the space, on every problem."""

    name: Literal["grid"] = "grid"
    ladder: Literal["auto", "none"] = "auto"
    """`auto`: once its points ran, fixed_k runs at each measured budget that has none within 0.25 experts."""


class RacingSearch(Section):
    """All points in blocks of problems; one that can no longer reach the front stops there."""

    name: Literal["racing"] = "racing"
    blocks: tuple[float, ...] = (0.03125, 0.0625, 0.125, 0.1875, 0.25, 0.375, 0.5, 0.75, 1.0)
    """Cumulative shares of the problems after which a race compares its points; the last is 1."""
    error_rate: float = Field(default=0.05, gt=0, lt=1)
    """Chance that a race stops any point that belongs on the front."""
    margin: float = Field(default=0.0, ge=0, lt=1)
    """A race also stops points that gain less than this (accuracy, 0..1) over their reference for sure; 0: none."""
    seed: int = Field(default=0, ge=0)
    """Of the order in which the problems are asked."""

    @model_validator(mode="after")
    def _blocks_rise_to_one(self) -> RacingSearch:
        rising = all(low < high for low, high in pairwise((0.0, *self.blocks)))
        if not rising or not self.blocks or self.blocks[-1] != 1:
            raise ValueError(
                f"search.blocks={list(self.blocks)} does not rise from above 0 to 1: survivors would not answer every"
                " problem once. Type e.g. 'search.blocks=[0.125,0.25,0.5,1]'"
            )
        return self


class OptunaSearch(Section):
    """A multi-objective sampler (TPE) for axes without an end of values: points are drawn while the run goes on."""

    name: Literal["optuna"] = "optuna"
    trials: int = Field(default=24, ge=1, le=10_000)
    """Points that are tried, beside the references."""
    startup: int = Field(default=8, ge=1)
    """How many of the trials are drawn at random."""
    seed: int = Field(default=0, ge=0)
    """Of the sampler."""


class SelectSearch(Section):
    """Dev chooses among the points of the space; on the typed split runs what it chose, stock and the references."""

    name: Literal["select"] = "select"
    by: str | None = None
    """`policy` or `policy.KNOB`: one is chosen for each of its values; null: one of all."""

    @model_validator(mode="after")
    def _groups_by_policy(self) -> SelectSearch:
        if self.by is not None and self.by != "policy" and not re.fullmatch(r"policy\.\w+", self.by):
            raise ValueError(
                f"search.by={self.by} is no knob of a policy: points that differ in it answer other questions, and dev"
                " chooses among policies. Type search.by=policy.KNOB, search.by=policy, or leave it out"
            )
        return self


SearchConfig = GridSearch | RacingSearch | OptunaSearch | SelectSearch
"""How the space is spent; a knob of another search would be idle, so it is refused."""
SEARCHES: dict[str, type[GridSearch] | type[RacingSearch] | type[OptunaSearch] | type[SelectSearch]] = {
    "grid": GridSearch,
    "racing": RacingSearch,
    "optuna": OptunaSearch,
    "select": SelectSearch,
}


def search_config(values: Mapping[str, Any]) -> SearchConfig:
    """The settings of the search that `values` name. Raises UserError, about the keys as typed."""
    name = values.get("name")
    if not isinstance(name, str) or name not in SEARCHES:
        near = suggestion(str(name), SEARCHES, "search=")
        raise UserError(
            f"search.name={shown(name)} is unknown: nothing would be run. {near}Use one of {', '.join(SEARCHES)}."
        )
    own = SEARCHES[str(name)]
    for key in values:
        owners = [other for other, section in SEARCHES.items() if key in section.model_fields]
        if key not in own.model_fields and owners:
            raise UserError(
                f"search.{key}={shown(values[key])} is idle under search={name}: nothing would change. Type"
                f" search={owners[0]} beside it, or leave it out."
            )
    return validated(own, values, "search")


class Hardware(Section):
    """What one GPU is taken for in prices (conf/hardware/); changes no result, and is part of no fingerprint."""

    name: str = "h100"
    memory_gb: float = Field(default=80, gt=0)
    """1e9 bytes."""
    memory_tb_s: float = Field(default=3.35, gt=0)
    """1e12 bytes a second."""
    bf16_tflops: float = Field(default=989, gt=0)
    """Dense, 1e12 operations a second."""
    load_gb_s: float = Field(default=2, gt=0)
    """1e9 bytes a second of weights from storage into one engine, all its GPUs together."""


class RunBudget(Section):
    """What the engines of a run may be held for, over all drivers of its folder; null: no end."""

    gpu_hours: float | None = Field(default=None, gt=0)
    cpu_hours: float | None = Field(default=None, gt=0)
    """Core-hours of CPU engines."""


class RunConfig(Section):
    """Settings of the whole run, the same for every point; sections of other rooms are planned beside it."""

    output_dir: str = "outputs"
    run: str | None = Field(default=None, pattern=r"^[A-Za-z0-9_-][A-Za-z0-9_.-]*$", max_length=100)
    """The run's own name: begun where there is none of it, gone on with where there is. For lines that are started
    again by something else than a person, such as a job that reached its time limit; null: named after the time."""
    resume: str | None = None
    dry_run: bool = False
    repeats: int = Field(default=1, ge=1, le=1000)
    """Runs of every point, in other batches and another order (`evaluation.answer`), to see how far scores move."""
    sweep: SweepConfig
    search: SearchConfig = GridSearch()
    hardware: Hardware = Hardware()
    budget: RunBudget = RunBudget()
