"""An exported policy, read: `load(OUT)` checks every byte that routing depends on and gives rule and calibration back.

It stands in `policy` and not in a room of its own: what it gives is what this room makes policies of, and every process
that routes may import this room. It needs pydantic, numpy and safetensors; torch only where the policy is built.

    exported = load("OUT")
    exported.check(inspect_checkpoint(ModelConfig(name="mine", path="/models/mine")))
    engine.load_calibration(exported.calibration_key(domain), exported.calibrations[domain])
    engine.set_policy(exported.rule.name, exported.params, exported.calibration_key(domain))
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.numpy import load as arrays_in

from banpick_exp.config import suggestion
from banpick_exp.errors import UserError
from banpick_exp.models.checkpoint import Checkpoint
from banpick_exp.models.shape import MoeShape
from banpick_exp.policy.build import ROUTING_VERSION, Policy, build_policy
from banpick_exp.policy.calibration import Calibration
from banpick_exp.policy.calibration_arrays import calibration_of, digest_of_arrays
from banpick_exp.policy.exported_files import (
    CARD,
    FORMAT,
    HEADER,
    SCHEMA_VERSION,
    SEAL,
    TENSORS,
    Header,
    arrays_by_domain,
)
from banpick_exp.policy.registry import parse_policy
from banpick_exp.policy.rule import Rule
from banpick_exp.records import digest, digest_of_json

AGAIN = "Copy or download the folder again, or export the point again (python -m banpick_exp export --help)."


@dataclass(frozen=True, kw_only=True, slots=True)
class Exported:
    """A policy that was measured, ready to be set on an engine of the same checkpoint."""

    folder: Path
    header: Header
    rule: Rule
    shape: MoeShape
    calibrations: Mapping[str, Calibration | None]
    """By domain, the parts that the rule reads; None where it reads none."""

    def __repr__(self) -> str:
        """`<Exported pick boost=1 key_experts=4 for tiny: math, code, knowledge>`."""
        return f"<Exported {self.header.label} for {self.header.model.name}: {', '.join(self.domains)}>"

    @property
    def domains(self) -> tuple[str, ...]:
        return tuple(self.header.domains)

    @property
    def params(self) -> dict[str, object]:
        """The knobs, as `Engine.set_policy` takes them."""
        return {knob: value for knob, value in self.rule.canonical().items() if knob != "name"}

    @property
    def one_policy(self) -> bool:
        """Whether it routes alike in every domain."""
        return len({each.routing_sha256 for each in self.header.domains.values()}) == 1

    def domain(self, asked: str | None = None) -> str:
        """The domain `asked`; None is any where all route alike. Raises UserError for one that there is not."""
        if asked is None and self.one_policy:
            return self.domains[0]
        if asked in self.header.domains:
            assert asked is not None
            return asked
        known = ", ".join(self.domains)
        if asked is None:
            raise UserError(
                f"{self.folder} routes each domain by experts of its own: without a domain nobody can say which. Name"
                f" one of {known}."
            )
        near = suggestion(asked, self.domains)
        raise UserError(
            f"domain={asked} is none of {self.folder}: it was never measured there. {near}Name one of {known}."
        )

    def calibration_key(self, domain: str) -> str:
        """What an engine keeps a domain's calibration under: equal for equal content, empty where none is read."""
        part = self.header.domains[domain].calibration
        return "" if part is None else f"exported/{part.sha256[:16]}"

    def build(self, domain: str | None = None) -> Policy:
        """The policy with its table, as it was measured; imports torch. Raises UserError where it would be another."""
        domain = self.domain(domain)
        shape = self.shape
        built = build_policy(
            self.rule.name,
            self.params,
            num_layers=shape.num_layers,
            num_experts=shape.num_experts,
            top_k=shape.top_k,
            calibration=self.calibrations[domain],
        )
        if built.digest() != (wanted := self.header.domains[domain].routing_sha256):
            raise UserError(
                f"{self.folder} becomes another policy here than the one that was measured ({domain}: table"
                f" {built.digest()[:16]}, measured {wanted[:16]}): its numbers would not be those of the card. Install"
                f" banpick_exp {self.header.versions.get('banpick_exp', 'of then')}, or run the point again and export"
                " that."
            )
        return built

    def check(self, checkpoint: Checkpoint) -> None:
        """UserError unless `checkpoint` is the one that the policy was measured on."""
        ours, theirs = self.shape, checkpoint.shape
        for name, words in (
            ("num_layers", "MoE layers"),
            ("num_experts", "experts a layer"),
            ("top_k", "experts a token"),
        ):
            if getattr(ours, name) != getattr(theirs, name):
                raise UserError(
                    f"{self.folder} is for {getattr(ours, name)} {words}, {checkpoint.location} has"
                    f" {getattr(theirs, name)} ({name}): it is of another model, {self._model}. {self._remedy}"
                )
        if checkpoint.identity != self.header.model.identity:
            raise UserError(
                f"{self.folder} was measured on {self._model}, {checkpoint.location} is {checkpoint.identity}: the"
                f" same expert is another one there, and no measured number holds. {self._remedy}"
            )

    @property
    def _model(self) -> str:
        model = self.header.model
        return f"{model.id or model.name} ({model.identity})"

    @property
    def _remedy(self) -> str:
        model = self.header.model
        if model.id is not None:
            revision = f" at revision {model.revision}" if model.revision else ""
            return f"Load {model.id}{revision}, by that id, or run a sweep on this model and export from that."
        return "Load that checkpoint, byte for byte, or run a sweep on this model and export from that."


