"""Names as W&B takes them: none is refused, none becomes another's."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import wandb
from synthetic_run import SyntheticRun, ladder
from wandb_runs import read_back

from banpick_exp.report.run import read_run
from banpick_exp.report.tracking.config import TrackingConfig
from banpick_exp.report.tracking.found import FoundOut
from banpick_exp.report.tracking.logged import direction
from banpick_exp.report.tracking.names import MOST, MOST_OF_TAG, artifact_name, metric_key, run_name, tag
from banpick_exp.report.tracking.wandb import Tracker
from banpick_exp.run_folder import RunFolder

LONG = "pick " + " ".join(f"knob_{i}=0.123456" for i in range(30))


@pytest.mark.parametrize(
    ("name", "most"), [(run_name, MOST), (artifact_name, MOST), (metric_key, MOST), (tag, MOST_OF_TAG)]
)
def test_a_long_name_is_shortened_and_two_stay_two(name: object, most: int) -> None:
    assert callable(name)
    first, second = name(f"{LONG}a"), name(f"{LONG}b")
    assert len(first) == len(second) == most and first != second and first[:20] == second[:20]
    assert name(f"{LONG}a") == first


def test_a_name_that_is_taken_stays_as_it_is() -> None:
    assert run_name("pick boost=0.5 key_experts=4 β") == "pick boost=0.5 key_experts=4 β"
    assert artifact_name("pick_strength", "20261128-110511", "points") == "pick_strength-20261128-110511-points"
    assert metric_key("acc/delta_lo/math") == "acc/delta_lo/math" and tag("fixed_k") == "fixed_k"
    assert len(run_name("x" * MOST)) == MOST and run_name("x" * MOST).endswith("x")


def test_what_is_replaced_is_told_apart() -> None:
    assert len({artifact_name("a b"), artifact_name("a_b"), artifact_name("a/b"), artifact_name("a", "b")}) == 4
    assert len({metric_key("acc/a.b"), metric_key("acc/a_b"), metric_key("acc/a b"), metric_key("acc/ä")}) == 4
    for odd in ("a b", "x:y", "ä", "a/b"):
        assert re.fullmatch(r"[A-Za-z0-9_.-]+", artifact_name(odd)) and wandb.Artifact(
            artifact_name(odd), type="points"
        )
    for odd in ("acc/a.b", "9", "", "acc/Mathe (schwer)"):
        assert re.fullmatch(r"[A-Za-z_][A-Za-z0-9_/-]*", metric_key(odd))
    assert "\n" not in run_name("a\nb") and tag("") != ""


def test_the_better_end_of_a_number() -> None:
    assert {direction(key) for key in ("acc/overall", "acc/delta_lo/math", "perf/speedup/prefill", "wins")} == {"max"}
    assert {
        direction(key) for key in ("acc/truncated_fraction/math", "perf/load_seconds", "losses", "guard/engaged")
    } == {"min"}
    assert {direction(key) for key in ("acc/n_problems", "route/mean_kept", "budget/target", "done")} == {"last"}


@pytest.mark.slow
def test_long_names_are_mirrored(tmp_path: Path) -> None:
    """Of the sweep, of a label, of a domain: W&B refused the run or the artifact."""
    run = ladder(SyntheticRun(problems=12), ks=(4,))
    for end in "ab":
        record = run.add("pick", {"boost": 1.0 if end == "a" else 2.0}, kept=4.0)
        run.change(record, label=f"{LONG}{end}")
    folder = RunFolder(run.write(tmp_path / ("sweep_" * 30) / "run [1]"))
    tracker = Tracker(TrackingConfig())
    tracker.start(folder, {})
    folder.write_table("points", read_run(folder).frame_of_all)
    assert tracker.finish({f"repeat/{LONG}": 1.0, "one.two": 2}, found=FoundOut(read_run(folder))) == []
    runs = read_back(folder.path)
    assert len(runs) == 5 and all(len(name) <= MOST for name in runs)
    assert sum(name.startswith("pick knob_0") for name in runs) == 2
    summary = runs["summary"]
    assert len(summary["header"]["run_group"]) == MOST
    (points,) = [each["name"] for each in summary["artifacts"] if each["type"] == "points"]
    assert points.startswith("sweep_sweep_") and len(points) == MOST
    keys = [key for key in summary["summary"] if key.startswith(("repeat", "one"))]
    assert len(keys) == 2 and all(key == metric_key(key) for key in keys)
