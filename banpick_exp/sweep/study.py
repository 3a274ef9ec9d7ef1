"""`study=NAME`: a question with all that it takes to ask it, kept as sweeps/NAME/study.yaml and typed as one word.

The word stands for the study's own settings, at full size or, with `scale=tiny`, on the embedded model in minutes; what
is typed beside it wins. Results go to <output_dir>/NAME/ or <output_dir>/NAME_tiny/, so that a rehearsal is never taken
for the thing itself. Imports nothing heavy.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Literal, get_args

import yaml
from pydantic import Field, model_validator

from banpick_exp.config import Section, shown, suggestion, validated
from banpick_exp.errors import UserError
from banpick_exp.sweep.overrides import key_of, parse_axis

FILE = "study.yaml"
STUDY, SCALE = "study", "scale"
"""The keys that are typed."""
Scale = Literal["full", "tiny"]


class Points(Section):
    """How many points a study plans, stock and references included; a test holds the numbers against the plan."""

    full: int = Field(ge=1)
    tiny: int = Field(ge=1)


class Study(Section):
    """A study.yaml. Its folder is its name; job files and README beside it are written from it (.ci/job_files.py)."""

    purpose: str = Field(max_length=110)
    """The question, in one line: it stands on the help page too."""
    published: str
    """The table that it repeats with its figures, or that none is published."""
    expected: str
    """What should come out, and how to read it."""
    cost: str
    """What it costs and what that hangs on, in words; `points` says how many points."""
    data: str
    """The files that the full size reads, with who makes them: nothing is fetched."""
    points: Points
    model: str
    """Of conf/model: the checkpoint of the full size."""
    nodes: int = Field(ge=1)
    """Of the job files; any other number works as well."""
    gpus_per_node: int = Field(default=8, ge=1)
    hours: int = Field(ge=1)
    """Time limit of one attempt; a job that reaches it goes on in the next."""
    arguments: tuple[str, ...]
    """What is asked, at both sizes."""
    full: tuple[str, ...] = ()
    """Beside it at full size: task and engine."""
    tiny: tuple[str, ...] = ()
    """Beside it on the embedded model: what brings it below three minutes on two cores."""

    @model_validator(mode="after")
    def _arguments_are_settings(self) -> Study:
        for text in (*self.arguments, *self.full, *self.tiny):
            if "=" not in text or key_of(text) in (STUDY, SCALE, "output_dir", "resume", "run", "dry_run"):
                raise ValueError(f"{text} cannot stand in a study: it is no setting, or one that whoever runs it types")
        return self

    def words(self, name: str, scale: Scale) -> list[str]:
        """The settings that `study=name` stands for."""
        if scale == "tiny":
            return [*beside(self.arguments, beside(["model=tiny"], self.tiny)), f"sweep.name={name}_tiny"]
        return [*beside(self.arguments, [f"model={self.model}", *self.full]), f"sweep.name={name}"]


def studies_dir() -> Path:
    """The folder of studies: inside the package when installed, beside it in a checkout."""
    here = Path(__file__).resolve().parent.parent
    inside = here / "studies"
    return inside if inside.is_dir() else here.parent / "sweeps"


def studies() -> list[str]:
    """The names that `study=` offers."""
    return sorted(path.parent.name for path in studies_dir().glob(f"*/{FILE}"))


def read_study(name: str) -> Study:
    """The study of that name, checked. Raises UserError for an unknown name, with the nearest and all of them."""
    offered = studies()
    if name not in offered:
        near = suggestion(name, offered, f"{STUDY}=")
        raise UserError(
            f"{STUDY}={shown(name)} is unknown: there is no {FILE} for it, so nothing was started. {near}"
            f"Studies: {', '.join(offered) or 'none is installed'}."
        )
    path = studies_dir() / name / FILE
    try:
        return validated(Study, yaml.safe_load(path.read_text(encoding="utf-8")), name)
    except (OSError, yaml.YAMLError) as error:
        raise UserError(f"{path} cannot be read ({error}): nothing was started. Restore the file.") from None


def expanded(arguments: Sequence[str]) -> list[str]:
    """The line with the settings that its `study=NAME` stands for; one without is handed back as it is.

    What is typed wins, wherever it stands. Raises UserError for an unknown study or scale, a scale without a study, and
    either of them twice.
    """
    own = [text for text in arguments if "=" in text and key_of(text) in (STUDY, SCALE)]
    if not own:
        return list(arguments)
    typed = {key: [text for text in own if key_of(text) == key] for key in (STUDY, SCALE)}
    for key, texts in typed.items():
        if len(texts) > 1:
            raise UserError(
                f"{' and '.join(texts)} are both typed: which one counts would be a guess. Type {key} once."
            )
    if not typed[STUDY]:
        raise UserError(
            f"{own[0]} says how large a study is, and none is named: nothing was started. Type {STUDY}=NAME beside it."
            f" Studies: {', '.join(studies())}."
        )
    name = _single(typed[STUDY][0])
    scale = _single(typed[SCALE][0]) if typed[SCALE] else "full"
    study = read_study(name)
    for known in get_args(Scale):
        if scale == known:
            return beside(study.words(name, known), [text for text in arguments if text not in own])
    near = suggestion(scale, get_args(Scale), f"{SCALE}=")
    raise UserError(
        f"{SCALE}={scale} is unknown: nothing was started. {near}Type {SCALE}=tiny for the embedded model, or leave it"
        f" out for the study's own, {study.model}."
    )


def beside(settings: Iterable[str], typed: Sequence[str]) -> list[str]:
    """`typed` behind `settings` without what it replaces: the same key, or every key of a group that it chooses anew.

    >>> beside(["task=jsonl", "task.split=dev", "seed=1"], ["task=tiny", "seed=2"])
    ['task=tiny', 'seed=2']
    """
    keys = {key_of(text) for text in typed}
    return [*(text for text in settings if not {key_of(text), key_of(text).split(".")[0]} & keys), *typed]


def _single(text: str) -> str:
    axis = parse_axis(text)
    if axis.swept or not isinstance(axis.values[0], str | int):
        raise UserError(f"{text} names no single {key_of(text)}: nothing was started. Run the command once for each.")
    return str(axis.values[0])
