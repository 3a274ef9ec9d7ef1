"""Families of checkpoints: how each writes down its experts, and which vLLM cannot hold or cannot be hooked in.

Most need no entry of their own beyond their name: the usual keys and conventions (`moe_layers`) read them. To add a
family write one `Family` into `FAMILIES` and one case into tests/models/test_model_families.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from banpick_exp.models.moe_layers import Config, Convention, Counted, all_but_the_first, count
from banpick_exp.models.routing import Conventions

EXPERT_KEYS = (
    "num_experts",
    "num_local_experts",
    "n_routed_experts",
    "moe_num_experts",
    "num_routed_experts",
    "moe_num_routed_experts",
    "num_moe_experts",
    "n_experts",
)
TOP_K_KEYS = (
    "num_experts_per_tok",
    "num_experts_per_token",
    "experts_per_token",
    "moe_topk",
    "moe_top_k",
    "moe_k",
    "top_k_experts",
    "n_experts_per_tok",
    "num_selected_experts",
    "moe_num_active_experts",
    "n_activated_experts",
)

BYPASSED = (
    "vLLM builds its experts outside the runner we hook, so every policy would silently do nothing. Use a checkpoint of"
    " another family, e.g. model=qwen3_30b_a3b."
)
OWN_ROUTING = (
    "vLLM routes it by a function of the model's own, which the hook cannot reproduce, so no policy could be applied"
)


def _dropped(version: str) -> str:
    return (
        f"vLLM held it until {version} and dropped it, so no engine can load it. Use a checkpoint of another family,"
        " e.g. model=qwen3_30b_a3b."
    )


NOT_READ = Conventions()


@dataclass(frozen=True, kw_only=True, slots=True)
class Family:
    """How one kind of checkpoint describes its experts in config.json."""

    name: str
    architectures: tuple[str, ...]
    """Beginnings of what `architectures` names; the first family that matches is taken."""
    defaults: Mapping[str, Any] = field(default_factory=dict)
    """What an absent key means: the defaults of its config class, where they decide which layers have experts."""
    expert_keys: tuple[str, ...] = EXPERT_KEYS
    """Where E, the routed experts a layer, may stand."""
    top_k_keys: tuple[str, ...] = TOP_K_KEYS
    """Where K, the experts a token selects, may stand."""
    layers: Convention | None = None
    """Which layers have experts, where the usual rules do not say; a list in the config still wins."""
    routing: Conventions = NOT_READ
    """How its router scores where its config does not say, as read in vLLM 0.32; empty where it was not read."""
    refused: str | None = None
    """Why it can never be measured, with the remedy (read in vLLM 0.32): nothing is planned."""
    unhooked: str | None = None
    """Why vLLM 0.32 holds it but the hook refuses it at the engine's start: it can be planned, not run."""

    def count(self, config: Config) -> Counted:
        """The MoE layers of the language part of a config.json."""
        return count({**self.defaults, **config}, self.layers)


BY_KEY = Conventions(scoring="softmax", renormalises=False, bias="by key")
"""Softmax, raw weights and no bias, where no key says otherwise."""
ALWAYS_NORMALISED = Conventions(scoring="softmax", renormalises=True, fixed=True, bias="never")
SIGMOID = Conventions(scoring="sigmoid", renormalises=True, bias="always")

