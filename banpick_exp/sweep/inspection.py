"""What is known of a checkpoint from its config.json and its index of weights, before an engine is loaded.

Memory is weights alone, divided evenly over tensor-parallel ranks; what a card has room for is what `roofline` takes it
for. Costs of a calibration are the estimate's (`estimate`), with the pace of `roofline`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from banpick_exp.config import suggestion
from banpick_exp.engine.config import EngineConfig
from banpick_exp.errors import UserError
from banpick_exp.evaluation.calibration.config import MOST_TOKENS, CalibrationConfig
from banpick_exp.evaluation.calibration.scores import Part
from banpick_exp.models.config import ModelConfig
from banpick_exp.models.families import UNKNOWN
from banpick_exp.models.folder import check_folder, missing_files, read_json
from banpick_exp.models.inspect import EMBEDDED_CHECKPOINT, Described, describe, read_shape
from banpick_exp.models.language import language_part
from banpick_exp.models.moe_layers import first_int
from banpick_exp.models.published import PUBLISHED
from banpick_exp.models.quantisation import MARLIN, MARLIN_FORMATS
from banpick_exp.models.routing import REPRODUCED
from banpick_exp.models.shape import MoeShape
from banpick_exp.models.sizes import Sizes, sizes_by, stored_bytes
from banpick_exp.sweep.compose import Composer, choices
from banpick_exp.sweep.config import Hardware
from banpick_exp.sweep.estimate import H100, SMALL_ON_CPU, artifact_tokens, score_tokens
from banpick_exp.sweep.roofline import WORKING_BYTES, roofline

OWN_CODE = (
    "config.json names code of the checkpoint's own (auto_map): where vLLM asks for it, read it, then type"
    " model.trust_remote_code=true."
)
Hook = Literal["hooked", "refused", "unknown"]
WEIGHTS_SHARE = 0.97
"""Of the room on a card, at most; the rest is the least of a cache."""
RANKS = (1, 2, 4, 8, 16)
"""Tensor-parallel sizes that are looked at."""
BITS = {"bfloat16": 2.0, "8 bits": 1.0, "4 bits": 4.25 / 8}
"""Bytes of a weight; `4 bits` has a scale for 32."""
ANSWER_TOKENS = MOST_TOKENS
"""Tokens a sample, for which a calibration is priced; a setting (`calibration.max_tokens`)."""
WAYS: dict[str, tuple[Part, str]] = {
    "gain, race": ("gain_add", "race"),
    "gain, full": ("gain_add", "full"),
    "insertion_kl, race": ("insertion_kl", "race"),
    "insertion_kl, full": ("insertion_kl", "full"),
    "removal_kl, full (the paper's)": ("removal_kl", "full"),
}
"""Ways to score experts: part, method. Each with the layers' importance, which every calibration measures."""
LAYERS_ALONE = "layers alone"
SETTINGS = CalibrationConfig(max_tokens=ANSWER_TOKENS)
"""As shipped, for a task whose answers may be as long."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Cost:
    """Of making one part of a calibration."""

    way: str
    tokens: float
    """That pass through the model, whole passes counted."""
    seconds: float
    hours: float
    """GPU-hours, or core-hours."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Inspection:
    """What `inspect` says of one checkpoint."""

    name: str
    """A file of conf/model/, or a folder."""
    typed: str
    """What chooses it on a line: `model=NAME` or `model.path=FOLDER`."""
    location: str
    source: str
    """What was read."""
    described: Described
    shape: MoeShape
    sizes: Sizes
    heads: int
    """Of attention, for the ranks that divide them; 0 where nothing says."""
    dtype: str | None
    weighed: bool
    """Bytes are those of the files or their index, not of the format."""
    hook: Hook
    why: str
    missing: str | None
    notes: tuple[str, ...]
    engine: EngineConfig
    """Of its file in conf/model/, else the smallest that holds it: what a sweep would start."""
    engine_typed: str
    """What chooses it on a line, empty where the model does."""
    hardware: Hardware
    costs: tuple[Cost, ...]
    """Empty where no calibration can be made or priced."""
    no_costs: str | None
    """Why."""

    @property
    def dense(self) -> tuple[int, ...]:
        """Layers without experts."""
        with_experts = set(self.described.layers)
        return tuple(layer for layer in range(self.described.total) if layer not in with_experts)

    @property
    def stored_as(self) -> str:
        quantised = self.described.quantisation
        return quantised.label if quantised is not None else self.dtype or "a format that no file names"

    def memory(self) -> dict[str, float]:
        """Bytes of all weights: as they are stored, and would be in other formats."""
        quantised = self.described.quantisation
        same = {None: "bfloat16", "fp8": "8 bits", "int8": "8 bits"}.get(
            quantised.format if quantised else None, "4 bits"
        )
        others = {name: self.sizes.parameters * each for name, each in BITS.items() if name != same}
        return {self.stored_as: self.sizes.weight_bytes, **others}

    def room(self) -> float:
        """Bytes of a card that weights and cache may take."""
        return self.hardware.memory_gb * 1e9 * self.engine.gpu_memory_utilization - WORKING_BYTES

    def divides(self, ranks: int) -> bool:
        return not self.heads or self.heads % ranks == 0

    def smallest_ranks(self, size: float) -> int | None:
        """The smallest tensor-parallel size of `RANKS` whose cards hold `size` bytes of weights and some cache."""
        return next((n for n in RANKS if self.divides(n) and size / n <= WEIGHTS_SHARE * self.room()), None)


