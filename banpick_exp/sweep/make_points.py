"""One point of a sweep and its identity: equal fingerprints are the same experiment, and one record."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from banpick_exp.config import fingerprint
from banpick_exp.errors import UserError
from banpick_exp.evaluation.calibration.artifact import SCHEMA_VERSION as CALIBRATION_VERSION
from banpick_exp.evaluation.calibration.artifact import Artifact, check_artifact, check_scored
from banpick_exp.evaluation.calibration.config import CalibrationConfig
from banpick_exp.evaluation.calibration.corpus import read_corpus
from banpick_exp.evaluation.calibration.scores import SCORES, Name, score_of
from banpick_exp.models.dtype import TYPED
from banpick_exp.models.inspect import check_max_model_len
from banpick_exp.models.reward_model import reward_identity
from banpick_exp.policy.budget import label_of, policy_of
from banpick_exp.policy.rule import Rule
from banpick_exp.records import ON
from banpick_exp.sweep.compose import Composer, Setting
from banpick_exp.sweep.identity import engine_fingerprint, point_fingerprint
from banpick_exp.sweep.overrides import Assignment, Block, expand
from banpick_exp.sweep.point import Point
from banpick_exp.sweep.suited_task import suited_task
from banpick_exp.tasks.config import TaskConfig
from banpick_exp.tasks.files import CALIBRATION_SPLIT, TaskFiles, inspect_task
from banpick_exp.tasks.lengths import Reading, check_chat_template, check_prompt_lengths, reading_of
from banpick_exp.tasks.registry import grader_of


@dataclass(frozen=True, kw_only=True, slots=True)
class _Calibration:
    """What a point's policy reads of a calibration, before there is one."""

    identity: dict[str, Any] | None = None
    """Part of the point's fingerprint; None for a policy that reads none."""
    fingerprint: str | None = None
    source: TaskFiles | None = None
    """What it is measured on; None where none is made."""
    score: Name | None = None
    """What ranks the key experts that the policy reads; None where it reads none."""

    @property
    def files(self) -> dict[str, str]:
        """One file a domain."""
        return {} if self.source is None else dict(self.source.paths)


