"""docs/python.md and docs/notebook.ipynb: what they show is run, on a run that never ran."""

from __future__ import annotations

import ast
import json
import re
import sys
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from synthetic_run import SyntheticRun, ladder, pick_strength

import banpick_exp as bp
from banpick_exp.sweep.plan import plan_sweep

DOCS = Path(__file__).resolve().parents[2] / "docs"
SWEEP = re.compile(r"^run = bp\.sweep\(.*\)$", re.MULTILINE)
"""It starts engines, so its words are planned here; tests/api/test_api_run.py runs one."""


def shown(source: str, names: dict[str, Any]) -> Any:
    """Runs one cell; what its last line is, as a notebook would show it."""
    lines = ast.parse(source).body
    last = lines[-1] if lines else None
    shows = isinstance(last, ast.Expr)
    exec(compile(ast.Module(lines[:-1] if shows else lines, []), "cell", "exec"), names)
    return eval(compile(ast.Expression(last.value), "cell", "eval"), names) if isinstance(last, ast.Expr) else None


@pytest.fixture
def first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """outputs/pick_strength/first, in the folder that we are in."""
    monkeypatch.chdir(tmp_path)
    synthetic = pick_strength(ladder(SyntheticRun(problems=60)))
    return synthetic.write(tmp_path / "outputs" / "pick_strength" / "first")


def test_every_call_of_the_page_works(first: Path) -> None:
    blocks = re.findall(r"```python\n(.*?)```", (DOCS / "python.md").read_text(encoding="utf-8"), re.DOTALL)
    names: dict[str, Any] = {}
    for block in blocks:
        if sweeps := SWEEP.findall(block):
            (call,) = [node for node in ast.walk(ast.parse(sweeps[0])) if isinstance(node, ast.Call)]
            words = ast.literal_eval(call.args[0])
            planned = plan_sweep([*words, "task=tiny", "cluster=inline", "tracking=none"], sections=sections())
            assert {point.rule.name for point in planned.points} == {"none", "fixed_k", "pick"}
        shown(SWEEP.sub("", block), names)
    assert names["columns"]["boost"].drop_nulls().len() == 16 and names["strong"].height == 8
    assert names["flips"].height == names["lost"].height + names["flips"].filter(solved_by="a").height > 0
    assert names["best"]["policy"].n_unique() == 3 and (first.parents[2] / "front.pdf").stat().st_size > 1000
    assert repr(names["policy"]) in (DOCS / "python.md").read_text(encoding="utf-8")
    calls = set(re.findall(r"\b(?:run|runs|bp)\.(\w+)", "".join(blocks)))
    offered = {name for kind in (bp.Run, bp.Runs) for name in vars(kind) if name[0] != "_"} - {"name", "path", "listed"}
    assert offered - {"reported"} <= calls, "what the page does not show"


def sections() -> dict[str, Any]:
    from banpick_exp.cluster.plan import SECTIONS

    return dict(SECTIONS)


def test_every_cell_of_the_notebook_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without nbclient, which is no part of the environment: the cells in their order, in one namespace."""
    monkeypatch.chdir(DOCS)
    monkeypatch.setattr(sys, "path", [*sys.path])
    every = json.loads((DOCS / "notebook.ipynb").read_bytes())["cells"]
    cells = [cell for cell in every if cell["cell_type"] == "code"]
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in cells), "kept without outputs"
    names: dict[str, Any] = {}
    found = [shown("".join(cell["source"]), names) for cell in cells]
    assert "Gain: pick" in found[1]._repr_html_() and found[2]._repr_png_().startswith(b"\x89PNG")
    frames = [each for each in found if isinstance(each, pl.DataFrame)]
    assert len(frames) == 4 and all(frame.height for frame in frames)
    assert frames[0].shape == (4, 5), "boost x key experts"


def test_the_glossary_has_the_words_that_a_reader_meets() -> None:
    text = (DOCS / "glossary.md").read_text(encoding="utf-8")
    told = {word.strip() for bold in re.findall(r"\*\*(.*?)\*\*", text.lower()) for word in bold.split(",")}
    words = "stock ladder engaged guard front kept point block slot run sweep verdict flip repeat study driver status"
    assert set(words.split()) <= told and "key expert" in told and "measured budget" in told