def inspect(word: str, hardware: Hardware = H100) -> Inspection:
    """Looks at a name of conf/model/, a folder, or a Hub id that a file of conf/model/ has.

    Raises UserError for what is none of them, and for a folder that is damaged, dense, or no checkpoint.
    """
    name, model, folder = _found(word)
    whole: Mapping[str, Any]
    missing: str | None
    notes: tuple[str, ...] = ()
    if folder is None:
        whole, source = PUBLISHED[str(model.path)], "published sizes (the Hub is not asked)"
        described = describe(dict(whole), f"model={name}", refusing=False)
        shape, stored = _shape_of(described), 0.0
        missing = "its weights are on the Hub: the first run fetches them"
    else:
        whole, source = read_json(folder / "config.json"), f"config.json and index of {folder}"
        described = describe(dict(whole), f"model.path={folder}", refusing=False)
        if described.family.refused is None:
            shape, _, notes = read_shape(model, folder)
        else:
            shape = _shape_of(described)
        missing, stored = missing_files(folder), stored_bytes(folder)
    if whole.get("auto_map"):
        notes = (*notes, OWN_CODE)
    part = language_part(whole)
    hook, why = verdict(described)
    typed = f"model={name}" if name in choices("model") else f"model.path={folder}"
    inspection = Inspection(
        name=name,
        typed=typed,
        location=str(folder or model.path),
        source=source,
        described=described,
        shape=shape,
        sizes=sizes_by(whole, shape, stored),
        heads=first_int(part, ("num_attention_heads", "n_heads")),
        dtype=next((value for key in ("dtype", "torch_dtype") if isinstance(value := part.get(key), str)), None),
        weighed=stored > 0,
        hook=hook,
        why=why,
        missing=missing,
        notes=notes,
        engine=Composer().setting({"engine": "cuda"}).engine,
        engine_typed="",
        hardware=hardware,
        costs=(),
        no_costs=None,
    )
    return _priced(_with_engine(inspection))


def _with_engine(found: Inspection) -> Inspection:
    if found.name in choices("model"):
        return dataclasses.replace(found, engine=Composer().setting({"model": found.name}).engine)
    ranks = found.smallest_ranks(found.sizes.weight_bytes) or RANKS[-1]
    named = "cuda" if ranks == 1 else f"cuda_tp{ranks}"
    engine, typed = Composer().setting({"engine": named}).engine, f"engine={named}"
    quantised = found.described.quantisation
    if quantised is not None and quantised.format in MARLIN_FORMATS:
        engine, typed = engine.model_copy(update={"moe_backend": "marlin"}), f"{typed} {MARLIN}"
    return dataclasses.replace(found, engine=engine, engine_typed=typed)


