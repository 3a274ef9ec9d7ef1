"""One JSON record a point, its per-problem outcomes beside it, and the flat table of a run.

These files are the truth about a run: resume trusts them, reports and W&B are drawn from them. So a record is either
complete on disk or absent, and a record that does not hold together is set aside, never trusted.
"""

from __future__ import annotations

import io
import json
import os
import re
import uuid
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import polars as pl  # at run time inside the functions: planning imports this module and must stay light

SCHEMA_VERSION = 1
STATUSES = ("done", "invalid", "dropped", "failed")
"""`dropped`: stopped by a race after some of its problems; metrics and outcomes are of those, its speed is null."""
OVERALL = "overall"

RECORD_KEYS = (
    "schema_version", "fingerprint", "status", "reason", "label", "policy", "model", "engine", "task", "versions",
    "calibration", "metrics", "engagement", "timing", "command", "finished_at",
)  # fmt: skip
BUDGET_KEYS = ("target", "knob", "value", "measured", "probes", "sample_problems", "cached", "corrected")
"""Of `budget`, which only the record of a point with a solved knob has; its `policy` holds the value found."""
METRIC_KEYS = (
    "accuracy", "accuracy_ci95", "delta", "delta_ci95", "n_problems", "tokens_per_second", "speedup", "speedup_spread",
    "mean_kept", "mean_kept_by_layer", "truncated_fraction",
)  # fmt: skip
OUTCOME_COLUMNS = ("problem_id", "domain", "task", "correct", "truncated", "tokens", "answer")
OPTIONAL_OUTCOME_COLUMNS = ("sample", "repetitive")
"""`sample`: number of the answer where a problem has several; `repetitive`: the answer ends in a loop.
Records made before either was known lack them."""


class CorruptRecord(ValueError):
    """A point record that cannot be trusted; the message says what is wrong with which file."""


