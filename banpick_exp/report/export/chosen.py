"""Which point of a run is exported: one that is named, or the best of the verdict; and those that never are."""

from __future__ import annotations

import difflib
import shlex

from banpick_exp.analysis.verdict import gains_in
from banpick_exp.errors import UserError
from banpick_exp.records import OVERALL, PointRecord
from banpick_exp.report.run import Run, resume_command
from banpick_exp.report.sentences import closing, nearest_to_a_gain

BEST = "best"
SHORTEST = 4
"""Characters of a fingerprint that name a point."""
MOST_NAMED = 5


def chosen(run: Run, typed: str, shown: str) -> tuple[PointRecord, str | None]:
    """The record of the point `typed` (`best`, a fingerprint or its beginning, a label), and how it was chosen where
    its score decided: None where it was named. `shown`: the run's folder as typed.

    Raises UserError for a point that there is not, is ambiguous, or cannot be exported.
    """
    if typed == BEST:
        record, how = _best(run, shown)
    else:
        record, how = _named(run, typed, shown), None
    _check(run, record, shown)
    return record, how


def names_a_point(run: Run, typed: str) -> bool:
    """Whether `typed` was meant as a point: then it is no folder to write to."""
    return typed == BEST or bool(matches(run, typed))


def _best(run: Run, shown: str) -> tuple[PointRecord, str]:
    """The first gain of the verdict: it beats fixed_k at no larger a budget, for all points of the run at once."""
    gains = gains_in(run.verdicts)
    if not gains.height:
        near = nearest_to_a_gain(run)
        instead = (
            "Type the fingerprint or the label of a point to export it all the same."
            if near is None
            else f"To export the nearest all the same, type {_line(shown, near['fingerprint'])}"
        )
        raise UserError(
            f"{BEST} is the point that beats fixed_k at equal budget, and {shown} has none: nothing was exported."
            f" {closing(run)} {instead}"
        )
    best = gains.row(0, named=True)
    (record,) = (each for each in run.records if each.fingerprint == best["fingerprint"])
    where = "over all domains" if best["domain"] == OVERALL else f"on {best['domain']}"
    return record, f"the surest gain {where} of {len(run.done)} points, on the problems of this card"


def _named(run: Run, typed: str, shown: str) -> PointRecord:
    found = matches(run, typed)
    if len(found) == 1:
        return found[0]
    if found:
        several = ", ".join(f"{each.fingerprint} ({_setting(each)})" for each in found[:MOST_NAMED])
        raise UserError(
            f"{typed} names {len(found)} points of {shown}: nobody can say which. Type the fingerprint: {several}."
        )
    for each in run.left_out:
        if each.file.stem.startswith(typed) and len(typed) >= SHORTEST:
            raise UserError(
                f"{typed} cannot be trusted: {each.file}: {each.reason}. Put the file back from a copy, or type"
                f" {resume_command(run)} to run the point again."
            )
    raise UserError(f"{typed} is no point of {shown}: nothing was exported. {nearest(run, typed)}")


def matches(run: Run, typed: str) -> list[PointRecord]:
    """The points that a fingerprint, its first digits or a label name."""
    every = [*run.records, *run.dev]
    exact = [each for each in every if each.fingerprint == typed]
    if exact:
        return exact
    first = [each for each in run.records if each.label == typed and not each.repeat]
    if labelled := first or [each for each in every if each.label == typed]:
        return labelled
    return [each for each in every if len(typed) >= SHORTEST and each.fingerprint.startswith(typed)]


def _setting(record: PointRecord) -> str:
    words = [record.label, f"model {record.model.name}", f"task {record.task.name} {record.task.split}"]
    return ", ".join([*words, *([f"repeat {record.repeat}"] if record.repeat else [])])


def nearest(run: Run, typed: str) -> str:
    """What to type for a point that there is not: up to five, the likeliest first; the front where none is like it."""
    labels = {each.label: each for each in run.done if not each.is_stock}
    near = difflib.get_close_matches(typed, labels, MOST_NAMED, cutoff=0.5)
    told = near or [each.label for each in run.done if each.fingerprint in run.foremost(MOST_NAMED)]
    named = ", ".join(f"'{label}' ({labels[label].fingerprint})" for label in told if label in labels)
    if not named:
        return f"It has no finished policy yet. Type {resume_command(run)} to finish it."
    return f"{'Nearest are' if near else 'It has'} {named}. Type a label in quotes, a fingerprint, or {BEST}."


def _check(run: Run, record: PointRecord, shown: str) -> None:
    """UserError for a point that is no result, or has nothing to export."""
    name = f"{record.label} ({record.fingerprint})"
    if record in run.dev:
        raise UserError(
            f"{name} is a point of the dev split, which only chooses: of the best of many the score there is too good."
            f" Type the same policy on the split of the result, or {BEST}."
        )
    if record.repeat:
        first = record.label.removesuffix(f" repeat={record.repeat}")
        raise UserError(
            f"{name} is repeat {record.repeat} of a point: the same policy, measured again and not timed. Type the"
            f" point itself, by its label: '{first}'."
        )
    if record.status != "done":
        words = {
            "failed": "failed, so nothing was measured of it",
            "dropped": "was stopped by the race after some of its problems, so its numbers are of those alone",
            "invalid": "is invalid, so its numbers are not those of its policy",
        }[record.status]
        again = f"{record.command}" if record.command else resume_command(run)
        raise UserError(f"{name} {words} ({record.reason}): it is not exported. To run it again, type {again}")
    for row in run.guards.iter_rows(named=True):
        if row["fingerprint"] == record.fingerprint and row["level"] == "invalid":
            raise UserError(
                f"{name} is not exported: {row['guard']} says it is no result ({row['detail']}). Type"
                f" python -m banpick_exp report {shlex.quote(shown)} --all for what the guards found."
            )
    if record.is_stock:
        if record.model.base is not None:
            raise UserError(
                f"{name} is the routing of {record.model.name} as it is: what was gained or lost lies in its weights."
                f" The checkpoint itself ({record.model.path or record.model.name}) is what to serve or upload."
            )
        raise UserError(
            f"{name} is stock, the checkpoint's own routing: there is nothing to export, any server of"
            f" {record.model.name} does it. Type another point, or {BEST}."
        )


def _line(shown: str, fingerprint: str) -> str:
    return f"python -m banpick_exp export {shlex.quote(shown)} {fingerprint} OUT/"
