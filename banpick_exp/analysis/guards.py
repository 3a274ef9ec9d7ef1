"""Can a point be trusted: everything that went wrong in public studies of this kind, looked for in every run."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any, Literal

import polars as pl

from banpick_exp.analysis.drift import Change, by_domain, change_findings, length_change, share_change
from banpick_exp.analysis.engagement import engagement_findings
from banpick_exp.analysis.finding import GUARDS, Finding, Guard
from banpick_exp.analysis.pairing import Answers, Outcomes, Pairs, References, all_answers, pair, without_repeats
from banpick_exp.analysis.replays import replay_findings
from banpick_exp.analysis.stock_answers import stock_alarms
from banpick_exp.analysis.subtasks import subtask_change
from banpick_exp.records import OVERALL, PointRecord
from banpick_exp.setups import distinct, setup_of_record, varying

PAIRED: tuple[Guard, ...] = ("truncation", "length_drift", "subtask_drop")
"""Those that say so where there is no stock to pair with; `repetition` has a share of its own to tell."""

MOST_NAMED = 5
"""Problems that are set aside, of one point."""
_SCHEMA: dict[str, Any] = {
    "fingerprint": pl.String, "label": pl.String, "domain": pl.String, "guard": pl.String, "level": pl.String,
    "value": pl.Float64, "detail": pl.String,
}  # fmt: skip


ENDED: dict[Literal["pattern_timeout", "grader_timeout", "score_cut"], str] = {
    "pattern_timeout": (
        "the search by task.answer_pattern was ended at its time limit in {late} of {all} completions, which count as"
        " not found and wrong: the pattern is graded there, not the model"
    ),
    "grader_timeout": (
        "judging by task.grader was ended at its own limit of time or memory, or its sandbox did not come up, in {late}"
        " of {all} completions, which count as wrong: the grader fails there, not the model"
    ),
    "score_cut": (
        "question and answer were longer than task.reward_model reads in {late} of {all} completions, whose beginning"
        " was left out of what it scored"
    ),
}
"""Columns of outcomes that count what was ended or cut, and what to say of it."""


def guards(records: Iterable[PointRecord], outcomes: Outcomes) -> pl.DataFrame:
    """What there is to say about every point, one row a finding; each point has at least its `engaged` row.

    | guard | value | warns (`warning`, `invalid`) of |
    |---|---|---|
    | nothing_found | share of stock's answers in which one was found | none at all |
    | stock_at_zero | stock's accuracy | 0 |
    | all_alike | share of stock's commonest answer | one answer to different problems |
    | stock_at_chance | stock's accuracy | no more than always giving the commonest gold answer |
    | mixed_setups | set-ups among the points | more than one: their rows are no comparison |
    | calibration_overlap | problems that the calibration was measured on | any |
    | pattern_timeout | answers whose search by task.answer_pattern was ended at its time limit | any |
    | grader_timeout | answers that task.grader could not judge: its limit of time or memory, no sandbox | any |
    | score_cut | answers that were too long for task.reward_model, and scored without their beginning | any |
    | engaged | measured experts per token | a budget that is not the policy's, native K, the floor; failed points |
    | failed_problems | problems set aside because they break engines | any that stock has an answer to, or is stock's |
    | truncation | rise over stock of the share that hit the token cap | 0.01 or more |
    | length_drift | relative change of mean output tokens against stock | 0.10 or more, either way |
    | duplicated_scores | points with the very same answers | policies that differ by definition (`duplicates`) |
    | repetition | share of answers that end in a loop, null where not recorded | 0.01 or more above stock |
    | subtask_drop | accuracy against stock (0..1) of the sub-task named in `detail` | a fall of more than 0.05 |

    The first four are of stock alone, domain by domain. Those against stock are paired by problem and warn only where
    the change survives Holm over everything the guard looked at; a change of that size which does not is listed as `ok`
    with "may be noise". A point without a finished stock point of its set-up has rows with null saying so.

    Args:
        records: as `RunFolder.load_points` returns them, all statuses.
        outcomes: fingerprint -> per-problem outcomes; points without any are judged by their record alone.

    Returns: fingerprint, label, domain, guard, level, value, detail; in the order of the records and of GUARDS.
    """
    records = list(records)
    done = [record for record in records if record.status == "done" and record.fingerprint in outcomes]
    answers = all_answers(done, outcomes)
    found = [finding for record in records for finding in engagement_findings(record)]
    found += replay_findings(records, outcomes)
    found += _against_stock(done, answers)
    found += _of_stock_alone(done, outcomes)
    found += _mixed_setups(done)
    found += _set_aside(records, References(done))
    found += _ended(done, outcomes)
    told = {f.record.fingerprint for f in found if f.guard == "repetition" and f.domain == OVERALL}
    found += [_repetition_share(r, answers[r.fingerprint]) for r in done if r.fingerprint not in told]
    place = {record.fingerprint: index for index, record in enumerate(records)}
    found.sort(key=lambda finding: (place[finding.record.fingerprint], GUARDS.index(finding.guard)))
    rows = [(f.record.fingerprint, f.record.label, f.domain, f.guard, f.level, f.value, f.detail) for f in found]
    return pl.DataFrame(rows, schema=_SCHEMA, orient="row")


def _against_stock(done: Sequence[PointRecord], answers: dict[str, Answers]) -> Iterator[Finding]:
    """Those of the guards that pair each point with stock of its set-up."""
    references = References(done)
    changes: dict[Guard, list[Change]] = {guard: [] for guard in GUARDS}
    for record in done:
        stock = references.stock(record)
        if stock is record:
            continue
        pairs = None if stock is None else pair(answers[record.fingerprint], answers[stock.fingerprint])
        if pairs is None or pairs.n == 0:
            why = "no finished stock point of the same set-up" if pairs is None else "no problem in common with stock"
            yield from (Finding(record=record, guard=guard, detail=f"not checked: {why}") for guard in PAIRED)
            continue
        for change in _changes(record, pairs):
            changes[change.guard].append(change)
    for of_one_guard in changes.values():
        yield from change_findings(of_one_guard)


def _mixed_setups(done: Sequence[PointRecord]) -> Iterator[Finding]:
    """One finding for the whole run, at its first stock point; repeats are set-ups of their own by intention."""
    points = sorted(without_repeats(done), key=lambda record: not record.is_stock)
    setups = distinct(map(setup_of_record, points))
    if differing := [f"{key} ({', '.join(values)})" for key, values in varying(setups).items()]:
        detail = (
            f"the points were asked with different {'; '.join(differing)}: rows of different settings are no"
            " comparison. Verdicts and fronts hold each point against those of its own settings; compare no others"
        )
        yield Finding(record=points[0], guard="mixed_setups", level="warning", value=float(len(setups)), detail=detail)


def _of_stock_alone(done: Sequence[PointRecord], outcomes: Outcomes) -> Iterator[Finding]:
    for record in done:
        if record.is_stock:
            for alarm in stock_alarms(outcomes[record.fingerprint]):
                yield Finding(
                    record=record,
                    guard=alarm.guard,
                    domain=alarm.domain,
                    level="warning",
                    value=alarm.value,
                    detail=alarm.detail,
                )
        if record.calibration_overlap:
            detail = (
                f"{record.calibration_overlap:,} of the problems it is asked stand among those that its calibration was"
                " measured on: what it gains there may be learnt by heart"
            )
            value = float(record.calibration_overlap)
            yield Finding(record=record, guard="calibration_overlap", level="warning", value=value, detail=detail)


def _set_aside(records: Sequence[PointRecord], references: References) -> Iterator[Finding]:
    """Of stock all of them, of others a warning where there are more: what stock lacks, all lack."""
    for record in records:
        stock = references.stock(record)
        told = (
            {(each.domain, each.problem_id) for each in stock.failed_problems} if stock and stock is not record else ()
        )
        own = [each for each in record.failed_problems if (each.domain, each.problem_id) not in told]
        count = len(record.failed_problems)
        if not count:
            continue
        found = Finding(record=record, guard="failed_problems", value=float(count), detail="")
        if not own:
            yield replace(found, detail=f"{count} problem(s) are left out, those that stock has no answer to")
            continue
        named = "; ".join(each.said for each in own[:MOST_NAMED])
        more = f"; and {len(own) - MOST_NAMED} more" if len(own) > MOST_NAMED else ""
        detail = (
            f"{len(own)} problem(s) are set aside, because every engine that was asked them died: {named}{more}. They"
            " are neither right nor wrong: accuracy and comparisons are without them, on both sides"
        )
        yield replace(found, level="warning", detail=detail)


def _ended(done: Sequence[PointRecord], outcomes: Outcomes) -> Iterator[Finding]:
    for record in done:
        answers = outcomes[record.fingerprint]
        for guard, said in ENDED.items():
            if late := int(answers[guard].sum()) if guard in answers.columns else 0:
                detail = said.format(late=f"{late:,}", all=f"{answers.height:,}")
                yield Finding(record=record, guard=guard, level="warning", value=float(late), detail=detail)


def _changes(record: PointRecord, pairs: Pairs) -> Iterator[Change]:
    for domain, part in by_domain(record, pairs):
        told = part.sums[0]
        if "truncated" in told:
            yield share_change(record, part, domain, "truncation", "truncated", "hit the token cap")
        if "tokens" in told and (length := length_change(record, part, domain)) is not None:
            yield length
        if "repetitive" in told:
            yield share_change(record, part, domain, "repetition", "repetitive", "end in a loop")
    for domain, task, part in pairs.by_subtask():
        yield subtask_change(record, domain, task, part)


def _repetition_share(record: PointRecord, own: Answers) -> Finding:
    if "repetitive" not in own.sums:
        unknown = "not recorded: these answers were made before repetition was looked for"
        return Finding(record=record, guard="repetition", detail=unknown)
    share = own.mean("repetitive")
    return Finding(record=record, guard="repetition", value=share, detail=f"{share:.1%} of the answers end in a loop")
