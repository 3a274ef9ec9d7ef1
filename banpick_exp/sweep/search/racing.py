"""`search=racing`: all points advance block by block; between the blocks those that cannot reach the front stop.

Points race against those of the same set-up (engine, task, data, seed, repeat), because only they are paired.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from banpick_exp.analysis.pairing import Layout, answers_of
from banpick_exp.evaluation.blocks import AnsweredBlock, read_block, read_blocks
from banpick_exp.records import PointRecord, outcomes_frame
from banpick_exp.run_folder import RunFolder
from banpick_exp.sweep.config import RacingSearch
from banpick_exp.sweep.estimate import answer_tokens, point_tokens
from banpick_exp.sweep.point import Point
from banpick_exp.sweep.search.cuts import rounds_of
from banpick_exp.sweep.search.elimination import Standing, Stopped, rule_of, stops
from banpick_exp.sweep.search.strategy import Work, setup

WHOLE = -1
"""In place of a block's number: the call that adds up and times a point."""
Drop = Callable[[Point, str, AnsweredBlock, AnsweredBlock], None]
"""Records a stopped point: the point, why, its blocks and stock's."""


class Race:
    """All heats of one engine."""

    def __init__(
        self,
        points: Sequence[Point],
        records: Mapping[str, PointRecord],
        search: RacingSearch,
        folder: RunFolder,
        drop: Drop,
        note: Callable[[str], None],
    ) -> None:
        """`points`: every point of the engine; `records`: those that have one already, by fingerprint."""
        heats: dict[tuple[object, ...], list[Point]] = {}
        for point in points:
            heats.setdefault(setup(point), []).append(point)
        self._heats = [Heat(members, records, search, folder, drop, note) for members in heats.values()]
        self._heat_of = {point.fingerprint: heat for heat in self._heats for point in heat.members}

    def begin(self) -> list[Work]:
        return [work for heat in self._heats for work in heat.advance()]

    def finished(self, work: Work, record: PointRecord | None) -> list[Work]:
        heat = self._heat_of[work.point.fingerprint]
        heat.close(work, record)
        return heat.advance()

    def waiting(self) -> list[Point]:
        return [point for heat in self._heats for point in heat.racing() if point.fingerprint not in heat.asked]

    def to_come(self) -> int:
        return sum(heat.to_come() for heat in self._heats)

    def points_left(self) -> int:
        return sum(len(heat.racing()) for heat in self._heats)

    def progress(self) -> tuple[float, float]:
        done, total = zip(*(heat.progress() for heat in self._heats), strict=True)
        return sum(done), sum(total)


