"""Which policies a server answers under: `BANPICK_POLICY` read, every folder opened and held against the checkpoint.

    BANPICK_POLICY=OUT/                               one policy, for every request
    BANPICK_POLICY=fast=OUT1/,careful=OUT2/@math      several: a request names one of them, or stock
    BANPICK_DEFAULT_POLICY=careful                    for requests that name none; else the first

Nothing here imports vLLM or torch: a mistake is told before a model is loaded.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from banpick_exp.config import fingerprint, suggestion
from banpick_exp.errors import UserError
from banpick_exp.models.checkpoint import Checkpoint
from banpick_exp.models.config import ModelConfig
from banpick_exp.models.inspect import inspect_checkpoint
from banpick_exp.policy.exported import Exported, load

POLICY = "BANPICK_POLICY"
DEFAULT = "BANPICK_DEFAULT_POLICY"
STOCK = "stock"
"""The name of vLLM's own routing, beside named policies."""
ONLY = "policy"
"""The name of a policy that was given without one."""
MOST_POLICIES = 64
"""At once: every layer holds a table row of each."""

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
NAMED = re.compile(rf"({NAME.pattern})=(.*)", re.DOTALL)
SNAPSHOT = re.compile(r"models--([^/]+?)--([^/]+)/snapshots/([^/]+)$")
"""Where the Hugging Face cache keeps one revision of a checkpoint."""
COMMIT = re.compile("[0-9a-f]{40}")


@dataclass(frozen=True, kw_only=True, slots=True)
class Served:
    """One policy of a server, by the name that requests use."""

    name: str
    exported: Exported | None
    """None: stock."""
    domain: str | None
    """Of the calibration that it follows; None of stock."""

    @property
    def label(self) -> str:
        """`pick boost=1 key_experts=4`, or `stock`."""
        return STOCK if self.exported is None else self.exported.header.label

    @property
    def fingerprint(self) -> str:
        """Of how it routes, 16 hex digits: equal ones route alike, on any machine."""
        if self.exported is None:
            return fingerprint([STOCK])
        assert self.domain is not None
        return self.exported.header.domains[self.domain].routing_sha256[:16]

    @property
    def max_kept(self) -> int:
        """The most experts a token can keep in any layer; 0 of stock, which keeps what the model does."""
        if self.exported is None:
            return 0
        assert self.domain is not None
        return self.exported.header.domains[self.domain].max_kept

    def wire(self) -> list[str]:
        """As `RoutingExtension.banpick_set_policies` takes it: name of the rule, its knobs as JSON, calibration key."""
        if self.exported is None:
            return ["none", "{}", ""]
        assert self.domain is not None
        key = self.exported.calibration_key(self.domain)
        return [self.exported.rule.name, json.dumps(self.exported.params), key]

    def calibration_wire(self) -> tuple[str, str] | None:
        """Key and JSON of the calibration that it reads, as `banpick_load_calibration` takes them."""
        if self.exported is None:
            return None
        assert self.domain is not None
        calibration = self.exported.calibrations[self.domain]
        return None if calibration is None else (self.exported.calibration_key(self.domain), calibration.to_json())


def served_policies(environment: Mapping[str, str]) -> tuple[Served, ...]:
    """The policies in the order of their table rows: the default first, which is row 0.

    Raises UserError for a folder that is no exported policy, a name that cannot be or is there twice, and a default
    that is none of them.
    """
    typed = environment.get(POLICY, "")
    entries = [entry.strip() for entry in typed.split(",") if entry.strip()]
    if not entries:
        raise UserError(f"{POLICY}={typed!r} names no folder: nothing can be served. Type {POLICY}=OUT/")
    if len(entries) == 1 and (NAMED.fullmatch(entries[0]) is None or Path(entries[0]).is_dir()):
        served = [served_folder(ONLY, entries[0])]
        names = {ONLY: served[0]}
    else:
        names = {}
        for entry in entries:
            match = NAMED.fullmatch(entry)
            if match is None:
                raise UserError(
                    f"{POLICY}: {entry!r} has no name that a request could use. Type NAME=FOLDER/, letters, digits,"
                    f" `-`, `_` and `.`, such as {POLICY}=fast=OUT1/,careful=OUT2/"
                )
            name, folder = match[1], match[2]
            if name == STOCK or name in names:
                what = "is vLLM's own routing, always there" if name == STOCK else "is there twice"
                raise UserError(f"{POLICY}: the name {name} {what}: a request could not say which. Type another name.")
            names[name] = served_folder(name, folder)
        names[STOCK] = Served(name=STOCK, exported=None, domain=None)
    if len(names) > MOST_POLICIES:
        raise UserError(f"{POLICY} names {len(names)} policies with stock: an engine holds at most {MOST_POLICIES}.")
    default = environment.get(DEFAULT) or next(iter(names))
    if default not in names:
        near = suggestion(default, names)
        raise UserError(f"{DEFAULT}={default} is none of {POLICY}. {near}Type one of {', '.join(names)}.")
    return (names[default], *(each for name, each in names.items() if name != default))


def served_folder(name: str, typed: str) -> Served:
    """The policy of `FOLDER/` or `FOLDER/@DOMAIN`. UserError where it cannot be loaded, or which domain is unsaid."""
    folder, domain = typed, None
    if "@" in typed and not Path(typed).expanduser().is_dir():
        folder, _, domain = typed.rpartition("@")
    exported = load(folder)
    try:
        return Served(name=name, exported=exported, domain=exported.domain(domain))
    except UserError as error:
        example = f"{str(folder).rstrip('/')}/@{exported.domains[0]}"
        raise UserError(f"{error} Behind the folder, after @: {POLICY}={example}") from None


def checkpoint_served(served: Served, model: str, revision: str | None) -> Checkpoint:
    """The checkpoint that vLLM is told to load, as it was named when the policy was measured; no network.

    vLLM, offline, puts the folder of the Hub's cache in the place of an id; both are one checkpoint.
    """
    assert served.exported is not None
    header = served.exported.header
    if header.model.identity.startswith("hub:") and (cached := SNAPSHOT.search(model.rstrip("/"))):
        model = f"{cached[1]}/{cached[2]}"
        # A commit stands in the folder's name; a branch that was measured (main) is taken at its word, as the id is.
        if COMMIT.fullmatch(header.model.revision or ""):
            revision = cached[3]
    sizes = {} if Path(model).expanduser().is_dir() else header.shape.model_dump()
    return inspect_checkpoint(
        ModelConfig.model_validate({"name": "served", "path": model, "revision": revision, **sizes})
    )


def check_slots(served: Served, slots: int | None, top_k: int) -> None:
    """UserError where a policy keeps more experts a token than a compiled engine has slots; None: an eager engine."""
    if slots is not None and served.max_kept > slots:
        raise UserError(
            f"{served.name} ({served.label}) keeps up to {served.max_kept} experts a token, the compiled engine has"
            f" {slots} slots: the others would be lost. Add --enforce-eager, or --additional-config"
            f""" '{{"banpick_extra_slots": {served.max_kept - top_k}}}'"""
        )
