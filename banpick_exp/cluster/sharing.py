"""Which jobs become one call, so that their policies may share a batch, and what comes of such a call.

A call in company is short, `BLOCK_SECONDS` at most by the estimate, because an engine that dies under it costs all of
it. Nothing is concluded from such a death or error: each job is done again alone, and what goes wrong then is its own.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from banpick_exp.cluster.answers import Together
from banpick_exp.cluster.deadline import Deadlines
from banpick_exp.cluster.jobs import Job, Jobs
from banpick_exp.evaluation.cut import Cut
from banpick_exp.sweep.estimate import BLOCK_SECONDS
from banpick_exp.sweep.point import Point
from banpick_exp.sweep.search.company import has_company
from banpick_exp.sweep.search.strategy import setup


class Sharing:
    """The calls in company of one kind of engine."""

    def __init__(self, jobs: Jobs, cut_of: Callable[[Point], Cut | None], deadlines: Deadlines) -> None:
        self._jobs, self._cut_of, self._deadlines = jobs, cut_of, deadlines
        self._in_vain: set[tuple[object, ...]] = set()
        """Set-ups in which policies take as long together as alone."""

    def find_company(self, job: Job, engines: int) -> None:
        """Give a job that was taken the company of others that wait, so that none of so many engines stands idle."""
        if job.work is None or job.alone or not has_company(job.work) or setup(job.point) in self._in_vain:
            return
        expected = self._expected_seconds(job) or BLOCK_SECONDS
        most = min(
            job.point.engine.rows + 1, int(BLOCK_SECONDS / max(expected, 1e-9))
        )  # one of them may be asked alone, to compare
        alike = self._jobs.alike(job, max(0, most * engines - 1))
        share = min(most, math.ceil((1 + len(alike)) / engines))
        self._jobs.join(job, alike[: share - 1])

    def calls(self, job: Job, alone: Callable[[Job], tuple[str, tuple[Any, ...]]]) -> tuple[str, tuple[Any, ...]]:
        """Method and arguments of the job's call; `alone`: those of a job without company."""
        if not job.company:
            return alone(job)
        called = [alone(each) for each in (job, *job.company)]
        return "run_together", (called[0][0], [arguments for _, arguments in called])

    def limit_seconds(self, job: Job) -> float | None:
        """After which the call is given up; None where it is not."""
        parts = [self._expected_seconds(each) for each in (job, *job.company)]
        known = [part for part in parts if part is not None]
        return None if len(known) < len(parts) else self._deadlines.limit_of(sum(known))

    def _expected_seconds(self, job: Job) -> float | None:
        return self._deadlines.expected_seconds(job.kind, job.point, self._cut_of(job.point))

    def learn(self, job: Job, found: Together) -> None:
        """What its engine was measured to do."""
        if found.pays is False:
            self._in_vain.add(setup(job.point))

    def part(self, job: Job) -> list[Job]:
        """A call in company is over: its jobs, each by itself."""
        jobs = [job, *job.company]
        job.company = ()
        return jobs

    def go_alone(self, job: Job) -> list[Job]:
        """The same of one that did not bring them to an end: each is to be done again, alone."""
        jobs = self.part(job)
        for each in jobs:
            each.alone = True
        return jobs
