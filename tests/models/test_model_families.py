"""Every way of writing down experts is read as the family means it; no config.json ends in a traceback."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from checkpoint_folder import write_folder
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from banpick_exp.errors import UserError
from banpick_exp.models import families
from banpick_exp.models.checkpoint import Checkpoint
from banpick_exp.models.config import ModelConfig
from banpick_exp.models.families import EXPERT_KEYS, FAMILIES, TOP_K_KEYS, UNKNOWN, Family, family_of
from banpick_exp.models.inspect import inspect_checkpoint
from banpick_exp.models.moe_layers import KNOWN_KEYS, TOTAL_KEYS
from banpick_exp.models.shape import MoeShape

CASES = json.loads((Path(__file__).parent / "cases" / "configs.json").read_text())
"""name: [config.json, layers, experts, top_k]."""


def inspect(folder: Path, config: Any, **typed: Any) -> Checkpoint:
    return inspect_checkpoint(ModelConfig(name="local", path=str(write_folder(folder, config)), **typed))


@pytest.mark.parametrize("name", CASES)
def test_a_real_config_is_read_as_its_family_means_it(name: str, tmp_path: Path) -> None:
    config, layers, experts, top_k = CASES[name]
    found = inspect(tmp_path, config)
    assert found.shape == MoeShape(num_layers=layers, num_experts=experts, top_k=top_k)
    assert found.notes == (), "a family that is known leaves no doubt"


@pytest.mark.parametrize(
    ("config", "layers"),
    [
        ({"num_hidden_layers": 48}, 48),
        ({"num_hidden_layers": 24, "decoder_sparse_step": 2, "mlp_only_layers": [1]}, 11),
        ({"num_hidden_layers": 27, "first_k_dense_replace": 1, "moe_layer_freq": 1}, 26),
        ({"num_hidden_layers": 48, "interleave_moe_layer_step": 2}, 24),
        ({"num_hidden_layers": 48, "moe_layers": [1, 3, 5]}, 3),
        ({"num_hidden_layers": 4, "moe_layer_freq": [0, 1, 1, 1]}, 3),
        ({"num_hidden_layers": 32, "expert_layer_period": 2, "expert_layer_offset": 1}, 16),
        ({"num_hidden_layers": 28, "moe_layer_start_index": 1, "moe_layer_end_index": -1, "moe_layer_interval": 1}, 27),
        ({"num_hidden_layers": 61, "moe_layers_enum": "4,5,6, 7"}, 4),
        ({"num_hidden_layers": 4, "moe_layer_interval": 0}, 0),
        ({"num_hidden_layers": 10**12}, 0),
    ],
    ids=[
        "all",
        "qwen2",
        "deepseek",
        "llama4",
        "llama4-list",
        "frequency-list",
        "jamba",
        "ernie",
        "step3",
        "zero",
        "absurd",
    ],
)
def test_moe_layers_are_counted_as_each_convention_writes_them(config: dict[str, Any], layers: int) -> None:
    assert len(UNKNOWN.count(config).layers) == layers


def test_families_are_matched_by_their_own_names() -> None:
    assert family_of(("Qwen3MoeForCausalLM",)).name == "qwen"
    assert family_of(("DeepseekV3ForCausalLM",)).name == "deepseek_v3"
    assert family_of(("DeepseekVLV2ForCausalLM",)).name == "deepseek"
    assert family_of(("SomethingElse",)) is UNKNOWN
    assert len({family.name for family in FAMILIES}) == len(FAMILIES)


def test_a_newcomer_adds_a_family_with_one_entry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its own names for the sizes, its own default, and a rule of its own: every layer whose number is a prime's."""
    toy = Family(
        name="toy",
        architectures=("ToyMoe",),
        expert_keys=("toys",),
        top_k_keys=("toys_played_with",),
        layers=lambda config, total: frozenset({2, 3, 5, 7}) & frozenset(range(total)),
    )
    monkeypatch.setattr(families, "FAMILIES", (*FAMILIES, toy))
    config = {"architectures": ["ToyMoeForCausalLM"], "num_layers": 6, "toys": 12, "toys_played_with": 3}
    found = inspect(tmp_path, config)
    assert found.shape == MoeShape(num_layers=3, num_experts=12, top_k=3)
    assert found.notes == ()


