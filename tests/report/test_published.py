"""What papers report of the same model and task stands beside ours, and nothing of it anywhere else."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from matplotlib import image
from synthetic_run import SyntheticRun, ladder

from banpick_exp.records import ModelUsed
from banpick_exp.report.files import write_report
from banpick_exp.report.published import published_of
from banpick_exp.report.run import Run, read_run
from banpick_exp.run_folder import RunFolder

HUB = "Qwen/Qwen3-30B-A3B"


def a_run(path: Path, *, model: dict[str, Any], task: str) -> Run:
    """A made-up main table: stock, a ladder, Ban at two budgets, Pick."""
    run = ladder(SyntheticRun(problems=20), ks=(6, 5, 4))
    run.add("ban", {"lambda": 0.9}, kept=4.9, speedup=1.2)
    run.add("ban", {"lambda": 1.5}, kept=6.2, speedup=1.1)
    run.add("pick", {"boost": 1}, churn=0.04)
    for record in run.records:
        run.change(record, model=model, task={"name": task})
    return read_run(RunFolder(run.write(path)))


@pytest.mark.parametrize(
    "path", [HUB, "/data/Qwen3-30B-A3B", "qwen3-30b-a3b/", "/hub/models--Qwen--Qwen3-30B-A3B/snapshots/ad44e777bcd1"]
)
def test_a_checkpoint_is_known_by_its_hub_id_or_its_folder(path: str) -> None:
    found = published_of(ModelUsed(name="mine", path=path, top_k=8), "aime24")
    assert [(each.policy, each.mean_kept) for each in found] == [
        ("none", 8),
        ("pick", 8),
        ("ban", 4.82),
        ("ban_pick", 4.83),
    ]
    assert [each.accuracy for each in found] == pytest.approx([0.8067, 0.8533, 0.80, 0.8466])


@pytest.mark.parametrize(
    ("model", "task"),
    [
        ({"path": HUB, "top_k": 8}, "tiny"),
        ({"path": HUB, "top_k": 8}, "jsonl"),
        ({"path": HUB, "top_k": 6}, "aime24"),  # a checkpoint of that name that selects others is another one
        ({"path": "Qwen/Qwen3-30B-A3B-pruned", "top_k": 8}, "aime24"),
        ({"path": "/data/mine", "name": "qwen3_30b_a3b", "top_k": 8}, "aime24"),
        ({"path": None, "name": "tiny"}, "aime24"),
    ],
)
def test_of_others_nothing_is_published(model: dict[str, Any], task: str) -> None:
    assert published_of(ModelUsed.model_validate(model), task) == ()


@pytest.mark.slow
def test_they_stand_beside_ours(tmp_path: Path) -> None:
    run = a_run(tmp_path / "main" / "first", model={"path": HUB, "top_k": 8}, task="aime24")
    picture = next(path for path in write_report(run) if path.name == "pareto.png")
    page = run.folder.report.read_text()
    front = page.split('<section id="front">')[1].split("</section>")[0]
    # Both views of the first domain: at the budget four figures, of which three have a speed-up.
    marks = re.findall(r"<use [^>]*><title>(published, [^<]*)</title>", front)
    assert sorted(set(marks)) == [
        f"published, arXiv 2509.06346: {text} %"
        for text in ("ban 80.00", "ban_pick 84.66", "pick 85.33", "stock 80.67")
    ]
    panels = front.split('<div class="pair')[1:3]
    assert all('data-domain="overall"' in panel for panel in panels)
    assert panels[0].count("<title>published, ") == 7 and not front.split('data-domain="math"')[1].count("<title>publ")
    assert "</svg>published (arXiv 2509.06346)</li>" in front and 'id="m-ban-pick"' in front
    table = front.split("<caption>Published beside main/first</caption>")[1].split("</table>")[0]
    rows = [re.sub("<[^>]*>", "|", row) for row in table.split("<tr>")[2:]]
    stock, pick, ban, ban_pick = (re.sub(r"\|+", "|", row).strip("|").split("|") for row in rows)
    ours = {row["label"]: row["accuracy"] for row in run.done_rows().iter_rows(named=True)}
    assert stock[:5] == ["stock", "80.67", "8.00", "1.00", "stock"]
    assert ban[:5] == ["ban", "80.00", "4.82", "1.25", "ban lambda=0.9"] and ban[6] == "4.90"
    assert ban[-1] == f"{100 * ours['ban lambda=0.9'] - 80:+.1f}"
    assert pick[3] == "-" and pick[-1] == f"{100 * ours['pick boost=1'] - 85.33:+.1f}"
    assert ban_pick == ["ban_pick", "84.66", "4.83", "1.25", "-", "-", "-", "-", "-"]
    assert image.imread(picture).shape[1] == 2700


@pytest.mark.slow
def test_budgets_that_differ_have_no_difference(tmp_path: Path) -> None:
    run = a_run(tmp_path / "main" / "first", model={"path": "/w/Qwen3-30B-A3B-Instruct-2507"}, task="math500")
    assert write_report(run)
    table = run.folder.report.read_text().split("<caption>Published beside")[1].split("</table>")[0]
    rows = dict(re.findall(r'<tr><th scope="row">(.*?)</th>(.*?)</tr>', table))
    assert len(rows) == 17 and rows["ban lambda=0.5 k_min=2"].endswith("<td>budgets differ</td>")
    assert re.search(r"<td>[+-]\d+\.\d</td>$", rows["fixed_k k=5"])


@pytest.mark.slow
def test_other_reports_are_the_same_to_the_byte(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As if nothing had ever been published."""

    asked: dict[str, Any] = {"model": {"path": HUB, "top_k": 8}, "task": "mine"}
    written = []
    for folder in (tmp_path / "with", tmp_path / "without"):
        run = a_run(folder / "main" / "first", **asked)
        picture = next(path for path in write_report(run) if path.name == "pareto.png")
        page = run.folder.report.read_bytes().replace(str(folder).encode(), b"")  # what to type next names it
        written.append((picture.read_bytes(), page))
        monkeypatch.setattr("banpick_exp.report.run.published_beside", lambda records: ())
    assert written[0] == written[1]
    assert b"ublished" not in written[0][1]
