"""An exported policy written by hand, for a checkpoint that no run has measured."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.numpy import save_file

from banpick_exp.models.shape import MoeShape
from banpick_exp.policy import Calibration, build_policy
from banpick_exp.policy.build import ROUTING_VERSION
from banpick_exp.policy.calibration_arrays import arrays_of, digest_of_arrays, parts_of
from banpick_exp.policy.exported_files import (
    HEADER,
    TENSORS,
    CalibrationPart,
    DomainPolicy,
    Header,
    ModelRead,
    Sizes,
    array_name,
)
from banpick_exp.records import digest


def export_of(
    folder: Path,
    shape: MoeShape,
    identity: str,
    name: str,
    knobs: Mapping[str, Any],
    *,
    calibration: Mapping[str, Any] | None = None,
    hub_id: str | None = None,
    revision: str | None = None,
) -> Path:
    """`folder` with a policy of one domain, which reads all of `calibration`. Returns it."""
    sizes = {"num_layers": shape.num_layers, "num_experts": shape.num_experts, "top_k": shape.top_k}
    built = build_policy(name, knobs, **sizes, calibration=calibration)
    part, files = None, {}
    folder.mkdir(parents=True)
    if calibration is not None:
        whole = Calibration.of(calibration)
        arrays = arrays_of(whole)
        part = CalibrationPart(parts=tuple(parts_of(whole)), sha256=digest_of_arrays(arrays))
        save_file({array_name("math", own): array for own, array in arrays.items()}, folder / TENSORS)
        files[TENSORS] = digest((folder / TENSORS).read_bytes())
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
                calibration=part,
            )
        },
        calibration=None,
        files=files,
        point={},
        measured={},
        guards=(),
        versions={"banpick_exp": "0.1.0"},
    )
    (folder / HEADER).write_bytes(header.content())
    return folder
