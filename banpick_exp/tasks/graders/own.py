"""A grader of the user's own, by dotted path: task.grader=my_module:my_function.

    def my_function(completion: str, answers: list[str], row: dict) -> bool | float

`answers` are the right ones, `row` is the problem: problem_id, domain, task, prompt, material (as the file has it, or
None). True, or a number above 0.5, is right. It runs in the engine's process, with nothing around it: asked for by
name, and said in the plan. Planning looks for the module and reads its source, and does not import it; what the source
says is part of the fingerprint, the modules that it imports are not.
"""

from __future__ import annotations

import ast
import functools
import hashlib
import importlib
import importlib.util
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from banpick_exp.errors import UserError
from banpick_exp.tasks.config import TaskConfig
from banpick_exp.tasks.graders.bounded import TooSlow
from banpick_exp.tasks.graders.exact_match import extract_answer, normalised
from banpick_exp.tasks.graders.grader import Grade, Grader
from banpick_exp.tasks.problem import Problem

RIGHT_ABOVE = 0.5
GIVEN = 3
"""What a function is given: completion, answers, row."""
FORM = "def my_function(completion: str, answers: list[str], row: dict) -> bool"


class OwnGrader(Grader):
    """Right is what a function of the user's says."""

    version = 1

    def __init__(self, name: str) -> None:
        """Raises UserError for what is no function of a module that can be found."""
        self.name = name
        self._module, _, self._function = name.partition(":")
        self.path, source = _source(name, self._module)
        _check_defined(name, self._function, source, self.path)
        self._digest = hashlib.sha256(source).hexdigest()[:16]

    def normalised(self, answer: str) -> str:
        return normalised(answer)

    def built_from(self) -> dict[str, str]:
        return {self.name: self._digest}

    def notes(self, task: TaskConfig) -> Sequence[str]:
        return (
            f"task.grader={self.name} is your own function and decides what is right: {self.path}"
            f" (sha256 {self._digest}). It runs in the engine's process, and the modules that it imports are not in the"
            " fingerprint.",
        )

    def grade(self, completion: str, problem: Problem, task: TaskConfig) -> Grade:
        """Raises UserError where the function raises, or answers with something else than a truth value or number."""
        answer, found = "", True
        if task.answer_pattern is not None or task.answer_separator is not None:
            try:
                answer, found = extract_answer(completion, task)
            except TooSlow:
                return Grade(answer="", found=False, correct=False, pattern_timeout=True)
        row = {
            "problem_id": problem.problem_id,
            "domain": problem.domain,
            "task": problem.task,
            "prompt": problem.prompt,
            "material": None if problem.material is None else json.loads(problem.material),
        }
        place = f"task.grader={self.name} ({self.path}), asked about problem {problem.problem_id} of {problem.domain}"
        try:
            judged = self._judge(completion, list(problem.answers), row)
        except (Exception, SystemExit) as error:
            raise UserError(
                f"{place}, raised {type(error).__name__}: {error}. An error in a grader is no wrong answer, so nothing"
                " was graded. Mend the function, or have it return False."
            ) from error
        if not isinstance(judged, bool | int | float) or not 0 <= judged <= 1:
            raise UserError(
                f"{place}, returned {judged!r}: that says neither right nor wrong. Return True or False, or a number"
                f" from 0 to 1, of which those above {RIGHT_ABOVE} are right."
            )
        return Grade(answer=answer, found=found, correct=bool(judged > RIGHT_ABOVE))

    @functools.cached_property
    def _judge(self) -> Callable[[str, list[str], dict[str, Any]], object]:
        found: Callable[[str, list[str], dict[str, Any]], object]
        found = getattr(importlib.import_module(self._module), self._function)
        return found


@functools.lru_cache(maxsize=16)
def own_grader(name: str) -> OwnGrader:
    """The grader of a dotted path; read once, so that a process judges by one source. Raises UserError for none."""
    return OwnGrader(name)


def _source(name: str, module: str) -> tuple[Path, bytes]:
    remedy = (
        "Type task.grader=my_module:my_function, with my_module.py in the folder you type in or on PYTHONPATH, and in"
        f" it {FORM}"
    )
    try:
        spec = importlib.util.find_spec(module) if module else None
    except (ImportError, ValueError):
        spec = None
    if spec is None:
        dotted = module.removesuffix(".py").removeprefix("./").replace("/", ".")
        if dotted != module and all(part.isidentifier() for part in dotted.split(".")):
            remedy = (
                f"Modules are typed with dots and without .py: task.grader={dotted}:{name.partition(':')[2]}. {remedy}"
            )
        raise UserError(f"task.grader={name}: there is no module {module!r}, so no answer could be judged. {remedy}")
    path = Path(spec.origin or "")
    if path.suffix != ".py":
        raise UserError(
            f"task.grader={name}: {module} is no file of Python source ({spec.origin}), so nobody could say later what"
            f" has judged. {remedy}"
        )
    try:
        return path, path.read_bytes()
    except OSError as error:
        raise UserError(
            f"task.grader={name}: {path} cannot be read ({error.strerror}), so no answer could be judged. Make it"
            " readable."
        ) from None


def _check_defined(name: str, function: str, source: bytes, path: Path) -> None:
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError) as error:
        raise UserError(
            f"task.grader={name}: {path} is no Python ({error}), so no answer could be judged. Mend it."
        ) from None
    functions = {node.name: node for node in tree.body if isinstance(node, ast.FunctionDef)}
    defined, bound = [*functions], list[str]()
    for node in tree.body:
        if isinstance(node, ast.ImportFrom):
            bound += [alias.asname or alias.name for alias in node.names]
        elif isinstance(node, ast.Assign):
            bound += [each.id for each in node.targets if isinstance(each, ast.Name)]
    if function not in (*defined, *bound):
        raise UserError(
            f"task.grader={name}: {path} defines no {function!r}, so no answer could be judged."
            f" It has {', '.join(defined) or 'no function'}. Write there: {FORM}"
        )
    if function in functions and not _takes_three(functions[function].args):
        raise UserError(
            f"task.grader={name}: {path}, line {functions[function].lineno}: {function}"
            f"({ast.unparse(functions[function].args)}) cannot be called with completion, answers and row, so no answer"
            f" could be judged. Write there: {FORM}"
        )


def _takes_three(takes: ast.arguments) -> bool:
    places = len(takes.posonlyargs) + len(takes.args)
    at_least = places - len(takes.defaults)
    return at_least <= GIVEN and (places >= GIVEN or takes.vararg is not None) and None not in takes.kw_defaults
