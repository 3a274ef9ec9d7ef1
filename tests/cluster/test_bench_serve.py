"""`bench serve`: what its turns add up to, what makes a figure invalid, what is refused, and how its servers end."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from exportable_run import of_label, of_the_embedded_model
from matplotlib.image import imread

from banpick_exp.__main__ import main
from banpick_exp.cluster.commands import bench_serve
from banpick_exp.engine.serving import loopback
from banpick_exp.engine.serving.load_client import Load, Turn, turn_of
from banpick_exp.engine.serving.loopback import Loopback
from banpick_exp.engine.serving.served import POLICY, Served, served_policies
from banpick_exp.errors import UserError
from banpick_exp.evaluation.bench.served_turns import PLAIN, Arm, Counted, counted, engagement, order, row_of
from banpick_exp.models.inspect import EMBEDDED_CHECKPOINT
from banpick_exp.report.figures.bench_serve import throughput_png

LABELS = {"fixed": "fixed_k k=4", "pick": "pick boost=1 key_experts=4"}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Exports of a run of the embedded model, by rule."""
    folder = tmp_path_factory.mktemp("exported")
    synthetic, run = of_the_embedded_model(folder)
    for name, label in LABELS.items():
        assert main(["export", str(run), of_label(synthetic, label).fingerprint, str(folder / name)]) == 0
    return {"fixed": f"{folder / 'fixed'}", "pick": f"{folder / 'pick'}/@math"}


@pytest.fixture(scope="module")
def served(folders: dict[str, str]) -> dict[str, Served]:
    typed = ",".join(f"{name}={folder}" for name, folder in folders.items())
    return {each.name: each for each in served_policies({POLICY: typed})}


def turn(seconds: float, *, requests: int = 4, tokens: int = 10, prompt: int = 5) -> Turn:
    """Four requests of five tokens, each answered with ten."""
    return Turn(
        seconds=seconds, prompt_tokens=requests * prompt, output_tokens=requests * tokens,
        first_token_seconds=[0.1, 0.2, 0.3, 0.4], between_tokens_seconds=[0.01] * (requests * (tokens - 1)),
    )  # fmt: skip


NEEDED = 4 * (5 + 10 - 1)
"""Tokens that a turn routes: the last of an answer goes nowhere."""


def arm(name: str, served: Served | None, seconds: Sequence[float], kept: float = 8.0, tokens: float = NEEDED) -> Arm:
    found = Arm(name, served)
    for each in seconds:
        found.add(turn(each), Counted(tokens, tokens * kept), 0.6 * each)
    return found


# ------------------------------------------------------------ what the turns add up to


def test_a_ratio_is_that_of_a_round(served: dict[str, Served]) -> None:
    """A machine that is twice as slow in one round changes no ratio."""
    slow = [1.0, 2.0, 1.0, 4.0, 1.0, 1.0]
    stock = arm("stock", served["stock"], slow)
    fixed = arm("fixed", served["fixed"], [each / 1.25 for each in slow], kept=4.0)
    plain = arm(PLAIN, None, [each / 1.1 for each in slow], tokens=0)
    row = row_of(fixed, [plain, stock, fixed], 8)
    assert [row[key] for key in ("over_stock", "over_stock_low", "over_stock_high")] == pytest.approx([1.25] * 3)
    assert [row["over_plain"], row["cpu_over_plain"]] == pytest.approx([1.25 / 1.1] * 2)
    assert (row["tokens_per_second"], row["rounds"]) == (pytest.approx(50.0), 6)
    assert row["mean_kept"] == 4 and row["valid"]
    assert (row["first_token_ms"], row["first_token_ms_p99"]) == (pytest.approx(250), pytest.approx(400))
    assert (row["between_tokens_ms"], row["between_tokens_ms_p99"]) == (pytest.approx(10), pytest.approx(10))
    assert row_of(stock, [plain, stock, fixed], 8)["over_stock"] is None
    assert row_of(plain, [plain, stock, fixed], 8) | {"over_stock": 0} == {
        "arm": PLAIN, "rounds": 6, "policy": None, "fingerprint": None, "tokens_per_second": pytest.approx(44.0),
        "over_stock": 0, "over_stock_low": pytest.approx(1.1), "over_stock_high": pytest.approx(1.1),
        "cpu_over_stock": pytest.approx(1.1), "cpu_over_stock_low": pytest.approx(1.1),
        "cpu_over_stock_high": pytest.approx(1.1),
        "over_plain": None, "over_plain_low": None, "over_plain_high": None,
        "cpu_over_plain": None, "cpu_over_plain_low": None, "cpu_over_plain_high": None,
        "first_token_ms": pytest.approx(250), "first_token_ms_p99": pytest.approx(400),
        "between_tokens_ms": pytest.approx(10), "between_tokens_ms_p99": pytest.approx(10),
        "mean_kept": None, "mean_kept_exported": None, "valid": True, "problems": [], "notes": [],
    }  # fmt: skip
    assert row_of(fixed, [stock, fixed], 8)["over_plain"] is None, "there is no such arm"
    fixed.cpu_seconds = [0.0] * 6
    assert row_of(fixed, [stock, fixed], 8)["cpu_over_stock"] is None, "a machine that does not say"


