"""The controls as files, and the command that makes them: no engine is started."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from banpick_exp.__main__ import main
from banpick_exp.errors import UserError
from banpick_exp.models.checkpoint import CONTROL_RECIPE
from banpick_exp.models.tiny import ASSETS, control
from banpick_exp.models.tiny.checkpoint import load_weights
from banpick_exp.models.tiny.control import build_control, control_folder, fingerprint_of
from banpick_exp.models.tiny.kinds import PLANTED
from banpick_exp.models.tiny.model import tiny_config
from banpick_exp.models.tiny.planting import router_inputs

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def math_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("math")
    build_control("math", folder)
    return folder


def test_the_same_bytes_every_time(math_folder: Path, tmp_path: Path) -> None:
    build_control("math", tmp_path)
    for path in math_folder.iterdir():
        assert path.read_bytes() == (tmp_path / path.name).read_bytes(), path.name


def test_only_the_planted_expert_changes(math_folder: Path) -> None:
    healthy, changed = load_weights(ASSETS / "checkpoint"), load_weights(math_folder)
    ((layer, expert),) = PLANTED["math"].planted
    gate, down = f"model.layers.{layer}.mlp.gate.weight", f"model.layers.{layer}.mlp.experts.{expert}.down_proj.weight"
    assert {name for name in healthy if not torch.equal(healthy[name], changed[name])} == {gate, down}
    rows = (healthy[gate] != changed[gate]).any(-1).nonzero().flatten().tolist()
    assert rows == [expert]
    ratio = changed[down].float() / healthy[down].float()
    assert ratio.std() < 0.01 * ratio.mean() and ratio.mean() > 1.5


def test_the_expert_now_ranks_just_outside_the_top_k(math_folder: Path) -> None:
    """Where it was selected it is now mostly outside the top K, and inside the top 2K that range_replace looks at."""
    healthy, changed = load_weights(ASSETS / "checkpoint"), load_weights(math_folder)
    ((layer, expert),) = PLANTED["math"].planted
    name, top_k = f"model.layers.{layer}.mlp.gate.weight", tiny_config().num_experts_per_tok
    inputs = router_inputs(healthy, "math")[layer]
    before, after = (inputs @ weights[name].double().T for weights in (healthy, changed))
    rank_before, rank_after = ((x > x[:, [expert]]).sum(-1) for x in (before, after))
    used = rank_before < top_k
    assert used.float().mean() > 0.2
    assert (rank_after[used] < top_k).float().mean() < 0.25
    assert (rank_after[used] < 2 * top_k).float().mean() > 0.85
    assert (rank_after[~used] < top_k).float().mean() < 0.02


def test_control_folder_builds_once_and_completely(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    folder = control_folder("knowledge")
    assert tmp_path in folder.parents
    assert {"config.json", "model.safetensors", "tokenizer.json", "control.json"} <= {p.name for p in folder.iterdir()}
    assert [path for path in folder.parent.iterdir() if path != folder] == []
    build_control("knowledge", tmp_path / "again")
    for path in folder.iterdir():
        assert path.read_bytes() == (tmp_path / "again" / path.name).read_bytes(), path.name
    monkeypatch.setattr(control, "build_control", None)  # a second call must not build
    assert control_folder("knowledge") == folder


def test_a_half_built_folder_is_never_used(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))

    def broken(kind: str, output: Path) -> None:
        (output / "config.json").write_text("{}")
        raise RuntimeError("killed")

    monkeypatch.setattr(control, "build_control", broken)
    with pytest.raises(RuntimeError, match="killed"):
        control_folder("math")
    assert list((tmp_path / "banpick_exp" / "controls").iterdir()) == []


def test_what_control_json_says(math_folder: Path, tmp_path: Path) -> None:
    described = build_control("math", tmp_path)
    assert described["planted"] == [list(pair) for pair in PLANTED["math"].planted]
    assert described["recipe"] == CONTROL_RECIPE
    assert described["source"] == fingerprint_of(ASSETS / "checkpoint") != fingerprint_of(math_folder)


def test_unknown_kind_and_other_weights_are_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"'code'.*Use math, knowledge, weak_math, demoted_code"):
        build_control("code", tmp_path)
    monkeypatch.setattr(control, "PLANTED_IN", "0123456789abcdef")
    with pytest.raises(UserError, match="chosen on 0123456789abcdef"):
        build_control("math", tmp_path)
    assert list(tmp_path.iterdir()) == []


# ------------------------------------------------------------ the command


def test_command_writes_the_control(tmp_path: Path, math_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["tiny", "--control", "math", "--output", str(tmp_path)]) == 0
    written = tmp_path / "control-math"
    assert (written / "model.safetensors").read_bytes() == (math_folder / "model.safetensors").read_bytes()
    ((layer, expert),) = PLANTED["math"].planted
    assert f"layer {layer} expert {expert}" in capsys.readouterr().out


def test_command_never_replaces_an_earlier_result_by_default(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny-out" / "checkpoint").mkdir(parents=True)
    assert main(["tiny"]) == 2
    message = capsys.readouterr().err
    assert "tiny-out/checkpoint exists" in message and "--output tiny-out" in message


def test_command_refuses_zero_steps_and_a_file_as_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["tiny", "--steps", "0", "--output", str(tmp_path / "a")]) == 2
    assert "--steps=0" in capsys.readouterr().err
    (tmp_path / "file").write_text("")
    assert main(["tiny", "--output", str(tmp_path / "file" / "x")]) == 2
    assert "cannot be written" in capsys.readouterr().err


def test_help_needs_no_torch() -> None:
    code = (
        "import sys; from banpick_exp.cluster.commands.tiny import help_page; text = help_page(); "
        "assert 'torch' not in sys.modules; print(text)"
    )
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert "--control" in output and "model=tiny_control" in output and "--seed" in output


def test_command_trains_and_writes_everything(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["tiny", "--steps", "1", "--output", str(tmp_path)]) == 0
    shipped = {path.relative_to(ASSETS) for path in ASSETS.rglob("*") if path.is_file()}
    assert {path.relative_to(tmp_path) for path in tmp_path.rglob("*") if path.is_file()} == shipped
    assert "dev split" in capsys.readouterr().out
