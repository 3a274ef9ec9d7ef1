"""Blocks of a calibration: what is missing of it, told from files that may be cut, foreign, or of another width."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import numpy as np
import pytest

from banpick_exp.evaluation.calibration.config import CalibrationConfig
from banpick_exp.evaluation.calibration.division import Division, division_of_artifact
from banpick_exp.evaluation.calibration.race import planned
from banpick_exp.evaluation.calibration.stored import ANSWERS, LAYERS, Block, BlocksInFiles, BlocksInMemory, Stage
from banpick_exp.models.shape import MoeShape

SHAPE = MoeShape(num_layers=10, num_experts=4, top_k=2)
SETTINGS = CalibrationConfig(samples=8)
TOLD = {"changes": 1.0, "layer_tokens": 2.0, "out_of_reach": 0.0, "itself": 0.0, "seconds": 0.5}


def artifact(folder: Path, width: int | None = 4, fingerprint: str = "f" * 16) -> Division:
    """Of domains whose names are no file names."""
    return division_of_artifact(
        SHAPE, SETTINGS, ["math", "a/b.c"], fingerprint, BlocksInFiles(folder, fingerprint), width
    )


def arrays(block: Block) -> Mapping[str, np.ndarray]:
    return {"layers": np.arange(block.first, block.end), "name": np.frombuffer(block.words().encode(), dtype=np.uint8)}


def ranges(blocks: list[Block]) -> list[tuple[int, int]]:
    return [(block.first, block.end) for block in blocks]


def fill(division: Division, domain: str) -> int:
    """Measures what is missing; returns how many blocks that was."""
    count = 0
    while missing := division.walk(domain)[1]:
        for block in missing:
            division.blocks.add(block, arrays(block), TOLD)
            count += 1
    return count


def test_stages_come_one_after_the_other_and_divide_by_layers(tmp_path: Path) -> None:
    division = artifact(tmp_path / "made")
    whole, first = division.walk("math")
    assert whole == [] and ranges(first) == [(0, 10)] and first[0].stage.number == ANSWERS
    division.blocks.add(first[0], arrays(first[0]), TOLD)
    whole, layers = division.walk("math")
    assert len(whole) == 1 and ranges(layers) == [(0, 4), (4, 8), (8, 10)]
    assert {block.stage.number for block in layers} == {LAYERS} and division.walk("a/b.c")[0] == []
    assert fill(division, "math") == 3 and fill(division, "a/b.c") == 4
    assert division.walk("math")[1] == [] and division.left() == 0
    assert [found.arrays["layers"].tolist() for found in division.walk("math")[0][LAYERS]] == [
        [0, 1, 2, 3], [4, 5, 6, 7], [8, 9]
    ]  # fmt: skip
    assert division.seconds() == 8 * 0.5
    division.clear()
    assert not list(tmp_path.iterdir())


def test_what_is_there_is_kept_under_another_width(tmp_path: Path) -> None:
    fill(artifact(tmp_path / "made"), "math")
    for path in tmp_path.glob("made.blocks/artifact.math.1.4-8.*"):
        path.unlink()
    assert ranges(artifact(tmp_path / "made", width=3).walk("math")[1]) == [(4, 7), (7, 8)]
    assert ranges(artifact(tmp_path / "made", width=None).walk("math")[1]) == [(4, 8)]


def test_those_that_overlap_count_once(tmp_path: Path) -> None:
    division = artifact(tmp_path / "made", width=None)
    fill(division, "math")
    ((found,),) = [division.walk("math")[0][LAYERS]]
    assert (found.first, found.end) == (0, 10)
    stage = Stage(part=None, domain="math", number=LAYERS, after=_after(tmp_path, "artifact.math.1.0-10"))
    for first, end in ((0, 4), (3, 7)):
        division.blocks.add(Block(stage=stage, first=first, end=end), arrays(Block(stage=stage, first=0, end=1)), TOLD)
    assert [(each.first, each.end) for each in division.walk("math")[0][LAYERS]] == [(0, 10)]


def _after(folder: Path, name: str) -> str:
    (path,) = folder.glob(f"made.blocks/{name}.*")
    data = path.read_bytes()
    header = json.loads(data[8 : 8 + struct.unpack("<Q", data[:8])[0]])
    found: str = json.loads(header["__metadata__"]["header"])["after"]
    return found


@pytest.mark.parametrize("damage", ["cut", "empty", "bit", "of another domain", "of another calibration", "no header"])
def test_a_file_that_is_none_is_measured_again(tmp_path: Path, damage: str) -> None:
    division = artifact(tmp_path / "made")
    for domain in division.domains:
        fill(division, domain)
    (path,) = tmp_path.glob("made.blocks/artifact.math.1.4-8.*")
    data = path.read_bytes()
    match damage:
        case "cut":
            path.write_bytes(data[:-3])
        case "empty":
            path.write_bytes(b"")
        case "bit":
            path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
        case "of another domain":
            path.write_bytes(next(tmp_path.glob("made.blocks/artifact.a%2Fb.c.1.4-8.*")).read_bytes())
        case "of another calibration":
            fill(artifact(tmp_path / "other", fingerprint="0" * 16), "math")
            path.write_bytes(next(tmp_path.glob("other.blocks/artifact.math.1.4-8.*")).read_bytes())
        case _:
            path.write_bytes(struct.pack("<Q", 2) + b"{}" + data)
    assert ranges(division.walk("math")[1]) == [(4, 8)] and division.walk("a/b.c")[1] == []
    assert fill(division, "math") == 1


def test_what_follows_other_answers_is_measured_again(tmp_path: Path) -> None:
    """An engine that does not repeat itself answers anew: limits of the lost answers are of no use."""
    division = artifact(tmp_path / "made")
    fill(division, "math")
    (path,) = tmp_path.glob("made.blocks/artifact.math.0.*")
    path.unlink()
    (answers,) = division.walk("math")[1]
    division.blocks.add(answers, {"other": np.zeros(3)}, TOLD)
    assert ranges(division.walk("math")[1]) == [(0, 4), (4, 8), (8, 10)]
    path.unlink()
    division.blocks.add(answers, arrays(answers), TOLD)
    assert division.walk("math")[1] == [], "the same answers once more: they fit again"


@pytest.mark.parametrize("method", ["race", "full"])
def test_the_work_of_the_blocks_is_that_of_the_score(method: Literal["race", "full"]) -> None:
    settings = CalibrationConfig(method=method, wanted=3)
    samples = {"math": 30, "code": 7}
    division = Division(
        blocks=BlocksInMemory(), part="gain_add", shape=SHAPE, settings=settings, samples=samples, base="", width=3
    )
    share = settings.first_share("gain_add")
    expected = sum(planned(40, count, first_share=share, wanted=3) for count in samples.values())
    assert division.planned() == division.left() == pytest.approx(expected)
    for domain in samples:
        fill(division, domain)
    assert division.left() == 0 and len(division.walk("math")[0]) == (3 if method == "race" else 1)
