"""Every kind of control in plain torch: are the experts where they must be, and does Pick do there what it must?

Accuracy is teacher-forced here: a problem counts when every token of its response is the most likely one. The engine's
own accuracy of each control is in docs/tiny-model.md.
"""

from __future__ import annotations

import functools
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import get_args

import pytest
import torch
from torch import Tensor

from banpick_exp.__main__ import main
from banpick_exp.models.config import ControlKind
from banpick_exp.models.tiny import ASSETS, DOMAINS
from banpick_exp.models.tiny.checkpoint import load_weights
from banpick_exp.models.tiny.control import build_control
from banpick_exp.models.tiny.kinds import HARMFUL, OUTSIDE, PLANTED, WEAK
from banpick_exp.models.tiny.model import PAD, SparseMoe, TinyMoe, tiny_config
from banpick_exp.models.tiny.planting import router_inputs
from banpick_exp.models.tiny.problems import evaluation_set
from banpick_exp.models.tiny.train import encode
from banpick_kernels.reference import route
from banpick_kernels.table import LayerTable, RouterTable

pytestmark = pytest.mark.slow

Folders = dict[ControlKind, Path]
Controls = dict[ControlKind, dict[str, Tensor]]
"""The weights of each new kind."""

SHAPE = tiny_config()
K = SHAPE.num_experts_per_tok
NEW_KINDS: tuple[ControlKind, ...] = ("weak_math", "demoted_code", "harmful_math")


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Several threads only wait for each other on matrices this small."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@functools.cache
def healthy() -> dict[str, Tensor]:
    return load_weights(ASSETS / "checkpoint")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Folders:
    made = {kind: tmp_path_factory.mktemp(kind) for kind in NEW_KINDS}
    for kind, folder in made.items():
        build_control(kind, folder)
    return made


@pytest.fixture(scope="module")
def controls(folders: Folders) -> Controls:
    return {kind: load_weights(folder) for kind, folder in folders.items()}


# ------------------------------------------------------------ which there are


def test_every_kind_can_be_typed() -> None:
    assert set(PLANTED) == set(get_args(ControlKind))
    assert set(NEW_KINDS) < set(PLANTED)


def test_the_kinds_differ_in_what_they_show() -> None:
    """Domain, place and effect: a rule or a score that handles one kind by luck meets another."""
    assert {control.how for control in PLANTED.values()} == {OUTSIDE, WEAK, HARMFUL}
    assert {control.domain for control in PLANTED.values()} == set(DOMAINS)
    assert {PLANTED[kind].reinforcing for kind in NEW_KINDS} == {"recovers", "harms"}
    assert 0 not in {layer for layer, _ in PLANTED["demoted_code"].planted}
    for control in PLANTED.values():
        assert (control.reinforcing == "harms") == (control.how.contribution < 0)


def test_the_command_lists_and_builds_them(
    tmp_path: Path, folders: Folders, capsys: pytest.CaptureFixture[str]
) -> None:
    code = (
        "import sys; from banpick_exp.cluster.commands.tiny import help_page; text = help_page(); "
        "assert 'torch' not in sys.modules; print(text)"
    )
    page = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    for kind, control in PLANTED.items():
        assert any(kind in line and control.line in line for line in page.splitlines()), kind
    assert main(["tiny", "--control", "demoted_code", "--output", str(tmp_path)]) == 0
    assert "control-demoted_code: planted layer" in capsys.readouterr().out
    for path in folders["demoted_code"].iterdir():  # built twice: the same bytes
        assert path.read_bytes() == (tmp_path / "control-demoted_code" / path.name).read_bytes(), path.name


def test_an_unknown_kind_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["tiny", "--control", "weak_code", "--output", str(tmp_path)]) == 2
    message = capsys.readouterr().err
    assert "weak_code" in message and "harmful_math" in message and "tiny --help" in message
    assert list(tmp_path.iterdir()) == []


# ------------------------------------------------------------ where the experts are


def test_the_same_bytes_every_time(folders: Folders, tmp_path: Path) -> None:
    build_control("weak_math", tmp_path)
    for path in folders["weak_math"].iterdir():
        assert path.read_bytes() == (tmp_path / path.name).read_bytes(), path.name


@pytest.mark.parametrize("kind", NEW_KINDS)
def test_only_the_planted_experts_change(kind: ControlKind, controls: Controls) -> None:
    changed: set[str] = set()
    for layer, expert in PLANTED[kind].planted:
        changed |= {gate_of(layer), f"model.layers.{layer}.mlp.experts.{expert}.down_proj.weight"}
        others = [e for e in range(SHAPE.num_experts) if (layer, e) not in PLANTED[kind].planted]
        assert torch.equal(controls[kind][gate_of(layer)][others], healthy()[gate_of(layer)][others])
    assert {name for name, weight in controls[kind].items() if not torch.equal(weight, healthy()[name])} == changed


@functools.cache
def inputs_of(domain: str) -> list[Tensor]:
    return router_inputs(healthy(), domain)


