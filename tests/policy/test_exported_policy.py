"""Reading an exported policy: every digit comes back, and everything that is not as it was written is refused, why."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from banpick_exp.errors import UserError
from banpick_exp.models.checkpoint import Checkpoint
from banpick_exp.models.shape import MoeShape
from banpick_exp.policy import Calibration, Policy, build_policy
from banpick_exp.policy.build import ROUTING_VERSION
from banpick_exp.policy.calibration import Influence
from banpick_exp.policy.calibration_arrays import arrays_of, calibration_of, digest_of_arrays, parts_of
from banpick_exp.policy.exported import load
from banpick_exp.policy.exported_files import (
    CARD,
    HEADER,
    SCHEMA_VERSION,
    SEAL,
    TENSORS,
    CalibrationPart,
    CalibrationSource,
    DomainPolicy,
    Header,
    ModelRead,
    Sizes,
    array_name,
    is_export,
)
from banpick_exp.records import digest, digest_of_json

ROOT = Path(__file__).resolve().parents[2]
SHAPE = MoeShape(num_layers=2, num_experts=8, top_k=4)
SIZES = {"num_layers": 2, "num_experts": 8, "top_k": 4}
KNOBS: dict[str, Any] = {"mode": "boost", "boost": 0.7, "key_experts": 2}
RANKED = {"math": [(1, 5, 0.9), (0, 3, 0.5)], "code": [(0, 7, 0.1 + 0.2), (1, 1, 1e-300)]}
EVERYTHING = {
    "influence": [[0, 1, 0.5, -0.25], [1, 7, 0.25, float("-inf")]],
    "influence_elsewhere": [[[1, 2, 0.125, 0.1]], []],
    "layer_sensitivity": [0.0, 1.0],
    "r_min": 0.1,
    "r_max": 0.9,
    "usage": [[2**40 + 1] * 8] * 2,
    "tail_square": [0.1, 1 / 3],
    "fisher": [1e-30, 3.0],
    "similarity": [[[1.0] * 8] * 8] * 2,
    "npmi": [[-1.0] * 8] * 2,
    "contrast": [[0.1 + 0.2] * 8] * 2,
    "skip_kl": [0.0, 5.5],
    "ratio_median": [0.5, 0.25],
}


def calibration(domain: str) -> Calibration:
    return Calibration(influence=tuple(Influence(*entry) for entry in RANKED[domain]))


def built(domain: str) -> Policy:
    return build_policy("pick", KNOBS, **SIZES, calibration=calibration(domain))


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """An export of a pick with key experts of its own in each of two domains."""
    folder = tmp_path / "out"
    folder.mkdir()
    arrays = {domain: arrays_of(calibration(domain)) for domain in RANKED}
    tensors = {array_name(domain, name): array for domain, own in arrays.items() for name, array in own.items()}
    save_file(tensors, folder / TENSORS)
    domains = {
        domain: DomainPolicy(
            routing_sha256=built(domain).digest(),
            max_kept=4,
            implied_budget=(4.0, 4.0),
            key_experts={str(layer): (expert,) for layer, expert, _ in sorted(RANKED[domain])},
            calibration=CalibrationPart(parts=("influence",), sha256=digest_of_arrays(arrays[domain])),
        )
        for domain in RANKED
    }
    header = Header(
        label="pick boost=0.7 key_experts=2",
        policy={"name": "pick", **KNOBS},
        policy_files={},
        solved=None,
        shape=Sizes(**SIZES),
        model=ModelRead(name="mine", id="owner/mine", revision="abc", identity="1234", made_from=None),
        routing_version=ROUTING_VERSION,
        domains=domains,
        calibration=CalibrationSource(fingerprint="f00d", score="insertion_kl", sensitivity="kl", settings={}),
        files={TENSORS: digest((folder / TENSORS).read_bytes())},
        point={"fingerprint": "abcd", "run": "a/b", "command": "typed", "finished_at": "then", "seed": 0},
        measured={},
        guards=(),
        versions={"banpick_exp": "0.1.0"},
    )
    (folder / HEADER).write_bytes(header.content())
    (folder / CARD).write_text("# A card\n")
    return folder


def rewritten(out: Path, change: Callable[[dict[str, Any]], object], *, seal: bool = True) -> None:
    """Change `policy.json`, sealed again as a careful editor would, or not."""
    plain = json.loads((out / HEADER).read_bytes())
    del plain[SEAL]
    kept = digest_of_json(plain)
    change(plain)
    (out / HEADER).write_text(json.dumps({**plain, SEAL: digest_of_json(plain) if seal else kept}))


def tensors_again(out: Path, change: Callable[[dict[str, np.ndarray]], object]) -> None:
    """Other tensors, with their file's digest."""
    tensors = load_file(out / TENSORS)
    change(tensors)
    save_file(tensors, out / TENSORS)
    rewritten(out, lambda plain: plain["files"].update({TENSORS: digest((out / TENSORS).read_bytes())}))


# ---------------------------------------------------------------- what comes back


