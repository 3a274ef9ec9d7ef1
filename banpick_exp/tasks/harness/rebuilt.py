"""An lm-eval task object without its data: enough of it to grade, built from its YAML and one document.

Runs where lm-eval may be imported: when problems are made, and in the grader's process.
"""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

NONE = "none"
"""The filter that lm-eval uses where a task names none."""


class _Documents(list[dict[str, Any]]):
    """Has of a data set what a task looks at."""

    @property
    def features(self) -> dict[str, None]:
        return dict.fromkeys(self[0])


def config_of(path: Path) -> dict[str, Any]:
    """The config of a YAML as lm-eval reads it, its functions imported."""
    from lm_eval.tasks._yaml_loader import load_yaml

    config = load_yaml(path)
    return {key: value for key, value in config.items() if key not in ("tag", "group", "task_list")}


def rebuilt(path: Path, document: dict[str, Any], targets: int, inputs: int) -> Any:
    """The task of a YAML with one document, already processed; `targets` and `inputs` are what it made of its first."""
    from lm_eval.api.task import ConfigurableTask

    gone = ("dataset_path", "dataset_name", "dataset_kwargs", "training_split", "validation_split", "fewshot_split")
    config = config_of(path) | dict.fromkeys((*gone, "fewshot_config", "process_docs"))
    config |= {"custom_dataset": lambda **_: {"docs": _Documents([document])}, "test_split": "docs", "num_fewshot": 0}
    task = ConfigurableTask(config=config)
    task.multiple_target, task.multiple_input = targets, inputs
    return task


def results(
    task: Any, document: dict[str, Any], requests: list[Any], responses: list[Any], only: str | None = None
) -> dict[str, Any]:
    """metric/filter -> what the task says of the responses to one document's requests; and `answer/filter`, what its
    filter made of the first. `only`: this filter alone."""
    from lm_eval.api.instance import Instance

    found: dict[str, Any] = {}
    for ensemble in task._filters:
        if only is not None and ensemble.name != only:
            continue
        instances = [
            Instance(
                request_type="generate_until" if isinstance(response, str) else "loglikelihood",
                doc=document,
                arguments=tuple(request),
                idx=number,
                resps=[response],
            )
            for number, (request, response) in enumerate(zip(requests, responses, strict=True))
        ]
        ensemble.apply(instances)
        filtered = [each.filtered_resps[ensemble.name] for each in instances]
        for metric, value in task.process_results(document, filtered).items():
            found[f"{metric}/{ensemble.name}"] = _plain(value)
        found[f"answer/{ensemble.name}"] = filtered[0] if isinstance(filtered[0], str) else ""
    return found


def _plain(value: Any) -> Any:
    """A number of NumPy's as Python's; what is no number, as None."""
    with contextlib.suppress(AttributeError):
        value = value.item()
    return float(value) if isinstance(value, bool | int | float) else None
