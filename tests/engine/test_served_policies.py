"""What a server is told, and what a request may choose, without an engine; and the start on one, without a server."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from exportable_run import of_label, of_the_embedded_model

from banpick_exp.__main__ import main
from banpick_exp.engine.serving.choice import Policies, WrongPolicy
from banpick_exp.engine.serving.served import Served, check_slots, checkpoint_served, served_folder, served_policies
from banpick_exp.errors import UserError
from banpick_exp.models.inspect import EMBEDDED_CHECKPOINT
from banpick_exp.models.shape import MoeShape

if TYPE_CHECKING:
    from banpick_exp.engine.engine import Engine

A, B = "a" * 40, "b" * 40
"""Commits."""


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the exports FIXED/ (one policy) and PICK/ (one a domain), of the embedded model."""
    folder = tmp_path_factory.mktemp("served")
    synthetic, run = of_the_embedded_model(folder, problems=40, gain=0)
    for name, label in (("FIXED", "fixed_k k=2"), ("PICK", "pick boost=1 key_experts=4")):
        assert main(["export", str(run), of_label(synthetic, label).fingerprint, str(folder / name)]) == 0
    return folder


@pytest.fixture(autouse=True)
def in_that_folder(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(here)


def told(policy: str, default: str = "") -> tuple[Served, ...]:
    return served_policies({"BANPICK_POLICY": policy, "BANPICK_DEFAULT_POLICY": default})


def names(policies: tuple[Served, ...]) -> list[str]:
    return [each.name for each in policies]


# ------------------------------------------------------------ what the operator types


def test_one_folder_is_one_policy_without_rows() -> None:
    (only,) = told("FIXED/")
    assert only.name == "policy" and only.label == "fixed_k k=2" and only.max_kept == 2
    assert only.wire() == ["fixed_k", '{"k": 2}', ""] and only.calibration_wire() is None


def test_named_ones_have_stock_beside_them_and_the_default_first() -> None:
    typed = "fast=FIXED/, careful=PICK/@math"
    assert names(told(typed)) == ["fast", "careful", "stock"]
    assert names(told(typed, "careful")) == ["careful", "fast", "stock"]
    assert names(told(typed, "stock")) == ["stock", "fast", "careful"]


def test_each_domain_is_a_policy_of_its_own() -> None:
    math, code = (served_folder("a", f"PICK/@{domain}") for domain in ("math", "code"))
    assert math.fingerprint != code.fingerprint
    key, calibration = math.calibration_wire() or ("", "")
    assert key == math.wire()[2] != code.wire()[2] and "influence" in json.loads(calibration)


@pytest.mark.parametrize(
    ("typed", "default", "words"),
    [
        ("", "", "names no folder"),
        ("NIX/", "", "NIX is no folder"),
        ("a=NIX/", "", "NIX is no folder"),
        ("PICK/", "", "Behind the folder, after @: BANPICK_POLICY=PICK/@math"),
        ("PICK/@cod", "", "Did you mean code?"),
        ("FIXED/,PICK/@math", "", "'FIXED/' has no name"),
        ("a=FIXED/,a=PICK/@math", "", "the name a is there twice"),
        ("stock=FIXED/", "", "the name stock is vLLM's own"),
        ("a=FIXED/", "b", "BANPICK_DEFAULT_POLICY=b is none"),
        (",".join(f"n{at}=FIXED/" for at in range(64)), "", "at most 64"),
    ],
)
def test_what_cannot_be_served(typed: str, default: str, words: str) -> None:
    with pytest.raises(UserError) as refused:
        told(typed, default)
    assert words in str(refused.value)


def test_a_compiled_engine_needs_slots() -> None:
    (only,) = told("FIXED/")
    check_slots(only, 8, 8)
    check_slots(only, None, 8)
    with pytest.raises(UserError, match=r'"banpick_extra_slots": 1'):
        check_slots(only, 1, 1)


def test_the_checkpoint_is_held_against_the_folder(tmp_path: Path) -> None:
    (only,) = told("FIXED/")
    assert only.exported is not None
    only.exported.check(checkpoint_served(only, str(EMBEDDED_CHECKPOINT), None))
    with pytest.raises(UserError, match="hub:owner/name@main"):
        only.exported.check(checkpoint_served(only, "owner/name", None))


@pytest.mark.parametrize(
    ("measured", "model", "revision", "right"),
    [
        ("main", "owner/name", None, True),
        ("main", "owner/name", A, False),
        (A, "owner/name", A, True),
        (A, "owner/name", None, False),
        ("main", f"/cache/models--owner--name/snapshots/{A}", None, True),
        (A, f"/cache/models--owner--name/snapshots/{A}", None, True),
        (A, f"/cache/models--owner--name/snapshots/{B}", A, False),
        (A, f"/cache/models--owner--other/snapshots/{A}", A, False),
    ],
)
def test_one_measured_by_its_hub_id(measured: str, model: str, revision: str | None, right: bool) -> None:
    """vLLM, offline, gives the folder of its cache in place of the id."""
    (only,) = told("FIXED/")
    assert only.exported is not None
    read = only.exported.header.model.model_copy(
        update={"id": "owner/name", "revision": None if measured == "main" else measured,
                "identity": f"hub:owner/name@{measured}"}
    )  # fmt: skip
    exported = replace(only.exported, header=only.exported.header.model_copy(update={"model": read}))
    checkpoint = checkpoint_served(replace(only, exported=exported), model, revision)
    if right:
        exported.check(checkpoint)
    else:
        with pytest.raises(UserError):
            exported.check(checkpoint)


# ------------------------------------------------------------ what a request chooses


@pytest.fixture
def policies() -> Policies:
    return Policies(told("fast=FIXED/,careful=PICK/@math"))


def test_a_request_names_its_row(policies: Policies) -> None:
    assert policies.asked(None) == policies.asked({}) == policies.asked({"other": 1}) == 0
    assert [policies.asked({"routing_policy": name}) for name in policies.names] == [0, 1, 2]
    assert policies.asked({"routing_policy": "careful", "routing_row": 0}) == 1


@pytest.mark.parametrize("name", ["fats", "", 1, None, ["fast"]])
def test_a_wrong_name_lists_the_known(policies: Policies, name: Any) -> None:
    with pytest.raises(WrongPolicy, match="It has fast, careful, stock"):
        policies.asked({"routing_policy": name})


def test_by_the_models_name(policies: Policies) -> None:
    known = ("tiny", "org/tiny:v1")
    assert policies.named_in("tiny:careful", known, None) == "careful"
    assert policies.named_in("org/tiny:v1:stock", known, None) == "stock"
    assert policies.named_in("tiny", known, None) is policies.named_in("tiny:nix", known, {}) is None
    assert policies.named_in("tiny:careful", known, {"routing_policy": "careful"}) == "careful"
    with pytest.raises(WrongPolicy, match="two policies"):
        policies.named_in("tiny:careful", known, {"routing_policy": "fast"})


def test_no_two_policies_or_clients_share_a_salt(policies: Policies) -> None:
    salts = [policies.salt(row, of) for row in range(3) for of in (None, "a", "b", "")]
    policies.replace(0, policies.served[0])
    salts += [policies.salt(0, of) for of in (None, "a")]
    assert len(set(salts)) == len(salts)
    again = Policies(told("other=FIXED/,fast=PICK/@math"))
    assert again.salt(0, "a") == salts[1], "the same policy, whatever its name and server"


# ------------------------------------------------------------ the start


def call_of(engine: Engine) -> Any:
    return engine.llm.collective_rpc


@pytest.mark.engine
def test_a_layer_that_is_missing_ends_the_start(tiny_engine: Engine) -> None:
    from banpick_exp.engine.engine import EngineError
    from banpick_exp.engine.serving.starting import set_at_start

    (only,) = told("FIXED/")
    set_at_start(call_of(tiny_engine), [only])
    tiny_engine.counters(reset=True)
    tiny_engine.generate_ids([[10, 11, 12]], max_tokens=2, salt="served", ignore_eos=True)
    assert tiny_engine.counters(reset=True).kept == [2 * 4] * 4
    tiny_engine.set_policy("none", {})
    assert only.exported is not None
    for shape, words in (
        (MoeShape(num_layers=5, num_experts=32, top_k=8), "4 of 5 MoE layers are hooked"),
        (MoeShape(num_layers=4, num_experts=64, top_k=8), r"\[32\] experts a layer, the policy is for 64"),
        (MoeShape(num_layers=4, num_experts=32, top_k=4), r"\[8\] experts a token \(top_k\), the policy is for 4"),
    ):
        header = only.exported.header
        routed = {name: each.model_copy(update={"routing_sha256": digest_for(only, shape)})
                  for name, each in header.domains.items()}  # fmt: skip
        other = replace(only.exported, shape=shape, header=header.model_copy(update={"domains": routed}))
        with pytest.raises(EngineError, match=words):
            set_at_start(call_of(tiny_engine), [replace(only, exported=other)])


def digest_for(only: Served, shape: MoeShape) -> str:
    """Of the same rule on another shape, so that the folder itself is not what is refused."""
    from banpick_exp.policy import build_policy

    name, params, _ = only.wire()
    return build_policy(
        name, json.loads(params), num_layers=shape.num_layers, num_experts=shape.num_experts, top_k=shape.top_k
    ).digest()


@pytest.mark.engine
@pytest.mark.slow
def test_the_reason_is_the_last_thing_that_is_said() -> None:
    """Of a real API server, which ends before it loads a model; and one whose plugin is not named."""
    script = "from vllm.engine.arg_utils import AsyncEngineArgs as A; A(model={model!r}).create_engine_config()"
    code = script.format(model=str(EMBEDDED_CHECKPOINT))
    for settings, words in (
        ({"VLLM_PLUGINS": "banpick", "BANPICK_POLICY": "a=NIX/"}, "NIX is no folder"),
        ({"VLLM_PLUGINS": "banpick", "BANPICK_POLICY": "FIXED/", "BANPICK_ADMIN_TOKEN": "short"}, "has 5 characters"),
        ({"BANPICK_POLICY": "FIXED/"}, "VLLM_PLUGINS does not name banpick"),
    ):
        rest = {key: value for key, value in os.environ.items() if not key.startswith(("VLLM_PLUGINS", "BANPICK"))}
        done = subprocess.run([sys.executable, "-c", code], env=rest | settings, capture_output=True, text=True)
        assert done.returncode != 0 and words in done.stderr.splitlines()[-1], done.stderr[-2000:]
