"""The files of an exported policy, as bytes: the same point of the same run gives the same ones, wherever they go."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save

from banpick_exp.errors import UserError
from banpick_exp.policy.build import ROUTING_VERSION
from banpick_exp.policy.calibration_arrays import arrays_of, digest_of_arrays, parts_of
from banpick_exp.policy.experts import as_knob
from banpick_exp.policy.exported_files import (
    CARD,
    HEADER,
    TENSORS,
    CalibrationPart,
    DomainPolicy,
    Header,
    ModelRead,
    Sizes,
    Solved,
    array_name,
)
from banpick_exp.records import PointRecord, digest
from banpick_exp.report.export.built import Built
from banpick_exp.report.export.card import card
from banpick_exp.report.export.measured import measured, raised
from banpick_exp.report.run import Run


def contents(run: Run, record: PointRecord, built: Built, how: str | None) -> dict[str, bytes]:
    """File name -> bytes. `how`: as `chosen` has it. Raises UserError for a file of the policy that is gone."""
    files, policy_files = _files_of_the_rule(built)
    arrays = {domain: arrays_of(read) for domain, read in built.calibrations.items() if read is not None}
    if tensors := {array_name(domain, name): array for domain, own in arrays.items() for name, array in own.items()}:
        files[TENSORS] = save(tensors)  # no metadata: its order would be another one each time
    header = Header(
        label=record.label,
        policy={**record.policy, **policy_files},
        policy_files=policy_files,
        solved=_solved(record),
        shape=Sizes(num_layers=built.shape.num_layers, num_experts=built.shape.num_experts, top_k=built.shape.top_k),
        model=_model(record),
        routing_version=ROUTING_VERSION,
        domains={domain: _domain(built, domain, arrays.get(domain)) for domain in built.policies},
        calibration=built.source if arrays else None,
        files={name: digest(data) for name, data in files.items()},
        point={
            "fingerprint": record.fingerprint,
            "run": run.name,
            "command": record.command,
            "finished_at": record.finished_at,
            "seed": record.seed,
            "calibration_overlap": record.calibration_overlap,
            "failed_problems": len(record.failed_problems),
        },
        measured=measured(run, record, how),
        guards=tuple(raised(run, record)),
        versions=dict(record.versions),
    )
    return {HEADER: header.content(), CARD: card(header).encode(), **files}


def _files_of_the_rule(built: Built) -> tuple[dict[str, bytes], dict[str, str]]:
    """Name -> bytes, and knob -> name: files of the user's are called by the rule and the knob that name them."""
    files, names = {}, {}
    for knob, path in built.rule.files().items():
        name = f"{built.rule.name}_{knob}{Path(path).suffix}"
        try:
            files[name] = Path(path).read_bytes()
        except OSError as error:
            raise UserError(
                f"policy.{knob}={path} cannot be read ({error.strerror}): the policy is nothing without it. Bring the"
                " file back."
            ) from None
        names[knob] = name
    return files, names


def _domain(built: Built, domain: str, arrays: dict[str, np.ndarray] | None) -> DomainPolicy:
    policy, read = built.policies[domain], built.calibrations[domain]
    part = None
    if read is not None and arrays is not None:
        part = CalibrationPart(parts=tuple(parts_of(read)), sha256=digest_of_arrays(arrays))
    keys: dict[str, Any] | None = None if policy.key_experts is None else as_knob(policy.key_experts)
    return DomainPolicy(
        routing_sha256=policy.digest(),
        max_kept=policy.max_kept,
        implied_budget=policy.budget,
        key_experts=keys,
        calibration=part,
    )


def _model(record: PointRecord) -> ModelRead:
    """A folder of this machine is no id: the identity says which checkpoint it holds."""
    model = record.model
    on_hub = str(model.identity).startswith("hub:")
    return ModelRead(
        name=model.name,
        id=model.path if on_hub else None,
        revision=model.plain().get("revision") if on_hub else None,
        identity=str(model.identity),
        made_from=None if model.base is None else model.base.identity,
    )


def _solved(record: PointRecord) -> Solved | None:
    account = record.budget
    if account is None:
        return None
    return Solved(budget=account.target, knob=account.knob, value=account.value, measured=account.measured)


def digest_of_contents(files: dict[str, bytes]) -> str:
    """SHA-256 in hex over all names and bytes: equal exports have equal ones."""
    found = hashlib.sha256()
    for name, data in sorted(files.items()):
        found.update(f"{name} {digest(data)}\n".encode())
    return found.hexdigest()
