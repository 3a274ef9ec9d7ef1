"""The bill of a run: what it was estimated to cost, and what its events and records say it cost."""

from __future__ import annotations

from banpick_exp.cluster.events import read
from banpick_exp.cluster.plan import RunPlan
from banpick_exp.cluster.spent import account_of
from banpick_exp.costs import Bill, Cost
from banpick_exp.report.run import Run


def bill_of(plan: RunPlan, run: Run, engines: int) -> Bill:
    """What the run was estimated to cost with so many engines of a kind, and what all its drivers spent."""
    account = account_of(plan)
    for event in read(plan.folder).events:
        account.add(event)
    records = [*run.records, *run.dev]
    timing = sum(record.timing.throughput_seconds for record in records)
    seconds, expected = account.seconds, plan.sweep.estimate(engines)
    spent = Cost(
        wall_seconds=account.wall(),
        gpu_hours=account.gpu_hours(),
        cpu_hours=account.cpu_hours(),
        engine_loads=account.loads,
        load_seconds=seconds["load"],
        calibration_seconds=seconds["calibration"],
        answer_seconds=seconds["answer"] + max(seconds["point"] - timing, 0.0),
        time_seconds=timing,
        tokens=sum(int(frame["tokens"].sum()) for frame in run.outcomes.values()),
    )
    estimated = Cost(
        wall_seconds=expected.seconds,
        gpu_hours=expected.gpu_hours,
        cpu_hours=expected.cpu_hours,
        engine_loads=expected.engine_loads,
        load_seconds=expected.load_seconds,
        calibration_seconds=expected.calibration_seconds,
        answer_seconds=expected.answer_seconds,
        time_seconds=expected.time_seconds,
        tokens=round(expected.generated_tokens),
    )
    points = sum(kind.points for kind in expected.kinds)
    return Bill(engines=engines, points=points, recorded=len(records), estimated=estimated, spent=spent)
