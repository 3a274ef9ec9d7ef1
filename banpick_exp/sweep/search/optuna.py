"""`search=optuna`: points drawn one after another by a multi-objective TPE, told what their records say.

Every trial is an ordinary point with a record; the study beside them (`optuna.log`, JSON lines: JournalStorage pickles
nothing with a file) says what was asked and told. A run that goes on reads both: a trial that was asked and has no
record is run, one that has a record is told, and none is run twice. Why TPE: it learns from the eight random trials on,
where a genetic sampler such as NSGA-II needs generations; and it counts running trials as bad ones, so that several
engines do not try the same.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from banpick_exp.errors import UserError
from banpick_exp.records import PointRecord
from banpick_exp.run_folder import RunFolder
from banpick_exp.sweep.config import OptunaSearch
from banpick_exp.sweep.make_points import PointMaker
from banpick_exp.sweep.overrides import Assignment
from banpick_exp.sweep.point import Point
from banpick_exp.sweep.search.strategy import Work
from banpick_exp.sweep.space import Dimension, Space

if TYPE_CHECKING:
    from optuna import Study
    from optuna.trial import Trial

DIRECTIONS: list[Literal["maximize", "minimize"]] = ["maximize", "minimize", "maximize"]
"""Of accuracy, mean_kept and speed-up."""
ASKED_PER_TRIAL = 5
"""A small space runs out: a point that is drawn again is told from its record, this often a trial at most."""


class Sampling:
    """The study of one run: as many trials as asked for, at most `slots` at a time, and the given points first."""

    def __init__(
        self,
        points: Sequence[Point],
        spaces: Sequence[Space],
        maker: PointMaker,
        records: Mapping[str, PointRecord],
        search: OptunaSearch,
        folder: RunFolder,
        slots: int,
    ) -> None:
        """`points`: run beside the trials, without being told to the study; `records`: what is finished already."""
        self._spaces, self._maker, self._search, self._slots = spaces, maker, search, slots
        self._records = dict(records)
        self._given = [point for point in points if point.fingerprint not in records]
        self._study = open_study(folder.journal, spaces, search)
        self._running: dict[str, list[int]] = {}
        """Trials waiting for the record of a point, by fingerprint."""
        self._out: dict[str, Point] = {}
        """Points with work handed out."""
        asked = (trial.user_attrs.get("fingerprint") for trial in self._study.trials)
        self._seen = {fingerprint for fingerprint in asked if fingerprint}
        self._finished = 0

    def begin(self) -> list[Work]:
        works = [self._hand_out(point) for point in self._given]
        return works + self._interrupted() + self._more()

    def finished(self, work: Work, record: PointRecord | None) -> list[Work]:
        assert record is not None, "a sampled point comes back with its record"
        name = work.point.fingerprint
        self._out.pop(name, None)
        self._finished += 1
        self._records[name] = record
        for number in self._running.pop(name, []):
            self._tell(number, record)
        return self._more()

    def waiting(self) -> list[Point]:
        return []

    def to_come(self) -> int:
        return max(0, self._search.trials - len(self._seen))

    def points_left(self) -> int:
        return len(self._out) + self.to_come()

    def progress(self) -> tuple[float, float]:
        return self._finished, self._finished + self.points_left()

    def _interrupted(self) -> list[Work]:
        """Trials that an earlier driver asked for and never told."""
        from optuna.trial import TrialState

        works = []
        for trial in self._study.get_trials(states=(TrialState.RUNNING,)):
            asked = trial.user_attrs.get("assignment")
            if asked is None:  # it ended between asking and writing down what for
                self._study.tell(trial.number, state=TrialState.FAIL)
                continue
            works += self._put(trial.number, self._maker.point(json.loads(asked)))
        return works

    def _more(self) -> list[Work]:
        """New trials while engines would stand idle."""
        works: list[Work] = []
        while (
            len(self._out) < self._slots
            and len(self._seen) < self._search.trials
            and len(self._study.trials) < ASKED_PER_TRIAL * self._search.trials
        ):
            works += self._ask()
        return works

    def _ask(self) -> list[Work]:
        """One trial: the work for its point, or none where it is known already or cannot be."""
        from optuna.trial import TrialState

        trial = self._study.ask()
        assignment = drawn(trial, self._spaces)
        try:
            point = self._maker.point(assignment)
        except UserError:  # knobs that are each within limits may not go together
            self._study.tell(trial, state=TrialState.FAIL)
            return []
        trial.set_user_attr("assignment", json.dumps(assignment))
        trial.set_user_attr("fingerprint", point.fingerprint)
        self._seen.add(point.fingerprint)
        return self._put(trial.number, point)

    def _put(self, number: int, point: Point) -> list[Work]:
        if point.fingerprint in self._records:
            self._tell(number, self._records[point.fingerprint])
            return []
        self._running.setdefault(point.fingerprint, []).append(number)
        return [] if point.fingerprint in self._out else [self._hand_out(point)]

    def _hand_out(self, point: Point) -> Work:
        self._out[point.fingerprint] = point
        return Work(point=point)

    def _tell(self, number: int, record: PointRecord) -> None:
        from optuna.trial import TrialState

        if record.status == "done":
            overall = record.measured.overall
            self._study.tell(number, [overall.accuracy, overall.mean_kept, overall.speedup or 0.0])
        else:
            self._study.tell(number, state=TrialState.FAIL)


def open_study(journal: Path, spaces: Sequence[Space], search: OptunaSearch) -> Study:
    """The study in a journal, begun where there is none. UserError where it samples another space."""
    import optuna
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    journal.parent.mkdir(parents=True, exist_ok=True)
    study = optuna.create_study(
        storage=JournalStorage(JournalFileBackend(str(journal))),
        study_name="banpick",
        directions=[*DIRECTIONS],
        load_if_exists=True,
    )
    described = [space.text() for space in spaces]
    begun = study.user_attrs.get("spaces")
    if begun is None:
        study.set_user_attr("spaces", described)
    elif begun != described:
        raise UserError(
            f"{journal} samples {'; '.join(begun)}, but this command is about {'; '.join(described)}: what was learnt"
            " there does not hold here. Leave resume out, or repeat that run's own command with resume."
        )
    with warnings.catch_warnings():
        # `group` is marked experimental. Without it the knobs of several blocks would be drawn each for itself.
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        study.sampler = optuna.samplers.TPESampler(
            # With what was asked before: a study that goes on must not draw its random trials once more.
            seed=search.seed + len(study.trials),
            n_startup_trials=search.startup,
            multivariate=True,
            group=len(spaces) > 1,
        )
    return study


def drawn(trial: Trial, spaces: Sequence[Space]) -> Assignment:
    """What a trial is to try: a block where there are several, then a value for each of its axes."""
    index = 0 if len(spaces) == 1 else trial.suggest_categorical("block", list(range(len(spaces))))
    space = spaces[index]
    return space.fixed | {d.key: _value(trial, f"{index}.{d.key}", d) for d in space.dimensions}


def _value(trial: Trial, name: str, dimension: Dimension) -> Any:
    if dimension.continuous:
        return dimension.rounded(trial.suggest_float(name, dimension.low, dimension.high))
    values = dimension.values
    if _evenly_spaced(values):
        return trial.suggest_int(name, values[0], values[-1], step=values[1] - values[0])
    texts = [json.dumps(value) for value in values]
    return values[texts.index(trial.suggest_categorical(name, texts))]


def _evenly_spaced(values: tuple[Any, ...]) -> bool:
    """Rising whole numbers with one step: their order tells the sampler something."""
    if len(values) < 2 or any(isinstance(value, bool) or not isinstance(value, int) for value in values):
        return False
    step = values[1] - values[0]
    return step > 0 and list(values) == list(range(values[0], values[-1] + 1, step))
