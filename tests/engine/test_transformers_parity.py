"""An engine that is not the model is found at its start, with the cure; one that is starts again at no cost."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from checkpoint_folder import write_checkpoint
from own_process import findings

from banpick_exp.engine.config import EngineConfig
from banpick_exp.engine.engine import Engine
from banpick_exp.engine.verify import transformers_parity, transformers_process, verdicts
from banpick_exp.models.config import ModelConfig
from banpick_exp.models.dtype import Machine
from banpick_exp.models.inspect import EMBEDDED_CHECKPOINT

OWN_PROCESS = "run_transformers_parity.py"

CURE = 'compilation_config={"custom_ops": ["all", "-rotary_embedding"]}'


@pytest.fixture(scope="module")
def found(request: pytest.FixtureRequest) -> dict[str, Any]:
    return findings(OWN_PROCESS, request)


@pytest.mark.engine
@pytest.mark.slow
@pytest.mark.parametrize("name", ["wrong", "wrong in bfloat16"])
def test_vllms_rotary_kernel_is_found_at_the_start_and_the_cure_is_named(found: dict[str, Any], name: str) -> None:
    error = found[name]["first"]["error"]
    far = re.search(r"(\d\.\S+) nats from Transformers' log-probabilities \(46 tokens", error)
    assert far and float(far[1]) > 0.1, error
    for words in ("every result would be of another model", CURE, "engine.parity_check=false"):
        assert words in error


@pytest.mark.engine
@pytest.mark.slow
def test_no_point_is_measured_on_it_and_verify_says_the_same(found: dict[str, Any]) -> None:
    name = "wrong"
    assert found[name]["refused"] == found[name]["first"]["error"], "the process of a sweep's engine would go on"
    status, finding = found[name]["rows"][transformers_parity.NAME]
    assert status == "FAILED" and CURE in finding
    others = {row: status for row, (status, _) in found[name]["rows"].items() if row != transformers_parity.NAME}
    assert len(others) > 10 and "FAILED" not in others.values(), "no check of the routing can see it"


@pytest.mark.engine
@pytest.mark.slow
@pytest.mark.parametrize("name", ["wrong", "wrong in bfloat16"])
def test_an_engine_that_failed_is_measured_again(found: dict[str, Any], name: str) -> None:
    first, second = found[name]["first"], found[name]["second"]
    assert second["error"] == first["error"] and second["scored"] == 1 and not second["kept"]


@pytest.mark.engine
@pytest.mark.slow
@pytest.mark.parametrize(("name", "dtype"), [("cured", "float32"), ("qwen3_moe", "bfloat16")])
def test_an_engine_that_is_the_model_is_measured_once(found: dict[str, Any], name: str, dtype: str) -> None:
    first, second = found[name]["first"], found[name]["second"]
    assert first["error"] == second["error"] == ""
    assert first["line"].split("nats from ")[1].startswith(f"Transformers' log-probabilities (46 tokens, {dtype};")
    assert second["line"] == f"{first['line']} (measured at an earlier start)"
    assert (first["scored"], first["kept"], second["scored"]) == (1, True, 0)


@pytest.mark.engine
@pytest.mark.slow
def test_it_can_be_switched_off(found: dict[str, Any]) -> None:
    told = found["switched off"]["first"]
    assert told["line"] == "not held against Transformers: engine.parity_check=false" and told["scored"] == 0


# ------------------------------------------------------------ without an engine


def engine_of(folder: Path, **settings: Any) -> Engine:
    """Not started."""
    return Engine(ModelConfig(name="local", path=str(folder)), str(folder), EngineConfig(**settings), 2)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_checkpoint(tmp_path / "model", b"weights")
    path = tmp_path / "model" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"vocab_size": 100, "bos_token_id": 1}))
    return tmp_path / "model"


def test_a_small_checkpoint_is_checked(folder: Path) -> None:
    assert transformers_parity.unchecked(engine_of(folder)) is None
    assert not transformers_parity.shipped(engine_of(folder))


def test_a_large_checkpoint_is_not_loaded_twice(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with (folder / "more.safetensors").open("wb") as file:
        file.truncate(5 * 10**9)  # a hole: no disk is filled
    reason = transformers_parity.unchecked(engine_of(folder))
    assert reason == "too large to load twice (5.0 GB of weights, the bound is 4 GB)"
    os.truncate(folder / "more.safetensors", 10**9)
    assert transformers_parity.unchecked(engine_of(folder)) is None
    monkeypatch.setattr(transformers_parity, "this_machine", lambda: Machine(None, 4 * 10**9))
    assert "of 4 GB of memory" in str(transformers_parity.unchecked(engine_of(folder)))


@pytest.mark.parametrize(
    ("config", "settings", "words"),
    [
        ({}, {"parity_check": False}, "engine.parity_check=false"),
        ({"quantization_config": {"quant_method": "fp8"}}, {}, "quantised"),
        ({"vocab_size": None}, {}, "counts no vocabulary"),
        ({}, {"max_model_len": 2, "max_num_seqs": 1}, "engine.max_model_len=2 has no room"),
    ],
)
def test_what_is_not_checked_is_said(folder: Path, config: Any, settings: Any, words: str) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | config))
    assert words in str(transformers_parity.unchecked(engine_of(folder, **settings)))


def test_a_hub_id_is_not_checked() -> None:
    assert transformers_parity.unchecked(engine_of(Path("owner/name"))) == "owner/name is no folder"


def test_the_embedded_model_is_held_by_tests_and_no_start_of_it_waits() -> None:
    assert transformers_parity.shipped(engine_of(EMBEDDED_CHECKPOINT))


def test_token_ids_are_the_same_each_time_and_mean_nothing(folder: Path) -> None:
    ids = transformers_parity.token_ids(folder, 24)
    assert ids == transformers_parity.token_ids(folder, 24) and [len(each) for each in ids] == [24, 24]
    assert ids[0] != ids[1]
    drawn = {token for each in transformers_parity.token_ids(folder, 2000) for token in each}
    assert drawn == set(range(100)) - {0, 1}, "0: where config.json names no such token"


STOCK = [[-1.0, -2.0, -3.0]]


@pytest.mark.parametrize(
    ("ours", "rounded", "fine", "words"),
    [
        ([[-1.0, -2.0, -3.0005]], None, True, "at most 5.0e-04 nats"),
        ([[-1.0, -2.0, -3.01]], None, False, "at most 1.0e-02 nats"),
        ([[-1.0, -2.0, float("nan")]], None, False, "at most inf nats"),
        ([[-1.1, -2.1, -9.0]], [[-1.05, -2.05, -3.05]], True, "a median of 0.1 nats"),
        ([[-1.5, -2.5, -3.5]], [[-1.05, -2.05, -3.05]], False, "rounding alone is 0.05"),
        ([[-1.005, -2.005, -3.005]], STOCK, True, "tolerance 0.01"),
        ([[-1.0, -2.0, -3.0]], [[-2.0, -3.0, -4.0]], None, "model.dtype=float32 can be checked"),
        ([[-1.0, -2.0, -3.0]], [[float("nan")] * 3], None, "alone moves the median token by inf"),
    ],
)
def test_how_far_is_too_far(ours: Any, rounded: Any, fine: bool | None, words: str) -> None:
    finding, verdict = transformers_parity.judged(ours, STOCK, rounded, "float32" if rounded is None else "bfloat16")
    assert (verdict, words in finding) == (fine, True), finding


def test_a_verdict_of_other_facts_or_a_damaged_one_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    facts = {"checkpoint": "a", "versions": {"torch": "1"}, "custom_ops": ["all"]}
    assert verdicts.passed(facts) is None
    verdicts.keep(facts, "close")
    assert verdicts.passed(facts) == "close"
    assert verdicts.passed(facts | {"custom_ops": []}) is None
    assert verdicts.passed(facts | {"versions": {"torch": "2"}}) is None
    verdicts.place_of(facts).write_text('{"finding": "close", "facts": {}}')
    assert verdicts.passed(facts) is None
    verdicts.place_of(facts).write_text("{")
    assert verdicts.passed(facts) is None


def test_a_cache_that_cannot_be_written_stops_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    verdicts.keep({"checkpoint": "a"}, "close")
    assert verdicts.passed({"checkpoint": "a"}) is None


@pytest.mark.slow
def test_what_transformers_cannot_load_is_a_problem_in_one_line(folder: Path) -> None:
    script = transformers_process.__file__
    question = {"folder": str(folder), "dtype": "float32", "trust_remote_code": False, "sequences": [], "seconds": 60}
    done = subprocess.run([sys.executable, "-P", script], input=json.dumps(question), capture_output=True, text=True)
    (problem,) = json.loads(done.stdout).values()
    assert problem and "\n" not in problem
