"""`search=select` on the real engine, without Ray: dev chooses, test reports; a driver that dies between goes on."""

from __future__ import annotations

import contextlib
import io
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from loaded_backend import Done, LoadedBackend
from rich.console import Console

from banpick_exp.cluster.plan import RunPlan, plan_run
from banpick_exp.cluster.run import Run
from banpick_exp.report.run import read_run
from banpick_exp.report.selected import against_stock

if TYPE_CHECKING:
    from banpick_exp.engine.engine import Engine

pytestmark = pytest.mark.engine

EXPERTS = '"policy=pick","policy.experts={0:[3,7],1:[2,9],2:[1,5]}"'
SPACE = [
    f'sweep.blocks=[[{EXPERTS},"policy.mode=boost","policy.boost=choice(15,0.25,0.5,1)"],'
    f'[{EXPERTS},"policy.mode=force_replace"]]',
    'sweep.reference=[["policy=fixed_k","policy.k=4"]]', "search=select", "search.by=policy.mode",
    "task.max_problems=40", "task.speed_seconds=0.1", "tracking=none",
]  # fmt: skip
STAGE_1 = 8
"""Points: stock and fixed_k on test, stock and five candidates on dev."""


def planned(folder: Path, *typed: str) -> RunPlan:
    plan = plan_run([*SPACE, *typed, "cluster=inline", f"output_dir={folder}"])
    plan.folder.write_manifest(plan.sweep.manifest())
    return plan


def run(plan: RunPlan, engine: Engine, limit: int = 1000) -> tuple[list[Done], int | None, str]:
    """What the engine was asked for, the exit code (None where the driver died after `limit` points), what it says."""
    backend, output, code = LoadedBackend(engine, limit), io.StringIO(), None
    with contextlib.suppress(KeyboardInterrupt):
        code = Run(plan, Console(file=output, width=250), backend).run()
    return backend.done, code, output.getvalue()


def test_dev_chooses_test_reports_and_resume_repeats_nothing(tiny_engine: Engine, tmp_path: Path) -> None:
    plan = planned(tmp_path)
    first, died, _ = run(plan, tiny_engine, limit=STAGE_1)
    assert died in (None, 0), "it dies where the second stage asks for its first point, if dev chose any"
    assert [label for _, label, _ in first] == [point.label for point in plan.sweep.points] and len(first) == STAGE_1
    again = planned(tmp_path, f"resume={plan.folder.path}")
    rest, code, printed = run(again, tiny_engine)
    assert code == 0 and not {label for _, label, _ in rest} & {label for _, label, _ in first}

    found = read_run(again.folder)
    assert found.mixed_setups is None and {record.task.split for record in found.records} == {"test"}
    accuracy = {record.fingerprint: record.measured.overall.accuracy for record in found.dev}
    stock = next(record for record in found.dev if record.is_stock)
    expected = []
    for group in ("mode=boost", "mode=force_replace"):
        members = [each for each in again.sweep.manifest().candidates if each.group == group]
        most = max(accuracy[each.dev] for each in members)
        if most > accuracy[stock.fingerprint]:
            expected.append(next(each.label for each in members if accuracy[each.dev] == most))
    assert expected, "else this test has no second stage"
    assert [label for _, label, _ in rest] == expected
    assert {record.label for record in found.done} == {"none", "fixed_k k=4", *expected}
    assert all(record.timing.timed_tokens in (None, 0) for record in found.dev), "dev is not timed"

    lines = printed.rstrip().splitlines()
    dev = lines.index("Dev holds 6 more points: their scores choose, and test alone holds the result.")
    assert lines[dev + 1].startswith("mode=boost: dev chose") and lines[dev + 2].startswith(
        "mode=force_replace: dev chose"
    )
    assert "mixed_setups" not in printed
    assert len(against_stock(found)) == len(expected)

    nothing, code, printed = run(planned(tmp_path, f"resume={plan.folder.path}"), tiny_engine)
    assert nothing == [] and code == 0 and "Every point of this run is finished" in printed
