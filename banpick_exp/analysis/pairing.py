"""Which points may be compared, and their answers paired problem by problem.

A problem is (domain, problem_id): ids of one's own files may repeat between domains. Sampling tasks have several rows a
problem, told apart by `sample`; they become one row with counts, because samples of a problem are not independent.
From here on it is NumPy: a run has thousands of small blocks (policies x domains x sub-tasks), and a data frame each
would cost more than the statistics.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl

from banpick_exp.records import OVERALL, PointRecord, that_count
from banpick_exp.tasks.config import GREEDY

REFERENCE_POLICIES = ("none", "fixed_k")
PROBLEM = ("domain", "problem_id")
SUMMED = ("correct", "truncated", "tokens", "repetitive")

Outcomes = Mapping[str, pl.DataFrame]
"""fingerprint -> per-problem outcomes, as `RunFolder.all_outcomes` gives them."""
Sums = dict[str, np.ndarray]


class Layout:
    """Which problems were answered, and which of them belong to a domain or sub-task. N problems."""

    def __init__(self, problems: pl.DataFrame) -> None:
        """`problems`: [N] domain, problem_id, task."""
        self.problems = problems
        self.n = problems.height
        rows = problems.select("domain", "task").with_row_index("row").group_by("domain", "task", maintain_order=True)
        self.subtasks: dict[tuple[str, str], np.ndarray] = {
            (domain, task): np.asarray(index) for domain, task, index in rows.agg("row").iter_rows()
        }
        """(domain, task) -> its rows, in the order of the problems."""
        self.domains: dict[str, np.ndarray] = {
            name: np.concatenate([rows for (domain, _), rows in self.subtasks.items() if domain == name])
            for name in dict.fromkeys(domain for domain, _ in self.subtasks)
        }


@dataclass(frozen=True, slots=True)
class Answers:
    """One point's answers, a row a problem."""

    layout: Layout
    samples: int
    """Answers to each problem."""
    sums: Sums
    """[N] int64, summed over the samples: those of correct, truncated, tokens, repetitive that the outcomes tell."""

    def mean(self, column: str) -> float:
        """Over all answers."""
        return float(self.sums[column].sum()) / (self.layout.n * self.samples)


def answers_of(outcomes: pl.DataFrame, known: Layout | None = None) -> Answers:
    """Outcomes by problem, of the chosen answer where one was. `known`: a layout to share where the problems are the
    same, for speed alone.

    Raises ValueError where problems have unequal numbers of samples, or one repeats without `sample`.
    """
    outcomes = that_count(outcomes)
    told = [name for name in SUMMED if name in outcomes.columns and not outcomes[name].has_nulls()]
    task = pl.col("task") if "task" in outcomes.columns else pl.col("domain").alias("task")
    frame = outcomes.select(*PROBLEM, task, *(pl.col(name).cast(pl.Int64) for name in told))
    samples, problems = 1, frame.select(*PROBLEM, "task")
    if known is None or not problems.equals(known.problems):
        known = None
        if not frame.select(PROBLEM).is_unique().all():
            frame, samples = _summed(frame, told, "sample" in outcomes.columns)
    layout = known or Layout(frame.select(*PROBLEM, "task"))
    return Answers(layout, samples, {name: frame[name].to_numpy() for name in told})


class OutcomesOnce(Mapping[str, pl.DataFrame]):
    """Outcomes that remember their answers by problem, for a run whose verdicts, guards and fronts all ask for them.

    The frames may not change. Points that answered the same problems in the same order share one layout.
    """

    def __init__(self, outcomes: Outcomes) -> None:
        self._outcomes = outcomes
        self._answers: dict[str, Answers] = {}
        self._layouts: list[Layout] = []
        """The one that was met last is the last."""

    def __getitem__(self, name: str) -> pl.DataFrame:
        return self._outcomes[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._outcomes)

    def __len__(self) -> int:
        return len(self._outcomes)

    def answers(self, name: str) -> Answers:
        """Those of one point. Raises ValueError as `answers_of`, KeyError for a point without outcomes."""
        if name not in self._answers:
            found = answers_of(self._outcomes[name], self._layouts[-1] if self._layouts else None)
            layout = self._known(found.layout)
            self._answers[name] = found if layout is found.layout else Answers(layout, found.samples, found.sums)
        return self._answers[name]

    def _known(self, layout: Layout) -> Layout:
        """The one with the same problems that was met before, else this."""
        for index in range(len(self._layouts) - 1, -1, -1):
            known = self._layouts[index]
            if known is layout or known.problems.equals(layout.problems):
                self._layouts.append(self._layouts.pop(index))
                return known
        self._layouts.append(layout)
        return layout


def all_answers(records: Iterable[PointRecord], outcomes: Outcomes) -> dict[str, Answers]:
    """fingerprint -> answers, with one layout for all points that answered the same problems in the same order."""
    return answers_by_name((record.fingerprint for record in records), outcomes)


def answers_by_name(names: Iterable[str], outcomes: Outcomes) -> dict[str, Answers]:
    """As `all_answers`, of fingerprints."""
    known = outcomes if isinstance(outcomes, OutcomesOnce) else OutcomesOnce(outcomes)
    return {name: known.answers(name) for name in names}


def _summed(frame: pl.DataFrame, told: list[str], sampled: bool) -> tuple[pl.DataFrame, int]:
    if not sampled:
        raise ValueError("a problem repeats and there is no `sample` column: its answers cannot be told apart")
    sums = [pl.col("task").first(), *(pl.col(name).sum() for name in told), pl.len().alias("samples")]
    frame = frame.group_by(PROBLEM, maintain_order=True).agg(sums)
    found = sorted(set(frame["samples"]))
    if len(found) > 1:
        raise ValueError(f"problems have {found[0]} to {found[-1]} samples: avg@n needs the same number for each")
    return frame, found[0]


