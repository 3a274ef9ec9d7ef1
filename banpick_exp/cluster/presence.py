"""Whether a run has a driver, as an engine sees it: by the signs of life that the driver gives in the run's lock.

An engine that is idle while its driver waits for others must not end, and one whose driver is gone must. Signs are
compared with each other and timed by this process's own clock: those of two machines, and of a shared folder, differ.
"""

from __future__ import annotations

import time

from banpick_exp.run_folder import RunFolder
from banpick_exp.run_lock import STALE_SECONDS, sign_of_life


class Presence:
    """Asked again and again, in one process."""

    def __init__(self, folder: RunFolder) -> None:
        self._folder, self._last, self._seen = folder, sign_of_life(folder), time.monotonic()

    def absent_seconds(self) -> float:
        """Since the driver was there; 0 while it is. One that ended, or is gone from this machine, is missed at once;
        one on another machine that went without a word after STALE_SECONDS, as by the run's lock."""
        sign, now = sign_of_life(self._folder), time.monotonic()
        if sign is not None and sign != self._last:
            self._last, self._seen = sign, now
        absent = now - self._seen
        return 0.0 if sign is not None and absent < STALE_SECONDS else absent
