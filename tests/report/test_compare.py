"""`python -m banpick_exp compare`: what a search cost, and whether its front is that of the grid."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from synthetic_run import DOMAINS, SyntheticRun, ladder

from banpick_exp.errors import UserError
from banpick_exp.report.compare import compare_runs, help_page, run
from banpick_exp.report.run import require_run

KS = (7, 6, 5, 4)


def searched(
    folder: Path,
    search: str,
    ks: tuple[int, ...],
    dropped: tuple[int, ...] = (),
    harm: float = 0.0,
    **parts: dict[str, object],
) -> str:
    """A ladder of which a search ran `ks`, and some that it stopped; `harm` is what went wrong at its last."""
    synthetic = ladder(SyntheticRun(problems=100), ks=ks)
    for k in dropped:
        synthetic.add("fixed_k", {"k": k}, kept=k, status="dropped", reason="a race stopped it")
    if harm:
        synthetic.add("fixed_k", {"k": 3}, kept=3, shift=dict.fromkeys(DOMAINS, -harm), speedup=2.0)
    for record in synthetic.records:
        synthetic.change(record, timing={"timed_tokens": 10}, **parts)
    path = synthetic.write(folder / "sweep" / search)
    (path / "run.json").write_text(f'{{"search": "{search}"}}')
    return str(path)


@pytest.fixture(scope="module")
def grid(tmp_path_factory: pytest.TempPathFactory) -> str:
    return searched(tmp_path_factory.mktemp("grid"), "grid", KS)


def test_both_tables_are_printed_and_kept(grid: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    race = searched(tmp_path, "racing", KS[:3], dropped=KS[3:])
    file = tmp_path / "table.md"
    assert run([grid, race, "--markdown", str(file)]) == 1, "the race dropped the ladder's end, which is on the front"
    runs, points = (
        [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()]
        for table in file.read_text().split("\n\n")
    )
    whole, raced = (dict(zip(runs[0], line, strict=True)) for line in runs[2:])
    assert (whole["search"], whole["done"], whole["dropped"], whole["timed tokens"]) == ("grid", "5", "0", "50")
    assert (raced["search"], raced["done"], raced["dropped"], raced["timed tokens"]) == ("racing", "4", "1", "50")
    assert whole["front covered"] == "is the front" and whole["of the first"] == raced["of the first"] == "100.0%"
    covered, front = map(int, raced["front covered"].split(" of "))
    assert covered == front - 1 and front == len(points) - 2
    assert points[0][3] == "racing" and points[-1][0] == "fixed_k k=4"
    assert points[-1][3] == "NOT COVERED: nothing at that budget" and points[2][3].startswith("itself: +0.0 [")
    shown = capsys.readouterr().out
    assert "front covered" in shown and "NOT COVERED: nothing at that budget" in shown


def test_a_run_with_the_same_points_covers_the_front_without_moving_an_answer(grid: str, tmp_path: Path) -> None:
    found = compare_runs(require_run(grid), [require_run(searched(tmp_path, "optuna", KS))])
    assert found.all_covered and found.by_run()[2][-1].startswith("0 of ")


def test_what_loses_at_the_budget_covers_nothing(grid: str, tmp_path: Path) -> None:
    other = require_run(searched(tmp_path, "optuna", KS[:3], harm=0.3))
    found = compare_runs(require_run(grid), [other])
    last = found.covers[0][-1]
    assert last.by == "fixed_k k=3" and not last.covered and not found.all_covered


def test_bad_input_ends_in_words(grid: str) -> None:
    for typed, words in (
        ([], "required: GRID_RUN, RUN"),
        ([grid], "required: RUN"),
        ([grid, "nowhere"], "is no folder"),
    ):
        with pytest.raises(UserError, match=words):
            run(typed)
    assert "GRID_RUN" in help_page() and "Exit code" in help_page()


@pytest.mark.parametrize(
    ("parts", "words"),
    [
        ({"task": {"split": "dev"}}, r"task\.split=test, and .* with task\.split=dev"),
        ({"task": {"max_tokens": 12}}, r"task\.max_tokens=24, and .* with task\.max_tokens=12"),
        ({"engine": {"max_num_seqs": 8}}, r"engine\.max_num_seqs=64, and .* with engine\.max_num_seqs=8"),
        ({"model": {"dtype": "bfloat16"}}, r"model\.dtype=float32, and .* with model\.dtype=bfloat16"),
    ],
)
def test_runs_that_were_asked_something_else_are_not_set_side_by_side(
    tmp_path: Path, parts: dict[str, dict[str, object]], words: str
) -> None:
    known: dict[str, Any] = {"task": {"max_tokens": 24}, "model": {"dtype": "float32"}}
    grid = searched(tmp_path / "one", "grid", KS, **known)
    both = known | {key: known.get(key, {}) | value for key, value in parts.items()}
    other = searched(tmp_path / "two", "racing", KS, **both)
    with pytest.raises(UserError, match=words):
        run([grid, other])
    moved: dict[str, Any] = {
        "task": {"max_tokens": 24, "data_files": "elsewhere"},
        "engine": {"start_timeout_seconds": 9},
    }
    assert run([grid, searched(tmp_path / "three", "racing", KS, **moved)]) == 0, "what changes no answer may differ"


def test_tables_that_could_not_be_kept_are_refused_first(grid: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="it is a folder") as caught:
        run([grid, "nowhere", "--markdown", str(tmp_path)])
    assert "--markdown" in str(caught.value)
    with pytest.raises(UserError, match="--markdown"):
        run([grid, "nowhere", "--markdown", str(tmp_path / "none" / "table.md")])
