"""`python -m banpick_exp export`: what is typed, what is written, and what is refused; runs that never ran."""

from __future__ import annotations

import json
import os
import re
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from exportable_run import CALIBRATION, exportable, of_label
from safetensors.torch import load_file, save_file
from synthetic_run import SyntheticRun, ladder, pick_strength

from banpick_exp.__main__ import main
from banpick_exp.analysis.verdict import gains_in
from banpick_exp.errors import UserError
from banpick_exp.policy import build_policy
from banpick_exp.policy.exported import load
from banpick_exp.policy.exported_files import CARD, HEADER, TENSORS
from banpick_exp.report.export import command
from banpick_exp.report.export.chosen import chosen
from banpick_exp.report.run import read_run
from banpick_exp.run_folder import RunFolder

PICK = "pick boost=2 key_experts=2"


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """outputs/pick_strength/first: a ladder, Picks of which some gain, Bans, and points that are no results."""
    outputs = tmp_path_factory.mktemp("outputs")
    synthetic = pick_strength(ladder(SyntheticRun(problems=200)), gain=0.1)
    synthetic.add("ban", {"lambda": 0.8, "k_min": 3}, kept=5, churn=0.03)
    synthetic.add("naee", {"beta": 0.4, "k_min": 2}, kept=5, churn=0.03)
    synthetic.add("mask", {"experts": {"0": [3, 5], "2": [31]}}, churn=0.03)
    synthetic.add("pick", {"boost": 0.1, "key_experts": 1}, status="failed", reason="out of memory")
    synthetic.add("pick", {"boost": 0.2, "key_experts": 1}, status="invalid", reason="the policy did not engage: math")
    synthetic.add("pick", {"boost": 0.3, "key_experts": 1}, status="dropped", reason="can no longer reach the front")
    exportable(synthetic, outputs)
    return synthetic.write(outputs / "pick_strength" / "first")


@pytest.fixture
def run(kept: Path, tmp_path: Path) -> Path:
    """A copy of one's own, with the calibrations beside it; the working folder is above it."""
    shutil.copytree(kept.parents[1], tmp_path / "outputs")
    return tmp_path / "outputs" / "pick_strength" / "first"


def export(*words: str | Path) -> int:
    return command.run([str(word) for word in words])


def refused(*words: str | Path) -> str:
    with pytest.raises(UserError) as raised:
        export(*words)
    assert "\n" not in str(raised.value)
    return str(raised.value)


def bytes_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


# ---------------------------------------------------------------- what is written


