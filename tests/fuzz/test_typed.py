"""Whatever a person types ends in a plan or in words, soon, and leaves nothing behind."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fuzzing import TEXTS, examples, in_time, without_nul
from hypothesis import example, given
from hypothesis import strategies as st

from banpick_exp.__main__ import main
from banpick_exp.cluster.config import ClusterConfig
from banpick_exp.engine.config import EngineConfig
from banpick_exp.evaluation.calibration.config import CalibrationConfig
from banpick_exp.models.config import ModelConfig
from banpick_exp.policy.registry import POLICIES
from banpick_exp.report.tracking.config import TrackingConfig
from banpick_exp.sweep.compose import GROUPS, POINT_KEYS, RUN_KEYS, choices
from banpick_exp.sweep.config import OptunaSearch, RacingSearch, SweepConfig
from banpick_exp.tasks.config import TaskConfig

pytestmark = pytest.mark.slow

SECTIONS: dict[str, Any] = {
    "cluster": ClusterConfig, "engine": EngineConfig, "calibration": CalibrationConfig, "model": ModelConfig,
    "tracking": TrackingConfig, "sweep": SweepConfig, "task": TaskConfig,
}  # fmt: skip
KNOBS = sorted({f.alias or name for rule in POLICIES.values() for name, f in rule.model_fields.items()} | {"budget"})
KEYS = [f"{group}.{name}" for group, section in SECTIONS.items() for name in section.model_fields]
KEYS += [f"search.{name}" for section in (RacingSearch, OptunaSearch) for name in section.model_fields]
KEYS += [f"policy.{knob}" for knob in KNOBS]
KEYS += [*POINT_KEYS, *RUN_KEYS]
NAMES = [f"{group}={name}" for group in GROUPS if group != "sweep" for name in choices(group)]
SWEEPS = [f"+sweep={name}" for name in choices("sweep")]
STARTS: list[list[str]] = [
    [],
    ["policy=none"],
    ["policy=fixed_k", "policy.k=2"],
    ["policy=pick"],
    ["+sweep=ban_threshold"],
]
STARTS += [["policy=ban", "policy.lambda=interval(0.2,1)", "search=optuna"], ["policy=fixed_k", "policy.k=range(1,K)"]]

keys = st.sampled_from(KEYS) | st.sampled_from(KEYS) | TEXTS
marks = st.sampled_from(["", "", "", "", "+", "++", "~", "-", "--", " "])
words = (
    st.builds(lambda mark, key, value: f"{mark}{key}={value}", marks, keys, TEXTS)
    | st.sampled_from(NAMES)
    | st.sampled_from(SWEEPS)
    | st.builds("{}={}".format, st.sampled_from(KEYS), st.integers() | st.floats() | st.lists(TEXTS, max_size=3))
    | TEXTS
)


LONGEST_ANSWER = 12_000
"""Characters: a sentence for each of a few mistakes, none of which repeats a long value whole."""


@pytest.fixture
def nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    yield tmp_path
    assert list(tmp_path.iterdir()) == [], "planning leaves nothing behind"


def answer_to(typed: list[str]) -> tuple[int, str, str]:
    """The exit code of a line, and what it says."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), in_time():
        code = main(typed)
    return code, out.getvalue(), err.getvalue()


@examples(1000)
@given(start=st.sampled_from(STARTS), typed=st.lists(words.filter(without_nul), max_size=4))
@example(start=["policy=fixed_k"], typed=["policy.k=range(1,1000000000000)"])
@example(start=["policy=ban"], typed=["policy.lambda=range(0.1,1,1e-12)"])
def test_a_line_ends_in_a_plan_or_in_words(nowhere: Path, start: list[str], typed: list[str]) -> None:
    line = ["dry_run=true", "tracking=none", *start, *typed]
    code, out, err = answer_to(line)
    assert code in (0, 2), err
    if code == 2:
        assert err.startswith("banpick: ") and "Traceback" not in err and len(err) < LONGEST_ANSWER
    else:
        assert out


@examples(60)
@given(
    name=st.sampled_from(["report", "choose", "compare", "calibrate", "verify", "bench", "tiny"]),
    typed=st.lists(TEXTS.filter(without_nul), max_size=3),
)
def test_what_follows_a_command_is_read_or_refused(nowhere: Path, name: str, typed: list[str]) -> None:
    """`--help` last, so that nothing that can be understood begins to work."""
    code, _, err = answer_to([name, *typed, "--help"])
    assert code in (0, 2) and "Traceback" not in err
