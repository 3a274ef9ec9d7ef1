"""Hard answers: a table a kind in hard/, read here for every grader, and at least a dozen for each that has a meaning.

A table holds groups: the graders they are for, rows [completion, right answer or answers] under `right` (it must count)
and `wrong` (it must not), written by what a careful mathematician would say. `set` are settings of the task, `of` the
task of lm-eval, the dataset of reasoning-gym or the tests of a program. Under `limits` stand rows [today's verdict,
completion, right answer, why]: what a library or a documented rule says otherwise (docs/grading.md).

Without a meaning, and so not counted:

- `choice`: fractions, units, percent, thousands separators, a minus, intervals and sets: its answers are letters.
- `numeric`: intervals and sets, and letters: its answers are one number.
- `code`: what is written within an answer (boxes to letters): its answer is a program, and the problem's tests say what
  it must print or return (`test_code_grader.test_output`). Which program is taken, and from where, is counted.
- `reasoning_gym`: boxes, LaTeX text, intervals and sets, letters: what stands between its tags is given to a dataset's
  verifier as it is, and none of those here reads them.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml

from banpick_exp.tasks.config import TaskConfig
from banpick_exp.tasks.graders import math_verify
from banpick_exp.tasks.graders.grader import Grade, Grader
from banpick_exp.tasks.graders.own import own_grader
from banpick_exp.tasks.graders.registry import GRADERS
from banpick_exp.tasks.harness.sources import package_folder, sources_of
from banpick_exp.tasks.problem import Problem

FILES = sorted(Path(__file__).with_name("hard").glob("*.yaml"))
TABLES = {path.stem: yaml.safe_load(path.read_text()) for path in FILES}
KINDS = (
    "nested_boxed", "fractions", "units", "percent", "thousands", "unicode_minus", "trailing_periods",
    "several_answers", "text_after", "latex_text", "intervals_sets", "letters", "refusals", "empty",
    "truncated_thought", "odd_characters",
)  # fmt: skip
INSIDE_AN_ANSWER = set(KINDS[:7]) | {"latex_text", "intervals_sets", "letters"}
WITHOUT_MEANING = {
    "choice": {"fractions", "units", "percent", "thousands", "unicode_minus", "intervals_sets"},
    "numeric": {"intervals_sets", "letters"},
    "code": INSIDE_AN_ANSWER,
    "reasoning_gym": {"nested_boxed", "latex_text", "intervals_sets", "letters"},
}
"""Why is said above."""
COUNTED = ("exact_match", "math_verify", "choice", "numeric", "code", "reasoning_gym", "lm_eval", "own")
LEAST = 12
OWN = """
def judged(completion, answers, row):
    assert completion == row["material"]["completion"], "not as it was written"
    return row["material"]["right"]
"""
LM_EVAL = {
    "gsm8k": ("gsm8k/gsm8k.yaml", "exact_match/strict-match"),
    "gsm8k_last": ("gsm8k/gsm8k.yaml", "exact_match/flexible-extract"),
    "hendrycks": ("hendrycks_math/hendrycks_math_algebra.yaml", "exact_match/none"),
    "gpqa": ("gpqa/cot_zeroshot/gpqa_diamond_cot_zeroshot.yaml", "exact_match/flexible-extract"),
}
PROGRAM = {
    "kind": "call", "prefix": 'def double(x):\n    """Twice x."""\n', "entry_point": "double",
    "test": "def check(candidate):\n    assert candidate(2) == 4\n    assert candidate(0) == 0\n",
}  # fmt: skip


class Case(NamedTuple):
    """A row, and what it is for."""

    completion: str
    answers: tuple[str, ...]
    right: bool
    of: Any
    settings: dict[str, Any]


def cases(grader: str, kind: str, *, limits: bool = False) -> list[Case]:
    """The rows of a table for a grader; `own`: all of them, since it is given whatever a model writes."""
    found = []
    for group in TABLES[kind]:
        if grader not in group["graders"] and grader != "own":
            continue
        rows = [(verdict == "right", *row) for verdict in ("right", "wrong") for row in group.get(verdict, ())]
        if limits:
            rows = [row[:3] for row in group.get("limits", ())]
        for right, completion, answers in rows:
            answers = tuple(answers) if isinstance(answers, list) else (answers,)
            found.append(Case(completion, answers, right, group.get("of"), group.get("set", {})))
    return found


PAIRS = [(grader, kind) for grader in COUNTED for kind in KINDS if kind not in WITHOUT_MEANING.get(grader, ())]


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Grader]:
    """A grader of a user's, in a module of its own name: imports are for ever."""
    name = f"hard_{tmp_path.name.replace('-', '_')}"
    (tmp_path / f"{name}.py").write_text(OWN)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield own_grader(f"{name}:judged")
    sys.modules.pop(name, None)
    own_grader.cache_clear()


@pytest.fixture(autouse=True)
def _counted_anew() -> Iterator[None]:
    math_verify._counted.clear()
    yield
    math_verify._counted.clear()


def grades(grader: Grader, name: str, given: list[Case]) -> list[Grade]:
    """In calls of one task each: what a group sets is the task's."""
    found = []
    while given:
        settings, of = given[0].settings, given[0].of
        now = next((n for n, case in enumerate(given) if (case.settings, case.of) != (settings, of)), len(given))
        values = {"name": "jsonl", "domains": ["m"], "data_files": "x", "answer_separator": None, "grader": grader.name}
        if name == "lm_eval":
            values |= {"name": of, "source": "lm_eval", "metric": LM_EVAL[of][1]}
        task = TaskConfig.model_validate(values | settings | {"allow_code": True})
        asked = [(case.completion, problem_of(grader, name, case)) for case in given[:now]]
        found += grader.grade_all(asked, task)
        given = given[now:]
    return found


