"""What a run's engines did, for the next run's price and times to come (`sweep.past`)."""

from __future__ import annotations

import socket
from collections.abc import Mapping

from banpick_exp.cluster.events import read
from banpick_exp.cluster.plan import RunPlan
from banpick_exp.cluster.spent import Account, Devices
from banpick_exp.records import PointRecord
from banpick_exp.report.run import Run
from banpick_exp.sweep.estimate import calibrating_tokens, devices_of
from banpick_exp.sweep.past import Pace, asked
from banpick_exp.sweep.point import Point

LEAST_SECONDS = 0.5
"""Of work that is worth a rate."""


def paces_of(plan: RunPlan, run: Run) -> list[Pace]:
    """One for each kind of engine that did something, all drivers of the run together."""
    kinds, events = plan.sweep.by_engine(), read(plan.folder).events
    found = []
    for name, points in kinds.items():
        account = Account(lambda _: Devices(0, 0))
        for event in events:
            if name in str(event.fields.get("engine", name)):  # an engine is named after its kind
                account.add(event)
        known = {point.fingerprint: point for point in points}
        # What a search drew is in no plan; of several kinds nobody can say whose it is.
        drawn = points[0] if len(kinds) == 1 else None
        records = [r for r in (*run.records, *run.dev) if r.status != "failed" and (r.fingerprint in known or drawn)]
        pace = _pace(plan, run, account, records, known, points)
        if pace.model_dump(exclude={"host", "engine", "devices"}, exclude_defaults=True):
            found.append(pace)
    return found


def _pace(
    plan: RunPlan,
    run: Run,
    account: Account,
    records: list[PointRecord],
    known: Mapping[str, Point],
    points: tuple[Point, ...],
) -> Pace:
    seconds, first = account.seconds, points[0]
    timed = [record for record in records if record.timing.throughput_seconds]
    clock = sum(record.timing.throughput_seconds for record in timed)
    wanted = sum(known.get(record.fingerprint, first).task.speed_seconds for record in timed)
    solving = sum(record.timing.solve_seconds for record in records)
    answering = seconds["answer"] + seconds["point"] - clock - solving
    tokens, answers = 0, dict[str, tuple[int, int]]()
    for record in records:
        of_answers = run.outcomes[record.fingerprint]["tokens"]
        written = int(of_answers.sum())
        tokens += written
        how = asked(known.get(record.fingerprint, first))
        before = answers.get(how, (0, 0))
        answers[how] = before[0] + written, before[1] + of_answers.len()
    if any(point.reading for point in points):  # likelihoods are read and write nothing: no rate of what is written
        tokens, answers = 0, {}
    # What an earlier driver of this run measured is there now, and its seconds are in the account.
    calibrated = 0.0 if plan.sweep.resume else calibrating_tokens(points, plan.sweep.there)
    return Pace(
        host=socket.gethostname(),
        engine=first.engine_fingerprint,
        devices=devices_of(first, plan.engines),
        load_seconds=_ratio(seconds["load"], account.loads),
        generate=_rate(tokens, answering),
        prefill=_rate(calibrated, seconds["calibration"]),
        clock=_ratio(clock, wanted),
        lengths={how: total / count for how, (total, count) in answers.items() if total},
    )


def _rate(amount: float, seconds: float) -> float | None:
    return amount / seconds if amount > 0 and seconds >= LEAST_SECONDS else None


def _ratio(whole: float, parts: float) -> float | None:
    return whole / parts if whole > 0 and parts > 0 else None
