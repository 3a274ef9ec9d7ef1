"""`python -m banpick_exp verify`: everything holds on this machine, and each way to break an engine is seen."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from own_process import findings

from banpick_exp.cli.main import run
from banpick_exp.engine.types import Check, RankReport
from banpick_exp.models.dtype import Machine
from banpick_exp.tasks.sandbox.landlocked import Landlocked

OWN_PROCESS = "run_verify.py"

COVERAGE, COUNTERS, PARITY = "hook coverage", "counters against a hand count", "stock scores before and after swaps"
FILLER, KEPT = "filler: a repeated id with weight 0 adds nothing", "filler: kept pairs alone give the same sum"
ROUTER = "router against reference, "

SEEN = {
    "written_wrongly": (f"{ROUTER}ban", r"layers\.2\.mlp.*under ban"),
    "flipped_later": (COUNTERS, r"rank 0: a probe of 32 tokens with 3 experts each was counted as \[96, 96, 64, 96\]"),
    "not_counting": (COUNTERS, r"a probe of 32 tokens was counted as \[32, 32, 0, 32\] per layer"),
    "usage_lost": (COUNTERS, r"with 3 experts each was counted as \[96, 96, 0, 96\]"),
    "wrong_sum": (KEPT, r"layers\.2\.mlp.*differ by (9\.\de-02|1\.\de-01) of the largest"),  # bfloat16 rounds a tenth
    "filler_weighs": (f"{ROUTER}ban", r"layers\.2\.mlp.*weights differ from the reference by"),
    "frozen": (PARITY, r"changes no score: it is not applied"),
    "sticky": (PARITY, r"differ by up to \S+ nats after two swaps"),
    "layer_missing": (COVERAGE, r"4 of 5 MoE layers hooked.*ignore every policy.*model\.num_layers=4"),
    "a_rank_that_raises": (COUNTERS, r"no routing today"),
}
"""By mutation of run_verify.py: the check that must fail, and what it must say."""


@pytest.fixture(scope="module")
def found(request: pytest.FixtureRequest) -> dict[str, Any]:
    return findings(OWN_PROCESS, request)


@pytest.mark.engine
def test_the_embedded_model_passes(found: dict[str, Any]) -> None:
    assert found["code"] == 0, found["printed"]
    assert found["written"] in found["printed"]
    statuses = re.findall(r"^(ok|FAILED|not applicable)  +(.+?): ", found["written"], re.M)
    assert len(statuses) >= 20
    assert not [name for status, name in statuses if status == "FAILED"]
    for words in ("vllm", "triton", "4 of 4 MoE layers hooked", "CPUUnquantizedExperts", "CPURouter",
                  "32 tokens and 96 kept", "requests of two were counted by their own", "vLLM's model runner v1",
                  "sandbox for model-written code", "bit-equal",
                  "not on this device", "computes in", "everything that applies holds"):  # fmt: skip
        assert words in re.sub(r"\s+", " ", found["written"])


@pytest.mark.engine
@pytest.mark.parametrize("mutation", SEEN)
def test_each_way_to_break_an_engine_is_seen(found: dict[str, Any], mutation: str) -> None:
    check, words = SEEN[mutation]
    status, finding = found["mutations"][mutation]["checks"][check]
    assert status == "FAILED"
    assert re.search(words, finding), finding


@pytest.mark.engine
@pytest.mark.parametrize("mutation", SEEN)
def test_the_short_form_refuses_to_measure(found: dict[str, Any], mutation: str) -> None:
    assert found["mutations"][mutation]["refusal"], "a sweep would have measured with this engine"


@pytest.mark.engine
def test_the_engine_holds_again_when_mended(found: dict[str, Any]) -> None:
    assert found["intact"]["refusal"] == ""
    assert "FAILED" not in {status for status, _ in found["intact"]["checks"].values()}


# ------------------------------------------------------------ without an engine


@pytest.fixture
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_help_says_how_and_what_the_exit_codes_are(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["verify", "--help"]) == 0
    out = capsys.readouterr().out
    for word in ("engine.compile=true", "engine=cuda", "--output", "dry_run=true", "Exit code", "not applicable"):
        assert word in out


@pytest.mark.usefixtures("_elsewhere")
def test_a_dry_run_starts_nothing(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert run(["verify", "dry_run=true", "model=qwen3_30b_a3b", "engine=cuda"]) == 0
    out = capsys.readouterr().out
    for word in ("qwen3_30b_a3b", "1 GPU", "compiled", "48 MoE layers", "Nothing was started"):
        assert word in out
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("_elsewhere")
@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["policy=ban"], "policy=ban chooses a policy"),
        (["+sweep=ban_pick"], "+sweep=ban_pick chooses a policy"),
        (["engine.compile=choice(true,false)"], "2 engines are named"),
        (["--output"], "--output names no file"),
        (["--output", "nowhere/report.txt"], "nowhere is no folder"),
        (["--output=."], "cannot be written"),
        (["engine.compiled=true"], "compiled"),
        (["model=banana"], "banana"),
    ],
)
def test_bad_input_is_answered_before_anything_starts(
    arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["verify", *arguments]) == 2
    assert words in capsys.readouterr().err


def engine_like(**settings: Any) -> Any:
    return SimpleNamespace(settings=SimpleNamespace(compile=True, **settings))


RANK = RankReport(
    rank=0,
    layers=("model.layers.0.mlp.experts",),
    router=("CPURouter",),
    num_experts=(32,),
    top_k=(8,),
    experts=("KeptCPUExperts",),
    quant_method=("UnquantizedFusedMoEMethod",),
    filler=("dup",),
    filler_reason=("every slot is computed",),
    device="cpu",
    device_name="a processor",
    dtype="bfloat16",
    compilation="VLLM_COMPILE",
    graphs="FULL",
)
STOCK, OTHER = [[-1.0, -2.0]], [[-1.5, -2.0]]


@pytest.mark.parametrize(
    ("rank", "scores", "status", "words"),
    [
        (RANK, {"none": STOCK, "fixed_k 1": OTHER, "none again": STOCK}, "ok", "0.5 (fixed_k 1)"),
        (RANK, {"none": STOCK, "fixed_k 1": STOCK, "none again": STOCK}, "FAILED", "a policy was frozen"),
        (RANK, {"none": STOCK, "fixed_k 1": OTHER, "none again": OTHER}, "FAILED", "5.0e-01 nats"),
        (dataclasses.replace(RANK, compilation="NONE"), {}, "FAILED", "vLLM compiled nothing"),
        (RANK, {}, "FAILED", "could not be had"),
    ],
)
def test_compiled_code_must_read_each_policy_anew(rank: Any, scores: Any, status: str, words: str) -> None:
    from banpick_exp.engine.verify.checks import check_compiled

    check = check_compiled(engine_like(), rank, scores)
    assert (check.status, words in check.finding) == (status, True), check.finding


@pytest.mark.parametrize(
    ("asked", "found", "gpus", "native", "status", "words"),
    [
        ("float32", ["float32"], 0, None, "ok", "computes in float32"),
        ("bfloat16", ["bfloat16"], 0, None, "ok", "model.dtype=float32 is faster"),
        ("bfloat16", ["bfloat16"], 0, "avx512_bf16", "ok", "multiplies itself (avx512_bf16)"),
        ("auto", ["bfloat16"], 1, None, "ok", "computes in bfloat16"),
        ("float32", ["bfloat16"], 0, None, "FAILED", "model.dtype=float32 was asked for"),
        ("auto", ["bfloat16", "float16"], 1, None, "FAILED", "computes in bfloat16, float16"),
    ],
)
def test_the_engine_computes_in_what_was_asked_for(
    asked: str, found: list[str], gpus: int, native: str | None, status: str, words: str
) -> None:
    from banpick_exp.engine.verify.checks import check_format

    engine = engine_like(gpus=gpus)
    engine.model = SimpleNamespace(dtype=asked)
    ranks = [dataclasses.replace(RANK, dtype=dtype) for dtype in found]
    check = check_format(engine, ranks, Machine(native, 2**34))
    assert (check.status, words in check.finding) == (status, True), check.finding


@pytest.mark.parametrize(
    ("rows", "problem", "status", "words"),
    [
        (1, None, "not applicable", "engine.policies_per_batch=16"),
        (16, None, "ok", "16 are held"),
        (16, "rank 1: a probe of 15 tokens of row 1", "FAILED", "rank 1"),
    ],
)
def test_requests_of_two_rows_are_held_against_the_count(
    rows: int, problem: str | None, status: str, words: str
) -> None:
    from banpick_exp.engine.verify.checks import check_rows

    engine = engine_like()
    engine.rows, engine.row_probe = rows, lambda _: problem
    check = check_rows(engine, RANK)
    assert (check.status, words in check.finding) == (status, True), check.finding


@pytest.mark.parametrize(
    ("asked", "found", "status"), [("v2", "v2", "ok"), ("v2", "v1", "FAILED"), ("v1", "v2", "FAILED")]
)
def test_the_model_runner_is_the_one_that_was_asked_for(asked: str, found: Any, status: str) -> None:
    from banpick_exp.engine.verify.checks import check_device

    check = check_device(engine_like(gpus=0, model_runner=asked), [dataclasses.replace(RANK, model_runner=found)])
    assert (check.status, found in check.finding) == (status, True), check.finding


@pytest.mark.parametrize(("stock", "status"), [("b" * 64, "ok"), ("a" * 64, "FAILED")])
def test_one_cache_key_for_both_is_a_failure(stock: str, status: str) -> None:
    from banpick_exp.engine.verify.checks import check_cache

    engine = engine_like()
    keys = {"ours": "a" * 64, "stock": stock, "used": "a" * 64, "exact": True}
    engine.call = lambda _: [keys]
    assert check_cache(engine).status == status


def test_what_a_rank_says_travels_as_plain_values() -> None:
    sent = json.loads(json.dumps(dataclasses.asdict(RANK)))
    assert RankReport.of(sent) == RANK
    check = Check("router", "not applicable", "nothing to see")
    assert Check.of(json.loads(json.dumps(check.wire()))) == check and not check.failed


def _unable() -> Any:
    raise OSError(28, "No space left on device")


def test_the_sandbox_is_named_and_fails_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    from banpick_exp.engine.verify import checks

    monkeypatch.setattr(checks, "available", Landlocked)
    assert checks.check_sandbox().status == "ok" and checks.check_sandbox().finding.startswith("Landlock; it passed")
    for found, words in ((lambda: "bubblewrap: no bwrap is installed", "no bwrap is installed"), (_unable, "No space")):
        monkeypatch.setattr(checks, "available", found)
        check = checks.check_sandbox()
        assert check.status == "not applicable" and not check.failed
        assert "task.grader=code would be refused" in check.finding and words in check.finding


def test_layer_names_are_folded() -> None:
    from banpick_exp.engine.verify.checks import folded

    assert folded([f"model.layers.{i}.mlp.experts" for i in (1, 2, 3, 5)]) == ["model.layers.{1..3,5}.mlp.experts"]
    assert folded(["a.0.b.1", "a.1.b.1"]) == ["a.0.b.{1}", "a.1.b.{1}"]
