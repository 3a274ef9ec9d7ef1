"""Can a point be trusted: everything that went wrong in public studies of this kind, looked for in every run."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import polars as pl

from banpick_exp.analysis.drift import Change, blocks, length_change, settle, share_change
from banpick_exp.analysis.engagement import engaged_rows
from banpick_exp.analysis.pairing import Answers, Outcomes, Pairs, Record, References, all_answers, pair
from banpick_exp.analysis.replays import duplicate_rows
from banpick_exp.analysis.subtasks import subtask_change
from banpick_exp.records import OVERALL

GUARDS = ("engaged", "truncation", "length_drift", "duplicated_scores", "repetition", "subtask_drop")
LEVELS = ("ok", "warning", "invalid")

_SCHEMA: dict[str, Any] = {
    "fingerprint": pl.String, "label": pl.String, "domain": pl.String, "guard": pl.String, "level": pl.String,
    "value": pl.Float64, "detail": pl.String,
}  # fmt: skip


def guards(records: Iterable[Record], outcomes: Outcomes) -> pl.DataFrame:
    """What there is to say about every point, one row a finding; each point has at least its `engaged` row.

    | guard | value | warns (`warning`, `invalid`) of |
    |---|---|---|
    | engaged | measured experts per token | a budget that is not the policy's, native K, the floor; failed points |
    | truncation | rise over stock of the share that hit the token cap | 0.01 or more |
    | length_drift | relative change of mean output tokens against stock | 0.10 or more, either way |
    | duplicated_scores | points with the very same answers | policies that differ by definition (`duplicates`) |
    | repetition | share of answers that end in a loop, null where not recorded | 0.01 or more above stock |
    | subtask_drop | accuracy against stock (0..1) of the sub-task named in `detail` | a fall of more than 0.05 |

    The four against stock are paired by problem and warn only where the change survives Holm over everything the guard
    looked at; a change of that size which does not is listed as `ok` with "may be noise". A point without a finished
    stock point of its set-up has rows with null saying so.

    Args:
        records: as `load_points` returns them, all statuses.
        outcomes: fingerprint -> per-problem outcomes; points without any are judged by their record alone.

    Returns: fingerprint, label, domain, guard, level, value, detail; in the order of the records and of GUARDS.
    """
    records = list(records)
    done = [r for r in records if r["status"] == "done" and r["fingerprint"] in outcomes]
    rows = [{"record": record} | row for record in records for row in engaged_rows(record)]
    rows += duplicate_rows(records, outcomes)
    answers = all_answers(done, outcomes)
    references = References(done)
    changes: dict[str, list[Change]] = {name: [] for name in GUARDS}
    for record in done:
        stock = references.stock(record)
        if stock is record:
            continue
        pairs = None if stock is None else pair(answers[record["fingerprint"]], answers[stock["fingerprint"]])
        if pairs is None or pairs.n == 0:
            why = "no finished stock point of the same set-up" if pairs is None else "no problem in common with stock"
            rows += [
                {"record": record} | _unchecked(name, why) for name in ("truncation", "length_drift", "subtask_drop")
            ]
            continue
        _add_changes(changes, record, pairs)
    for found in changes.values():
        rows += settle(found)
    said = {row["record"]["fingerprint"] for row in rows if row["guard"] == "repetition" and row["domain"] == OVERALL}
    for record in (record for record in done if record["fingerprint"] not in said):
        rows.append({"record": record} | _repetition_share(answers[record["fingerprint"]]))
    place = {record["fingerprint"]: index for index, record in enumerate(records)}
    rows.sort(key=lambda row: (place[row["record"]["fingerprint"]], GUARDS.index(row["guard"])))
    told = [row | {key: row["record"][key] for key in ("fingerprint", "label")} for row in rows]
    return pl.DataFrame([{name: row[name] for name in _SCHEMA} for row in told], schema=_SCHEMA)


def _add_changes(changes: dict[str, list[Change]], record: Record, pairs: Pairs) -> None:
    for domain, part in blocks(record, pairs):
        if "truncated" in part.sums[0]:
            noun = "hit the token cap"
            changes["truncation"].append(share_change(record, part, domain, "truncation", "truncated", noun))
        if "tokens" in part.sums[0] and (length := length_change(record, part, domain)) is not None:
            changes["length_drift"].append(length)
        if "repetitive" in part.sums[0]:
            changes["repetition"].append(
                share_change(record, part, domain, "repetition", "repetitive", "end in a loop")
            )
    changes["subtask_drop"] += [subtask_change(record, *found) for found in pairs.by_subtask()]


def _repetition_share(own: Answers) -> dict[str, Any]:
    row: dict[str, Any] = {"guard": "repetition", "domain": OVERALL, "level": "ok", "value": None}
    if "repetitive" not in own.sums:
        return row | {"detail": "not recorded: these answers were made before repetition was looked for"}
    share = own.mean("repetitive")
    return row | {"value": share, "detail": f"{share:.1%} of the answers end in a loop"}


def _unchecked(guard: str, why: str) -> dict[str, Any]:
    return {"guard": guard, "domain": OVERALL, "level": "ok", "value": None, "detail": f"not checked: {why}"}