def write_point(points_dir: Path, record: Mapping[str, Any], outcomes: list[dict[str, Any]] | None) -> Path:
    """Write one finished point so that a crash at any moment leaves either the whole record or none.

    The outcomes go first and the JSON last, each to a temporary file in `points_dir` that is flushed to disk and then
    renamed: once the JSON exists, everything it stands for exists.

    Args:
        points_dir: `outputs/<sweep>/<run>/points`; made if missing.
        record: all of RECORD_KEYS; `schema_version` and `finished_at` (UTC, ISO 8601) are filled in when absent.
        outcomes: one dict a problem (and sample) with OUTCOME_COLUMNS and any of OPTIONAL_OUTCOME_COLUMNS; None for a
            failed point.

    Returns: the path of the JSON.
    Raises: ValueError for a record that `read_point` would refuse; OSError (disk full, no permission) with the path
        and what it means for the run. In both cases no record is left behind.
    """
    now = datetime.now(UTC).isoformat(timespec="seconds")
    record = {"schema_version": SCHEMA_VERSION, "finished_at": now, **record}
    fingerprint = str(record.get("fingerprint"))
    _check(record, fingerprint, problems=None if outcomes is None else _count_problems(_outcomes_frame(outcomes)))
    # allow_nan=False: NaN is not JSON, and a metric that is not a number is a bug upstream, not a result.
    text = json.dumps(record, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    points_dir = Path(points_dir)
    path = points_dir / f"{fingerprint}.json"
    try:
        points_dir.mkdir(parents=True, exist_ok=True)
        if outcomes is not None:
            _replace_file(outcomes_path(points_dir, fingerprint), _outcomes_parquet(outcomes))
        _replace_file(path, text.encode())
    except OSError as error:
        reason = (
            f"{error.strerror}: point {fingerprint} ({record['label']}) is not recorded. "
            "Make room or fix the folder, then run the same command with resume=<run>; finished points are kept"
        )
        raise OSError(error.errno, reason, str(path)) from error
    return path


def read_point(path: Path) -> dict[str, Any]:
    """Read one record and everything that makes it trustworthy.

    Checked: it parses, the schema version is ours, the fingerprint is the file's name, the status is known, metrics are
    complete for a done or invalid point and absent for a failed one, and the outcomes file has every problem once (or
    once a sample).

    Raises: CorruptRecord when any of that fails; FileNotFoundError when there is no such file.
    """
    path = Path(path)
    try:
        record = json.loads(path.read_bytes())
    except ValueError as error:  # includes bytes that are not UTF-8
        raise CorruptRecord(f"{path}: not readable as JSON ({error})") from error
    if not isinstance(record, dict):
        raise CorruptRecord(f"{path}: holds a {type(record).__name__}, not a record")
    try:
        outcomes = outcomes_path(path.parent, path.stem)
        problems = _problems_in(outcomes) if record.get("status") != "failed" else None
        _check(record, path.stem, problems=problems)
    except ValueError as error:
        raise CorruptRecord(f"{path}: {error}") from error
    return record


def load_points(points_dir: Path) -> tuple[list[dict[str, Any]], list[Path]]:
    """All trustworthy records of a run, in the order of their file names, and the corrupt ones it set aside.

    A corrupt `x.json` is renamed to `x.json.corrupt` (its outcomes stay), so the point counts as not run and its bytes
    are kept to look at. A missing folder holds no points.
    """
    records, set_aside = [], []
    for path in sorted(Path(points_dir).glob("*.json")):
        try:
            records.append(read_point(path))
        except CorruptRecord:
            aside = path.with_name(path.name + ".corrupt")
            os.replace(path, aside)
            set_aside.append(aside)
    return records, set_aside


def outcomes_path(points_dir: Path, fingerprint: str) -> Path:
    """Where the per-problem outcomes of a point lie."""
    return Path(points_dir) / f"{fingerprint}.outcomes.parquet"


def read_outcomes(points_dir: Path, fingerprint: str) -> pl.DataFrame:
    """Per-problem outcomes of one point: OUTCOME_COLUMNS, and what it has of the optional ones; one row a problem
    (and sample)."""
    import polars as pl

    return pl.read_parquet(outcomes_path(points_dir, fingerprint))


def load_outcomes(points_dir: Path, records: Iterable[Mapping[str, Any]]) -> dict[str, pl.DataFrame]:
    """fingerprint -> outcomes of every record that has them (done and invalid ones): what `analysis` takes."""
    found = [record["fingerprint"] for record in records if record["status"] != "failed"]
    return {fingerprint: read_outcomes(points_dir, fingerprint) for fingerprint in found}


def points_frame(records: Iterable[Mapping[str, Any]]) -> pl.DataFrame:
    """Records as one flat frame: a row for each point and domain, the first of them `overall`.

    Intervals become two columns (`accuracy_lo`, `accuracy_hi`, ...), knobs one JSON text (`knobs`); `samples` is the n
    of avg@n, `repeat` above 0 marks a repeat of another point, `budget_target` is what its knob was solved for, and
    `solved_knob` what was found (`beta=0.334`). A failed point has one row, `overall`, with null metrics. No records
    give an empty frame with the same columns.
    """
    import polars as pl

    number, text = pl.Float64, pl.String
    schema: dict[str, Any] = {
        "fingerprint": text, "status": text, "reason": text, "policy": text, "label": text, "knobs": text,
        "domain": text, "accuracy": number, "accuracy_lo": number, "accuracy_hi": number, "delta": number,
        "delta_lo": number, "delta_hi": number, "n_problems": pl.Int64, "tokens_per_second": number, "speedup": number,
        "speedup_lo": number, "speedup_hi": number, "mean_kept": number, "mean_kept_by_layer": pl.List(number),
        "truncated_fraction": number, "model": text, "calibration": text, "command": text, "finished_at": text,
        "samples": pl.Int64, "repeat": pl.Int64, "budget_target": number,
        "solved_knob": text,
    }  # fmt: skip
    rows = []
    for record in records:
        metrics = record["metrics"] or {}
        blocks = {OVERALL: metrics.get("overall"), **metrics.get("domains", {})}
        knobs = {knob: value for knob, value in record["policy"].items() if knob != "name"}
        for domain, block in blocks.items():
            row = {key: value for key, value in record.items() if key in schema}
            row |= {"policy": record["policy"]["name"], "knobs": json.dumps(knobs), "domain": domain}
            row |= {"model": str(record["model"].get("name", ""))} | _flat_metrics(block or {})
            row |= {"samples": int(record["task"].get("samples", 1)), "repeat": int(record.get("repeat") or 0)}
            spent = record.get("budget") or {"target": record["policy"].get("budget")}
            row |= {"budget_target": spent["target"]}
            row |= {"solved_knob": f"{spent['knob']}={spent['value']:g}" if "knob" in spent else None}
            rows.append(row)
    return pl.DataFrame(rows, schema=schema)


def write_parquet(run_dir: Path) -> Path:
    """Write `points.parquet` of a run (see points_frame) from its records, atomically; returns its path."""
    records, _ = load_points(Path(run_dir) / "points")
    return write_table(Path(run_dir) / "points.parquet", points_frame(records))


def write_table(path: Path, frame: pl.DataFrame) -> Path:
    """Write one frame of a run as Parquet, atomically; returns its path."""
    buffer = io.BytesIO()
    frame.write_parquet(buffer)
    _replace_file(path, buffer.getvalue())
    return path


def _flat_metrics(block: Mapping[str, Any]) -> dict[str, Any]:
    pairs = {"accuracy_ci95": "accuracy", "delta_ci95": "delta", "speedup_spread": "speedup"}
    flat: dict[str, Any] = {}
    for key in METRIC_KEYS:
        value = block.get(key)
        if key in pairs:
            low, high = value or (None, None)
            flat |= {f"{pairs[key]}_lo": low, f"{pairs[key]}_hi": high}
        else:
            flat[key] = value
    return flat


def _check(record: Mapping[str, Any], fingerprint: str, *, problems: int | None) -> None:
    """ValueError unless the record holds together; `problems` are those of its outcomes, None where there are none."""
    missing = [key for key in RECORD_KEYS if key not in record]
    if missing:
        raise ValueError(f"the record lacks {', '.join(missing)}")
    if record["schema_version"] != SCHEMA_VERSION:
        raise ValueError(f"schema_version is {record['schema_version']!r}, this version reads {SCHEMA_VERSION}")
    if record["fingerprint"] != fingerprint or not re.fullmatch(r"[0-9A-Za-z_-]{1,128}", fingerprint):
        raise ValueError(f"the fingerprint {record['fingerprint']!r} is not the file name {fingerprint!r}")
    status, metrics, policy = record["status"], record["metrics"], record["policy"]
    if status not in STATUSES:
        raise ValueError(f"status {status!r} is none of {', '.join(STATUSES)}")
    if not isinstance(policy, dict) or "name" not in policy:
        raise ValueError("the policy has no name")
    if missing := [key for key in BUDGET_KEYS if key not in (record.get("budget") or BUDGET_KEYS)]:
        raise ValueError(f"its budget lacks {', '.join(missing)}")
    if status == "failed":
        if metrics is not None or problems is not None:
            raise ValueError("a failed point has metrics or outcomes")
        return
    if not isinstance(metrics, dict) or not isinstance(metrics.get("domains"), dict):
        raise ValueError(f"a point with status {status} has no metrics")
    for name, block in {OVERALL: metrics.get("overall"), **metrics["domains"]}.items():
        lacking = [key for key in METRIC_KEYS if not isinstance(block, dict) or key not in block]
        if lacking:
            raise ValueError(f"the metrics of {name} lack {', '.join(lacking)}")
    if problems is None:
        raise ValueError(f"a point with status {status} has no outcomes")
    if problems != metrics["overall"]["n_problems"]:
        raise ValueError(f"outcomes of {problems} problems for n_problems={metrics['overall']['n_problems']}")


def _outcomes_frame(outcomes: list[dict[str, Any]]) -> pl.DataFrame:
    import polars as pl

    types = (pl.String, pl.String, pl.String, pl.Boolean, pl.Boolean, pl.Int32, pl.String)
    schema: dict[str, Any] = dict(zip(OUTCOME_COLUMNS, types, strict=True))
    optional = dict(zip(OPTIONAL_OUTCOME_COLUMNS, (pl.Int32, pl.Boolean), strict=True))
    schema |= {name: kind for name, kind in optional.items() if outcomes and name in outcomes[0]}
    return pl.DataFrame(outcomes, schema=schema)


def _outcomes_parquet(outcomes: list[dict[str, Any]]) -> bytes:
    buffer = io.BytesIO()  # and not a file: polars would turn a full disk into an error of its own
    _outcomes_frame(outcomes).write_parquet(buffer)
    return buffer.getvalue()


def _problems_in(path: Path) -> int | None:
    """Problems of an outcomes file, None where there is no file; ValueError where it is not what we write."""
    import polars as pl

    if not path.exists():
        return None
    try:
        frame = pl.read_parquet(path)  # whole: a file cut in the middle can still have a readable footer elsewhere
    except (pl.exceptions.PolarsError, OSError) as error:
        raise ValueError(f"{path.name} is not readable as Parquet ({error})") from error
    known = tuple(name for name in frame.columns if name not in OPTIONAL_OUTCOME_COLUMNS)
    if known != OUTCOME_COLUMNS:
        raise ValueError(f"{path.name} has the columns {', '.join(frame.columns)}")
    return _count_problems(frame)


def _count_problems(outcomes: pl.DataFrame) -> int:
    """How many problems were answered; ValueError where one was answered twice under the same number."""
    problem = ["domain", "problem_id"]
    answer = [*problem, "sample"] if "sample" in outcomes.columns else problem
    if not outcomes.select(answer).is_unique().all():
        raise ValueError(f"outcomes repeat a problem: ({', '.join(answer)}) must be unique")
    return outcomes.select(problem).n_unique()


def _replace_file(path: Path, data: bytes) -> None:
    """Put `data` at `path` so that the path never shows half of it, and so that it survives a power cut."""
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        with open(temporary, "xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)  # the rename itself lives in the folder
    finally:
        os.close(folder)
