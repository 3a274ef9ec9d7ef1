"""The problems: answers recomputed by other code than the generator's, splits that never overlap, files that agree."""

from __future__ import annotations

import ast
import json
import operator
import random
from pathlib import Path

import pytest

from banpick_exp.models.tiny import ASSETS, DOMAINS, SPLITS
from banpick_exp.models.tiny.checkpoint import SPLIT_SIZES, write_data
from banpick_exp.models.tiny.problems import (
    FACT_TASKS,
    FACTS,
    draw,
    evaluation_set,
    is_trainable,
    split_of,
    training_batch,
)


def shipped_rows(domain: str, split: str) -> list[dict[str, str]]:
    lines = (ASSETS / "data" / f"{domain}_{split}.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


ROWS = {(domain, split): shipped_rows(domain, split) for domain in DOMAINS for split in SPLITS}
OPERATORS = {ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Mod: operator.mod}
BY_NAME = {entity.name: entity for entity in FACTS}


def arithmetic(node: ast.expr) -> int:
    if isinstance(node, ast.BinOp):
        return OPERATORS[type(node.op)](arithmetic(node.left), arithmetic(node.right))
    assert isinstance(node, ast.Constant) and isinstance(node.value, int)
    return node.value


def string_program(words: list[str]) -> str:
    """`rev sort abc` is rev(sort("abc"))."""
    if len(words) == 1:
        return words[0]
    inner = string_program(words[1:])
    return {"rev": inner[::-1], "sort": "".join(sorted(inner)), "dup": inner + inner[-1:], "tail": inner[1:]}[words[0]]


def code_answer(body: str) -> str:
    words = body.split(" ")
    if "[" in body:
        text, bounds = body[:-1].split("[")
        start, stop = map(int, bounds.split(":"))
        return "".join(c for i, c in enumerate(text) if start <= i < stop)
    if words[0] == "count":
        return str(sum(c == words[1] for c in words[2]))
    if words[0] == "len":
        return str(len(words[1]))
    if words[0] in ("max", "min"):
        ordered = sorted(int(x) for x in words[1].split(","))
        return str(ordered[-1] if words[0] == "max" else ordered[0])
    if words[0] == "cumsum":
        total, sums = 0, []
        for value in words[1].split(","):
            total += int(value)
            sums.append(str(total))
        return ",".join(sums)
    return string_program(words)


def knowledge_answer(body: str) -> str:
    words = body.split(" ")
    if words[0] == "older":
        return max(words[1:], key=lambda name: BY_NAME[name].age)
    if words[0] in BY_NAME:
        entity = BY_NAME[words[0]]
        for relation in words[1:-1]:
            entity = FACTS[getattr(entity, relation)]
        return str(getattr(entity, words[-1]))
    follow = {edge[0]: edge[1] for edge in words[:-1]}
    node, hops = words[-1][0], int(words[-1][1:])
    for _ in range(hops):
        node = follow[node]
    return node


def recomputed(domain: str, prompt: str) -> str:
    body = prompt[2:-1]
    if domain == "math":
        return str(arithmetic(ast.parse(body, mode="eval").body))
    return code_answer(body) if domain == "code" else knowledge_answer(body)


@pytest.mark.parametrize("domain", DOMAINS)
def test_every_shipped_answer_is_right(domain: str) -> None:
    rows = [row for split in SPLITS for row in ROWS[domain, split]]
    wrong = [row for row in rows if recomputed(domain, row["prompt"]) != row["answer"]]
    assert wrong == []
    assert all(row["response"].rsplit(";", 1)[-1] == row["answer"] for row in rows)


def test_the_check_of_answers_can_fail() -> None:
    row = ROWS["math", "test"][0]
    assert recomputed("math", row["prompt"]) != row["answer"] + "0"
    assert knowledge_answer("older " + " ".join(sorted(BY_NAME)[:2])) in sorted(BY_NAME)[:2]


@pytest.mark.parametrize("domain", DOMAINS)
def test_test_problems_are_many_distinct_and_never_trained_on(domain: str) -> None:
    prompts = [row["prompt"] for row in ROWS[domain, "test"]]
    assert len(set(prompts)) == len(prompts) >= 800
    problems = evaluation_set(domain, "test", SPLIT_SIZES["test"], 0)
    assert not [p for p in problems if is_trainable(p)]
    assert not [p for p in problems if p.task in FACT_TASKS]


def test_splits_are_disjoint() -> None:
    owner: dict[str, tuple[str, str]] = {}
    for key, rows in ROWS.items():
        assert len(rows) == SPLIT_SIZES[key[1]]
        for row in rows:
            assert owner.setdefault(row["prompt"], key) == key
            assert split_of(row["prompt"]) == key[1]


def test_training_batches_hold_no_evaluation_prompt() -> None:
    evaluated = {row["prompt"] for rows in ROWS.values() for row in rows}
    trained = {p.prompt for step in range(60) for p in training_batch(0, step, 96)}
    assert len(trained) > 4000
    assert not trained & evaluated


def test_generator_is_a_function_of_its_seed() -> None:
    assert training_batch(0, 7, 32) == training_batch(0, 7, 32)
    assert training_batch(0, 7, 32) != training_batch(0, 8, 32)
    assert training_batch(0, 7, 32) != training_batch(1, 7, 32)
    assert draw(random.Random(3), "code") == draw(random.Random(3), "code")
    assert evaluation_set("math", "dev", 20, 0) != evaluation_set("math", "dev", 20, 1)


def test_shipped_files_are_what_the_command_writes(tmp_path: Path) -> None:
    write_data(tmp_path, 0)
    shipped = sorted((ASSETS / "data").iterdir())
    assert [path.name for path in sorted(tmp_path.iterdir())] == [path.name for path in shipped]
    for path in shipped:
        assert (tmp_path / path.name).read_bytes() == path.read_bytes(), path.name


def test_too_many_distinct_problems_are_refused() -> None:
    with pytest.raises(ValueError, match="code/no such split: only 0 of 5 distinct"):
        evaluation_set("code", "no such split", 5, 0)
