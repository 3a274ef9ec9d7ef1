"""A run's folder: its records and everything else that a run leaves, written whole and read back.

    <output_dir>/<sweep>/<run>/
      run.json                                the sweep, its models and data (`Manifest`)
      points/<fingerprint>.json               one record a point, points/<fingerprint>.outcomes.parquet beside it
      checked/                                digests of records that were checked when they were written
      blocks/<fingerprint>.<n>.json           answers not yet a point
      trouble/                                what broke engines, where something did
      points.parquet guards.parquet verdicts.parquet found.json report.html *.png bill.json     at the end
      followed/<fingerprint>.safetensors      what the figures read of a calibration
      paper/                                 figures and tables for a paper, where `report --paper` was typed
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
import json
import os
import socket
import time
from collections.abc import Callable, Container, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import ValidationError

from banpick_exp.costs import Bill
from banpick_exp.disk import (
    ASIDE,
    FOLDER_MODE,
    HALF,
    create_folder,
    opener,
    parquet_bytes,
    read_table,
    table_in,
    unwritable,
    write_atomically,
)
from banpick_exp.errors import CannotWrite
from banpick_exp.found import Found
from banpick_exp.manifest import MANIFEST, Manifest, check_same_run, read_manifest, write_manifest
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
    outcomes_frame,
    read_checked_record,
    read_record,
    sealed,
    wrong_numbers,
    wrong_version,
)
from banpick_exp.remembered import read_remembered, remembered
from banpick_exp.run_paths import RunPaths

if TYPE_CHECKING:
    from collections.abc import Sequence

    import polars as pl  # at run time inside the functions: planning imports this module and must stay light


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
class RunFolder(RunPaths):
    """A run's folder, read and written."""

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
        table = None if frame is None else parquet_bytes(frame)
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
            record = self._read_checked(path, checked.get(path.stem), read_checked)
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
        path: Path,
        noted: Container[str] | None,
        read: Callable[[bytes], tuple[PointRecord, str | None]],
    ) -> PointRecord | None:
        """A record that is, with its outcomes, what was checked when it was written; None where all must be checked."""
        if noted is None:
            return None
        try:
            content = path.read_bytes()
            if digest(content) not in noted:
                return None
            record, seal = read(content)
            if seal is not None and digest(self.outcomes_path(path.stem).read_bytes()) != seal:
                return None
        except (OSError, ValueError, LookupError):
            return None  # said by who checks all
        return record if record.fingerprint == path.stem else None

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
        points = self.points
        names = sorted(name for name in os.listdir(points) if name.endswith(".json") and name[0] != ".")
        return [points / name for name in names]

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
        frame = table_in(data, path.name)  # whole: a file cut in the middle can still have a readable footer elsewhere
        columns = frame.columns
        if not set(REQUIRED_COLUMNS) <= set(columns) <= set(OUTCOME_COLUMNS):
            raise ValueError(f"{path.name} has the columns {', '.join(columns)}")
        return frame

    # ------------------------------------------------------------ the run

    def unwritable(self) -> CannotWrite | None:
        """Why nothing can be kept in this folder now; None where a small file can. Leaves nothing behind."""
        return unwritable(self.path)

    def manifest(self) -> Manifest:
        """As `read_manifest`."""
        return read_manifest(self.path / MANIFEST)

    def check_manifest(self, expected: Manifest) -> None:
        """As `check_same_run`."""
        check_same_run(self.path, expected)

    def write_manifest(self, manifest: Manifest) -> None:
        """As `manifest.write_manifest`."""
        write_manifest(self.path / MANIFEST, manifest)

    def remove_half_written(self, older_than: float = 0.0) -> None:
        """Remove what a process left that was killed while it wrote. For the driver that holds the run.

        `older_than`: seconds by this machine's clock, of files that nobody can be writing any more.
        """
        names = ("points", "blocks", "errors", "engines", "trouble", "followed")
        for folder in (self.path, *(self.path / name for name in names)):
            with contextlib.suppress(OSError):
                for path in folder.iterdir():
                    if path.name[0] == "." and path.suffix == HALF and time.time() - path.stat().st_mtime >= older_than:
                        path.unlink()

    def bill(self) -> Bill | None:
        """What the run cost; None where no driver came to its end. A damaged one is none: no result hangs on it."""
        try:
            return Bill.model_validate_json(self.bill_path.read_bytes())
        except (OSError, ValidationError):
            return None

    def write_bill(self, bill: Bill) -> None:
        """Replace the bill. Raises OSError where it cannot be written."""
        write_atomically(self.bill_path, (bill.model_dump_json(indent=1) + "\n").encode())

    def found(self) -> Found | None:
        """What the run found; None where no report was written. A damaged one is none: no result hangs on it."""
        try:
            return Found.model_validate_json(self.found_path.read_bytes())
        except (OSError, ValidationError):
            return None

    def write_found(self, found: Found) -> None:
        """Replace what it found. Raises OSError where it cannot be written."""
        write_atomically(self.found_path, (found.model_dump_json(indent=1) + "\n").encode())

    def tells_all(self, path: Path) -> bool:
        """Whether a table of the run is there and was written after its last record: none came or went since."""
        try:
            return path.stat().st_mtime_ns >= self.points.stat().st_mtime_ns
        except OSError:
            return False

    def write_trace(self, name: str, trace: str) -> Path:
        """Keep the whole trace of an error whose reason is one line; returns its path."""
        path = self.trace_path(name)
        create_folder(path.parent)
        write_atomically(path, trace.encode(errors="replace"))
        return path

    def write_table(self, name: str, frame: pl.DataFrame) -> Path:
        """Write one table of the run as Parquet, atomically; returns its path."""
        path = self.table_path(name)
        write_atomically(path, parquet_bytes(frame))
        return path


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
