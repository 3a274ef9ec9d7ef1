"""Exported policies in miniatures of each family that `transformers.apply` knows: exact, counted, taken off again."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from exported_folder import export_of
from miniatures import MINIATURES, build, limit
from torch import Tensor

from banpick_exp.errors import UserError
from banpick_exp.models.checkpoint import folder_identity
from banpick_exp.models.shape import MoeShape
from banpick_exp.transformers import apply
from banpick_exp.transformers.routers import FAMILIES, KINDS

IDS = torch.randint(3, 128, (2, 24), generator=torch.Generator().manual_seed(1))
CLOSE = 1e-5
"""Of logits of about 1 in float32: sums in another order."""


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Models of a few MB: threads that wait for each other take longer than the sums."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


class Small:
    """A miniature on the disk, loaded anew for each test."""

    def __init__(self, family: str, folder: Path) -> None:
        self.family, self.small, self.folder = family, MINIATURES[family], folder / "model"
        built = build(self.small, self.folder)
        experts = next(module.weight.shape[0] for module in built.modules() if type(module).__name__ in KINDS)
        self.shape = MoeShape(num_layers=len(self.small.layers), num_experts=experts, top_k=self.small.top_k)
        self.exports = folder / "exports"

    def model(self, experts_implementation: str = "eager") -> Any:
        from transformers import AutoModelForCausalLM

        return AutoModelForCausalLM.from_pretrained(
            self.folder,
            dtype="float32",
            attn_implementation="eager",
            experts_implementation=experts_implementation,
        ).eval()

    def export(self, name: str, **knobs: Any) -> Path:
        identity = knobs.pop("identity", None) or folder_identity(self.folder)
        folder = self.exports / str(len(list(self.exports.glob("*"))))
        return export_of(folder, knobs.pop("shape", self.shape), identity, name, knobs)


@pytest.fixture(scope="module", params=FAMILIES)
def each(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Small:
    return Small(request.param, tmp_path_factory.mktemp(request.param))


@pytest.fixture(scope="module")
def qwen(tmp_path_factory: pytest.TempPathFactory) -> Small:
    return Small("qwen3_moe", tmp_path_factory.mktemp("qwen"))


def logits(model: Any, ids: Tensor = IDS, **given: Any) -> Tensor:
    with torch.no_grad():
        found: Tensor = model(ids, use_cache=False, **given).logits
    return found


def test_a_policy_that_does_nothing_is_the_model_to_the_bit(each: Small) -> None:
    model = each.model()
    stock = logits(model)
    handle = apply(model, each.export("none"))
    assert torch.equal(logits(model), stock)
    assert handle.mean_kept() == (float(each.small.top_k),) * len(each.small.layers)


def test_fewer_experts_are_the_first_of_the_selection(each: Small) -> None:
    """Against the rule written once more, around the experts and not at the router."""
    model, other = each.model(), each.model()
    keep = each.small.top_k // 2
    stock = logits(model)
    assert limit(other, keep, normalised=each.small.normalised) == len(each.small.layers)
    handle = apply(model, each.export("fixed_k", k=keep))
    ours, theirs = logits(model), logits(other)
    assert float((ours - theirs).abs().max()) < CLOSE < 1e-3 < float((ours - stock).abs().max())
    assert handle.mean_kept() == (float(keep),) * len(each.small.layers) and handle.tokens() == IDS.numel()


def test_a_masked_expert_is_never_selected(each: Small) -> None:
    model = each.model()
    masked = [0, 3, each.shape.num_experts - 1]
    apply(model, each.export("mask", experts={1: masked}))
    seen: list[Tensor] = []
    for module in model.modules():
        if type(module).__name__ in KINDS:
            module.register_forward_hook(lambda gate, args, output: seen.append(output[2]))
    logits(model)
    first, second = seen
    chosen = set(range(each.shape.num_experts)) - set(masked)
    assert set(second.flatten().tolist()) <= chosen and set(first.flatten().tolist()) & set(masked)
    assert all(len(set(row)) == each.small.top_k for row in second.tolist())


def test_removing_it_gives_the_model_back(each: Small) -> None:
    model = each.model()
    stock = logits(model)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with apply(model, each.export("fixed_k", k=1)) as handle:
        assert not torch.equal(logits(model), stock)
    assert repr(handle).endswith("removed>") and set(handle.mean_kept()) == {1.0}
    assert torch.equal(logits(model), stock)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    apply(model, each.export("fixed_k", k=1)).remove()


def test_a_mask_can_be_written_into_a_correction_bias(tmp_path: Path) -> None:
    """docs/serve-elsewhere.md: of a router without groups the checkpoint with that bias is the model under the mask."""
    options = {**MINIATURES["deepseek_v3"].options, "n_group": 1, "topk_group": 1}
    built = build(replace(MINIATURES["deepseek_v3"], options=options), tmp_path / "model")
    built.config._name_or_path = str(tmp_path / "model")
    stock, masked = logits(built), [0, 3, 15]
    shape, identity = MoeShape(num_layers=2, num_experts=16, top_k=4), folder_identity(tmp_path / "model")
    with apply(built, export_of(tmp_path / "out", shape, identity, "mask", {"experts": {1: masked}})):
        under = logits(built)
    with torch.no_grad():
        built.model.layers[2].mlp.gate.e_score_correction_bias[masked] = -1e9
    edited = logits(built)
    assert float((under - edited).abs().max()) < CLOSE and float((under - stock).abs().max()) > 1e-3


def test_a_mask_can_be_cut_out_of_a_checkpoint(qwen: Small) -> None:
    """The same page: as many experts fewer in every layer, of a softmax router."""
    model, masked = qwen.model(), {0: [0, 3], 1: [7, 15]}
    stock = logits(model)
    with apply(model, qwen.export("mask", experts=masked)):
        under = logits(model)
    for number, layer in enumerate(model.model.layers):
        left = [expert for expert in range(16) if expert not in masked[number]]
        gate, experts = layer.mlp.gate, layer.mlp.experts
        gate.weight = torch.nn.Parameter(gate.weight[left])
        experts.gate_up_proj = torch.nn.Parameter(experts.gate_up_proj[left])
        experts.down_proj = torch.nn.Parameter(experts.down_proj[left])
        gate.num_experts = experts.num_experts = len(left)
    assert float((under - logits(model)).abs().max()) < CLOSE and float((under - stock).abs().max()) > 1e-3


# ---------------------------------------------------------------- more experts than the checkpoint selects


@pytest.mark.parametrize("computed", ["eager", "batched_mm", "grouped_mm"])
def test_inserted_experts_make_the_selection_longer(qwen: Small, computed: str) -> None:
    """Two in layer 0, one in layer 1, by each way that Transformers computes experts; against a softmax of our own."""
    keys = {0: [2, 7], 1: [5]}
    model, other = qwen.model(computed), qwen.model()
    stock = logits(model)
    handle = apply(model, qwen.export("pick", mode="force_add", experts=keys))
    kept = []
    for number, layer in enumerate(other.model.layers):
        kept.append(_insert(layer.mlp, keys[number]))
    ours, theirs = logits(model), logits(other)
    assert float((ours - theirs).abs().max()) < CLOSE < 1e-3 < float((ours - stock).abs().max())
    assert handle.mean_kept() == pytest.approx([sum(each) / len(each) for each in kept])
    assert handle.policy.slots == qwen.small.top_k + 2 and 4 < handle.mean_kept()[1] < handle.mean_kept()[0] < 6


def _insert(block: Any, keys: list[int]) -> list[int]:
    """A layer whose every token also uses `keys`, an expert at a time. Returns what will hold the experts a token."""
    kept: list[int] = []

    def forward(hidden: Tensor) -> Tensor:
        rows = hidden.reshape(-1, hidden.shape[-1])
        out = torch.zeros_like(rows)
        for token, row in enumerate(rows):
            share = (block.gate.weight @ row).softmax(-1)
            chosen = sorted({*share.topk(block.gate.top_k).indices.tolist(), *keys})
            kept.append(len(chosen))
            for expert in chosen:
                gate, up = (block.experts.gate_up_proj[expert] @ row).chunk(2)
                value = block.experts.down_proj[expert] @ (torch.nn.functional.silu(gate) * up)
                out[token] += share[expert] / share[chosen].sum() * value
        return out.reshape(hidden.shape)

    block.forward = forward
    return kept


# ---------------------------------------------------------------- what is counted


@pytest.fixture
def padded(qwen: Small) -> tuple[Any, Any, list[list[int]]]:
    """A model under a threshold rule, what `apply` gave, and prompts of three lengths."""
    model = qwen.model()
    handle = apply(model, qwen.export("naee", beta=0.5))
    return model, handle, [IDS[0, :5].tolist(), IDS[0, :11].tolist(), IDS[1, :20].tolist()]


def generate(model: Any, prompts: list[list[int]], **given: Any) -> list[list[int]]:
    """Greedy continuations, padded on the left."""
    longest = max(map(len, prompts))
    ids = torch.tensor([[0] * (longest - len(prompt)) + prompt for prompt in prompts])
    mask = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    answers = model.generate(ids, attention_mask=mask, do_sample=False, max_new_tokens=8, pad_token_id=0, **given)
    return [row[longest:] for row in answers.tolist()]


def test_padding_is_left_out(padded: tuple[Any, Any, list[list[int]]]) -> None:
    model, handle, prompts = padded
    alone = []
    for prompt in prompts:
        alone += generate(model, [prompt], eos_token_id=-1)
    single, tokens = handle.mean_kept(), handle.tokens()
    assert tokens == sum(len(prompt) + 7 for prompt in prompts)
    handle.reset()
    with pytest.raises(UserError, match=r"no token was routed since apply or reset.* model.generate"):
        handle.mean_kept()
    assert generate(model, prompts, eos_token_id=-1) == alone
    assert handle.tokens() == tokens and handle.mean_kept() == single and min(single) > 1 and max(single) < 4
    handle.reset()
    logits(model, torch.cat([torch.zeros_like(IDS), IDS], dim=1))
    assert handle.tokens() == 2 * IDS.numel(), "without a mask all tokens are the user's"


def test_rows_that_have_ended_are_left_out(qwen: Small, padded: tuple[Any, Any, list[list[int]]]) -> None:
    """The end of the shortest answer is drawn from what the model says, so that one row ends before the others."""
    model, handle, prompts = padded
    free = generate(model, prompts, eos_token_id=-1)
    end = next(token for token in free[0][1:4] if all(token not in row for row in free[1:]))
    model.generation_config.eos_token_id, model.generation_config.pad_token_id = end, 0
    handle.remove()
    handle = apply(model, qwen.export("naee", beta=0.5))
    for prompt in prompts:
        generate(model, [prompt], eos_token_id=end)
    expected, single = handle.tokens(), handle.mean_kept()
    handle.reset()
    ended = generate(model, prompts, eos_token_id=end)
    assert 0 in ended[0] and all(0 not in row for row in ended[1:])
    assert handle.tokens() == expected < sum(len(prompt) + 7 for prompt in prompts)
    assert handle.mean_kept() == single


# ---------------------------------------------------------------- what is refused


def test_another_model_is_refused_with_the_reason(qwen: Small) -> None:
    model = qwen.model()
    for sizes, why in (
        ({"num_layers": 3, "num_experts": 16, "top_k": 4}, "is for 3 MoE layers, .* has 2"),
        ({"num_layers": 2, "num_experts": 32, "top_k": 4}, "is for 32 experts a layer, .* has 16"),
        ({"num_layers": 2, "num_experts": 16, "top_k": 8}, "is for 8 experts a token, .* has 4"),
    ):
        with pytest.raises(UserError, match=why):
            apply(model, qwen.export("fixed_k", k=2, shape=MoeShape(**sizes)))
    with pytest.raises(UserError, match=r"was measured on mine .1234., .* no measured number holds"):
        apply(model, qwen.export("fixed_k", k=2, identity="1234"))
    model.config._name_or_path = ""
    with pytest.raises(UserError, match="this Qwen3MoeForCausalLM is made in memory"):
        apply(model, qwen.export("fixed_k", k=2))
    assert not any(module._forward_hooks for module in model.modules())


def test_a_model_of_the_hub_is_known_by_its_id(qwen: Small, tmp_path: Path) -> None:
    model, commit = qwen.model(), "a" * 40
    model.config._name_or_path, model.config._commit_hash = "owner/mine", commit

    def export(folder: str, revision: str | None) -> Path:
        identity = f"hub:owner/mine@{revision or 'main'}"
        knobs = {"k": 2}
        return export_of(
            tmp_path / folder, qwen.shape, identity, "fixed_k", knobs, hub_id="owner/mine", revision=revision
        )

    for number, revision in enumerate((None, "v2", commit)):
        apply(model, export(str(number), revision)).remove()
    elsewhere = export("elsewhere", "b" * 40)
    with pytest.raises(UserError, match=f"is hub:owner/mine@{commit}: .* Load owner/mine at revision b"):
        apply(model, elsewhere)


def test_a_second_policy_is_refused(qwen: Small) -> None:
    model = qwen.model()
    handle = apply(model, qwen.export("fixed_k", k=2))
    with pytest.raises(UserError, match=r"on this model already.*remove\(\)"):
        apply(model, qwen.export("fixed_k", k=1))
    handle.remove()
    apply(model, qwen.export("fixed_k", k=1))


def test_a_compiled_model_is_refused(qwen: Small) -> None:
    model = qwen.model()
    with pytest.raises(UserError, match="the model is compiled"):
        apply(torch.compile(model), qwen.export("fixed_k", k=2))
    model.compile()
    with pytest.raises(UserError, match="the model is compiled"):
        apply(model, qwen.export("fixed_k", k=2))


def test_families_that_are_not_known_are_named(qwen: Small, tmp_path: Path) -> None:
    gpt_oss = build(MINIATURES["gpt_oss"], tmp_path / "gpt_oss")
    with pytest.raises(UserError, match=r"gpt_oss has no router that is known here.*qwen3_moe, .*deepseek_v3"):
        apply(gpt_oss, qwen.export("fixed_k", k=2))
    with pytest.raises(UserError, match="given a str, which is no loaded model"):
        apply("owner/mine", qwen.export("fixed_k", k=2))


def test_a_router_that_weighs_otherwise_is_refused(qwen: Small) -> None:
    """As a later Transformers might: here something stands behind the router and doubles its weights."""
    model = qwen.model()
    model.model.layers[1].mlp.gate.register_forward_hook(lambda gate, args, out: (out[0], 2 * out[1], out[2]))
    with pytest.raises(UserError, match=r"the router of MoE layer 1 of Qwen3MoeForCausalLM .* weighs otherwise"):
        apply(model, qwen.export("fixed_k", k=2))


def test_importing_it_loads_neither_torch_nor_transformers() -> None:
    code = (
        "import sys, banpick_exp.transformers;"
        " print([name for name in ('torch', 'transformers', 'vllm', 'ray', 'wandb', 'polars') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