def problem_of(grader: Grader, name: str, case: Case) -> Problem:
    material: Any = None
    if name == "code":
        material = PROGRAM
    elif name == "reasoning_gym":
        material = case.of
    elif name == "own":
        material = {"completion": case.completion, "right": case.right}
    elif name == "lm_eval":
        material = json.dumps(lm_eval_material(case))
    first, *others = (grader.normalised(answer) for answer in case.answers)
    return Problem("p", "m", "m", "?", first, tuple(others), material=material and json.dumps(material))


def lm_eval_material(case: Case) -> dict[str, Any]:
    """As `harness.building` keeps it; the document has what the task reads of one."""
    root = package_folder()
    assert root is not None
    file, metric = LM_EVAL[case.of]
    path, answer = root / "tasks" / file, case.answers[0]
    document: dict[str, Any] = {"question": "?", "answer": answer}
    if case.of == "hendrycks":
        document = {"problem": "?", "solution": f"\\boxed{{{answer}}}", "answer": answer}
    elif case.of == "gpqa":
        choices = ["Oslo", "Rome", "Paris", "Nice"]
        named = {f"choice{number}": each for number, each in enumerate(choices, 1)}
        document = {"Question": "?", "answer": answer, "choices": choices, **named}
    kept = {"yaml": str(path), "digest": sources_of(path).digest, "doc": document, "kinds": [0, 0]}
    return {**kept, "requests": [["?"]], "metrics": [metric]}


def judged_otherwise(grader: str, kind: str, own: Grader, *, limits: bool = False) -> list[str]:
    if grader == "lm_eval":
        pytest.importorskip("lm_eval")
    given = cases(grader, kind, limits=limits)
    found = grades(own if grader == "own" else GRADERS[grader], grader, given)
    assert not any(grade.grader_timeout or grade.pattern_timeout for grade in found)
    return [
        f"{case.completion!r} for {' | '.join(case.answers)!r}: took {grade.answer!r}, {grade.correct}"
        for case, grade in zip(given, found, strict=True)
        if grade.correct != case.right
    ]


@pytest.mark.parametrize(("grader", "kind"), PAIRS)
def test_right_answers_count_and_near_misses_do_not(grader: str, kind: str, own: Grader) -> None:
    assert judged_otherwise(grader, kind, own) == []


@pytest.mark.parametrize(("grader", "kind"), [pair for pair in PAIRS if pair[0] != "own" and cases(*pair, limits=True)])
def test_limits_are_as_they_are_told(grader: str, kind: str, own: Grader) -> None:
    """What fails here is judged as it should be: move the row, and take the limit out of docs/grading.md."""
    assert judged_otherwise(grader, kind, own, limits=True) == []


def test_every_grader_has_a_dozen_of_every_kind() -> None:
    assert set(TABLES) == set(KINDS)
    short = []
    for grader, kind in PAIRS:
        mine = {(case.completion, case.answers, str(case[3:]), case.right) for case in cases(grader, kind)}
        right = sum(each[-1] for each in mine)
        if min(right, len(mine) - right) < LEAST // 2 or len(mine) < LEAST:
            short.append(f"{grader} x {kind}: {right} right, {len(mine) - right} wrong")
    assert short == []


LONG = "Let us see what we have, step by step. "
ENDLESS = {
    "100,000 characters": (LONG * 2600 + "{}", True),
    "10,000 boxes": (r"\boxed{{3}} " * 10000 + "{}", True),
    "10,000 marks": ("the answer is " * 10000 + "{}", True),
    "10,000 boxes without an end": (r"\boxed{{" * 10000, False),
    "100,000 braces": (r"\boxed{{" + "{{" * 50000 + "x" + "}}" * 50000 + "}}", False),
    "100,000 braces without an end": (r"\boxed{{" + "{{" * 100000, False),
    "100,000 digits": ("9" * 100000, False),
    "100,000 spaces": ("answer is" + " " * 100000, False),
    "100,000 full stops": (r"\boxed{{" + "." * 100000 + "x}}", False),
    "100,000 signs that cannot be read": ("\0\u200f\ud83d\uff10" * 25000, False),
    "fractions in one another": (r"\boxed{{" + r"\frac{{1}}{{" * 5000 + "2" + "}}" * 5000 + "}}", False),
}
"""What a model in a loop writes, and whether an answer behind it is found. Braces are doubled for str.format."""


@pytest.mark.parametrize("what", ENDLESS)
@pytest.mark.parametrize(
    ("grader", "answer", "right", "settings"),
    [
        ("exact_match", "#### 5", "5", {"answer_separator": "####"}),
        ("exact_match", r"\boxed{{5}}", "5", {"answer_pattern": r"boxed\{([^{}]*)\}\Z"}),
        ("math_verify", r"\boxed{{5}}", "5", {}),
        ("numeric", r"\boxed{{5}}", "5", {}),
        ("numeric", "#### 5", "5", {}),
        ("choice", "The answer is (B).", "B", {}),
    ],
)
def test_a_model_in_a_loop_is_graded_and_ends(
    grader: str, answer: str, right: str, settings: dict[str, Any], what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At worst it is ended at the limit of one answer, counted, and the next one is an ordinary one."""
    monkeypatch.setattr(math_verify, "LIMIT_SECONDS", 2.0)
    text, found = ENDLESS[what]
    completion = text.format(answer.format()) if found else text.format()
    given = [Case(completion, (right,), found, None, settings), Case(answer.format(), (right,), True, None, settings)]
    first, second = grades(GRADERS[grader], grader, given)
    assert first.correct == found and not (found and first.grader_timeout)
    assert second.correct and not second.grader_timeout