def _found(word: str) -> tuple[str, ModelConfig, Path | None]:
    """Name, settings and folder (None: a Hub id)."""
    composer, names = Composer(), [name for name in choices("model") if name != "local"]
    shipped = {name: composer.setting({"model": name}).model for name in names}
    by_hub = {str(model.path): name for name, model in reversed(shipped.items()) if model.path is not None}
    name = word if word in shipped else by_hub.get(word)
    if name is not None:
        path = shipped[name].path
        return name, shipped[name], EMBEDDED_CHECKPOINT if path is None else None
    folder = Path(word).expanduser()
    if folder.is_dir():
        check_folder(folder)
        return folder.name, ModelConfig(name="local", path=str(folder)), folder
    fetch = f"hf download {word} config.json model.safetensors.index.json --local-dir FOLDER"
    hub = f" To look at a checkpoint of the Hub, fetch its config alone ({fetch}) and inspect FOLDER." * (
        word.count("/") == 1
    )
    raise UserError(
        f"inspect {word}: neither a model of conf/model/, nor a folder, nor a Hub id known here: there is nothing to"
        f" read. {suggestion(word, names, 'inspect ')}Models: {', '.join(names)}.{hub}"
    )


def _shape_of(described: Described) -> MoeShape:
    """Raises UserError where the config does not say how many."""
    layers, experts, top_k = described.num_layers, described.num_experts, described.top_k
    if layers is None or experts is None or top_k is None:
        raise UserError(
            f"config.json of {described.label} does not say how many experts it has, so there is nothing to inspect."
        )
    return MoeShape(num_layers=layers, num_experts=experts, top_k=min(top_k, experts))


def verdict(described: Described) -> tuple[Hook, str]:
    """Whether the hook takes it, and why, as far as its config says."""
    family, routing = described.family, described.routing
    if family.refused is not None or family.unhooked is not None:
        return "refused", family.refused or f"{family.unhooked}. Use a checkpoint of another family."
    if routing.scoring is not None and routing.scoring not in REPRODUCED:
        return "refused", f"its scores are {routing.scoring}; the hook reproduces {' and '.join(REPRODUCED)} alone."
    quantised = described.quantisation
    kernel = "" if quantised is None else f" {quantised.label}: {quantised.kernel}."
    if family is UNKNOWN:
        return "unknown", f"{described.label} is no family known here: the engine must be asked (verify).{kernel}"
    if quantised is not None and not quantised.known:
        return "unknown", f"vLLM builds its layers through the factory that is hooked, but{kernel}"
    return "hooked", f"vLLM builds its layers through the factory that is hooked.{kernel}"


def _priced(found: Inspection) -> Inspection:
    if found.hook == "refused":
        return dataclasses.replace(found, no_costs="the hook refuses it")
    if found.shape.top_k == 1:
        return dataclasses.replace(found, no_costs="with one expert a token there is no selection to change")
    if found.engine.pipeline_parallel_size > 1:
        return dataclasses.replace(found, no_costs="no calibration can be made on pipeline stages")
    if not found.sizes.known:
        return dataclasses.replace(found, no_costs="its config does not say how large its layers are")
    pace, devices = SMALL_ON_CPU.prefill, 1
    if found.engine.gpus:
        roof = roofline(found.sizes, found.engine, found.hardware, context=ANSWER_TOKENS, waiting=SETTINGS.samples)
        pace, devices = roof.prefill, found.engine.gpus
    once = artifact_tokens(found.shape, SETTINGS, 1)
    tokens = {LAYERS_ALONE: once}
    for way, (part, method) in WAYS.items():
        settings = SETTINGS.model_copy(update={"method": method})
        tokens[way] = once + score_tokens(found.shape, settings, 1, part)
    costs = tuple(
        Cost(way=way, tokens=number, seconds=number / pace, hours=devices * number / pace / 3600)
        for way, number in tokens.items()
    )
    return dataclasses.replace(found, costs=costs)
