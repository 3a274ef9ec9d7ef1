"""One loaded engine and what the trials on it share: stock's answers, calibrations handed over, probes of knobs."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence

from banpick_exp.engine.engine import Engine
from banpick_exp.evaluation.answer import Answered, DomainPolicy, DomainRun, Problems
from banpick_exp.evaluation.asking import Asking
from banpick_exp.evaluation.blocks import answered_in_blocks
from banpick_exp.evaluation.budget.solve import Probed
from banpick_exp.evaluation.calibrated import artifact_of, division_of
from banpick_exp.evaluation.calibration import arrays
from banpick_exp.evaluation.calibration.artifact import parts_in
from banpick_exp.evaluation.calibration.config import CALIBRATION_WORKER
from banpick_exp.evaluation.calibration.judge import OnProgress
from banpick_exp.evaluation.calibration.measure import calibrate, measure_block, score
from banpick_exp.evaluation.calibration.scores import Part
from banpick_exp.evaluation.calibration.stored import Block
from banpick_exp.evaluation.calibration.views import policy_views
from banpick_exp.evaluation.cut import Cut
from banpick_exp.evaluation.together import Pace
from banpick_exp.evaluation.trial import Trial
from banpick_exp.models.tiny.location import location_of
from banpick_exp.policy import Calibration, parse_policy
from banpick_exp.records import CorruptRecord, outcomes_of
from banpick_exp.run_folder import RunFolder
from banpick_exp.versions import versions


def engine_of(trial: Trial) -> Engine:
    """The engine that a trial runs on, not started yet; a control variant is built where it is missing."""
    location = location_of(trial.model, trial.checkpoint.location)
    layers, rows = trial.checkpoint.shape.num_layers, trial.engine.rows
    return Engine(trial.model, location, trial.engine, layers, worker=CALIBRATION_WORKER, rows=rows)


class Session:
    """Measures trials on one engine, one at a time; `measure.measure` is the body."""

    def __init__(self, engine: Engine, folder: RunFolder) -> None:
        self.engine, self.folder = engine, folder
        self.probed: Probed = {}
        self.given: dict[str, Answered] = {}
        """By fingerprint of the trial, what a batch with other policies answered (`at_once`): taken when it is asked.
        """
        self.solved: dict[str, float] = {}
        """By fingerprint, seconds that its knob took to be solved together with others; taken like `given`."""
        self.paces: dict[str, Pace] = {}
        """By set-up and number of requests, whether such batches pay here."""
        self._stock: dict[str, dict[str, DomainRun]] = {}
        self._views: dict[str, dict[str, Calibration]] = {}
        """By calibration and score, then by domain: what policies read; the engine holds them under the same key."""

    # ------------------------------------------------------------ calibration

    def calibrate(
        self,
        trial: Trial,
        on_progress: OnProgress,
        parts: Sequence[Part] | None = None,
        layers_of: Callable[[Part | None], int | None] = lambda part: None,
    ) -> float:
        """Measure what `trial` reads of a calibration and is not there yet, or `parts` of it, whoever reads them.

        Blocks that are there are added up and not measured again. `layers_of`: how many layers a block has in a part
        (None: of the artifact itself), None where it is not worth dividing. Returns seconds (0 when all was there).
        """
        folder, fingerprint = artifact_of(trial, self.folder.calibrations)
        shape, settings = trial.checkpoint.shape, trial.calibration
        begin = time.perf_counter()
        domains = arrays.load(folder, fingerprint)
        there = parts_in(folder)
        missing = [name for name in (trial.calibration_parts if parts is None else parts) if name not in there]
        if domains is None:
            division = division_of(trial, self.folder.calibrations, None, layers_of(None))
            domains = calibrate(
                self.engine,
                shape,
                trial.task,
                settings,
                on_progress,
                identity=trial.calibration_identity,
                division=division,
            )
            header = {
                "model": {"name": trial.model.name, "identity": trial.checkpoint.identity},
                "settings": settings.measured(),
                "data_files": trial.calibration_files,
                "versions": versions(),
                "seconds": division.seconds(),
            }
            arrays.save_artifact(folder, fingerprint, domains, header)
            division.clear()
        elif not missing:
            return 0.0
        for name in missing:
            division = division_of(trial, self.folder.calibrations, name, layers_of(name))
            found, how = score(self.engine, shape, domains, settings, name, on_progress, division=division)
            arrays.save_scores(folder, name, found, how)
            division.clear()
        return time.perf_counter() - begin

    def calibrate_block(self, trial: Trial, block: Block) -> float:
        """Measure one block of what `trial` reads and write its file. Returns seconds (0 where nothing was to do).

        Raises UserError where the artifact that it scores is of something else, FileNotFoundError where it is gone.
        """
        folder, fingerprint = artifact_of(trial, self.folder.calibrations)
        begin, part = time.perf_counter(), block.stage.part
        domains = arrays.load(folder, fingerprint)
        if (domains is not None) if part is None else part in parts_in(folder):
            return 0.0  # another run was faster
        if part is not None and domains is None:
            raise FileNotFoundError(f"calibration {fingerprint} is not in {folder}, so {part} cannot be measured on it")
        division = division_of(trial, self.folder.calibrations, part, block.end - block.first)
        identity = trial.calibration_identity
        done = measure_block(self.engine, trial.task, division, block, domains, identity=identity)
        return time.perf_counter() - begin if done else 0.0

    def policies(self, trial: Trial) -> dict[str, DomainPolicy]:
        """The trial's rule as the engine takes it, domain by domain. FileNotFoundError without its calibration."""
        domains = trial.task.domains
        fingerprint = trial.calibration_fingerprint
        if fingerprint is None:
            return dict.fromkeys(domains, DomainPolicy(rule=trial.rule, calibration_key="", calibration=None))
        sensitivity = trial.calibration.sensitivity
        key = f"{fingerprint}/{trial.score}/{sensitivity}"
        if key not in self._views:
            folder, _ = artifact_of(trial, self.folder.calibrations)
            measured = arrays.load(folder, fingerprint)
            if measured is None or not set(trial.calibration_parts) <= set(parts_in(folder)):
                raise FileNotFoundError(f"calibration {fingerprint} is not in {folder}, or not what is read of it")
            self._views[key] = policy_views(measured, trial.score, sensitivity=sensitivity)
            for domain, view in self._views[key].items():
                self.engine.load_calibration(f"{key}/{domain}", view)
        views = self._views[key]
        return {
            domain: DomainPolicy(rule=trial.rule, calibration_key=f"{key}/{domain}", calibration=views[domain])
            for domain in domains
        }

    # ------------------------------------------------------------ answers

    def asking(self, trial: Trial, call: str) -> Asking:
        """One call about a trial: the number of a block, or `trouble.POINT`. Raises TooManyFailed."""
        return Asking(self.engine, trial, self.folder, call, self.given.pop(trial.fingerprint, None))

    def answer(
        self, asking: Asking, policies: Mapping[str, DomainPolicy], problems: Problems, cut: Cut | None
    ) -> Answered:
        """All problems under these policies; what a race has answered in blocks is not asked again."""
        in_blocks = answered_in_blocks(self.folder, asking.trial.fingerprint, policies, cut, problems)
        return in_blocks or asking.answer(policies, problems)

    def stock(
        self, asking: Asking, fingerprint: str, problems: Problems, cut: Cut | None
    ) -> tuple[dict[str, DomainRun], float]:
        """Stock answers to pair with, and the seconds they took now.

        Those of this engine, of the record `fingerprint` that another engine wrote, or of its blocks; else made now.
        """
        if fingerprint in self._stock:
            return self._stock[fingerprint], 0.0
        runs = self._recorded_stock(fingerprint)
        seconds = 0.0
        if runs is None:
            stock = DomainPolicy(rule=parse_policy("none", {}), calibration_key="", calibration=None)
            policies = dict.fromkeys(asking.trial.task.domains, stock)
            begin = time.perf_counter()
            in_blocks = answered_in_blocks(self.folder, fingerprint, policies, cut, problems)
            if in_blocks is not None:
                runs = in_blocks.runs
            else:
                runs = asking.answer(policies, problems).runs
                seconds = time.perf_counter() - begin
        self._stock[fingerprint] = runs
        return runs, seconds

    def _recorded_stock(self, fingerprint: str) -> dict[str, DomainRun] | None:
        try:
            record = self.folder.read_point(fingerprint)
        except (FileNotFoundError, CorruptRecord):
            return None
        if record.status != "done":
            return None
        outcomes = outcomes_of(self.folder.outcomes(fingerprint))
        return {
            domain: DomainRun(
                [outcome for outcome in outcomes if outcome.domain == domain],
                counters,
                tuple(each for each in record.failed_problems if each.domain == domain),
            )
            for domain, counters in record.engagement.stock_counters.items()
        }
