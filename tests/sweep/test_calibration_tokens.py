"""How much of its own answers a model is calibrated on: what suits the task, where nobody types a number."""

from __future__ import annotations

from pathlib import Path

import pytest

from banpick_exp.evaluation.calibration.config import EMBEDDED, EMBEDDED_TOKENS, MOST_TOKENS
from banpick_exp.sweep.compose import Composer
from banpick_exp.sweep.estimate import calibration_tokens
from banpick_exp.sweep.plan import plan_sweep
from banpick_exp.tasks.registry import BENCHMARKS

PICK = ["policy=pick", "policy.mode=range_add", "policy.key_experts=4", "tracking=none", "dry_run=true"]


def tokens(**values: object) -> int | None:
    return Composer().setting({key.replace("__", "."): value for key, value in values.items()}).calibration.max_tokens


def test_the_embedded_problems_keep_theirs_and_their_fingerprints() -> None:
    assert EMBEDDED in BENCHMARKS and tokens() == EMBEDDED_TOKENS == tokens(task__max_tokens=90)
    ours, typed = (plan_sweep([*PICK, *more]).points[-1] for more in ([], ["calibration.max_tokens=24"]))
    assert ours.calibration_fingerprint == typed.calibration_fingerprint and ours.fingerprint == typed.fingerprint


@pytest.mark.parametrize("task", ["math500", "humaneval", "gsm8k", "aime24"])
def test_benchmarks_are_read_further(task: str) -> None:
    assert tokens(task=task) == MOST_TOKENS
    assert tokens(task=task, task__max_tokens=100) == 100, "no answer is longer"
    assert tokens(task=task, calibration__max_tokens=1024) == 1024, "typed"


def test_a_task_of_lm_eval_and_problems_of_ones_own() -> None:
    assert tokens(task="lm_eval", task__name="arc_easy") == 256
    own = {"task": "jsonl", "task.domains": ["math"], "task.data_files": "data/{domain}_{split}.jsonl"}
    assert Composer().setting(own).calibration.max_tokens == MOST_TOKENS


def test_of_a_text_nothing_is_answered(tmp_path: Path) -> None:
    """The number changes nothing there, so neither does the identity of what was measured."""
    assert tokens(task="math500", calibration__text=str(tmp_path / "corpus.txt")) == EMBEDDED_TOKENS
    assert tokens(task="math500", calibration__path=str(tmp_path / "artifact")) == EMBEDDED_TOKENS


def test_the_price_follows(tmp_path: Path) -> None:
    for split in ("test", "calibration"):
        (tmp_path / f"math_{split}.jsonl").write_text('{"prompt": "1+1=", "answer": "2"}\n')
    own = ["task=jsonl", "task.domains=[math]", "task.chat_template=false"]
    own.append(f"task.data_files='{tmp_path}/{{domain}}_{{split}}.jsonl'")
    short, long = (plan_sweep([*PICK, *own, f"task.max_tokens={most}"]).points[-1] for most in (10, 100))
    assert calibration_tokens(long) == pytest.approx(10 * calibration_tokens(short))