def test_a_point_goes_out_and_comes_back(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    assert export(run, PICK, out) == 0
    assert sorted(bytes_of(out)) == [CARD, HEADER, TENSORS]
    assert stat.S_IMODE(out.stat().st_mode) & 0o002 == 0
    exported = load(out)
    record = next(each for each in read_run(RunFolder(run)).records if each.label == PICK)
    assert exported.header.point["fingerprint"] == record.fingerprint
    assert {name: exported.build(name).digest()[:16] for name in exported.domains} == record.engagement.routing_table
    assert exported.header.measured["domains"]["overall"]["accuracy"] == record.measured.overall.accuracy
    printed = capsys.readouterr().out
    assert f"Wrote {out}/: policy.json" in printed and f"python -m banpick_exp inspect {out}/" in printed


def test_the_same_point_is_the_same_bytes(run: Path, tmp_path: Path) -> None:
    """Also in another process, of a copy of the run elsewhere, and with the files of its folder in another order."""
    export(run, PICK, tmp_path / "one")
    elsewhere = tmp_path / "elsewhere" / "pick_strength" / "first"
    shutil.copytree(run.parents[1] / "calibrations", tmp_path / "elsewhere" / "calibrations")
    (elsewhere / "points").mkdir(parents=True)
    for path in sorted((run / "points").iterdir(), reverse=True):
        shutil.copy(path, elsewhere / "points" / path.name)
    root = Path(__file__).resolve().parents[2]
    paths = {"PYTHONPATH": os.pathsep.join([str(root), str(root / "kernels")]), "PYTHONHASHSEED": "7"}
    line = [sys.executable, "-m", "banpick_exp", "export", str(elsewhere), PICK, str(tmp_path / "two")]
    done = subprocess.run(line, env=os.environ | paths, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert bytes_of(tmp_path / "one") == bytes_of(tmp_path / "two")
    assert str(tmp_path) not in (tmp_path / "one" / HEADER).read_text() + (tmp_path / "one" / CARD).read_text()


def test_no_pickle_and_no_code(run: Path, tmp_path: Path) -> None:
    for number, point in enumerate((PICK, "ban lambda=0.8 k_min=3", "fixed_k k=4")):
        export(run, point, tmp_path / str(number))
        for name, content in bytes_of(tmp_path / str(number)).items():
            assert Path(name).suffix in (".json", ".md", ".safetensors")
            assert not content.startswith((b"\x80", b"PK"))
    assert TENSORS not in bytes_of(tmp_path / "2"), "fixed_k reads no calibration"


def test_named_experts_keep_their_layers(run: Path, tmp_path: Path) -> None:
    (mask,) = (each for each in read_run(RunFolder(run)).records if each.policy_name == "mask")
    export(run, mask.fingerprint, tmp_path / "out")
    bias_LE = load(tmp_path / "out").build().table.logit_bias_PLE[0]
    assert [tuple(each) for each in bias_LE.isneginf().nonzero().tolist()] == [(0, 3), (0, 5), (2, 31)]


def test_gold_sensitivity_is_found_by_the_table(kept: Path, tmp_path: Path) -> None:
    """A record does not tell calibration.sensitivity: what was measured decides."""
    synthetic = ladder(SyntheticRun(problems=60), ks=(6, 4))
    synthetic.add("ban", {"lambda": 0.8, "k_min": 3}, kept=5)
    exportable(synthetic, tmp_path, sensitivity="gold")
    run = synthetic.write(tmp_path / "ban" / "gold")
    export(run, "ban lambda=0.8 k_min=3", tmp_path / "out")
    found = load(tmp_path / "out").header
    assert found.calibration is not None and found.calibration.sensitivity == "gold"
    reads = next(iter(found.domains.values())).calibration
    assert reads is not None and set(reads.parts) == {"layer_sensitivity", "r_min", "r_max"}


def test_best_is_the_first_gain_of_the_verdict(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    best = gains_in(read_run(RunFolder(run)).verdicts).row(0, named=True)
    export(run, "best", tmp_path / "named")
    export(run, tmp_path / "not")
    assert load(tmp_path / "named").header.point["fingerprint"] == best["fingerprint"]
    assert bytes_of(tmp_path / "named") == bytes_of(tmp_path / "not")
    card = (tmp_path / "named" / CARD).read_text()
    assert "Chosen as the surest gain" in card and "beats" in card
    assert "the surest gain" in capsys.readouterr().out


def test_without_a_gain_best_says_what_to_type(tmp_path: Path) -> None:
    synthetic = exportable(pick_strength(ladder(SyntheticRun(problems=60))), tmp_path)
    run = synthetic.write(tmp_path / "pick_strength" / "none")
    message = refused(run, "best", tmp_path / "out")
    assert "has none: nothing was exported. No gain" in message and not (tmp_path / "out").exists()
    typed = re.search(rf"type python -m banpick_exp export {re.escape(str(run))} (\w+) OUT/$", message)
    assert typed, message
    assert export(run, typed[1], tmp_path / "out") == 0


def test_a_solved_knob_goes_out_as_its_value(kept: Path, tmp_path: Path) -> None:
    synthetic = ladder(SyntheticRun(problems=60), ks=(6, 4))
    record = synthetic.add("naee", {"beta": 0.37, "k_min": 2}, kept=5)
    account = {"target": 5.0, "knob": "beta", "value": 0.37, "measured": 5.01, "probes": [[0.0, 8.0]],
               "sample_problems": 48, "cached": False, "corrected": False}  # fmt: skip
    synthetic.change(record, budget=account, label="naee budget=5")
    run = exportable(synthetic, tmp_path).write(tmp_path / "iso" / "first")
    export(run, "naee budget=5", tmp_path / "out")
    exported = load(tmp_path / "out")
    assert exported.params == {"beta": 0.37, "k_min": 2}
    assert exported.header.solved is not None and exported.header.solved.budget == 5
    assert (
        "`beta` was solved for a budget of 5 experts a token; measured: 5.01." in (tmp_path / "out" / CARD).read_text()
    )


def test_a_file_of_the_users_is_carried(tmp_path: Path) -> None:
    offset = tmp_path / "mine.safetensors"
    save_file({"logit_offset": torch.linspace(-1, 1, 128).reshape(4, 32)}, offset)
    knobs = build_policy("logit_offset", {"path": str(offset)}, num_layers=4, num_experts=32, top_k=8).rule.knobs()
    synthetic = ladder(SyntheticRun(problems=60), ks=(6, 4))
    synthetic.add("logit_offset", dict(knobs))
    run = exportable(synthetic, tmp_path).write(tmp_path / "offset" / "first")
    fingerprint = synthetic.records[-1].fingerprint
    export(run, fingerprint, tmp_path / "out")
    offset.unlink()
    exported = load(tmp_path / "out")
    assert exported.params["path"] == str(tmp_path / "out" / "logit_offset_path.safetensors")
    assert str(tmp_path) not in json.dumps(exported.header.policy)
    assert "does not exist" in refused(run, fingerprint, tmp_path / "again")


def test_a_made_from_checkpoint_is_told(tmp_path: Path) -> None:
    synthetic = ladder(SyntheticRun(problems=60), ks=(6, 4))
    base = {"identity": "ba5e", "num_experts": 64, "expert_bytes": 0.5}
    for policy, knobs in (("none", {}), ("fixed_k", {"k": 5})):
        synthetic.add(policy, knobs, model="pruned", kept=knobs.get("k", 8))
    exportable(synthetic, tmp_path)
    for record in [each for each in synthetic.records if each.model.name == "pruned"]:
        synthetic.change(record, model={"base": base, "identity": "5ma11"})
    run = synthetic.write(tmp_path / "pruned" / "first")
    stock, point = (each.fingerprint for each in synthetic.records[-2:])
    export(run, point, tmp_path / "out")
    header = load(tmp_path / "out").header
    assert (header.model.identity, header.model.made_from) == ("5ma11", "ba5e")
    assert "its weights are no part of this folder" in (tmp_path / "out" / CARD).read_text()
    assert "what was gained or lost lies in its weights" in refused(run, stock, tmp_path / "no")


# ---------------------------------------------------------------- the card


def test_the_card_says_what_was_measured(run: Path, tmp_path: Path) -> None:
    export(run, PICK, tmp_path / "out")
    card = (tmp_path / "out" / CARD).read_text()
    overall = next(each for each in read_run(RunFolder(run)).records if each.label == PICK).measured.overall
    low, high = overall.accuracy_ci95
    row = f"| overall | 600 | {100 * overall.accuracy:.1f} [{100 * low:.1f}, {100 * high:.1f}] |"
    assert row in card
    for title in ("Measured", "Beside it", "Experts", "Limits", "Use", "Where it came from"):
        assert f"\n## {title}\n" in card
    assert "**pick boost=2 key_experts=2** (this one)" in card and "| stock |" in card and "| none |" not in card
    assert "python -m banpick_exp policy=pick policy.boost=2 policy.key_experts=2" in card
    assert card.startswith("---\ntags:\n") and card.endswith("```\n")
    widths = {line.count("|") for line in card.split("## Measured")[1].split("\n\n")[1].splitlines()}
    assert len(widths) == 1, "a table of one width"


def test_names_of_the_users_break_no_table(tmp_path: Path) -> None:
    synthetic = ladder(SyntheticRun(problems=60), ks=(6, 4))
    exportable(synthetic, tmp_path)
    record = of_label(synthetic, "fixed_k k=4")
    synthetic.change(record, model={"name": "a|b<script>\n`c`"})
    run = synthetic.write(tmp_path / "odd" / "first")
    export(run, record.fingerprint, tmp_path / "out")
    card = (tmp_path / "out" / CARD).read_text()
    assert "<script>" not in card and "a\\|b&lt;script> 'c'" in card
    assert load(tmp_path / "out").header.model.name == "a|b<script>\n`c`"


# ---------------------------------------------------------------- where it goes


def test_it_is_there_whole_or_not_at_all(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "place" / "out"
    written: list[str] = []
    write = command.write_folder_atomically.__globals__["write_atomically"]

    def full(path: Path, data: bytes, lost: str = "") -> None:
        assert not out.exists(), "seen before it is whole"
        written.append(path.name)
        if len(written) == 2:
            raise OSError(28, "No space left on device", str(path))
        write(path, data, lost)

    monkeypatch.setitem(command.write_folder_atomically.__globals__, "write_atomically", full)
    message = refused(run, PICK, out)
    assert "the output folder is full" in message and "nothing is left behind" in message
    assert list(out.parent.iterdir()) == [] and len(written) == 2


def test_again_changes_nothing_and_another_needs_to_be_typed(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    export(run, PICK, out)
    first, inode = bytes_of(out), out.stat().st_ino
    assert export(run, PICK, out) == 0 and "nothing was changed" in capsys.readouterr().out
    assert out.stat().st_ino == inode
    message = refused(run, "fixed_k k=4", out)
    assert "holds another export" in message and message.endswith(" --replace") and bytes_of(out) == first
    assert export(run, "fixed_k k=4", out, "--replace") == 0
    assert load(out).rule.name == "fixed_k" and TENSORS not in bytes_of(out)
    assert {path.name for path in tmp_path.iterdir()} == {"outputs", "out"}, "nothing is left beside it"
    (out / CARD).write_text("my own words")
    assert f"or this one with changes ({CARD})" in refused(run, "fixed_k k=4", out)


@pytest.mark.parametrize("typed", [[], ["--replace"]])
def test_a_folder_of_something_else_is_never_touched(run: Path, tmp_path: Path, typed: list[str]) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("x")
    assert "is there already and is no exported policy" in refused(run, PICK, tmp_path / "mine", *typed)
    assert "is there already and is no exported policy" in refused(run, PICK, tmp_path / "mine/thesis.tex", *typed)
    assert (tmp_path / "mine" / "thesis.tex").read_text() == "x"
    (tmp_path / "empty").mkdir()
    assert export(run, PICK, tmp_path / "empty", *typed) == 0


def test_a_point_alone_is_no_folder(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for word in ("best", PICK):
        assert "there is no folder to write to" in refused(run, word)
    assert "there is no folder to write to" in refused(run)
    assert "Put a label in quotes" in refused(run, "pick", "boost=2", "key_experts=2", "out")
    assert [path.name for path in tmp_path.iterdir()] == ["outputs"]


# ---------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("point", "why"),
    [
        ("none", "is stock, the checkpoint's own routing: there is nothing to export"),
        ("pick boost=0.1 key_experts=1", "failed, so nothing was measured of it (out of memory)"),
        ("pick boost=0.2 key_experts=1", "is invalid, so its numbers are not those of its policy (the policy did not"),
        ("pick boost=0.3 key_experts=1", "was stopped by the race after some of its problems"),
        ("pick boost=2 key_expert=2", "Nearest are 'pick boost=2 key_experts=2' ("),
        ("zzzz", "is no point of"),
    ],
)
def test_points_that_are_not_exported(run: Path, tmp_path: Path, point: str, why: str) -> None:
    assert why in refused(run, point, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_fingerprint_may_be_cut_and_must_be_clear(run: Path, tmp_path: Path) -> None:
    records = read_run(RunFolder(run)).records
    fingerprint = next(each.fingerprint for each in records if each.label == PICK)
    assert export(run, fingerprint[:8], tmp_path / "out") == 0
    assert "is no point of" in refused(run, fingerprint[:3], tmp_path / "short")


def test_a_label_of_two_models_is_ambiguous(tmp_path: Path) -> None:
    synthetic = ladder(SyntheticRun(problems=60), ks=(6, 4))
    synthetic.add("fixed_k", {"k": 4}, model="other", kept=4)
    run = exportable(synthetic, tmp_path).write(tmp_path / "two" / "first")
    message = refused(run, "fixed_k k=4", tmp_path / "out")
    assert "names 2 points of" in message and "model tiny" in message and "model other" in message


def test_a_repeat_is_not_the_point(tmp_path: Path) -> None:
    synthetic = ladder(SyntheticRun(problems=60), ks=(6, 4))
    first = synthetic.records[-1]
    again = synthetic.add("fixed_k", {"k": 4.0}, kept=4)
    synthetic.change(again, repeat=1, label=f"{first.label} repeat=1")
    run = exportable(synthetic, tmp_path).write(tmp_path / "repeats" / "first")
    message = refused(run, "fixed_k k=4 repeat=1", tmp_path / "out")
    assert "is repeat 1 of a point" in message and "Type the point itself, by its label: 'fixed_k k=4'." in message
    export(run, "fixed_k k=4", tmp_path / "out")
    assert load(tmp_path / "out").header.point["fingerprint"] == first.fingerprint


def test_a_damaged_record_is_named(run: Path, tmp_path: Path) -> None:
    record = next(each for each in read_run(RunFolder(run)).records if each.label == PICK)
    path = run / "points" / f"{record.fingerprint}.json"
    path.write_text(path.read_text().replace('"boost": 2', '"boost": 3'))
    assert "cannot be trusted" in refused(run, record.fingerprint, tmp_path / "out")


def test_a_calibration_that_is_gone(run: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "copy"
    (run.parents[1] / "calibrations" / CALIBRATION).rename(elsewhere)
    message = refused(run, PICK, tmp_path / "out")
    assert f"reads the calibration {CALIBRATION}, which is not in" in message and "Type --calibration FOLDER" in message
    assert export(run, PICK, tmp_path / "out", "--calibration", elsewhere) == 0
    assert "reads none, so it would be ignored" in refused(
        run, "fixed_k k=4", tmp_path / "o", "--calibration", elsewhere
    )


def test_a_calibration_that_was_made_again(run: Path, tmp_path: Path) -> None:
    """Another artifact under the same name: the table comes out otherwise than it was measured."""
    folder = run.parents[1] / "calibrations" / CALIBRATION
    scores = folder / "score_insertion_kl.safetensors"
    arrays = load_file(scores)
    save_file({name: 1 - each if name.endswith("value") else each for name, each in arrays.items()}, scores)
    message = refused(run, PICK, tmp_path / "out")
    assert "becomes another policy now than the one that was measured" in message and "Run it again" in message
    scores.unlink()
    assert "no longer holds insertion_kl" in refused(run, PICK, tmp_path / "out")


@pytest.mark.parametrize(
    ("part", "value", "why"),
    [
        ("model", {"num_layers": None}, "does not say what its checkpoint was"),
        ("engagement", {"routing_table": {}}, "has no digest of its routing"),
    ],
)
def test_records_of_old_that_do_not_say_enough(tmp_path: Path, part: str, value: dict[str, object], why: str) -> None:
    synthetic = exportable(ladder(SyntheticRun(problems=60), ks=(6, 4)), tmp_path)
    record = synthetic.change(of_label(synthetic, "fixed_k k=4"), **{part: value})
    run = synthetic.write(tmp_path / "old" / "first")
    assert why in refused(run, record.fingerprint, tmp_path / "out")


def test_what_is_no_run(tmp_path: Path) -> None:
    assert "is no folder, so it is no run" in refused(tmp_path / "nothing", "best", tmp_path / "out")


# ---------------------------------------------------------------- beside it


def test_to_hf_prints_and_writes_nothing(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = sorted(tmp_path.rglob("*"))
    assert export(run, PICK, "--to", "hf") == 0
    printed = capsys.readouterr().out
    assert sorted(tmp_path.rglob("*")) == before
    assert "hf upload YOUR_NAME/tiny-pick-boost-2-key_experts-2 OUT . --repo-type model" in printed
    export(run, PICK, tmp_path / "out")
    for name, content in bytes_of(tmp_path / "out").items():
        assert re.search(rf"{re.escape(name)} +{len(content):,} bytes  sha256 [0-9a-f]{{64}}", printed)


def test_to_hf_tells_of_paths_in_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    synthetic = exportable(ladder(SyntheticRun(problems=60), ks=(6, 4)), tmp_path)
    record = of_label(synthetic, "fixed_k k=4")
    synthetic.change(record, command="python -m banpick_exp 'model.path=\"/home/me/moe\"' policy=fixed_k policy.k=4")
    run = synthetic.write(tmp_path / "paths" / "first")
    export(run, record.fingerprint, "--to", "hf")
    assert "paths of this machine: /home/me/moe" in capsys.readouterr().out


def test_inspect_shows_it(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    export(run, PICK, tmp_path / "out")
    capsys.readouterr()
    assert main(["inspect", str(tmp_path / "out")]) == 0
    shown = capsys.readouterr().out
    assert f"{tmp_path / 'out'}: {PICK}, whole and as it was written" in shown
    assert "boost=2" in shown and "reads influence" in shown and "identity 1d" in shown and "verdict" in shown
    assert main(["inspect", str(tmp_path / "out"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == json.loads((tmp_path / "out" / HEADER).read_text())
    assert main(["inspect", str(tmp_path / "out"), "--hardware", "h200"]) == 2
    assert "means nothing to" in capsys.readouterr().err
    (tmp_path / "out" / TENSORS).write_bytes(b"x")
    assert main(["inspect", str(tmp_path / "out")]) == 2
    assert "it was edited or is damaged" in capsys.readouterr().err


def test_nothing_of_the_run_is_changed(run: Path, tmp_path: Path) -> None:
    def state() -> dict[str, bytes]:
        return {str(path): path.read_bytes() for path in run.parents[1].rglob("*") if path.is_file()}

    before = state()
    export(run, "best", tmp_path / "out")
    assert state() == before


def test_points_of_dev_only_choose(run: Path) -> None:
    read = read_run(RunFolder(run))
    dev = next(each for each in read.records if each.label == PICK)
    object.__setattr__(read, "dev", [dev])
    object.__setattr__(read, "records", [each for each in read.records if each is not dev])
    with pytest.raises(UserError, match="is a point of the dev split, which only chooses"):
        chosen(read, dev.fingerprint, str(run))