def load(folder: str | Path) -> Exported:
    """The policy in a folder that `python -m banpick_exp export` wrote.

    Raises UserError, with the reason: no such folder, a newer schema, something edited, damaged, missing or added,
    rules that route otherwise than then. README.md is not read, and hidden files (.gitattributes) are passed over.
    """
    folder = Path(folder).expanduser()
    header = _header(folder)
    contents = _contents(folder, header)
    if header.routing_version != ROUTING_VERSION:
        raise UserError(
            f"{folder} was measured under version {header.routing_version} of the rules, here it is {ROUTING_VERSION}:"
            " the same knobs route otherwise. Install banpick_exp"
            f" {header.versions.get('banpick_exp', 'of then')}, or run the point again and export that."
        )
    shape = MoeShape(**header.shape.model_dump())
    given = {**header.policy, **{knob: str((folder / file).absolute()) for knob, file in header.policy_files.items()}}
    rule = parse_policy(given.pop("name"), given, shape)
    if set(rule.files()) != set(header.policy_files):
        raise UserError(
            f"{folder / HEADER} names a file outside of the folder for {', '.join(rule.files())}: nothing else is read."
            f" {AGAIN}"
        )
    return Exported(
        folder=folder,
        header=header,
        rule=rule,
        shape=shape,
        calibrations=_calibrations(folder, header, contents, shape),
    )


def _header(folder: Path) -> Header:
    path = folder / HEADER
    if not path.is_file():
        what = f"has no {HEADER}" if folder.is_dir() else "is no folder"
        raise UserError(
            f"{folder} {what}, so it is no exported policy. Type the folder that python -m banpick_exp export wrote."
        )
    try:
        plain = json.loads(path.read_bytes())
        if not isinstance(plain, dict) or plain.get("format") != FORMAT:
            raise ValueError(f"its format is not {FORMAT!r}")
        version = plain.get("schema_version")
    except OSError as error:
        raise UserError(f"{path} cannot be opened ({error.strerror}). Mend the permission.") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is no header of an exported policy ({error}). {AGAIN}") from None
    if version != SCHEMA_VERSION:
        newer = isinstance(version, int) and version > SCHEMA_VERSION
        raise UserError(
            f"{path} has schema_version {version}, this version reads {SCHEMA_VERSION}: its fields could mean something"
            f" else. {'Install a newer banpick_exp, or export' if newer else 'Export'} the point again with this one."
        )
    try:
        seal = plain.pop(SEAL, None)
        if seal != digest_of_json(plain):
            raise ValueError(f"its content is not that of its {SEAL}")
        return Header.model_validate(plain)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise UserError(f"{path} is damaged ({place}: {first['msg']}). {AGAIN}") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} was edited or is damaged: {error}. {AGAIN}") from None


def _contents(folder: Path, header: Header) -> dict[str, bytes]:
    """The files that routing depends on. UserError for one that is missing, another than then, or not among them."""
    try:
        there = {path.name for path in folder.iterdir() if not path.name.startswith(".")}
    except OSError as error:
        raise UserError(f"{folder} cannot be listed ({error.strerror}). Mend the permission.") from None
    if missing := sorted({*header.files, *header.policy_files.values()} - there):
        raise UserError(f"{folder} lacks {', '.join(missing)}: it was not copied whole. {AGAIN}")
    if extra := sorted(there - set(header.files) - {HEADER, CARD}):
        raise UserError(
            f"{folder} holds {', '.join(extra)}, which the export did not write: nobody can say what that is for. Move"
            " it elsewhere; what you have to say stands well in README.md."
        )
    contents = {}
    for name, wanted in header.files.items():
        try:
            contents[name] = (folder / name).read_bytes()
        except OSError as error:
            raise UserError(f"{folder / name} cannot be opened ({error.strerror}). Mend the permission.") from None
        if (found := digest(contents[name])) != wanted:
            raise UserError(
                f"{folder / name} has the digest {found[:16]}, {HEADER} says {wanted[:16]}: it was edited or is"
                f" damaged, and would route otherwise than what was measured. {AGAIN}"
            )
    return contents


def _calibrations(
    folder: Path, header: Header, contents: Mapping[str, bytes], shape: MoeShape
) -> dict[str, Calibration | None]:
    try:
        arrays: dict[str, Any] = arrays_by_domain(arrays_in(contents[TENSORS]) if TENSORS in contents else {})
        found: dict[str, Calibration | None] = {}
        for domain, policy in header.domains.items():
            own: dict[str, np.ndarray] = arrays.pop(domain, {})
            if policy.calibration is None:
                found[domain] = None
                if own:
                    raise ValueError(f"nothing reads {', '.join(sorted(own))} of {domain}")
                continue
            if digest_of_arrays(own) != policy.calibration.sha256:
                raise ValueError(f"the arrays of {domain} are not those of its digest")
            found[domain] = calibration_of(policy.calibration.parts, own, shape)
        if arrays:
            raise ValueError(f"it has arrays of {', '.join(sorted(arrays))}, of which nothing was measured")
    except (ValueError, SafetensorError) as error:
        raise UserError(f"{folder / TENSORS} cannot be used: {error}. {AGAIN}") from None
    return found