def test_the_interval_holds_the_rounds(served: dict[str, Served]) -> None:
    stock = arm("stock", served["stock"], [1.0] * 9)
    fixed = arm("fixed", served["fixed"], [1 / ratio for ratio in range(1, 10)], kept=4.0)
    row = row_of(fixed, [stock, fixed], 8)
    assert [row[key] for key in ("over_stock", "over_stock_low", "over_stock_high")] == pytest.approx([5, 2, 8])


def test_the_order_turns_back() -> None:
    arms = [Arm(name, None) for name in "abc"]
    assert ["".join(each.name for each in order(arms, turn)) for turn in range(-1, 3)] == ["cba", "abc", "cba", "abc"]


def test_what_is_counted_between_two_readings() -> None:
    def metrics(tokens: float, first: float, second: float) -> dict[str, float]:
        others = {'banpick_tokens_total{policy="a.b"}': 9.0, 'banpick_mean_kept{layer="0",policy="a.b"}': 1.0}
        of_layers = {f'banpick_mean_kept{{layer="{at}",policy="b"}}': kept for at, kept in enumerate((first, second))}
        return {**others, 'banpick_tokens_total{policy="b"}': tokens, **of_layers}

    between = counted(metrics(30, 5.0, 6.0), "b") - counted(metrics(10, 8.0, 8.0), "b")
    assert between == Counted(20, 30 * 5.5 - 80)
    assert counted({}, "b") == Counted(0, 0)


# ------------------------------------------------------------ whether the policy was on


@pytest.mark.parametrize(
    ("name", "kept", "tokens", "words"),
    [
        ("fixed", 4.0, NEEDED, ""),
        ("fixed", 4.001, NEEDED + 8, ""),
        ("fixed", 4.0, NEEDED - 1, f"its requests are {2 * NEEDED} tokens, and {2 * NEEDED - 2} were routed under it"),
        ("fixed", 4.0, 0, "and 0 were routed under it"),
        ("fixed", 8.0, NEEDED, "it kept 8.00 experts a token and can keep 4.00 to 4.00"),
        ("pick", 8.0, NEEDED, ""),
        ("pick", 6.0, NEEDED, "it kept 6.00 experts a token and can keep 8.00 to 8.00"),
        ("stock", 8.0, NEEDED, ""),
        ("stock", 4.0, NEEDED, "it kept 4.00 experts a token and can keep 8.00 to 8.00"),
    ],
)
def test_a_policy_that_was_not_on_is_invalid(
    served: dict[str, Served], name: str, kept: float, tokens: int, words: str
) -> None:
    problems, _ = engagement(arm(name, served[name], [1.0, 1.0], kept, tokens), 8)
    assert problems == [] if not words else words in problems[0]


def adaptive(served: Served, exported: float) -> Served:
    """A policy that may keep 3 to 8 and was measured with `exported`."""
    whole = served.exported
    assert whole is not None
    measured = {**whole.header.measured, "domains": {served.domain: {"mean_kept": exported}}}
    domain = whole.header.domains[str(served.domain)].model_copy(update={"implied_budget": (3.0, 8.0)})
    domains = {**whole.header.domains, str(served.domain): domain}
    header = whole.header.model_copy(update={"measured": measured, "domains": domains})
    return dataclasses.replace(served, exported=dataclasses.replace(whole, header=header))


@pytest.mark.parametrize(
    ("kept", "problem", "note"),
    [(5.0, "", ""), (8.0, "nothing was pruned", ""), (6.0, "", "these prompts keep 6.00 experts a token")],
)
def test_a_budget_is_held_against_the_exported_one(
    served: dict[str, Served], kept: float, problem: str, note: str
) -> None:
    pruning = adaptive(served["fixed"], 5.0)
    problems, notes = engagement(arm("fixed", pruning, [1.0, 1.0], kept), 8)
    assert len(problems) == bool(problem) and len(notes) == bool(note)
    assert all(problem in text for text in problems) and all(note in text for text in notes)


# ------------------------------------------------------------ one turn


LOAD = Load(clients=2, requests=4, tokens=8, prompts=None, prompt_tokens=16, seed=3, salt="s")


