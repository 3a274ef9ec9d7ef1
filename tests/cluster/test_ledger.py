"""What a driver that resumes does with records it cannot trust."""

from __future__ import annotations

import io
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

from rich.console import Console
from synthetic_run import SyntheticRun, ladder

from banpick_exp.cluster.events import Events
from banpick_exp.cluster.ledger import Ledger
from banpick_exp.run_folder import RunFolder


def test_only_wrong_content_is_set_aside_and_both_run_again(tmp_path: Path) -> None:
    synthetic = ladder(SyntheticRun(problems=6), ks=(6, 4))
    folder = RunFolder(synthetic.write(tmp_path / "pick" / "run"))
    whole, alone, edited = synthetic.records
    folder.outcomes_path(alone.fingerprint).unlink()
    path = folder.record_path(edited.fingerprint)
    path.write_text(path.read_text().replace('"label": "', '"label": "x'))
    plan = SimpleNamespace(folder=folder, points=synthetic.records)
    output = io.StringIO()
    ledger = Ledger(cast(Any, plan), cast(Any, None), Console(file=output, width=400), Events(folder))
    assert [record.label for record in ledger.records.values()] == [whole.label]
    assert [point.fingerprint for point in ledger.pending()] == [alone.fingerprint, edited.fingerprint]
    assert [each.name for each in folder.aside_files()] == [f"{path.name}.corrupt"]
    assert folder.record_path(alone.fingerprint).is_file()
    told = output.getvalue().splitlines()
    missing = f"{alone.fingerprint}.outcomes.parquet is not there"
    assert f"Note: {alone.fingerprint}.json: {missing}: its point is computed again." in told
    (note,) = [line for line in told if line.startswith(f"Note: {path.name}: edited or damaged: ")]
    assert note.endswith("set aside, its point is computed again.")