class PointMaker:
    """Turns assignments into points; files are read and hashed once for equal settings."""

    def __init__(self, composer: Composer) -> None:
        self._composer = composer
        self._files: dict[tuple[TaskConfig, str], TaskFiles] = {}
        self._artifacts: dict[tuple[CalibrationConfig, str, tuple[str, ...]], Artifact] = {}
        self._fitting: set[tuple[object, ...]] = set()
        """Prompts that were found to fit."""
        self._sound: set[int] = set()
        """Settings under which the problems can be asked."""
        self._engines: dict[int, str] = {}
        """Fingerprint of a setting's engine. Settings go by their id: the composer keeps each, and gives the same one
        for equal values."""
        self._calibrations: dict[tuple[object, ...], _Calibration] = {}
        """By setting, and all that a rule says of the calibration it reads."""
        self._shared: dict[tuple[object, ...], dict[str, Any]] = {}
        """What the points of a setting have in common: a sweep of thousands holds it once."""
        self._overlaps: dict[tuple[object, ...], int] = {}
        self._texts: dict[Path, str] = {}
        self._readings: dict[tuple[object, ...], dict[str, Reading]] = {}
        self._rewards: dict[str, str] = {}
        """Identity of a reward model by its path."""
        self.notes: dict[str, None] = {}
        """What to tell the user about the points made so far, in order."""

    def assignments(self, block: Block) -> list[Assignment]:
        return expand(block, lambda assignment: self._composer.setting(assignment).checkpoint.shape)

    def suited_task(self, block: Block, *, shipped: bool) -> str | None:
        return suited_task(block, self._composer, shipped=shipped)

    def point(
        self,
        assignment: Assignment,
        varied: Sequence[str] = (),
        policy: tuple[Rule, float | None] | None = None,
    ) -> Point:
        """The point of an assignment. `varied`: keys besides the policy's that its label is to show; `policy`: what
        `policy` gave for it, where that was asked before.

        Raises UserError for what cannot run: knobs, lengths, data, a calibration of another model.
        """
        setting = self._composer.setting(assignment)
        rule, budget = policy or self._composer.policy(assignment, setting.checkpoint.shape)
        _check_graphs(rule, setting)
        _check_pairs(rule, setting)  # what cannot be had at all, before how to have it
        _check_rows(rule, setting)
        _check_slots(rule, setting)
        _check_majority(setting)
        reward_model = self._reward_model(setting.task)
        rule.check_task(setting.task.samples, setting.task.temperature)
        files = self._read(setting, setting.task.split)
        self._check_setting(setting, files)
        self._check_choices(rule, setting, files)
        engine = self._engine(setting)
        calibration = self._calibration(rule, setting, engine)
        identity = functools.partial(
            point_fingerprint,
            policy=policy_of(rule, budget),
            engine=engine,
            task=setting.task,
            data_identity=files.identity,
            calibration=calibration.identity,
            seed=setting.seed,
            base=None if setting.checkpoint.base is None else setting.checkpoint.base.identity,
            reward_model=reward_model,
        )
        return Point(
            rule=rule,
            budget=budget,
            knob_fingerprint=None if budget is None else identity(),
            label=_label(label_of(rule, budget), setting, assignment, varied),
            model=setting.model,
            dtype_reason=setting.dtype_reason,
            engine=setting.engine,
            task=setting.task,
            calibration=setting.calibration,
            seed=setting.seed,
            repeat=setting.repeat,
            checkpoint=setting.checkpoint,
            data_files=files.paths,
            data_identity=files.identity,
            data_missing=files.missing,
            reward_model=reward_model,
            problems=self._once(setting, "problems", _at_most(files.problems, setting.task.max_problems)),
            reading=self._reading(setting, files),
            score=calibration.score,
            calibration_files=self._once(setting, "calibration_files", calibration.files),
            calibration_identity=None if calibration.source is None else calibration.source.identity,
            calibration_overlap=self._overlap(calibration.source, files, setting),
            fingerprint=identity(repeat=setting.repeat),
            engine_fingerprint=engine,
            calibration_fingerprint=calibration.fingerprint,
            settings=self._once(
                setting,
                "settings",
                self._composer.beside_the_space | _typed_settings(assignment) | _chosen_dtype(setting),
            ),
        )

    def policy(self, assignment: Assignment) -> tuple[Rule, float | None]:
        """The assignment's rule, and the budget that its knob is to be solved for.

        Raises UserError where policy and knobs have no room on the assignment's checkpoint.
        """
        return self._composer.policy(assignment, self._composer.setting(assignment).checkpoint.shape)

    def _once(self, setting: Setting, name: str, values: dict[str, Any]) -> dict[str, Any]:
        """The first of equal dicts with the same order of keys; equal ones have the same setting."""
        return self._shared.setdefault((id(setting), name, repr(values)), values)

    def _reward_model(self, task: TaskConfig) -> str | None:
        """Identity of the checkpoint that chooses among answers, None where none does. UserError for what is none."""
        if task.reward_model is None:
            return None
        if task.reward_model not in self._rewards:
            self._rewards[task.reward_model] = reward_identity(task.reward_model)
        return self._rewards[task.reward_model]

    def _engine(self, setting: Setting) -> str:
        if id(setting) not in self._engines:
            identity = setting.checkpoint.identity
            self._engines[id(setting)] = engine_fingerprint(identity, setting.model, setting.engine)
        return self._engines[id(setting)]

    def _calibration(self, rule: Rule, setting: Setting, engine: str) -> _Calibration:
        if not rule.needs_calibration():
            return _Calibration()
        key = (id(setting), rule.reinforces_by(), rule.needs_gain())
        if key not in self._calibrations:
            self._calibrations[key] = self._calibration_of(rule, setting, engine)
        return self._calibrations[key]

    def _calibration_of(self, rule: Rule, setting: Setting, engine: str) -> _Calibration:
        settings = setting.calibration
        artifact = None if settings.path is None else self._checked_artifact(setting)
        labelled = settings.labelled if artifact is None else artifact.settings.get("text") is None
        score = _score(rule, settings, labelled=labelled)
        chosen = {"score": score, "sensitivity": settings.sensitivity}
        if artifact is not None:
            if score is not None:
                check_scored(settings, score)
            if settings.sensitivity == "gold":
                check_scored(settings, "limit_gain")
            identity: dict[str, Any] = {"artifact": artifact.fingerprint, **chosen}
            return _Calibration(identity=identity, fingerprint=artifact.fingerprint, score=score)
        _check_calibration(setting, score)
        source = self._read(setting, CALIBRATION_SPLIT)
        self._check_prompts(setting, source, settings, max(settings.samples, settings.gain_samples))
        made_of = {
            "version": CALIBRATION_VERSION,
            "data": source.identity,
            "chat_template": setting.task.chat_template,
            **settings.measured(),
            "text": None if settings.text is None else self._text_identity(settings),
            "markers": settings.markers_of(setting.task),
        }
        name = fingerprint({"engine": engine, "seed": setting.seed, **made_of})
        return _Calibration(identity=made_of | chosen, fingerprint=name, source=source, score=score)

    def _text_identity(self, settings: CalibrationConfig) -> str:
        """Of the documents that a calibration reads. UserError where there are too few."""
        path = Path(str(settings.text))
        if path not in self._texts:
            self._texts[path] = fingerprint(read_corpus(path, settings.samples))
        return self._texts[path]

    def _check_setting(self, setting: Setting, files: TaskFiles) -> None:
        """UserError where an engine could not ask the problems; once for a setting, whatever the policies."""
        if id(setting) in self._sound:  # the composer keeps it, and gives the same one for equal values
            return
        check_max_model_len(setting.checkpoint, setting.engine.max_model_len)
        check_chat_template(setting.task, Path(setting.checkpoint.location))
        _check_lengths(setting)
        self.notes |= dict.fromkeys(setting.checkpoint.notes)
        self._check_prompts(setting, files, setting.task, setting.task.max_problems)
        self._sound.add(id(setting))

    def _check_prompts(
        self, setting: Setting, files: TaskFiles, asks: TaskConfig | CalibrationConfig, limit: int | None
    ) -> None:
        """UserError where a prompt and its answer do not fit the engine; once for equal settings."""
        room = setting.engine.max_model_len
        most = asks.max_tokens if isinstance(asks, TaskConfig) else asks.answer_tokens
        key = (files.identity, setting.checkpoint.identity, most, room, limit)
        if key in self._fitting:
            return
        folder = Path(setting.checkpoint.location)
        note = check_prompt_lengths(
            files.loaded,
            folder,
            max_tokens=most,
            max_model_len=room,
            limit=limit,
            max_positions=setting.checkpoint.max_positions,
            setting=f"{'task' if asks is setting.task else 'calibration'}.max_tokens",
        )
        self._fitting.add(key)
        if note is not None:
            self.notes.setdefault(note)

    def _reading(self, setting: Setting, files: TaskFiles) -> dict[str, Reading]:
        """What is read of choices, domain by domain; looked at once for equal files."""
        limit, folder = setting.task.max_problems, Path(setting.checkpoint.location)
        key = (files.identity, folder, limit)
        if key not in self._readings:
            found = {domain: reading_of(items[:limit], folder) for domain, items in files.loaded.items()}
            self._readings[key] = {domain: reading for domain, reading in found.items() if reading is not None}
        return self._readings[key]

    def _check_choices(self, rule: Rule, setting: Setting, files: TaskFiles) -> None:
        if len(rule.parts) > 1 and (domains := self._reading(setting, files)):
            raise UserError(
                f"policy={rule.name} answers a problem several times, each time under another rule, and task="
                f"{setting.task.name} ({', '.join(domains)}) reads its answers off the likelihood of choices, one time:"
                " all rows but the first would be left out. Type a task whose answers are written, e.g. task=gsm8k, or"
                " another policy."
            )

    def _overlap(self, source: TaskFiles | None, asked: TaskFiles, setting: Setting) -> int:
        """How many problems are asked by a point and by its calibration too; counted once for equal files."""
        if source is None:
            return 0
        samples = max(setting.calibration.samples, setting.calibration.gain_samples)
        limit = setting.task.max_problems
        key = (source.identity, asked.identity, samples, limit)
        if key not in self._overlaps:
            seen = {problem.question for items in source.loaded.values() for problem in items[:samples]}
            prompts = (problem.question for items in asked.loaded.values() for problem in items[:limit])
            self._overlaps[key] = sum(prompt in seen for prompt in prompts)
        return self._overlaps[key]

    def _checked_artifact(self, setting: Setting) -> Artifact:
        key = (setting.calibration, setting.checkpoint.identity, setting.task.domains)
        if key not in self._artifacts:
            self._artifacts[key] = check_artifact(
                setting.calibration,
                model=setting.model.name,
                identity=setting.checkpoint.identity,
                shape=setting.checkpoint.shape,
                domains=setting.task.domains,
            )
        return self._artifacts[key]

    def _read(self, setting: Setting, split: str) -> TaskFiles:
        key = (setting.task, split)
        if key not in self._files:
            self._files[key] = inspect_task(setting.task, split)
            self.notes |= dict.fromkeys(self._files[key].notes)
        return self._files[key]


