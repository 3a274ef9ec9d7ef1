"""What a policy is calibrated on for an lm-eval task: problems of another split of its own, with the right answers.

Never of the split that is asked: its training split, else its validation split, else the one its examples are from. A
problem is a text with what should follow: a task that writes gives its target, one of likelihoods its right choice.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from banpick_exp.tasks.invisible import invisible

MOST = 1024
"""Problems, spread evenly over the split; a calibration takes a few hundred at most."""


@dataclass(frozen=True, slots=True)
class CalibrationLines:
    """Rows of a file of ours, or why there are none."""

    rows: tuple[dict[str, Any], ...]
    said: str


def calibration_lines(task: Any, seed: int, shared: dict[str, Any]) -> CalibrationLines:
    """The rows of a loaded task. `seed`: of its few-shot examples; `shared`: what the material of all rows holds."""
    asked = task.config.test_split if task.has_test_docs() else task.config.validation_split
    found = _split(task, asked)
    if found is None:
        return CalibrationLines((), f"nothing to calibrate on: lm-eval's task has no split but {asked}, which is asked")
    split, documents = found
    known = {json.dumps(document, default=repr) for document in task.eval_docs}
    task.set_fewshot_seed(seed=seed)
    count = min(MOST, len(documents))
    rows = []
    for place in (number * len(documents) // count for number in range(count)):
        document = documents[place]
        plain = json.dumps(document, default=repr)
        if plain in known or json.loads(plain) != document:
            continue
        rows += [row | {"problem_id": f"{split}-{place:06d}"} for row in _row(task, document, split, shared)]
    if not rows:
        return CalibrationLines(
            (), f"nothing to calibrate on: no problem of lm-eval's split {split} has a text and a right answer to it"
        )
    return CalibrationLines(tuple(rows), f"{len(rows)} problems of its split {split} to calibrate on")


def _split(task: Any, asked: str) -> tuple[str, Any] | None:
    """Name and documents of the split that is not asked."""
    if task.has_training_docs() and task.config.training_split != asked:
        return task.config.training_split, task.training_docs()
    if task.has_validation_docs() and task.config.validation_split != asked:
        return task.config.validation_split, task.validation_docs()
    if task.fewshot_cfg.split not in (None, asked):
        return task.fewshot_cfg.split, task.fewshot_docs()
    return None


def _row(task: Any, document: dict[str, Any], split: str, shared: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """One row; none for a document without a right answer, or whose own few-shot examples give it away."""
    prefix = task.doc_to_prefix(document)
    context = task.fewshot_context(document, num_fewshot=task.config.num_fewshot, gen_prefix=prefix)
    metadata = (task.task_name, 0, 1)
    made = task.construct_requests(doc=document, ctx=context, metadata=metadata, apply_chat_template=False)
    instances = made if isinstance(made, list) else [made]
    right = _right(task, document, instances)
    if right is None:
        return
    prompt, response = right
    question = _question(task, document)
    if not prompt.strip() or not response.strip() or (question and prompt.count(question) > 1):
        return
    answer = "".join(sign for sign in response if not invisible(sign) and sign != "\ufffd").strip()
    if not answer:
        return
    generation = dict(instances[0].args[1]) if instances[0].request_type == "generate_until" else {}
    until = generation.pop("until", [])
    material = {**shared, "doc": document, "requests": [[prompt]], "generation": generation, "calibration": split}
    yield {
        "task": task.task_name,
        "prompt": prompt,
        "answer": answer,
        "response": response,
        "stop": [each for each in ([until] if isinstance(until, str) else until) if each],
        "material": json.dumps(material, ensure_ascii=False),
    }


def _right(task: Any, document: dict[str, Any], instances: list[Any]) -> tuple[str, str] | None:
    """Context and right continuation; None where the task does not tell them."""
    try:
        target = task.doc_to_target(document)
        choices = task.doc_to_choice(document) if task.config.doc_to_choice is not None else None
        if instances[0].request_type == "loglikelihood":
            if choices is not None:  # else the one continuation is the right one
                place = task.doc_to_text(document) if task.multiple_input else target
                place = place[0] if isinstance(place, list) else place
                place = choices.index(place) if isinstance(place, str) else place
                if not 0 <= place < len(choices):
                    return None
                instances = instances[place:]
            context, continuation = instances[0].args
            return str(context), str(continuation)
    except Exception:  # a task that grades by a function of its own may have no target, or any other
        return None
    target = target[0] if isinstance(target, list) and target else target
    if isinstance(target, int) and isinstance(choices, list) and 0 <= target < len(choices):
        target = choices[target]
    if not isinstance(target, str):
        return None
    return str(instances[0].args[0]), f"{task.config.target_delimiter}{target}"


def _question(task: Any, document: dict[str, Any]) -> str | None:
    """What the document asks, without what stands before it."""
    text = task.doc_to_text(document)
    return text.strip() if isinstance(text, str) else None
