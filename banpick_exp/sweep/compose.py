"""conf/ through Hydra, in one process: a combination of group choices is composed once, values are set on copies."""

from __future__ import annotations

import copy
import functools
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from banpick_exp.config import Section, shown, suggestion, validated
from banpick_exp.engine.config import EngineConfig
from banpick_exp.errors import UserError
from banpick_exp.evaluation.calibration.config import CalibrationConfig
from banpick_exp.models.checkpoint import Checkpoint
from banpick_exp.models.config import ModelConfig
from banpick_exp.models.dtype import computed_dtype
from banpick_exp.models.inspect import inspect_checkpoint
from banpick_exp.models.made_from import made_from
from banpick_exp.models.shape import MoeShape
from banpick_exp.policy import parse_policy
from banpick_exp.policy.budget import BUDGET, with_budget
from banpick_exp.policy.registry import rule_named
from banpick_exp.policy.rule import Rule
from banpick_exp.sweep.config import SEARCHES, Hardware, RunBudget, RunConfig, SweepConfig, search_config
from banpick_exp.sweep.overrides import Assignment
from banpick_exp.tasks.config import TaskConfig

GROUPS = ("engine", "model", "policy", "task", "cluster", "tracking", "search", "hardware", "sweep")
POINT_KEYS = ("engine", "model", "policy", "task", "calibration", "seed", "repeat")
"""First words of the keys that may differ between points, and so may be axes."""
RUN_KEYS = (
    *("cluster", "tracking", "search", "sweep", "study", "scale"),
    *("output_dir", "run", "resume", "dry_run", "repeats", "hardware", "budget"),
)
"""First words of the keys that hold for the whole run."""


@dataclass(frozen=True, kw_only=True)
class Setting:
    """Everything about a point but its policy."""

    model: ModelConfig
    """With the dtype that `auto` stands for."""
    dtype_reason: str
    engine: EngineConfig
    task: TaskConfig
    calibration: CalibrationConfig
    seed: int
    repeat: int
    checkpoint: Checkpoint


