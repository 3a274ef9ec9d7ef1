"""What W&B is told of a whole run: of each point what only the end knows, the tables, and what its report shows."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import polars as pl

from banpick_exp.analysis.flips import flips
from banpick_exp.analysis.pairing import REFERENCE_POLICIES, References
from banpick_exp.records import OVERALL, PointRecord
from banpick_exp.report.figures.names import FIGURES
from banpick_exp.report.run import Run
from banpick_exp.report.sentences import closing, sentences
from banpick_exp.report.text import STOCK, in_words, rival

MOST_AXES = 8
"""Knobs of the parallel coordinates: more lines side by side nobody follows."""
MOST_FACTS = 12
FLIPPED = 3
"""Policies whose flips are shown, the best ones."""
MOST_FLIPS = 100
"""Rows a policy, half of them won and half lost where there are as many."""
MOST_WRITTEN = 4_000
"""Characters of one completion."""
MOST_BYTES = 4_000_000
"""Of all completions."""
Plain = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Table:
    """Rows of plain values, as W&B shows them."""

    columns: Sequence[str]
    rows: Sequence[Sequence[Any]]


@dataclass(frozen=True, eq=False)
class FoundOut:
    """What follows from all points of a run together."""

    run: Run

    @property
    def every(self) -> list[PointRecord]:
        """All records, what dev chose from too."""
        return [*self.run.records, *self.run.dev]

    def of_point(self, record: PointRecord) -> dict[str, Any]:
        """The summary of a point's W&B run that only the end of the sweep knows, without what there is none of.

        `verdict`: beats, ties, loses or unmatched of a policy against fixed_k at the nearest budget over all domains;
        `reference` of stock and fixed_k themselves, `dev` of what dev chose from, `repeat` of a repeat. The difference
        is in points with the interval that holds for all policies at once; wins and losses are problems.
        """
        row = self.run.verdict_of.get((record.fingerprint, OVERALL))
        raised = self._raised.get(record.fingerprint, [])
        told: dict[str, Any] = {
            "status": record.status,
            "reason": record.reason,
            "verdict": self._verdict(record) if row is None else row["verdict"],
            "on_front": self._on_front.get(record.fingerprint),
            "guards": "; ".join(raised) or "none raised",
        }
        if row is not None:
            told["rival"] = None if row["reference_label"] is None else rival(row)
            told |= {"wins": row["wins"], "losses": row["losses"], "p_holm": row["p_holm"]}
            ends = {"": "difference", "_lo": "lo_simultaneous", "_hi": "hi_simultaneous"}
            told |= {f"difference_points{end}": _points(row[column]) for end, column in ends.items()}
        return {key: value for key, value in told.items() if value is not None}

    @cached_property
    def tables(self) -> dict[str, Table]:
        """`points`, a row each of them all, and `flips`; a table without rows is left out."""
        return {name: table for name, table in (("points", self._points), ("flips", self._flips)) if table.rows}

    def shown(self) -> dict[str, Any]:
        """What the W&B report shows: its sentences, and which axes, tables and figures there are."""
        run = self.run
        return {
            "verdict": closing(run),
            "facts": sentences(run)[:MOST_FACTS],
            "axes": self._axes,
            "tables": list(self.tables),
            "figures": [name for name in FIGURES if run.folder.figure_path(name).exists()],
        }

    # ------------------------------------------------------------ points

    @cached_property
    def _on_front(self) -> dict[str, bool]:
        rows = self.run.done_rows()
        return dict(zip(rows["fingerprint"], rows["on_front"], strict=True))

    @cached_property
    def _raised(self) -> dict[str, list[str]]:
        """Fingerprint -> `truncation (warning, math)`, what guards raised, each once."""
        found: dict[str, list[str]] = {}
        for run in (self.run, self.run.on_dev) if self.run.dev else (self.run,):
            for row in run.guards.filter(pl.col("level") != "ok").iter_rows(named=True):
                said = f"{row['guard']} ({row['level']}, {row['domain']})"
                own = found.setdefault(row["fingerprint"], [])
                if said not in own:
                    own.append(said)
        return found

    def _verdict(self, record: PointRecord) -> str:
        if record.fingerprint in self._of_dev:
            return "dev"
        if record.series in REFERENCE_POLICIES:
            return "reference"
        return "repeat" if record.repeat and record.status == "done" else "unmatched"

    @cached_property
    def _of_dev(self) -> frozenset[str]:
        return frozenset(record.fingerprint for record in self.run.dev)

    @cached_property
    def _knobs(self) -> list[str]:
        """Knobs whose values differ between policies, those that are one value each."""
        settings = [record.knobs for record in self.run.done if record.series not in REFERENCE_POLICIES]
        names = dict.fromkeys(name for each in settings for name in each)
        values = {name: {json.dumps(each.get(name)) for each in settings} for name in names}
        plain = (name for name in names if all(_is_plain(each.get(name)) for each in settings))
        return [name for name in plain if len(values[name]) > 1]

    @cached_property
    def _axes(self) -> list[str]:
        """`policy.boost`: entries of a point's W&B configuration, the rule's name first where there are several."""
        rules = {record.series for record in self.run.done} - set(REFERENCE_POLICIES)
        several = ["policy.name"] if len(rules) > 1 else []
        return [*several, *(f"policy.{name}" for name in self._knobs)][:MOST_AXES]

    @cached_property
    def _points(self) -> Table:
        told = (
            "status", "verdict", "rival", "difference_points", "difference_points_lo", "difference_points_hi", "wins",
            "losses", "on_front", "guards",
        )  # fmt: skip
        measured = ("accuracy", "accuracy_lo", "accuracy_hi", "mean_kept", "speedup", "speedup_lo", "speedup_hi")
        every = self.run.frame_of_all.filter(pl.col("domain") == OVERALL)
        frame = {row["fingerprint"]: row for row in every.iter_rows(named=True)}
        rows = []
        place = {fingerprint: number for number, fingerprint in enumerate(self.run.by_importance)}
        for record in sorted(self.every, key=lambda record: place.get(record.fingerprint, len(place))):
            of_point, of_frame = self.of_point(record), frame.get(record.fingerprint, {})
            rows.append([
                in_words(record.label), record.series, *(self._cell(record, name) for name in self._knobs),
                *(_short(of_point.get(name)) for name in told), *(_short(of_frame.get(name)) for name in measured),
                None if record.metrics is None else record.metrics.overall.n_problems, record.model.name,
                f"{record.task.name} {record.task.split}", record.reason, record.command, record.fingerprint,
            ])  # fmt: skip
        columns = ["label", "policy", *(f"knob {name}" for name in self._knobs), *told, *measured]
        return Table([*columns, "problems", "model", "task", "reason", "command", "fingerprint"], rows)

    def _cell(self, record: PointRecord, knob: str) -> Any:
        """The value of a knob: a column of W&B holds numbers or words, not both."""
        value = record.knobs.get(knob)
        return value if value is None or knob in self._numbers else str(value)

    @cached_property
    def _numbers(self) -> frozenset[str]:
        found = {name: [each.knobs[name] for each in self.every if name in each.knobs] for name in self._knobs}
        return frozenset(name for name, values in found.items() if all(map(_is_number, values)))

    # ------------------------------------------------------------ flips

    @cached_property
    def _flips(self) -> Table:
        """Of the best policies against stock: what each of the two solved and the other lost, with what both wrote."""
        columns = ("policy", "domain", "problem", "task", "solved by", "share of policy", "share of stock", "gold")
        sides = [f"{name} of {side}" for name in ("answer", "completion", "cut off") for side in ("policy", "stock")]
        references, left = References(self.run.done), MOST_BYTES
        rows: list[list[Any]] = []
        for record in self._best:
            if (stock := references.stock(record)) is None:
                continue
            found = flips(self.run.outcomes[record.fingerprint], self.run.outcomes[stock.fingerprint])
            for row in _both_ways(found).iter_rows(named=True):
                written = [_written(row["completion_a"]), _written(row["completion_b"])]
                left -= sum(len(text.encode()) for text in written if text is not None)
                if left < 0:
                    return Table([*columns, *sides], rows)
                rows.append([
                    record.label, row["domain"], row["problem_id"], row["task"],
                    "policy" if row["solved_by"] == "a" else in_words(STOCK), row["share_a"], row["share_b"],
                    row["gold"], row["answer_a"], row["answer_b"], *written, row["truncated_a"], row["truncated_b"],
                ])  # fmt: skip
        return Table([*columns, *sides], rows)

    @property
    def _best(self) -> list[PointRecord]:
        """Policies by the lower end of their difference to fixed_k."""
        compared = pl.col("lo_simultaneous").is_not_null() & (pl.col("domain") == OVERALL)
        rows = self.run.verdicts.filter(compared).sort("lo_simultaneous", descending=True, maintain_order=True)
        of = {record.fingerprint: record for record in self.run.done}
        return [of[name] for name in rows["fingerprint"].head(FLIPPED)]


def _both_ways(found: pl.DataFrame) -> pl.DataFrame:
    """At most MOST_FLIPS rows of `flips`, as many of either kind as there is room for."""
    won, lost = (found.filter(pl.col("solved_by") == side) for side in ("a", "b"))
    most_won = max(MOST_FLIPS // 2, MOST_FLIPS - lost.height)
    won = won.head(most_won)
    return pl.concat([won, lost.head(MOST_FLIPS - won.height)])


def _written(text: str | None) -> str | None:
    if text is None or len(text) <= MOST_WRITTEN:
        return text
    return f"{text[:MOST_WRITTEN]} [... {len(text) - MOST_WRITTEN:,} characters more]"


def _short(value: Any) -> Any:
    """W&B shows every digit of a number in a table; the point's own run has all of them."""
    return round(value, 4) if isinstance(value, float) else value


def _points(fraction: float | None) -> float | None:
    return None if fraction is None else 100 * fraction


def _is_plain(value: Any) -> bool:
    return value is None or isinstance(value, int | float | str)


def _is_number(value: Any) -> bool:
    return value is None or (isinstance(value, int | float) and not isinstance(value, bool))
