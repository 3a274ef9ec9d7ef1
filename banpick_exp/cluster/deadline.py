"""How long a call may take before its engine is taken for one that hangs: by the estimate, and by what was measured.

Its process may count on (`pulse`) while the call never returns: a kernel that waits for another rank, a lost message.
The limit is generous, because ending an engine that is merely slow costs a load and the block.
"""

from __future__ import annotations

from banpick_exp.evaluation.cut import Cut
from banpick_exp.sweep.estimate import ASSUMED_LENGTH, answers_of, solving, speed_of
from banpick_exp.sweep.point import Point

FACTOR = 20.0
"""Times what a call should take. The estimate is within 10 of what machines did so far."""


class Deadlines:
    """Of one engine's calls; what has returned says how far the estimate is off here.

    `cut`: how the point is cut, None where it is answered whole.
    """

    def __init__(self, least_seconds: float) -> None:
        """`least_seconds`: what every call has (`cluster.deadline_seconds`)."""
        self._least_seconds = least_seconds
        self._slowest = 1.0

    def expected_seconds(self, kind: str, point: Point, cut: Cut | None) -> float | None:
        """Of a block or a point, by the estimate; None for one without a limit: a whole calibration shows progress."""
        if kind not in ("block", "point"):
            return None
        speed = speed_of(point)
        answering = answers_of(point).seconds(speed, ASSUMED_LENGTH)
        probing = solving(point)[1].seconds(speed)
        if kind == "block":
            assert cut is not None
            return answering / len(cut) + probing
        # Stock's answers may have to be given again.
        return 2 * answering + probing + (0 if point.repeat else point.task.speed_seconds)

    def returned(self, kind: str, point: Point, cut: Cut | None, seconds: float) -> None:
        """A call took so long."""
        expected = self.expected_seconds(kind, point, cut)
        if expected:
            self._slowest = max(self._slowest, seconds / expected)

    def limit_seconds(self, kind: str, point: Point, cut: Cut | None) -> float | None:
        """After which its engine is given up; None where it is not."""
        expected = self.expected_seconds(kind, point, cut)
        return None if expected is None else self.limit_of(expected)

    def limit_of(self, expected: float) -> float:
        """The same of a call that should take so many seconds: a block of a calibration."""
        return max(self._least_seconds, FACTOR * self._slowest * expected)
