"""The text to type to run one point of a sweep again, next to stock."""

from __future__ import annotations

import re
import shlex
from typing import Any

from banpick_exp.policy.budget import policy_of
from banpick_exp.sweep.overrides import key_of
from banpick_exp.sweep.point import Point

WHOLE_RUN = ("cluster", "tracking")
"""First words of the typed settings that hold for any run of this model here; the rest belongs to that one run."""


def rerun_command(command: str, point: Point) -> str:
    """A command whose plan is stock and a point with the same fingerprint, from that of its sweep; for a shell."""
    kept = [word for word in shlex.split(command) if key_of(word).split(".")[0] in WHOLE_RUN]
    settings = [f"{key}={as_typed(value)}" for key, value in point.settings.items()]
    policy = policy_of(point.rule, point.budget)
    words = [f"policy.{knob}={as_typed(value)}" for knob, value in policy.items() if knob != "name"]
    return shlex.join(["python", "-m", "banpick_exp", *kept, *settings, f"policy={point.rule.name}", *words])


def as_typed(value: Any) -> str:
    """`value` in Hydra's grammar. Texts get quotes where the grammar would read something else."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list | tuple):
        return f"[{','.join(map(as_typed, value))}]"
    if isinstance(value, dict):
        return "{" + ",".join(f"{key}:{as_typed(each)}" for key, each in value.items()) + "}"
    if isinstance(value, str) and not (re.fullmatch("[A-Za-z_]+", value) and value.lower() not in _WORDS):
        # Backslashes count twice only before a quote, the closing one included.
        doubled = re.sub(r'(\\+)("|$)', r"\1\1\2", value)
        return '"' + doubled.replace('"', '\\"') + '"'
    return str(value)


_WORDS = ("null", "true", "false", "nan", "inf")
"""Texts that Hydra would take for something else without quotes."""
