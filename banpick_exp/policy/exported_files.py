"""The files of an exported policy, typed: what they are called, what `policy.json` says, and how it is sealed.

A folder holds `policy.json`, `policy.safetensors` where the rule reads a calibration, files of the user's that the rule
reads, and README.md, which is for people: whoever publishes the folder may write in it, and nothing is read of it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from banpick_exp.records import digest_of_json

SCHEMA_VERSION = 1
"""Of `policy.json`; a field that changes its meaning is a new one."""
FORMAT: Literal["banpick_exp policy"] = "banpick_exp policy"
HEADER, TENSORS, CARD = "policy.json", "policy.safetensors", "README.md"
SEAL = "sha256"
"""Key of `policy.json` that is no part of what it says: SHA-256 of the rest, canonically."""


class Part(BaseModel):
    """A frozen part of `policy.json`."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, protected_namespaces=())


class Sizes(Part):
    """Of the checkpoint: MoE layers, routed experts a layer, experts that it selects for a token."""

    num_layers: int
    num_experts: int
    top_k: int


class ModelRead(Part):
    """The checkpoint that the policy was measured on, and is for."""

    name: str
    id: str | None
    """On the Hugging Face Hub; None of a folder, and of the embedded model."""
    revision: str | None
    identity: str
    """Of its content, or `hub:ID@REVISION` where it was never looked at (`models.checkpoint`)."""
    made_from: str | None
    """Identity of the checkpoint that a static method (pruning, merging) made this one from."""


class CalibrationPart(Part):
    """What the rule reads of the calibration in one domain."""

    parts: tuple[str, ...]
    """As `policy.Calibration` names them."""
    sha256: str
    """Of the arrays (`calibration_arrays.digest_of_arrays`)."""


class DomainPolicy(Part):
    """The policy as it is for the problems of one domain: key experts and thresholds differ between domains."""

    routing_sha256: str
    """What `Policy.digest` must be: equal ones route alike."""
    max_kept: int
    """The most experts a token can keep in any layer."""
    implied_budget: tuple[float, float]
    """Lowest and highest mean_kept."""
    key_experts: dict[str, tuple[int, ...]] | None
    """By layer, those that are reinforced; None: not such a rule."""
    calibration: CalibrationPart | None


class CalibrationSource(Part):
    """The artifact that the parts were read of."""

    fingerprint: str
    score: str | None
    sensitivity: str
    settings: dict[str, Any]
    """What it was made with."""


class Solved(Part):
    """Of a knob that was solved for a budget; `policy` holds the value."""

    budget: float
    """That was asked for."""
    knob: str
    value: float
    measured: float
    """mean_kept on all problems."""


class Header(Part):
    """`policy.json`."""

    format: Literal["banpick_exp policy"] = FORMAT
    schema_version: int = SCHEMA_VERSION
    label: str
    policy: dict[str, Any]
    """`name` and the knobs that matter; a file is named as it lies in the folder."""
    policy_files: dict[str, str]
    """Knob -> file of the folder."""
    solved: Solved | None
    shape: Sizes
    model: ModelRead
    routing_version: int
    """`policy.build.ROUTING_VERSION`."""
    domains: dict[str, DomainPolicy] = Field(min_length=1)
    calibration: CalibrationSource | None
    files: dict[str, str]
    """SHA-256 of each file that routing depends on, those of `policy_files` among them."""
    point: dict[str, Any]
    """The record it is of: fingerprint, run, command, time, seed."""
    measured: dict[str, Any]
    """What was found about it, and the front of its run."""
    guards: tuple[dict[str, Any], ...]
    """Findings about it that should be read."""
    versions: dict[str, str]
    """That it was measured with."""

    def content(self) -> bytes:
        """The file: sealed, readable, the same bytes for the same content."""
        plain = self.model_dump(mode="json")
        text = json.dumps({**plain, SEAL: digest_of_json(plain)}, indent=1, ensure_ascii=False, allow_nan=False)
        return f"{text}\n".encode()


def array_name(domain: str, name: str) -> str:
    """Of an array in `policy.safetensors`: `math/influence.value`; a domain may be called anything."""
    return f"{domain}/{name}"


def arrays_by_domain(arrays: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """What `array_name` named, domain by domain."""
    found: dict[str, dict[str, Any]] = {}
    for name, array in arrays.items():
        domain, _, own = name.rpartition("/")
        found.setdefault(domain, {})[own] = array
    return found


def is_export(folder: Path) -> bool:
    """Whether a folder says that it is an exported policy, whole or not."""
    try:
        plain = json.loads((folder / HEADER).read_bytes())
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(plain, dict) and plain.get("format") == FORMAT
