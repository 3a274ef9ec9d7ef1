"""Hands one record after the other to W&B, beside the run: the driver waits for it at the start and at the end alone.

A call that takes longer than `tracking.timeout_seconds` holds up those after it and nothing else. It is said once, and
an answer that comes late still counts. At the end of the run a call that hangs is given up and what was not mirrored is
mirrored by a new process, once; as long as W&B answers each call in time, it may finish.
"""

from __future__ import annotations

import atexit
import contextlib
import shutil
import sys
import threading
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Any

from banpick_exp.report.tracking.place import SUMMARY, mirrored_runs, publish_command
from banpick_exp.report.tracking.process import Gone, MirrorProcess, Refused, Trouble
from banpick_exp.run_folder import RunFolder

GIVE_UP_AFTER = 3  # failures in a row: each online one may wait for a network timeout
LOOK_SECONDS = 0.2
CLOSE_SECONDS = 5.0
"""How long a driver that was interrupted waits for W&B to close its runs."""


class NoAnswer(Trouble):
    """W&B hangs in a call."""


@dataclass(frozen=True, slots=True)
class Order:
    """One call of `mirror.Mirror`."""

    call: str
    arguments: Mapping[str, Any]
    entry: str | None = None
    """Of a point: what the list of mirrored ones says of it."""
    what: str = ""
    """In words, for what is asked after all is mirrored."""