def result(**changed: Any) -> dict[str, Any]:
    told = {"duration": 2.0, "completed": 4, "failed": 0, "total_input_tokens": 64, "total_output_tokens": 32}
    return {**told, "ttfts": [0.1] * 4, "itls": [[0.1] * 7] * 4, "errors": [""] * 4, **changed}


def test_a_turn_of_other_work_is_refused() -> None:
    whole = turn_of(result(), LOAD, "bench:fast")
    assert whole.tokens_per_second == 16 and len(whole.between_tokens_seconds) == 28
    failed = {"completed": 3, "failed": 1, "total_output_tokens": 24, "errors": ["", "a trace\nBad Request\n", "", ""]}
    with pytest.raises(UserError, match=r"3 requests were answered with 24 of 32 tokens \(Bad Request\)"):
        turn_of(result(**failed), LOAD, "bench:fast")
    with pytest.raises(UserError, match="31 of 32 tokens"):
        turn_of(result(total_output_tokens=31), LOAD, "bench:fast")


def test_the_client_asks_without_the_prefix_cache() -> None:
    random, given = LOAD.words(), dataclasses.replace(LOAD, prompts=Path("a.jsonl")).words()
    for words in (random, given):
        assert json.loads(words[words.index("--extra-body") + 1]) == {"cache_salt": "s"}
        assert "--ignore-eos" in words and words[words.index("--max-concurrency") + 1] == "2"
    assert random[:2] == ["--dataset-name", "random"] and random[random.index("--seed") + 1] == "3"
    assert "a.jsonl" in given and "--disable-shuffle" in given, "as the file has them, in both arms"


# ------------------------------------------------------------ servers that end


def alive(pid: int) -> bool:
    """Running, and no zombie that waits for its parent."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_a_server_that_does_not_come_up_says_why(tmp_path: Path) -> None:
    code = "import sys; print('not enough memory for this'); sys.exit(3)"
    server = Loopback("the server", [sys.executable, "-c", code], os.environ, tmp_path)
    with pytest.raises(UserError, match=r"the server ended with code 3 before it answered(.|\n)*not enough memory"):
        server.wait()
    server.stop()
    server.stop()


def test_a_server_is_stopped_with_its_children(tmp_path: Path) -> None:
    code = (
        "import os, subprocess, sys, time; end = time.process_time() + 0.3\nwhile time.process_time() < end: pass\n"
        "child = subprocess.Popen(['sleep', '600']); open(sys.argv[1], 'w').write(f'{os.getpid()} {child.pid}');"
        " time.sleep(600)"
    )
    place = tmp_path / "pids"
    server = Loopback("the server", [sys.executable, "-c", code, str(place)], os.environ, tmp_path)
    try:
        pids = _pids(place)
        assert all(map(alive, pids)) and 0.3 <= server.cpu_seconds() < 30
        server.check()
    finally:
        server.stop()
    _gone(pids)
    with pytest.raises(UserError, match="the server ended with code -15"):
        server.check()


@pytest.mark.parametrize("sign", [signal.SIGKILL, signal.SIGTERM])
def test_a_server_ends_with_whoever_started_it(sign: signal.Signals, tmp_path: Path) -> None:
    """However that ended."""
    place = tmp_path / "pids"
    inner = "import os, sys, time; open(sys.argv[1], 'w').write(str(os.getpid())); time.sleep(600)"
    code = (
        "import os, sys, time; from pathlib import Path; from banpick_exp.engine.serving.loopback import Loopback;"
        f" Loopback('it', [sys.executable, '-c', {inner!r}, sys.argv[1]], os.environ, Path(sys.argv[2]));"
        " time.sleep(600)"
    )
    parent = subprocess.Popen([sys.executable, "-c", code, str(place), str(tmp_path)])
    try:
        pids = _pids(place)
        parent.send_signal(sign)
        parent.wait(20)
        _gone(pids)
    finally:
        parent.kill()
        parent.wait()


def _pids(place: Path) -> list[int]:
    end = time.monotonic() + 60
    while not (place.is_file() and place.read_text()):
        assert time.monotonic() < end
        time.sleep(0.05)
    return [int(pid) for pid in place.read_text().split()]


def _gone(pids: Sequence[int]) -> None:
    end = time.monotonic() + 20
    while any(map(alive, pids)):
        assert time.monotonic() < end, pids
        time.sleep(0.05)


def test_the_server_without_the_plugin_has_no_policy(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """As its process sees it: a user's BANPICK_POLICY would end it, since the plugin is not named there."""
    monkeypatch.setenv("VLLM_PLUGINS", "theirs,banpick")
    monkeypatch.setenv("BANPICK_POLICY", "OUT/")
    code = "import os; print([os.environ.get(name) for name in ('VLLM_PLUGINS', 'BANPICK_POLICY', 'MINE')])"
    monkeypatch.setattr(loopback, "server_command", lambda model: [sys.executable, "-c", code])
    server = loopback.without_plugin("tiny", [], {"MINE": "1"}, tmp_path)
    with pytest.raises(UserError, match=r"\['theirs', None, '1'\]"):
        server.wait()