def _typed_settings(assignment: Assignment) -> Assignment:
    """Every key but the policy's."""
    return {
        key: value
        for key, value in assignment.items()
        if key.split(".")[0] != "policy" and (key, value) != ("repeat", 0)
    }


def _chosen_dtype(setting: Setting) -> Assignment:
    """What `model.dtype=auto` came to: another machine would choose another, and it would be another point."""
    chosen = setting.dtype_reason != TYPED and setting.model.dtype != "auto"
    return {"model.dtype": setting.model.dtype} if chosen else {}


def _label(policy: str, setting: Setting, assignment: Assignment, varied: Sequence[str]) -> str:
    """`fixed_k k=4 task.max_tokens=24`; of a checkpoint that was made from another its name, `none on pruned`.

    Where model.made_from is typed the other one is what it names: the comparison is its own, and it needs no name.
    """
    if setting.model.made_from is None:
        return " ".join([policy, *_shown(assignment, varied, setting.repeat)])
    if setting.checkpoint.base is not None:
        policy = f"{policy}{ON}{setting.model.name}"
    rest = [key for key in varied if key != "model" and not key.startswith("model.")]
    return " ".join([policy, *_shown(assignment, rest, setting.repeat)])


def _shown(assignment: Assignment, varied: Sequence[str], repeat: int) -> list[str]:
    """What a label says beside the policy."""
    shown = [f"{key}={assignment[key]}" for key in varied if key in assignment and key != "repeat"]
    return [*shown, f"repeat={repeat}"] if repeat else shown


