"""The command line, sorted by what each override is about: the run, the sweep, the policy, or the rest of a point."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from banpick_exp.config import suggestion
from banpick_exp.errors import UserError
from banpick_exp.sweep.compose import GROUPS, POINT_KEYS, RUN_KEYS, check_key, choices
from banpick_exp.sweep.overrides import interval_of, is_symbolic, key_of, parse_axis
from banpick_exp.sweep.study import expanded


@dataclass(kw_only=True, slots=True)
class Command:
    """What was typed. Texts are kept as typed, because axes expand later, against a checkpoint."""

    sweep: str | None = None
    """The shipped search space, from +sweep=NAME."""
    run_values: dict[str, Any] = field(default_factory=dict)
    """Keys that hold for the whole run, with one value each."""
    policy: list[str] = field(default_factory=list)
    """policy=... and policy.KNOB=..."""
    settings: list[str] = field(default_factory=list)
    """Engine, model, task, calibration and seed."""
    params: list[str] | None = None
    """sweep.params, None when not typed."""


def parse_command(arguments: Sequence[str]) -> Command:
    """Sorts overrides, those of a `study=NAME` included.

    Raises UserError for what is no override, an unknown key, or an axis over a run's setting.
    """
    command, seen = Command(), dict[str, str]()
    for text in arguments:
        _check_form(text)
    for text in expanded(arguments):
        key = key_of(text)
        check_key(key)
        if key in seen:
            axis = f", or both values in one axis: {key}=choice(A,B)" if key.split(".")[0] in POINT_KEYS else ""
            raise UserError(
                f"{key} is typed twice, as {seen[key]} and as {text}: which value counts would be a guess. Type it"
                f" once{axis}."
            )
        seen[key] = text
        first = key.split(".")[0]
        if first == "policy":
            command.policy.append(text)
        elif first in POINT_KEYS:
            command.settings.append(text)
        elif key == "sweep":
            command.sweep = str(_single(text))
        elif key == "sweep.params":
            command.params = _texts(text)
        else:
            command.run_values[key] = _single(text)
    _check_params(command)
    for key in ("output_dir", "resume", "run"):  # a folder named 2026, 007 or 1_0 is still a name
        if not isinstance(command.run_values.get(key, ""), str | None):
            command.run_values[key] = seen[key].partition("=")[2].strip()
    if command.run_values.get("resume") == "":
        raise UserError("resume= names no run: there is nothing to continue. Type resume=NAME, or leave it out.")
    for text in [*command.policy, *command.settings]:
        if not is_symbolic(text) and interval_of(text) is None:
            parse_axis(text)
    return command


def _check_params(command: Command) -> None:
    """UserError for a key that sweep.params has twice, or that is typed beside it: one of the two would be dropped."""
    beside = {key_of(text): text for text in (*command.policy, *command.settings)}
    for text in command.params or ():
        key = key_of(text)
        if key in beside:
            raise UserError(
                f"{beside[key]} and {text} (in sweep.params) both set {key}: which one counts would be a guess. Type it"
                f" once: leave {key} out of sweep.params, or out of the command."
            )
        beside[key] = text


HYDRA_FLAGS = {
    ("-m", "--multirun"): "Axes need no flag: leave it out, 'policy.k=choice(2,4)' is a sweep already.",
    ("-c", "--cfg", "--info", "--resolve", "--package"): "To see what would run type dry_run=true.",
    ("--hydra-help",): "Type --help.",
    ("-cd", "--config-dir", "-cp", "--config-path"): (
        "Files of your own are not read: type their keys, e.g. policy.lambda=0.5, or sweep.params=[...]."
    ),
    ("-cn", "--config-name"): "A search space of ours is +sweep=NAME, e.g. +sweep=pick_strength.",
}
"""Flags of Hydra's own command line, which is not run here -> what to type instead."""


def _check_encoded(text: str) -> None:
    """UserError for bytes that are no text here: they could be written into no record, and would match no answer."""
    try:
        text.encode()
    except UnicodeEncodeError:
        plain = os.fsencode(text).decode(errors="replace")
        locale = sys.getfilesystemencoding()
        if locale != "utf-8" and "\N{REPLACEMENT CHARACTER}" not in plain:
            remedy = f"Type PYTHONUTF8=1 before python (without -X utf8=0): what is typed is taken for {locale} here"
        else:
            remedy = "Type it in UTF-8, or rename the file"
        raise UserError(
            f"{plain} has bytes that are no text: it could not be written into a record. {remedy}."
        ) from None


def _check_form(text: str) -> None:
    _check_encoded(text)
    if text.startswith("-"):
        flag = text.partition("=")[0]
        if remedy := next((said for flags, said in HYDRA_FLAGS.items() if flag in flags), None):
            raise UserError(f"{text} is a flag of Hydra's own command line: nothing was started. {remedy}")
        name, _, value = text.lstrip("-").partition("=")
        name = name.replace("-", "_")
        typed = f"{name}={value or ('true' if name == 'dry_run' else 'VALUE')}"
        dashes = f"Settings have no dashes: {typed}. " if name.split(".")[0] in (*POINT_KEYS, *RUN_KEYS) else ""
        raise UserError(f"{text} is no option: nothing was started. {dashes}For help type --help.")
    if text.startswith("~") and text.strip("~"):
        raise UserError(f"{text} would remove a setting that is needed. Type {text.strip('~')}=VALUE instead.")
    if "=" in text and key_of(text):
        return
    if not text.strip("+~= \n\t"):
        raise UserError(f"{shlex.quote(text)} names no setting: nothing was started. A setting is KEY=VALUE.")
    if text == "help":
        raise UserError("help is no setting: nothing was started. For help type --help.")
    offers = {
        name: f"{'+' if group == 'sweep' else ''}{group}={name}"
        for group in reversed(GROUPS)
        for name in choices(group)
    }
    keys = [*POINT_KEYS, *RUN_KEYS]
    remedy = f"Did you mean {offers[text]}?" if text in offers else suggestion(text, keys).replace("? ", "=VALUE?")
    raise UserError(f"{text} has no value: nothing was started. A setting is KEY=VALUE. {remedy}".strip())


def _single(text: str) -> Any:
    axis = parse_axis(text)
    if axis.swept:
        raise UserError(
            f"{text} would vary a setting of the whole run: it can have one value only. Type one value, or run the"
            f" command once for each. Axes can be over {', '.join(POINT_KEYS)}."
        )
    return axis.values[0]


def _texts(text: str) -> list[str]:
    value = _single(text)
    if not isinstance(value, list) or not all(isinstance(entry, str) for entry in value):
        raise UserError(
            f"{text} is no list of overrides, so there is no search space."
            """ Type e.g. sweep.params='["policy.boost=choice(0.5,1)","policy.key_experts=4"]'."""
        )
    for entry in value:
        if key_of(entry).split(".")[0] not in POINT_KEYS or "=" not in entry:
            raise UserError(
                f"sweep.params holds {entry!r}, which is no setting of a point: it cannot be varied there."
                f" Entries look like 'policy.boost=choice(0.5,1)' and begin with {', '.join(POINT_KEYS)}."
            )
    if not value:
        raise UserError(
            "sweep.params=[] is a sweep with zero points: there is nothing to run. Leave it out, or name an axis."
        )
    return value
