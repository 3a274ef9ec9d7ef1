"""Problems of a file's bytes, or one error that names its lines. Nothing is guessed, and nothing is left for later.

What is refused would be asked or graded as something else than the file means: a text that is none, an answer that is
empty (a completion without an answer would be right), a truth value (a model may write true, True or yes).
"""

from __future__ import annotations

import ast
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from banpick_exp.errors import UserError
from banpick_exp.tasks.benchmarks.benchmark import Benchmark
from banpick_exp.tasks.config import TaskConfig
from banpick_exp.tasks.invisible import invisible
from banpick_exp.tasks.problem import Problem
from banpick_exp.tasks.registry import grader_of
from banpick_exp.tasks.rows import EXAMPLE, NoValue, Number, Row, rows_of

ID_KEYS = ("problem_id", "id")
TASK_KEY = "task"
MOST_SHOWN = 5
ROLES = ("system", "user", "assistant")
"""Who may speak in a chat that is asked; the user speaks last."""
CHAT = '[{"role": "user", "content": "1+1?"}]'
DAMAGED = "\ufffd"
REPEATS_BORNE = 0.05
"""Share of the rows that may repeat another, as some published sets have them; with more, intervals mean nothing."""


class _Wrong(ValueError):
    """What is wrong with one row, as it follows its number."""


def read_problems(
    data: bytes, path: Path, benchmark: Benchmark, task: TaskConfig, *, domain: str, split: str
) -> tuple[Problem, ...]:
    """The problems of one domain, in file order. `data` is the content of `path`, the very bytes that are hashed.

    Raises UserError for a file without problems, and for one with any row that could not be asked or graded as it is
    meant; it names the first of them.
    """
    columns = (
        *(benchmark.prompt_key, benchmark.answer_key, benchmark.response_key, benchmark.material_key),
        *(*ID_KEYS, TASK_KEY),
        *(key for key in (benchmark.stop_key, benchmark.choices_key) if key is not None),
    )
    problems: list[Problem] = []
    wrong: list[str] = []
    places: dict[str, str] = {}
    asked: dict[str, tuple[str, Problem]] = {}
    repeats: list[str] = []
    rows = 0
    for place, row in rows_of(path, data, columns):
        try:
            if isinstance(row, str):
                raise _Wrong(row)
            problem = _problem(row, benchmark, task, domain, f"{domain}-{split}-{rows:06d}")
            if problem.problem_id in places:
                raise _Wrong(
                    f"has the id {problem.problem_id!r} of {places[problem.problem_id]}, so answers could not be paired"
                )
            places[problem.problem_id] = place
            first, same = asked.setdefault(problem.question, (place, problem))
            if set(same.answers) != set(problem.answers) and not benchmark.published:
                raise _Wrong(_contradiction(problem, first, same))
            if same is not problem:
                repeats.append(f"{place} repeats {first}")
            problems.append(problem)
        except _Wrong as error:
            wrong.append(f"{place} {error}")
        rows += 1
    if wrong:
        raise UserError(_complaint(path, wrong, rows))
    if not problems:
        raise UserError(f"{path} is empty: domain {domain} would have no problems. Fill it, or leave the domain out.")
    if len(repeats) > REPEATS_BORNE * rows and not benchmark.published:
        raise UserError(
            f"{path}: {len(repeats)} of {rows} rows ask what another asks, with the same answer ({repeats[0]}, ...)."
            " They would count as problems of their own: every interval would be too narrow, and a calibration would"
            " weigh them double. Leave them out of the file; to ask each problem N times type task.samples=N"
            " task.temperature=0.6."
        )
    return tuple(problems)


def repeats_note(path: Path, problems: Sequence[Problem]) -> str | None:
    """What to tell the user of the few problems that repeat another of their domain; None where there are none."""
    asked: dict[str, str] = {}
    repeats = [p.problem_id for p in problems if asked.setdefault(p.question, p.problem_id) != p.problem_id]
    if not repeats:
        return None
    return (
        f"{len(repeats)} of {len(problems)} problems of {path} ask what another asks, with the same answer"
        f" ({', '.join(repeats[:MOST_SHOWN])}): they count as problems of their own, so intervals are a little too"
        " narrow, or a calibration weighs them double. Leave them out of the file."
    )


def lists_note(path: Path, problems: Sequence[Problem]) -> str | None:
    """What to tell the user of right answers that spell a list of texts and are one text; None where there are none."""
    spelled = [p.problem_id for p in problems if len(p.answers) == 1 and _spells_texts(p.answer)]
    if not spelled:
        return None
    return (
        f"{len(spelled)} of {len(problems)} right answers of {path} are lists written as one text"
        f" ({', '.join(spelled[:MOST_SHOWN])}): a model would have to write brackets and quotes too. Where each is"
        ' right, write the list itself, "answer": ["2", "two"], in JSON lines or Parquet; a cell of a CSV file is'
        " always one text."
    )


