"""The policy of a record built again, and shown to be the one that was measured, with what its rule reads.

The record has a digest of each domain's table. What is built from the record and its calibration must have the same
one: so no setting that a record does not tell, and no artifact that was made again, changes what is exported.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from banpick_exp.errors import UserError
from banpick_exp.evaluation.calibration import arrays
from banpick_exp.evaluation.calibration.artifact import METADATA, parts_in, read_artifact
from banpick_exp.evaluation.calibration.scores import Name
from banpick_exp.evaluation.calibration.views import policy_views
from banpick_exp.models.shape import MoeShape
from banpick_exp.policy.bases.several import not_one_table
from banpick_exp.policy.build import Policy, build_policy
from banpick_exp.policy.calibration import Calibration
from banpick_exp.policy.calibration_arrays import parts_of
from banpick_exp.policy.exported_files import CalibrationSource
from banpick_exp.policy.registry import parse_policy
from banpick_exp.policy.rule import Rule
from banpick_exp.records import PointRecord
from banpick_exp.run_folder import RunFolder

TYPED_PATH = "calibration.path="
RECORDED_DIGITS = 16
"""Of a table's digest, in a record."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Built:
    """A measured policy with its tables."""

    rule: Rule
    shape: MoeShape
    policies: Mapping[str, Policy]
    """By domain."""
    calibrations: Mapping[str, Calibration | None]
    """By domain, what the rule reads and nothing else."""
    source: CalibrationSource | None


def built(record: PointRecord, folder: RunFolder, artifact: Path | None) -> Built:
    """`artifact`: the folder of the calibration as typed, None where it is to be looked for. Imports torch.

    Raises UserError for a record that does not say enough, a calibration that is not there, and a policy that comes out
    otherwise than it was measured.
    """
    model, name = record.model, f"{record.label} ({record.fingerprint})"
    if model.num_layers is None or model.num_experts is None or model.top_k is None or model.identity is None:
        raise UserError(
            f"{name} does not say what its checkpoint was (an old record): nobody could tell which model the policy is"
            f" for. Run it again: {record.command}"
        )
    recorded = record.engagement.routing_table
    if not recorded:
        raise UserError(
            f"{name} has no digest of its routing (an old record): nobody could tell whether what is exported is what"
            f" was measured. Run it again: {record.command}"
        )
    shape = MoeShape(num_layers=model.num_layers, num_experts=model.num_experts, top_k=model.top_k)
    rule = parse_policy(record.policy_name, record.knobs, shape)
    if len(rule.parts) > 1:
        one = rule.parts[0]
        typed = " ".join([f"policy={one.name}", *(f"policy.{knob}={value}" for knob, value in one.knobs().items())])
        raise UserError(
            f"{name}: {not_one_table(rule)}. A folder, and whoever serves it, holds one rule: measure that and export"
            f" it, e.g. {typed}."
        )
    found: dict[str, str] = {}
    for source, views in _ways(record, folder, artifact, tuple(recorded)):
        policies = {domain: _policy(rule, shape, view) for domain, view in views.items()}
        found = {domain: policy.digest()[:RECORDED_DIGITS] for domain, policy in policies.items()}
        if found == recorded:
            read = {domain: _read(rule, shape, views[domain], policy) for domain, policy in policies.items()}
            return Built(rule=rule, shape=shape, policies=policies, calibrations=read, source=source)
    domain = next(each for each in recorded if found.get(each) != recorded[each])
    raise UserError(
        f"{name} becomes another policy now than the one that was measured ({domain}: table {found.get(domain)},"
        f" measured {recorded[domain]}): its numbers would not be those of what is exported. Its calibration was made"
        " again, or this version's rule differs from that of"
        f" banpick_exp {record.versions.get('banpick_exp', 'of then')}. Run it again: {record.command}"
    )


def _policy(rule: Rule, shape: MoeShape, calibration: Calibration | None) -> Policy:
    knobs = {knob: value for knob, value in rule.canonical().items() if knob != "name"}
    sizes = {"num_layers": shape.num_layers, "num_experts": shape.num_experts, "top_k": shape.top_k}
    return build_policy(rule.name, knobs, **sizes, calibration=calibration)


def _ways(
    record: PointRecord, folder: RunFolder, typed: Path | None, domains: tuple[str, ...]
) -> Iterator[tuple[CalibrationSource | None, dict[str, Calibration | None]]]:
    """What the point may have read, domain by domain: a record does not tell calibration.sensitivity."""
    if record.calibration is None:
        if typed is not None:
            raise UserError(f"--calibration {typed}: {record.label} reads none, so it would be ignored. Leave it out.")
        yield None, dict.fromkeys(domains)
        return
    artifact = _artifact(record, folder, typed)
    measured = arrays.load(artifact, record.calibration)
    assert measured is not None, f"{artifact} was there a moment ago"
    if missing := sorted(set(domains) - set(measured)):
        raise UserError(f"the calibration {artifact} has nothing of {', '.join(missing)}: it is another one.")
    score, settings = record.score, read_artifact(artifact).settings
    there = parts_in(artifact)
    if score is not None and score not in there:
        raise UserError(
            f"the calibration {artifact} no longer holds {score}, by which {record.label} chose its key experts."
            f" Measure it again: {record.command}"
        )
    for sensitivity in ("kl", *(("gold",) if "limit_gain" in there else ())):
        views = policy_views(measured, cast(Name | None, score), sensitivity=sensitivity)
        source = CalibrationSource(
            fingerprint=record.calibration, score=score, sensitivity=sensitivity, settings=settings
        )
        yield source, {domain: views[domain] for domain in domains}


def _artifact(record: PointRecord, folder: RunFolder, typed: Path | None) -> Path:
    """The folder of the calibration: typed, beside the run, or where the point's own command says."""
    assert record.calibration is not None
    words = shlex.split(record.command or "")
    named = [word.removeprefix(TYPED_PATH).strip("\"'") for word in words if word.startswith(TYPED_PATH)]
    places = [typed] if typed is not None else [folder.calibrations / record.calibration, *map(Path, named)]
    for place in places:
        if (place / METADATA).is_file() and read_artifact(place).fingerprint == record.calibration:
            return place
    looked = ", ".join(map(str, places))
    raise UserError(
        f"{record.label} ({record.fingerprint}) reads the calibration {record.calibration}, which is not in {looked}:"
        " without it nobody knows its key experts or thresholds. Type --calibration FOLDER with a copy of it, or run"
        f" the point again, which measures it: {record.command}"
    )


def _read(rule: Rule, shape: MoeShape, calibration: Calibration | None, policy: Policy) -> Calibration | None:
    """The parts without which the policy cannot be built, or is another one; None where it is none of them."""
    if calibration is None:
        return None
    left = calibration
    for part in parts_of(calibration):
        without = left.model_copy(update={part: None})
        try:
            same = _facts(_policy(rule, shape, without)) == _facts(policy)
        except UserError:
            continue
        if same:
            left = without
    return left if parts_of(left) else None


def _facts(policy: Policy) -> tuple[object, ...]:
    return policy.digest(), policy.max_kept, policy.budget, policy.key_experts
