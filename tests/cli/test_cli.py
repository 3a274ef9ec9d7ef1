"""The command line as a user meets it: what is printed, the exit codes, and every kind of bad input."""

from __future__ import annotations

import json
import os
import resource
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from checkpoint_folder import write_checkpoint

from banpick_exp.__main__ import main

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def _clean_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Results land in tmp_path, no W&B key is around, and a plan that passes must not reach the runner unnoticed."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("WANDB_API_KEY", "WANDB_BASE_URL", "NETRC"):
        monkeypatch.delenv(name, raising=False)


def checkpoint(folder: Path, **config: Any) -> str:
    return str(write_checkpoint(folder, **config))


def test_alone_it_says_what_to_type(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    out = capsys.readouterr().out
    assert "+sweep=pick_strength" in out and "--help" in out
    assert len(out.splitlines()) < 10


@pytest.mark.parametrize("flag", ["-h", "--help"])
def test_help_is_a_page(flag: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([flag]) == 0
    out = capsys.readouterr().out
    for word in ("+sweep=", "ban_threshold", "qwen3_235b_a22b", "dry_run=true", "sweep.params=", "points.parquet"):
        assert word in out


def test_a_dry_run_prints_the_plan_and_starts_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["+sweep=pick_strength", "model=qwen3_235b_a22b", "task=tiny", "dry_run=true"]) == 0
    out = capsys.readouterr().out
    for word in (
        "23 points",
        "8 GPUs",
        "shared by 23",
        "pick boost=0.25 key_experts=1",
        "Calibration: 1 run",
        "Estimate:",
    ):
        assert word in " ".join(out.split())
    assert list(tmp_path.iterdir()) == []


def test_a_dry_run_of_a_resumed_run_marks_what_is_recorded(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from banpick_exp.sweep.plan import plan_sweep

    arguments = ["policy=fixed_k", "policy.k=1,2", "dry_run=true"]
    plan = plan_sweep(arguments)
    plan.folder.write_manifest(plan.manifest())
    (plan.folder.path / "points").mkdir()
    (plan.folder.path / "points" / f"{plan.points[1].fingerprint}.json").write_text("{}")
    assert main([*arguments, f"resume={plan.folder.path.name}"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.rstrip().endswith("yes") for line in lines if "fixed_k k=" in line] == [True, False]


def test_a_good_command_writes_its_manifest_and_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import types

    seen: list[Any] = []
    stub = types.ModuleType("banpick_exp.cluster.run")

    def run_sweep(plan: Any) -> int:
        seen.append(plan)
        return 1

    stub.run_sweep = run_sweep  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "banpick_exp.cluster.run", stub)
    assert (
        main(["policy=fixed_k", "policy.k=2", "task=tiny", f"model.path={checkpoint(tmp_path / 'm')}", "tracking=none"])
        == 1
    )
    stored = json.loads((seen[0].folder.path / "run.json").read_text())
    assert stored["sweep"] == "custom" and list(stored["models"].values()) == ["m"]
    assert "policy.k=2" in stored["command"]
    assert "suit the embedded model" in capsys.readouterr().out


SWEEP = "+sweep=pick_strength"
BAD_INPUT: list[tuple[list[str], list[str]]] = [
    (
        ["+sweep=pick_strngth"],
        ["+sweep=pick_strngth is unknown", "Did you mean +sweep=pick_strength?", "ban_threshold"],
    ),
    (["pick_strength"], ["Did you mean +sweep=pick_strength?"]),
    (["--dry-run"], ["dry_run=true"]),
    (["~policy"], ["Type policy=VALUE"]),
    (["policy=pik"], ["policy=pik is unknown", "Did you mean policy=pick?", "fixed_k"]),
    ([SWEEP, "task=tinny"], ["task=tinny is unknown", "Did you mean task=tiny?", "jsonl"]),
    ([SWEEP, "model=qwen3_30b"], ["Did you mean model=qwen3_30b_a3b?"]),
    ([SWEEP, "polcy.boost=1"], ["polcy.boost is no setting", "Did you mean policy?"]),
    ([SWEEP, "engine.max_seqs=1"], ["engine.max_seqs is no setting", "Did you mean engine.max_num_seqs?"]),
    ([SWEEP, "calibration.sample=1"], ["Did you mean calibration.samples?"]),
    ([SWEEP, "cluster.engine=1"], ["Did you mean cluster.engines?"]),
    ([SWEEP, "policy.boots=1"], ["policy.boots is no knob", "Did you mean policy.boost?"]),
    (["policy=ban", "policy.lamda=1"], ["lamda", "Did you mean policy.lambda?"]),
    ([SWEEP, "policy.boost=strong"], ["boost", "strong", "not a number"]),
    ([SWEEP, "policy.boost=21"], ["boost=21", "[-20, 20]"]),
    (["policy=ban", "policy.k_min=9"], ["k_min=9 exceeds top_k=8", "1..8"]),
    (["policy=ban", "policy.k_min=0"], ["k_min=0", "below 1"]),
    (["policy=ban", "policy.lambda=0"], ["lambda=0", "(0, 2]"]),
    (["policy=ban", "policy.lambda=2.5"], ["lambda=2.5", "(0, 2]"]),
    (["policy=pick", "policy.key_experts=129"], ["key_experts=129", "128"]),
    ([SWEEP, "policy.boost=range(1,1)"], ["zero points", "policy.boost=choice(1,2)"]),
    ([SWEEP, "model.path={empty}"], ["has no config.json"]),
    ([SWEEP, "model.path={dense}"], ["is a dense model", "model=tiny"]),
    ([SWEEP, "model.path={bypass}"], ["MiniCPMForCausalLM", "outside the runner we hook"]),
    ([SWEEP, "output_dir={file}"], ["cannot be written", "output_dir=FOLDER"]),
    ([SWEEP, "resume={other}"], ["of the sweep ban_pick", "must not be mixed"]),
    ([SWEEP, "resume=nowhere"], ["no folder and no run"]),
    ([SWEEP, "tracking.mode=online"], ["needs a W&B key", "wandb login", "tracking.mode=offline"]),
    ([SWEEP, "engine=cuda", "engine.tensor_parallel_size=2"], ["engine.gpus=1", "engine.gpus=2"]),
    ([SWEEP, "task=jsonl"], ["task.data_files and task.domains have no default"]),
    ([SWEEP, "policy.boost=choice(1"], ["cannot be read", "choice(1,2)"]),
    ([SWEEP, "policy.boost=range(1,4,0)"], ["cannot be read", "choice(1,2)"]),
    ([SWEEP, "policy.boost=choice(1,2),choice(3,4)"], ["an axis inside an axis", "'policy.boost=choice(1,2)'"]),
    ([SWEEP, "sweep.params=[policy=ban]"], ["cannot be read", """Type 'sweep.params=["policy=ban"]'."""]),
    (
        [SWEEP, "sweep.params=[policy.boost=choice(1,2),policy.mode=boost]"],
        ["""Type 'sweep.params=["policy.boost=choice(1,2)", "policy.mode=boost"]'."""],
    ),
    ([SWEEP, "sweep.params=policy.boost=1"], ["""Type 'sweep.params=["policy.boost=1"]'."""]),
    (["sweep.blocks=[[policy=ban]]"], ["""sweep.blocks='[["policy=ban","""]),
    (
        [SWEEP, "task.data_files=data/{domain}_{split}.jsonl"],
        ["""Type 'task.data_files="data/{domain}_{split}.jsonl"'."""],
    ),
    ([SWEEP, "task.answer_pattern=is (.+)"], ["""Type 'task.answer_pattern="is (.+)"'."""]),
    ([SWEEP, "policy.experts={0:[1"], ["every bracket and quote must close", "'policy.experts={0: [3, 7]}'"]),
    ([SWEEP, "calibration.path={empty}"], ["there is no file", "calibration.json", "leave calibration.path out"]),
]


@pytest.mark.parametrize(("typed", "words"), BAD_INPUT, ids=[" ".join(typed) for typed, _ in BAD_INPUT])
def test_bad_input_ends_with_one_readable_message(
    typed: list[str], words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without dry_run: what a user types, and still nothing starts."""
    places = {name: str(tmp_path / name) for name in ("empty", "dense", "bypass", "file", "other")}
    (tmp_path / "empty").mkdir()
    checkpoint(tmp_path / "dense", num_experts=0, architectures=["LlamaForCausalLM"])
    checkpoint(tmp_path / "bypass", architectures=["MiniCPMForCausalLM"])
    (tmp_path / "file").write_text("")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "run.json").write_text(json.dumps({"sweep": "ban_pick", "models": {}, "tasks": {}}))
    loaded = set(sys.modules)
    for name, place in places.items():
        typed = [text.replace(f"{{{name}}}", place) for text in typed]
    assert main(typed) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("banpick: ") and captured.err.count("\n") == 1
    for word in words:
        assert word in captured.err
    assert not {"ray", "torch", "vllm"} & (set(sys.modules) - loaded)
    assert not (tmp_path / "outputs").exists()


def test_the_text_to_type_is_read_as_meant() -> None:
    """Every remedy above for a text outside the grammar, through a shell and back."""
    from banpick_exp.errors import UserError
    from banpick_exp.sweep.overrides import parse_axis

    for text in ("task.data_files=data/{domain}.jsonl", "task.answer_pattern=\\boxed{(.+)}", 'output_dir=a"b"{c'):
        with pytest.raises(UserError) as caught:
            parse_axis(text)
        (typed,) = shlex.split(str(caught.value).partition(" Type ")[2].removesuffix("."))
        assert parse_axis(typed).values == (text.partition("=")[2],)


def test_a_wandb_key_is_found_and_never_printed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    online = ["policy=none", "tracking.mode=online", "dry_run=true"]
    monkeypatch.setenv("WANDB_API_KEY", "secret-in-environment")
    assert main(online) == 0
    monkeypatch.delenv("WANDB_API_KEY")
    assert main(online) == 2
    (tmp_path / ".netrc").write_text("machine api.wandb.ai login user password secret-in-netrc\n")
    (tmp_path / ".netrc").chmod(0o600)
    assert main(online) == 0
    monkeypatch.setenv("WANDB_BASE_URL", "https://wandb.example.org")
    assert main(online) == 2, "a key for another server is no key"
    captured = capsys.readouterr()
    assert "secret" not in captured.out + captured.err


def test_bad_input_is_quick_as_a_process(tmp_path: Path) -> None:
    """From a cold start, imports included."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
    done = subprocess.run(
        [sys.executable, "-m", "banpick_exp", "policy=ban", "policy.k_min=9"],
        capture_output=True,
        text=True,
        timeout=60,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "kernels")])},
    )
    assert done.returncode == 2
    assert "k_min=9 exceeds top_k=8" in done.stderr and "Traceback" not in done.stderr
    # Processor time, so that a busy machine cannot fail this.
    assert resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime - before < 10


