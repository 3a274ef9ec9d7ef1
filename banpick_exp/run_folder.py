"""A run's folder: the only owner of its paths and of the atomic write.

    <output_dir>/<sweep>/<run>/
      run.json                                the sweep, its models and data (`Manifest`)
      points/<fingerprint>.json               one record a point, points/<fingerprint>.outcomes.parquet beside it
      checked/                                digests of records that were checked when they were written
      blocks/<fingerprint>.<n>.json           answers not yet a point
      trouble/                                what broke engines, where something did
      points.parquet guards.parquet report.html *.png bill.json     at the end
    <output_dir>/calibrations, <output_dir>/solved          shared by all sweeps
    <output_dir>/calibrations/<fingerprint>.blocks          of a calibration that is not added up yet

The files are the truth about a run: resume trusts them, reports and W&B are drawn from them. So a record is either
complete on disk or absent, and one that does not hold together is never trusted: who reads leaves it out, who computes
it again sets it aside. Paths are names, never patterns: files are opened here and only then handed to a reader. Imports
nothing heavy.
"""

from __future__ import annotations

import contextlib
import errno
import io
import json
import os
import socket
import tempfile
import time
import uuid
from collections.abc import Callable, Container, Iterable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, ValidationError

from banpick_exp.config import suggestion
from banpick_exp.errors import CannotWrite, UserError
from banpick_exp.records import (
    OUTCOME_COLUMNS,
    REQUIRED_COLUMNS,
    SEALED_SINCE,
    CorruptRecord,
    MissingOutcomes,
    Outcome,
    PointRecord,
    count_problems,
    digest,
    digest_of_json,
    outcomes_frame,
    read_checked_record,
    read_record,
    sealed,
    wrong_numbers,
    wrong_version,
)
from banpick_exp.remembered import read_remembered, remembered

if TYPE_CHECKING:
    from collections.abc import Sequence

    import polars as pl  # at run time inside the functions: planning imports this module and must stay light

MANIFEST = "run.json"
MANIFEST_VERSION = 1
MANIFEST_SEAL = "manifest_sha256"
"""Key of `run.json` that is no part of the manifest: SHA-256 of the rest, canonically."""
POINTS = "points"
REPORT = "report.html"
ASIDE = ".corrupt"
"""Behind the name of a record that was set aside."""
HALF = ".tmp"
"""Behind the name of a file that is being written; it begins with a dot."""
PROBED_BYTES = 4096
FILE_MODE, FOLDER_MODE = 0o664, 0o775
"""Before the umask, which takes more away: also where it takes nothing (0, in some containers), nobody else writes."""


def write_atomically(path: Path, data: bytes, lost: str = "") -> None:
    """Put `data` at `path` so that the path never shows half of it, and so that it survives a power cut.

    Raises CannotWrite, and leaves nothing behind. `lost`: what the error says that is then not kept.
    """
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}{HALF}")
    try:
        with open(temporary, "xb", opener=opener) as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException as error:
        with contextlib.suppress(OSError):  # a folder that became read-only keeps it: `remove_half_written`
            temporary.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise CannotWrite.of(error, path, lost) from None
        raise
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)  # the rename itself lives in the folder
    finally:
        os.close(folder)


def opener(name: str, flags: int) -> int:
    """For `open`: what is made is not for everybody to write, whatever the umask."""
    return os.open(name, flags, FILE_MODE)


def create_folder(path: Path) -> None:
    """A folder with those above it, each for its owner; one that is there stays as it is."""
    for folder in reversed([path, *path.parents]):
        if not folder.is_dir():
            folder.mkdir(FOLDER_MODE, exist_ok=True)  # `parents=True` would give those above the widest mode


def read_table(path: Path) -> pl.DataFrame:
    """One Parquet file, by its very name: Polars would take brackets and stars in a path for a pattern.

    Raises OSError where it cannot be opened, ValueError where it is not Parquet.
    """
    return _table(path.read_bytes(), path.name)


def _table(data: bytes, name: str) -> pl.DataFrame:
    import polars as pl

    try:
        return pl.read_parquet(io.BytesIO(data))
    # Damage makes Polars panic too, and a panic is no Exception.
    except (pl.exceptions.PolarsError, pl.exceptions.PanicException) as error:
        raise ValueError(f"{name} is not readable as Parquet ({error})") from error


