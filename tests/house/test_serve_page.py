"""docs/serve.md and the README: their commands are typed, each `serve` checked by itself and not started."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from exportable_run import of_label, of_the_embedded_model

from banpick_exp.__main__ import main

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "serve.md").read_text(encoding="utf-8")
README = (ROOT / "README.md").read_text(encoding="utf-8")


@pytest.fixture
def outputs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """outputs/pick_strength/first, of the embedded model, in the folder that we are in."""
    monkeypatch.chdir(tmp_path)
    synthetic, run = of_the_embedded_model(tmp_path)
    for folder, label in (("OUT1", "fixed_k k=2"), ("OUT2", "pick boost=1 key_experts=4")):
        assert main(["export", str(run), of_label(synthetic, label).fingerprint, folder]) == 0
    return run


def commands(text: str) -> list[str]:
    """Of indented blocks, in their order."""
    return [line.partition("    #")[0] for line in re.findall(r"^    (python -m banpick_exp .*)$", text, re.MULTILINE)]


def test_sweep_export_and_serve(outputs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The three commands, each as it is typed: the sweep planned, the point exported, the server named."""
    of_page = commands(PAGE)
    assert [line.split()[3] for line in of_page[:4]] == ["+sweep=pick_strength", "export", "serve", "serve"]
    for line in of_page:
        words = shlex.split(line)[3:]
        dry = {"serve": ["--dry-run"], "bench": ["--dry-run"]}.get(
            words[0], [] if words[0] == "export" else ["dry_run=true"]
        )
        if "verify" not in words:
            assert main([*words, *dry]) == 0, line
    said = capsys.readouterr().out
    assert "BANPICK_POLICY=OUT/@math" in said and "--host 127.0.0.1" in said
    assert "BANPICK_DEFAULT_POLICY=careful" in said


def test_the_readme_has_the_same_three(outputs: Path) -> None:
    words = [shlex.split(line)[3:] for line in commands(README) if not line.endswith("\\")]
    at = next(at for at, line in enumerate(words) if line[0] == "export")
    assert words[at - 1] == ["+sweep=pick_strength"] and words[at + 1][0] == "serve"
    assert main([word.replace("<run>", "first") for word in words[at]]) == 0
    assert main([*words[at + 1], "--dry-run"]) == 0
