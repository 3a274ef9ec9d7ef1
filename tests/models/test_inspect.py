"""What a checkpoint is, read from its files: sizes, identity, and everything that is refused while planning."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
from checkpoint_folder import safetensors, write_checkpoint, write_folder

from banpick_exp.errors import UserError
from banpick_exp.models.checkpoint import END_BYTES, WHOLE_FILE_LIMIT, Checkpoint
from banpick_exp.models.config import ModelConfig
from banpick_exp.models.inspect import check_max_model_len, inspect_checkpoint
from banpick_exp.models.shape import MoeShape

SHAPE = MoeShape(num_layers=2, num_experts=16, top_k=4)
DENSE: dict[str, Any] = {"architectures": ["LlamaForCausalLM"], "num_experts_per_tok": None}


def inspect(path: Path | str, **settings: Any) -> Checkpoint:
    return inspect_checkpoint(ModelConfig(name="local", path=str(path), **settings))


def test_a_folder_gives_its_own_sizes(tmp_path: Path) -> None:
    checkpoint = inspect(write_checkpoint(tmp_path))
    assert checkpoint.shape == SHAPE
    assert checkpoint.missing is None
    assert checkpoint.location == str(tmp_path)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({**DENSE, "num_experts": None}, ["is a dense model (LlamaForCausalLM)", "model=tiny"]),
        ({**DENSE, "num_experts": 0}, ["is a dense model (LlamaForCausalLM)"]),
        ({"num_experts": None}, ["speaks of experts", "no number of experts a layer", "model.num_experts=NUMBER"]),
        ({"num_experts": 1}, ["has one expert a layer"]),
        ({"first_k_dense_replace": 2}, ["speaks of experts", "no layer that has them", "model.num_layers=NUMBER"]),
        ({"num_experts": 10**9}, ["counts 1000000000 experts", "damaged"]),
        ({"num_experts": [16, 8]}, ["num_experts=[16, 8, ...] differs from layer to layer"]),
        ({"num_experts_per_tok": [4, 2]}, ["differs from layer to layer"]),
        ({"architectures": ["Grok1ForCausalLM"]}, ["Grok1ForCausalLM", "held it until 0.24 and dropped it"]),
        ({"architectures": ["MiniMaxM1ForCausalLM"]}, ["dropped it"]),
        ({"architectures": ["MiniCPMForCausalLM"]}, ["MiniCPMForCausalLM", "silently do nothing"]),
        ({"architectures": ["DeepseekV4ForCausalLM"]}, ["DeepseekV4ForCausalLM"]),
        ({"architectures": ["Moondream3ForCausalLM"]}, ["Moondream3ForCausalLM"]),
        ({"num_experts_per_tok": None}, ["no number of experts per token"]),
        ({"num_experts_per_tok": 17}, ["17 experts per token"]),
    ],
)
def test_a_checkpoint_that_cannot_be_routed_is_refused(
    tmp_path: Path, changes: dict[str, Any], words: list[str]
) -> None:
    with pytest.raises(UserError) as caught:
        inspect(write_checkpoint(tmp_path, **changes))
    for word in words:
        assert word in str(caught.value)


def test_a_text_model_inside_a_larger_config_is_found(tmp_path: Path) -> None:
    text = {"num_hidden_layers": 3, "num_local_experts": 16, "num_experts_per_tok": 2}
    folder = write_checkpoint(tmp_path, num_experts=None, num_experts_per_tok=None, text_config=text)
    assert inspect(folder).shape == MoeShape(num_layers=3, num_experts=16, top_k=2)


def test_folders_that_are_no_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no config\.json"):
        inspect(tmp_path)
    with pytest.raises(UserError, match="no folder and no Hugging Face id"):
        inspect(tmp_path / "nowhere")
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(UserError, match="damaged"):
        inspect(tmp_path)
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(UserError, match="damaged"):
        inspect(tmp_path)
    assert "no weights" in str(inspect(write_checkpoint(tmp_path / "b", weights=None)).missing)


def test_stated_sizes_must_agree_with_the_folder(tmp_path: Path) -> None:
    assert inspect(write_checkpoint(tmp_path), top_k=4).shape == SHAPE
    with pytest.raises(UserError, match=r"model\.top_k=8, but .* says 4"):
        inspect(tmp_path, top_k=8)


def test_a_hub_id_needs_its_sizes_stated() -> None:
    sizes = {"num_layers": 2, "num_experts": 16, "top_k": 4}
    assert inspect("owner/name", **sizes).identity == "hub:owner/name@main"
    assert inspect("owner/name", **sizes, revision="abc").identity == "hub:owner/name@abc"
    with pytest.raises(UserError, match=r"model\.num_experts=NUMBER model\.top_k=NUMBER"):
        inspect("owner/name", num_layers=2)
    with pytest.raises(UserError, match=r"model\.top_k=17 exceeds model\.num_experts=16"):
        inspect("owner/name", **(sizes | {"top_k": 17}))


def test_identity_follows_content_not_place(tmp_path: Path) -> None:
    one = inspect(write_checkpoint(tmp_path / "one"))
    same = inspect(write_checkpoint(tmp_path / "two"))
    assert one.identity == same.identity
    assert inspect(write_checkpoint(tmp_path / "three", weights=b"Weights")).identity != one.identity
    assert inspect(write_checkpoint(tmp_path / "four", rope_theta=1)).identity != one.identity


def test_large_files_are_known_by_size_and_ends(tmp_path: Path) -> None:
    size = WHOLE_FILE_LIMIT + END_BYTES
    folder = write_checkpoint(tmp_path)
    tensor = {"dtype": "U8", "shape": [size], "data_offsets": [0, size]}
    header = json.dumps({"weight": tensor}).encode()
    seen = set()
    for place in (None, 200, WHOLE_FILE_LIMIT + 200, WHOLE_FILE_LIMIT // 2):
        with (folder / "model.safetensors").open("wb") as file:
            file.write(len(header).to_bytes(8, "little") + header)
            file.truncate(8 + len(header) + size)
            if place is not None:
                file.seek(place)
                file.write(b"x")
        seen.add(inspect(folder).identity)
    assert len(seen) == 3, "both ends count, the middle of a large file does not"


# ---------------------------------------------------------------- typed sizes


def test_a_typed_number_of_layers_wins_and_is_said(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path, num_hidden_layers=8)
    found = inspect(folder, num_layers=5)
    assert found.shape.num_layers == 5
    assert "model.num_layers=5 is taken as typed" in found.notes[0] and "8 MoE layers" in found.notes[0]
    with pytest.raises(UserError, match=r"model\.num_layers=9, but .* says 8 layers"):
        inspect(folder, num_layers=9)


def test_typed_sizes_stand_for_what_the_config_does_not_say(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path, num_experts=None, moe_blocks={"banks": 16})
    found = inspect(folder, num_experts=16)
    assert found.shape == SHAPE
    assert "model.num_experts=16 is taken as typed" in found.notes[0]


@pytest.mark.parametrize(
    ("changes", "doubt"),
    [
        ({"architectures": ["BrandNewMoeForCausalLM"]}, "BrandNewMoeForCausalLM is no family known here"),
        ({"moe_layer_num_skipped": 1}, "moe_layer_num_skipped=1 is not understood"),
        ({"mlp_layer_types": ["dense", "sparse", "sparse"]}, "has 3 entries for 2 layers"),
        ({"mlp_layer_types": ["dense", "fancy"], "moe_layers": [1]}, "calls layers fancy"),
        ({"mlp_layer_types": ["dense", "sparse"], "moe_layers": [0, 1]}, "mlp_layer_types names 1 MoE layers"),
        ({"num_experts": None, "router": {"num_experts": 16}}, "its experts are described under router"),
    ],
)
def test_a_count_that_cannot_be_sure_says_so(tmp_path: Path, changes: dict[str, Any], doubt: str) -> None:
    folder = write_checkpoint(tmp_path, **changes)
    if changes.get("mlp_layer_types") == ["dense", "fancy"]:
        with pytest.raises(UserError, match="no layer that has them"):
            inspect(folder)
        return
    found = inspect(folder)
    assert doubt in found.notes[0] and "may be wrong" in found.notes[0] and "model.num_layers=NUMBER" in found.notes[0]
    assert "may be wrong" not in " ".join(inspect(folder, num_layers=1).notes), "what was typed is not doubted again"


@pytest.mark.parametrize(
    ("changes", "said", "meant"),
    [
        ({"num_experts": "8"}, 'num_experts="8" is text, no number', '"num_experts": 8.'),
        ({"num_experts_per_tok": " 4 "}, "is text, no number", '"num_experts_per_tok": 4.'),
        ({"num_hidden_layers": "2"}, 'num_hidden_layers="2" is text, no number', '"num_hidden_layers": 2.'),
        ({"num_experts": "many"}, "num_experts=many is text", '"num_experts": NUMBER.'),
        ({"num_experts": 8.5}, "num_experts=8.5 is no whole number", '"num_experts": NUMBER.'),
        ({"num_experts_per_tok": True}, "num_experts_per_tok=True is no whole number", "NUMBER."),
        ({"hidden_size": "128"}, 'hidden_size="128" is text, no number', '"hidden_size": 128.'),
        ({"hidden_size": -64}, "hidden_size=-64 is below 1", '"hidden_size": NUMBER.'),
        ({"vocab_size": []}, "vocab_size=[] is no whole number", '"vocab_size": NUMBER.'),
        ({"max_position_embeddings": "many"}, "max_position_embeddings=many is text", "NUMBER."),
        ({"text_config": {"vocab_size": 0}}, "vocab_size=0 is below 1", "NUMBER."),
    ],
)
def test_a_size_that_is_no_number_is_said_once_and_typing_it_is_no_remedy(
    tmp_path: Path, changes: dict[str, Any], said: str, meant: str
) -> None:
    folder = write_checkpoint(tmp_path, **changes)
    for typed in ({}, {"num_experts": 8, "top_k": 4, "num_layers": 2}):
        with pytest.raises(UserError) as caught:
            inspect(folder, **typed)
        message = str(caught.value)
        assert said in message and message.endswith(meant) and "has no" not in message


def test_the_remedy_for_a_byte_order_mark_works_as_typed(tmp_path: Path) -> None:
    path = write_checkpoint(tmp_path / "it's") / "config.json"
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    with pytest.raises(UserError, match="byte order mark") as caught:
        inspect(path.parent)
    subprocess.run(str(caught.value).split(" type ")[1].removesuffix("."), shell=True, check=True)
    assert inspect(path.parent).shape == SHAPE


@pytest.mark.parametrize(
    "changes", [{"mlp_only_layers": ["0"]}, {"mlp_only_layers": "0"}, {"moe_layer_freq": 0}, {"expert_layer_period": 0}]
)
def test_a_layer_key_that_says_nothing_is_a_doubt(tmp_path: Path, changes: dict[str, Any]) -> None:
    (note,) = inspect(write_checkpoint(tmp_path, **changes)).notes
    assert f"{next(iter(changes))}=" in note and "cannot be read" in note and "type model.num_layers=" in note


# ---------------------------------------------------------------- what an engine could not load


LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 4000000000\n"


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("model.safetensors", LFS, ["is a Git LFS pointer", "lfs pull"]),
        ("config.json", LFS, ["is a Git LFS pointer", "lfs pull"]),
        ("tokenizer.json", LFS, ["is a Git LFS pointer", "lfs pull"]),
        ("model.safetensors", b"", ["is empty", "Copy or download it again"]),
        ("model.safetensors", b"abc", ["has no whole header"]),
        ("model.safetensors", safetensors()[:-1], ["is cut off", "Copy or download it again"]),
        ("model.safetensors", safetensors() + b"x", ["is damaged"]),
        ("model.safetensors", (4).to_bytes(8, "little") + b"nope", ["no header that can be read"]),
        ("model.safetensors", b"<!DOCTYPE html><html>404</html>", ["has no whole header"]),
        ("model.safetensors.index.json", b'{"weight_map": {"a": "gone.safetensors"}}', ["gone.safetensors", "in part"]),
        ("model.safetensors.index.json", b"{}", ["no weight_map"]),
        ("model.safetensors.index.json", b'{"weight_map": {}}', ["no weight_map"]),
        ("model.safetensors.index.json", b'{"weight_map": {"a": "/etc/hostname"}}', ["/etc/hostname", "in part"]),
        ("model.safetensors.index.json", b'{"weight_map": {"a": "config.json"}}', ["config.json", "in part"]),
        (
            "model-00002-of-00003.safetensors",
            safetensors(),
            ["1 of the 3 parts", "model-00003-of"],
        ),
        ("tokenizer.json", b'{"model": ', ["tokenizer.json cannot be read", "damaged"]),
        ("generation_config.json", b"[1]", ["generation_config.json holds a list", "damaged"]),
        ("adapter_config.json", b'{"base_model_name_or_path": "a/b"}', ["holds an adapter", "a/b", "merge_and_unload"]),
        ("config.json", b"[" * 100_000, ["cannot be read", "damaged"]),
        ("config.json", b'{"a": "\xff"}', ["cannot be read", "damaged"]),
    ],
)
def test_damage_is_refused_while_planning(tmp_path: Path, name: str, content: bytes, words: list[str]) -> None:
    folder = write_checkpoint(tmp_path)
    (folder / name).write_bytes(content)
    with pytest.raises(UserError) as caught:
        inspect(folder)
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize("name", ["config.json", "tokenizer_config.json", "model.safetensors"])
def test_a_file_that_may_not_be_read_is_not_called_damaged(tmp_path: Path, name: str) -> None:
    path = write_checkpoint(tmp_path) / name
    path.touch()
    path.chmod(0)
    if os.access(path, os.R_OK):
        pytest.skip("root reads everything")
    with pytest.raises(UserError, match=rf"cannot be read .*{name}.*Make it readable"):
        inspect(tmp_path)


def test_a_quantisation_that_is_no_object_is_refused(tmp_path: Path) -> None:
    wrong: list[dict[str, Any]] = [{"quantization_config": "fp8"}, {"text_config": {"compression_config": [8]}}]
    for number, changes in enumerate(wrong):
        with pytest.raises(UserError, match="is no object, so no engine could load it"):
            inspect(write_checkpoint(tmp_path / str(number), **changes))
    assert inspect(write_checkpoint(tmp_path / "whole", quantization_config={"quant_method": "fp8"})).shape == SHAPE


def test_all_parts_of_the_weights_are_whole(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path, weights=None)
    for number in (1, 2):
        (folder / f"model-0000{number}-of-00002.safetensors").write_bytes(safetensors())
    assert inspect(folder).missing is None


@pytest.mark.parametrize("name", ["model.safetensors", "model-00001-of-00002.safetensors", "tokenizer.json"])
def test_a_link_to_nothing_is_refused(tmp_path: Path, name: str) -> None:
    folder = write_checkpoint(tmp_path, weights=None)
    (folder / name).unlink(missing_ok=True)
    (folder / name).symlink_to("../../blobs/0123")
    with pytest.raises(UserError, match=rf"{name} links to \.\./\.\./blobs/0123, which is not there"):
        inspect(folder)
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    with pytest.raises(UserError, match="no folder and no Hugging Face id"):
        inspect(tmp_path / "dangling")


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "model-q4.gguf"])
def test_weights_of_another_format_are_refused(tmp_path: Path, name: str) -> None:
    folder = write_checkpoint(tmp_path, weights=None)
    (folder / "training_args.bin").write_bytes(b"x")
    assert "no weights" in str(inspect(folder).missing)
    (folder / name).write_bytes(b"x")
    with pytest.raises(UserError, match=name):
        inspect(folder)


def test_an_adapter_alone_is_no_checkpoint(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text("{}")
    (tmp_path / "adapter_model.safetensors").write_bytes(safetensors())
    with pytest.raises(UserError, match="holds an adapter"):
        inspect(tmp_path)


def test_a_missing_tokenizer_and_an_unhooked_family_are_said_before_a_run(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "a")
    (folder / "tokenizer.json").unlink()
    assert "holds no tokenizer" in str(inspect(folder).missing)
    (folder / "tokenizer.model").write_bytes(b"x")
    assert inspect(folder).missing is None
    phi = inspect(write_checkpoint(tmp_path / "b", architectures=["PhiMoEForCausalLM"]))
    assert "PhiMoEForCausalLM" in str(phi.missing) and "Use a checkpoint of another family" in str(phi.missing)


# ---------------------------------------------------------------- identity


@pytest.mark.parametrize(
    "name",
    [
        *("chat_template.jinja", "chat_template.json", "additional_chat_templates/tool_use.jinja"),
        *("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.json", "vocab.txt", "merges.txt"),
        *("special_tokens_map.json", "added_tokens.json", "tekken.json"),
        *("generation_config.json", "quantize_config.json", "modeling_mine.py"),
    ],
)
def test_whatever_changes_an_answer_changes_the_identity(tmp_path: Path, name: str) -> None:
    seen = {inspect(write_checkpoint(tmp_path / "bare")).identity}
    for number, content in enumerate(["{}", "{} "]):
        folder = write_checkpoint(tmp_path / str(number))
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(content)
        seen.add(inspect(folder).identity)
    assert len(seen) == (2 if name == "tokenizer.json" else 3), "the bare one has a tokenizer.json of its own"
    (tmp_path / "bare" / "README.md").write_text("nothing reads this")
    assert inspect(tmp_path / "bare").identity in seen


# ---------------------------------------------------------------- positions


@pytest.mark.parametrize(
    ("changes", "most"),
    [
        ({}, None),
        ({"max_position_embeddings": 256}, 256),
        ({"text_config": {"max_position_embeddings": 512}}, 512),
        ({"max_seq_len": 1024}, 1024),
        ({"max_position_embeddings": 256, "rope_scaling": {"rope_type": "linear", "factor": 4.0}}, 1024),
        ({"max_position_embeddings": 256, "rope_scaling": {"type": "yarn", "factor": 4.0}}, 256),
        ({"max_position_embeddings": 256, "rope_scaling": {"rope_type": "linear", "factor": None}}, 256),
        ({"max_position_embeddings": 256, "model_max_length": 1024}, 1024),
    ],
)
def test_a_longer_sequence_than_the_model_knows_is_refused(tmp_path: Path, changes: dict[str, Any], most: Any) -> None:
    found = inspect(write_checkpoint(tmp_path, **changes))
    assert found.max_positions == most
    check_max_model_len(found, most or 10**6)
    if most is not None:
        with pytest.raises(UserError, match=rf"engine\.max_model_len={most + 1} .* Type engine\.max_model_len={most}"):
            check_max_model_len(found, most + 1)


def test_the_tokenizer_may_allow_less(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path, max_position_embeddings=4096)
    (folder / "tokenizer_config.json").write_text('{"model_max_length": 1000000000000000019884624838656}')
    assert inspect(folder).max_positions == 4096
    (folder / "tokenizer_config.json").write_text('{"model_max_length": 512}')
    assert inspect(folder).max_positions == 512


def test_the_embedded_checkpoint_is_whole() -> None:
    found = inspect_checkpoint(ModelConfig(name="tiny"))
    assert found.missing is None and found.notes == ()
    assert found.max_positions == 256


def test_folders_named_like_patterns_are_names(tmp_path: Path) -> None:
    plain = inspect(write_checkpoint(tmp_path / "plain"))
    for name in ("p [1]", "a*b", "q::x"):
        write_folder(tmp_path / "aXb", {"num_experts": 3})
        assert inspect(write_checkpoint(tmp_path / name)).identity == plain.identity
