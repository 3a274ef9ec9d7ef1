"""What a record says of its point before anything was measured."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

from banpick_exp.cluster.record_of import record_of
from banpick_exp.records import SCHEMA_VERSION
from banpick_exp.sweep.plan import plan_sweep


def test_version_and_time_are_filled_in(tmp_path: Path) -> None:
    point = plan_sweep(["policy=none", f"output_dir={tmp_path}", "dry_run=true"]).points[0]
    begin = datetime.now(UTC).replace(microsecond=0)
    record = record_of(point, "typed", status="failed", reason="not run")
    assert record.schema_version == SCHEMA_VERSION and record.finished_at.endswith("+00:00")
    assert begin <= datetime.fromisoformat(record.finished_at) <= datetime.now(UTC)