@dataclass(frozen=True, slots=True)
class Pairs:
    """The answers of a policy and its reference to the n problems they share, or to a part of those."""

    layout: Layout
    """Of the whole; the parts share it."""
    n: int
    samples: tuple[int, int]
    sums: tuple[Sums, Sums]
    """Policy, reference: the same columns in both, [n] each."""

    def mean(self, column: str) -> tuple[float, float]:
        """Over all answers of the policy and of the reference."""
        ours, theirs = (float(s[column].sum()) / (self.n * k) for s, k in zip(self.sums, self.samples, strict=True))
        return ours, theirs

    def per_answer(self, column: str) -> tuple[np.ndarray, np.ndarray]:
        """[n] means over the samples of each problem."""
        return self.sums[0][column] / self.samples[0], self.sums[1][column] / self.samples[1]

    def differences(self, column: str) -> tuple[dict[int, int], int]:
        """({policy minus reference in units of 1/scale: problems}, scale); scale is 1 for one answer a problem."""
        scale = math.lcm(*self.samples)
        ours, theirs = (s[column] * (scale // k) for s, k in zip(self.sums, self.samples, strict=True))
        difference = ours - theirs
        lowest = int(difference.min())
        counts = np.bincount(difference - lowest)
        return {lowest + i: count for i, count in enumerate(counts.tolist()) if count}, scale

    def domain(self, domain: str) -> Pairs:
        """Those of one domain; `overall` is all."""
        return self if domain == OVERALL else self._part(self.layout.domains.get(domain, np.zeros(0, dtype=np.intp)))

    def by_subtask(self) -> Iterator[tuple[str, str, Pairs]]:
        """(domain, task, its pairs), in the order of the problems."""
        for (domain, task), rows in self.layout.subtasks.items():
            yield domain, task, self._part(rows)

    def _part(self, rows: np.ndarray) -> Pairs:
        ours, theirs = ({name: values[rows] for name, values in sums.items()} for sums in self.sums)
        return Pairs(self.layout, len(rows), self.samples, (ours, theirs))


def pair(ours: Answers, theirs: Answers) -> Pairs:
    """Joined on the problems in common, in the order of `ours`."""
    both = [name for name in ours.sums if name in theirs.sums]
    sums, reference = {name: ours.sums[name] for name in both}, {name: theirs.sums[name] for name in both}
    layout, samples = ours.layout, (ours.samples, theirs.samples)
    if layout is not theirs.layout:
        index = layout.problems.with_row_index("row").join(
            theirs.layout.problems.select(PROBLEM).with_row_index("other"), on=PROBLEM, maintain_order="left"
        )
        rows, others = index["row"].to_numpy(), index["other"].to_numpy()
        layout = Layout(index.select(*PROBLEM, "task"))
        sums = {name: values[rows] for name, values in sums.items()}
        reference = {name: values[others] for name, values in reference.items()}
    return Pairs(layout, layout.n, samples, (sums, reference))


def setup(record: PointRecord) -> str:
    """What two points must share to be paired: model, engine and task, and the seed or repeat where one is recorded."""
    shared = [record.model.plain(), record.engine, GREEDY | record.task.plain(), record.seed, record.repeat]
    return json.dumps(shared, sort_keys=True, default=str)


def without_repeats(records: Iterable[PointRecord]) -> list[PointRecord]:
    """The records of the lowest repeat among them: the others say how far scores move and are no further policies."""
    found = list(records)
    first = min((record.repeat for record in found), default=0)
    return [record for record in found if record.repeat == first]


def _setup_of_base(record: PointRecord) -> str:
    """`setup` of the checkpoint that the record's was made from, or of its own, by what both tell: no path, no E."""
    model = record.model.plain()
    identity = record.model.identity if record.model.base is None else record.model.base.identity
    how = [identity, model.get("dtype"), model.get("trust_remote_code")]
    shared = [how, record.engine, GREEDY | record.task.plain(), record.seed, record.repeat]
    return json.dumps(shared, sort_keys=True, default=str)


class References:
    """The `none` and `fixed_k` points among the done ones, by set-up.

    Of a checkpoint that was made from another one those of that one: its own are points like any other.
    """

    def __init__(self, done: Iterable[PointRecord]) -> None:
        self._by_setup: dict[str, list[PointRecord]] = {}
        self._of_bases: dict[str, list[PointRecord]] = {}
        for record in done:
            if record.series in REFERENCE_POLICIES:
                self._by_setup.setdefault(setup(record), []).append(record)
                self._of_bases.setdefault(_setup_of_base(record), []).append(record)

    def _of(self, record: PointRecord) -> Sequence[PointRecord]:
        if record.model.base is None:
            return self._by_setup.get(setup(record), ())
        return self._of_bases.get(_setup_of_base(record), ())

    def nearest_fixed_k(self, record: PointRecord) -> PointRecord | None:
        """The one of the same set-up at the nearest measured budget (`none` is fixed_k at K).

        At equal distance the one that keeps more, then `none`.
        """

        def rank(point: PointRecord) -> tuple[float, float, bool]:
            return round(abs(point.mean_kept - record.mean_kept), 6), -round(point.mean_kept, 6), not point.is_stock

        return min(self._of(record), key=rank, default=None)

    def stock(self, record: PointRecord) -> PointRecord | None:
        """The `none` point of the same set-up."""
        return next((point for point in self._of(record) if point.is_stock), None)