class Heat:
    """The points of one set-up: rounds of blocks, a decision after each but the last, then timed runs."""

    def __init__(
        self,
        members: Sequence[Point],
        records: Mapping[str, PointRecord],
        search: RacingSearch,
        folder: RunFolder,
        drop: Drop,
        note: Callable[[str], None],
    ) -> None:
        self.members, self.search, self.folder = list(members), search, folder
        self.drop, self.note = drop, note
        rounds = rounds_of(members[0], search)
        self.cut, self.blocks = rounds.cut, [rounds.blocks(number) for number in range(len(rounds.ends))]
        self.status = {p.fingerprint: records[p.fingerprint].status for p in members if p.fingerprint in records}
        """Of the points that are over."""
        self.asked: dict[str, set[int]] = {}
        """Points with work handed out: which blocks of theirs, or WHOLE."""
        self.round, self.handed_out = 0, False
        self.answered = dict.fromkeys((p.fingerprint for p in members), 0.0)
        """Share of its problems each point has answered, as far as this driver knows."""
        references = sum(point.rule.is_reference for point in members)
        self.rule = rule_of(len(members), references, len(search.blocks), search.error_rate, search.margin)

    def racing(self) -> list[Point]:
        """Those without a record, in plan order."""
        return [point for point in self.members if point.fingerprint not in self.status]

    def close(self, work: Work, record: PointRecord | None) -> None:
        name = work.point.fingerprint
        asked = self.asked.get(name, set())
        asked.discard(work.block if work.kind == "block" else WHOLE)
        if work.kind == "block":
            self._answered_block(name, work.block)
        if record is not None:
            self.status[name] = record.status
        if record is not None or not asked:
            self.asked.pop(name, None)

    def advance(self) -> list[Work]:
        """The next work, once all that was handed out is over."""
        if self.asked:
            return []
        rounds = len(self.search.blocks)
        while self.round < rounds and self.racing():
            if not self.handed_out:
                self.handed_out = True
                missing = [(point, block) for point in self.racing() for block in self._missing(point)]
                if missing:
                    return self._hand_out([Work(point=p, kind="block", block=block) for p, block in missing])
            if self.round < rounds - 1:
                self._stop_losers()
            self.round, self.handed_out = self.round + 1, False
        if self.round == rounds:
            self.round += 1
            return self._hand_out([Work(point=point) for point in self.racing()])
        return []

    def to_come(self) -> int:
        """Works of the largest round that is left: rounds come one after the other."""
        if self.round > len(self.search.blocks):
            return 0
        return len(self.racing()) * max([1, *(len(blocks) for blocks in self.blocks[self.round :])])

    def progress(self) -> tuple[float, float]:
        done = total = 0.0
        for point in self.members:
            answers = answer_tokens(point) / point_tokens(point)
            answered = answers * self.answered[point.fingerprint]
            over = point.fingerprint in self.status
            done += 1.0 if over and self.status[point.fingerprint] != "dropped" else answered
            total += answered if over and self.status[point.fingerprint] == "dropped" else 1.0
        return done, total

    def _hand_out(self, works: list[Work]) -> list[Work]:
        for work in works:
            number = work.block if work.kind == "block" else WHOLE
            self.asked.setdefault(work.point.fingerprint, set()).add(number)
        return works

    def _missing(self, point: Point) -> list[int]:
        """Blocks of the round that the point has not answered."""
        missing = []
        for block in self.blocks[self.round]:
            if read_block(self.folder, point.fingerprint, self.cut, block) is None:
                missing.append(block)
            else:
                self._answered_block(point.fingerprint, block)
        return missing

    def _answered_block(self, name: str, block: int) -> None:
        shares = (0.0, *self.cut.shares)
        self.answered[name] = min(1.0, self.answered[name] + shares[block + 1] - shares[block])

    def _stop_losers(self) -> None:
        """Points that are over stay as rivals: a race that is resumed decides as one that was not interrupted."""
        blocks = {}
        for point in self.members:
            if self.status.get(point.fingerprint) not in ("dropped", "failed"):
                found = read_blocks(self.folder, point.fingerprint, self.cut, self.blocks[self.round].stop)
                if found is not None and found.runs:
                    blocks[point.fingerprint] = found
        stock = next((p.fingerprint for p in self.members if p.rule.is_stock), None)
        if stock not in blocks:
            return  # its blocks failed: nothing is stopped, because nothing could be held against it
        standings: dict[str, Standing] = {}
        layout: Layout | None = None  # shared, so that pairing need not look problems up
        for point in self.members:
            if point.fingerprint in blocks:
                standings[point.fingerprint] = standing = self._standing(point, blocks[point.fingerprint], layout)
                layout = standing.answers.layout
        stopped = stops(standings, self.rule)
        known = self.members[0].problems.values()
        share = self.search.blocks[self.round]
        problems = sum(n or 0 for n in known) if all(known) else round(standings[stock].answers.layout.n / share)
        for point in self.members:
            why: Stopped | None = stopped.get(point.fingerprint)
            if why is not None:
                self.status[point.fingerprint] = "dropped"
                self.drop(point, why.reason(problems), blocks[point.fingerprint], blocks[stock])
        self.note(
            f"after block {self.round + 1} of {len(self.search.blocks)} ({share:.1%} of the problems):"
            f" {len(stopped)} stopped, {len(self.racing())} go on"
        )

    def _standing(self, point: Point, block: AnsweredBlock, layout: Layout | None) -> Standing:
        outcomes = [outcome for run in block.runs.values() for outcome in run.outcomes]
        tokens = sum(sum(run.counters.tokens) for run in block.runs.values())
        kept = sum(sum(run.counters.kept) for run in block.runs.values())
        return Standing(
            label=point.label,
            answers=answers_of(outcomes_frame(outcomes), layout),
            mean_kept=kept / tokens,
            stays=point.rule.is_reference or point.fingerprint in self.status,
            reference=point.rule.is_reference,
        )