def test_it_is_the_policy_that_went_out(out: Path) -> None:
    exported = load(out)
    assert exported.domains == ("math", "code") and exported.params == KNOBS and exported.rule.name == "pick"
    assert exported.shape == SHAPE and not exported.one_policy
    for domain in RANKED:
        assert exported.calibrations[domain] == calibration(domain)
        assert exported.build(domain).digest() == built(domain).digest()
    assert exported.calibration_key("math") != exported.calibration_key("code")
    assert repr(exported) == "<Exported pick boost=0.7 key_experts=2 for mine: math, code>"


def test_every_part_of_a_calibration_keeps_every_digit() -> None:
    whole = Calibration.of(EVERYTHING)
    assert parts_of(whole) == list(Calibration.model_fields), "a new part needs a place in SIZES"
    again = calibration_of(parts_of(whole), arrays_of(whole), SHAPE)
    assert again == whole and again.to_json() == whole.to_json()


@given(values=st.lists(st.tuples(st.integers(0, 1), st.integers(0, 7), st.floats()), max_size=6), signed=st.booleans())
@settings(max_examples=60, deadline=None, derandomize=True, database=None)
def test_rankings_keep_every_digit(values: list[tuple[int, int, float]], signed: bool) -> None:
    whole = Calibration(influence=tuple(Influence(*each, each[2] if signed else None) for each in values))
    again = calibration_of(["influence"], arrays_of(whole), SHAPE)
    assert repr(again.influence) == repr(whole.influence)


def test_the_header_is_for_people_and_the_same_bytes_again(out: Path) -> None:
    text = (out / HEADER).read_text()
    header = load(out).header
    assert header.content().decode() == text and text.endswith("\n}\n") and '\n "label": "pick boost=0.7' in text


def test_the_card_and_hidden_files_are_nobodys_business(out: Path) -> None:
    (out / CARD).write_text("what the publisher has to say")
    (out / ".gitattributes").write_text("*.safetensors filter=lfs")
    (out / ".cache").mkdir()
    assert load(out).domains == ("math", "code")
    (out / CARD).unlink()
    assert load(out).domains == ("math", "code")


def test_a_domain_is_named_where_they_differ(out: Path) -> None:
    exported = load(out)
    assert exported.domain("code") == "code"
    with pytest.raises(UserError, match=r"routes each domain by experts of its own.*Name one of math, code"):
        exported.build()
    with pytest.raises(UserError, match=r"domain=maths is none of .*Did you mean math\? Name one of math, code"):
        exported.domain("maths")


def test_it_loads_nothing_that_a_worker_has_no_need_of(out: Path) -> None:
    heavy = ("torch", "vllm", "ray", "hydra", "omegaconf", "wandb", "polars", "datasets", "transformers", "optuna")
    code = (
        "import sys\nfrom banpick_exp.policy.exported import load\n"
        f"exported = load({str(out)!r})\nassert exported.calibrations['math'] is not None\n"
        f"print([name for name in {heavy} if name in sys.modules])\n"
        "exported.build('math')\n"
        f"print([name for name in {heavy} if name in sys.modules])\n"
    )
    paths = {"PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "kernels")])}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, env=os.environ | paths
    )
    assert done.stdout == "[]\n['torch']\n", done.stdout + done.stderr


# ---------------------------------------------------------------- what is refused


def refused(out: Path) -> str:
    with pytest.raises(UserError) as raised:
        load(out)
    message = str(raised.value)
    assert str(out) in message and "\n" not in message
    return message


def test_what_is_no_export(tmp_path: Path, out: Path) -> None:
    assert "is no folder, so it is no exported policy" in refused(tmp_path / "nowhere")
    assert f"has no {HEADER}" in refused(tmp_path)
    for text in ("", "[]", "null", '{"format": "another"}', "{" * 5000):
        (out / HEADER).write_text(text)
        assert "is no header of an exported policy" in refused(out) and not is_export(out)


def test_a_newer_schema_is_said_to_be_newer(out: Path) -> None:
    rewritten(out, lambda plain: plain.update(schema_version=SCHEMA_VERSION + 1, something_new=1))
    assert "schema_version 2, this version reads 1" in refused(out) and "Install a newer banpick_exp" in refused(out)
    rewritten(out, lambda plain: plain.update(schema_version="0"))
    assert "Export the point again" in refused(out)


def test_edits_of_the_header_are_seen(out: Path) -> None:
    rewritten(out, lambda plain: plain["policy"].update(boost=0.8), seal=False)
    assert "was edited or is damaged: its content is not that of its sha256" in refused(out)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda plain: plain.update(more=1), "damaged (more: "),
        (lambda plain: plain.pop("domains"), "damaged (domains: "),
        (lambda plain: plain.update(domains={}), "damaged (domains: "),
        (lambda plain: plain["shape"].update(top_k="x"), "damaged (shape.top_k: "),
    ],
)
def test_a_header_that_lacks_something(out: Path, change: Callable[[dict[str, Any]], object], why: str) -> None:
    rewritten(out, change)
    assert why in refused(out)