FAMILIES = (
    Family(name="bypassing", architectures=("MiniCPM", "Moondream3", "DeepseekV4"), refused=BYPASSED),
    Family(name="minimax_text", architectures=("MiniMaxText01", "MiniMaxM1", "MiniMaxVL01"), refused=_dropped("0.23")),
    Family(name="grok", architectures=("Grok1",), refused=_dropped("0.24")),
    Family(name="arctic", architectures=("ArcticFor",), refused=_dropped("0.28")),
    Family(name="llama4", architectures=("Llama4", "InternS1Pro"), unhooked=OWN_ROUTING),
    Family(name="phi", architectures=("PhiMoE",), unhooked=OWN_ROUTING),
    Family(name="gemma4", architectures=("Gemma4",), unhooked=OWN_ROUTING),
    Family(
        name="longcat",
        architectures=("LongcatFlash",),
        unhooked="vLLM routes to zero experts too, which no policy can address",
    ),
    Family(
        name="kimi_k3",
        architectures=("KimiK3",),
        unhooked="vLLM runs its experts on a runner of the model's own, which the hook is not registered for",
    ),
    Family(
        name="ernie_vl",
        architectures=("Ernie4_5_VL",),
        defaults={"moe_layer_start_index": 1, "moe_layer_end_index": -1, "moe_layer_interval": 1},
        unhooked="vLLM gives each of its layers two routers, one for text and one for images, so one policy cannot act"
        " on both",
    ),
    Family(
        name="ernie",
        architectures=("Ernie4_5_Moe",),
        defaults={"moe_layer_start_index": 1, "moe_layer_end_index": -1, "moe_layer_interval": 1},
        routing=Conventions(scoring="softmax", renormalises=True, fixed=True, bias="always"),
    ),
    Family(
        name="qwen3_next",
        architectures=("Qwen3Next",),
        routing=Conventions(scoring="softmax", renormalises=True, bias="never"),
    ),
    Family(
        name="qwen",
        architectures=(
            *("Qwen2Moe", "Qwen3Moe", "Qwen3VLMoe", "Qwen3OmniMoe", "Qwen3_5Moe"),
            *("Ovis2_6_Moe", "InternS1For", "InternS2", "InternVLChatModel", "K2Horizon"),
        ),
        routing=Conventions(scoring="softmax", renormalises=False, bias="never"),
    ),
    Family(name="mixtral", architectures=("Mixtral", "GraniteMoe", "Dbrx"), routing=ALWAYS_NORMALISED),
    Family(name="gpt_oss", architectures=("GptOss",), routing=ALWAYS_NORMALISED),
    Family(
        name="olmoe",
        architectures=("Olmoe", "FlexOlmo"),
        routing=Conventions(scoring="softmax", renormalises=False, fixed=True, bias="never"),
    ),
    Family(
        name="mixtral_like",
        architectures=("MiniMaxM2", "MiniMaxFor", "Aria", "HunYuanMoEV1", "Phimoe", "JetMoe"),
    ),
    Family(
        name="deepseek_v3",
        architectures=("DeepseekV3For",),
        defaults={"first_k_dense_replace": 3},
        routing=BY_KEY,
    ),
    Family(name="bailing", architectures=("Bailing",), routing=BY_KEY),
    Family(name="deepseek", architectures=("Deepseek", "KimiVL", "KimiK2", "GlmMoeDsa"), routing=BY_KEY),
    Family(name="deepseek_like", architectures=("KimiLinear", "Dots1", "AXK1", "Pangu")),
    Family(
        name="glm4",
        architectures=("Glm4Moe", "Glm4vMoe"),
        defaults={"first_k_dense_replace": 1},
        routing=SIGMOID,
    ),
    Family(
        name="glm4_like",
        architectures=("SolarOpen", "Exaone", "Laguna", "HYV3", "HYV4", "Param2MoE", "Sarvam"),
        defaults={"first_k_dense_replace": 1},
    ),
    Family(name="cohere2", architectures=("Cohere2Moe",)),
    Family(name="lfm2", architectures=("Lfm2Moe",), defaults={"num_dense_layers": 2}),
    Family(name="afmoe", architectures=("Afmoe",), defaults={"num_dense_layers": 1}),
    Family(name="jamba", architectures=("Jamba",), defaults={"expert_layer_period": 2, "expert_layer_offset": 1}),
    Family(name="nemotron_h", architectures=("NemotronH",)),
    Family(name="mimo_v2", architectures=("MiMoV2",)),
    Family(name="minimax_m3", architectures=("MiniMaxM3",)),
    Family(name="step3", architectures=("Step3",), layers=all_but_the_first),
)
"""The registry, in the order of matching."""

UNKNOWN = Family(name="unknown", architectures=())
"""Reads what no entry is for, by the usual keys."""


def family_of(architectures: tuple[str, ...]) -> Family:
    """The first family one of `architectures` belongs to, else `UNKNOWN`."""
    found = (family for family in FAMILIES for name in architectures if name.startswith(family.architectures))
    return next(found, UNKNOWN)