def ranks(kind: ControlKind, weights: dict[str, Tensor]) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Per planted expert and over its tokens, those that selected it in the healthy model: its rank there, its rank
    now (0 is the best), and its share of the top K's weight now, 0 where it is not selected."""
    found = []
    for layer, expert in PLANTED[kind].planted:
        inputs = inputs_of(PLANTED[kind].domain)[layer]
        before, now = (inputs @ w[gate_of(layer)].double().T for w in (healthy(), weights))
        rank_before, rank_now = ((x > x[:, [expert]]).sum(-1) for x in (before, now))
        share = now.exp()[:, expert] / now.topk(K, -1).values.exp().sum(-1)
        used = rank_before < K
        found.append((rank_before[used], rank_now[used], share.where(rank_now < K, 0)[used]))
    return found


@pytest.mark.parametrize("kind", ["demoted_code", "harmful_math"])
def test_experts_outside_the_top_k_are_inside_the_window(kind: ControlKind, controls: Controls) -> None:
    for _, rank, _ in ranks(kind, controls[kind]):
        assert (rank < K).float().mean() < 0.25
        assert (rank < 2 * K).float().mean() > 0.85


def test_weak_experts_stay_about_the_kth_with_little_weight(controls: Controls) -> None:
    for before, now, share in ranks("weak_math", controls["weak_math"]):
        assert 0.4 < (now < K).float().mean() < 0.75
        assert K - 2 <= float(now.double().median()) <= K
        assert (now < 2 * K).float().mean() > 0.95
        assert before.double().median() < now.double().median()
        assert float(share[share > 0].mean()) < 1 / K


def gate_of(layer: int) -> str:
    return f"model.layers.{layer}.mlp.gate.weight"


# ------------------------------------------------------------ what reinforcing them does


def routed(block: SparseMoe, layer: LayerTable, x_TH: Tensor) -> Tensor:
    """The layer's output with the selection of the reference router."""
    spare = int(layer.key_PE.sum())
    weights_TS, ids_TS, _ = route(block.gate(x_TH), layer, K, K + spare, renormalize=True)
    weights_TE = torch.zeros(len(x_TH), block.num_experts).scatter_add_(1, ids_TS.long(), weights_TS)
    output_TH = torch.zeros_like(x_TH)
    for index, expert in enumerate(block.experts):
        token = weights_TE[:, index].nonzero().squeeze(1)
        output_TH[token] += weights_TE[token, index, None] * expert(x_TH[token])
    return output_TH


@functools.cache
def dev_problems(domain: str) -> tuple[Tensor, Tensor]:
    return encode(evaluation_set(domain, "dev", 400, seed=0))


@torch.no_grad()
def accuracy(weights: dict[str, Tensor], domain: str, layers: Mapping[int, LayerTable] | None = None) -> float:
    """Percent of dev problems whose whole response is the most likely one, with a policy on some layers."""
    model = TinyMoe(SHAPE)
    model.load_state_dict({name: weight.float() for name, weight in weights.items()})
    for index, layer in (layers or {}).items():
        block = model.model.moe_blocks()[index]
        setattr(block, "forward", functools.partial(routed, block, layer))  # noqa: B010  mypy knows methods only
    ids, labels = dev_problems(domain)
    logits, unpadded = model(ids)
    target = labels.flatten()[unpadded]
    wrong = unpadded[target.ne(PAD) & logits.argmax(-1).ne(target)] // ids.shape[1]
    return 100 * (1 - len(wrong.unique()) / len(ids))


def reinforced(kind: ControlKind, how: str) -> dict[int, LayerTable]:
    """Pick's tables for the planted experts: boost by 0.5, or insertion by replacing or adding within the top 2K."""
    table = RouterTable.neutral(SHAPE.num_hidden_layers, SHAPE.num_experts, K)
    for layer, expert in PLANTED[kind].planted:
        if how == "boost":
            table.logit_bias_PLE[0, layer, expert] = 0.5
        else:
            table.key_PLE[0, layer, expert] = True
            table.insert_window[0, layer] = 2 * K
            table.insert_replaces[0, layer] = float(how == "replace")
    return {layer: table.layer(layer) for layer, _ in PLANTED[kind].planted}


def test_accuracy_and_what_pick_does_to_it(controls: Controls) -> None:
    """Points on 400 dev problems; docs/tiny-model.md has more of them, in the engine."""
    whole = {domain: accuracy(healthy(), domain) for domain in ("math", "code")}
    for kind, weights in controls.items():
        domain = PLANTED[kind].domain
        stock = accuracy(weights, domain)
        gained = {how: accuracy(weights, domain, reinforced(kind, how)) - stock for how in ("boost", "replace", "add")}
        if PLANTED[kind].reinforcing == "harms":
            assert abs(stock - whole[domain]) <= 2, kind
            assert max(gained.values()) < -10, (kind, gained)
        else:
            lost = whole[domain] - stock
            assert 4 <= lost <= 16, kind
            assert all(lost / 3 < points <= lost + 1 for points in gained.values()), (kind, lost, gained)
            assert gained["boost"] > 0.6 * lost, (kind, lost, gained)