def test_missing_and_added_files(out: Path) -> None:
    (out / "model.bin").write_bytes(b"pickle?")
    assert "holds model.bin, which the export did not write" in refused(out)
    (out / "model.bin").unlink()
    (out / TENSORS).unlink()
    assert f"lacks {TENSORS}: it was not copied whole" in refused(out)


def test_no_file_is_read_outside(out: Path) -> None:
    (out.parent / "secret").write_text("x")
    rewritten(out, lambda plain: plain["files"].update({"../secret": digest(b"x")}))
    assert "lacks ../secret" in refused(out)
    rewritten(out, lambda plain: (plain["files"].pop("../secret"), plain.update(policy_files={"path": "/etc/passwd"})))
    assert "lacks /etc/passwd" in refused(out)
    offset = out.parent / "offset.safetensors"
    save_file({"logit_offset": np.zeros((2, 8), np.float32)}, offset)
    outside = {"policy": {"name": "logit_offset", "path": str(offset)}, "policy_files": {}}
    rewritten(out, lambda plain: plain.update(outside))
    assert "names a file outside of the folder for path" in refused(out)


def test_every_byte_of_the_tensors_counts(out: Path) -> None:
    whole = (out / TENSORS).read_bytes()
    for place in (0, 9, len(whole) // 2, len(whole) - 1):
        (out / TENSORS).write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        assert "it was edited or is damaged, and would route otherwise" in refused(out)
    (out / TENSORS).write_bytes(whole[:-1])
    assert "it was edited or is damaged" in refused(out)
    (out / TENSORS).write_bytes(whole)
    assert load(out).domains


def test_tensors_of_something_else(out: Path) -> None:
    """With a digest of the file that is right: what is in them is not what the policy was."""
    tensors_again(out, lambda tensors: tensors["math/influence.value"].__setitem__(0, 0.25))
    assert "the arrays of math are not those of its digest" in refused(out)


def test_tensors_that_nothing_reads(out: Path) -> None:
    tensors_again(out, lambda tensors: tensors.update({"poems/usage": np.zeros(1)}))
    assert "it has arrays of poems, of which nothing was measured" in refused(out)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"influence.value": None}, "influence.value is missing"),
        ({"influence.value": np.zeros(2, np.float32)}, "influence.value is float32[2], and not float64[2]"),
        ({"influence.expert": np.array([[0, 8], [0, 0]])}, "names experts that this shape does not have"),
        ({"influence.expert": np.array([[-1, 0], [0, 0]])}, "names experts that this shape does not have"),
        ({"usage": np.zeros((2, 8), np.int64)}, "nothing reads usage"),
    ],
)
def test_arrays_of_another_form(change: dict[str, Any], why: str) -> None:
    arrays = {**arrays_of(calibration("math")), **change}
    with pytest.raises(ValueError) as raised:
        calibration_of(["influence"], {name: each for name, each in arrays.items() if each is not None}, SHAPE)
    assert why in str(raised.value)


def test_rules_that_route_otherwise_now(out: Path) -> None:
    rewritten(out, lambda plain: plain.update(routing_version=ROUTING_VERSION - 1))
    assert f"version {ROUTING_VERSION - 1} of the rules, here it is {ROUTING_VERSION}" in refused(out)
    rewritten(out, lambda plain: plain.update(routing_version=ROUTING_VERSION))
    rewritten(out, lambda plain: plain["domains"]["math"].update(routing_sha256="0" * 64))
    with pytest.raises(UserError, match="becomes another policy here than the one that was measured"):
        load(out).build("math")


def test_knobs_that_do_not_fit(out: Path) -> None:
    rewritten(out, lambda plain: plain["policy"].update(bost=1))
    with pytest.raises(UserError, match=r"policy.bost is unknown.*Did you mean policy.boost"):
        load(out)


@pytest.mark.parametrize(
    ("shape", "identity", "why"),
    [
        ({"num_layers": 3}, "1234", "is for 2 MoE layers, elsewhere has 3"),
        ({"num_experts": 16}, "1234", "is for 8 experts a layer, elsewhere has 16"),
        ({"top_k": 2}, "1234", "is for 4 experts a token, elsewhere has 2"),
        ({}, "5678", "was measured on owner/mine (1234), elsewhere is 5678: the same expert is another one there"),
    ],
)
def test_another_checkpoint_is_refused(out: Path, shape: dict[str, int], identity: str, why: str) -> None:
    other = Checkpoint(location="elsewhere", identity=identity, shape=MoeShape(**{**SIZES, **shape}))
    with pytest.raises(UserError) as raised:
        load(out).check(other)
    assert why in str(raised.value) and "Load owner/mine at revision abc, by that id" in str(raised.value)


def test_the_own_checkpoint_is_not(out: Path) -> None:
    load(out).check(Checkpoint(location="elsewhere", identity="1234", shape=SHAPE))


def test_a_copy_is_as_good(out: Path, tmp_path: Path) -> None:
    shutil.copytree(out, tmp_path / "copy")
    assert load(tmp_path / "copy").header == load(out).header