class DamagedManifest(UserError):
    """`run.json` is there and is not what was written."""


class Candidate(BaseModel):
    """Of search=select: one point that dev may choose, and the same on the typed split."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    group: str
    """Dev chooses one of each."""
    label: str
    dev: str
    """Fingerprint."""
    test: str
    """Fingerprint."""


class Manifest(BaseModel):
    """`run.json`: which run this is. A resumed run must agree in sweep, models, tasks, search and set-ups."""

    model_config = ConfigDict(frozen=True, extra="ignore", protected_namespaces=())

    schema_version: int = MANIFEST_VERSION
    sweep: str | None = None
    models: dict[str, str] = {}
    """Identity of each checkpoint -> its name."""
    tasks: dict[str, str] = {}
    """Identity of each task's data -> its name."""
    search: str = "grid"
    """What a manifest that does not name its search means."""
    command: str = ""
    setups: tuple[dict[str, Any], ...] = ()
    """What its points are asked with (`setups.Setup`), each once; empty in manifests of old."""
    candidates: tuple[Candidate, ...] = ()
    """What dev chooses from under search=select, in the order of the space; empty under any other."""


class Cost(BaseModel):
    """What a run takes, by an estimate or as it was spent. Seconds of phases are those of engines, added up."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    wall_seconds: float
    gpu_hours: float
    """Of GPU engines, from the start of each to its end."""
    cpu_hours: float
    """Core-hours of CPU engines."""
    engine_loads: int
    load_seconds: float
    calibration_seconds: float
    answer_seconds: float
    time_seconds: float
    """Of the clock that compares a policy with stock."""
    tokens: int
    """Generated by answers."""


class Bill(BaseModel):
    """`bill.json`: what a run was estimated to cost and what it cost, all its drivers together, as its last one left
    it."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    schema_version: int = 1
    engines: int
    """Side by side, of one kind: what the estimate is for."""
    points: int
    """Planned: what the estimate is for."""
    recorded: int
    """Those that were paid for."""
    estimated: Cost
    spent: Cost


@dataclass(frozen=True, slots=True)
class LeftOut:
    """A record that reading a run left out; its files are as they were."""

    file: Path
    """The JSON."""
    reason: str
    """What is wrong, in one line."""
    whole: bool
    """Nothing is wrong with what it says: its outcomes are not there."""


@dataclass(frozen=True, slots=True)
class Points:
    """All points of a run, read once."""

    records: list[PointRecord]
    """The trustworthy ones, in the order of their file names."""
    outcomes: dict[str, pl.DataFrame]
    """By fingerprint, of all but failed ones: what `analysis` takes."""
    left_out: list[LeftOut]


