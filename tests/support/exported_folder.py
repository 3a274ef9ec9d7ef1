"""An exported policy written by hand, for a checkpoint that no run has measured."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from banpick_exp.models.shape import MoeShape
from banpick_exp.policy import build_policy
from banpick_exp.policy.build import ROUTING_VERSION
from banpick_exp.policy.exported_files import HEADER, DomainPolicy, Header, ModelRead, Sizes


def export_of(
    folder: Path,
    shape: MoeShape,
    identity: str,
    name: str,
    knobs: Mapping[str, Any],
    *,
    hub_id: str | None = None,
    revision: str | None = None,
) -> Path:
    """`folder` with a policy that reads no calibration. Returns it."""
    sizes = {"num_layers": shape.num_layers, "num_experts": shape.num_experts, "top_k": shape.top_k}
    built = build_policy(name, knobs, **sizes)
    header = Header(
        label=built.rule.label(),
        policy={"name": name, **built.rule.knobs()},
        policy_files={},
        solved=None,
        shape=Sizes(**sizes),
        model=ModelRead(name="mine", id=hub_id, revision=revision, identity=identity, made_from=None),
        routing_version=ROUTING_VERSION,
        domains={
            "math": DomainPolicy(
                routing_sha256=built.digest(),
                max_kept=built.max_kept,
                implied_budget=built.budget,
                key_experts=None,
                calibration=None,
            )
        },
        calibration=None,
        files={},
        point={},
        measured={},
        guards=(),
        versions={"banpick_exp": "0.1.0"},
    )
    folder.mkdir(parents=True)
    (folder / HEADER).write_bytes(header.content())
    return folder