@pytest.mark.parametrize(
    "command", ["inspect", "calibrate", "verify", "report", "choose", "compare", "demand", "bench", "tiny"]
)
def test_every_command_has_a_help_page(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([command, "--help"]) == 0
    page = capsys.readouterr().out
    assert f"python -m banpick_exp {command}" in page and len(page.splitlines()) >= 6
    assert main(["--help"]) == 0
    assert f"  {command} " in capsys.readouterr().out


def test_a_command_that_is_nearly_one_gets_a_suggestion(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verfy"]) == 2
    assert "Did you mean verify?" in capsys.readouterr().err


@pytest.mark.parametrize("former", ["verify", "calibrate", "report", "choose", "bench", "tiny", "search.compare"])
def test_old_calls_go_on_working(former: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", f"banpick_exp.{former}", "--help"], capture_output=True, text=True, timeout=60, cwd=ROOT
    )
    assert done.returncode == 0 and f"banpick_exp {former.removeprefix('search.')}" in done.stdout, done.stderr


def test_completion_offers_commands_keys_and_names() -> None:
    from banpick_exp.cli.completion import candidates

    assert candidates([], "cal") == ["calibration=", "calibrate"]
    assert candidates([], "+sweep=pick_st") == ["+sweep=pick_strength"]
    assert candidates(["+sweep=ban_pick"], "model=qwen3_c") == ["model=qwen3_coder_30b_a3b"]
    assert candidates(["model", "="], "qwen3_c") == ["qwen3_coder_30b_a3b"], "bash splits words at ="
    assert "engine.max_num_seqs=" in candidates([], "engine.max")


def test_completion_is_installed_where_the_shell_looks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(Path, "home", lambda: tmp_path)
    assert main(["--install-completion", "bash"]) == 0
    script = Path(capsys.readouterr().out.split()[1].rstrip("."))
    assert "_BANPICK_COMPLETE=bash_complete" in script.read_text() and script.is_relative_to(tmp_path)
    assert main(["--install-completion", "tcsh"]) == 2


@pytest.mark.parametrize(
    ("flag", "words"),
    [
        ("-m", "Axes need no flag"), ("--multirun", "Axes need no flag"), ("--cfg", "dry_run=true"),
        ("--config-dir=x", "Files of your own are not read"), ("--config-name=x", "+sweep=NAME"),
        ("--hydra-help", "--help"),
    ],
)  # fmt: skip
def test_hydras_own_flags_are_answered(flag: str, words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["+sweep=pick_strength", flag]) == 2
    assert words in capsys.readouterr().err


def test_the_version_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    from banpick_exp import __version__

    assert main(["--version"]) == 0 and __version__ in capsys.readouterr().out


@pytest.mark.parametrize("encoding", ["latin-1", "ascii"])
def test_a_terminal_without_our_characters_gets_others(encoding: str, tmp_path: Path) -> None:
    """H1: a finished sweep ended in UnicodeEncodeError for the filled circle."""
    code = "import sys; from banpick_exp.cli.console import answered; sys.exit(answered(lambda: print('● ▲ é') or 0))"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, timeout=60, cwd=ROOT,
        env={**os.environ, "PYTHONIOENCODING": encoding},
    )  # fmt: skip
    assert done.returncode == 0 and done.stderr == b"" and done.stdout.startswith(b"? ? ")


def test_a_broken_pipe_is_no_traceback() -> None:
    code = (
        "import sys; from banpick_exp.cli.console import answered; sys.exit(answered(lambda: print('x' * 10**6) or 0))"
    )
    command = f"{shlex.quote(sys.executable)} -c {shlex.quote(code)} | head -c 10; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=60, cwd=ROOT)
    assert done.returncode == 141 and done.stderr == "", done.stderr
