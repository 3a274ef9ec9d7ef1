"""Problems of an lm-eval task, made once by its own code: what it would send to a model, and what it grades with.

lm-eval's `evaluate` does the same before it asks: `TaskManager`, few-shot seed 1234, `build_all_requests`. Its caches
are off. Each task is then built again without its data (`rebuilt`), as the grader will, and must say of right and of
empty answers just what the task itself says; otherwise nothing is written.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from shlex import quote
from typing import Any

from banpick_exp.config import suggestion
from banpick_exp.disk import create_folder, write_atomically
from banpick_exp.errors import UserError
from banpick_exp.tasks.harness.calibrating import CalibrationLines, calibration_lines
from banpick_exp.tasks.harness.place import CALIBRATION, how_to_make, problems_path, version
from banpick_exp.tasks.harness.rebuilt import rebuilt, results
from banpick_exp.tasks.harness.sources import Sources, is_local, package_folder, runs_code, sources_of
from banpick_exp.tasks.invisible import invisible

FEWSHOT_SEED, RANDOM_SEED, NUMPY_SEED = 1234, 0, 1234
"""lm-eval's own defaults."""
SANDBOXED = ("humaneval", "mbpp")
"""Tasks of ours whose answers run in the sandbox."""
COMPARED = 16
"""Documents on which the rebuilt task is held against the real one."""
NO_TEXT = "(in the document)"
"""Stands for a right answer that the task does not tell as a text."""
REFUSED_CODE = "what a model writes runs in the sandbox alone, so nothing of it was loaded"


@dataclass(frozen=True, slots=True)
class Built:
    """The file of a task's problems."""

    path: Path
    problems: int
    metrics: tuple[str, ...]
    """metric/filter, the first decides unless task.metric names another."""
    own_python: tuple[Path, ...]
    """Modules of the user's that were imported."""
    calibration: str
    """How many problems there are to calibrate on, or why none."""


def build(name: str) -> Built:
    """Make the problems of a task and write their file.

    Raises UserError for a name that lm-eval does not have, and for a task that runs code, asks by perplexity or in
    several ways at once, needs pictures or sound, repeats its requests, or has no metric that judges one problem.
    """
    version()  # it is installed
    _refuse_by_name(name)
    yaml = Path(name).expanduser().resolve() if is_local(name) else _shipped(name)
    target = problems_path(name)
    sources = sources_of(yaml)
    _refuse(name, sources)
    with _task_code(name, yaml):
        task = _loaded(yaml)
        lines, metrics, calibration = _lines(name, task, yaml, sources)
    create_folder(target.parent)
    write_atomically(target, _as_file(lines))
    other = problems_path(name, CALIBRATION)
    if calibration.rows:
        write_atomically(other, _as_file(calibration.rows))
    else:
        other.unlink(missing_ok=True)
    return Built(target, len(lines), tuple(metrics), sources.modules if is_local(name) else (), calibration.said)


def _as_file(lines: Iterable[dict[str, Any]]) -> bytes:
    return "".join(f"{json.dumps(line)}\n" for line in lines).encode()


def _refuse_by_name(name: str) -> None:
    for ours in SANDBOXED:
        if name.startswith(ours) and not is_local(name):
            raise UserError(
                f"task.name={name}: lm-eval runs its answers in its own process, already when it is imported;"
                f" {REFUSED_CODE}. Type task={ours if ours == 'humaneval' else 'mbpp_plus'} task.allow_code=true."
            )


def _refuse(name: str, sources: Sources) -> None:
    config = sources.config
    if (why := runs_code(sources)) is not None:
        raise UserError(
            f"task.name={name} is a task of lm-eval's that runs code in its own process ({why}); {REFUSED_CODE}. For"
            " answers that are programs type task=humaneval task.allow_code=true."
        )
    why_not = {
        "is a Python class, which cannot be graded without its data": "class" in config,
        "is a group of tasks": "group" in config or isinstance(config.get("task"), list),
        "has no `task: NAME`": not isinstance(config.get("task"), str),
        "measures perplexity, by which no problem is right or wrong": config.get("output_type")
        == "loglikelihood_rolling",
        "shows pictures": bool(config.get("doc_to_image")),
        "plays sound": bool(config.get("doc_to_audio")),
        f"asks each problem {config.get('repeats')} times and judges all at once; type task.samples for several"
        " answers, each of which counts": config.get("repeats", 1) != 1,
    }
    if reasons := [why for why, holds in why_not.items() if holds]:
        raise UserError(f"task.name={name} {reasons[0]}: nothing could be asked. Name another task.")


