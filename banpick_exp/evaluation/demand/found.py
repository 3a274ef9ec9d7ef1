"""`demand.json`: which experts policies of a run demand beside stock, typed. Imports nothing heavy."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field

from banpick_exp.records import Interval

SCHEMA_VERSION = 1
"""Of the file; a field that changes its meaning is a new one."""


class Part(BaseModel):
    """A frozen part of the file."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, protected_namespaces=())


class Number(Part):
    """A figure with its 95 % interval, from leaving out one problem after the other."""

    value: float
    ci95: Interval


class Compared(Part):
    """A figure of stock and of a policy on the same problems, each on its own answers."""

    stock: Number
    policy: Number
    difference: Number
    """Policy less stock, paired."""
    ratio: Number | None
    """Policy over stock, paired; null where stock's may be 0."""


class Step(Part):
    """What a decode step of so many sequences touches."""

    sequences: int = Field(ge=1)
    experts: Compared
    """Distinct experts of a layer."""


class Cached(Part):
    """The best cache that stays as it is for a window."""

    experts: int = Field(ge=1)
    """It holds of each layer."""
    hit_rate: Compared
    """SCH, 0 to 1: of what is demanded, the share that it holds."""
    misses: Compared
    """Experts that it lacks, a token and layer."""


class Window(Part):
    """Of consecutive tokens of one sequence, the last of them of its answer."""

    tokens: int = Field(ge=1)
    experts: Compared
    """Distinct experts of a layer."""
    srp: Compared
    """Segment routing best performance, 0 to 1."""
    caches: tuple[Cached, ...]


class Demand(Part):
    """Of one domain, or of all together."""

    problems: int
    tokens: int
    """Of the policy's answers."""
    stock_tokens: int
    kept: Compared
    """Experts kept a token and layer, of answers."""
    all_kept: Compared
    """The same with the prompts' tokens."""
    steps: tuple[Step, ...]
    """Batch sizes that there are answers enough for."""
    windows: tuple[Window, ...]
    """Lengths that answers reach."""


class PointDemand(Part):
    """One point of the run."""

    fingerprint: str
    label: str
    invalid: str | None
    """Why its figures are none, in words: what was recorded is not what the run has measured."""
    recorded_kept: dict[str, float]
    """By domain: mean_kept of its record."""
    overall: Demand
    domains: dict[str, Demand]


class ModelUsed(Part):
    """The checkpoint, as the stock record has it."""

    name: str
    num_layers: int
    num_experts: int
    top_k: int


class Settings(Part):
    """What was asked."""

    problems: int
    """Of each domain, at most."""
    windows: tuple[int, ...]
    caches: tuple[int, ...]
    """Experts of a layer."""
    batches: tuple[int, ...]


class Group(Part):
    """Points that share model, task and engine, and with them stock."""

    model: ModelUsed
    task: str
    stock: str
    """Fingerprint of the stock point."""
    settings: Settings
    points: tuple[PointDemand, ...]


class DemandFile(Part):
    """`demand.json`."""

    schema_version: int = SCHEMA_VERSION
    run: str
    made_at: str
    """UTC, ISO 8601."""
    command: str
    groups: tuple[Group, ...]