def _spells_texts(answer: str) -> bool:
    value = _written_list(answer)
    return isinstance(value, list) and len(value) > 1 and all(isinstance(each, str) for each in value)


def _contradiction(problem: Problem, first: str, same: Problem) -> str:
    either = json.dumps(list(dict.fromkeys([*same.answers, *problem.answers])), ensure_ascii=False)
    here, there = (" or ".join(map(repr, sorted(each.answers))) for each in (problem, same))
    return (
        f"has the prompt of {first} but another answer ({here}, not {there}): what is right would depend on the row."
        f" Delete one, or write one row with the list {either} where each is right"
    )


def _complaint(path: Path, wrong: list[str], rows: int) -> str:
    more = len(wrong) - MOST_SHOWN
    listed = "".join(f"\n  {line}" for line in wrong[:MOST_SHOWN])
    return (
        f"{path}: {len(wrong)} of {rows} rows cannot be asked or graded as they are, so nothing was started:{listed}"
        + (f"\n  and {more} more." if more > 0 else "")
        + f"\nWrite each problem as {EXAMPLE}: texts in quotes, several right answers as a list. Mend the file, or type"
        " another task.data_files."
    )


def _problem(row: Row, benchmark: Benchmark, task: TaskConfig, domain: str, default_id: str) -> Problem:
    for key in (benchmark.prompt_key, benchmark.answer_key):
        if key not in row:
            has = ", ".join(ascii(name) if invisible(name) else f'"{name}"' for name in list(row)[:8])
            raise _Wrong(f'has no "{key}"{f" (it has {has})" if has else ""}')
    asked = row[benchmark.prompt_key]
    chat = _chat(benchmark, task, asked) if _is_chat(asked) else ()
    prompt = told(chat) if chat else benchmark.ask(_question(benchmark.prompt_key, asked))
    answers = tuple(dict.fromkeys(_answers(benchmark, task, row[benchmark.answer_key])))
    response = row.get(benchmark.response_key)
    material = _material(row.get(benchmark.material_key))
    if wrong := grader_of(task).wrong_material(material):
        raise _Wrong(wrong)
    return Problem(
        problem_id=next((label for key in ID_KEYS if (label := _label(key, row.get(key)))), default_id),
        domain=domain,
        task=_label(TASK_KEY, row.get(TASK_KEY)) or domain,
        prompt=prompt,
        answer=answers[0],
        also=answers[1:],
        response=str(response) if type(response) is str and response.strip() else None,
        material=material,
        chat=chat,
        stop=_texts(row.get(benchmark.stop_key)) if benchmark.stop_key else (),
        choices=_choices(row.get(benchmark.choices_key)) if benchmark.choices_key else (),
    )


def _texts(value: object) -> tuple[str, ...]:
    if value is None:
        return ()
    if not isinstance(value, list) or not all(type(each) is str and each for each in value):
        raise _Wrong("lists as texts something that is no list of texts, each of a character at least")
    return tuple(value)


def _choices(value: object) -> tuple[tuple[str, str], ...]:
    pairs: list[Any] = value if isinstance(value, list) else [] if value is None else [None]
    whole = all(isinstance(p, list) and [type(each) for each in p] == [str, str] and p[1] for p in pairs)
    if not whole:
        raise _Wrong("lists as choices something that is no list of [context, continuation], both text")
    return tuple((context, continuation) for context, continuation in pairs)


def _material(value: object) -> str | None:
    return None if value is None else json.dumps(_with_numbers(value), ensure_ascii=False, sort_keys=True)


def _with_numbers(value: object) -> object:
    """Numbers as numbers again: what a grader needs beside an answer is no text to be compared as it is written."""
    if isinstance(value, Number):
        try:
            return int(value)
        except ValueError:
            return float(value)
    if isinstance(value, list):
        return [_with_numbers(each) for each in value]
    return {key: _with_numbers(each) for key, each in value.items()} if isinstance(value, dict) else value


def told(chat: Sequence[tuple[str, str]]) -> str:
    """A chat as one text, for people and for what compares questions."""
    return "\n\n".join(f"{role}: {text}" for role, text in chat)


def _is_chat(value: object) -> bool:
    return isinstance(value, list) and any(isinstance(item, dict) and "role" in item for item in value)