def _shipped(name: str) -> Path:
    from lm_eval.tasks import TaskManager

    index = TaskManager().task_index
    entry = index.get(name)
    if entry is None:
        raise UserError(
            f"task.name={name} is no task of lm-eval {version()}: there is nothing to ask."
            f" {suggestion(name, index, 'task.name=')}Type lm-eval ls tasks to see all, or the path of a YAML file."
        )
    if entry.yaml_path is None or entry.kind.name in ("GROUP", "TAG"):
        members = sorted(entry.tags) or [
            str(each.get("task") or each.get("group")) if isinstance(each, dict) else str(each)
            for each in (entry.cfg or {}).get("task", [])
        ]
        raise UserError(
            f"task.name={name} stands for several tasks of lm-eval, and one is asked at a time. Type one, or all"
            f" as an axis: 'task.name=choice({','.join(members[:8])}{',...' if len(members) > 8 else ''})'."
        )
    return Path(entry.yaml_path)


@contextmanager
def _task_code(name: str, yaml: Path) -> Iterator[None]:
    """Runs a task's own code, which may raise anything, or exit: all of it is a UserError that says whose it is."""
    try:
        yield
    except UserError:
        raise
    except ModuleNotFoundError as error:
        raise UserError(
            f"task.name={name} needs the package {error.name}, which is not installed here: there is nothing to ask."
            f" Type pip install {error.name} (the task may want more: pip install 'lm-eval[ifeval]')."
        ) from error
    except (Exception, SystemExit) as error:  # whatever a task's code, datasets or the Hub raise
        mend = f"Mend {yaml}, then type {how_to_make(name)} again."
        unreached = (
            "Where its data is on the Hugging Face Hub and there is no network here, type this on a machine that has"
            f" one and copy the file it writes to {problems_path(name)}."
        )
        raise UserError(
            f"task.name={name} cannot be loaded by lm-eval ({type(error).__name__}: {str(error)[:300]}), so there is"
            f" nothing to ask. {mend if is_local(name) and not isinstance(error, ConnectionError) else unreached}"
        ) from error


def _loaded(yaml: Path) -> Any:
    import numpy as np
    from lm_eval.tasks import TaskManager

    random.seed(RANDOM_SEED)
    np.random.seed(NUMPY_SEED)
    found = TaskManager(include_defaults=False).load([str(yaml)])
    (task,) = found["tasks"].values()
    if task.get_config("num_fewshot") is None:
        task.set_config(key="num_fewshot", value=0)
    task.set_fewshot_seed(seed=FEWSHOT_SEED)
    task.build_all_requests(limit=None, rank=0, world_size=1, cache_requests=False, rewrite_requests_cache=False)
    return task


def _lines(
    name: str, task: Any, yaml: Path, sources: Sources
) -> tuple[list[dict[str, Any]], list[str], CalibrationLines]:
    kinds = [task.multiple_target, task.multiple_input]
    by_document: dict[int, list[Any]] = {}
    for instance in task.instances:
        by_document.setdefault(instance.doc_id, []).append(instance)
    groups = {number: sorted(each, key=lambda instance: instance.idx) for number, each in by_document.items()}
    for number, instances in groups.items():
        types = {instance.request_type for instance in instances}
        if types not in ({"loglikelihood"}, {"generate_until"}) or (types == {"generate_until"} and len(instances) > 1):
            raise UserError(
                f"task.name={name}: its document {number} asks in several ways at once ({', '.join(sorted(types))}),"
                " and one problem is one answer: nothing could be asked. Name another task."
            )
    metrics = _metrics(name, task, yaml, groups, kinds)
    root = package_folder()
    place = str(yaml.relative_to(root.parent)) if root and yaml.is_relative_to(root.parent) else str(yaml)
    shared = {"yaml": place, "digest": sources.digest, "kinds": kinds, "metrics": metrics}
    lines = [_line(task, number, instances, shared) for number, instances in groups.items()]
    return lines, metrics, calibration_lines(task, FEWSHOT_SEED, shared)