class Mirroring:
    """W&B's runs of one sweep, from `start` to `finish`."""

    def __init__(self, folder: RunFolder, opening: Order, *, timeout_seconds: float, offline: bool) -> None:
        self._folder, self._opening, self._limit, self._offline = folder, opening, timeout_seconds, offline
        self._orders: SimpleQueue[Order | None] = SimpleQueue()
        self._missed: list[Order] = []
        self._added = self._handled = 0
        """Points; each is counted by one thread alone."""
        self._whole = self._offline_runs()
        self.runs = mirrored_runs(folder)
        """Entry -> the folder of its W&B run, of every point that is mirrored, and of the summary once it is closed."""
        self._taken = set(self.runs)
        self._in_a_row = 0
        self._trouble: Trouble | None = None
        """Why nothing more is mirrored before the end."""
        self._said = False
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._work, name="W&B mirror", daemon=True)

    def start(self) -> None:
        """Open the summary run. Raises Trouble where W&B cannot, within the limit."""
        self._ending.set()  # the driver waits
        self._process = MirrorProcess(self._folder.mirror, self._limit)
        try:
            self._call(self._opening)
        except BaseException:
            self._process.kill()
            raise
        self._ending.clear()
        atexit.register(self._abandon)
        self._thread.start()

    def add(self, order: Order) -> None:
        """Mirror a point, now or later, unless it is already; returns at once."""
        assert order.entry is not None, "only points come in any number"
        if order.entry not in self._taken:
            self._taken.add(order.entry)
            self._added += 1
            self._orders.put(order)

    @property
    def on_their_way(self) -> int:
        """Points that W&B has not answered for yet."""
        return self._added - self._handled

    def finish(self, closing: Order, points: Iterable[Order] = (), after: Iterable[Order] = ()) -> list[str]:
        """Wait for what is on its way, mirror the points that wait for the end, make up for what was missed and close
        the summary.

        `after`: what is asked of the server once all is mirrored; made one by one, so that `runs` is whole by then.

        Returns: what is not mirrored in the end, and how to mirror it.
        """
        self._ending.set()
        self._orders.put(None)
        self._thread.join()
        atexit.unregister(self._abandon)
        failures: list[str] = []
        try:
            for order in points:
                if order.entry not in self._taken:
                    self._mirror(order)
            trouble = self._trouble
            if trouble is None and not self._missed:
                trouble = self._close(closing)
            if trouble is not None or self._missed:
                failures = self._make_up(closing, trouble)
            if not failures:
                failures = self._ask(after)
        except BaseException:  # Ctrl-C
            self._process.kill()
            raise
        self._process.close(self._limit)
        return failures

    # ------------------------------------------------------------ beside the run

    def _work(self) -> None:
        while (order := self._orders.get()) is not None:
            self._mirror(order)
            self._handled += 1

    def _mirror(self, order: Order) -> None:
        if self._trouble is not None:
            self._missed.append(order)
            return
        try:
            self._call(order)
            self._in_a_row = 0
        except Trouble as trouble:
            self._missed.append(order)
            self._in_a_row += 1
            if not isinstance(trouble, Refused) or self._in_a_row == GIVE_UP_AFTER:
                self._trouble = trouble
                self._say_once(
                    f"W&B failed ({trouble}): nothing more is mirrored for now, and the records on disk are"
                    " complete. The rest is mirrored at the end of the run."
                )

    def _call(self, order: Order) -> Any:
        """Returns what W&B answers, late or not. Raises Trouble; NoAnswer only where the driver waits."""
        self._process.send(order.call, order.arguments)
        begun = time.monotonic()
        while (answer := self._process.answer(min(LOOK_SECONDS, self._limit))) is None:
            if time.monotonic() - begun > self._limit:
                if self._thread.ident is not None:  # else it has not started, and the run does not either
                    self._say_once(
                        f"W&B has not answered for {self._limit:g} s: nothing is mirrored while it hangs, and the"
                        " records on disk are complete. The rest is mirrored when it answers, or at the end of the run."
                        " Where W&B is only slow, type a larger tracking.timeout_seconds."
                    )
                if self._ending.is_set():
                    raise NoAnswer(f"no answer within {self._limit:g} s")
        (value,) = answer
        if order.entry is not None:
            self._note(order.entry, value)
        return value

    def _note(self, entry: str, run: str) -> None:
        """It is mirrored: a resumed run will not mirror a point again, and `report --wandb` knows where it is."""
        self._whole.add(run)
        self.runs[entry] = run
        with contextlib.suppress(OSError), open(self._folder.mirrored, "a") as file:  # mirrored all the same
            file.write(f"{entry} {run}\n")

    def _say_once(self, text: str) -> None:
        if not self._said:
            self._said = True
            _say(text)

    # ------------------------------------------------------------ the end

    def _close(self, closing: Order) -> Trouble | None:
        """Close the summary. Returns why it is to be done again."""
        try:
            run, failed = self._call(closing)
        except Trouble as trouble:
            return trouble
        if failed:
            return Refused(failed[0])
        self._note(SUMMARY, run)
        return None

    def _ask(self, after: Iterable[Order]) -> list[str]:
        """One question after the other, until one fails; returns why. All of it is made again by `report --wandb`."""
        for order in after:
            try:
                self._call(order)
            except Trouble as trouble:
                typed = publish_command(self._folder)
                return [f"{order.what} could not be told ({trouble}); once W&B answers, type {typed}"]
        return []

    def _make_up(self, closing: Order, why: Trouble | None) -> list[str]:
        """Once more, in a new process: what hangs in the old one, or broke it, may be its own."""
        self._process.kill()
        trouble: Trouble | None = None
        left = self._missed
        try:
            self._remove_halves()
            self._process = MirrorProcess(self._folder.mirror, self._limit)
            self._call(self._opening)
            left, trouble = self._again(left)
            trouble = self._close(closing) or trouble
        except (Trouble, OSError) as error:
            trouble = error if isinstance(error, Trouble) else Gone(str(error))
        if trouble is None and not left:
            if self._said:
                _say("W&B: what was missing is mirrored.")
            return []
        self._process.kill()
        self._remove_halves()
        points = f"{len(left)} point(s) and the summary are" if left else "the summary is"
        return [
            f"{points} not mirrored ({trouble or why}): the same command with resume={self._folder.path.name} mirrors"
            " what is missing"
        ]

    def _again(self, orders: list[Order]) -> tuple[list[Order], Trouble | None]:
        """Mirror what was missed. Returns what still is, and the last reason; Gone and NoAnswer end it."""
        left, last, in_a_row = list[Order](), None, 0
        for number, order in enumerate(orders):
            try:
                self._call(order)
                in_a_row = 0
            except Trouble as trouble:
                left.append(order)
                last, in_a_row = trouble, in_a_row + 1
                if not isinstance(trouble, Refused) or in_a_row == GIVE_UP_AFTER:
                    return [*left, *orders[number + 1 :]], last
        return left, last

    def _remove_halves(self) -> None:
        """Offline runs of ours that were not closed: `wandb sync` would upload them beside those that replace them."""
        for name in self._offline_runs() - self._whole:
            shutil.rmtree(self._folder.mirror / name, ignore_errors=True)

    def _offline_runs(self) -> set[str]:
        if not self._offline or not self._folder.mirror.is_dir():
            return set()
        return {path.name for path in self._folder.mirror.iterdir() if path.name.startswith("offline-run-")}

    def _abandon(self) -> None:
        """The driver ends without `finish`: it was interrupted."""
        self._said = True
        self._process.close(CLOSE_SECONDS)


def _say(text: str) -> None:
    with contextlib.suppress(OSError, ValueError):  # nobody reads it
        print(text, file=sys.stderr, flush=True)
