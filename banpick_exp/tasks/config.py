"""What is asked and how an answer is read: the settings of conf/task/."""

from __future__ import annotations

import re
import unicodedata
import warnings
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, PlainSerializer, model_validator

from banpick_exp.config import Section, shown
from banpick_exp.records import OVERALL
from banpick_exp.tasks.invisible import invisible

RESERVED_DOMAINS = frozenset({OVERALL, "calibrations", "solved"})
"""Names that stand for something else in records and run folders."""


def _pairs(value: object) -> object:
    if not isinstance(value, Mapping | list | tuple):
        raise ValueError(
            f"task.chat_template_kwargs={shown(value)} is no object: a chat template takes values by name. Nothing was"
            " started. Type e.g. 'task.chat_template_kwargs={enable_thinking: false}'"
        )
    return tuple(sorted(value.items())) if isinstance(value, Mapping) else value


TemplateKwargs = Annotated[
    tuple[tuple[str, bool | int | float | str], ...], BeforeValidator(_pairs), PlainSerializer(dict, return_type=dict)
]
"""An object in the file and in records; pairs here, because settings are compared and hashed."""


class TaskConfig(Section):
    """What is asked and how an answer is read."""

    name: str
    """Chooses the benchmark (`registry.BENCHMARKS`), or a task of `source`."""
    source: Literal["lm_eval"] | None = None
    """Whose task `name` is: lm_eval's (a name of that package, or a YAML file); null: a benchmark of ours."""
    metric: str | None = None
    """Of an lm-eval task: which of its metrics says what is right, `acc_norm` or `exact_match/flexible-extract`; null:
    its first."""
    data_files: str | None = None
    """A path with {domain} and {split}; null: the benchmark's own files."""
    domains: tuple[str, ...]
    split: str = "test"
    max_problems: int | None = Field(default=None, ge=1)
    """Per domain; null is all of them."""
    max_tokens: int = Field(default=24, ge=1)
    prompt_tokens: int | None = Field(default=None, ge=1)
    """Room for a prompt: where engine.max_model_len is not typed, it is this and max_tokens. null: the engine's own."""
    answer_separator: str | None = ";"
    """The answer is what follows the last separator; null takes the whole text."""
    answer_pattern: str | None = None
    """A regular expression with one group that finds the answer; it wins over the separator."""
    grader: str | None = None
    """Who says what is right (`graders.registry`); null: the benchmark's own."""
    chat_template: bool = False
    chat_template_kwargs: TemplateKwargs = ()
    """Handed to the chat template, e.g. {enable_thinking: false}."""
    samples: int = Field(default=1, ge=1)
    """Answers to each problem; accuracy is their mean (avg@n), unless one is chosen."""
    choose: Literal["mean", "majority", "grader", "reward"] = "mean"
    """Which of several answers counts: `mean` all alike; `majority` the most frequent; `grader` a right one where there
    is one, an oracle and so an upper bound (pass@n); `reward` the one that `reward_model` scores highest. The same for
    every policy."""
    reward_model: str | None = None
    """The folder of the checkpoint that scores answers under choose=reward: one of Transformers for sequence
    classification, with one label and its weights as safetensors."""
    temperature: float = Field(default=0.0, ge=0)
    """0 is greedy. Above, every answer is drawn with a seed of its own, the same for every policy."""
    top_p: float = Field(default=1.0, gt=0, le=1)
    block_problems: int | None = Field(default=None, ge=1)
    """Problems, with their samples, that an engine is given at a time: what is lost when it dies, and what several
    engines share of one point. null: as many as take minutes by the estimate. Changes no result but by batching."""
    max_failed_problems: int = Field(default=3, ge=0)
    """Problems that a point may be left without, because every engine that is asked them dies; with more it fails."""
    allow_code: bool = False
    """Permits a grader that executes model-written code, in a sandbox; changes no result."""
    allow_zero: bool = False
    """Go on although stock's own answers say that nothing measured would mean anything; changes no result."""
    speed_batches: tuple[Annotated[int, Field(ge=1)], ...] = (1, 8, 32)
    """Sequences that decode at once while a policy is timed; the batch of the accuracy run is always among them."""
    speed_precision: float = Field(default=0.02, gt=0, le=1)
    """Timing goes on until the 95 % interval of a speed-up is narrower than this share of it, ..."""
    speed_seconds: float = Field(default=60.0, ge=0)
    """... or this time of a point is spent; 0 times nothing."""

    @property
    def chat(self) -> bool | dict[str, Any]:
        """As an engine takes it: whether a prompt becomes a chat, or what its template is given."""
        return (dict(self.chat_template_kwargs) or True) if self.chat_template else False

    @model_validator(mode="after")
    def _template_takes_something(self) -> TaskConfig:
        if self.chat_template_kwargs and not self.chat_template:
            raise ValueError(
                "task.chat_template_kwargs is handed to the chat template, and task.chat_template=false uses none: it"
                " would change nothing. Type task.chat_template=true, or leave it out"
            )
        return self

    @model_validator(mode="after")
    def _sampling_changes_something(self) -> TaskConfig:
        idle = f"task.samples={self.samples}" if self.samples > 1 else f"task.top_p={self.top_p:g}"
        if self.temperature == 0 and (self.samples > 1 or self.top_p < 1):
            raise ValueError(
                f"{idle} at task.temperature=0 is greedy decoding all the same: the same answer every time, so it would"
                f" change nothing. Type task.temperature=0.6 beside it, or leave it out"
            )
        return self

    @model_validator(mode="after")
    def _there_is_something_to_choose_from(self) -> TaskConfig:
        if self.choose != "mean" and self.samples == 1:
            raise ValueError(
                f"task.choose={self.choose} with task.samples=1 has one answer to choose from: it would change nothing."
                f" Type task.samples=8 task.temperature={self.temperature or 0.6:g} beside it, or leave it out"
            )
        return self

    @model_validator(mode="after")
    def _reward_model_chooses(self) -> TaskConfig:
        if self.choose == "reward" and self.reward_model is None:
            raise ValueError(
                "task.choose=reward counts the answer that a reward model scores highest, and task.reward_model names"
                " none: nothing could be chosen. Type task.reward_model=FOLDER beside it (a checkpoint of"
                " AutoModelForSequenceClassification with one label), or task.choose=majority"
            )
        if self.choose != "reward" and self.reward_model is not None:
            raise ValueError(
                f"task.reward_model={self.reward_model} scores answers for task.choose=reward, and task.choose="
                f"{self.choose} asks it nothing: it would change nothing. Type task.choose=reward, or leave it out"
            )
        return self

    @model_validator(mode="before")
    @classmethod
    def _lm_eval_names_its_domain(cls, values: Any) -> Any:
        if not isinstance(values, Mapping) or values.get("source") is None:
            return values
        if values.get("name") in (None, ""):
            raise ValueError(
                "task=lm_eval asks a task of lm-eval, and task.name does not say which: nothing was started. Type e.g."
                " task.name=arc_easy, or task.name=my_task.yaml"
            )
        if values.get("domains") is not None:
            return values
        name = str(values.get("name"))
        return {**values, "domains": [name.rpartition("/")[2].removesuffix(".yaml").removesuffix(".yml")]}

    @model_validator(mode="after")
    def _lm_eval_alone_has_metrics(self) -> TaskConfig:
        if self.metric is not None and self.source is None:
            raise ValueError(
                f"task.metric={self.metric} names a metric of an lm-eval task, and this is none: it would change"
                " nothing. Type task=lm_eval task.name=TASK, or leave it out"
            )
        return self

    @model_validator(mode="after")
    def _separator_separates(self) -> TaskConfig:
        if self.answer_separator == "":
            raise ValueError(
                "task.answer_separator='' is empty: no text can be divided at it. Type task.answer_separator=null to"
                " take the whole text for the answer"
            )
        return self

    @model_validator(mode="after")
    def _marks_can_be_found(self) -> TaskConfig:
        for key in ("answer_separator", "answer_pattern"):
            mark = getattr(self, key) or ""
            if hidden := invisible(mark):
                raise ValueError(
                    f"task.{key}={mark!a} holds {hidden}, which nobody sees and a model does not write: no answer would"
                    " be found. Delete it, or type a plain space in its place; where a model does write it,"
                    " task.answer_pattern can name it by its escape, such as \\u00a0"
                )
            if mark != (whole := unicodedata.normalize("NFC", mark)):
                raise ValueError(
                    f"task.{key}={mark!a} has its accents as characters of their own (it is not in Unicode's NFC), and"
                    f" completions are read in NFC: no answer would be found. Type task.{key}='{whole}'"
                )
        return self

    @model_validator(mode="after")
    def _domains_have_names_of_their_own(self) -> TaskConfig:
        if not self.domains:
            raise ValueError("task.domains=[] is empty: nothing would be asked. Name one, e.g. task.domains=[math]")
        if any(not domain.strip() for domain in self.domains):
            raise ValueError("task.domains holds an empty name: no file belongs to it. Leave it out")
        if reserved := sorted(RESERVED_DOMAINS & set(self.domains)):
            raise ValueError(
                f"task.domains names {', '.join(reserved)}, which stands for something else in a run's folder and"
                " tables: the two would be mixed. Rename the domain and its files"
            )
        return self

    @model_validator(mode="after")
    def _answer_pattern_has_one_group(self) -> TaskConfig:
        if self.answer_pattern is not None:
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("error", FutureWarning)  # `[[:digit:]]`, which is not what it is elsewhere
                    groups = re.compile(self.answer_pattern).groups
            except (re.error, OverflowError, RecursionError, FutureWarning) as error:
                raise ValueError(
                    f"task.answer_pattern={self.answer_pattern!r} is no regular expression of Python's ({error}): no"
                    " answer would be found. Put \\ before what stands for itself, and type e.g."
                    " task.answer_pattern='\"answer: *(.+)\"'"
                ) from None
            if groups != 1:
                raise ValueError(
                    f"task.answer_pattern={self.answer_pattern!r} has {groups} groups, so it does not say which part is"
                    " the answer. Use exactly one, e.g. task.answer_pattern='answer: *(.+)'"
                )
        repeated = sorted({domain for domain in self.domains if self.domains.count(domain) > 1})
        if repeated:
            raise ValueError(
                f"task.domains names {', '.join(repeated)} twice: its problems would count twice. Name each domain once"
            )
        return self


GREEDY = {"samples": 1, "temperature": 0.0, "top_p": 1.0, "choose": "mean"}
"""How a task samples, and which answer counts, unless it says otherwise; records and fingerprints made before it could
say lack these keys."""

LATER: dict[str, Any] = {"chat_template_kwargs": (), "source": None, "metric": None, "reward_model": None}
"""The same for other settings that came later."""
