"""What the engines of a run were held for, over all its drivers, and a budget that ends it in order."""

from __future__ import annotations

import io
import re
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from banpick_exp.cluster.backends.answering import AnsweringBackend
from banpick_exp.cluster.events import KINDS, Event
from banpick_exp.cluster.plan import RunPlan, plan_run
from banpick_exp.cluster.run import Run
from banpick_exp.cluster.spent import Account, Devices, RunBudgetWatch, account_of, check_unspent
from banpick_exp.errors import UserError

BEGIN = datetime(2026, 11, 27, 10, 0, tzinfo=UTC)
TYPED = ["policy=fixed_k", "policy.k=range(1,K)", "task.max_problems=2", "cluster=inline", "cluster.engines=2",
         "tracking=none", "run=mine"]  # fmt: skip


def event(second: float, kind: str, **fields: Any) -> Event:
    assert fields.keys() <= KINDS[kind].keys()
    return Event(BEGIN + timedelta(seconds=second), kind, {name: fields.get(name) for name in KINDS[kind]})


def account(*events: Event) -> Account:
    found = Account(lambda name: Devices(8, 0) if name.startswith("gpu") else Devices(0, 4))
    for each in events:
        found.add(each)
    return found


LOAD = [event(0, "run_begun"), event(10, "engine_starting", engine="gpu"), event(40, "engine_ready", engine="gpu")]


def test_an_engine_holds_its_devices_from_its_start_to_its_end() -> None:
    found = account(
        *LOAD,
        event(10, "engine_starting", engine="cpu"),
        event(50, "calibration_begun", engine="gpu", calibration="c"),
        event(70, "calibration_done", engine="gpu", calibration="c"),
        event(70, "block_begun", engine="gpu", point="a"),
        event(100, "block_failed", engine="gpu", point="a"),
        event(100, "point_begun", engine="gpu", point="a"),
        event(130, "point_done", point="a"),
        event(130, "engine_closed", engine="gpu"),
        event(190, "run_ended"),
    )
    assert found.gpu_hours() == pytest.approx(8 * 120 / 3600)
    assert found.cpu_hours() == pytest.approx(4 * 180 / 3600), "closed with the run"
    assert found.seconds == {"load": 30, "calibration": 20, "answer": 30, "point": 30}
    assert (found.loads, found.wall(), found.drivers) == (1, 190, 1)


def test_an_engine_that_waits_for_a_place_or_was_lost_holds_nothing() -> None:
    found = account(
        event(0, "engine_starting", engine="gpu"),
        event(2, "engine_waits", engine="gpu"),
        event(102, "engine_starting", engine="gpu"),
        event(110, "engine_ready", engine="gpu"),
        event(120, "engine_lost", engine="gpu"),
        event(200, "engine_starting", engine="gpu"),
    )
    assert found.gpu_hours() == pytest.approx(8 * (2 + 18) / 3600)
    assert found.gpu_hours(BEGIN + timedelta(seconds=230)) == pytest.approx(8 * (20 + 30) / 3600), "it goes on"
    assert found.seconds["load"] == 8, "the first try was never under way"


def test_a_driver_without_a_last_word_is_paid_for_until_its_last_event() -> None:
    found = account(*LOAD, event(60, "note"), event(9000, "run_begun"), event(9030, "run_ended"))
    assert found.gpu_hours() == pytest.approx(8 * 50 / 3600), "not for the night between the two"
    assert found.wall() == 60 + 30 and found.drivers == 2


# ---------------------------------------------------------------- whole runs, on engines that answer by themselves


def planned(tmp_path: Path, *more: str) -> RunPlan:
    return plan_run([*TYPED, f"output_dir={tmp_path}", *more])


def ran(plan: RunPlan, seconds: float = 0.0) -> tuple[int, str]:
    plan.folder.write_manifest(plan.sweep.manifest())
    output = io.StringIO()
    return Run(plan, Console(file=output, width=300), AnsweringBackend(seconds)).run(), output.getvalue()


def test_a_spent_budget_ends_a_run_in_order_and_a_larger_one_goes_on(tmp_path: Path) -> None:
    """Two engines of a core each and a second a point: eight points take four seconds, the budget two of them."""
    budget = 2 * 2 / 3600
    plan = planned(tmp_path, f"budget.cpu_hours={budget:.6f}")
    code, said = ran(plan, seconds=1.0)
    records = plan.folder.record_files()
    assert code == 1 and 2 <= len(records) < 8, "what was begun is whole"
    assert re.search(rf"{8 - len(records)} point\(s\) are left without a record: budget\.cpu_hours=\S+ is spent", said)
    assert "resume=mine" in said and "type a larger budget.cpu_hours" in said
    done = {path.stem for path in records}
    assert plan.sweep.points[0].fingerprint in done, "stock comes first"
    with pytest.raises(UserError, match=r"is spent .* nothing was started"):
        check_unspent(planned(tmp_path, f"budget.cpu_hours={budget:.6f}"))
    again = planned(tmp_path, "budget.cpu_hours=1")
    check_unspent(again)
    code, said = ran(again)
    assert code == 0 and len(again.folder.record_files()) == 8
    check_unspent(planned(tmp_path, f"budget.cpu_hours={budget:.6f}"))  # nothing is left to pay for
    bill = again.folder.bill()
    assert bill is not None and bill.spent.cpu_hours > budget, "both drivers"
    assert (bill.points, bill.recorded, bill.spent.engine_loads) == (8, 8, 4)
    assert "Estimated (8 points, 2 engines side by side) and spent" in said
    assert "core-hours of CPU engines" in said and "GPU-hours" not in said
    page = again.folder.report.read_text()
    assert f"{bill.spent.tokens:,}" in page and 'id="cost"' in page


def test_without_a_budget_nothing_is_looked_at(tmp_path: Path) -> None:
    plan = planned(tmp_path)
    assert ran(plan)[0] == 0
    assert RunBudgetWatch(plan).exhausted() is None
    assert RunBudgetWatch(planned(tmp_path, "budget.cpu_hours=1e-9")).exhausted() is not None


def test_the_devices_of_an_engine_are_those_of_its_kind(tmp_path: Path) -> None:
    plan = planned(tmp_path, "engine.cpus=3")
    name = f"engine-{plan.sweep.points[0].engine_fingerprint}-mine-0"
    assert account_of(plan).devices(name) == Devices(0, 3)
    assert account_of(plan).devices("engine-of-nobody") == Devices(0, 0)


def test_a_resume_of_a_finished_run_keeps_its_bill(tmp_path: Path) -> None:
    ran(planned(tmp_path))
    before = planned(tmp_path).folder.bill()
    again = planned(tmp_path)
    assert ran(again)[0] == 0 and again.folder.bill() == before and before is not None