def _leaves(tree: Mapping[Any, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    """`calibration.score` and its value, of a tree."""
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from _leaves(value, f"{above}{key}.")
        else:
            yield f"{above}{key}", value


def conf_dir() -> Path:
    """The folder of YAML files: inside the package when installed, beside it in a checkout."""
    here = Path(__file__).resolve().parent.parent
    for folder in (here / "conf", here.parent / "conf"):
        if (folder / "config.yaml").is_file():
            return folder
    raise UserError(
        f"conf/config.yaml is neither in {here} nor beside it: the installation is incomplete. Install it again."
    )


def choices(group: str) -> list[str]:
    """The names a group offers: `choices("policy")` has pick in it."""
    return sorted(path.stem for path in (conf_dir() / group).glob("*.yaml"))


class Composer:
    """Composes runs, settings and policies for one command; `sweep` is the shipped search space, or None."""

    def __init__(self, sweep: str | None = None) -> None:
        self._sweep = sweep
        self._settings: dict[str, Setting] = {}
        self._checkpoints: dict[ModelConfig, Checkpoint] = {}
        self._policies: dict[str, dict[str, Any]] = {}
        if sweep is not None:
            check_choice("sweep", sweep)

    def run_config(
        self, values: Assignment, sections: Mapping[str, type[Section]]
    ) -> tuple[RunConfig, dict[str, Section]]:
        """The settings of the whole run, with `values` (of RUN_KEYS) in place.

        `sections`: those of other rooms (cluster, tracking), by their name in conf/, to be checked with them.
        """
        tree = self._resolved(values)
        others = {name: validated(section, tree[name], name) for name, section in sections.items()}
        sweep = validated(SweepConfig, tree["sweep"], "sweep")
        search = search_config(_of_typed_search(tree["search"], values))
        parts = {
            "sweep": sweep,
            "search": search,
            "hardware": validated(Hardware, tree["hardware"], "hardware"),
            "budget": validated(RunBudget, tree["budget"], "budget"),
        }
        plain = {key: tree.get(key) for key in ("output_dir", "run", "resume", "dry_run", "repeats")}
        return validated(RunConfig, plain | parts), others

    @functools.cached_property
    def beside_the_space(self) -> Assignment:
        """What the sweep's own file sets for every point: without `+sweep=` it has to be typed."""
        if self._sweep is None:
            return {}
        tree = OmegaConf.to_container(OmegaConf.load(conf_dir() / "sweep" / f"{self._sweep}.yaml"))
        assert isinstance(tree, dict)
        return dict(_leaves({key: value for key, value in tree.items() if key in POINT_KEYS and key != "policy"}))

    def setting(self, assignment: Assignment) -> Setting:
        """Model, engine, task, calibration, seed and repeat of an assignment; read once for equal values."""
        values = {key: value for key, value in assignment.items() if not key.startswith("policy")}
        cache_key = json.dumps(values, sort_keys=True, default=str)
        if cache_key not in self._settings:
            self._settings[cache_key] = self._read_setting(values)
        return self._settings[cache_key]

    def _read_setting(self, values: Assignment) -> Setting:
        if values.get("model.path") is not None and "model" not in values:
            values = {"model": "local", **values}  # another checkpoint has other sizes than the default's
        if "model.path" in values:
            values = {"model.revision": None, **values}  # a commit of one repository is none of another's
        tree = self._resolved(values)
        model = validated(ModelConfig, tree["model"], "model")
        if model.name == "local" and model.path is not None:
            model = model.model_copy(update={"name": Path(model.path).expanduser().name})
        shape = self._checkpoint(model).shape
        seed = tree["seed"]
        if isinstance(seed, bool) or not isinstance(seed, int):
            raise UserError(f"seed={shown(seed)} is no whole number: the run could not be repeated. Type e.g. seed=0.")
        if not 0 <= seed < 2**32:
            raise UserError(f"seed={seed} is outside 0 to {2**32 - 1}: the engine would refuse it. Type e.g. seed=0.")
        repeat = tree["repeat"]
        if isinstance(repeat, bool) or not isinstance(repeat, int) or repeat < 0:
            raise UserError(
                f"repeat={shown(repeat)} is no repeat: 0 is the point itself, 1 its first repeat. Type repeat=1."
            )
        task = _anchored(validated(TaskConfig, tree["task"], "task"))
        checkpoint = self._checkpoint(model)
        engine = _sized(validated(EngineConfig, tree["engine"], "engine"), checkpoint, task, values)
        computed = computed_dtype(model.dtype, checkpoint.stored, on_gpu=engine.gpus > 0)
        return Setting(
            model=model.model_copy(update={"dtype": computed.dtype}),
            dtype_reason=computed.reason,
            engine=engine,
            task=task,
            calibration=_settled(validated(CalibrationConfig, tree["calibration"], "calibration"), shape, task),
            seed=seed,
            repeat=repeat,
            checkpoint=checkpoint,
        )

    def _checkpoint(self, model: ModelConfig) -> Checkpoint:
        """What `model` names, with what it was made from; read once."""
        if model not in self._checkpoints:
            found = inspect_checkpoint(model)
            if model.made_from is not None:
                found = made_from(found, self._checkpoint(self._base(model.made_from)), model.made_from)
            self._checkpoints[model] = found
        return self._checkpoints[model]

    def _base(self, typed: str) -> ModelConfig:
        """The model that model.made_from names: one of conf/model by its name or Hub id, or a folder."""
        known = [name for name in choices("model") if name != "local"]
        if typed not in known and not Path(typed).expanduser().is_dir():
            read = {name: self._resolved({"model": name})["model"] for name in known}
            typed_id = next((name for name, tree in read.items() if tree["path"] == typed), None)
            if typed_id is None:
                near = suggestion(typed, known, "model.made_from=")
                raise UserError(
                    f"model.made_from={typed} is no folder and no model of conf/model: there is nothing to compare"
                    f" with. {near}Type the folder of the checkpoint that it was made from, or its name there."
                )
            typed = typed_id
        if typed in known:
            return validated(ModelConfig, self._resolved({"model": typed})["model"], "model")
        return ModelConfig(name=Path(typed).expanduser().name, path=typed)

    def policy(self, assignment: Assignment, shape: MoeShape) -> tuple[Rule, float | None]:
        """The rule an assignment names, parsed and checked against the checkpoint's sizes.

        And the budget that its knob is still to be solved for, None where every knob has its value.
        """
        chosen = assignment.get("policy", "none")
        known = isinstance(chosen, str) and chosen in self._policies  # conf/ is not listed again for each point
        name = chosen if known else check_choice("policy", chosen)
        if name not in self._policies:
            tree = OmegaConf.to_container(_composed(conf_dir(), (f"policy={name}",)), resolve=True)
            assert isinstance(tree, dict)
            self._policies[name] = {key: value for key, value in tree["policy"].items() if key != "name"}
        typed = {key.removeprefix("policy."): value for key, value in assignment.items() if key.startswith("policy.")}
        superseded = rule_named(name).superseded_knobs(typed)
        usual = {key: value for key, value in self._policies[name].items() if key not in superseded}
        given = {key: value for key, value in (usual | typed).items() if value is not None}
        knobs = rule_named(name).derived_knobs(shape) | given
        budget = knobs.pop(BUDGET, None)
        if budget is not None:
            return with_budget(name, typed, knobs, shape)
        return parse_policy(name, knobs, shape), None

    def _resolved(self, values: Assignment) -> dict[str, Any]:
        """The whole tree for `values`, interpolations resolved; group choices compose, other keys are set on a copy."""
        groups = {key: check_choice(key, value) for key, value in values.items() if key in GROUPS}
        tree = copy.deepcopy(self._compose(groups))
        for key, value in values.items():
            if key in GROUPS:
                continue
            check_key(key)
            try:
                OmegaConf.update(tree, key, value, merge=False, force_add=True)
            except (OmegaConfBaseException, ValueError, TypeError) as error:
                raise UserError(f"{key}={shown(value)} cannot be set: {error}. Nothing was started.") from None
        try:
            plain = OmegaConf.to_container(tree, resolve=True)
        except OmegaConfBaseException as error:
            raise UserError(f"A setting refers to another that is not there: {error}. Nothing was started.") from None
        assert isinstance(plain, dict)
        return {str(key): value for key, value in plain.items()}

    def _compose(self, groups: Mapping[str, str]) -> DictConfig:
        overrides = sorted(f"{group}={name}" for group, name in groups.items())
        if self._sweep is not None:
            overrides.append(f"+sweep={self._sweep}")
        return _composed(conf_dir(), tuple(overrides))


@functools.lru_cache(maxsize=256)
def _composed(folder: Path, overrides: tuple[str, ...]) -> DictConfig:
    """Shared by every caller, so it is never changed: 0.1 s of CPU time that a thousand points pay once."""
    with initialize_config_dir(version_base="1.3", config_dir=str(folder)):
        return compose("config", overrides=list(overrides))


def _anchored(task: TaskConfig) -> TaskConfig:
    """With an absolute path: an engine may run in another folder, or under another home."""
    changed: dict[str, Any] = {}
    if task.data_files is not None:
        changed["data_files"] = str(Path(task.data_files).expanduser().absolute())
    if task.source is not None and task.name.endswith((".yaml", ".yml")):
        changed["name"] = str(Path(task.name).expanduser().absolute())
    return task.model_copy(update=changed)


def _of_typed_search(shipped: dict[str, Any], values: Assignment) -> dict[str, Any]:
    """Without what a shipped sweep sets for its own search, where another was typed."""
    search = SEARCHES.get(str(shipped.get("name")))
    if "search" not in values or search is None:
        return shipped
    kept = {*search.model_fields, *(key.removeprefix("search.") for key in values)}
    return {key: value for key, value in shipped.items() if key in kept}


def _sized(engine: EngineConfig, checkpoint: Checkpoint, task: TaskConfig, values: Assignment) -> EngineConfig:
    """A shipped max_model_len gives way to what the task needs, and that to a checkpoint made for less; a typed one
    is the user's to see."""
    if "engine.max_model_len" in values:
        return engine
    needed = engine.max_model_len if task.prompt_tokens is None else task.prompt_tokens + task.max_tokens
    most = needed if checkpoint.max_positions is None else min(needed, checkpoint.max_positions)
    return engine if most == engine.max_model_len else engine.model_copy(update={"max_model_len": most})


def _settled(settings: CalibrationConfig, shape: MoeShape, task: TaskConfig) -> CalibrationConfig:
    """With an absolute path, no more problems than the task has, and what follows from checkpoint and task for null."""
    path = None if settings.path is None else str(Path(settings.path).expanduser().absolute())
    k_min = shape.usual_k_min if settings.k_min is None else settings.k_min
    samples = settings.samples if task.max_problems is None else min(settings.samples, task.max_problems)
    tokens = settings.settled_tokens(task)
    return settings.model_copy(update={"path": path, "k_min": k_min, "samples": samples, "max_tokens": tokens})


def check_choice(group: str, name: object) -> str:
    """`name` if conf/`group` has it, else a UserError with the nearest and all of them."""
    offered = choices(group)
    if isinstance(name, str) and name in offered:
        return name
    plus = "+" if group == "sweep" else ""
    near = suggestion(str(name), offered, f"{plus}{group}=")
    raise UserError(
        f"{plus}{group}={shown(name)} is unknown: there is no such {group}, so nothing was started. {near}"
        f"Choices: {', '.join(offered)}."
    )


def check_key(key: str) -> None:
    """UserError unless the first word of `key` is a setting."""
    known = (*POINT_KEYS, *RUN_KEYS)
    first = key.split(".")[0]
    if first in known:
        return
    raise UserError(
        f"{key} is no setting: it would be ignored, so nothing was started. {suggestion(first, known)}"
        f"Settings begin with: {', '.join(sorted(known))}."
    )