# ---------------------------------------------------------------- no traceback on any config.json

KEYS = [*EXPERT_KEYS[:4], *TOP_K_KEYS[:4], *TOTAL_KEYS, *sorted(KNOWN_KEYS), "architectures", "text_config"]
KEYS += ["ffn_config", "thinker_config", "block_configs", "max_position_embeddings", "rope_scaling", "rope_parameters"]
KEYS += ["block_type", "factor", "rope_type", "moe", "model_max_length", "mlp_router_layers"]
WORDS = st.sampled_from(["moe", "sparse", "E", "1,2,x", "", "linear", "Qwen3MoeForCausalLM", "Step3TextForCausalLM"])
SCALARS = st.none() | st.booleans() | st.integers(-3, 70) | st.integers() | st.floats() | WORDS
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.sampled_from(KEYS), inner, max_size=8),
    max_leaves=20,
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(config=st.dictionaries(st.sampled_from(KEYS), VALUES, max_size=12))
def test_any_config_ends_in_a_shape_or_in_words(config: dict[str, Any], tmp_path: Path) -> None:
    try:
        found = inspect(tmp_path, config)
    except UserError as error:
        assert str(error)
    else:
        assert 1 <= found.shape.top_k <= found.shape.num_experts


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("decoder_sparse_step", "2"),
        ("first_k_dense_replace", "three"),
        ("moe_layer_freq", [0, 1]),
        ("moe_layer_freq", "1"),
        ("moe_layers_enum", "4,x,6"),
        ("mlp_only_layers", ["0", None]),
        ("mlp_only_layers", 3),
        ("hybrid_override_pattern", 5),
        ("mlp_layer_types", "sparse"),
        ("block_configs", {"0": "moe"}),
        ("expert_layer_period", "2.5"),
    ],
)
def test_a_layer_key_that_cannot_be_read_makes_the_count_doubtful(tmp_path: Path, key: str, value: object) -> None:
    """Nothing is guessed in silence: the note names key and value and what to type."""
    config = {
        "architectures": ["Qwen3MoeForCausalLM"], "num_hidden_layers": 12, "num_experts": 16, "num_experts_per_tok": 4,
        key: value,
    }  # fmt: skip
    (note,) = inspect(tmp_path, config).notes
    assert f"{key}=" in note and "cannot be read" in note and "model.num_layers=NUMBER" in note
    assert inspect(tmp_path, config, num_layers=7).shape.num_layers == 7


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"num_experts": "16"}, 'num_experts="16" is text, no number'),
        ({"num_hidden_layers": "12"}, 'num_hidden_layers="12" is text, no number'),
        ({"moe_layers_enum": "3-30"}, "moe_layers_enum=3-30 cannot be read"),
    ],
)
def test_a_size_that_cannot_be_read_is_named_in_the_form_it_has(
    tmp_path: Path, change: dict[str, object], words: str
) -> None:
    config = {
        "architectures": ["Qwen3MoeForCausalLM"], "num_hidden_layers": 12, "num_experts": 16, "num_experts_per_tok": 4,
    }  # fmt: skip
    with pytest.raises(UserError) as caught:
        inspect(tmp_path, config | change)
    assert words in str(caught.value)


def test_a_wrapper_that_is_no_object_is_passed_over_with_a_note(tmp_path: Path) -> None:
    config = {
        "architectures": ["Qwen3MoeForCausalLM"], "num_hidden_layers": 12, "num_experts": 16, "num_experts_per_tok": 4,
        "text_config": [{"num_experts": 8}],
    }  # fmt: skip
    (note,) = inspect(tmp_path, config).notes
    assert "text_config=" in note and "no object" in note