def _line(task: Any, number: int, instances: list[Any], shared: dict[str, Any]) -> dict[str, Any]:
    first = instances[0]
    by_likelihood = first.request_type == "loglikelihood"
    requests = [list(instance.args) for instance in instances] if by_likelihood else [[first.args[0]]]
    generation = {} if by_likelihood else dict(first.args[1])
    until = generation.pop("until", [])
    material = {**shared, "doc": first.doc, "requests": requests, "generation": generation}
    return {
        "problem_id": f"{task.task_name}-{number:06d}",
        "task": task.task_name,
        "prompt": requests[0][0] if requests[0][0].strip() or not by_likelihood else "".join(requests[0]),
        "answer": _shown(task, first.doc),
        "stop": [each for each in ([until] if isinstance(until, str) else until) if each],
        **({"choices": requests} if by_likelihood else {}),
        "material": json.dumps(material, ensure_ascii=False),
    }


def _shown(task: Any, document: dict[str, Any]) -> str:
    """The right answer as tables tell it; the grader judges by the document."""
    try:
        target = task.doc_to_target(document)
        choices = task.doc_to_choice(document) if task.config.doc_to_choice is not None else None
    except Exception:  # a task that grades by a function of its own may have no target
        return NO_TEXT
    if isinstance(target, int) and isinstance(choices, list) and 0 <= target < len(choices):
        target = choices[target]
    text = " | ".join(map(str, target)) if isinstance(target, list) else str(target)
    plain = "".join(sign for sign in text if not invisible(sign) and sign != "\ufffd").strip()
    return plain or NO_TEXT


def _metrics(name: str, task: Any, yaml: Path, groups: dict[int, list[Any]], kinds: list[int]) -> list[str]:
    """metric/filter of those that are 0 to 1 for one document and averaged over all."""
    found: dict[str, bool] = {}
    again: Any = None
    for instances in list(groups.values())[:COMPARED]:
        document, requests = instances[0].doc, [list(instance.args) for instance in instances]
        if json.loads(json.dumps(document, default=repr)) != document:
            raise UserError(
                f"task.name={name}: its documents hold what JSON cannot ({str(document)[:80]}), so they could not be"
                " graded later. Name another task."
            )
        again = again or rebuilt(yaml, document, *kinds)
        for responses in _answers(task, document, instances):
            said = results(task, document, requests, responses)
            if said != results(again, document, requests, responses):
                raise UserError(
                    f"task.name={name}, built again without its data, judges an answer in another way, so it could not"
                    " be graded. Name another task."
                )
            for key, value in said.items():
                fits = isinstance(value, float) and 0 <= value <= 1
                found[key] = found.get(key, True) and fits
    averaged = {key for key, each in task.aggregation().items() if getattr(each, "__name__", "") in ("mean", "nanmean")}
    metrics = [key for key, fits in found.items() if fits and key.partition("/")[0] in averaged]
    if not metrics:
        raise UserError(
            f"task.name={name} has no metric that says of one problem whether it is right (it has"
            f" {', '.join(key for key in found if not key.startswith('answer/')) or 'none'}): nothing could be paired."
            " Name another task."
        )
    return metrics


def _answers(task: Any, document: dict[str, Any], instances: list[Any]) -> Iterator[list[Any]]:
    """A few sets of responses to the requests of one document: the right answer and an empty one, or each choice."""
    if instances[0].request_type == "generate_until":
        yield [_shown(task, document)]
        yield [""]
        return
    for likeliest in range(len(instances)):
        yield [(-1.0 - (place != likeliest), place == likeliest) for place in range(len(instances))]
    yield [(-1.0, False)] * len(instances)


def said(name: str, built: Built) -> str:
    """What to tell who had a task made."""
    own = "".join(
        f"\nnote: {path} is your own Python: it was run, and runs again to grade." for path in built.own_python
    )
    return (
        f"{built.problems} problems of {name}: {built.path}\nright is what {built.metrics[0]} says"
        + (f"; task.metric takes {', '.join(built.metrics[1:])} too" if built.metrics[1:] else "")
        + f"\n{built.calibration}{own}\nTo ask them: python -m banpick_exp task=lm_eval task.name={quote(name)}"
    )