@dataclass(frozen=True, slots=True)
class RunFolder:
    """`<output_dir>/<sweep>/<run>`: where everything of one run lies."""

    path: Path

    # ------------------------------------------------------------ paths

    @property
    def name(self) -> str:
        """`<sweep>/<run>`."""
        return "/".join(self.path.resolve().parts[-2:])

    @property
    def points(self) -> Path:
        return self.path / POINTS

    @property
    def checked(self) -> Path:
        """Digests of records that were checked when they were written, a file a process that wrote some."""
        return self.path / "checked"

    @property
    def report(self) -> Path:
        return self.path / REPORT

    @property
    def calibrations(self) -> Path:
        """Shared by all sweeps of the output folder."""
        return self.path.parent.parent / "calibrations"

    @property
    def solved(self) -> Path:
        """Knobs that were solved for a budget, shared like calibrations."""
        return self.path.parent.parent / "solved"

    @property
    def progress(self) -> Path:
        """How far a calibration is: written by its engine, read by the driver."""
        return self.path / "progress.json"

    @property
    def bill_path(self) -> Path:
        """What the run cost beside what it was estimated to."""
        return self.path / "bill.json"

    @property
    def lock(self) -> Path:
        """Who computes this run now; there while a driver does."""
        return self.path / "driver.lock"

    @property
    def journal(self) -> Path:
        """The study of search=optuna."""
        return self.path / "optuna.log"

    @property
    def engine_log(self) -> Path:
        """What vLLM and torch wrote while an engine was loaded in the driver's process."""
        return self.path / "engine.log"

    @property
    def events(self) -> Path:
        """What happened in this run, a line a transition."""
        return self.path / "events.jsonl"

    @property
    def stop_request(self) -> Path:
        """There where somebody asked the driver to stop after what is running."""
        return self.path / "stop.request"

    @property
    def logs(self) -> Path:
        """What engines wrote in processes of their own."""
        return self.path / "logs"

    def log_path(self, engine: str) -> Path:
        return self.logs / f"{engine}.log"

    def record_path(self, fingerprint: str) -> Path:
        return self.points / f"{fingerprint}.json"

    def outcomes_path(self, fingerprint: str) -> Path:
        return self.points / f"{fingerprint}.outcomes.parquet"

    def block_path(self, fingerprint: str, number: int) -> Path:
        return self.path / "blocks" / f"{fingerprint}.{number}.json"

    @property
    def problems_aside(self) -> Path:
        """Problems of this run that break engines."""
        return self.path / "trouble" / "set_aside.json"

    def trouble_path(self, fingerprint: str, call: str) -> Path:
        """What is known of a call that engines died under: a folder, there where one did."""
        return self.path / "trouble" / f"{fingerprint}.{call}"

    def trace_path(self, name: str) -> Path:
        """The whole trace of what went wrong with a point or an engine."""
        return self.path / "errors" / f"{name}.txt"

    def pulse_path(self, engine: str) -> Path:
        """Signs of life of an engine's process (`cluster.pulse`)."""
        return self.path / "engines" / f"{engine}.json"

    def figure_path(self, name: str) -> Path:
        """A figure for papers; the names are in `report.figures.names`."""
        return self.path / f"{name}.png"

    @property
    def mirror(self) -> Path:
        """W&B's own files, and the list of what was mirrored."""
        return self.path / "wandb"

    def table_path(self, name: str) -> Path:
        """`points`, `guards` or `repeats`, as Parquet."""
        return self.path / f"{name}.parquet"

    # ------------------------------------------------------------ points

    def write_point(self, record: PointRecord, outcomes: Sequence[Outcome] | None) -> Path:
        """Write one finished point, sealed, so that a crash at any moment leaves either the whole record or none.

        The outcomes go first and the JSON last, each to a temporary file that is flushed to disk and then renamed: once
        the JSON exists, everything it stands for exists.

        Args:
            outcomes: one a problem (and sample); None for a failed point.

        Returns: the path of the JSON.
        Raises: ValueError for a record that `read_point` would refuse; CannotWrite (disk full, no permission) with the
            path and what it means for the run. In both cases no record is left behind.
        """
        frame = None if outcomes is None else outcomes_frame(outcomes)
        path = self.record_path(record.fingerprint)
        table = None if frame is None else _parquet(frame)
        # allow_nan=False: NaN is not JSON, and a metric that is not a number is a bug upstream, not a result.
        plain = record.plain() if record.schema_version < SEALED_SINCE else sealed(record.plain(), table)
        text = json.dumps(plain, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
        _check_outcomes(record, frame)
        lost = f"point {record.fingerprint} ({record.label}) is not recorded"
        try:
            create_folder(self.points)
        except OSError as error:
            raise CannotWrite.of(error, path, lost) from None
        if table is not None:
            write_atomically(self.outcomes_path(record.fingerprint), table, lost)
        write_atomically(path, text.encode(), lost)
        self._note_checked(record, text.encode())
        return path

    def read_point(self, fingerprint: str) -> PointRecord:
        """Read one record and everything that makes it trustworthy.

        Raises: CorruptRecord when its own content is wrong (it does not parse, is of a version we do not read, has
            another name than its file, lacks metrics, was edited, or has outcomes that are not its own);
            MissingOutcomes where their file is not there; OSError when a file cannot be opened, FileNotFoundError when
            there is none.
        """
        return self._read(fingerprint)[0]

    def _read(self, fingerprint: str) -> tuple[PointRecord, pl.DataFrame | None]:
        """As `read_point`, with the outcomes of a point that did not fail."""
        path = self.record_path(fingerprint)
        content = path.read_bytes()
        try:
            record, seal = read_record(content)
            if record.fingerprint != fingerprint:
                raise ValueError(f"the fingerprint {record.fingerprint!r} is not the file name {fingerprint!r}")
            outcomes = None if record.status == "failed" else self._whole_outcomes(fingerprint, seal)
            try:
                _check_outcomes(record, outcomes)
            except ValueError as error:
                raise ValueError(f"edited or damaged: {error}") from None
        except ValueError as error:
            raise CorruptRecord(f"{path}: {error}") from error
        return record, outcomes

    def _read_or_leave_out(self, path: Path) -> tuple[PointRecord, pl.DataFrame | None] | LeftOut:
        try:
            return self._read(path.stem)
        except CorruptRecord as error:
            return LeftOut(path, str(error.__cause__), whole=False)
        except MissingOutcomes as error:
            return LeftOut(path, f"{Path(error.filename).name} is not there", whole=True)

    def read_points(self) -> Points:
        """All trustworthy points with their outcomes, each file read once, and what was left out; changes nothing.

        A missing folder holds no points. Raises OSError for a file that cannot be opened: that says nothing about its
        content.
        """
        points = Points([], {}, [])
        for found in map(self._read_or_leave_out, self.record_files()):
            if isinstance(found, LeftOut):
                points.left_out.append(found)
                continue
            record, outcomes = found
            points.records.append(record)
            if outcomes is not None:
                points.outcomes[record.fingerprint] = outcomes
        return points

    def load_points(
        self, keep: Callable[[PointRecord], PointRecord] | None = None
    ) -> tuple[list[PointRecord], list[LeftOut]]:
        """As `read_points`, without keeping the outcomes.

        Files that are byte for byte those that `write_point` checked are not counted again: a run of 10,000 points is
        resumed in seconds. `keep`: what of a record is kept, for a driver that must not hold all that was counted.
        """
        kept = keep or (lambda record: record)

        def read(content: bytes) -> tuple[PointRecord, str | None]:
            record, outcomes = read_checked_record(content)
            return kept(record), outcomes

        return self._load(read, kept)

    def load_remembered(self) -> tuple[list[PointRecord], list[LeftOut]]:
        """As `load_points`, of each record what a driver keeps of it: a run of 10,000 points is resumed in seconds."""
        return self._load(read_remembered, remembered)

    def _load(
        self,
        read_checked: Callable[[bytes], tuple[PointRecord, str | None]],
        keep: Callable[[PointRecord], PointRecord],
    ) -> tuple[list[PointRecord], list[LeftOut]]:
        """`read_checked`: what is kept of a record, and the digest of its outcomes, from JSON that was checked when it
        was written; `keep`: what is kept of any other one."""
        records: list[PointRecord] = []
        left_out: list[LeftOut] = []
        checked = self._checked()
        for path in self.record_files():
            record = self._read_checked(path.stem, checked.get(path.stem), read_checked)
            if record is None:
                found = self._read_or_leave_out(path)
                if isinstance(found, LeftOut):
                    left_out.append(found)
                    continue
                record = keep(found[0])
            records.append(record)
        return records, left_out

    def _note_checked(self, record: PointRecord, content: bytes) -> None:
        """Note that a record of this very content passed the checks. A note that is lost costs who reads some time.

        A process has a file of its own: on a shared disk, two that append to one would overwrite each other.
        """
        if record.schema_version < SEALED_SINCE:
            return
        with contextlib.suppress(OSError):  # the point is whole without it
            self.checked.mkdir(FOLDER_MODE, exist_ok=True)
            with open(self.checked / f"{socket.gethostname()}-{os.getpid()}.txt", "a", opener=opener) as file:
                file.write(f"{record.fingerprint} {digest(content)}\n")

    def _checked(self) -> dict[str, set[str]]:
        """Fingerprint -> digests of the records that were checked when they were written."""
        noted: dict[str, set[str]] = {}
        with contextlib.suppress(OSError):
            for path in self.checked.iterdir():
                for line in path.read_text(errors="replace").splitlines():
                    name, _, of = line.partition(" ")
                    noted.setdefault(name, set()).add(of)
        return noted

    def _read_checked(
        self,
        fingerprint: str,
        noted: Container[str] | None,
        read: Callable[[bytes], tuple[PointRecord, str | None]],
    ) -> PointRecord | None:
        """A record that is, with its outcomes, what was checked when it was written; None where all must be checked."""
        if noted is None:
            return None
        try:
            content = self.record_path(fingerprint).read_bytes()
            if digest(content) not in noted:
                return None
            record, seal = read(content)
            if seal is not None and digest(self.outcomes_path(fingerprint).read_bytes()) != seal:
                return None
        except (OSError, ValueError, LookupError):
            return None  # said by who checks all
        return record if record.fingerprint == fingerprint else None

    def set_aside(self, left_out: LeftOut) -> None:
        """Rename a record that is wrong in its content to `x.json.corrupt`: its point counts as not run.

        Its bytes are kept to look at; its outcomes stay. For who runs the point again, not for who only reads.
        """
        with contextlib.suppress(FileNotFoundError):  # another driver was quicker
            left_out.file.rename(left_out.file.with_name(f"{left_out.file.name}{ASIDE}"))

    def aside_files(self) -> list[Path]:
        """Records that were set aside, by name."""
        return sorted(path for path in self.points.iterdir() if path.suffix == ASIDE) if self.points.is_dir() else []

    def record_files(self) -> list[Path]:
        """The JSON files of finished points, by name."""
        if not self.points.is_dir():
            return []
        names = sorted(name for name in os.listdir(self.points) if name.endswith(".json") and name[0] != ".")
        return [self.points / name for name in names]

    def points_begun(self) -> set[str]:
        """Fingerprints of all points of which a record or a block is there."""
        blocks = self.path / "blocks"
        names = [path.name for path in (*self.record_files(), *(blocks.iterdir() if blocks.is_dir() else ()))]
        return {name.partition(".")[0] for name in names if name[0] != "."}

    def outcomes(self, fingerprint: str) -> pl.DataFrame:
        """Per-problem outcomes of one point: the columns of `Outcome` it has; one row a problem (and sample)."""
        return read_table(self.outcomes_path(fingerprint))

    def all_outcomes(self, records: Iterable[PointRecord]) -> dict[str, pl.DataFrame]:
        """fingerprint -> outcomes of every record that has them (all but failed ones): what `analysis` takes."""
        return {r.fingerprint: self.outcomes(r.fingerprint) for r in records if r.status != "failed"}

    def _whole_outcomes(self, fingerprint: str, seal: str | None) -> pl.DataFrame:
        """Outcomes of a point; `seal`: their digest, None before version 3.

        Raises: ValueError where the file is not what we wrote, MissingOutcomes where there is none.
        """
        path = self.outcomes_path(fingerprint)
        if not path.exists() and not path.is_symlink():  # a link into the void says nothing about the record
            raise MissingOutcomes(errno.ENOENT, "the outcomes of a finished point are not there", str(path))
        data = path.read_bytes()
        if seal is not None and digest(data) != seal:
            raise ValueError(f"{path.name} is edited or damaged, or of another point: the record has another digest")
        frame = _table(data, path.name)  # whole: a file cut in the middle can still have a readable footer elsewhere
        columns = frame.columns
        if not set(REQUIRED_COLUMNS) <= set(columns) <= set(OUTCOME_COLUMNS):
            raise ValueError(f"{path.name} has the columns {', '.join(columns)}")
        return frame

    # ------------------------------------------------------------ the run

    def unwritable(self) -> CannotWrite | None:
        """Why nothing can be kept in this folder now; None where a small file can. Leaves nothing behind."""
        probe = self.path / f".probe.{uuid.uuid4().hex}{HALF}"
        try:
            write_atomically(probe, bytes(PROBED_BYTES))
            probe.unlink()
        except CannotWrite as error:
            error.filename = str(self.path)
            return error
        except OSError as error:
            return CannotWrite.of(error, self.path)
        return None

    def remove_half_written(self, older_than: float = 0.0) -> None:
        """Remove what a process left that was killed while it wrote. For the driver that holds the run.

        `older_than`: seconds by this machine's clock, of files that nobody can be writing any more.
        """
        for folder in (self.path, *(self.path / name for name in ("points", "blocks", "errors", "engines", "trouble"))):
            with contextlib.suppress(OSError):
                for path in folder.iterdir():
                    if path.name[0] == "." and path.suffix == HALF and time.time() - path.stat().st_mtime >= older_than:
                        path.unlink()

    def manifest(self) -> Manifest:
        """What `run.json` says; an empty one where there is none.

        Raises DamagedManifest for one that was cut, edited or is no manifest, UserError where it cannot be read.
        """
        path = self.path / MANIFEST
        if not path.is_file():
            return Manifest()
        try:
            plain = json.loads(path.read_bytes())
            seal = plain.pop(MANIFEST_SEAL, None)  # those of old have none
            if seal is not None and seal != digest_of_json(plain):
                raise ValueError(f"its content is not that of its {MANIFEST_SEAL}")
            return Manifest.model_validate(plain)
        except OSError as error:
            raise UserError(f"{path} cannot be read ({error}): nobody can say which sweep it is.") from None
        except (ValueError, TypeError, AttributeError, RecursionError) as error:
            reason = error.errors()[0]["msg"] if isinstance(error, ValidationError) else str(error)
            raise DamagedManifest(
                f"{path} is damaged ({reason}): nobody can say which sweep it is. The points are as they were: the"
                " run's own command with resume goes on with them where they are all its own, and writes the file anew."
            ) from None

    def check_manifest(self, expected: Manifest) -> None:
        """UserError unless the run was begun with the same sweep, models, tasks and search."""
        stored = self.manifest()
        pairs = (
            ("of the sweep", stored.sweep, expected.sweep),
            ("of the model(s)", stored.models, expected.models),
            ("on the data of", stored.tasks, expected.tasks),
            ("with search =", stored.search, expected.search),
        )
        for phrase, found, wanted in pairs:
            if _identity(found) != _identity(wanted):
                raise UserError(
                    f"resume={self.path} holds a run {phrase} {_named(found)}, but this command is {phrase}"
                    f" {_named(wanted)}: their points must not be mixed. Leave resume out, or repeat that run's own"
                    f" command with resume: {stored.command or 'it is not recorded'}"
                )

    def write_manifest(self, manifest: Manifest) -> None:
        """Creates the folder with its `run.json`; a manifest that is there already stays, and a damaged one gives way.

        Raises CannotWrite.
        """
        path = self.path / MANIFEST
        try:
            create_folder(self.path)
            if path.exists():
                try:
                    self.manifest()
                    return
                except DamagedManifest:
                    path.replace(path.with_name(f"{MANIFEST}{ASIDE}"))
        except OSError as error:
            raise CannotWrite.of(error, path) from None
        plain = manifest.model_dump(mode="json")
        text = json.dumps({**plain, MANIFEST_SEAL: digest_of_json(plain)}, indent=2, sort_keys=True) + "\n"
        write_atomically(path, text.encode())

    def bill(self) -> Bill | None:
        """What the run cost; None where no driver came to its end. A damaged one is none: no result hangs on it."""
        try:
            return Bill.model_validate_json(self.bill_path.read_bytes())
        except (OSError, ValidationError):
            return None

    def write_bill(self, bill: Bill) -> None:
        """Replace the bill. Raises OSError where it cannot be written."""
        write_atomically(self.bill_path, (bill.model_dump_json(indent=1) + "\n").encode())

    def write_trace(self, name: str, trace: str) -> Path:
        """Keep the whole trace of an error whose reason is one line; returns its path."""
        path = self.trace_path(name)
        create_folder(path.parent)
        write_atomically(path, trace.encode(errors="replace"))
        return path

    def write_table(self, name: str, frame: pl.DataFrame) -> Path:
        """Write one table of the run as Parquet, atomically; returns its path."""
        path = self.table_path(name)
        write_atomically(path, _parquet(frame))
        return path


def new_run_dir(output_dir: str, sweep: str, now: datetime) -> Path:
    """`<output_dir>/<sweep>/<timestamp>`, absolute, of a run that does not exist yet."""
    parent = _runs_of(output_dir, sweep)
    name = now.strftime("%Y%m%d-%H%M%S")
    candidate, count = parent / name, 1
    while os.path.lexists(candidate):
        count += 1
        candidate = parent / f"{name}-{count}"
    return candidate


def _runs_of(output_dir: str, sweep: str) -> Path:
    """`<output_dir>/<sweep>`, absolute; UserError for an output_dir that is no name of a folder."""
    if not output_dir.strip():
        raise UserError(
            f"output_dir={output_dir!r} names no folder: every result would land in whatever folder the command is"
            " typed in. Type output_dir=. for that one, or leave output_dir out for outputs/."
        )
    if "\0" in output_dir:
        raise UserError(f"output_dir={output_dir!r} holds a zero byte, which no folder's name can. Type another.")
    parent = Path(output_dir).expanduser().absolute() / sweep
    try:
        os.lstat(parent)
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            raise UserError(
                f"output_dir={_shortened(output_dir)} is longer than this file system allows ({len(output_dir)}"
                " characters): no result could be written there. Type output_dir=FOLDER with a shorter one."
            ) from None
    return parent


def _shortened(text: str, most: int = 60) -> str:
    return text if len(text) <= most else f"{text[: most - 3]}..."


def find_run_dir(resume: str, output_dir: str, sweep: str) -> Path:
    """The folder `resume` names: a path, or the name of a run of this sweep. UserError where there is none."""
    runs = _runs_of(output_dir, sweep)
    for folder in (runs / resume, Path(resume).expanduser().absolute()):
        if os.path.isdir(folder):  # of a name that is too long too: that is no folder
            if (folder / MANIFEST).is_file():
                return folder
            raise UserError(
                f"resume={resume} is the folder {folder}, which has no {MANIFEST}: it is no run, and its files would be"
                " mixed up with ours. Leave resume out to begin a new run."
            )
    known = sorted((path.name for path in _folders(runs) if (path / MANIFEST).is_file()), reverse=True)
    listed = f"Runs of {sweep}: {', '.join(known[:5])}." if known else f"There is no run of {sweep} in {runs} yet."
    raise UserError(
        f"resume={resume} is no folder and no run: there is nothing to continue."
        f" {suggestion(resume, known, 'resume=')}{listed}"
    )


def _folders(parent: Path) -> list[Path]:
    return sorted(path for path in parent.iterdir() if path.is_dir()) if parent.is_dir() else []


def check_writable(folder: Path) -> None:
    """UserError unless a file can be written in `folder`; what had to be created for the try is removed again."""
    created = []
    try:
        for path in [*reversed(folder.parents), folder]:
            if not path.is_dir():
                path.mkdir(FOLDER_MODE)
                created.append(path)
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b"banpick")
    except OSError as error:
        raise UserError(
            f"output_dir: {folder} cannot be written ({error.strerror or error}): every result would be lost."
            " Type output_dir=FOLDER with a folder of yours."
        ) from None
    finally:
        for path in reversed(created):
            with contextlib.suppress(OSError):  # another run began to write there meanwhile
                path.rmdir()


def _identity(value: object) -> object:
    """What counts of it: a renamed model is the same one."""
    return set(value) if isinstance(value, dict) else value


def _named(value: object) -> str:
    return (
        ", ".join(f"{name} ({identity})" for identity, name in value.items()) if isinstance(value, dict) else str(value)
    )


def _check_outcomes(record: PointRecord, outcomes: pl.DataFrame | None) -> None:
    """ValueError unless a record and its outcomes are of one version and tell the same numbers."""
    if record.metrics is None:
        if outcomes is not None:
            raise ValueError("a failed point has outcomes")
        return
    if outcomes is None:
        raise ValueError(f"a point with status {record.status} has no outcomes")
    if wrong := wrong_version(record.schema_version, outcomes):
        raise ValueError(wrong)
    count_problems(outcomes)
    if wrong := wrong_numbers(record.metrics, outcomes):
        raise ValueError(wrong)


def _parquet(frame: pl.DataFrame) -> bytes:
    buffer = io.BytesIO()  # and not a file: polars would turn a full disk into an error of its own
    frame.write_parquet(buffer)
    return buffer.getvalue()