def _written_list(text: str) -> object:
    """The list that a text spells in JSON or as Python prints it; None where it spells none."""
    if not (text.lstrip().startswith("[") and text.rstrip().endswith("]")):
        return None
    for read in (json.loads, ast.literal_eval):
        try:
            value = read(text.strip())
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            continue
        if isinstance(value, list):
            return value
    return None


def _chat(benchmark: Benchmark, task: TaskConfig, value: object) -> tuple[tuple[str, str], ...]:
    key = benchmark.prompt_key
    if not task.chat_template:
        raise _Wrong(
            f'has chat messages as "{key}", and task.chat_template=false asks plain texts: type'
            " task.chat_template=true, or write what the user says as one text"
        )
    if benchmark.ask is not str:
        raise _Wrong(f'has chat messages as "{key}", and {benchmark.name} words its prompts itself: write one text')
    assert isinstance(value, list)
    return tuple(_messages(key, value))


def _messages(key: str, value: list[object]) -> Iterator[tuple[str, str]]:
    for number, message in enumerate(value, start=1):
        if not isinstance(message, dict) or not {"role", "content"} <= set(message):
            raise _Wrong(f'has no role and content in message {number} of its "{key}"')
        role, text = message["role"], message["content"]
        if role not in ROLES:
            raise _Wrong(f"has {str(role)!r} as the role of message {number}: write {', '.join(ROLES)}")
        if isinstance(text, Number | NoValue) or not isinstance(text, str):
            raise _Wrong(f"has {_named(text)} as the content of message {number}: write one text")
        if all(char.isspace() or invisible(char) for char in text):
            raise _Wrong(f"has an empty content in message {number}")
        if number == len(value) and role != "user":
            raise _Wrong(f"has {role} as the role of its last message, and what is answered is what the user says")
        yield str(role), _whole(key, text)


def _question(key: str, value: object) -> str:
    if isinstance(value, (list, dict)):
        raise _Wrong(f'has {_named(value)} as "{key}": write it as text in quotes, or as a chat, {CHAT}')
    if isinstance(value, (Number, NoValue)) or not isinstance(value, str):
        raise _Wrong(f'has {_named(value)} as "{key}", not text: write it as text in quotes')
    if all(char.isspace() or invisible(char) for char in value):
        raise _Wrong(f'has an empty "{key}": there is nothing to ask')
    if _is_chat(_written_list(value)):
        raise _Wrong(
            f'has chat messages written as one text as "{key}", so the model would be asked brackets and quotes: write'
            f" the list itself in JSON lines or Parquet, {CHAT} (a cell of a CSV file is always one text)"
        )
    return _whole(key, value)


def _answers(benchmark: Benchmark, task: TaskConfig, value: object) -> Iterator[str]:
    key, grader = benchmark.answer_key, grader_of(task)
    if value == []:
        raise _Wrong(f'has an empty list as "{key}": no answer could be right')
    for answer in value if isinstance(value, list) else [value]:
        if isinstance(answer, NoValue) or not isinstance(answer, str):
            within = "within its list of" if isinstance(value, list) else "as"
            raise _Wrong(f'has {_named(answer)} {within} "{key}": write the answer as text in quotes, or as a number')
        normalised = grader.normalised(_whole(key, answer))
        if not normalised:
            raise _Wrong(f'has an empty "{key}": an answer that is not found would be right')
        if hidden := invisible(normalised):
            raise _Wrong(
                f'has {hidden} in its "{key}" {normalised!a}, which nobody sees and a model does not write, so no given'
                " answer would be equal: delete it, or write a plain space in its place"
            )
        if DAMAGED in normalised:
            raise _Wrong(
                f'has U+FFFD REPLACEMENT CHARACTER in its "{key}" {normalised!r}: a program wrote it for bytes that it'
                " could not read, so no given answer would be equal: write what stood there"
            )
        if never := grader.never_given(normalised, task):
            raise _Wrong(f'has {normalised!r} as "{key}", which {never}')
        yield normalised


def _label(key: str, value: object) -> str:
    """A name as text, empty where there is none."""
    if value is None:
        return ""
    if isinstance(value, NoValue) or not isinstance(value, str):
        raise _Wrong(f'has {_named(value)} as "{key}": write it as text in quotes, or as a number')
    return _whole(key, value)


def _whole(key: str, text: str) -> str:
    """A plain str; half a character (a surrogate without its other half) can be neither asked nor written down."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise _Wrong(
            f'has half a character ({text[error.start]!a}) in "{key}", which no tokenizer can read: write it whole'
        ) from None
    return str(text)


def _named(value: object) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return f"the truth value {str(value).lower()}"
    if isinstance(value, Number):
        return f"the number {value:.30}"
    if isinstance(value, NoValue):
        return str(value)
    return "a list" if isinstance(value, list) else "an object"
