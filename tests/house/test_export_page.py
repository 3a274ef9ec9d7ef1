"""docs/export.md: its commands and its Python are run, in the order of the page, on a run that never ran."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
from exportable_run import of_the_embedded_model

from banpick_exp.__main__ import main
from banpick_exp.policy.exported_files import CARD, HEADER, TENSORS

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "export.md").read_text(encoding="utf-8")


@pytest.fixture
def outputs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """outputs/pick_strength/first, of the embedded model, in the folder that we are in."""
    monkeypatch.chdir(tmp_path)
    return of_the_embedded_model(tmp_path)[1]


def test_every_command_and_call_of_the_page_works(outputs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    commands = re.findall(r"^    (python -m banpick_exp .*)$", PAGE, re.MULTILINE)
    assert len(commands) == 4
    for line in commands:
        assert main(shlex.split(line)[3:]) == 0, line
    assert "hf upload" in capsys.readouterr().out
    (block,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    found: dict[str, Any] = {}
    exec(block, found)
    assert found["policy"].rule.name == "pick" and found["exported"].calibrations["math"] is not None


def test_the_page_names_every_file_and_key(outputs: Path) -> None:
    main(["export", str(outputs), "best", "OUT"])
    written = {path.name for path in Path("OUT").iterdir()}
    assert written == {HEADER, CARD, TENSORS} and all(f"`{name}`" in PAGE for name in written)