def _at_most(problems: Mapping[str, int | None], limit: int | None) -> dict[str, int | None]:
    return {d: count if limit is None or count is None else min(count, limit) for d, count in problems.items()}


def _check_lengths(setting: Setting) -> None:
    asked, room = setting.task.max_tokens, setting.engine.max_model_len
    if asked >= room:
        most = setting.checkpoint.max_positions
        remedy = f"engine.max_model_len={asked * 2} or more, or a smaller task.max_tokens"
        if most is not None and asked * 2 > most:
            remedy = f"task.max_tokens={room // 2} or less (this checkpoint was made for {most} positions in all)"
        raise UserError(
            f"task.max_tokens={asked} leaves no room for the prompt in engine.max_model_len={room}: every problem would"
            f" be refused. Type {remedy}."
        )


def _check_graphs(rule: Rule, setting: Setting) -> None:
    if any(part.in_torch for part in rule.parts) and setting.engine.compile and setting.engine.gpus > 0:
        raise UserError(
            f"policy={rule.name} routes in torch, which the captured graphs of engine.compile=true on a GPU leave out:"
            " it would be stock routing. Type engine.compile=false."
        )


def _check_majority(setting: Setting) -> None:
    grader = grader_of(setting.task)
    if setting.task.choose == "majority" and not grader.answers_repeat:
        raise UserError(
            f"task.choose=majority counts equal answers, and task.grader={grader.name} judges texts of which hardly two"
            " are equal: the first of them would be chosen. Type task.choose=reward with a task.reward_model,"
            " task.choose=grader (an upper bound), or leave it out."
        )


