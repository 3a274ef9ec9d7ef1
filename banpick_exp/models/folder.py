"""Is a folder a checkpoint that an engine can load? What is damaged is refused, what is absent is said, in seconds."""

from __future__ import annotations

import codecs
import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from shlex import quote
from typing import Any

from banpick_exp.errors import UserError
from banpick_exp.models.checkpoint import TOKENIZERS, identity_files, weight_files

LFS_POINTER = b"version https://git-lfs"
"""How a file begins that Git LFS has not fetched."""
LONGEST_HEADER = 100_000_000
"""Bytes: safetensors refuses longer ones."""
SHARD = re.compile(r"(.*)-(\d{5})-of-(\d{5})\.safetensors")
"""How a part of the weights is named: prefix, its number from 1, and how many there are."""
SETTINGS = ("tokenizer.json", "tokenizer_config.json", "generation_config.json", "special_tokens_map.json")
"""Files of one JSON object each; without them an engine loads or not, damaged it does not, or reads over them."""
MOST_NAMED = 6
"""Absent files that are named one by one."""
TEMPLATES = ("chat_template.jinja", "chat_template.json", "additional_chat_templates/*.jinja", "tekken.json")
OTHER_WEIGHTS = {
    "*.bin": "PyTorch's *.bin",
    "*.pt": "PyTorch's *.pt",
    "*.pth": "PyTorch's *.pth",
    "*.gguf": "*.gguf",
    "*.h5": "TensorFlow's *.h5",
    "*.msgpack": "Flax's *.msgpack",
}


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file of a checkpoint. UserError where there is none."""
    try:
        with _readable(path.parent):
            content = path.read_bytes()
        _refuse_pointer(path, content)
        if content.startswith(codecs.BOM_UTF8):
            raise UserError(
                f"{path} begins with a byte order mark (U+FEFF), at which Transformers and vLLM stop reading. Save it"
                f" as UTF-8 without one: type sed -i '1s/^\\xef\\xbb\\xbf//' {quote(str(path))}."
            )
        value = json.loads(content.decode("utf-8"))
    except UserError:
        raise
    except (ValueError, RecursionError) as error:
        raise UserError(
            f"{path} cannot be read ({_line(error)}): the checkpoint is damaged. Copy or download it again."
        ) from None
    if not isinstance(value, dict):
        raise UserError(
            f"{path} holds a {type(value).__name__}, not an object: the checkpoint is damaged. Copy it again."
        )
    return value


def check_folder(folder: Path) -> None:
    """Raise UserError for what is no checkpoint: no config.json, links to nothing, an adapter."""
    with _readable(folder):
        _refuse_dangling_links(folder)
        _refuse_adapter(folder)
        if not (folder / "config.json").is_file():
            raise UserError(
                f"model.path={folder} has no config.json, so it is no Hugging Face checkpoint and no engine can load"
                " it. Type the folder that holds config.json and the *.safetensors files."
            )


def missing_files(folder: Path) -> str | None:
    """What a real run still needs of `folder`, None when it is complete.

    Raises UserError for what is there and cannot be loaded: Git LFS pointers, damaged weights, weights of another
    format.
    """
    with _readable(folder):
        for path in identity_files(folder):
            with path.open("rb") as file:
                _refuse_pointer(path, file.read(len(LFS_POINTER)))
        for name in SETTINGS:
            if (folder / name).is_file():
                read_json(folder / name)
        weights = weight_files(folder)
        if not weights:
            return _no_weights(folder)
        for path in weights:
            _check_safetensors(path)
        _check_index(folder, {path.name for path in weights})
        _check_shards(folder, [path.name for path in weights])
    if not any(next(folder.glob(pattern), None) for pattern in TOKENIZERS):
        return (
            f"{folder} holds no tokenizer (tokenizer.json, tokenizer.model, vocab.json, ...), so no prompt could be"
            " read. Copy its tokenizer files there too"
        )
    return None


@contextmanager
def _readable(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UserError(
            f"model.path={folder} cannot be read ({_line(error)}): no engine could load it. Make it readable, or type"
            " another model.path."
        ) from None


def has_chat_template(folder: Path) -> bool:
    """Whether the tokenizer of a checkpoint can turn chat messages into a prompt. UserError for a damaged file."""
    if any(next(folder.glob(pattern), None) for pattern in TEMPLATES):
        return True
    path = folder / "tokenizer_config.json"
    return path.is_file() and bool(read_json(path).get("chat_template"))


def _refuse_dangling_links(folder: Path) -> None:
    dangling = sorted(path.name for path in folder.iterdir() if path.is_symlink() and not path.exists())
    if dangling:
        target = os.readlink(folder / dangling[0])
        more = f" and {len(dangling) - 1} more" if len(dangling) > 1 else ""
        raise UserError(
            f"model.path={folder}: {dangling[0]}{more} links to {target}, which is not there (a Hugging Face cache that"
            f" was pruned or copied without its blobs): nothing could be loaded. Copy the folder with its contents"
            f" (cp -rL SOURCE {folder}), or download it again."
        )


def _refuse_adapter(folder: Path) -> None:
    path = folder / "adapter_config.json"
    if not path.is_file():
        return
    base = read_json(path).get("base_model_name_or_path") or "ITS_BASE_MODEL"
    raise UserError(
        f"model.path={folder} holds an adapter (adapter_config.json, trained on {base}), which changes a checkpoint and"
        f' is none: it would be left out or loaded in its place. Merge the two and type the result: python -c "from'
        f" peft import AutoPeftModelForCausalLM as M; M.from_pretrained('{folder}').merge_and_unload()"
        f".save_pretrained('merged')\", then model.path=merged."
    )


def _refuse_pointer(path: Path, begin: bytes) -> None:
    if begin.startswith(LFS_POINTER):
        raise UserError(
            f"{path} is a Git LFS pointer of {path.stat().st_size} bytes, not the file itself: nothing could be loaded."
            f" Type git -C {path.parent} lfs pull."
        )


def _no_weights(folder: Path) -> str:
    """UserError for weights that are there in another format; else what is missing."""
    for pattern, name in OTHER_WEIGHTS.items():
        found = [path.name for path in folder.glob(pattern) if path.name != "training_args.bin"]
        if found:
            remedy = (
                "Use the checkpoint it was made from, with its *.safetensors"
                if pattern == "*.gguf"
                else f'Convert it: python -c "from transformers import AutoModelForCausalLM as M;'
                f" M.from_pretrained('{folder}', dtype='auto').save_pretrained('converted')\", copy its tokenizer files"
                " there, then type model.path=converted"
            )
            raise UserError(
                f"model.path={folder} holds its weights as {name} ({sorted(found)[0]}), not as *.safetensors: they are"
                f" not read here, so they would be no part of a result's identity. {remedy}."
            )
    return f"{folder} holds no weights (*.safetensors)"


def _check_safetensors(path: Path) -> None:
    """UserError unless the header can be read and the file is exactly as long as it says."""
    size = path.stat().st_size
    with path.open("rb") as file:
        begin = file.read(max(8, len(LFS_POINTER)))
        _refuse_pointer(path, begin)
        length = int.from_bytes(begin[:8], "little")
        if size < 8 or length > LONGEST_HEADER or 8 + length > size:
            raise UserError(
                f"{path} {'is empty' if not size else f'({size} bytes) has no whole header'}: the weights are damaged"
                " or were not copied whole. Copy or download it again."
            )
        file.seek(8)
        content = file.read(length)
    try:
        header = json.loads(content.decode("utf-8"))
        ends = [int(tensor["data_offsets"][1]) for name, tensor in header.items() if name != "__metadata__"]
    except (ValueError, TypeError, KeyError, IndexError, AttributeError, RecursionError):
        raise UserError(
            f"{path} has no header that can be read: the weights are damaged. Copy or download it again."
        ) from None
    due = 8 + length + max(ends, default=0)
    if due != size:
        state = "is cut off (a download or copy that did not end?)" if size < due else "is damaged"
        raise UserError(
            f"{path} has {size} bytes, but its header speaks of {due}: it {state}. Copy or download it again."
        )


def _check_shards(folder: Path, names: list[str]) -> None:
    """UserError where weights are named as parts, and not all of them are there; an index may be missing, too."""
    found = [match.groups() for name in names if (match := SHARD.fullmatch(name))]
    for prefix, parts in sorted({(prefix, int(parts)) for prefix, _, parts in found}):
        there = {int(number) for other, number, total in found if (other, int(total)) == (prefix, parts)}
        absent = [f"{prefix}-{n:05d}-of-{parts:05d}.safetensors" for n in range(1, parts + 1) if n not in there]
        if absent:
            raise UserError(
                f"model.path={folder} holds {len(there)} of the {parts} parts of its weights: the model would be loaded"
                f" in part. Copy or download {_few(absent)}."
            )


def _check_index(folder: Path, there: set[str]) -> None:
    """UserError where an index names no weights, or other files than those `there`: vLLM loads what both have."""
    for index in sorted(folder.glob("*.safetensors.index.json")):
        named = read_json(index).get("weight_map")
        if not isinstance(named, dict) or not named:
            raise UserError(f"{index} has no weight_map: the checkpoint is damaged. Copy or download it again.")
        absent = sorted({str(name) for name in named.values()} - there)
        if absent:
            raise UserError(
                f"{index.name} of {folder} names {len(absent)} weight files that are not there ({_few(absent)}): the"
                " model would be loaded in part. Copy or download them."
            )


def _few(names: list[str]) -> str:
    return ", ".join(names[:MOST_NAMED]) + (f" and {len(names) - MOST_NAMED} more" if len(names) > MOST_NAMED else "")


def _line(error: Exception) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__