# ------------------------------------------------------------ the command


def test_a_dry_run_names_servers_work_and_time(folders: dict[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    words = [f"a={folders['fixed']}", f"b={folders['pick']}", "--clients", "1,8", "--rounds", "6", "--dtype", "float32"]
    assert main(["bench", "serve", *words, "--servers", "2", "--dry-run"]) == 0
    with_policies, without, work, time_ = capsys.readouterr().out.splitlines()[-4:]
    assert f"serve tiny a={folders['fixed']} b={folders['pick']} --enforce-eager" in with_policies
    assert "banpick_exp serve" not in without and without.endswith("--dtype float32")
    assert work.startswith("4 arms (no plugin, stock, a, b), 1, 8 clients, 6 rounds and one to warm up: 35,840 tokens")
    assert time_.startswith("About ")


def test_a_dry_run_without_a_folder_says_which_policy_comes_first(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "serve", "--servers", "1", "--dry-run"]) == 0
    first, work, _ = capsys.readouterr().out.splitlines()
    assert "policy=ban_pick" in first and work.startswith("2 arms (stock, ban_pick)")


def test_the_recipe_is_a_sweep_that_can_be_planned(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*bench_serve.RECIPE, *bench_serve.OF_RECIPE, "dry_run=true"]) == 0


def test_help_is_its_own(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "serve", "--help"]) == 0
    assert "--clients" in capsys.readouterr().out
    assert main(["bench", "--help"]) == 0
    assert "bench serve --help" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("typed", "words"),
    [
        (["--rounds", "1"], "--rounds=1 gives no spread"),
        (["--tokens", "1"], "--tokens=1"),
        (["--clients", "0"], "each must be 1 or more"),
        (["--clients", "8,8"], "has a number twice"),
        (["--clients", "many"], "no list of whole numbers"),
        (["--port", "8000"], "--port: where the servers listen"),
        (["--host=0.0.0.0"], "--host=0.0.0.0: where the servers listen"),
        (["--output", "/no such folder/a"], "there is no folder"),
        (["/models/mine"], "which policy of it?"),
        (["tiny", "/no/such/OUT"], "is no folder"),
        (["--prompts", "/no/such.jsonl", "--prompt-tokens", "8"], "Leave one of them out"),
    ],
)
def test_what_cannot_be_measured(typed: list[str], words: str) -> None:
    with pytest.raises(UserError, match=words.replace("?", r"\?")):
        bench_serve.run([*typed, "--dry-run"])


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        (["no json"], "every line must be JSON"),
        (['{"text": "a"}'], "every line must be JSON"),
        (['{"prompt": 3}'], "a prompt is a text"),
        ([], "there must be some"),
        (['{"prompt": "a"}'] * 9, "1 different prompts for a turn of 4 requests"),
    ],
)
def test_prompts_that_cannot_be_asked(folders: dict[str, str], lines: list[str], words: str, tmp_path: Path) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_text("".join(f"{line}\n" for line in lines))
    with pytest.raises(UserError, match=words):
        bench_serve.run([folders["fixed"], "--clients", "1", "--prompts", str(path), "--dry-run"])


def test_another_checkpoint_is_refused(folders: dict[str, str], tmp_path: Path) -> None:
    shutil.copytree(EMBEDDED_CHECKPOINT, tmp_path / "mine")
    weights = tmp_path / "mine" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    with pytest.raises(UserError, match="the same expert is another one there"):
        bench_serve.run([str(tmp_path / "mine"), folders["fixed"], "--dry-run"])


def test_a_gpu_holds_one_server(
    folders: dict[str, str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(bench_serve, "on_gpu", lambda: True)
    assert bench_serve.run([folders["fixed"], "--dry-run"]) == 0
    assert "2 arms (stock, policy)" in capsys.readouterr().out


def test_the_picture(tmp_path: Path) -> None:
    rows = [
        {
            "clients": clients, "arm": name, "policy": policy, "mean_kept": kept, "valid": valid,
            "over_stock": ratio, "over_stock_low": ratio and ratio - 0.1, "over_stock_high": ratio and ratio + 0.1,
        }
        for clients in (1, 8)
        for name, policy, kept, ratio, valid in (
            (PLAIN, None, None, 1.02, True), ("stock", "stock", 8.0, None, True),
            ("fast", "fixed_k k=4", 4.0, 1.2, True),
            ("careful", "pick boost=1 key_experts=4", 8.0, 0.9, clients == 1),
        )
    ]  # fmt: skip
    assert imread(throughput_png(rows, tmp_path / "a.png")).ndim == 3
