"""The composed configuration in one tree: the run's settings, those of the points, and what differs as a list."""

from __future__ import annotations

import json
from pathlib import Path

from banpick_exp.cluster.plan import SECTIONS
from banpick_exp.sweep.composed import PER_POINT, composed
from banpick_exp.sweep.plan import plan_sweep


def test_one_tree_with_what_was_typed(tmp_path: Path) -> None:
    typed = ["+sweep=pick_strength", f"output_dir={tmp_path}", "dry_run=true", "task.max_problems=7", "seed=0,1"]
    plan = plan_sweep(typed, sections=SECTIONS)
    tree = composed(plan)
    assert tree["sweep"]["name"] == "pick_strength" and "policy=pick" in tree["sweep"]["params"]
    assert tree["tracking"]["mode"] == "offline" and tree["cluster"]["backend"] == "ray"
    assert set(PER_POINT) <= set(tree) and tree["task"]["max_problems"] == 7
    assert tree["seed"] == [0, 1] and tree["model"]["name"] == "tiny", "a list where points differ"
    assert tree["command"] == plan.command and list(tree["identities"]["models"].values()) == ["tiny"]
    assert json.loads(json.dumps(tree)) == tree