def _check_rows(rule: Rule, setting: Setting) -> None:
    needed, engine = len(rule.parts), setting.engine
    if needed <= 1 or needed <= engine.rows:
        return
    typed = f"engine.policies_per_batch={engine.policies_per_batch}"
    held = f"{engine.rows} policies" if engine.rows > 1 else "one policy"
    raise UserError(
        f"policy={rule.name} answers under {needed} rules at once ({', '.join(part.label() for part in rule.parts)}),"
        f" and {typed} has this engine hold {held}: it could not start on a request. Type"
        f" engine.policies_per_batch={needed}."
    )


def _check_pairs(rule: Rule, setting: Setting) -> None:
    """UserError where no two requests of a contrast fit into one step, or nobody has tried it."""
    if rule.contrast is None:
        return
    engine = setting.engine
    if engine.pipeline_parallel_size > 1:
        raise UserError(
            f"policy={rule.name} contrasts two requests in every step, which was never tried on pipeline stages"
            f" (engine.pipeline_parallel_size={engine.pipeline_parallel_size}). Type engine.pipeline_parallel_size=1."
        )
    if engine.model_runner == "v2":
        raise UserError(
            f"policy={rule.name} puts its scores in place of the logits of vLLM's first model runner, and"
            " engine.model_runner=v2 runs another: nothing would be contrasted. Type engine.model_runner=v1."
        )
    if engine.max_num_seqs < 2:
        raise UserError(
            f"policy={rule.name} contrasts two requests in every step, and engine.max_num_seqs=1 runs one: they would"
            " never meet. Type engine.max_num_seqs=2 or more."
        )


def _check_slots(rule: Rule, setting: Setting) -> None:
    """UserError where a compiled engine is too narrow whatever the calibration says."""
    shape, engine = setting.checkpoint.shape, setting.engine
    sure = max(math.ceil(part.budget(shape)[0]) for part in rule.parts)
    if engine.compile and sure > shape.top_k + engine.extra_slots:
        raise UserError(
            f"policy={rule.name} keeps {sure} experts a token, and a compiled engine has slots for top_k={shape.top_k}"
            f" and engine.extra_slots={engine.extra_slots} more: it would refuse the policy. Type"
            f" engine.extra_slots={sure - shape.top_k}, or engine.compile=false."
        )


def _score(rule: Rule, settings: CalibrationConfig, *, labelled: bool) -> Name | None:
    """What ranks the key experts that a rule reads. UserError where it asks for what cannot be known."""
    mode = rule.reinforces_by()
    score = None if mode is None else score_of(settings.score, mode, labelled=labelled)
    signed = score is not None and SCORES[score].labelled
    if (signed and not labelled) or (settings.sensitivity == "gold" and not labelled):
        key = "score" if signed else "sensitivity"
        raise UserError(
            f"calibration.{key}={getattr(settings, key)} is told by right answers, and calibration.text has none:"
            f" nothing could be ranked. Leave calibration.{key} out, or calibration.text."
        )
    if rule.needs_gain() and not signed:
        raise UserError(
            f"policy.experts=auto takes every expert that helps for sure, and calibration.score={settings.score} has no"
            f" sign{'' if labelled else ' (calibration.text has no right answers)'}. Type calibration.score=gain, or a"
            " number: policy.key_experts=4."
        )
    return score


def _check_calibration(setting: Setting, score: Name | None) -> None:
    adds = score is not None and SCORES[score].change == "add"
    if adds and setting.engine.compile and not setting.engine.extra_slots:
        raise UserError(
            f"calibration.score={setting.calibration.score} adds an expert to the selection, and a compiled engine has"
            " no slot for it: engine.extra_slots=0. Type engine.extra_slots=1, or engine.compile=false."
        )
    if (stages := setting.engine.pipeline_parallel_size) > 1:
        raise UserError(
            f"engine.pipeline_parallel_size={stages} cannot calibrate: a pass is rerun from the layer that changes, and"
            " a stage has some of the layers alone. Name a calibration of this checkpoint that an engine without stages"
            " has made: type calibration.path=FOLDER, or engine.pipeline_parallel_size=1."
        )
    k_min, top_k = setting.calibration.k_min, setting.checkpoint.shape.top_k
    if k_min is not None and k_min > top_k:
        raise UserError(
            f"calibration.k_min={k_min} exceeds top_k={top_k} of {setting.model.name}: layer sensitivity would compare"
            f" nothing. Type calibration.k_min=1..{top_k}."
        )
