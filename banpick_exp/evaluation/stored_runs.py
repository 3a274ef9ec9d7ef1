"""Graded answers of a domain as JSON: what blocks, and pieces of blocks, hold of them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from pydantic import TypeAdapter

from banpick_exp.evaluation.answer import DomainPolicy, DomainRun
from banpick_exp.records import Counters, FailedProblem, Outcome

_OUTCOMES: TypeAdapter[list[Outcome]] = TypeAdapter(list[Outcome])
_COUNTERS: TypeAdapter[Counters] = TypeAdapter(Counters)
_ROWS: TypeAdapter[tuple[Counters, ...]] = TypeAdapter(tuple[Counters, ...])
_FAILED: TypeAdapter[tuple[FailedProblem, ...]] = TypeAdapter(tuple[FailedProblem, ...])
"""What a file holds is of these types, or it is none of ours."""


def run_as_json(run: DomainRun) -> dict[str, Any]:
    told = [{key: value for key, value in asdict(outcome).items() if value is not None} for outcome in run.outcomes]
    failed = {"failed": [each.model_dump() for each in run.failed]} if run.failed else {}
    rows = {"rows": [asdict(counters) for counters in run.rows]} if run.rows else {}
    return {"outcomes": told, "counters": asdict(run.counters), **failed, **rows}


def run_from_json(part: Mapping[str, Any]) -> DomainRun:
    """Raises ValueError (pydantic's) or LookupError for what is none."""
    return DomainRun(
        # As JSON again: strict about types, and yet a dict becomes a dataclass.
        _OUTCOMES.validate_json(json.dumps(part["outcomes"]), strict=True),
        _COUNTERS.validate_json(json.dumps(part["counters"]), strict=True),
        _FAILED.validate_json(json.dumps(part.get("failed", [])), strict=True),
        _ROWS.validate_json(json.dumps(part.get("rows", [])), strict=True),
    )


def rules_as_json(policies: Mapping[str, DomainPolicy]) -> dict[str, Any]:
    """Per domain, the canonical form of the rule that is on, as it reads back from JSON."""
    rules = {domain: policy.rule.canonical() for domain, policy in policies.items()}
    plain: dict[str, Any] = json.loads(json.dumps(rules))
    return plain
