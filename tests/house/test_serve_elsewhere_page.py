"""docs/serve-elsewhere.md: its Python is run, on an export of a run that never ran and the embedded model."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from exportable_run import of_the_embedded_model

from banpick_exp.__main__ import main
from banpick_exp.models.inspect import EMBEDDED_CHECKPOINT
from banpick_exp.transformers.routers import FAMILIES

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "serve-elsewhere.md").read_text(encoding="utf-8")


def test_the_python_of_the_page_works(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    _, outputs = of_the_embedded_model(tmp_path)
    assert main(["export", str(outputs), "best", "OUT"]) == 0
    capsys.readouterr()
    (block,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    found: dict[str, Any] = {}
    exec(block.replace('"MODEL"', repr(str(EMBEDDED_CHECKPOINT))), found)
    assert found["handle"].policy.rule.name == "pick" and len(found["handle"].mean_kept()) == 4
    assert "12+30=" in capsys.readouterr().out.replace(" ", "")
    assert not any(module._forward_hooks for module in found["model"].modules())


def test_the_page_names_the_families_that_are_known() -> None:
    assert all(family in PAGE for family in FAMILIES)
