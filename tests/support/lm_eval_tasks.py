"""Tasks of lm-eval's form with data of their own, one of each kind that can be asked: written where a test says."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

SUMS = [{"question": f"m:{a}+{b}=", "answer": str(a + b)} for a in range(1, 4) for b in range(1, 5)]
CAPITALS = [
    {"country": "Norway", "cities": ["Bergen", "Oslo"], "gold": 1},
    {"country": "France", "cities": ["Paris", "Lyon", "Nice"], "gold": 0},
    {"country": "Italy", "cities": ["Milan", "Turin", "Rome"], "gold": 2},
    {"country": "Spain", "cities": ["Madrid", "Bilbao"], "gold": 0},
]
GENERATION = """
task: small_sums
dataset_path: json
dataset_kwargs: {data_files: {test: DATA}}
test_split: test
output_type: generate_until
doc_to_text: "{{question}}"
doc_to_target: "{{answer}}"
generation_kwargs: {until: ["\\n", "!"], max_gen_toks: 24, do_sample: false}
filter_list:
  - name: last
    filter: [{function: regex, regex_pattern: "(-?[0-9]+)", group_select: -1}, {function: take_first}]
  - name: first
    filter: [{function: regex, regex_pattern: "(-?[0-9]+)", group_select: 0}, {function: take_first}]
metric_list: [{metric: exact_match, aggregation: mean, higher_is_better: true}]
"""
CHOICES = """
task: small_capitals
dataset_path: json
dataset_kwargs: {data_files: {test: DATA}}
test_split: test
num_fewshot: 1
output_type: multiple_choice
doc_to_text: "The capital of {{country}} is"
doc_to_choice: cities
doc_to_target: gold
metric_list:
  - {metric: acc, aggregation: mean, higher_is_better: true}
  - {metric: acc_norm, aggregation: mean, higher_is_better: true}
"""
LIKELIHOOD = """
task: last_word
dataset_path: json
dataset_kwargs: {data_files: {test: DATA}}
test_split: test
output_type: loglikelihood
doc_to_text: "{{question}}"
doc_to_target: "{{answer}}"
metric_list:
  - {metric: perplexity, aggregation: perplexity, higher_is_better: false}
  - {metric: acc, aggregation: mean, higher_is_better: true}
"""


def keep_to(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is made of tasks lies below a folder, and nothing asks the Hub."""
    monkeypatch.setenv("BANPICK_DATA", str(folder / "made"))
    monkeypatch.setenv("HF_DATASETS_CACHE", str(folder / "cache"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    for name in ("huggingface_hub.constants", "datasets.config"):  # which read it when they were imported
        if name in sys.modules:
            monkeypatch.setattr(sys.modules[name], "HF_HUB_OFFLINE", True)


def write_task(folder: Path, name: str, text: str, rows: Sequence[Mapping[str, Any]]) -> Path:
    """The YAML of a task, its data beside it."""
    data = folder / f"{name}.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    path = folder / f"{name}.yaml"
    path.write_text(text.replace("DATA", str(data)))
    return path
