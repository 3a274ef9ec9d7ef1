"""Files about engines that died under a call, and about the problems they died of. There is none where none died.

    trouble/set_aside.json                      problems that break engines, of the whole run
    trouble/<fingerprint>.<call>/deaths.json    what the deaths under a call have shown (`narrowing`)
    trouble/<fingerprint>.<call>/flight.json    the piece that is asked now
    trouble/<fingerprint>.<call>/*.piece.json   answers to pieces that are over

The driver writes the first two, the engine the others. A call is a block, by its number, or `point`.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from banpick_exp.config import fingerprint
from banpick_exp.disk import create_folder, write_atomically
from banpick_exp.evaluation.answer import DomainRun
from banpick_exp.evaluation.narrowing import Flight, Key, Suspicion
from banpick_exp.evaluation.stored_runs import run_as_json, run_from_json
from banpick_exp.evaluation.trial import Trial
from banpick_exp.records import OUTCOMES_VERSION, FailedProblem
from banpick_exp.run_folder import RunFolder

NO_ANSWER = (
    "parity_check",
    "policies_per_batch",
    "start_timeout_seconds",
    "allow_code",
    "allow_zero",
    "block_problems",
    "max_failed_problems",
    "prompt_tokens",
)
"""Settings of an engine and a task that may be typed anew when a run is resumed: answers stay the same."""
POINT = "point"
"""The call that answers, adds up and times a whole point."""


class SetAside(BaseModel):
    """A problem that broke every engine it was asked alone."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    domain: str
    problem_id: str
    reason: str
    where: str
    """Which model on which data: elsewhere the same number is another problem."""
    point: str | None
    """Fingerprint of the point that it was set aside in; None once that is to be computed again."""
    stock_of: str | None = None
    """Where stock had it set aside: with whom nobody can be paired on it (`pairing`)."""

    @property
    def key(self) -> Key:
        return self.domain, self.problem_id

    @property
    def failed(self) -> FailedProblem:
        return FailedProblem(domain=self.domain, problem_id=self.problem_id, reason=self.reason)

    def stands_for(self, trial: Trial) -> bool:
        """Whether it is set aside in this trial too, without being asked."""
        return self.point == trial.fingerprint or (self.stock_of is not None and self.stock_of == pairing(trial))


def set_aside(folder: RunFolder) -> list[SetAside]:
    """Of the whole run, in the order in which they were found."""
    try:
        stored = json.loads(folder.problems_aside.read_bytes())
        return [SetAside.model_validate(each) for each in stored]
    except (FileNotFoundError, ValueError, TypeError, ValidationError):
        return []  # one that cannot be read is found out again


def write_set_aside(folder: RunFolder, entries: Sequence[SetAside]) -> None:
    create_folder(folder.problems_aside.parent)
    text = json.dumps([entry.model_dump() for entry in entries], indent=1, ensure_ascii=False)
    write_atomically(folder.problems_aside, text.encode())


def where(trial: Trial) -> str:
    """Equal for trials that ask the same problems of the same model."""
    return fingerprint([trial.checkpoint.identity, trial.data_identity])


def pairing(trial: Trial) -> str:
    """Equal for trials that are paired problem by problem: the engine, the task with its data, seed and repeat."""
    settings = (part.model_dump(mode="json", exclude=set(NO_ANSWER)) for part in (trial.engine, trial.task))
    return fingerprint([where(trial), trial.model.dtype, *settings, trial.seed, trial.repeat])


@dataclass(frozen=True, slots=True)
class Trouble:
    """The files of one call."""

    folder: RunFolder
    path: Path

    @classmethod
    def of(cls, folder: RunFolder, point: str, call: str) -> Trouble:
        """`point`: its fingerprint; `call`: the number of a block, or POINT."""
        return cls(folder, folder.trouble_path(point, call))

    # ------------------------------------------------------------ what the driver writes

    def suspicion(self) -> Suspicion:
        try:
            stored = json.loads((self.path / "deaths.json").read_bytes())
            return Suspicion(deaths=int(stored["deaths"]), suspects=_keys(stored["suspects"]))
        except (OSError, ValueError, LookupError, TypeError):
            return Suspicion()

    def write_suspicion(self, suspicion: Suspicion) -> None:
        create_folder(self.path)
        write_atomically(self.path / "deaths.json", json.dumps(asdict(suspicion)).encode())

    def in_flight(self, deaths: int) -> Flight | None:
        """What the engine said that it asks, after so many deaths; an older word is none."""
        try:
            stored = json.loads((self.path / "flight.json").read_bytes())
            told = {name: bool(stored[name]) for name in ("doubted", "landed", "proven")}
            flight = Flight(keys=_keys(stored["keys"]), **told)
        except (OSError, ValueError, LookupError, TypeError):
            return None
        return flight if stored["deaths"] == deaths else None

    # ------------------------------------------------------------ what the engine writes

    @contextlib.contextmanager
    def asked(self, flight: Flight, deaths: int) -> Iterator[None]:
        """While these are asked. What raises leaves the note: it may be how the engine's death looks from here."""
        create_folder(self.path)
        note = {"deaths": deaths, **asdict(flight)}
        write_atomically(self.path / "flight.json", json.dumps(note).encode())
        yield
        self.landed()

    def landed(self) -> None:
        """Nothing is asked any more."""
        (self.path / "flight.json").unlink(missing_ok=True)

    def keep_piece(self, rules: Mapping[str, Any], runs: Mapping[str, DomainRun]) -> None:
        keys = [[domain, outcome.problem_id] for domain, run in runs.items() for outcome in run.outcomes]
        content = {
            **_header(rules),
            "domains": {domain: run_as_json(run) for domain, run in runs.items()},
        }
        create_folder(self.path)
        write_atomically(self.path / f"{fingerprint([rules, keys])}.piece.json", json.dumps(content).encode())

    def pieces(self, rules: Mapping[str, Any]) -> list[dict[str, DomainRun]]:
        """Answers under just these rules that an engine gave before it died, each problem once."""
        found, seen = [], set[Key]()
        for path in self._pieces():
            try:
                stored = json.loads(path.read_bytes())
                if any(stored[key] != value for key, value in _header(rules).items()):
                    continue
                runs = {domain: run_from_json(part) for domain, part in stored["domains"].items()}
            except (OSError, ValueError, LookupError, TypeError, AttributeError):
                continue  # it is asked again
            keys = {(domain, outcome.problem_id) for domain, run in runs.items() for outcome in run.outcomes}
            if not keys & seen:
                seen |= keys
                found.append(runs)
        return found

    def over(self) -> None:
        """The call's answers are kept elsewhere: its pieces are not needed any more."""
        for path in self._pieces():
            path.unlink(missing_ok=True)

    def _pieces(self) -> list[Path]:
        return sorted(self.path.glob("*.piece.json")) if self.path.is_dir() else []


def _header(rules: Mapping[str, Any]) -> dict[str, Any]:
    return {"schema_version": OUTCOMES_VERSION, "policy": dict(rules)}


def _keys(stored: Any) -> tuple[Key, ...]:
    return tuple((str(domain), str(name)) for domain, name in stored)
