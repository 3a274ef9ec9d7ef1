"""Two run folders written before records were typed (schema version 1): read whole, and analysed as they were then.

`data/run_v1/pick` has one answer a problem; `data/run_v1/naee` samples two, has repeats and a knob solved for a budget.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from banpick_exp.analysis import guards, headline, points_frame, repeat_spread, subtasks, verdicts
from banpick_exp.analysis.pairing import setup
from banpick_exp.records import PointRecord
from banpick_exp.run_folder import RunFolder

DATA = Path(__file__).parent / "data" / "run_v1"
PICK, NAEE = "pick/20261126-190729", "naee/20261126-190835"
KNOWN = {
    PICK: {
        "none": (0.625, 8.0),
        "fixed_k k=6": (0.625, 6.0),
        "fixed_k k=4": (2 / 3, 4.0),
        "pick boost=1 key_experts=1": (0.625, 8.0),
        "pick boost=1 key_experts=2": (0.625, 8.0),
    },
    NAEE: {
        "none": (23 / 36, 8.0),
        "none repeat=1": (23 / 36, 8.0),
        "fixed_k k=5": (25 / 36, 5.0),
        "fixed_k k=5 repeat=1": (25 / 36, 5.0),
        "naee budget=5": (23 / 36, 4.981081081081081),
        "naee budget=5 repeat=1": (23 / 36, 4.981081081081081),
    },
}
"""Label -> accuracy and mean_kept over all domains."""


@pytest.fixture(params=KNOWN)
def run(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """One of the two, in a copy: a test that sets a record aside must not do it here."""
    shutil.copytree(DATA / request.param, tmp_path / request.param)
    return str(request.param)


def read(folder: RunFolder) -> tuple[list[PointRecord], dict[str, pl.DataFrame]]:
    records, set_aside = folder.load_points()
    assert set_aside == []
    return records, folder.all_outcomes(records)


def test_every_record_and_outcome_is_read(run: str, tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / run)
    records, outcomes = read(folder)
    assert {record.label: (record.measured.overall.accuracy, record.mean_kept) for record in records} == KNOWN[run]
    assert {record.schema_version for record in records} == {1} and len(outcomes) == len(records)
    for record in records:
        on_disk: dict[str, Any] = json.loads(folder.record_path(record.fingerprint).read_text())
        assert record.plain() == on_disk, "nothing is lost and nothing is made up"
        frame = outcomes[record.fingerprint]
        assert frame.height == record.measured.overall.n_problems * record.task.samples
        assert frame["correct"].mean() == pytest.approx(record.measured.overall.accuracy)
        assert "completion" not in frame.columns and "repetitive" in frame.columns


def test_the_manifest_is_read(run: str, tmp_path: Path) -> None:
    manifest = RunFolder(tmp_path / run).manifest()
    assert manifest.sweep == run.split("/")[0] and manifest.search == "grid"
    assert manifest.models == {"7f7d3c69b662cce5": "tiny"} and manifest.tasks == {"98b75f00c7420dde": "tiny"}
    assert manifest.command.startswith("python -m banpick_exp policy=")


def test_counters_and_evidence_are_typed(tmp_path: Path, run: str) -> None:
    for record in read(RunFolder(tmp_path / run))[0]:
        assert list(record.engagement.counters) == ["math", "code", "knowledge"]
        for domain, counters in record.engagement.counters.items():
            assert counters.mean_kept == pytest.approx(record.measured.of(domain).mean_kept)
            assert len(counters.usage) == record.model.num_layers == 4
            assert all(sum(usage) == kept for usage, kept in zip(counters.usage, counters.kept, strict=True))
        assert bool(record.engagement.stock_counters) == record.is_stock
        assert (record.engagement.key_expert_share is not None) == (record.policy_name == "pick")


def test_a_solved_knob_is_read() -> None:
    records, _ = read(RunFolder(DATA / NAEE))
    solved = [record for record in records if record.budget is not None]
    assert [record.repeat for record in sorted(solved, key=lambda record: record.repeat)] == [0, 1]
    for record in solved:
        assert record.budget_target == 5.0 and record.solved_knob == "beta=0.325368"
        assert record.knobs == {"beta": 0.325368, "k_min": 1}
        assert record.asked_policy() == {"name": "naee", "k_min": 1, "budget": 5.0}


def test_points_are_paired_as_they_were() -> None:
    """All points of a run share a set-up, but for repeats, which share one of their own."""
    assert len({setup(record) for record in read(RunFolder(DATA / PICK))[0]}) == 1
    setups = {(record.repeat, setup(record)) for record in read(RunFolder(DATA / NAEE))[0]}
    assert len(setups) == len({shared for _, shared in setups}) == 2


def test_the_frame_of_an_old_run() -> None:
    records, _ = read(RunFolder(DATA / NAEE))
    frame = points_frame(records)
    assert frame.height == 6 * 4 and set(frame["samples"]) == {2} and set(frame["model"]) == {"tiny"}
    row = frame.filter(label="naee budget=5", domain="overall").row(0, named=True)
    assert (row["budget_target"], row["solved_knob"], row["repeat"]) == (5.0, "beta=0.325368", 0)
    assert row["accuracy"] == 23 / 36 and row["mean_kept"] == 4.981081081081081
    assert row["speedup"] == 0.824189724241849 and json.loads(row["knobs"]) == {"beta": 0.325368, "k_min": 1}
    untimed = frame.filter(pl.col("repeat") == 1)
    assert untimed["speedup"].null_count() == untimed.height == 12


def test_the_verdicts_on_an_old_run() -> None:
    found = verdicts(*read(RunFolder(DATA / PICK)), against=("fixed_k", "stock"))
    assert found.height == (2 + 4) * 4 and set(found["verdict"]) == {"ties"}
    four = found.filter(label="fixed_k k=4", against="stock", domain="overall").row(0, named=True)
    assert (four["wins"], four["losses"], four["n_pairs"]) == (1, 0, 24) and four["budget_gap"] == -4.0
    assert headline(found) == "No gain: 2 of 2 pick points tie or lose against fixed_k at equal budget."
    found = verdicts(*read(RunFolder(DATA / NAEE)))
    row = found.filter(domain="overall").row(0, named=True)
    assert (row["label"], row["reference_label"], row["n_pairs"]) == ("naee budget=5", "fixed_k k=5", 18)
    assert row["difference"] == pytest.approx(-2 / 36) and row["budget_gap"] == pytest.approx(-0.018918918918919)


def test_what_is_said_of_an_old_run() -> None:
    records, outcomes = read(RunFolder(DATA / NAEE))
    found = guards(records, outcomes)
    assert found.filter(guard="engaged").height >= 6 and set(found.filter(guard="engaged")["level"]) == {"ok"}
    assert subtasks(records, outcomes).height == 4 * 12
    spread = repeat_spread(records, outcomes).filter(domain="overall")
    assert spread.sort("label")["label"].to_list() == ["fixed_k k=5", "naee budget=5", "none"]
    assert set(spread["repeats"]) == {2}


def test_two_versions_never_mix_silently(tmp_path: Path) -> None:
    """An old record may stand beside a new one, but none may be half of each."""
    shutil.copytree(DATA / PICK, tmp_path / PICK)
    folder = RunFolder(tmp_path / PICK)
    name = folder.record_files()[0].stem
    plain = json.loads(folder.record_path(name).read_text())
    folder.record_path(name).write_text(json.dumps(plain | {"schema_version": 2}))
    records, left_out = folder.load_points()
    assert len(records) == 4 and [each.file.name for each in left_out] == [f"{name}.json"]


def test_nothing_of_the_machine_that_wrote_it_is_kept() -> None:
    for path in (each for each in DATA.rglob("*") if each.is_file()):
        content = path.read_bytes()
        assert not any(root in content for root in (b"/tmp", b"/root", b"/home", b"/work", b"://"))
